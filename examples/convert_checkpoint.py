"""Build a Jina CLIP folder from the towers that the paper began with, or write a checkpoint anew in another layout.

    python examples/convert_checkpoint.py outputs/start --preset jina-clip-v1 --text bert/ --vision eva02.safetensors
    python examples/convert_checkpoint.py outputs/mine --checkpoint jina-clip-v1/
    python examples/convert_checkpoint.py outputs/theirs --checkpoint outputs/mine --published

The first form makes a model of a preset's sizes from JinaBERT weights (also those of a masked language model) and EVA02
weights of timm, open_clip or EVA-CLIP. The second loads a published checkpoint, or one of ours, and saves it with the
code that loads it. ``--published`` writes the original layout instead, for runtimes that know only that. Safetensors
in, safetensors out; a tensor without a place, or a parameter without a tensor, ends it with a list.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer
from transformers.utils import logging

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPImageProcessor,
    JinaCLIPModel,
    JinaCLIPProcessor,
    initialize_towers,
    save_published,
)
from trainer_ext.files import refuse_unwritable, words_of
from trainer_ext.recipe.reading import find_resource

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument("--checkpoint", type=Path, help="a folder with config.json, weights, tokenizer")
    parser.add_argument("--preset", help="sizes: a packaged name such as jina-clip-v1, or a config file")
    parser.add_argument("--text", type=Path, help="JinaBERT: a .safetensors file, or a folder of them")
    parser.add_argument("--vision", type=Path, help="EVA02: a .safetensors file, or a folder of them")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer, if it is not beside --text")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights written; default: that of the checkpoint's")
    parser.add_argument("--published", action="store_true", help="write the original layout")
    options = parser.parse_args(arguments)
    towers = (options.preset, options.text, options.vision)
    if (options.checkpoint is None) == (towers == (None, None, None)):
        parser.error("give either --checkpoint, or --preset with --text and --vision")
    if options.checkpoint is None and None in towers:
        parser.error("--preset, --text and --vision belong together: a tower left out would be random")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"{options.out} is not empty; give a new folder")
    return options


def from_towers(options: argparse.Namespace) -> JinaCLIPModel:
    """The model of a preset with both towers set, and a processor that fits it."""
    config = JinaCLIPConfig.from_json_file(find_resource("models", options.preset))
    folder = options.tokenizer or options.text
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"no tokenizer_config.json in {str(folder)!r}; name the tokenizer's folder with --tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None or len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer in {str(folder)!r} has {len(tokenizer)} entries and padding id {tokenizer.pad_token_id}, "
            f"the preset a vocabulary of {config.text_config.vocab_size}; take the tokenizer of the text tower"
        )
    config.text_config.pad_token_id = tokenizer.pad_token_id
    model = JinaCLIPModel(config)
    for tower, report in initialize_towers(model, text=options.text, vision=options.vision).items():
        print(f"{tower}: {report}")
        for kind in ("resized", "fresh", "dropped"):
            if names := getattr(report, kind):
                print(f"  {kind}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else ""))
    model.processor = JinaCLIPProcessor(JinaCLIPImageProcessor(size=config.vision_config.image_size), tokenizer)
    return model


def from_checkpoint(folder: Path) -> JinaCLIPModel:
    """The model as it is stored: its configuration may name another dtype than its file has."""
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} has no config.json or no .safetensors file; pickles are not read")
    with safe_open(files[0], "pt") as weights:
        dtype = weights.get_tensor(next(iter(weights.keys()))).dtype
    model = JinaCLIPModel.from_pretrained(folder, dtype=dtype)
    print(f"{len(model.state_dict())} tensors of {dtype} loaded, none missing, none left over")
    return model


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.disable_progress_bar()
    try:
        refuse_unwritable(options.out, "the new folder")
        model = from_towers(options) if options.checkpoint is None else from_checkpoint(options.checkpoint)
        if options.dtype:
            model = model.to(DTYPES[options.dtype])
        if options.published:
            save_published(model, options.out)
        else:
            model.save_pretrained(options.out)
            model.processor.save_pretrained(options.out)
            model.processor.image_processor.save_pretrained(options.out)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {words_of(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 2
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters of {model.dtype} written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
