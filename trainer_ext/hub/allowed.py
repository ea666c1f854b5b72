"""What a published folder may hold: kinds of files, and the keys of the configurations that loaders read.

Lists of what is allowed, not of what is dangerous: those are never complete. Cards and assets (texts, tables, pictures)
pass by their kind, when their content is of that kind. Configurations pass key by key: what this package writes, and
under any other key nothing but numbers, which name neither a file nor a repository.
"""

import io
import pickletools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from trainer_ext.hub.installed import HubFolderError, model_package
from trainer_ext.hub.onnx_export import WEIGHTS_SUFFIX
from trainer_ext.sentence_files import MODULES, TRANSFORMER

# --- files ---------------------------------------------------------------------------------------------------------
TEXTS = {".bib", ".cff", ".csv", ".json", ".jsonl", ".md", ".py", ".tsv", ".txt", ".yaml", ".yml"}
PLAIN_NAMES = {"AUTHORS", "CITATION", "LICENCE", "LICENSE", "NOTICE"}
PICTURES = {
    ".gif": (b"GIF8",),
    ".jpeg": (b"\xff\xd8\xff",),
    ".jpg": (b"\xff\xd8\xff",),
    ".png": (b"\x89PNG\r\n",),
    ".webp": (b"RIFF",),
}
NUMBERS = {".safetensors", ".onnx"}
SENTENCEPIECE = {"sentencepiece.bpe.model", "spiece.model", "tokenizer.model"}
# gzip, bzip2, xz, zstd, 7z, rar, zlib: a pickle may be inside.
PACKED = (
    b"\x1f\x8b\x08",
    b"BZh",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf",
    b"Rar!",
    b"x\x01",
    b"x\x9c",
    b"x\xda",
)


def is_old_pickle(content: bytes) -> bool:
    """Whether the bytes are a pickle of protocol 0 or 1, which has no mark of its own and may be plain ASCII.

    >>> import pickle
    >>> is_old_pickle(pickle.dumps({"a": print}, protocol=0)), is_old_pickle(b"Notes. A list: 1, 2.")
    (True, False)
    """
    try:
        pickletools.dis(content, io.StringIO())
        return sum(1 for _ in pickletools.genops(content)) > 3  # "N." alone is one, too
    except Exception:  # whatever it stumbles over, these are no instructions of a pickle
        return False


def refuse_kind(name: str, content: bytes) -> None:
    """Refuse a file of a kind that no card, asset or model needs, or whose content is not of its kind.

    Raises:
        HubFolderError: the name and the cure.
    """
    path = Path(name)
    suffix = path.suffix.lower() if path.suffix.lower() != ".py" else path.suffix  # programs are ours, by their names
    if any(part.startswith(".") for part in path.parts):
        raise HubFolderError(f"{name} is hidden; nobody who looks at the folder would see it. Remove or rename it")
    if suffix in PICTURES:
        if not content.startswith(PICTURES[suffix]):
            raise HubFolderError(f"{name} is not a picture of the kind that its name says; remove it")
    elif suffix in TEXTS or path.name in PLAIN_NAMES:
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HubFolderError(f"{name} is not text in UTF-8 (byte {error.start}); convert or remove it") from None
        if b"\0" in content:
            raise HubFolderError(f"{name} is not text: it holds zero bytes; convert or remove it")
    elif not (suffix in NUMBERS or name.endswith(WEIGHTS_SUFFIX) or path.name in SENTENCEPIECE):
        raise HubFolderError(
            f"{name} is of a kind that a model folder does not need; allowed are weights, graphs, texts "
            f"({', '.join(sorted(TEXTS))}) and pictures ({', '.join(PICTURES)}). Remove it"
        )


# --- keys ----------------------------------------------------------------------------------------------------------
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
# Under these any text may stand: it is shown or compared, or the model's own classes check it.
_FREE = {"_name_or_path", "auto_map", "hf_model_config_kwargs", "hf_model_name_or_path", "torch_dtype"}
_SENTENCE = ("__version__", "default_prompt_name", "model_type", "prompts", "requirements", "similarity_fn_name")
_PROCESSORS = ("auto_map", "feature_extractor_type", "image_processor", "image_processor_type", "processor_class")
_WITH_RULES = ("config.json", "preprocessor_config.json", "processor_config.json", "config_sentence_transformers.json")
# Read by the tokenizer alone, which runs nothing: its chat template has a sandbox, and encoding never asks for it.
_OF_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
# Words in the names of what loaders look for by themselves.
_READ_BY_LOADERS = ("config", "modules", "adapter", "index", "kernel", "processor", "template", "tokenizer", "router")


@cache
def _keys() -> dict[str, frozenset[str]]:
    """The keys that this package writes, by file."""
    package = model_package()
    config = package.JinaCLIPConfig()
    parts = (config, config.text_config, config.vision_config)
    names = {name for part in parts for name in (*part.to_dict(), *type(part).__dataclass_fields__)}
    names |= {*_FREE, *_ATTENTION_KEYS}
    images = {*package.JinaCLIPImageProcessor().to_dict(), *_PROCESSORS}
    return {
        "config.json": frozenset(names),
        "preprocessor_config.json": frozenset(images),
        "processor_config.json": frozenset(images),
        "config_sentence_transformers.json": frozenset(_SENTENCE),
    }


def key_problems(name: str, value: Any) -> Iterator[str]:
    """One line for each key of a configuration that this package does not write, and that could name something.

    Args:
        name: the file's name in the folder.
        value: its content.

    >>> list(key_problems("config.json", {"kernel": {"repo": "me/x"}, "steps": 3}))
    ["config.json: kernel is {'repo': 'me/x'}, and no key of this package's; take it out, or build the folder again"]
    """
    file = Path(name).name
    yield from (f"{name}: {line}" for line in _attention_problems(value))
    if name == "modules.json" and value != MODULES:
        yield "modules.json is not the one that build writes: it could name other folders or code; build it again"
    elif name == "sentence_bert_config.json":
        own = dict(value) if isinstance(value, dict) else {}
        if any(own.pop(key, None) != wanted for key, wanted in TRANSFORMER.items()) or not _only_numbers(own):
            yield "sentence_bert_config.json is not the one that build writes; build the folder again"
    elif name in _WITH_RULES:
        for key, item in _unknown(value, _keys()[name]):
            shown = repr(item) if len(repr(item)) <= 80 else f"{repr(item)[:77]}..."
            yield f"{name}: {key} is {shown}, and no key of this package's; take it out, or build the folder again"
    elif name.endswith(".safetensors.index.json"):
        shards = value.get("weight_map") if isinstance(value, dict) else None
        plain = isinstance(shards, dict) and all(isinstance(n, str) and Path(n).name == n for n in shards.values())
        if not plain:
            yield f"{name}: weight_map must name files of this folder; build the folder again"
    elif name == "tokenizer_config.json" and isinstance(value, dict) and "fast_tokenizer_files" in value:
        yield f"{name}: fast_tokenizer_files names other files to read; take it out"
    elif name not in (*_OF_TOKENIZER, "1_Normalize/config.json") and any(word in file for word in _READ_BY_LOADERS):
        if file.endswith(".json") and name != "modules.json":
            yield f"{name} has a name that loaders look for, and is not of this package; rename or remove it"
    elif name == "1_Normalize/config.json" and not _only_numbers(value):
        yield f"{name} is not the one that build writes; build the folder again"


def without_unknown(name: str, value: Any) -> Any:
    """A configuration of a checkpoint without the keys that ``key_problems`` would name; nothing of ours reads them."""
    if name not in _WITH_RULES or not isinstance(value, dict):
        return value
    known = _keys()[name]

    def kept(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {
            key: kept(item) if key.endswith("_config") or key == "image_processor" else item
            for key, item in part.items()
            if key in known or _only_numbers(item)
        }

    return kept(value)


def _unknown(value: Any, known: frozenset[str], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items() if isinstance(value, dict) else ():
        where = f"{place}{key}"
        if key not in known:
            if not _only_numbers(item):
                yield where, item
        elif key in ("text_config", "vision_config", "image_processor"):
            yield from _unknown(item, known, f"{where}.")


def _only_numbers(value: Any) -> bool:
    """Whether a JSON value holds no text, in keys neither."""
    if isinstance(value, list):
        return all(map(_only_numbers, value))
    return value is None or value == {} or isinstance(value, int | float)


def _attention_problems(value: Any, place: str = "") -> Iterator[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        where = f"{place}.{key}" if place else str(key)
        if key in _ATTENTION_KEYS:
            names = list(item.values()) if isinstance(item, dict) else [item]
            if any(name is not None and name not in ATTENTION for name in names):
                yield f"{where} is {item!r}, which may name a kernel on the Hub; take it out"
        else:
            yield from _attention_problems(item, where)
