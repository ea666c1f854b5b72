"""Models x tasks -> the report: each model is opened, encodes what is not kept yet, and is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from trainer_ext.evaluation.baselines import bm25, chance
from trainer_ext.evaluation.classification import ClassificationTask
from trainer_ext.evaluation.figures import Figure
from trainer_ext.evaluation.items import Embeddings, is_text
from trainer_ext.evaluation.report import Report
from trainer_ext.evaluation.tasks import Task, figures_of
from trainer_ext.measuring.lengths import set_lengths
from trainer_ext.measuring.models import Encoders
from trainer_ext.measuring.vector_cache import VectorCache

Say = Callable[[str], object]


@dataclass
class Measurement:
    """Models measured on the same tasks, into a report of ``folder``; vectors are kept in ``cache``.

    ``seen`` is called with each model's name, the tasks it was measured on, and its vectors.
    """

    tasks: Sequence[Task]
    folder: Path
    cache: Path
    truncate_dims: Sequence[int] = ()
    precisions: Sequence[str] = ()
    say: Say = tqdm.write
    progress: bool = True
    seen: Callable[[str, Sequence[Task], Embeddings], object] | None = None
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report = Report(self.folder, self.tasks)

    def add(self, model: Encoders) -> dict[str, Figure]:
        """Measure one model, add its row, and compare it with the first one.

        Raises:
            ValueError: no task is left for it, or its vectors cannot be ranked.
        """
        tasks = self._fitting(model)
        if not self.figures:
            self._begin(model)
        cache = VectorCache(self.cache, model)
        embeddings = cache.embeddings((item for task in tasks for item in task.items), self.progress)
        self.say(f"{model.name}: {cache.encoded:,} items encoded, {cache.read:,} vectors read from {cache.folder}")
        for task in tasks:
            if isinstance(task, ClassificationTask):
                task.logit_scale = model.logit_scale
        dims = [dim for dim in self.truncate_dims if dim < embeddings.dim]
        if left_out := sorted(set(self.truncate_dims) - set(dims)):
            self._note(f"{model.name} has {embeddings.dim} dimensions: not measured at {', '.join(map(str, left_out))}")
        found = figures_of(embeddings, tasks, dims, self.precisions)
        self.report.add_figures(model.name, found)
        for name, first in list(self.figures.items())[:1]:
            self.report.compare(first, found, (name, model.name))
        self.figures[model.name] = found
        if self.seen is not None:
            self.seen(model.name, tasks, embeddings)
        return found

    def _begin(self, model: Encoders) -> None:
        """What does not depend on the model, but for lengths: those are the first one's tokens, the same for all."""
        if model.tokenizer is not None:
            set_lengths(self.tasks, model.tokenizer)
        self.report.add("chance", chance(self.tasks), kind="reference")
        try:
            words = bm25(self.tasks)
        except ImportError as error:  # a peer beside the models, not what was asked for
            self._note(f"BM25 is left out. {error}")
            return
        if words:
            self.report.add("BM25", words, kind="reference")

    def _fitting(self, model: Encoders) -> list[Task]:
        """The tasks that the model can do: one of texts alone leaves out those with pictures."""
        if model.encode_image is not None:
            return list(self.tasks)
        tasks = [task for task in self.tasks if all(map(is_text, task.items))]
        left_out = [task.label for task in self.tasks if task not in tasks]
        if not tasks:
            raise ValueError(
                f"Model {model.name!r} has no image tower, and all tasks need one: {', '.join(left_out)}. Add a task "
                "of texts, or take the model out."
            )
        if left_out:
            self._note(f"{model.name} has no image tower: not measured on {', '.join(left_out)}")
        return tasks

    def _note(self, words: str) -> None:
        self.report.notes.append(words)
        self.say(words)
