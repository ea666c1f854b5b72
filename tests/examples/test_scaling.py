"""docs/scaling.md: fits find what made the points, arithmetic is that of counted models, the page is the script's."""

import numpy as np
import pytest
import torch
import yaml

from examples.study import scaling
from examples.study.rows import ROWS, read_rows
from examples.study.run import ARMS
from examples.study.tables import BLOCK, COLUMNS, runs_of
from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel
from trainer_ext.recipe.reading import find_resource

CONTENT = yaml.safe_load(ARMS.read_text(encoding="utf-8"))


def test_a_fit_finds_the_curve_and_says_what_is_left() -> None:
    xs = [100, 200, 400, 800]
    clean = [100 - 90 * x**-0.2 for x in xs]
    found = scaling.fit(xs, clean)
    assert (found.scale, found.power) == pytest.approx((90, 0.2))
    assert found.residuals == pytest.approx([0] * 4, abs=1e-9)
    moved = [clean[0] + 3, *clean[1:]]
    left = scaling.fit(xs, moved)
    assert [figure - residual for figure, residual in zip(moved, left.residuals, strict=True)] == pytest.approx(
        [left.at(x) for x in xs]
    )
    assert max(map(abs, left.residuals)) > 0.5
    with pytest.raises(ValueError, match="2 points are too few"):
        scaling.fit([1, 2], [3, 4])


def test_the_weights_of_the_blocks_are_those_of_the_model() -> None:
    config = JinaCLIPConfig.from_json_file(find_resource("models", "jina-clip-v1"))
    with torch.device("meta"):
        model = JinaCLIPModel(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.ndim == 2}
    vision = sum(size for name, size in sizes.items() if "vision_model.blocks" in name)
    text = sum(size for name, size in sizes.items() if "text_model" in name and "layer" in name)
    assert vision == pytest.approx(scaling.IMAGE_BLOCKS, rel=0.01)
    assert text == pytest.approx(scaling.TEXT_BLOCKS, rel=0.01)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(scaling.WEIGHTS, rel=0.01)


def test_the_first_stage_is_the_papers_own_hours() -> None:
    """The calibration gives back what it was taken from, and costs grow with what they should grow with."""
    first = scaling.STAGES["1"]
    assert scaling.card_hours([first], scaling.CARDS["H100 SXM"]) / 8 == pytest.approx(first.hours)
    assert scaling.card_hours([first, first], 100) == pytest.approx(2 * scaling.card_hours([first], 100))
    assert scaling.card_hours([first], 100) == pytest.approx(2 * scaling.card_hours([first], 200))
    one, two = (scaling.forward_gflop(tokens, scaling.TEXT_BLOCKS) for tokens in (77, 154))
    assert 2 * one < two < 2.1 * one


def test_the_network_of_one_node_by_hand() -> None:
    line = scaling.network(32768)[2]
    vectors = 3 * 7 / 8 * 32768 * 4 * 768 * 4 / 1e9
    gradients = 2 * 7 / 8 * 223e6 * 4 / 1e9
    assert f"| {vectors:.2f} | {gradients:.2f} |" in line


def test_fits_need_three_arms() -> None:
    def row(arm: str, value: float) -> dict:
        return {"arm": arm, "seed": 1, "figures": {"test": {name: value for _, name in COLUMNS.values()}}}

    rows = [row("joint_15", 0.1), row("joint_30", 0.2)]
    curve = CONTENT["curves"]["samples"]
    assert scaling.fits(runs_of(rows), curve["arms"], curve["unit"]) == ["Not measured yet: 2 of 5 arms have rows."]
    lines = scaling.fits(runs_of([*rows, row("joint_60", 0.3)]), curve["arms"], curve["unit"])
    power = -np.polyfit(np.log([960, 1920, 3840]), np.log([90, 80, 70]), 1)[0]
    assert f"| concepts | 10.0 | 20.0 | 30.0 | {power:.3f} |" in lines[2]


def test_decoding_is_measured_on_pictures_of_a_photographs_size() -> None:
    found = scaling.decoding(pictures=5)
    assert 10_000 < found["bytes"] < 60_000
    assert found["pictures_per_cpu_second"] > 1


def test_the_pages_tables_are_those_of_the_script() -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.with_tables(page, CONTENT, read_rows(ROWS)) == page, "run: python examples/study/scaling.py"
    made = {"budget", "check", "network", "memory", "loss", "reading", *CONTENT["curves"]}
    assert {block[2] for block in BLOCK.finditer(page)} == made
