"""Run in a process of its own: make image towers of timm and open_clip, save their weights and what they compute.

    python peer_features.py PEERS_FOLDER OUT_FOLDER '[{"id": "a", "library": "timm", "model": "eva02_...", ...}]'

Knows nothing of our code. For each item OUT_FOLDER/ID.safetensors gets the state dict under the peer's names, and
OUT_FOLDER/ID.io.safetensors the pixels, the states of all tokens after the last norm and, of CLIP models, the vector.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F


def import_peers(folder: str) -> tuple[Any, Any]:
    """The modules timm and open_clip from ``folder``.

    Both import torchvision, whose compiled operators fit only the torch they were built with. Nothing here calls them:
    that their names are known is enough for the import.
    """
    sys.path.append(folder)
    schemas = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_peers.schemas = schemas  # as long as this lives, so do the names
    import open_clip
    import timm

    return timm, open_clip


@torch.no_grad()
def scramble(model: nn.Module) -> None:
    """Move every parameter, biases and norms too, so that none may be forgotten without a difference."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)


def resized(weights: dict[str, torch.Tensor], image_size: int, patch_size: int) -> dict[str, torch.Tensor]:
    """Position table and patch kernel as EVA resizes them: bicubic, corners not aligned, no antialiasing."""
    table = weights["pos_embed"]
    side, grid = round((table.shape[1] - 1) ** 0.5), image_size // patch_size
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    kernel = F.interpolate(weights["patch_embed.proj.weight"], (patch_size, patch_size), mode="bicubic")
    return {**weights, "pos_embed": torch.cat([table[:, :1], patches], 1), "patch_embed.proj.weight": kernel}


@torch.no_grad()
def compute(item: dict[str, Any], out: Path, timm: Any, open_clip: Any) -> None:
    torch.manual_seed(0)
    options = item.get("options", {})
    if item["library"] == "timm":
        whole = trunk = timm.create_model(item["model"], **options).eval()
    else:
        whole = open_clip.create_model(item["model"]).eval()
        trunk = whole.visual.trunk
    scramble(whole)
    weights = {name: tensor.contiguous() for name, tensor in whole.state_dict().items()}
    save_file(weights, out / f"{item['id']}.safetensors")
    size = options.get("img_size", 224)
    if "resized" in item:
        size, patch = item["resized"]["image_size"], item["resized"]["patch_size"]
        trunk = timm.create_model(item["model"], **{**options, "img_size": size, "patch_size": patch}).eval()
        trunk.load_state_dict(resized(weights, size, patch))
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens = trunk.forward_features(pixels)  # the MIM models norm only after pooling; the CLIP ones all tokens
    io = {"pixel_values": pixels, "tokens": trunk.fc_norm(tokens)}
    if trunk.global_pool == "token":
        io["pooled"] = trunk.forward_head(tokens, pre_logits=True).clone()
    save_file({name: tensor.contiguous() for name, tensor in io.items()}, out / f"{item['id']}.io.safetensors")


if __name__ == "__main__":
    peers, folder, items = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    modules = import_peers(peers)
    for entry in items:
        compute(entry, folder, *modules)
