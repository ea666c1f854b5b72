"""``check``: read all that a recipe reads, train nothing, and say what is wrong. From top to bottom:

1. open every source that a stage or a task reads; one that cannot be read is an error, and the others are still read;
2. make the processor, so that texts are counted in its tokens;
3. read each source once (``scan``), and say what is wrong with its texts, its pictures, and what it says twice;
4. compare training with evaluation (``overlap``);
5. plan the run: shares, epochs, and one batch of every stage;
6. take two real steps of every stage in a process of its own (``fit``);
7. with a folder, write ``findings.jsonl``, ``check.json`` and ``check.html``.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer_ext.checking.batches_shown import ShownBatch, stage_batches
from trainer_ext.checking.captions import reading_whole
from trainer_ext.checking.duplicates import duplicate_findings
from trainer_ext.checking.findings import SHOWN, Finding, FindingLog
from trainer_ext.checking.fit import Fit, StepsFailed, failed_finding, fit_findings, try_steps
from trainer_ext.checking.overlap import overlap_findings, reused_source
from trainer_ext.checking.page import check_page
from trainer_ext.checking.pictures import picture_findings
from trainer_ext.checking.plan_shares import SourceShare, make_plan, plan_shares, share_findings
from trainer_ext.checking.scan import NO_LIMIT, AllBroken, SourceScan, open_source, scan
from trainer_ext.checking.texts import flip_findings, token_findings
from trainer_ext.data.balance import balances
from trainer_ext.data.formats import DataError
from trainer_ext.data.picture_pairs import pair_notes
from trainer_ext.data.sources import Rows, planned_rows
from trainer_ext.files import partial_path, write_json, write_whole
from trainer_ext.recipe.evaluation import TaskSpec, load_tasks
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage, TokenizerSpec
from trainer_ext.run.start import initial_processor

FINDINGS_FILE, RECORD_FILE, PAGE_FILE = "findings.jsonl", "check.json", "check.html"
Say = Callable[[str], object]


@dataclass
class Checked:
    """What a check has found and measured; ``log.count("error")`` decides the exit code.

    Args:
        sources: figures of each source, by its name.
        shares: what the plan takes from each; empty where there is no plan.
        fit: None where no steps were tried, or where they failed.
        batches: the first rows of every stage's first batch.
    """

    recipe: str
    log: FindingLog
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    shares: list[SourceShare] = field(default_factory=list)
    fit: Fit | None = None
    batches: list[ShownBatch] = field(default_factory=list)


def check(
    recipe: Recipe, output_dir: str | Path | None = None, shown: int = SHOWN, steps: bool = True, processes: int = 1,
    most_pictures: int | None = None, say: Say = print,
) -> Checked:  # fmt: skip
    """Check a recipe's data, and whether a step fits.

    Args:
        output_dir: where the three files go; without it nothing is written but the cache of ``datasets``.
        shown: findings of each kind that are kept to be shown; all are in ``findings.jsonl``.
        steps: take two real micro-steps of every stage.
        processes: that the run will have: a micro-batch is one process's share.
        most_pictures: of each source that are decoded, evenly spread; None for all.
        say: takes lines about what is being done.

    Raises:
        FileNotFoundError: the recipe measures by a suite that there is not.
        OSError: ``output_dir`` cannot be written.
    """
    with _findings_file(output_dir) as file:
        checked = Checked(recipe.name, FindingLog(file, shown))
        _Check(recipe, checked, processes, most_pictures, say).run(steps)
        if output_dir is not None:
            _write(checked, Path(output_dir))
    return checked


class _Check:
    """The steps of one check, and what they hand to each other."""

    def __init__(self, recipe: Recipe, checked: Checked, processes: int, most_pictures: int | None, say: Say) -> None:
        self.recipe, self.checked, self.say = recipe, checked, say
        self.processes, self.most_pictures = processes, most_pictures
        self.broken = AllBroken(None)
        limitless = [source.model_copy(update={"max_broken_rows": NO_LIMIT}) for source in recipe.sources]
        self.lenient = recipe.model_copy(update={"sources": limitless})
        self.tables: dict[str, Rows] = {}
        self.scans: dict[str, SourceScan] = {}
        self.processor: Any = None
        self.of_suite = suite_sources(recipe)

    def run(self, steps: bool) -> None:
        """All of it, in order."""
        trained = [source.name for source in self.recipe.used_sources()]
        measured = measured_by(self.recipe)
        for source in (*self.recipe.sources, *self.of_suite):
            if source.name in {*trained, *measured}:
                self._open(source)
        self._make_processor(trained)
        for source in (*self.recipe.sources, *self.of_suite):
            if source.name in self.tables:
                self._scan(source, source.name in trained)
        self._compare(trained, measured)
        planned = self._plan(trained, set(measured))
        if steps and planned and self.processor is not None:
            self._try_steps()
        elif steps:
            words = "no step was tried: correct the errors first."
            self.checked.log.add([Finding("note", "step", "", words)])

    # --- sources -----------------------------------------------------------------------------------------------------

    def _open(self, source: Source) -> None:
        try:
            self.tables[source.name] = open_source(source, self.recipe.seed, self.broken)
        except (DataError, OSError) as error:
            self.checked.log.add([unreadable(source, error)])

    def _make_processor(self, trained: Sequence[str]) -> None:
        if isinstance(self.recipe.tokenizer, TokenizerSpec) and not all(name in self.tables for name in trained):
            return  # it is trained on texts that cannot be read
        try:
            self.processor = initial_processor(self.lenient, say=self.say)
        except (ValueError, OSError) as error:
            self.checked.log.add([Finding("error", "model", "", " ".join(str(error).split()))])

    def _scan(self, source: Source, trained: bool) -> None:
        log, stages = self.checked.log, stages_of(self.recipe, source.name)
        tokenizer = None if self.processor is None else self.processor.tokenizer
        try:
            found = scan(source, self.tables[source.name], self.broken, tokenizer, stages, log, self.most_pictures)
        except DataError as error:
            log.add([unreadable(source, error)])
            return
        for name, column in found.texts.items():
            if column.tokens is not None:
                whole = reading_whole(name, stages)
                log.add(token_findings(source.name, found.column(name), name, column.tokens, whole, found.place))
        if (captions := found.texts.get("caption")) is not None:
            sided = captions.sided, captions.texts, captions.first_sided
            log.add(flip_findings(source.name, found.column("caption"), *sided, stages, found.place))
        if found.captions is not None:
            log.add(found.captions.findings(source.name, found.column("caption"), found.place))
        if len(found.pictures) and self.processor is not None:
            images = self.processor.image_processor
            crops = images.resize_mode == "shortest"
            log.add(
                picture_findings(
                    source.name, found.column("image"), found.pictures, stages, images.size, crops, found.place
                )
            )
        if trained:
            log.add(duplicate_findings(found, self.recipe.training.get("false_negatives") == "keep"))
        self.scans[source.name] = found
        self.checked.sources[source.name] = record_of(found)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def _compare(self, trained: Sequence[str], measured: Mapping[str, list[str]]) -> None:
        others = [self.scans[name] for name in measured if name in self.scans and name not in trained]
        for name in (name for name in trained if name in self.scans):
            if name in measured and self.scans[name].source.holdout is None:
                self.checked.log.add([reused_source(name, measured[name])])
            for other in others:
                self.checked.log.add(overlap_findings(self.scans[name], other))

    # --- the run -----------------------------------------------------------------------------------------------------

    def _plan(self, trained: Sequence[str], measured: set[str]) -> bool:
        """Whether the run can be planned."""
        if not all(name in self.scans for name in trained):
            return False
        sources, tables = self.recipe.used_sources(), {name: self.tables[name] for name in trained}
        for name, balanced, words in balances(sources, tables):
            self.checked.sources[name]["balance"] = balanced.as_record()
            self.checked.log.add([Finding("note", "balance", name, words)])
        try:
            self.checked.log.add(Finding("note", "no-partner", *note) for note in pair_notes(sources, tables))
            plan = make_plan(self.recipe, planned_rows(sources, tables), self.processes)
        except ValueError as error:
            self.checked.log.add([Finding("error", "plan", "", str(error))])
            return False
        self.checked.shares = plan_shares(plan, self.recipe.stages)
        self.checked.log.add(share_findings(self.checked.shares, self.recipe.sources, measured))
        if self.processor is not None:
            self.checked.batches = stage_batches(self.lenient, self.tables, self.processor, plan)
        return True

    def _try_steps(self) -> None:
        self.say("taking two steps of every stage")
        with tempfile.TemporaryDirectory(prefix="jina-clip-check-") as folder:
            processor = Path(folder) if isinstance(self.recipe.tokenizer, TokenizerSpec) else None
            if processor is not None:
                self.processor.save_pretrained(processor)
            try:
                self.checked.fit = try_steps(self.lenient, processor, self.processes)
                self.checked.log.add(fit_findings(self.checked.fit))
            except StepsFailed as error:
                self.checked.log.add([failed_finding(error)])


def stages_of(recipe: Recipe, source: str) -> list[Stage]:
    """The stages that read a source."""
    return [stage for stage in recipe.stages if any(source in side.sources for _, side in stage.sides())]


def suite_sources(recipe: Recipe) -> list[Source]:
    """The sources of the recipe's suite, named after it: they are none of the recipe's own.

    Raises:
        FileNotFoundError, RecipeError: no such suite, or one that cannot be read.
    """
    if recipe.evaluation is None or recipe.evaluation.suite is None:
        return []
    suite = recipe.evaluation.suite
    return [
        source.model_copy(update={"name": f"{Path(suite).stem}/{source.name}"}) for source in load_tasks(suite).sources
    ]


def measured_by(recipe: Recipe) -> dict[str, list[str]]:
    """The sources that evaluation reads, each with the names of its tasks; those of a suite with the suite's."""
    found: dict[str, list[str]] = {}
    tasks: Sequence[TaskSpec] = [] if recipe.evaluation is None else recipe.evaluation.tasks
    for task in tasks:
        for name in filter(None, (task.source, task.corpus)):
            found.setdefault(name, []).append(task.name)
    return found | {source.name: [source.name.partition("/")[0]] for source in suite_sources(recipe)}


def unreadable(source: Source, error: Exception) -> Finding:
    """A source that cannot be read at all."""
    words = " ".join(str(error).split()).removeprefix(f"Source {source.name!r}").lstrip(":, ")
    return Finding("error", "source", source.name, words)


def record_of(found: SourceScan) -> dict[str, Any]:
    """The figures of a source."""
    record: dict[str, Any] = {"rows": found.rows, "broken": found.broken}
    if "image" in found.source.columns:
        record["pictures"] = found.pictures.as_record()
    record["texts"] = {}
    for name, column in found.texts.items():
        different = {} if name == "negatives" else {"different": len(np.unique(column.keys.values))}
        tokens = {} if column.tokens is None else column.tokens.as_record()
        record["texts"][name] = {"texts": column.texts, **different, **tokens}
    if found.captions is not None and found.captions.tokens is not None:
        record["texts"]["sentences"] = found.captions.tokens.as_record()
    return record


# --- the folder ------------------------------------------------------------------------------------------------------


@contextmanager
def _findings_file(output_dir: str | Path | None) -> Iterator[IO[str] | None]:
    """The open list of findings, which gets its name when it is whole."""
    if output_dir is None:
        yield None
        return
    path = Path(output_dir) / FINDINGS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(checked: Checked, folder: Path) -> None:
    record = {
        "recipe": checked.recipe,
        "counts": {level: checked.log.count(level) for level in ("error", "warning", "note")},
        "sources": checked.sources,
        "shares": [share.as_record() for share in checked.shares],
        "fit": None if checked.fit is None else checked.fit.as_record(),
    }
    write_json(folder / RECORD_FILE, record)
    title = f"Check of {checked.recipe}"
    page = check_page(title, checked.log, checked.sources, checked.shares, checked.fit, checked.batches)
    write_whole(folder / PAGE_FILE, page.encode("utf-8", "replace"))
