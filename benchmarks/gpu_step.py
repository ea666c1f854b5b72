"""The joint step of jina-clip-v1's size on one GPU: ``python benchmarks/gpu_step.py`` (``--tiny`` tries it on a CPU).

Stage-1 shape: pictures of 224 px with captions and text pairs of 77 tokens, bf16 autocast, AdamW; both passes of the
gradient cache, losses in tiles, the optimizer. Pictures come from host memory as bytes, chunk by chunk, and are
normalised on the device. For each effective batch the median of some steps: pairs per second, peak memory, and the
fraction of what a plain bf16 matrix product reaches on the same card, counting the model's matrix products alone (the
first pass, the second, and twice as much backward).

Needs the model and the losses, torch and transformers; no data set and no trainer.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from trainer_ext.losses.gradient_cache import Chunks, cached_embeddings
from trainer_ext.losses.info_nce import info_nce
from trainer_ext.losses.logits import clamp_logit_scale_, clamped_temperature

TEXTS = ("caption", "query", "positive")
POOL = 4096  # different rows on the host; a larger batch sees them again, and copies them again
TINY = {
    "projection_dim": 32,
    "text_config": {
        "embed_dim": 32, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64,
    },
    "vision_config": {
        "embed_dim": 32, "width": 32, "head_width": 16, "layers": 2, "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip


class Step:
    """One optimizer step of a batch size, as the trainer does it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device("cpu" if options.tiny else "cuda")
        torch.manual_seed(0)
        config = JinaCLIPConfig(**(TINY if options.tiny else {}))
        self.model = JinaCLIPModel._from_config(config, attn_implementation=options.attention)
        self.model = self.model.to(self.device).train()
        self.embed_part = torch.compile(self._embed) if options.compile else self._embed
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=not options.tiny)
        size, pinned = config.vision_config.image_size, not options.tiny
        rows = min(POOL, max(options.batches))
        self.pixels = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8)
        self.ids = torch.randint(5, config.text_config.vocab_size, (rows, options.tokens))
        if pinned:
            self.pixels, self.ids = self.pixels.pin_memory(), self.ids.pin_memory()

    def _embed(self, part: dict[str, torch.Tensor]) -> torch.Tensor:
        features = {name: tensor.to(self.device, non_blocking=True) for name, tensor in part.items()}
        if "pixel_values" in features:
            features["pixel_values"] = (features["pixel_values"].float() / 255 - 0.45) / 0.27
            return self.model(**features).image_embeds
        return self.model(**features, attention_mask=torch.ones_like(features["input_ids"])).text_embeds

    def _chunks(self, name: str, pool: torch.Tensor, rows: int) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, rows, self.options.chunk):
            first = start % len(pool)
            yield {name: pool[first : first + min(self.options.chunk, rows - start)]}

    def __call__(self, rows: int) -> None:
        """Embed, compare, go back, update."""
        with torch.autocast(self.device.type, torch.bfloat16):
            inputs = {"image": Chunks(self.embed_part, list(self._chunks("pixel_values", self.pixels, rows)))}
            inputs |= {name: Chunks(self.embed_part, list(self._chunks("input_ids", self.ids, rows))) for name in TEXTS}
            inputs["temperature"] = Chunks(lambda _: clamped_temperature(self.model.logit_scale), [None])
            vectors = cached_embeddings(inputs)
            loss = info_nce(
                vectors["image"], vectors["caption"], vectors["temperature"], tile_size=self.options.tile_size
            ) + info_nce(vectors["query"], vectors["positive"], tile_size=self.options.tile_size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        clamp_logit_scale_(self.model.logit_scale)

    def flops_per_row(self) -> float:
        """Matrix products of one forward pass of a picture and three texts."""
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
            self._embed({"pixel_values": self.pixels[:4]})
            for _ in TEXTS:
                self._embed({"input_ids": self.ids[:4]})
        return counter.get_total_flops() / 4

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float:
        """Most memory that tensors had on the device since the last call."""
        if self.device.type != "cuda":
            return float("nan")
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return peak


def median_seconds(work: Callable[[], object], wait: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """Smallest, median and largest of ``rounds`` timings, after one that does not count."""
    taken = []
    for number in range(rounds + 1):
        wait()
        begin = time.perf_counter()
        work()
        wait()
        if number:
            taken.append(time.perf_counter() - begin)
    return min(taken), statistics.median(taken), max(taken)


def ceiling(step: Step) -> float:
    """FLOP per second of a plain bf16 product of large square matrices."""
    size = 512 if step.options.tiny else 8192
    left, right = (torch.randn(size, size, device=step.device, dtype=torch.bfloat16) for _ in range(2))
    _, seconds, _ = median_seconds(lambda: [left @ right for _ in range(10)], step.wait, 5)
    return 10 * 2 * size**3 / seconds


def main() -> None:
    """One line of a markdown table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--chunk", type=int, default=512, help="rows embedded at a time; divides the pool of 4,096")
    parser.add_argument("--tile_size", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and small batches on the CPU")
    options = parser.parse_args()
    if options.tiny:
        options.batches, options.chunk, options.tile_size, options.tokens = [32, 64], 16, 32, 12
    step = Step(options)
    top, flops = ceiling(step), step.flops_per_row()
    name = "CPU" if options.tiny else torch.cuda.get_device_name()
    weights = sum(parameter.numel() for parameter in step.model.parameters())
    print(
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, {weights / 1e6:.0f}M weights, ",
        end="",
    )
    print(f"chunks of {options.chunk}, {options.attention}{', compiled' if options.compile else ''}; ", end="")
    print(f"a plain bf16 matrix product reaches {top / 1e12:.1f} TFLOP/s\n")
    print("| effective batch | seconds | image pairs/s + text pairs/s | of the matmul ceiling | peak memory, GiB |")
    print("|--:|--:|--:|--:|--:|")
    for rows in options.batches:
        step.peak_gib()
        low, middle, high = median_seconds(lambda rows=rows: step(rows), step.wait, options.rounds)
        share = 4 * flops * rows / middle / top
        rate = f"{rows / middle:,.0f} + {rows / middle:,.0f}"
        spread = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        print(f"| {rows:,} | {spread} | {rate} | {share:.0%} | {step.peak_gib():.1f} |", flush=True)


if __name__ == "__main__":
    main()
