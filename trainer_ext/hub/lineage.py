"""Where weights came from, in words for the card: checkpoints by their names on the Hub, earlier runs, merged models.

Paths of the machine stay out: what has no name on the Hub and no record is "a checkpoint that is not named here".
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer_ext.files import read_json
from trainer_ext.hub.folder import MANIFEST, PLACEHOLDER
from trainer_ext.hub.installed import HubFolderError
from trainer_ext.hub.run_parts import MERGE_FILE, is_merged_by_run, read_record, run_folders

MAX_LINEAGE = 5  # runs that follow each other in a card
NAMELESS = "a checkpoint that is not named here"


def as_code(name: Any) -> str:
    """A name from a run's record as Markdown code on one line, which runs nothing whatever the name holds.

    >>> as_code("a `<b>\\nc")
    "`a '<b> c`"
    """
    return f"`{' '.join(str(name).replace('`', chr(39)).split())}`"


def code_of(run: dict[str, Any]) -> str:
    """The program that trained: a commit with its repository, or the version that was installed."""
    if commit := run.get("commit"):
        place = run.get("repository")
        return f"commit {as_code(commit)} of {as_code(place) if place else 'a checkout without a public repository'}"
    version = (run.get("versions") or {}).get("modeling-jina-clip")
    return f"modeling-jina-clip {as_code(version)}" if version else "trained by an unrecorded version"


def start_text(recipe: dict[str, Any], base_models: list[str], depth: int = 0) -> str:
    """Where the weights of the first step came from; of other runs from their own run.json, one after the other."""
    places = places_of(recipe)
    if not places:
        preset = "" if "/" in recipe["model"] else f", preset {as_code(recipe['model'])}"
        return f"From random weights{preset}."
    told = base_models != base_models_of(places)  # by the author, who knows best
    follows = len(places) == 1 and not told and depth < MAX_LINEAGE
    merged, earlier = (_merge_of(places[0]), _record_of(places[0])) if follows else (None, None)
    if merged is not None and earlier is None:
        return f"Started from merged weights. {merge_text(merged, depth + 1)}"
    if earlier is not None:
        before = earlier["recipe"]
        way = "" if merged is None else f", {way_text(merged)}"
        words = f"Started from an earlier run: recipe {as_code(before['name'])}, {code_of(earlier)}{way}."
        return f"{words} That run: {start_text(before, base_models_of(places_of(before)), depth + 1)}"
    named = [as_code(name) for name in base_models]
    if len(named) < len(places):
        named.append("another that is not named here" if named else NAMELESS)
    towers = [key for key, value in (recipe.get("initialize") or {}).items() if value]
    who = f"The {' and the '.join(towers)} tower started" if towers else "Started"
    return f"{who} from {' and '.join(named)}."


def places_of(recipe: dict[str, Any]) -> list[str]:
    """The folders and files that weights were taken from."""
    model = recipe["model"]  # a preset is a name or a JSON file, a trained model is a folder
    trained = [model] if "/" in model and not model.endswith(".json") else []
    return trained + [place for place in (recipe.get("initialize") or {}).values() if place]


def base_models_of(places: list[str], depth: int = 0) -> list[str]:
    """The Hub's names of these places: of a folder in its client's cache, or of a pushed folder, from its manifest.

    A place that is a run of ours has the names of what that run started from, a merged model those of its parents.
    """
    found: list[str] = []
    for place in places:
        if (name := _hub_name(place)) is not None:
            found.append(name)
        elif depth < MAX_LINEAGE and (merged := _merge_of(place)) is not None:
            found += base_models_of(parents_of(merged), depth + 1)
        elif depth < MAX_LINEAGE and (earlier := _record_of(place)) is not None:
            found += base_models_of(places_of(earlier["recipe"]), depth + 1)
    return list(dict.fromkeys(found))


def _hub_name(place: str) -> str | None:
    cached = re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{place}/", re.ASCII)
    manifest = Path(place) / MANIFEST
    if cached:
        return f"{cached[1]}/{cached[2]}"
    name = str(read_json(manifest).get("repo_id")) if manifest.is_file() else PLACEHOLDER
    return None if name in (PLACEHOLDER, "None") else name


def _record_of(place: str) -> dict[str, Any] | None:
    """The run.json of the run that a folder is of, or is a stage's or the averaged model of; None without one."""
    for home in run_folders(Path(os.path.expanduser(place))):
        with suppress(HubFolderError):
            record = read_record(home / "run.json")
            if isinstance(record, dict) and {"name", "model"} <= set(record.get("recipe") or ()):
                return record
    return None


# --- merged models -------------------------------------------------------------------------------------------------


def _merge_of(place: str) -> dict[str, Any] | None:
    with suppress(HubFolderError):
        record = read_record(Path(os.path.expanduser(place)) / MERGE_FILE)
        if isinstance(record, dict) and {"base", "models", "scale"} <= record.keys():
            return record
    return None


def parents_of(merged: dict[str, Any]) -> list[str]:
    """The folders of a merged model's parents, the base first."""
    return [parent["folder"] for parent in (merged["base"], *merged["models"])]


def way_text(merged: dict[str, Any]) -> str:
    """Where between a run's start and its end a model lies.

    >>> way_text({"scale": 0.25})
    'merged at 25% of the way from the start of that run to its end'
    """
    return f"merged at {100 * merged['scale']:g}% of the way from the start of that run to its end"


def merge_text(merged: dict[str, Any], depth: int = 0) -> str:
    """What a merged model was made of: each parent's share, its name or its run."""
    base, *models = (_parent_text(place, depth) for place in parents_of(merged))
    shares = [100 * merged["scale"] * model["weight"] for model in merged["models"]]
    parts = [f"{share:.3g}% of the way to {words}" for share, words in zip(shares, models, strict=True)]
    search = merged.get("search")
    found = f" Found by the losses of recipe {as_code(search['recipe'])}." if search else ""
    return f"Tensor by tensor: from {base}, {', and '.join(parts)}.{found}"


def _parent_text(place: str, depth: int) -> str:
    if (name := _hub_name(place)) is not None:
        return as_code(name)
    merged, run = _merge_of(place), _record_of(place)
    if merged is not None and depth < MAX_LINEAGE and not (run and is_merged_by_run(Path(place), merged)):
        return f"a merged model ({merge_text(merged, depth + 1).rstrip('.')})"
    if run is not None:
        return f"the run of recipe {as_code(run['recipe']['name'])} ({code_of(run)})"
    return NAMELESS
