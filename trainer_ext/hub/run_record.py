"""What a run has left beside its model, as text for the card: ``run.json``, ``metrics.json``, ``sources/shares.json``.

Paths of the machine stay out: a local source is "local CSV files", a local model "a checkpoint that is not named here".
"""

import html
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer_ext.files import read_json
from trainer_ext.hub.folder import MANIFEST, PLACEHOLDER
from trainer_ext.hub.installed import HubFolderError, plain_file
from trainer_ext.hub.run_parts import last_step, rows_of, run_folders, stages_until

# Names of losses, formats and sides in words; a name that is not listed stands for itself. A newer run.json has the
# words of its losses, under "losses".
LOSSES = {
    "info_nce": "InfoNCE",
    "info_nce_plus": "InfoNCE with hard negatives",
    "siglip": "SigLIP",
    "cosent": "CoSENT",
}
FORMATS = {"json": "JSON", "csv": "CSV", "imagefolder": "image", "webdataset": "webdataset", "parquet": "Parquet"}
SIDES = {"image_text": "image-text", "text": "text"}
MAX_LINEAGE = 5  # runs that follow each other in a card


class RunRecord:
    """The card's texts and metadata from the files of a run; for a model without them the texts say so.

    Attributes:
        training, data, results: Markdown for the sections of these names.
        evaluations: the last stage's figures for the Hub's index, or None.
        trained_length: tokens of the longest texts that any stage trained on, or None.
        base_models: names on the Hub of what the run started from; those given by the caller replace the recorded ones.
        datasets: names on the Hub of what it was trained on.

    Raises:
        HubFolderError: a file of these names was not written by the trainer.
    """

    def __init__(self, checkpoint: Path, base_models: Sequence[str] = ()) -> None:
        self.training = "The checkpoint has no record of it."
        self.data = "The checkpoint has no record of it."
        self.results, self.evaluations = "Nothing was measured.", None
        self.trained_length: int | None = None
        self.base_models = list(base_models)
        self.datasets: list[str] = []
        origin = next((home for home in run_folders(checkpoint) if plain_file(home / "run.json")), checkpoint)
        average = checkpoint.name == "ema" and origin != checkpoint
        run, shares = _read(origin / "run.json"), _read(origin / "sources" / "shares.json")
        metrics, best = _read(origin / "metrics.json"), _read(checkpoint / "best.json")
        try:
            part = None
            if run is not None:
                part = None if average else last_step(origin, checkpoint, run["recipe"], best)
                recipe = run["recipe"] | {"stages": stages_until(run["recipe"]["stages"], part)}
                self.base_models = self.base_models or _base_models(recipe)
                self.training = _training_text(run | {"recipe": recipe}, self.base_models, average, part, best)
                # What was counted is of the whole run.
                taken = {} if part is not None else shares or (metrics or {}).get("shares") or {}
                broken = {} if part is not None else (shares or {}).get("broken_rows") or {}
                self.data, self.datasets = _data(recipe, taken, broken)
                self.trained_length = max(stage["max_length"] for stage in recipe["stages"])
            rows = rows_of(checkpoint, origin, (metrics or {"rows": []})["rows"], run, best)
            if any(row["kind"] != "reference" for row in rows):
                self.results, self.evaluations = _results(rows)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _not_the_trainers(checkpoint, error) from error


def _read(path: Path) -> Any:
    if not plain_file(path):
        return None
    try:
        return read_json(path)
    except (ValueError, RecursionError) as error:
        raise _not_the_trainers(path.parent, error) from error


def _not_the_trainers(place: Path, error: Exception) -> HubFolderError:
    words = f"metrics.json, run.json or sources/shares.json in {place} is not the trainer's ({error!r}); move it away"
    return HubFolderError(words)


def table(*rows: list[Any]) -> str:
    """A Markdown table; the first row is its head.

    >>> print(table(["a", "b"], [1, "x|y"]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    lines = [[_cell(str(cell)) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def _cell(text: str) -> str:
    """A cell that shows its author's words and does not run them as HTML; code spans are shown as they are anyway."""
    escaped = text if re.fullmatch(r"`[^`\n]+`", text) else html.escape(text, quote=False)
    return escaped.replace("|", "\\|").replace("\n", " ")


def as_code(name: Any) -> str:
    """A name from a run's record as Markdown code on one line, which runs nothing whatever the name holds.

    >>> as_code("a `<b>\\nc")
    "`a '<b> c`"
    """
    return f"`{' '.join(str(name).replace('`', chr(39)).split())}`"


# --- training ------------------------------------------------------------------------------------------------------
def _training_text(
    run: dict[str, Any], base_models: list[str], average: bool, step: int | None, best: dict[str, Any] | None
) -> str:
    """Recipe, commit, start, stages and methods of the run, until the ``step`` after which the model was kept."""
    recipe, training = run["recipe"], run["recipe"].get("training") or {}
    known = LOSSES | run.get("losses", {})
    rows = [["stage", "steps", "learning rate", "tokens", "image-text batch", "text batch", "losses", "sources"]]
    for stage in recipe["stages"]:
        sides = [stage.get(side) or {} for side in SIDES]
        sources = ", ".join(dict.fromkeys(name for side in sides for name in side.get("sources", [])))
        losses = [
            f"{words}: {known.get(side['loss'], side['loss'])}"
            for words, side in zip(SIDES.values(), sides, strict=True)
            if side
        ]
        figures = [stage[key] for key in ("name", "steps", "learning_rate", "max_length")]
        rows.append([*figures, *(side.get("batch_size", "-") for side in sides), ", ".join(losses), sources])
    methods = [_start(recipe, base_models)]
    if lora := recipe.get("lora"):
        towers = " and ".join(lora["towers"])
        methods.append(f"LoRA of rank {lora['r']} (alpha {lora['alpha']:g}) on {towers}, merged into these weights.")
    if taught := recipe.get("teacher"):
        where = " and ".join(SIDES[name] for name in taught["sides"])
        methods.append(
            f"A teacher's {taught['kind']} beside the losses of the {where} side (weight {taught['weight']:g})."
        )
    if matryoshka := recipe.get("matryoshka"):
        methods.append(f"Matryoshka losses at {', '.join(map(str, matryoshka['dims']))} dimensions.")
    if chunk := training.get("gradient_cache_chunk_size"):
        methods.append(f"Gradient cache: whole batches as negatives, embedded in chunks of {chunk} rows.")
    if average:
        methods.append(f"The weights are the run's moving average (decay {training['ema_decay']:g}).")
    if step is not None:
        chosen = f", the best by {as_code(best['figure'])}" if best is not None and best.get("figure") else ""
        methods.append(f"The weights are those after step {step:,}{chosen}.")
    first = f"Recipe {as_code(recipe['name'])}, seed {recipe['seed']}, {_code_of(run)}."
    return f"{' '.join([first, *methods])}\n\n{table(*rows)}"


def _code_of(run: dict[str, Any]) -> str:
    """The program that trained: a commit with its repository, or the version that was installed."""
    if commit := run.get("commit"):
        place = run.get("repository")
        return f"commit {as_code(commit)} of {as_code(place) if place else 'a checkout without a public repository'}"
    version = (run.get("versions") or {}).get("modeling-jina-clip")
    return f"modeling-jina-clip {as_code(version)}" if version else "trained by an unrecorded version"


def _start(recipe: dict[str, Any], base_models: list[str], depth: int = 0) -> str:
    """Where the weights of the first step came from; of other runs from their own run.json, one after the other."""
    places = _places(recipe)
    if not places:
        preset = "" if "/" in recipe["model"] else f", preset {as_code(recipe['model'])}"
        return f"From random weights{preset}."
    told = base_models != _base_models(recipe)  # by the author, who knows best
    earlier = _record_of(places[0]) if len(places) == 1 and not told and depth < MAX_LINEAGE else None
    if earlier is not None:
        before = earlier["recipe"]
        words = f"Started from an earlier run: recipe {as_code(before['name'])}, {_code_of(earlier)}."
        return f"{words} That run: {_start(before, _base_models(before), depth + 1)}"
    named = [as_code(name) for name in base_models]
    if len(named) < len(places):
        named.append("a checkpoint that is not named here" if not named else "another that is not named here")
    towers = [key for key, value in (recipe.get("initialize") or {}).items() if value]
    who = f"The {' and the '.join(towers)} tower started" if towers else "Started"
    return f"{who} from {' and '.join(named)}."


def _places(recipe: dict[str, Any]) -> list[str]:
    """The folders and files that weights were taken from."""
    model = recipe["model"]  # a preset is a name or a JSON file, a trained model is a folder
    trained = [model] if "/" in model and not model.endswith(".json") else []
    return trained + [place for place in (recipe.get("initialize") or {}).values() if place]


def _record_of(place: str) -> dict[str, Any] | None:
    """The run.json of the run that a folder is of, or is a stage's or the averaged model of; None without one."""
    for home in run_folders(Path(os.path.expanduser(place))):
        with suppress(HubFolderError):
            record = _read(home / "run.json")
            if isinstance(record, dict) and {"name", "model"} <= set(record.get("recipe") or ()):
                return record
    return None


def _base_models(recipe: dict[str, Any], depth: int = 0) -> list[str]:
    """The Hub's names of these places: of a folder in its client's cache, or of a pushed folder, from its manifest.

    A place that is a run of ours has the names of what that run started from.
    """
    found: list[str] = []
    for place in _places(recipe):
        cached = re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{place}/", re.ASCII)
        manifest = Path(place) / MANIFEST
        if cached:
            found.append(f"{cached[1]}/{cached[2]}")
        elif manifest.is_file() and (name := str(read_json(manifest).get("repo_id"))) not in (PLACEHOLDER, "None"):
            found.append(name)
        elif depth < MAX_LINEAGE and (earlier := _record_of(place)) is not None:
            found += _base_models(earlier["recipe"], depth + 1)
    return list(dict.fromkeys(found))


# --- data ----------------------------------------------------------------------------------------------------------
def _data(recipe: dict[str, Any], shares: dict[str, Any], broken: dict[str, int]) -> tuple[str, list[str]]:
    """The table of the sources that the stages take rows from, and the names of those on the Hub."""
    used = {name for stage in recipe["stages"] for side in SIDES for name in (stage.get(side) or {}).get("sources", [])}
    sources = [source for source in recipe["sources"] if source["name"] in used]
    taken = {
        name: f"{item['rows']:,} ({100 * item['share']:.1f}% of {words})"
        for side, words in SIDES.items()
        for name, item in (shares.get(side) or {}).items()
    }
    head = ["source", "task", "where it is", *(["rows taken"] if taken else [])]
    rows = [[source["name"], source["task"], _where(source)] for source in sources]
    if taken:
        rows = [[*row, taken.get(row[0], "0")] for row in rows]
    datasets = [source["location"] for source in sources if source["format"] == "hub"]
    left_out = [f"{int(number):,} of {as_code(name)}" for name, number in broken.items() if name in used]
    note = f"\n\nRows left out because they could not be used: {', '.join(left_out)}." if left_out else ""
    return table(head, *rows) + note, list(dict.fromkeys(datasets))


# Of the data that Python packages carry: drawings, and texts.
EMBEDDED_LICENCES = "OpenMoji: CC BY-SA 4.0; GCIDE: GPL-3.0-or-later"


def _where(source: dict[str, Any]) -> str:
    """The kind of place, and its name if it is public."""
    kind, name = source["format"], source["location"]
    if kind == "hub":
        return f"[{name}](https://huggingface.co/datasets/{name}), commit `{source['revision'][:8]}`"
    if kind == "embedded":
        return f"packaged table `{name}` ({EMBEDDED_LICENCES})"
    return f"local {FORMATS.get(kind, kind)} files"


# --- results -------------------------------------------------------------------------------------------------------
def _results(rows: list[dict[str, Any]]) -> tuple[str, list[Any] | None]:
    """The table of the measured rows (metrics down, references and stages across), and the last stage for the Hub.

    A metric is named ``task/side_metricK``: ``pairs/t2i_r5`` is the recall at 5 of text-to-image search on pairs.
    """
    from huggingface_hub import EvalResult

    columns = sorted(rows, key=lambda row: row["kind"] != "reference")
    lines, evaluations = [["task", "metric", *(row["name"] for row in columns)]], []
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        place, _, metric = name.rpartition("/")
        task = place.replace("_", " ")
        for short, words in (("t2i_", "text to image "), ("i2t_", "image to text ")):
            metric = metric.replace(short, words)
        metric = re.sub(r"\b(r|ndcg)(\d+)$", lambda m: f"{'recall' if m[1] == 'r' else m[1]}@{m[2]}", metric)
        figures = [row["metrics"].get(name) for row in columns]
        measured = [figure is not None and math.isfinite(figure) for figure in figures]
        cells = [_shown(name, row) for row in columns]
        lines.append([task, metric, *cells])
        if columns[-1]["kind"] == "stage" and measured[-1] and _is_share(name):
            data: dict[str, Any] = {"dataset_type": dataset_slug(place), "dataset_name": task or metric}
            data |= {"metric_name": metric, "metric_value": figures[-1]}
            kind = metric.split()[-1].replace("@", "_at_")
            evaluations.append(EvalResult(task_type="retrieval", metric_type=kind, **data))
    if len(lines) == 1:
        return "Nothing was measured.", None
    words = "Percent, on held-out data; the last column is this model."
    if any(row.get("intervals") for row in rows):
        words += " In brackets the 95% interval, by drawing the queries anew."
    if any(not _is_share(name) for row in rows for name in row["metrics"]):
        words += " Ranks, thresholds, distances and losses are no percentages."
    return f"{words}\n\n{table(*lines)}{_matches(columns[-1])}", evaluations or None


# Metrics that are no shares, as ``evaluation.figures`` lists them; this room installs without that one.
NOT_SHARES = frozenset({"median_rank", "threshold", "slope", "offset", "modality_gap", "alignment", "uniformity"})


def _is_share(name: str) -> bool:
    metric = re.sub(r"^([ti]2[ti]_)?(corrected_)?", "", name.rpartition("/")[2])
    return metric not in NOT_SHARES and not re.match(r"loss(_|$)", metric)


def _shown(name: str, row: dict[str, Any]) -> str:
    """A figure of a row with its interval: percent, or as it is where it is no share."""
    figure, interval = row["metrics"].get(name), row.get("intervals", {}).get(name)
    if figure is None or not math.isfinite(figure):
        return "-"
    factor, digits = (100, ".1f") if _is_share(name) else (1, ".4g")
    ends = f" ({', '.join(f'{factor * end:{digits}}' for end in interval)})" if interval else ""
    return f"{factor * figure:{digits}}{ends}"


def _matches(row: dict[str, Any]) -> str:
    """Which score means a match, where a task has fitted it."""
    found = row["metrics"]
    lines = [
        f"- `{name.rpartition('/')[0]}`: a cosine of {value:.3f} or more is a match (F1 {100 * found[f1]:.1f})"
        for name, value in found.items()
        if name.endswith("/threshold") and (f1 := f"{name.rpartition('/')[0]}/f1") in found
    ]
    return (
        "\n\nWhich score is a match, fitted on one half of the pairs and measured on the other:\n\n" + "\n".join(lines)
        if lines
        else ""
    )


def dataset_slug(name: str) -> str:
    """A name in the form that the Hub wants for data sets in its index of results: ASCII letters, digits, ``_.-``.

    >>> dataset_slug("concepts_short@64")
    'concepts_short-64'
    """
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-") or "data"
