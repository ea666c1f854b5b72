"""``merge``: a model between others, as a whole folder that is written completely or not at all.

One tensor of each model is in memory at a time, beside the merged model. ``merge.json`` tells what it was made of.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm.auto import tqdm

from modeling_jina_clip import JinaCLIPModel, __version__
from trainer_ext.files import refuse_unwritable, whole_folder, write_json
from trainer_ext.locks import held
from trainer_ext.merging.arithmetic import Position, check_scale, combined, normalized, shares_of
from trainer_ext.merging.parents import Parent, Say, open_parents
from trainer_ext.sentence_files import write_sentence_files
from trainer_ext.training.switches import torch_as_it_comes

MERGE_FILE = "merge.json"
# A model this far from the base, as a share of the base's length, was hardly trained from it: two models of other
# random numbers are about 1.4 apart.
FAR = 1.0


def merge(
    base: str | Path,
    models: Sequence[str | Path],
    output_dir: str | Path,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    probe: str | Path | None = None,
    say: Say = tqdm.write,
) -> Path:
    """Merge models into a new folder: base + scale * sum_k weight_k (model_k - base). docs/merging.md has the rest.

    Args:
        base: the folder of the model that the others were trained from.
        models: folders of models, or of LoRA's adapters that were trained on the base.
        output_dir: the new folder.
        weights: one for each model, adding up to 1; equal by default.
        scale: how far from the base: 0 is the base, 1 the weighted mean of the models.
        probe: a recipe of one stage, by whose losses weights and scale are searched for; they begin at those given.
        say: gets one line for each thing worth knowing.

    Returns:
        The folder.

    Raises:
        ValueError: a model that cannot be read or does not fit, wrong weights or scale, or ``output_dir`` is not new.

    >>> merge("outputs/start", ["outputs/tuned"], "outputs/between", scale=0.5)             # doctest: +SKIP
    PosixPath('outputs/between')
    """
    if isinstance(models, str | Path) or not models:
        raise ValueError(f"models is {models!r}: give a list of one folder or more to merge with {base}")
    position = Position(normalized(weights, len(models)), check_scale(scale))
    refuse_unwritable(output_dir, "--output_dir")
    target = Path(output_dir)
    words = ["python", "-m", "trainer_ext", "merge", str(base), *map(str, models)]
    with torch_as_it_comes(), held(target, words, say):
        _refuse_target(target)
        first, others = open_parents(base, models, say)
        if probe is not None:
            from trainer_ext.merging.probe import search_position  # here, because it loads the trainer

            position = search_position(probe, first, others, position, say)
        write_merged(first, others, position, target, say)
    return target


def write_merged(base: Parent, models: Sequence[Parent], position: Position, target: Path, say: Say) -> None:
    """Write the folder of a merged model: weights, processor, what sentence-transformers needs, and its lineage."""
    weights, distances = merged_weights(base, models, position)
    for model, distance in zip(models, distances, strict=True):
        if distance > FAR:
            say(
                f"warning: {model.name} is {distance:.2f} of {base.name}'s length away from it, as models without a "
                "common start are; between them lie no good models. Give the model that it was trained from"
            )
    with torch.device("meta"):
        merged = JinaCLIPModel(base.config)
    try:
        merged.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights of {base.name} do not fit its config.json: {words}") from error
    with whole_folder(target) as partial:
        merged.save_pretrained(partial)
        base.processor.save_pretrained(partial)
        write_sentence_files(partial, base.config)
        write_json(partial / MERGE_FILE, lineage(base, models, position, distances))


def merged_weights(base: Parent, models: Sequence[Parent], position: Position) -> tuple[dict[str, Tensor], list[float]]:
    """The merged tensors, and how far each model is from the base: |theta_k - theta0| / |theta0|.

    Raises:
        ValueError: a tensor that is not finite, or one of whole numbers that is not the same in all.
    """
    shares = shares_of(position.weights, position.scale)
    merged: dict[str, Tensor] = {}
    length, squares = 0.0, [0.0] * len(models)
    for name in tqdm(sorted(base.weights), desc="merging", unit="tensor", leave=False, disable=None):
        start, others = base.weights[name], [model.weights[name] for model in models]
        for one, tensor in zip([base, *models], [start, *others], strict=True):
            if tensor.is_floating_point() != start.is_floating_point() or (
                tensor.is_floating_point() and tensor.itemsize < 2
            ):
                raise ValueError(
                    f"{name} of {one.name} is of type {str(tensor.dtype).removeprefix('torch.')}, so it is quantised: "
                    "its numbers mean other ones; give the model in bfloat16, float16 or float32"
                )
        if not start.is_floating_point():
            if not all(torch.equal(start, other) for other in others):
                raise ValueError(f"{name} holds whole numbers, which are not the same in all models: nothing to merge")
            merged[name] = start
            continue
        merged[name] = combined(start, others, shares)
        if not merged[name].isfinite().all():
            bad = [p.name for p, x in zip([base, *models], [start, *others], strict=True) if not x.isfinite().all()]
            where = f"{bad[0]} holds NaN or infinity" if bad else f"it is too large at scale {position.scale:g}"
            raise ValueError(f"{name} of the merged model is not finite: {where}")
        length += _square(start)
        for place, other in enumerate(others):
            squares[place] += _square(other.to(start.dtype) - start)
    return merged, [math.sqrt(square / length) if length else 0.0 for square in squares]


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def lineage(base: Parent, models: Sequence[Parent], position: Position, distances: Sequence[float]) -> dict[str, Any]:
    """What ``merge.json`` holds: every parent with the hashes of its weights, the weights, the scale and the search."""
    record: dict[str, Any] = {
        "base": _origin(base),
        "models": [
            {**_origin(model), "weight": weight, "distance": distance}
            for model, weight, distance in zip(models, position.weights, distances, strict=True)
        ],
        "scale": position.scale,
    }
    if position.search:
        record["search"] = position.search
    versions = {"modeling-jina-clip": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {**record, "versions": versions}


def _origin(parent: Parent) -> dict[str, Any]:
    return {"folder": str(parent.folder.resolve()), "sha256": parent.hashes()}


def same_parents(record: Mapping[str, Any], base: Parent, models: Sequence[Parent], position: Position) -> bool:
    """Whether a lineage tells of the same weights merged in the same way."""
    try:
        stored = [record["base"]["sha256"], *(model["sha256"] for model in record["models"])]
        how = [record["scale"], *(model["weight"] for model in record["models"])]
    except (KeyError, TypeError):
        return False
    return stored == [parent.hashes() for parent in (base, *models)] and how == [position.scale, *position.weights]


def _refuse_target(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"--output_dir {target} is there already; give a new folder, or delete it")
