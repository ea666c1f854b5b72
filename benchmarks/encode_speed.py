"""Encoding speed at the real shape of jina-clip-v1 (223M parameters, random weights), against the published style.

Every round runs each variant once, so that whatever else the machine does falls on all of them; the first round warms
up. Prints the median seconds with quartiles, the ratio to ``published fp32``, and the largest difference of a vector.
The bare chain of all layers' matrix products is the ceiling of an implementation that leaves none out. With
``--peers .peers`` (made by ``make peers``) timm's EVA02 of the same shape runs too.

    python benchmarks/encode_speed.py text [--rounds 7] [--texts 192]
    python benchmarks/encode_speed.py image [--rounds 7] [--images 32] [--peers .peers]
    python benchmarks/encode_speed.py memory [--tokens 8192]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from published_style import PublishedStyle
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPImageProcessor,
    JinaCLIPModel,
    JinaCLIPProcessor,
)
from modeling_jina_clip.modeling_jina_clip_base import faster_products

Variant = Callable[[], np.ndarray]


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One id per made-up word, between [CLS] and [SEP]."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*specials, *(f"w{number}" for number in range(vocabulary - len(specials)))]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def make_texts(count: int, vocabulary: int) -> list[str]:
    """Texts whose token counts are log-normal: median 36, cut to 3 ... 512."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(36), 0.8, count), 3, 512).astype(int)
    return [" ".join(f"w{number}" for number in random.integers(0, vocabulary - 4, length - 2)) for length in lengths]


def make_model(dtype: torch.dtype) -> JinaCLIPModel:
    """jina-clip-v1 with random weights, the same ones for each dtype."""
    torch.manual_seed(0)
    config = JinaCLIPConfig()
    model = JinaCLIPModel(config).eval()
    model.processor = JinaCLIPProcessor(JinaCLIPImageProcessor(), tokenizer(config.text_config.vocab_size))
    return model.to(dtype)


def chain_of_products(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> Variant:
    """The matrix products of the linear layers alone, from (rows, in, out), by the faster of torch's libraries."""
    weights = {shape: torch.randn(shape[2], shape[1], dtype=dtype) for shape in set(shapes)}
    inputs = {shape: torch.randn(shape[0], shape[1], dtype=dtype) for shape in set(shapes)}

    @torch.inference_mode()
    def run() -> np.ndarray:
        for shape in shapes:
            with faster_products(inputs[shape]):
                torch.nn.functional.linear(inputs[shape], weights[shape])
        return np.zeros(0)

    return run


def text_variants(count: int) -> dict[str, Variant]:
    """The published style, this package at both types, and the bare matrix products of the real tokens."""
    plain, half = make_model(torch.float32), make_model(torch.bfloat16)
    config = plain.config.text_config
    texts = make_texts(count, config.vocab_size)
    peer = PublishedStyle(plain)
    tokens = sum(len(row) for row in plain.processor.tokenizer(texts, truncation=True, max_length=512)["input_ids"])
    width, inner = config.hidden_size, config.intermediate_size
    layer = [(width, 3 * width), (width, width), (width, 2 * inner), (inner, width)]
    shapes = [(4096, *shape) for _ in range(tokens // 4096) for _ in range(config.num_hidden_layers) for shape in layer]
    shapes += [(tokens % 4096, *shape) for _ in range(config.num_hidden_layers) for shape in layer]
    return {
        "published fp32": lambda: peer.encode_text(texts).numpy(),
        "ours fp32": lambda: plain.encode_text(texts),
        "ours bf16": lambda: half.encode_text(texts),
        "products fp32": chain_of_products(shapes, torch.float32),
        "products bf16": chain_of_products(shapes, torch.bfloat16),
    }


def timm_variants(folder: str, processor: JinaCLIPImageProcessor, images: list[np.ndarray]) -> dict[str, Variant]:
    """timm's model as its users run it, in batches of 16 from the same processor."""
    from tests.modeling_jina_clip.peer_features import import_peers

    timm, _ = import_peers(folder)

    def variant(dtype: torch.dtype) -> Variant:
        tower = timm.create_model("eva02_base_patch16_clip_224", num_classes=0).eval().to(dtype)

        @torch.inference_mode()
        def run() -> np.ndarray:
            batches = [processor(images[i : i + 16], return_tensors="pt") for i in range(0, len(images), 16)]
            vectors = [tower(batch["pixel_values"].to(dtype)) for batch in batches]
            return torch.nn.functional.normalize(torch.cat(vectors).float(), dim=-1).numpy()[:, :1]  # other weights

        return run

    return {"timm fp32": variant(torch.float32), "timm bf16": variant(torch.bfloat16)}


def image_variants(count: int, peers: str | None) -> dict[str, Variant]:
    """As for texts; images are arrays of the model's own size, so that no decoder takes part."""
    plain, half = make_model(torch.float32), make_model(torch.bfloat16)
    config = plain.config.vision_config
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (count, config.image_size, config.image_size, 3), dtype=np.uint8))
    peer = PublishedStyle(plain)
    width, inner = config.width, config.intermediate_size
    layer = [*[(width, width)] * 4, *[(width, inner)] * 2, (inner, width)]
    rows = 16 * (1 + (config.image_size // config.patch_size) ** 2)
    shapes = [(rows, *shape) for _ in range(count // 16) for _ in range(config.layers) for shape in layer]
    return {
        "published fp32": lambda: peer.encode_image(images).numpy(),
        "ours fp32": lambda: plain.encode_image(images, batch_size=16),
        "ours bf16": lambda: half.encode_image(images, batch_size=16),
        "products fp32": chain_of_products(shapes, torch.float32),
        "products bf16": chain_of_products(shapes, torch.bfloat16),
    } | (timm_variants(peers, plain.processor.image_processor, images) if peers else {})


def compare(variants: dict[str, Variant], rounds: int) -> None:
    """Run all variants in turns and print one line each; the first one is the peer."""
    results = {name: run() for name, run in variants.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    expected, *_ = results.values()
    peer, *_ = (statistics.median(seconds) for seconds in times.values())
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4) if rounds > 1 else seconds * 3
        found = results[name]
        difference = f"{abs(found - expected).max():.1e}" if found.shape == expected.shape else "-"
        print(f"{name:16} {middle:7.3f} s ({low:.3f}-{high:.3f})  {peer / middle:5.2f}x  difference {difference}")


def peak_memory(tokens: int) -> None:
    """Encode one text of so many tokens; print the peak of the process above the loaded model, and the model's size."""
    model = make_model(torch.float32)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
    text = " ".join(["w1"] * (tokens - 2))
    model.encode_text("w1 w2")  # what the first call loads is not the text's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    model.encode_text(text, max_length=tokens)
    peak = memory("VmHWM") - before
    print(f"{tokens} tokens: {peak:.0f} MiB above the model of {size:.0f} MiB, {peak / size:.2f} times its size")


def memory(name: str) -> float:
    """A size of this process in MiB, from the Linux kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def main() -> None:
    """Choose the side and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("side", choices=["text", "image", "memory"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--peers", help="folder that has timm, for images")
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    if options.side == "memory":
        return peak_memory(options.tokens)
    text = options.side == "text"
    compare(text_variants(options.texts) if text else image_variants(options.images, options.peers), options.rounds)


if __name__ == "__main__":
    main()
