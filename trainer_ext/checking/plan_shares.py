"""What the plan of a run takes from each source: steps, rows, epochs, and its share of a side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

from trainer_ext.checking.findings import Finding
from trainer_ext.data.plan import JointBatchPlan, RowCount
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.schema import SideName, Source
from trainer_ext.recipe.stages import Stage

# Times a row is seen from which a source is said to be learnt by heart.
MANY_EPOCHS = 100


@dataclass(frozen=True)
class SourceShare:
    """What one side of a run takes from a source: ``steps`` by stage, rows, and their share of the side's rows.

    ``epochs`` is how often each row is seen on average (of a balanced source: one that no epoch leaves out); None for a
    streaming source, whose rows are not counted before.
    """

    source: str
    side: SideName
    steps: dict[str, int]
    rows: int
    share: float
    epochs: float | None

    def as_record(self) -> dict[str, Any]:
        """The figures of the report."""
        return asdict(self)


def make_plan(recipe: Recipe, row_counts: Mapping[str, RowCount], processes: int = 1) -> JointBatchPlan:
    """The plan of the first of a run's processes.

    Raises:
        ValueError: a batch that cannot be cut evenly, or that is larger than a source.
    """
    return JointBatchPlan(
        recipe.stages, recipe.sources, row_counts, recipe.seed,
        world_size=processes, gradient_accumulation_steps=accumulated(recipe),
    )  # fmt: skip


def accumulated(recipe: Recipe) -> int:
    """Micro-batches of a step."""
    return recipe.training.get("gradient_accumulation_steps") or 1


def plan_shares(plan: JointBatchPlan, stages: Sequence[Stage]) -> list[SourceShare]:
    """The shares of all sources, side by side, the largest first."""
    ends = [0, *accumulate(stage.steps for stage in stages)]
    totals = plan.source_counts()
    found = []
    for side, rows in totals.items():
        for source, count in sorted(rows.items(), key=lambda item: -item[1]):
            steps = {}
            for stage, (begin, end) in zip(stages, pairwise(ends), strict=True):
                spec = getattr(stage, side)
                if spec is not None and source in spec.sources:
                    taken = plan.source_counts(end)[side].get(source, 0) - plan.source_counts(begin)[side].get(
                        source, 0
                    )
                    steps[stage.name] = taken // spec.batch_size
            size = plan.epoch_rows(source)
            epochs = None if size is None else count / size
            found.append(SourceShare(source, side, steps, count, count / max(sum(rows.values()), 1), epochs))
    return found


def share_findings(shares: Sequence[SourceShare], sources: Sequence[Source], measured: set[str]) -> Iterator[Finding]:
    """Sources that no step reads, and those that are read very often.

    Args:
        sources: all of the recipe's.
        measured: names of those that evaluation reads.
    """
    used = {share.source for share in shares}
    for source in sources:
        if source.name not in used | measured:
            words = "no stage and no task reads this source. Name it in a stage's sources, or take it out."
            yield Finding("note", "unused", source.name, words)
    for share in shares:
        if not share.rows:
            words = f"{share.side}: no step draws this source. Give it a larger weight, or set more steps."
            yield Finding("warning", "never-drawn", share.source, words)
        elif share.epochs is not None and share.epochs > MANY_EPOCHS:
            words = (
                f"each row is seen {share.epochs:,.0f} times, and will be known by heart. Set fewer steps, or a smaller"
            )
            yield Finding("warning", "many-epochs", share.source, f"{words} weight.")
