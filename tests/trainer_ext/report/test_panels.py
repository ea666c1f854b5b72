"""Which panels rows give: their form, order, axes, and one color a metric."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_ext.report.data import Row
from trainer_ext.report.panels import labels_of, panels_of, references_of
from trainer_ext.report.words import FigureName, plain

FIGURES = {"shop/t2i_r1": 0.2, "shop/t2i_r5": 0.5}


def test_stages_are_a_line_and_a_model_beside_them_stands_by_itself():
    rows = [Row("before", FIGURES), Row("after", FIGURES), Row("EMA", FIGURES, "model")]
    [panel] = panels_of(rows)
    assert (panel.form, panel.places, panel.loose) == ("lines", ["before", "after", "EMA"], 2)


@pytest.mark.parametrize("rows", [[Row("only", FIGURES)], [Row("a", FIGURES, "model"), Row("b", FIGURES, "model")]])
def test_alternatives_are_bars_that_start_at_zero(rows):
    [panel] = panels_of(rows)
    assert panel.form == "bars"
    assert panel.bounds()[0] == 0


def test_widths_precisions_lengths_and_parts_have_panels_of_their_own():
    names = ["shop@64", "shop@8", "shop@int8", "shop[de]", "shop[up to 512 tokens]", "shop[up to 77 tokens]"]
    names += ["shop[over 8192 tokens]"]
    row = Row("after", FIGURES | {f"{name}/t2i_r5": 0.3 for name in names})
    panels = {panel.group: panel for panel in panels_of([Row("before", FIGURES), row])}
    assert panels["width"].places == ["8", "64", "all"]
    assert panels["precision"].places == ["all", "int8"]
    assert panels["length"].places == ["up to 77 tokens", "up to 512 tokens", "over 8192 tokens"]
    assert panels["part"].places == ["de"]
    assert [panels[group].form for group in ("width", "precision", "length", "part")] == ["lines", "bars"] * 2
    assert [point.value for point in panels["width"].lines[-1].points][-1] == 50


def test_each_precision_of_the_widths_is_a_line_over_them():
    names = {"shop@64": 0.3, "shop@8": 0.1, "shop@int8": 0.45, "shop@64@int8": 0.25, "shop@8@int8": 0.05}
    row = Row("m", FIGURES | {f"{name}/t2i_r5": value for name, value in names.items()}, "model")
    panels = {panel.heading: panel for panel in panels_of([row])}
    width, coded = "shop, text to image, by width", "shop, text to image, int8, by width"
    assert list(panels) == ["shop, text to image", width, coded, "shop, text to image, by precision"]
    for heading, values in ((width, [10, 30, 50]), (coded, [5, 25, 45])):
        assert panels[heading].places == ["8", "64", "all"]
        [line] = [line for line in panels[heading].lines if line.label == "R@5"]
        assert [point.value for point in line.points] == pytest.approx(values)
    assert panels["shop, text to image, by precision"].places == ["all", "int8"]
    line = {line.label: line for line in panels["shop, text to image, by precision"].lines}["R@5"]
    assert [point.value for point in line.points] == [50, 45], "the widths are not among the precisions"


def test_one_legend_serves_all_panels():
    rows = [Row("m", FIGURES | {"words/r5": 0.1}, "model"), Row("chance", {"words/r5": 0.01}, "reference")]
    panels = panels_of(rows)
    assert labels_of(panels) == ["R@1", "R@5"]
    assert references_of(panels) == ["chance"]


def test_what_is_no_share_is_left_to_the_table():
    assert panels_of([Row("m", {"match/threshold": 0.3, "shop/t2i_median_rank": 7.0}, "model")]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 0.2))
def test_the_axis_holds_values_intervals_and_references(values, reach):
    rows = [
        Row(f"s{n}", {"a/r5": v}, intervals={"a/r5": (max(v - reach, 0), min(v + reach, 1))})
        for n, v in enumerate(values)
    ]
    [panel] = panels_of([*rows, Row("chance", {"a/r5": 0.01}, "reference")])
    low, high = panel.bounds()
    drawn = [100 * v for row in rows for v in (row.metrics["a/r5"], *row.intervals["a/r5"])] + [1.0]
    assert 0 <= low <= min(drawn)
    assert max(drawn) <= high <= 101.0
    assert high - low < 1.3 * (max(drawn) - min(drawn)) + 2.5 or panel.form == "bars", "the axis fits the values"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_name_is_taken_apart_and_any_text_becomes_plain(text):
    FigureName.of(text)
    words = plain(text, 20)
    assert len(words) <= 20
    assert words.isprintable() or all(char.isprintable() or ord(char) > 0xA0 for char in words)
    assert words.encode().decode() == words
