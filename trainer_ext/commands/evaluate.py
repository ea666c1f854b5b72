"""``evaluate``: models measured on your own files, in one table, with intervals and paired differences."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from trainer_ext.data.broken_rows import BROKEN_ROWS_FILE, BrokenRows
from trainer_ext.evaluation.items import Embeddings
from trainer_ext.evaluation.tasks import Task
from trainer_ext.files import refuse_unwritable
from trainer_ext.measuring.measure import Measurement
from trainer_ext.measuring.models import open_model, refuse_no_model
from trainer_ext.measuring.tasks_from_sources import build_tasks, load_task_rows
from trainer_ext.recipe.evaluation import TasksFile, load_tasks
from trainer_ext.report.data import TaskDetails
from trainer_ext.report.folder import report_of_measurement
from trainer_ext.report.gallery import details_of
from trainer_ext.report.page import write_report
from trainer_ext.run.folder import RUN_FILE

EXAMPLE = """\
example:
  python -m trainer_ext evaluate outputs/mine jinaai/jina-clip-v1 tasks.yaml --output_dir outputs/figures

  tasks.yaml:
    sources:
      - {name: photos, task: image-text, format: json, location: test.jsonl,
         columns: {image: image, caption: caption, id: product}}
    tasks:
      - {name: shop, source: photos, directions: [t2i, i2t, i2i]}
      - {name: kinds, source: photos, classes: kind, templates: ["a photo of a {}"]}

docs/evaluation.md has every key. Exit code: 0, or 2 where something is wrong with what was given."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = argparse.ArgumentParser(
        prog="python -m trainer_ext evaluate",
        description="Measure models on your own files: ours, a run's folder, or any sentence-transformers model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("models", nargs="+", metavar="MODEL", help="a folder, a run's folder, or a name on the Hub")
    made.add_argument("tasks", metavar="TASKS", help="a file of sources and tasks, or a packaged one such as openmoji")
    made.add_argument("--output_dir", required=True, help="folder of metrics.json, metrics.md and report.html")
    made.add_argument("--cache", metavar="DIR", help="folder of vectors, by default OUTPUT_DIR/vectors")
    made.add_argument("--batch_size", type=_positive, default=32, help="rows encoded at once (default 32)")
    made.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default the first GPU, if there is one")
    made.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with a model that is not a Jina CLIP"
    )
    return made


def work(options: argparse.Namespace) -> int:
    """Measure and write the report."""
    folder = Path(options.output_dir)
    _refuse_foreign(folder)
    cache = Path(options.cache) if options.cache else folder / "vectors"
    refuse_unwritable(cache, "--cache")
    content = load_tasks(options.tasks)
    names = short_names(options.models)
    for path in options.models:
        refuse_no_model(path)
    broken = BrokenRows(None)
    tasks = build_tasks(content.tasks, load_task_rows(content.tasks, content.sources, broken), broken)
    _say_broken(broken, content)
    details: list[TaskDetails] = []

    def look_closer(name: str, measured_on: Sequence[Task], embeddings: Embeddings) -> None:
        details.extend(details_of(measured_on, embeddings, name))

    measured = Measurement(tasks, folder, cache, content.truncate_dims, content.precisions, seen=look_closer)
    broken.keep_in(folder / BROKEN_ROWS_FILE)
    for name, path in zip(names, options.models, strict=True):
        model = open_model(path, options.device, options.batch_size, options.trust_remote_code)
        measured.add(model.named(name))
        measured.report.save()  # now, so that the figures outlive a later model that fails
        page = write_report(folder, report_of_measurement(measured.report, details))
        broken.write()
    tqdm.write(measured.report.table(measured.report.main_metrics()))
    if measured.report.differences:
        tqdm.write(f"\n{measured.report.differences_table()}")
    tqdm.write(f"the figures are in {folder}; to look at: {page}")
    return 0


def short_names(models: Sequence[str]) -> list[str]:
    """Names for a table: the last part of each path, or as much of its end as tells the models apart.

    >>> short_names(["runs/a/best", "runs/b/best/", "jinaai/jina-clip-v1"])
    ['a/best', 'b/best', 'jina-clip-v1']

    Raises:
        ValueError: a model is given twice.
    """
    parts = [Path(model).parts for model in models]
    for place, model in enumerate(models):
        if parts[place] in parts[:place]:
            raise ValueError(f"Model {model!r} is given twice. Give each model once.")
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        enough = (n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others))
        names.append("/".join(own[-next(enough, len(own)) :]))
    return names


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _refuse_foreign(folder: Path) -> None:
    """A run's folder or a model's has figures of its own, which would be overwritten."""
    refuse_unwritable(folder, "--output_dir")
    for name in (RUN_FILE, "config.json"):
        if (folder / name).exists():
            raise ValueError(
                f"--output_dir {folder} is the folder of a run or a model ({name} is there). Give a folder of its own."
            )


def _say_broken(broken: BrokenRows, content: TasksFile) -> None:
    budgets = {source.name: source.max_broken_rows for source in content.sources}
    for name, count in broken.counts().items():
        tqdm.write(f"{name}: {count:,} rows cannot be used, of the {budgets[name]:,} that may be left out")
