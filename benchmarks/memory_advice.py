"""The tables of docs/memory.md: GPU memory of a joint step, computed: ``python benchmarks/memory_advice.py``.

Nothing runs on a GPU. Activations are those that autograd keeps for the backward pass of one chunk under bf16 autocast,
counted by its saved-tensor hooks on tensors without data. The rest is arithmetic; docs/memory.md has the formula.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from modeling_jina_clip.modeling_jina_clip_text import JinaCLIPTextTransformer
from trainer_ext.recipe.reading import find_resource

GIB = 2**30
BYTES_PER_WEIGHT = 4 + 4 + 8 + 2  # fp32 weight, gradient, AdamW's two moments, the bf16 copy that autocast makes
BYTES_PER_EMBEDDING = 4 * 4  # fp32: the vector, its gradient, the unit vector of the loss, and that one's gradient
CONTEXT_GIB = 1.0  # CUDA itself and its libraries
USABLE = 0.92  # the rest is lost to the allocator's rounding
PARTS = 4  # picture, caption, query, positive
TILE = 4096


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Bytes of all different tensors that autograd keeps inside, weights not counted."""
    seen: dict[int, int] = {}
    total = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage._cdata not in seen:
            seen[storage._cdata] = storage.nbytes()
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def activations_per_row(config: JinaCLIPConfig, size: int, tokens: int, checkpointing: bool) -> tuple[float, float]:
    """Bytes per picture and per text; the difference of two chunk sizes, so that copies of weights fall out."""
    found = []
    for name in ("image", "text"):
        totals = []
        for rows in (2, 4):
            with FakeTensorMode(), no_init_weights():
                model = JinaCLIPModel._from_config(config, attn_implementation="sdpa").train()
                if checkpointing:
                    model.gradient_checkpointing_enable()  # newer versions call it activation checkpointing
                pixels = torch.zeros(rows, 3, size, size)
                ids = torch.ones(rows, tokens, dtype=torch.long)
                with kept_bytes() as total, torch.autocast("cpu", torch.bfloat16):
                    kept = model(pixel_values=pixels) if name == "image" else model(input_ids=ids, attention_mask=ids)
                totals.append(total[0])
                del kept
        found.append((totals[1] - totals[0]) / 2)
    return found[0], found[1]


def step_gib(weights: int, width: int, per_row: float, chunk: int, batch: int) -> float:
    """The formula of docs/memory.md."""
    fixed = weights * BYTES_PER_WEIGHT
    cached = batch * PARTS * width * BYTES_PER_EMBEDDING
    tiles = 3 * min(batch, TILE) ** 2 * 4
    return (fixed + chunk * per_row + cached + tiles) / GIB / USABLE + CONTEXT_GIB


def weights_of(config: JinaCLIPConfig) -> int:
    """Number of weights, made without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in JinaCLIPModel(config).parameters())


def main() -> None:
    """Print the activations, then the advice."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["jina-clip-v1", "jina-clip-v2"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384, 512])
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--cards", type=int, nargs="+", default=[8, 16, 24, 40, 80])
    parser.add_argument("--batch", type=int, default=32768)
    options = parser.parse_args()
    JinaCLIPTextTransformer._packs = lambda *arguments: False  # as on a GPU
    rows = []
    print("| model | weights | resolution | checkpointing | MiB a picture | MiB a text |")
    print("|---|--:|--:|---|--:|--:|")
    for name in options.models:
        config = JinaCLIPConfig.from_json_file(find_resource("models", name))
        weights, patch = weights_of(config), config.vision_config.patch_size
        for wanted in options.sizes:
            size = wanted if wanted == config.vision_config.image_size else wanted // patch * patch
            layers = config.vision_config.layers, config.text_config.num_hidden_layers
            whole = activations_per_row(config, size, options.tokens, checkpointing=False)
            inputs = activations_per_row(config, size, options.tokens, checkpointing=True)
            # With checkpointing one layer at a time is computed again, and kept while it goes back.
            again = [kept + full / count for kept, full, count in zip(inputs, whole, layers, strict=True)]
            for checkpointing, (image, text) in ((False, whole), (True, again)):
                words = "yes" if checkpointing else "no"
                print(
                    f"| {name} | {weights / 1e6:.0f}M | {size} | {words} | {image / 2**20:.1f} | {text / 2**20:.1f} |",
                    flush=True,
                )
                rows.append((name, size, words, weights, config.projection_dim, max(image, text)))
    print(f"\nLargest chunk for an effective batch of {options.batch:,}\n")
    print("| model | resolution | checkpointing | " + " | ".join(f"{card} GB" for card in options.cards) + " |")
    print("|---|--:|---|" + "--:|" * len(options.cards))
    for name, size, words, weights, width, per_row in rows:
        cells = []
        for card in options.cards:
            fits = [2**n for n in range(13) if step_gib(weights, width, per_row, 2**n, options.batch) <= card]
            cells.append(str(max(fits)) if fits else "-")
        print(f"| {name} | {size} | {words} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
