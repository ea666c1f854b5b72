"""Publishing the first layers of each tower: the shorter model, and what its card says about it."""

from typing import Any

from trainer_ext.hub.installed import HubFolderError, model_package

UNMEASURED = "This model has fewer layers than the one that was trained, and was not measured."


def shorten(model: Any, text_layers: int | None, image_layers: int | None) -> tuple[Any, str]:
    """The model of the first layers, and a sentence for the card; the model itself and nothing where all are kept.

    Raises:
        HubFolderError: a tower has not as many layers.
    """
    depths = _depths(model)
    if (text_layers, image_layers) == (None, None):
        return model, ""
    try:
        short = model_package().shortened(model, text_layers, image_layers)
    except (TypeError, ValueError) as error:
        raise HubFolderError(str(error)) from None
    kept = _depths(short)
    if kept == depths:
        return short, ""
    parts = [
        f"all {depths[tower]} {tower} layers"
        if kept[tower] == depths[tower]
        else f"the first {kept[tower]} of {depths[tower]} {tower} layers"
        for tower in depths
    ]
    return short, f"It has {' and '.join(parts)} of the model that was trained."


def _depths(model: Any) -> dict[str, int]:
    return {"text": model.config.text_config.num_hidden_layers, "image": model.config.vision_config.layers}
