"""The image tower against timm's and open_clip's own EVA02, run on the same weights in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modeling_jina_clip import JinaCLIPVisionConfig, JinaCLIPVisionModel
from modeling_jina_clip.checkpoints_jina_clip import initialize_vision

PEERS = Path(__file__).parents[2] / ".peers"
SCRIPT = Path(__file__).with_name("peer_features.py")
TOLERANCE = 1e-4  # fp32, absolute

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PEERS / "timm").is_dir(), reason="timm and open_clip are not in .peers/: run `make peers`"),
]

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4}
# What all of timm's EVA02 have: rotary positions squeezed onto the 16 x 16 grid of pre-training.
ROPE = {"pt_hw_seq_len": 16, "intp_freq": True}
NO_INNER = ("attn.inner_attn_ln",)

CASES = {
    # CLIP models: everything is ours, too. At the trained size, and at others.
    "clip": (
        {"library": "timm", "model": "eva02_base_patch16_clip_224", "options": {**SMALL, "img_size": 64}},
        {"image_size": 64, "patch_size": 16},
        (),
    ),
    "clip-finer": (
        {
            "library": "timm",
            "model": "eva02_base_patch16_clip_224",
            "options": {**SMALL, "img_size": 64},
            "resized": {"image_size": 112, "patch_size": 16},
        },
        {"image_size": 112, "patch_size": 16},
        (),
    ),
    # MIM models: no LayerNorm inside attention, and no class token in their own output.
    "mim": (
        {"library": "timm", "model": "eva02_base_patch14_224", "options": {**SMALL, "img_size": 56}},
        {"image_size": 56, "patch_size": 14},
        NO_INNER,
    ),
    # As the paper's tower began: patches of 14 px to 16, and a larger grid.
    "mim-14-to-16": (
        {
            "library": "timm",
            "model": "eva02_base_patch14_224",
            "options": {**SMALL, "img_size": 56},
            "resized": {"image_size": 96, "patch_size": 16},
        },
        {"image_size": 96, "patch_size": 16},
        NO_INNER,
    ),
    # Real sizes. The smallest models have fused layers and no LayerNorm in the feed-forward.
    "tiny-real": (
        {"library": "timm", "model": "eva02_tiny_patch14_224"},
        {"width": 192, "embed_dim": 192, "head_width": 64, "layers": 12, "image_size": 224, "patch_size": 14},
        (*NO_INNER, "mlp.ffn_ln"),
    ),
    "open-clip-real": (
        {"library": "open_clip", "model": "EVA02-B-16"},
        {"width": 768, "embed_dim": 768, "head_width": 64, "layers": 12, "image_size": 224, "patch_size": 16},
        (),
    ),
}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the peers have and compute, all cases in one process."""
    out = tmp_path_factory.mktemp("peers")
    items = json.dumps([{"id": name, **spec} for name, (spec, _, _) in CASES.items()])
    command = [sys.executable, "-I", str(SCRIPT), str(PEERS), str(out), items]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_tower_computes_what_the_peer_does(computed: Path, name: str, record_property) -> None:
    _, sizes, absent = CASES[name]
    small = {"width": 64, "embed_dim": 64, "head_width": 16, "layers": 2}
    tower = JinaCLIPVisionModel(JinaCLIPVisionConfig(**{**small, **sizes, **ROPE})).eval()
    weights, io = load_file(computed / f"{name}.safetensors"), load_file(computed / f"{name}.io.safetensors")
    report = initialize_vision(tower, weights)
    assert len(report.fresh) == 2 * len(absent) * len(tower.blocks)
    assert all(any(part in parameter for part in absent) for parameter in report.fresh)
    assert bool(report.resized) == ("resized" in CASES[name][0])
    for block in tower.blocks:  # what the peer does not have must not act in the comparison
        for part in absent:
            parent, _, child = part.partition(".")
            setattr(getattr(block, parent), child, nn.Identity())
    output = tower(io["pixel_values"])
    assert io["tokens"].std() > 0.1
    difference = (output.last_hidden_state - io["tokens"]).abs().max().item()
    if "pooled" in io:
        difference = max(difference, (output.pooler_output - io["pooled"]).abs().max().item())
    record_property("difference", difference)
    print(f"{name}: largest difference {difference:.1e}")
    assert difference < TOLERANCE
