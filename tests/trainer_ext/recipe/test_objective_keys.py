"""Objectives that cannot be trained are refused when the recipe is loaded, with the value and the cure."""

import re
import shutil
from pathlib import Path

import pytest

from tests.trainer_ext.losses.test_joint_options import CONTRASTED, IMAGES, PAIRS, QUIET, SCORED, TRIPLETS
from tests.trainer_ext.recipe_trees import write
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.schema import CAPTION_KEYS, LOSS_RULES, Matryoshka, ShortCaption, SideLoss

SHORT = ", short_caption: {{principal_components: {}}}"

REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown loss": ([IMAGES % ", loss: siglop"], "Did you mean 'siglip'?"),
    "siglip of texts": ([PAIRS % ", loss: siglip"], "no place for hard negatives; the text side takes 'info_nce' or"),
    "cosent of images": (
        [IMAGES % ", loss: cosent"],
        "'cosent' needs scored pairs of texts; the image_text side",
    ),
    "cosent of pairs": ([PAIRS % ", loss: cosent"], "has task text-pair, but text with loss cosent needs task scored"),
    "directions of siglip": (
        [IMAGES % ", loss: siglip, directions: forward"],
        "directions: is 'forward', but siglip compares pairs and has no directions. Take it out.",
    ),
    "reduction of cosent": ([SCORED % ", reduction: mean"], "reduction: is 'mean', but cosent compares pairs"),
    "backward with negatives": ([TRIPLETS % ", directions: backward"], "leaves all hard negatives out. Use 'both'"),
    "trained cosent": ([SCORED % ", temperature: trained"], "it would fall without end. Give a number."),
    "smoothing of siglip": (
        [IMAGES % ", loss: siglip, label_smoothing: 0.1"],
        "label_smoothing: is 0.1, but siglip has no softmax over candidates. Take it out.",
    ),
    "hardness of cosent": (
        [SCORED % ", hardness: 5.0"],
        "hardness: is 5.0, but cosent has no softmax over candidates.",
    ),
    "alignment of scored pairs": (
        [SCORED % ", alignment: 1.0"],
        "alignment: is 1.0, but cosent is for pairs that are not all true. Take it out.",
    ),
    "smoothing of all": ([PAIRS % ", label_smoothing: 1.0"], "text.label_smoothing: must be less than 1"),
    "negative weight": ([PAIRS % ", uniformity: -1.0"], "text.uniformity: must be greater than or equal to 0"),
    "no negatives": (
        [IMAGES % ", loss: info_nce_plus"],
        "image_text.sources.0: 'pictures' maps no column negatives, which loss info_nce_plus needs. Add negatives:",
    ),
    "images without negatives backward": (
        [CONTRASTED % ", directions: backward"],
        "image_text.directions: is 'backward', which leaves all hard negatives out. Use 'both'",
    ),
    "prompt of negatives": (
        ["sources.contrasted.prompts={negatives: 'a '}"],
        "prompts.negatives: task image-text has prompts for caption. Negatives get the prompt of caption.",
    ),
    "temperature": ([PAIRS % ", temperature: 0"], "text.temperature: must be a number above 0 or 'trained', got 0."),
    "word for a temperature": (
        [PAIRS % ", temperature: train"],
        "temperature: must be a number above 0 or 'trained', got 'train'",
    ),
    "no captions": (
        [IMAGES % ", captions_per_image: 0"],
        "captions_per_image: must be greater than or",
    ),
    "captions without end": (
        [IMAGES % ", captions_per_image: 101"],
        "captions_per_image: must be less than or",
    ),
    "captions of texts": (
        [PAIRS % ", captions_per_image: 2"],
        "stages.0.text.captions_per_image: is for the captions of pictures; this side has none. Take it out.",
    ),
    "sentences of texts": ([PAIRS % ", split_captions: sentences"], "text.split_captions: is for the captions of"),
    "parts of captions": ([IMAGES % ", split_captions: words"], "image_text.split_captions: must be 'sentences'"),
    "captions beside negatives": (
        [CONTRASTED % ", captions_per_image: 2"],
        "image_text.captions_per_image: is 2, and info_nce_plus contrasts whole captions with the row's",
    ),
    "sentences beside negatives": (
        [CONTRASTED % ", split_captions: sentences"],
        "image_text.split_captions: is 'sentences', and info_nce_plus contrasts whole captions",
    ),
    "short caption of texts": ([PAIRS % SHORT.format(3)], "text.short_caption: is for the captions of pictures"),
    "short caption beside negatives": (
        [CONTRASTED % SHORT.format(3)],
        "short_caption: is {'principal_components': 3, 'weight': 1.0}, and info_nce_plus contrasts whole captions",
    ),
    "no components": ([IMAGES % SHORT.format(0)], "short_caption.principal_components: must be greater than 0"),
    "no number": ([IMAGES % ", short_caption: {weight: 1.0}"], "short_caption.principal_components: is required"),
    "more components than pictures": (
        [IMAGES % SHORT.format(5)],
        "stages.0.image_text.short_caption.principal_components: is 5, but vectors of 16 numbers of 4 pictures have at "
        "most 4. Use at most 4.",
    ),
    "more components than pictures of a micro-batch": (
        [IMAGES % SHORT.format(3), "gradient_accumulation_steps=2"],
        "principal_components: is 3, but vectors of 16 numbers of 2 pictures have at most 2.",
    ),
    "more components than numbers": (
        ["stages.0.image_text={sources: [pictures], batch_size: 20, short_caption: {principal_components: 17}}"],
        "principal_components: is 17, but vectors of 16 numbers of 20 pictures have at most 16.",
    ),
    "no dims": (["matryoshka={dims: []}"], "matryoshka.dims: List should have at least 1 item"),
    "dims too large": (
        ["matryoshka={dims: [16, 64]}"],
        "matryoshka.dims: [64] are larger than the model's embedding of 16",
    ),
    "whole embedding": (
        ["matryoshka={dims: [8, 4]}"],
        "leaves out the embedding's dimensions from 8 on: nothing would train them. Add 16.",
    ),
    "dims twice": (["matryoshka={dims: [16, 16]}"], "matryoshka.dims: [16, 16] holds a dimension twice."),
    "weights": (["matryoshka={dims: [16, 4], weights: [1.0]}"], "matryoshka.weights: has 1 weights for 2 dims."),
    "dims of a side": (
        [PAIRS % ", matryoshka: {dims: [99, 16]}"],
        "stages.0.text.matryoshka.dims: [99] are larger than the model's embedding of 16",
    ),
    "truncated evaluation": (
        ["evaluation={suite: openmoji, truncate_dims: [32]}"],
        "evaluation.truncate_dims: [32] are larger than the model's embedding of 16. Use dims of at most 16.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_at_load(tiny_recipe: Path, case: str) -> None:
    overrides, words = REFUSED[case]
    sides = [IMAGES % "", PAIRS % ""]
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe, [*QUIET, *sides, *overrides])
    assert words in str(caught.value)


GUIDE = (Path(__file__).parents[3] / "docs" / "losses.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split()[1])
def test_recipes_of_the_guide_load(tmp_path: Path, snippet: str) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    shutil.copy(find_resource("models", "openmoji-small"), teacher / "config.json")
    recipe = load_recipe(write(tmp_path, snippet.replace("outputs/openmoji", str(teacher))))
    assert {source.name for source in recipe.used_sources()} <= {source.name for source in recipe.sources}


def test_guide_shows_every_loss_and_names_every_option() -> None:
    own = (*SideLoss.model_fields, *CAPTION_KEYS, *ShortCaption.model_fields, *Matryoshka.model_fields)
    for name in (*own, "text_temperature", "false_negatives", "tile_size"):
        assert re.search(rf"`{name}`|{{{name}: |, {name}: ", GUIDE), f"docs/losses.md does not explain {name}"
    for loss in LOSS_RULES:
        assert f"`{loss}`" in GUIDE
    assert {"siglip", "cosent"} <= set(re.findall(r"loss: (\w+)", "".join(SNIPPETS)))
