"""Publishing the first layers of each tower: the shorter model, and what its card says about it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer_ext.hub.installed import HubFolderError, model_package

UNMEASURED = "This model has fewer layers than the one that was trained, and was not measured."


class Cut(NamedTuple):
    """How many layers of each tower, ``text`` and ``image``, were kept, and how many there were."""

    kept: Mapping[str, int]
    depths: Mapping[str, int]

    def words(self, trained: Mapping[str, Sequence[int]]) -> str:
        """Two sentences for the card; ``trained`` are the layers that training prepared to be the last, by tower.

        >>> cut = Cut({"text": 12, "image": 8}, {"text": 12, "image": 12})
        >>> cut.words({"image": [4, 8, 12]})
        'It has all 12 text layers and the first 8 of 12 image layers of the model that was trained.
        Training prepared it for that (2D Matryoshka).'
        """
        parts = [
            f"all {depth} {tower} layers"
            if self.kept[tower] == depth
            else f"the first {self.kept[tower]} of {depth} {tower} layers"
            for tower, depth in self.depths.items()
        ]
        whole = f"It has {' and '.join(parts)} of the model that was trained."
        bare = [
            tower
            for tower, depth in self.depths.items()
            if self.kept[tower] < depth and self.kept[tower] not in trained.get(tower, ())
        ]
        if not bare:
            return f"{whole} Training prepared it for that (2D Matryoshka)."
        return f"{whole} Training did not prepare the {' and the '.join(bare)} tower for that, so expect worse results."


def shorten(model: Any, text_layers: int | None, image_layers: int | None) -> tuple[Any, Cut | None]:
    """The model of the first layers, and what was cut; the model itself and None where all are kept.

    Raises:
        HubFolderError: a tower has not as many layers.
    """
    depths = _depths(model)
    if (text_layers, image_layers) == (None, None):
        return model, None
    try:
        short = model_package().shortened(model, text_layers, image_layers)
    except (TypeError, ValueError) as error:
        raise HubFolderError(str(error)) from None
    kept = _depths(short)
    return short, None if kept == depths else Cut(kept, depths)


def layers_of(recipe: Mapping[str, Any]) -> dict[str, list[int]]:
    """The layers of each tower that a recorded recipe trains, one list for both or one for each.

    >>> layers_of({"matryoshka": {"dims": [64], "layers": {"text": None, "image": [2, 4]}}})
    {'image': [2, 4]}
    """
    layers = (recipe.get("matryoshka") or {}).get("layers") or {}
    by_tower = {"text": layers, "image": layers} if isinstance(layers, list) else layers
    return {tower: list(given) for tower, given in by_tower.items() if given}


def _depths(model: Any) -> dict[str, int]:
    return {"text": model.config.text_config.num_hidden_layers, "image": model.config.vision_config.layers}
