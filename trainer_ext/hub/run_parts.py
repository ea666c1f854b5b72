"""The parts of a run that a model may be published from: its stages, checkpoints, best and averaged models.

Each lies in a folder of the run, whose record tells of the whole: here it is cut to what led to that model.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer_ext.files import read_json
from trainer_ext.hub.installed import HubFolderError, plain_file

AVERAGE = "EMA"  # the row of the averaged model among a run's figures
MERGE_FILE = "merge.json"  # what a merged model was made of
MERGED = "merged-"  # begins the names of those that a run made of its start and its end


def run_folders(folder: Path) -> list[Path]:
    """Where the record of a model's run may lie: in its folder, or in that of the run that it is a part of.

    A run keeps the models of its stages, its checkpoints, its best, its averaged model and those between its start and
    its end in folders of their own.
    """
    kept = folder.name == "best" and (folder / "best.json").is_file()
    merged = False
    if folder.name.startswith(MERGED):
        with suppress(HubFolderError):  # who reads the record itself is told
            merged = is_merged_by_run(folder, read_record(folder / MERGE_FILE))
    inside = kept or merged or folder.name == "ema" or re.fullmatch(r"checkpoint-\d+", folder.name)
    return [folder, *([folder.parent] if inside else []), *([folder.parents[1]] if _is_stage(folder) else [])]


def _is_stage(folder: Path) -> bool:
    return folder.parent.name == "stages" and re.match(r"\d+-", folder.name) is not None


def is_merged_by_run(folder: Path, merged: Any) -> bool:
    """Whether a lineage is that of ``merge_with_start``: of one model, the run that the folder lies in."""
    try:
        own = len(merged["models"]) == 1 and folder.name == f"{MERGED}{merged['scale']:g}"
        return own and (folder.parent / "run.json").is_file()
    except (KeyError, TypeError, ValueError):
        return False


def last_step(origin: Path, folder: Path, recipe: dict[str, Any], best: dict[str, Any] | None) -> int | None:
    """After which step of its run the model of a folder was kept; None for the finished one."""
    if folder == origin:
        return None
    if _is_stage(folder):
        return sum(stage["steps"] for stage in recipe["stages"][: int(folder.name.partition("-")[0]) + 1])
    return int(best["step"] if best is not None else folder.name.removeprefix("checkpoint-"))


def stages_until(stages: list[dict[str, Any]], last: int | None) -> list[dict[str, Any]]:
    """The stages that ran until a step, the last of them with the steps that it had."""
    if last is None:
        return stages
    begins = [sum(stage["steps"] for stage in stages[:place]) for place in range(len(stages))]
    ran = [
        stage | {"steps": min(stage["steps"], last - begin)}
        for begin, stage in zip(begins, stages, strict=True)
        if begin < last
    ]
    return ran or [stages[0] | {"steps": 0}]


def rows_of(
    folder: Path, origin: Path, rows: list[dict[str, Any]], run: dict[str, Any] | None, best: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The measured rows until the model of ``folder``, which is the last; references alone if it was not measured."""
    references = [row for row in rows if row["kind"] == "reference"]
    measured = [row for row in rows if row["kind"] != "reference"]
    names = [stage["name"] for stage in run["recipe"]["stages"]] if run else []
    averaged = [row for row in measured if row["name"] == AVERAGE and AVERAGE not in names]
    merged = [row for row in measured if row["kind"] == "model" and row["name"].startswith(MERGED)]
    measured = [row for row in measured if row not in merged]
    if folder.name == "ema" and folder != origin:
        return references + averaged
    if folder != origin and folder.name.startswith(MERGED):
        own = [row | {"kind": "stage"} for row in merged if row["name"] == folder.name]
        return references + ([row for row in measured if row not in averaged] + own if own else [])
    if best is not None and folder != origin:
        return [*references, {"name": f"step {best['step']}", "kind": "stage", "metrics": best["figures"]}]
    if _is_stage(folder) and folder != origin:
        index = int(folder.name.partition("-")[0])
        if names[index] not in [row["name"] for row in measured]:
            return references
        later = names[index + 1 :]
    elif folder != origin:
        return references
    else:
        later = []
    return references + [row for row in measured if row not in averaged and row["name"] not in later]


def read_record(path: Path) -> Any:
    """A JSON file of the trainer; None where it is not there."""
    if not plain_file(path):
        return None
    try:
        return read_json(path)
    except (ValueError, RecursionError) as error:
        raise not_the_trainers(path.parent, error) from error


def not_the_trainers(place: Path, error: Exception) -> HubFolderError:
    """The error for a record that cannot be understood."""
    names = "metrics.json, run.json, merge.json or sources/shares.json"
    return HubFolderError(f"{names} in {place} is not the trainer's ({error!r}); move it away")
