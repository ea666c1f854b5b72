"""What is measured: the tasks of a recipe's ``evaluation``, and the file of tasks that ``evaluate`` reads.

1. ``TaskSpec``: one task, from one source, or from other tasks (``mix``).
2. ``EvaluationSpec``: a recipe's section, which adds when to measure while training.
3. ``TasksFile`` and ``load_tasks``: sources and tasks in a file of their own (``configuration/evaluation/*.yaml``).
4. ``task_problems``: what the keys of tasks must be to each other and to their sources.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from trainer_ext.recipe.checks import name_problems, source_problems
from trainer_ext.recipe.problems import (
    Problem,
    RecipeError,
    describe_validation,
    nearest,
    raise_problems,
    shorten,
    with_source_names,
)
from trainer_ext.recipe.reading import expand_sources, find_resource, read_yaml
from trainer_ext.recipe.schema import PROMPTED, TASK_COLUMNS, Name, Source, SourceTask, Strict

Measure = Literal["retrieval", "similarity", "classification", "match", "hard-negatives", "one-index"]
Direction = Literal["t2i", "i2t", "i2i"]
Figures = Literal["r1", "r5", "r10", "mrr", "ndcg10", "map10", "median_rank"]
Precision = Literal["int8", "binary"]

# What a source's rows can be measured by; the first one is taken where a task does not say.
MEASURES: dict[SourceTask, tuple[Measure, ...]] = {
    "image-text": ("retrieval", "classification", "match", "hard-negatives"),
    "text-pair": ("retrieval", "match"),
    "triplet": ("hard-negatives", "retrieval"),
    "scored-pair": ("similarity",),
    "text": (),
    "image-pair": ("retrieval", "classification"),
}
# Keys that belong to some measures only.
_KEYS_OF: dict[str, tuple[Measure, ...]] = {
    "directions": ("retrieval",),
    "metrics": ("retrieval",),
    "corpus": ("retrieval",),
    "fuse": ("retrieval",),
    "by": ("retrieval", "similarity", "hard-negatives"),
    "classes": ("classification",),
    "templates": ("classification",),
}
DIRECTIONS: tuple[Direction, ...] = ("t2i", "i2t")  # where a task does not say


def _task_name(name: str) -> str:
    if "@" in name:
        raise PydanticCustomError("task_name", "holds an @, which stands before the width in names of figures")
    return name


def _template(template: str) -> str:
    if template.count("{}") != 1:
        raise PydanticCustomError("template", "must hold {} once, where the class stands", {})
    return template


class TaskSpec(Strict):
    """One task: what of a source is measured, and how. ``name`` begins the names of its figures: ``shop/t2i_r5``.

    ``measure`` follows from the source's task where it is not given: retrieval of image-text, text-pair and image-pair
    sources, the accuracy on triplets, the rank correlation of scored pairs; ``classes`` means classification, ``mix``
    one-index.
    ``directions`` of an image-text source: text to image and image to text by default, image to image on request, and
    alone for pairs of pictures.
    ``metrics`` leaves out all other figures of a retrieval task.
    ``classes`` and ``by`` are columns as the data call them: of a picture's class, and of a value such as a language,
    for each of which the figures are given apart, too.
    ``templates`` make a sentence of a class; ``{}`` is the class.
    ``corpus`` is a source whose pictures or texts are further candidates.
    ``fuse`` puts each row's picture and caption (the first of several) into one candidate; it is the picture's weight.
    ``limit`` takes that many rows, evenly spaced over the source.
    ``prompts`` stand before the texts of a column, in place of the source's own; ``instructions`` names a task or a
    prompt of the model's (``retrieval.query``).

    >>> TaskSpec(name="shop", source="photos", directions=["t2i"]).measured_as("image-text")
    'retrieval'
    """

    name: Annotated[Name, AfterValidator(_task_name)]
    source: str | None = None
    mix: Annotated[list[str], Field(min_length=1)] | None = None
    measure: Measure | None = None
    directions: Annotated[list[Direction], Field(min_length=1)] | None = None
    metrics: Annotated[list[Figures], Field(min_length=1)] | None = None
    classes: str | None = None
    templates: Annotated[list[Annotated[str, AfterValidator(_template)]], Field(min_length=1)] | None = None
    by: str | None = None
    corpus: str | None = None
    fuse: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    limit: PositiveInt | None = None
    prompts: dict[str, str] | None = None
    instructions: dict[str, str] = Field(default_factory=dict)

    def measured_as(self, task: SourceTask | None) -> Measure:
        """What is measured of a source with this task; None where the task has no source."""
        if self.measure is not None:
            return self.measure
        if task is None:
            return "one-index"
        return "classification" if self.classes is not None else MEASURES[task][0]

    def columns(self) -> list[str]:
        """The data's columns that the task reads beside the mapped ones."""
        return [name for name in (self.classes, self.by) if name is not None]


class EvaluationSpec(Strict):
    """What a recipe measures, and when.

    ``suite`` is the name of a packaged list of tasks, or a file of tasks; ``tasks`` are on the recipe's own sources.
    Everything is measured again with embeddings cut to each of ``truncate_dims`` (Matryoshka), and stored in fewer bits
    (``precisions``). Without ``every`` (steps) it is measured before training and after each stage. ``keep_best`` names
    the figure whose best model is kept; with ``patience`` training stops after so many measurements without a better
    one. ``validation_loss`` measures the stage's own losses on held-out rows, too.
    """

    suite: str | None = None
    tasks: list[TaskSpec] = Field(default_factory=list)
    truncate_dims: list[PositiveInt] = Field(default_factory=list)
    precisions: list[Precision] = Field(default_factory=list)
    every: PositiveInt | None = None
    keep_best: str | None = None
    patience: PositiveInt | None = None
    validation_loss: bool = False

    def problems(self, sources: Sequence[Source]) -> Iterator[Problem]:
        """What is wrong with it in a recipe that has these sources."""
        if self.suite is None and not self.tasks and not self.validation_loss:
            yield "evaluation", "measures nothing: give it tasks, a suite, or validation_loss: true."
        yield from task_problems("evaluation.tasks", self.tasks, sources)
        yield from _twice("evaluation.", self)
        if self.patience is not None and self.keep_best is None:
            yield "evaluation.patience", "waits for a better model, but by no figure. Give keep_best: TASK/FIGURE."
        if self.keep_best is not None and self.suite is None:
            task = self.keep_best.partition("/")[0].partition("@")[0].partition("[")[0]
            names = [spec.name for spec in self.tasks] + (["validation"] if self.validation_loss else [])
            if task not in names:
                words = f"{self.keep_best!r} is a figure of no task here.{_hint(task, names)}"
                yield "evaluation.keep_best", f"{words} Tasks: {', '.join(names) or 'none'}."


class TasksFile(Strict):
    """Sources and the tasks that are measured on them, as ``evaluate`` reads them. Of ``sources``, ``split`` is the
    one to measure on."""

    sources: Annotated[list[Source], Field(min_length=1)]
    tasks: Annotated[list[TaskSpec], Field(min_length=1)]
    truncate_dims: list[PositiveInt] = Field(default_factory=list)
    precisions: list[Precision] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> "TasksFile":
        problems = [*source_problems(self.sources), *task_problems("tasks", self.tasks, self.sources)]
        problems += _twice("", self)
        if problems:
            raise PydanticCustomError("recipe_checks", "{text}", {
                "problems": problems, "text": "; ".join(f"{path}: {message}" for path, message in problems)
            })  # fmt: skip
        return self


def load_tasks(path_or_name: str | Path) -> TasksFile:
    """Read and check a file of tasks, or a packaged one by its name (``configuration/evaluation/NAME.yaml``).

    Raises:
        RecipeError: everything that is wrong with the file, one line per problem.
        FileNotFoundError: no such file and no such name.

    >>> [task.name for task in load_tasks("openmoji").tasks][:2]
    ['concepts_short', 'concepts_long']
    """
    path = find_resource("evaluation", path_or_name)
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} is not a file of tasks: expected the keys sources and tasks, got {shorten(tree)}.")
    tree = {**tree, "sources": expand_sources(tree.get("sources", []), path.parent)}
    try:
        return TasksFile.model_validate(tree)
    except ValidationError as error:
        problems: list[Problem] = describe_validation(error, TasksFile, (), ())
        raise_problems(str(path), with_source_names(problems, tree))
        raise


def sources_of(specs: Sequence[TaskSpec], sources: Sequence[Source]) -> list[Source]:
    """The sources that the tasks read."""
    names = {name for spec in specs for name in (spec.source, spec.corpus)}
    return [source for source in sources if source.name in names]


# --- checks --------------------------------------------------------------------------------------------------------


def task_problems(place: str, specs: Sequence[TaskSpec], sources: Sequence[Source]) -> Iterator[Problem]:
    """Names given twice, sources and tasks that are not there, keys that do not fit what is measured."""
    known = {source.name: source for source in sources}
    yield from name_problems(place, [spec.name for spec in specs])
    for position, spec in enumerate(specs):
        here = f"{place}.{position} ({spec.name})"
        for key, message in _problems_of(spec, specs, known):
            yield f"{here}.{key}" if key else here, message


def _twice(place: str, spec: EvaluationSpec | TasksFile) -> Iterator[Problem]:
    for key in ("truncate_dims", "precisions"):
        values = getattr(spec, key)
        if len(set(values)) < len(values):
            yield f"{place}{key}", f"{values} lists one of them twice. Name each once."


def _problems_of(spec: TaskSpec, specs: Sequence[TaskSpec], sources: Mapping[str, Source]) -> Iterator[Problem]:
    if (spec.source is None) == (spec.mix is None):
        yield "", "needs either source, a source to measure on, or mix, the tasks whose candidates are put together."
        return
    for key in ("source", "corpus"):
        name = getattr(spec, key)
        if name is not None and name not in sources:
            yield key, f"there is no source {name!r}.{_hint(name, sources)} Sources: {', '.join(sources) or 'none'}."
        elif name is not None and sources[name].streaming:
            yield key, f"{name!r} is streaming, but evaluation needs all rows at once. Take streaming out."
    if spec.mix is not None:
        yield from _mix_problems(spec, specs, sources)
        return
    source = sources.get(spec.source or "")
    if source is None:
        return
    if not MEASURES[source.task]:
        yield "source", f"{source.name!r} has texts without pairs, so no right answers. Name a source of pairs."
        return
    measure = spec.measured_as(source.task)
    if measure not in MEASURES[source.task]:
        words = f"{measure} is not measured on task {source.task}, which {source.name!r} has"
        yield "measure", f"{words}. Use {' or '.join(MEASURES[source.task])}, or another source."
        return
    yield from _key_problems(spec, measure, source)
    if spec.fuse is not None:
        yield from _fuse_problems(spec, source, sources.get(spec.corpus or "", source))


def _key_problems(spec: TaskSpec, measure: Measure, source: Source) -> Iterator[Problem]:
    for key, measures in _KEYS_OF.items():
        if getattr(spec, key) is not None and measure not in measures:
            yield key, f"is for {' and '.join(measures)}, but this task measures {measure}. Take it out."
    pairs = source.task == "image-pair"
    if spec.directions is not None and source.task != "image-text" and not (pairs and set(spec.directions) <= {"i2i"}):
        yield "directions", f"are of images and texts, but {source.name!r} has task {source.task}. Take them out."
    if pairs and measure == "retrieval" and "id" not in source.columns:
        words = "so no picture has a partner to be found. Add id: THE DATA'S COLUMN that pictures of one thing share."
        yield "source", f"{source.name!r} maps no id, {words}"
    if len(set(spec.directions or [])) < len(spec.directions or []):
        yield "directions", f"{spec.directions} lists a direction twice. Name each once."
    if measure == "classification" and spec.classes is None:
        yield "classes", "is required by classification. Add it: classes: THE DATA'S COLUMN OF CLASSES."
    if measure == "hard-negatives" and "negatives" not in source.columns:
        words = f"{source.name!r} maps no column negatives. Add negatives: THE DATA'S COLUMN NAME to its columns."
        yield "measure", f"hard-negatives needs wrong captions, but {words}"
    allowed = [name for name in PROMPTED if name in TASK_COLUMNS[source.task][0]]
    for key in ("prompts", "instructions"):
        if getattr(spec, key) and not allowed:
            yield key, f"are for texts; task {source.task} has none. Take them out."
            continue
        for name in (getattr(spec, key) or {}).keys() - set(allowed):
            yield f"{key}.{name}", f"task {source.task} has {key} for {' and '.join(allowed)}.{_hint(name, allowed)}"


def _fuse_problems(spec: TaskSpec, source: Source, corpus: Source) -> Iterator[Problem]:
    for name, task in ((source.name, source.task), (corpus.name, corpus.task)):
        if task != "image-text":
            yield "fuse", f"needs rows with a picture and a text, but {name!r} has task {task}. Take fuse out."
            return
    if "i2t" in (spec.directions or []):
        yield "directions", "i2t has texts as candidates, but fuse makes records of them. Take i2t out, or fuse."


def _mix_problems(spec: TaskSpec, specs: Sequence[TaskSpec], sources: Mapping[str, Source]) -> Iterator[Problem]:
    if spec.measure not in (None, "one-index"):
        yield "measure", f"{spec.measure} is measured on a source, but this task is a mix. Take it out."
    for key in (*_KEYS_OF, "corpus", "limit", "prompts", "instructions"):
        if getattr(spec, key):
            yield key, "belongs to a task with a source; this one is a mix of tasks. Take it out."
    tasks = {other.name: other for other in specs if other.mix is None}
    fit = [name for name, other in tasks.items() if _searches(other, sources)]
    for name in spec.mix or []:
        if name not in tasks:
            words = "is a mix itself" if name in {other.name for other in specs} else "is no task here"
            yield "mix", f"{name!r} {words}.{_hint(name, fit)} Tasks to mix: {', '.join(fit) or 'none'}."
            continue
        if name not in fit:
            yield "mix", f"{name!r} is no retrieval task, so it has no candidates to put together. Take it out."


def _searches(spec: TaskSpec, sources: Mapping[str, Source]) -> bool:
    """Whether a task is retrieval; one whose source is not there may be."""
    source = sources.get(spec.source or "")
    return source is None or (source.task != "text" and spec.measured_as(source.task) == "retrieval")


def _hint(name: str, valid: Sequence[str] | Mapping[str, Any]) -> str:
    close = nearest(name, valid)
    return f" Did you mean {close!r}?" if close else ""
