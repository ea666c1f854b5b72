"""What a run starts from: a preset with random weights or a checkpoint folder, with its processor."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPImageProcessor,
    JinaCLIPModel,
    JinaCLIPProcessor,
    initialize_towers,
)
from trainer_ext.files import file_hash
from trainer_ext.recipe.arguments import JinaCLIPTrainingArguments
from trainer_ext.recipe.checks import read_model_config
from trainer_ext.recipe.reading import find_resource, path_of
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.recipe.stages import TokenizerSpec
from trainer_ext.recipe.start_checks import embeds_texts_alone
from trainer_ext.run.tokenizer import train_wordpiece, training_texts
from trainer_ext.training.lora import add_lora


def training_arguments(recipe: Recipe, output_dir: str | Path) -> JinaCLIPTrainingArguments:
    """The arguments of a recipe's run: its ``training`` section, its seed, and its output folder."""
    return JinaCLIPTrainingArguments(output_dir=str(output_dir), seed=recipe.seed, **recipe.training)


def as_trained_here(recipe: Recipe, say: Callable[[str], object]) -> Recipe:
    """The recipe with what this machine can do well: float32 in place of bf16 that its processor has no kernels for.

    Such a step takes 20 times as long as one in float32, on a processor with AVX2 alone (docs/benchmarks.md). The run
    records what it trained in as ``mixed_precision``.
    """
    on_cpu = recipe.training.get("use_cpu", False) or not torch.accelerator.is_available()
    if not recipe.training.get("bf16", False) or not on_cpu or has_bf16_kernels():
        return recipe
    say("training in float32: bf16 is on, but this processor has no kernels for it and would take many times as long")
    return recipe.model_copy(update={"training": {**recipe.training, "bf16": False}})


def has_bf16_kernels() -> bool:
    """Whether oneDNN multiplies bf16 on this processor (AVX-512 at least); where torch does not tell, yes."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or bool(supported())


def initial_model(
    recipe: Recipe, resumed_from: Path | None = None, say: Callable[[str], object] | None = None
) -> tuple[JinaCLIPModel, JinaCLIPProcessor]:
    """The model and the processor of a recipe, before the first step.

    A preset gets random weights from torch's global generator, an image processor that lays transparent pictures on
    white and, if the recipe trains a tokenizer, a vocabulary of exactly its size. A checkpoint folder brings its
    weights, image processor and, unless the recipe names another, its tokenizer. Towers under the recipe's
    ``initialize`` replace those of the model; the text tower's tokenizer is used if it lies beside the tower. LoRA
    adapters come last.

    Args:
        resumed_from: a checkpoint of this run. Its tokenizer is used instead of training a second one; its weights,
            those of ``initialize`` included, are loaded later by the Trainer.
        say: called with one line for each initialised tower.

    Raises:
        ValueError: no tokenizer, one that does not fit the model's vocabulary, or a tower that does not fit its config.
    """
    start = find_resource("models", recipe.model)
    processor = initial_processor(recipe, resumed_from, say)
    tokenizer = processor.tokenizer
    if start.is_dir():
        _check_vocabulary(tokenizer, checked_config(start))
        model = JinaCLIPModel.from_pretrained(start, attn_implementation=recipe.attn_implementation)
    else:
        config = checked_config(start)
        if isinstance(recipe.tokenizer, TokenizerSpec):
            config.text_config.vocab_size = len(tokenizer)
        _check_vocabulary(tokenizer, config)
        config.text_config.pad_token_id = tokenizer.pad_token_id
        model = JinaCLIPModel._from_config(config, attn_implementation=recipe.attn_implementation)
    if recipe.initialize is not None and resumed_from is None:
        for tower, report in initialize_towers(model, **dict(recipe.initialize)).items():
            if say is not None:
                fresh = f": {', '.join(report.fresh)}" if report.fresh else ""
                say(f"{tower} tower from {getattr(recipe.initialize, tower)}: {report}{fresh}")
    if recipe.lora is not None:
        if not start.is_dir() or recipe.initialize is not None:
            raise ValueError(
                f"lora trains small changes of a trained model, but model {recipe.model!r} brings none of its own"
                f"{' (initialize replaces its towers)' if recipe.initialize else ''}; start from a model folder"
            )
        add_lora(model, recipe.lora)
    return model, processor


def initial_processor(
    recipe: Recipe, resumed_from: Path | None = None, say: Callable[[str], object] | None = None
) -> JinaCLIPProcessor:
    """The processor of ``initial_model``, without a model: how texts become tokens and pictures pixels.

    Raises:
        ValueError: no tokenizer.
    """
    start = find_resource("models", recipe.model)
    tokenizer = _tokenizer(recipe, start, resumed_from, say)
    if start.is_dir():
        return JinaCLIPProcessor(JinaCLIPImageProcessor.from_pretrained(start), tokenizer)
    if resumed_from is not None:  # as the run began, perhaps before there was a background
        return JinaCLIPProcessor(JinaCLIPImageProcessor.from_pretrained(resumed_from), tokenizer)
    size = checked_config(start).vision_config.image_size
    return JinaCLIPProcessor(JinaCLIPImageProcessor(size=size, background="white"), tokenizer)


def checked_config(model: Path) -> JinaCLIPConfig:
    """The configuration of a preset or a checkpoint folder, before the model itself takes memory.

    Raises:
        ValueError: it cannot be read, has a value that is none, or asks for more memory than there is.
    """
    content, file = read_model_config(model), model / "config.json" if model.is_dir() else model
    try:
        config = JinaCLIPConfig.from_dict(content)
    except Exception as error:  # wrong types have errors of the library's own, which are no ValueErrors
        words = " ".join(str(error).split())
        raise ValueError(f"model {file}: {words}") from error
    needed = 4 * _parameters(config)
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise ValueError(
            f"model {file} describes {needed // 4:,} parameters, {needed / 1e9:,.1f} GB in float32, but this machine "
            f"has {present / 1e9:,.1f} GB of memory. Correct its sizes, or use a larger machine"
        )
    return config


# What a model's folder is read for: weights, and how texts and pictures become numbers. The rest is for people.
_READ = ("*.safetensors", "config.json", "*processor_config.json", "tokenizer*", "*.model", "*tokens*.json", "vocab.*")


def model_fingerprint(place: Path) -> str:
    """The content of a preset, or of what a model's folder is loaded from, as one hash; a second for each GB.

    A resumed run reads its teacher again, with LoRA its start's weights, and its start at the end to be merged with.
    """
    alone = place.is_dir() and embeds_texts_alone(place)  # then parts of it lie in folders of their own
    names, find = ((*_READ, "modules.json"), place.rglob) if alone else (_READ, place.glob)
    files = [place] if place.is_file() else sorted({path for name in names for path in find(name)})
    parts = [f"{path.relative_to(place) if alone else path.name}/{file_hash(path)}" for path in files if path.is_file()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _parameters(config: JinaCLIPConfig) -> int:
    """About how many parameters: the matrices, which are nearly all of them."""
    text, vision = config.text_config, config.vision_config
    embeddings = text.vocab_size * text.hidden_size + vision.num_channels * vision.patch_size**2 * vision.width
    embeddings += (vision.image_size // vision.patch_size) ** 2 * vision.width
    gates = 3 if text.mlp_type == "glu" else 2
    layers = text.num_hidden_layers * text.hidden_size * (4 * text.hidden_size + gates * text.intermediate_size)
    layers += vision.layers * vision.width * (4 * vision.width + 3 * vision.intermediate_size)
    return embeddings + layers


def _tokenizer(
    recipe: Recipe, start: Path, resumed_from: Path | None, say: Callable[[str], object] | None
) -> PreTrainedTokenizerBase:
    if resumed_from is not None:
        return _load_tokenizer(resumed_from)
    if isinstance(recipe.tokenizer, TokenizerSpec):
        return train_wordpiece(training_texts(recipe), recipe.tokenizer.vocab_size, say)
    if recipe.tokenizer is not None:
        return _load_tokenizer(path_of(recipe.tokenizer))
    tower = path_of(recipe.initialize.text) if recipe.initialize and recipe.initialize.text else start
    for folder in (tower, start):
        if (folder / "tokenizer_config.json").is_file():
            return _load_tokenizer(folder)
    if start.is_dir():
        return _load_tokenizer(start)
    raise ValueError(
        f"model {recipe.model!r} is a preset, which has no tokenizer; add `tokenizer: {{vocab_size: 8192}}` to train "
        "one on the recipe's texts, or `tokenizer: FOLDER` to load one"
    )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"tokenizer {str(folder)!r} is not a folder with a tokenizer_config.json; check the path")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the fast tokenizers' library raises bare Exceptions
        words = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise ValueError(
            f"tokenizer {str(folder)!r} cannot be read: {words}. One of its files, such as tokenizer.json, is "
            "damaged or of another library: copy them again"
        ) from error


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: JinaCLIPConfig) -> None:
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set its pad_token and save it again")
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries, but the model's text_config.vocab_size is "
            f"{config.text_config.vocab_size}; use the model's own tokenizer, or a preset with a larger vocabulary"
        )
