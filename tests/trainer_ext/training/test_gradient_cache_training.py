"""Whole training runs with the gradient cache against the same runs that embed each chunk once and keep its graph.

Dropout and patch dropout are on, and the optimizer is SGD, so that weights differ as gradients do (Adam would make a
large step of a rounding error). The single pass takes the trainer's own chunks: other chunks draw other random numbers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.trainer_ext.tiny_run import RunFactory, make_model, make_processor, trained
from tests.trainer_ext.training.test_resume import TEXTS
from trainer_ext.losses.gradient_cache import Chunks, cached_embeddings
from trainer_ext.losses.info_nce import info_nce
from trainer_ext.training.embedding import InputEmbedder, chunks_of

SGD = ["optim=sgd", "max_grad_norm=0", *(f"stages.{stage}.learning_rate=1e-1" for stage in range(3))]

# Dropout alone tells the two views of a text apart.
NO_REPEATS = "sources.successors.repeat_words=null"
COMPILED = ["gradient_cache_chunk_size=3", "torch_compile=true"]


def embed_once(inputs: Mapping[str, Chunks], *, no_sync: Any = None, keep_last: bool = False) -> dict[str, Tensor]:
    """What the cache saves: every chunk embedded once, all graphs kept until the loss."""
    parts = {name: [item.embed(chunk) for chunk in item.chunks] for name, item in inputs.items()}
    return {name: torch.cat(part) if part[0].ndim else part[0] for name, part in parts.items()}


def both_ways(run: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    cached = run("cached")
    monkeypatch.setattr("trainer_ext.training.trainer.cached_embeddings", embed_once)
    return cached, run("once")


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(["gradient_cache_chunk_size=1"], id="chunk 1", marks=pytest.mark.slow),
        pytest.param(["gradient_cache_chunk_size=3"], id="chunk 3"),
        pytest.param(["gradient_cache_chunk_size=100"], id="chunk 100", marks=pytest.mark.slow),
        pytest.param(
            ["gradient_cache_chunk_size=1", "gradient_cache_keep_last=true"], id="keep last", marks=pytest.mark.slow
        ),
        pytest.param(["gradient_cache_chunk_size=1", "gradient_accumulation_steps=2"], id="accumulation"),
        pytest.param(
            ["gradient_cache_chunk_size=3", "gradient_checkpointing=true"], id="checkpointing", marks=pytest.mark.slow
        ),
        pytest.param(["gradient_cache_chunk_size=3", "tile_size=3"], id="tiles"),
        pytest.param(["gradient_cache_chunk_size=2", *TEXTS, NO_REPEATS], id="texts without pairs"),
        pytest.param(COMPILED, id="compile", marks=pytest.mark.slow),
    ],
)
def test_training_with_the_cache_is_training_in_one_pass(
    make_trainer: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    def run(name: str) -> nn.Module:
        return trained(make_trainer(tmp_path / name, *SGD, *extra, "save_strategy=no")).model

    cached, once = both_ways(run, monkeypatch)
    start = make_model()
    moved, near = 0.0, 1e-5 if "torch_compile=true" in extra else 1e-6  # compiled code rounds differently with a graph
    for (name, left), right, before in zip(
        cached.named_parameters(), once.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0.0, atol=near, msg=lambda text, name=name: f"{name}: {text}")
        moved = max(moved, (left - before).abs().max().item())
    assert moved > 1e-2


def test_under_autocast(make_trainer: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16: equal but for the roundings of weight gradients, which only the cache adds up in fp32."""
    extra = [*SGD, "bf16=true", "gradient_cache_chunk_size=3", "save_strategy=no"]
    cached, once = both_ways(lambda name: trained(make_trainer(tmp_path / name, *extra)).model, monkeypatch)
    start = make_model()
    difference = max(
        (left - right).abs().max() for left, right in zip(cached.parameters(), once.parameters(), strict=True)
    )
    moved = max((left - right).abs().max() for left, right in zip(cached.parameters(), start.parameters(), strict=True))
    assert difference < 0.02 * moved


@pytest.mark.parametrize("towers", ["both", "text"])
def test_lora_adapters_get_the_gradients_of_one_pass(towers: str) -> None:
    """PEFT on one tower or both: the other weights stay frozen, and a tower without adapters is left alone."""
    targets = ["Wqkv", "out_proj"] + (["q_proj", "v_proj"] if towers == "both" else [])
    torch.manual_seed(0)
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=targets, lora_dropout=0.3)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, and then lora_A would have no gradient
            nn.init.normal_(parameter, std=0.1)
    images = make_processor().image_processor
    embed = partial(InputEmbedder(images.mean, images.std, torch.device("cpu")), model)
    ids = torch.randint(4, 24, (7, 12))
    mask = (torch.arange(12) < torch.randint(2, 13, (7, 1))).long()
    parts = {
        "image": {"pixel_values": torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)},
        "caption": {"input_ids": ids * mask, "attention_mask": mask},
    }
    found = []
    for way in (cached_embeddings, embed_once):
        torch.manual_seed(1)
        chunks = chunks_of(parts, 3, model.config.vision_config.patch_size)
        vectors = way({name: Chunks(embed, pieces) for name, (pieces, _) in chunks.items()})
        info_nce(vectors["image"], vectors["caption"][chunks["caption"][1]]).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == (8 if towers == "both" else 4)
    assert all("lora_" in name for name in found[0])
    for name, expected in found[1].items():
        assert expected.abs().max() > 1e-4
        assert (found[0][name] - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item()), name
