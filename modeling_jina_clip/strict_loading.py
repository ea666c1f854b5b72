"""Loading that refuses to guess: a tensor without a home, or a parameter without a tensor, is an error."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class StrictLoadingMixin:
    """Put before ``PreTrainedModel``: ``from_pretrained`` raises where transformers would only report."""

    def post_init(self) -> None:
        """As ``PreTrainedModel.post_init``, but names that a part may ignore are not ignored by the whole.

        A tower leaves the other side of a composite file alone; transformers hands that list up to the composite.
        """
        super().post_init()
        handed_up = self._keys_to_ignore_on_load_unexpected
        if handed_up is not None:  # a set, and a list in older versions
            own = type(self)._keys_to_ignore_on_load_unexpected or ()
            self._keys_to_ignore_on_load_unexpected = type(handed_up)(own)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``, but missing, unexpected or misshapen tensors raise ``ValueError``.

        transformers initialises missing tensors at random and drops unexpected ones with a log line. For a retrieval
        model both give plausible, wrong vectors. Only safetensors are read: a pickle can run code.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        _refuse_pickles(source, kwargs)
        # Wrong shapes are collected too, so that one error can list everything with its sizes.
        strict = {**kwargs, "ignore_mismatched_sizes": True, "use_safetensors": True}
        try:
            model, info = super().from_pretrained(*args, output_loading_info=True, **strict)
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {str(source)!r} are broken, cut short or no safetensors: {error}; fetch them again"
            ) from error
        raise_on_mismatch(cls.__name__, info)
        return (model, info) if output_loading_info else model


def _refuse_pickles(source: Any, options: dict[str, Any]) -> None:
    """Say what to do about a folder of pickles, of which transformers would only say that no safetensors are there."""
    cure = (
        "pickles are not read because they can run code. Convert them where you trust them: "
        "save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
    if options.get("use_safetensors") is False:
        raise ValueError(f"use_safetensors=False asks for pickled weights, and {cure}")
    folder = None if source is None else Path(source) / options.get("subfolder", "")
    if folder is None or not folder.is_dir() or options.get("state_dict") is not None:
        return
    variant = f".{options['variant']}" if options.get("variant") else ""
    present = {path.name for path in folder.iterdir()}
    # transformers reads a shard by its name's ending, also one that an index of safetensors names.
    index = folder / f"model.safetensors.index{variant}.json"
    whole = f"model{variant}.safetensors" in present  # then the index is not read
    named = _shards(index) if index.is_file() and not whole else set()
    pickles = sorted(name for name in named or present if name.endswith(_PICKLES))
    if pickles and (named or not any(name.endswith(".safetensors") for name in present)):
        raise ValueError(f"the weights in {str(folder)!r} are {', '.join(pickles[:4])}, and {cure}")


def _shards(index: Path) -> set[str]:
    """The files that an index names; ``ValueError`` where it is none."""
    try:
        content = json.loads(index.read_bytes())
        names = content["weight_map"].values()
        whole = isinstance(content["metadata"], dict) and all(isinstance(name, str) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or not names:
        raise ValueError(
            f"{str(index)!r} is broken: it must be JSON with 'metadata' and a 'weight_map' from tensors to files; "
            "fetch it again with its shards"
        )
    return set(names)


def raise_on_mismatch(name: str, info: dict[str, Any]) -> None:
    """Raise ``ValueError`` listing what a loading report says is missing, unexpected or of the wrong shape."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(_describe(key) for key in info.get(kind) or ())
        if keys:
            shown = ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}: {shown}")
    if problems:
        raise ValueError(
            f"the checkpoint does not fit {name}: " + "; ".join(problems) + ". Nothing was initialised in their place; "
            "check that config.json and the weights belong together."
        )


def _describe(key: str | tuple) -> str:
    if isinstance(key, str):
        return key
    name, in_checkpoint, in_model = key
    return f"{name} (checkpoint {tuple(in_checkpoint)}, model {tuple(in_model)})"
