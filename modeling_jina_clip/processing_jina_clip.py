"""Texts as callers pass them, and the processor: texts to token ids and images to pixels in one call."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import count, islice
from typing import Any
from weakref import WeakSet

import numpy as np
import transformers
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from .configuration_jina_clip import OLDEST_TRANSFORMERS, require_version
from .image_processing_jina_clip import brief, refuse_tables

# isort: split
# Of a local folder, transformers 5.5 copies only the files that the processor's own file imports.
from .image_urls import fetch_url as fetch_url

# AutoProcessor may load this file without the configuration's check.
require_version("transformers", transformers.__version__, OLDEST_TRANSFORMERS)

logger = logging.get_logger(__name__)

# Every door cuts a text after so many tokens unless its caller asks for more: the default of the published encode_text.
MAX_LENGTH = 512
_WARNED: WeakSet[Any] = WeakSet()  # tokenizers of which it was said that they cut texts
# A fast tokenizer keeps truncation and padding as state: of two threads, one would cut its texts as the other asks.
TOKENIZER_LOCK = threading.RLock()
_IMAGE_ARGUMENTS = frozenset({"size", "allow_urls"})
MOST_PADDED = 2**20  # tokens; a tokenizer that gets no memory ends the whole process
# Texts that are tokenized at once, and sorted by length among each other.
WINDOW = 4096
# What the tokenizer is asked; other arguments of it give other than one row a text, or are ignored by it in silence.
TEXT_OPTIONS = ("padding", "truncation", "max_length", "add_special_tokens", "pad_to_multiple_of", "padding_side")
_OUTPUTS = ("tensors", "attention_mask", "token_type_ids", "special_tokens_mask", "offsets_mapping", "length")
_PROCESSOR_OPTIONS = (*TEXT_OPTIONS, *(f"return_{name}" for name in _OUTPUTS), "verbose")


def list_of_texts(texts: Any) -> tuple[bool, list[str]]:
    """Whether ``texts`` is a single string, and the strings as a list.

    Raises ``TypeError`` with the position of an item that is not a string.

    Example::

        >>> list_of_texts("a cat"), list_of_texts(text for text in ("a", "b")), list_of_texts({1: "a"}.values())
        ((True, ['a cat']), (False, ['a', 'b']), (False, ['a']))
    """
    if isinstance(texts, np.ndarray) and not texts.ndim:
        texts = texts.item()
    if isinstance(texts, str):
        return True, _checked_texts([texts])
    refuse_tables(texts, "texts")
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, bytearray, Mapping)):
        raise TypeError(f"encode_text takes strings, got {brief(texts)}; pass a string or a list of them")
    return False, _checked_texts(list(texts))


def text_windows(texts: Any, size: int = WINDOW) -> tuple[bool, int | None, Iterator[list[str]]]:
    """Whether ``texts`` is one string; how many there are, if known; and the texts, ``size`` at a time, read as needed.

    Raises ``TypeError`` or ``ValueError`` naming the position of what is not a text.
    """
    if isinstance(texts, Iterator):

        def read() -> Iterator[list[str]]:
            for position in count(0, size):
                window = list(islice(texts, size))
                if not window:
                    return
                yield _checked_texts(window, position)

        return False, None, read()
    single, found = list_of_texts(texts)
    return single, len(found), (found[begin : begin + size] for begin in range(0, len(found), size))


def _checked_texts(texts: list[Any], begin: int = 0) -> list[str]:
    for position, text in enumerate(texts, begin):
        if not isinstance(text, str):
            raise TypeError(f"encode_text takes strings, got {brief(text)} at position {position}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text at position {position} holds half a letter (U+{ord(text[error.start]):04X}) at character "
                f"{error.start}: cut or decoded with surrogates; decode again, or text.encode(errors='ignore').decode()"
            ) from None
    return texts


def check_text_options(options: Mapping[str, Any], known: Sequence[str] = TEXT_OPTIONS) -> None:
    """Raise for options that a tokenizer would ignore, or that would give other than one row a text."""
    for name, value in options.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise TypeError(f"texts have no option {name!r} ({value!r}){hint} They have {', '.join(known)}")
    if options.get("truncation") == "only_second":
        raise ValueError("truncation='only_second' cuts the second of two texts, and here each is alone; pass True")
    longest = MOST_PADDED if options.get("padding") == "max_length" else 2**63
    for name, least, most in (("max_length", 3, longest), ("pad_to_multiple_of", 1, MOST_PADDED)):
        value = options.get(name)
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and not (whole and least <= value <= most):
            high = f", and at most {most:,}" if most == MOST_PADDED or (whole and value > most) else ""
            raise ValueError(f"{name}={value!r} must be at least {least}{high}")


def tokenize(processor: Any, texts: Any, options: Mapping[str, Any]) -> tuple[Any, int]:
    """What the processor's tokenizer makes of ``texts``, and how many of them were cut without ``max_length``."""
    whole = options.get("truncation", True) in (False, "do_not_truncate") and options.get("padding") != "max_length"
    asked = whole or options.get("max_length") is not None
    limit = {} if asked else {"max_length": text_limit(processor)}
    with TOKENIZER_LOCK:
        try:
            asked_for = {"truncation": True, "return_token_type_ids": False, **options, **limit}
            found = processor.tokenizer(texts, **asked_for)
        except Exception as error:  # of as many kinds as there are options
            raise ValueError(f"the tokenizer takes no texts with {dict(options)}: {error}") from error
    return found, 0 if asked else sum(bool(one.overflowing) for one in getattr(found, "encodings", None) or ())


def text_limit(processor: Any) -> int:
    """Tokens after which a text is cut unless ``max_length`` says otherwise."""
    return getattr(processor, "max_length", MAX_LENGTH)


def warn_of_cut(processor: Any, cut: int, texts: int) -> None:
    """Say once for each tokenizer that some of the texts were cut."""
    if cut and processor.tokenizer not in _WARNED:
        _WARNED.add(processor.tokenizer)
        logger.warning(
            f"{cut:,} of {texts:,} texts are longer than {text_limit(processor)} tokens, and were cut there; pass "
            "max_length= to embed more of them (in sentence-transformers, set model.max_seq_length)"
        )


class JinaCLIPProcessor(ProcessorMixin):
    """A tokenizer and a ``JinaCLIPImageProcessor`` in one object, as returned by ``AutoProcessor``.

    Example::

        processor = JinaCLIPProcessor(JinaCLIPImageProcessor(size=224), tokenizer)
        inputs = processor(text=["a red bus"], images=[image], padding=True, return_tensors="pt")
        inputs.keys()  # input_ids, attention_mask, pixel_values
    """

    attributes = ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer)
        self.max_length = min(MAX_LENGTH, getattr(tokenizer, "model_max_length", MAX_LENGTH))

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Preprocess ``text``, ``images`` or both.

        An empty list gives empty tensors: (0, 0) for texts and (0, 3, size, size) for images. Texts are cut to
        ``self.max_length`` tokens unless ``max_length`` or ``truncation=False`` is given.

        Flat keyword arguments go to the tokenizer (``padding``, ``truncation``, ``max_length``, ...) or to the image
        processor (``size``, ``allow_urls``), and ``return_tensors`` to both. The nested forms are those of
        ``ProcessorMixin``; sentence-transformers always passes all of them, including audio and video.

        With ``allow_urls=True`` images may be http(s) URLs. The nested forms do not accept it: sentence-transformers
        fills them from a file of the model's repository, which must not be able to switch the network on.
        """
        if "allow_urls" in {**(common_kwargs or {}), **(images_kwargs or {})}:
            raise ValueError("allow_urls is an argument of the call only: processor(images=..., allow_urls=True)")
        if text is None and images is None:
            raise ValueError("JinaCLIPProcessor needs text, images or both; got neither")
        common = dict(common_kwargs or {})
        return_tensors = kwargs.pop("return_tensors", common.pop("return_tensors", None))
        for_images = {key: kwargs.pop(key) for key in _IMAGE_ARGUMENTS & kwargs.keys()}
        data: dict[str, Any] = {}
        if text is not None:
            options = {**common, **kwargs, **(text_kwargs or {})}
            options.setdefault("return_tensors", return_tensors)
            check_text_options(options, _PROCESSOR_OPTIONS)
            single, texts = list_of_texts(text)
            if texts:
                tokens, cut = tokenize(self, texts[0] if single else texts, options)
                warn_of_cut(self, cut, len(texts))
                data |= tokens
            else:
                data |= _no_tokens(options)
        if images is not None:
            options = {**for_images, **(images_kwargs or {})}
            options.setdefault("return_tensors", return_tensors)
            data |= self.image_processor(images, **options)
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def _no_tokens(options: dict[str, Any]) -> dict[str, Any]:
    """The output for an empty list of texts, which tokenizers do not accept."""
    types = ["token_type_ids"] if options.get("return_token_type_ids") else []
    names = ["input_ids", *types, *([] if options.get("return_attention_mask") is False else ["attention_mask"])]
    empty: Any = np.empty((0, 0), dtype=np.int64) if options.get("return_tensors") else []
    return dict(BatchFeature(dict.fromkeys(names, empty), tensor_type=options.get("return_tensors")))
