"""One training step of the demo's towers under bf16 autocast on the CPU: attention backends, and packing of texts.

The variants run interleaved, so that whatever else the machine does falls on all of them. Prints the median time of a
step with its quartiles, and the ratio to the first variant.

    python benchmarks/training_step.py [--rounds 7]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from modeling_jina_clip.modeling_jina_clip_text import JinaCLIPTextTransformer
from trainer_ext.losses.info_nce import info_nce
from trainer_ext.losses.logits import clamped_temperature
from trainer_ext.recipe.reading import find_resource

ROWS = 128
VOCABULARY = 8000


def texts(longest: int, generator: torch.Generator) -> torch.Tensor:
    """Ids of ``ROWS`` texts, (rows, longest), whose lengths are spread as those of definitions: most are short."""
    lengths = torch.empty(ROWS).log_normal_(2.4, 0.6, generator=generator).clamp(3, longest).long()
    lengths[0] = longest
    ids = torch.randint(5, VOCABULARY, (ROWS, longest), generator=generator)
    return ids.masked_fill(torch.arange(longest) >= lengths[:, None], 0)


def make_step(attention: str, packed: bool) -> Callable[[], None]:
    """A joint step (images and captions; queries and definitions) with the backend and with packing or without."""
    torch.manual_seed(0)
    config = JinaCLIPConfig.from_json_file(find_resource("models", "openmoji-small"))
    model = JinaCLIPModel._from_config(config, attn_implementation=attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(ROWS, 3, 64, 64, generator=generator)
    captions, queries, definitions = (texts(longest, generator) for longest in (16, 8, 32))
    packs = JinaCLIPTextTransformer._packs

    def step() -> None:
        JinaCLIPTextTransformer._packs = packs if packed else lambda *arguments: False
        with torch.autocast("cpu", torch.bfloat16):
            pairs = model(input_ids=captions, pixel_values=pixels)
            query, target = model(input_ids=queries).text_embeds, model(input_ids=definitions).text_embeds
        loss = info_nce(pairs.image_embeds, pairs.text_embeds, clamped_temperature(model.logit_scale))
        (loss + info_nce(query, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        JinaCLIPTextTransformer._packs = packs

    return step


def main() -> None:
    """Time all variants and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    variants = {
        f"{attention}, {'packed' if packed else 'padded'} texts": make_step(attention, packed)
        for attention in ("sdpa", "eager")
        for packed in (False, True)
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, step in variants.items():
            begin = time.perf_counter()
            step()
            if number >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - begin)
    base = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4) if rounds > 1 else seconds * 3
        print(f"{name:22} {middle:.3f} s ({low:.3f}-{high:.3f}), {base / middle:.2f}x")


if __name__ == "__main__":
    main()
