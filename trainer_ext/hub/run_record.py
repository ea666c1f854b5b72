"""What a run has left beside its model, as text for the card: ``run.json``, ``metrics.json``, ``sources/shares.json``.

Paths of the machine stay out: a local source is "local CSV files", a local model "a checkpoint that is not named here".
"""

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer_ext.hub.installed import plain_file
from trainer_ext.hub.lineage import as_code, base_models_of, code_of, merge_text, parents_of, places_of, start_text
from trainer_ext.hub.run_parts import (
    MERGE_FILE,
    last_step,
    not_the_trainers,
    read_record,
    rows_of,
    run_folders,
    stages_until,
)
from trainer_ext.hub.shortening import layers_of

# Names of losses, formats and sides in words; a name that is not listed stands for itself. A newer run.json has the
# words of its losses, under "losses".
LOSSES = {
    "info_nce": "InfoNCE",
    "info_nce_plus": "InfoNCE with hard negatives",
    "siglip": "SigLIP",
    "cosent": "CoSENT",
    "nt_xent": "NT-Xent",
}
FORMATS = {"json": "JSON", "csv": "CSV", "imagefolder": "image", "webdataset": "webdataset", "parquet": "Parquet"}
SIDES = {"image_text": "image-text", "text": "text", "images": "picture pair"}


class RunRecord:
    """The card's texts and metadata from the files of a run; for a model without them the texts say so.

    Attributes:
        training, data, results: Markdown for the sections of these names.
        evaluations: the last stage's figures for the Hub's index, or None.
        trained_length: tokens of the longest texts that any stage trained on, or None.
        trained_layers: the layers of each tower that training prepared to be the last, by tower.
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
        self.trained_layers: dict[str, list[int]] = {}
        self.base_models = list(base_models)
        self.datasets: list[str] = []
        origin = next((home for home in run_folders(checkpoint) if plain_file(home / "run.json")), checkpoint)
        average = checkpoint.name == "ema" and origin != checkpoint
        run, shares = read_record(origin / "run.json"), read_record(origin / "sources" / "shares.json")
        metrics, best = read_record(origin / "metrics.json"), read_record(checkpoint / "best.json")
        merged = read_record(checkpoint / MERGE_FILE)
        try:
            part = None
            if run is not None:
                part = None if average or merged is not None else last_step(origin, checkpoint, run["recipe"], best)
                recipe = run["recipe"] | {"stages": stages_until(run["recipe"]["stages"], part)}
                self.base_models = self.base_models or base_models_of(places_of(recipe))
                kept = Kept(average, part, best, None if merged is None else merged["scale"])
                self.training = _training_text(run | {"recipe": recipe}, self.base_models, kept)
                # What was counted is of the whole run.
                taken = {} if part is not None else shares or (metrics or {}).get("shares") or {}
                broken = {} if part is not None else (shares or {}).get("broken_rows") or {}
                self.data, self.datasets = _data(recipe, taken, broken)
                self.trained_layers = layers_of(recipe)
                self.trained_length = max(stage["max_length"] for stage in recipe["stages"])
            elif merged is not None:
                self.base_models = self.base_models or base_models_of(parents_of(merged))
                self.training = f"Merged from other models, without training. {merge_text(merged)}"
                self.data = "That of the models which it was merged from."
            rows = rows_of(checkpoint, origin, (metrics or {"rows": []})["rows"], run, best)
            if any(row["kind"] != "reference" for row in rows):
                self.results, self.evaluations = _results(rows)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise not_the_trainers(checkpoint, error) from error


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


# --- training ------------------------------------------------------------------------------------------------------
class Kept(NamedTuple):
    """Which model of a run it is: averaged, kept after a step, the best by a figure, or merged with the start."""

    average: bool
    step: int | None
    best: dict[str, Any] | None
    share: float | None


def _training_text(run: dict[str, Any], base_models: list[str], kept: Kept) -> str:
    """Recipe, commit, start, stages and methods of the run, until the step after which the model was kept."""
    recipe, training = run["recipe"], run["recipe"].get("training") or {}
    known = LOSSES | run.get("losses", {})
    used = {side: words for side, words in SIDES.items() if side != "images" or any(map(_pairs, recipe["stages"]))}
    heads = [f"{words} batch" for words in used.values()]
    rows = [["stage", "steps", "learning rate", "tokens", *heads, "losses", "sources"]]
    for stage in recipe["stages"]:
        sides = [stage.get(side) or {} for side in used]
        sources = ", ".join(dict.fromkeys(name for side in sides for name in side.get("sources", [])))
        losses = [
            f"{words}: {_loss_words(side, known)}" for words, side in zip(used.values(), sides, strict=True) if side
        ]
        figures = [stage[key] for key in ("name", "steps", "learning_rate", "max_length")]
        rows.append([*figures, *(side.get("batch_size", "-") for side in sides), ", ".join(losses), sources])
    methods = [start_text(recipe, base_models)]
    if lora := recipe.get("lora"):
        towers = " and ".join(lora["towers"])
        methods.append(f"LoRA of rank {lora['r']} (alpha {lora['alpha']:g}) on {towers}, merged into these weights.")
    if taught := recipe.get("teacher"):
        methods.append(_teacher_words(taught, recipe["stages"]))
    if matryoshka := recipe.get("matryoshka"):
        methods.append(f"Matryoshka losses at {', '.join(map(str, matryoshka['dims']))} dimensions.")
    if layers := layers_of(recipe):
        ends = " and ".join(f"{', '.join(map(str, given))} of the {tower} tower" for tower, given in layers.items())
        methods.append(f"2D Matryoshka: vectors of layers {ends} serve alone.")
    if chunk := training.get("gradient_cache_chunk_size"):
        methods.append(f"Gradient cache: whole batches as negatives, embedded in chunks of {chunk} rows.")
    if kept.share is not None:
        methods.append(f"The weights are at {100 * kept.share:g}% of the way from the start to the run's end (merged).")
    if kept.average:
        methods.append(f"The weights are the run's moving average (decay {training['ema_decay']:g}).")
    if kept.step is not None:
        chosen = f", the best by {as_code(kept.best['figure'])}" if kept.best and kept.best.get("figure") else ""
        methods.append(f"The weights are those after step {kept.step:,}{chosen}.")
    first = f"Recipe {as_code(recipe['name'])}, seed {recipe['seed']}, {code_of(run)}."
    return f"{' '.join([first, *methods])}\n\n{table(*rows)}"


def _pairs(stage: dict[str, Any]) -> bool:
    """Whether a stage sets pictures against pictures; the column stays away from cards of runs that do not."""
    return bool(stage.get("images"))


# What changes a side's loss or is added to it, each a number; other keys of a side are the loss's own affair.
_CHANGES = ("label_smoothing", "hardness")
_TERMS = ("alignment", "uniformity", "cross_uniformity")


def _loss_words(side: dict[str, Any], known: dict[str, str]) -> str:
    """A side's loss with what its recipe changes of it or adds to it.

    >>> _loss_words({"loss": "info_nce", "label_smoothing": 0.1, "uniformity": 0.5}, LOSSES)
    'InfoNCE (label smoothing 0.1) + 0.5 uniformity'
    >>> short = {"principal_components": 32, "weight": 0.5}
    >>> _loss_words({"loss": "siglip", "captions_per_image": 3, "split_captions": "sentences", "short_caption": short},
    ...             LOSSES)
    'SigLIP (3 sentences a picture) + 0.5 short caption (32 principal components)'
    """
    changes = [f"{key.replace('_', ' ')} {side[key]:g}" for key in _CHANGES if side.get(key)]
    several, split = side.get("captions_per_image", 1), side.get("split_captions")
    if several > 1 or split:
        changes.append(f"{several} {'sentence' if split else 'caption'}{'s' if several > 1 else ''} a picture")
    if prefixes := side.get("matryoshka"):
        changes.append(f"Matryoshka at {', '.join(map(str, prefixes['dims']))}")
    if side.get("temperature") is not None:
        given = side["temperature"]
        changes.append(f"temperature {given}" if isinstance(given, str) else f"temperature {given:g}")
    words = known.get(side["loss"], side["loss"]) + (f" ({'; '.join(changes)})" if changes else "")
    terms = [f"{side[key]:g} {key.replace('_', '-')}" for key in _TERMS if side.get(key)]
    if short := side.get("short_caption"):
        terms.append(f"{short['weight']:g} short caption ({short['principal_components']} principal components)")
    return " + ".join([words, *terms])


def _teacher_words(teacher: dict[str, Any], stages: list[dict[str, Any]]) -> str:
    """The teacher of a run, and the sides that it has taught."""
    where = " and ".join(words for name, words in SIDES.items() if name in teacher["sides"] and _trained(name, stages))
    kind = teacher["kind"]
    if kind == "margins":
        kind += " over hard negatives" if teacher["model"] else " over hard negatives, from the sources' own column,"
    scale = f", scale {teacher['scale']:g}" if teacher.get("scale", 1) != 1 else ""
    return f"A teacher's {kind} beside the losses of the {where} side (weight {teacher['weight']:g}{scale})."


def _trained(side: str, stages: list[dict[str, Any]]) -> bool:
    return any(stage.get(side) for stage in stages)


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
