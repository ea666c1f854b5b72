"""Loading that refuses to guess: a tensor without a home, or a parameter without a tensor, is an error."""

from typing import Any


class StrictLoadingMixin:
    """Put before ``PreTrainedModel``: ``from_pretrained`` raises where transformers would only report."""

    def post_init(self) -> None:
        """As ``PreTrainedModel.post_init``, but names that a part may ignore are not ignored by the whole.

        A tower leaves the other side of a composite file alone; transformers hands that list up to the composite.
        """
        super().post_init()
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected or ())

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As ``PreTrainedModel.from_pretrained``, but missing, unexpected or misshapen tensors raise ``ValueError``.

        transformers initialises missing tensors at random and drops unexpected ones with a log line. For a retrieval
        model both give plausible, wrong vectors.
        """
        # Wrong shapes are collected too, so that one error can list everything with its sizes.
        model, info = super().from_pretrained(
            *args, output_loading_info=True, **{**kwargs, "ignore_mismatched_sizes": True}
        )
        raise_on_mismatch(cls.__name__, info)
        return (model, info) if output_loading_info else model


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
