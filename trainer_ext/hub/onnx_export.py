"""The two towers as ONNX graphs, for runtimes without torch.

Each graph ends in the L2 norm: its output is the model's own ``text_embeds`` or ``image_embeds``, float32. Batch,
length and image size are free. A graph holds neither weights nor traces of the machine that wrote it. The weights lie
beside it as raw numbers, so the format's size limit does not apply.
"""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

from trainer_ext.hub.installed import HubFolderError

TEXT, VISION = "onnx/text_model.onnx", "onnx/vision_model.onnx"  # the Hub's names for the towers of a CLIP
WEIGHTS_SUFFIX = ".onnx.data"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20


def export_onnx(model: Any, folder: str | Path) -> list[Path]:
    """Write ``onnx/text_model.onnx`` and ``onnx/vision_model.onnx`` with their weights, and return their paths.

    | graph | inputs | output |
    |---|---|---|
    | text | ``input_ids``, ``attention_mask``: (batch, length) int64 | ``text_embeds``: (batch, dim) |
    | vision | ``pixel_values``: (batch, 3, height, width) float32 | ``image_embeds``: (batch, dim) |

    Height and width are any multiples of the patch size. A model whose trained size is not one (v2: 512 px in patches
    of 14) takes that size alone. The model is left as it was: copies are exported, one tower at a time.

    Args:
        model: a ``JinaCLIPModel``, of any type of weights; the graphs are float32.
        folder: the folder that gets the folder ``onnx``.

    Raises:
        HubFolderError: a library is missing.
    """
    import torch

    need_libraries()
    text, vision, dim = model.config.text_config, model.config.vision_config, model.config.truncate_dim
    patch, side = vision.patch_size, vision.image_size // vision.patch_size
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=text.max_position_embeddings)
    # Sizes to trace with. The tracer would fix a size that is 0 or 1, or equals another or the trained one.
    ids = torch.full((3, 7), (text.pad_token_id or 0) + 1)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    if vision.image_size % patch:
        height = width = vision.image_size
        sizes: dict[int, Any] = {0: batch}
    else:
        height, width = patch * (side + 1), patch * (side + 2)
        sizes = {0: batch, 2: patch * torch.export.Dim("rows"), 3: patch * torch.export.Dim("columns")}
    (Path(folder) / "onnx").mkdir(parents=True, exist_ok=True)
    places = {0: batch, 1: length}
    inputs = {"input_ids": ids, "attention_mask": mask}
    written = [
        _export(
            (model.text_model, model.text_projection),
            inputs,
            dict.fromkeys(inputs, places),
            "text_embeds",
            Path(folder) / TEXT,
            dim,
        )
    ]
    inputs = {"pixel_values": torch.zeros(3, vision.num_channels, height, width)}
    written += [
        _export(
            (model.vision_model, model.visual_projection),
            inputs,
            {"pixel_values": sizes},
            "image_embeds",
            Path(folder) / VISION,
            dim,
        )
    ]
    return written


def need_libraries() -> None:
    """Raise ``HubFolderError`` with the cure if a library for the export is not installed."""
    import importlib.util

    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise HubFolderError(f"{', '.join(missing)} not installed; run `pip install '.[onnx]'`")


def _export(
    tower_and_projection: tuple[Any, Any],
    inputs: dict[str, Any],
    shapes: dict[str, Any],
    output: str,
    path: Path,
    dim: int | None,
) -> Path:
    """Record one tower with free sizes, translate the record, and write it without the machine's paths."""
    import torch
    from torch import nn

    class UnitVectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            tower, projection = tower_and_projection
            self.tower, self.projection = copy.deepcopy(tower).float().eval(), copy.deepcopy(projection).float()
            self.tower.set_attn_implementation("eager")  # the reference, and the only one that accepts an empty batch

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            features = dict(zip(inputs, values, strict=True))
            vectors = self.projection(self.tower(**features).pooler_output)
            return nn.functional.normalize(vectors[:, :dim], dim=-1)

    log = logging.getLogger("torch.onnx._internal.exporter")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of every torchvision operator that it cannot find and does not need
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch to itself
            # Whether an image has the trained size is decided at run time, not while recording: interpolating a
            # position table to its own size changes nothing.
            recorded = torch.export.export(
                UnitVectors(),
                tuple(inputs.values()),
                dynamic_shapes={"values": tuple(shapes.values())},
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            program = torch.onnx.export(
                recorded,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes={"values": tuple(shapes.values())},  # for the names of the free sizes
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None  # it is None only without dynamo
    _forget_origins(program.model)
    program.save(path, external_data=True)
    return path


def _forget_origins(graph_file: Any) -> None:
    """Remove what the exporter notes at every node: stack traces with the paths of this machine."""
    graphs = [graph_file.graph, *graph_file.functions.values()]
    graph_file.metadata_props.clear()
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
    for value in [*graph_file.graph.inputs, *graph_file.graph.initializers.values()]:
        value.metadata_props.clear()
