"""Held-out rows: nothing of theirs is trained on, and the same rows every time."""

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from trainer_ext.data import holdout
from trainer_ext.data.formats import DataError
from trainer_ext.data.holdout import hold_out, load_with_holdout, picture_content, picture_sizes, row_marks
from trainer_ext.recipe.schema import Source


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Pictures.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(numbers: list[int], captions: list[str], paths: list[str] | None = None) -> Dataset:
    cells = (
        [{"bytes": png(number), "path": None} for number in numbers]
        if paths is None
        else [{"bytes": None, "path": path} for path in paths]
    )
    features = Features({"image": Image(decode=False), "caption": Value("string")})
    return Dataset.from_dict({"image": cells, "caption": captions}, features=features).cast_column("image", Image())


def component_sizes(pairs: list[tuple[int, int]]) -> list[int]:
    """Rows of each group, by the slow way: merge until nothing changes."""
    groups: list[tuple[set[str], int]] = []
    for query, answer in pairs:
        keys, size = {f"q{query}", f"a{answer}"}, 1
        for other in [group for group in groups if group[0] & keys]:
            groups.remove(other)
            keys, size = keys | other[0], size + other[1]
        groups.append((keys, size))
    return [size for _, size in groups]


def stored(rows: Dataset) -> set[bytes]:
    return {cell["bytes"] for cell in rows.cast_column("image", Image(decode=False))["image"]}


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=8, max_size=40),
    share=st.sampled_from([0.1, 0.25, 0.5]),
)
def test_no_text_is_on_both_sides(texts: list[tuple[int, int]], share: float) -> None:
    table = Dataset.from_dict(
        {"query": [f"Question {query}" for query, _ in texts], "positive": [f"answer {answer}" for _, answer in texts]}
    )
    sizes = component_sizes(texts)
    if min(sizes) > max(1, round(share * len(texts))):
        with pytest.raises(DataError, match="holdout"):
            hold_out("pairs", table, share)
        return
    train, held = hold_out("pairs", table, share)
    assert len(train) + len(held) == len(table)
    assert 0 < len(held) <= max(1, round(share * len(table)))
    for column in ("query", "positive"):
        assert not set(train[column]) & set(held[column])
    assert sorted([*train["row"], *held["row"]]) == list(range(len(table)))


def test_the_same_rows_in_another_order_and_under_another_name() -> None:
    texts = [f"text {number}" for number in range(50)]
    one = Dataset.from_dict({"query": texts, "positive": [f"to {text}" for text in texts]})
    other = one.select(list(reversed(range(50))))
    assert set(hold_out("a", one, 0.2)[1]["query"]) == set(hold_out("b", other, 0.2)[1]["query"])


def test_a_copy_of_a_picture_under_another_name_stays_with_it(tmp_path: Path) -> None:
    paths = []
    for number in range(20):
        for copy in ("a", "b"):
            path = tmp_path / f"{copy}{number}.png"
            path.write_bytes(png(number))
            paths.append(str(path))
    table = pictures([], [f"caption {number}" for number in range(40)], paths)
    train, held = hold_out("photos", table, 0.25)

    def numbers(rows: Dataset) -> set[str]:
        cells = rows.cast_column("image", Image(decode=False))["image"]
        return {Path(cell["path"]).stem[1:] for cell in cells}

    assert len(held) == 10
    assert not numbers(train) & numbers(held)


def test_case_and_spacing_do_not_make_another_text() -> None:
    table = pictures(list(range(40)), [f"A  Red\tbar {number // 2}" if number % 2 else f"a red BAR {number // 2}"
                                       for number in range(40)])  # fmt: skip
    train, held = hold_out("photos", table, 0.3)
    folded = [{" ".join(text.casefold().split()) for text in rows["caption"]} for rows in (train, held)]
    assert len(held) == 12
    assert not folded[0] & folded[1]
    assert not stored(train) & stored(held)


def test_a_text_that_many_share_is_trained_on_and_the_others_are_held_out() -> None:
    """Nor do signs make another text; a group of its own is too large to be held out."""
    pairs = [(f"is it {n}?", "Yes." if n % 2 else "yes") for n in range(50)]
    pairs += [(f"q{n}", f"a{n}") for n in range(20)]
    train, held = hold_out("quiz", Dataset.from_list([{"query": q, "positive": a} for q, a in pairs]), 0.1)
    assert set(train["row"][:50]) == set(range(50))
    assert len(held) == 7
    assert min(held["row"]) >= 50


def test_rows_that_hang_together_through_others_are_on_one_side() -> None:
    """A chain: each row shares a text with the next one, the ends share nothing."""
    chain = [{"query": f"link {n}", "positive": f"link {n + 1}"} for n in range(4)]
    rows = [*chain, *({"query": f"q{n}", "positive": f"a{n}"} for n in range(36))]
    for share in (0.1, 0.2, 0.5):
        held = set(hold_out("quiz", Dataset.from_list(rows), share)[1]["row"])
        assert len(held) == share * 40
        assert held & set(range(4)) in (set(), set(range(4)))


def test_equal_ids_stay_together() -> None:
    table = Dataset.from_dict({"query": list("abcdefgh"), "positive": list("ijklmnop"), "id": [1, 1, 2, 2, 3, 3, 4, 4]})
    train, held = hold_out("pairs", table, 0.5)
    assert not set(train["id"]) & set(held["id"])
    assert len(held) == 4


def test_rows_that_all_hang_together_are_refused_with_their_number() -> None:
    table = Dataset.from_dict({"query": [f"q{number}" for number in range(30)], "positive": ["yes"] * 30})
    with pytest.raises(DataError, match=r"'quiz': holdout 0\.1 asks for 3 of 30 rows, .* has 30"):
        hold_out("quiz", table, 0.1)


def test_sources_without_a_share_are_read_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("q,a\n" + "".join(f"question {n},answer {n}\n" for n in range(20)))
    common = {"task": "text-pair", "location": str(file), "format": "csv", "columns": {"query": "q", "positive": "a"}}
    whole, part = Source(name="whole", **common), Source(name="part", holdout=0.25, **common)
    rows, held = load_with_holdout([whole, part])
    assert set(held) == {"part"}
    assert (len(rows["whole"]), len(rows["part"]), len(held["part"])) == (20, 15, 5)


@pytest.mark.parametrize("as_files", [False, True])
def test_pictures_of_other_sizes_are_not_read(tmp_path: Path, as_files: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(9)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(png(number) + b"." * (number % 3))
    table = pictures(list(range(9)), ["x"] * 9, paths if as_files else None)
    marks, sizes = list(row_marks(table)), picture_sizes(table)
    lengths = [Path(path).stat().st_size if as_files else len(png(number)) for number, path in enumerate(paths)]
    assert (None in marks, len(set(marks)), sizes) == (False, 9, set(lengths))
    wanted = {lengths[4]}
    read: list[int] = []
    monkeypatch.setattr(holdout, "picture_content", lambda cell: read.append(1) or picture_content(cell))
    few = list(row_marks(table, wanted))
    assert few == [mark if length in wanted else None for mark, length in zip(marks, lengths, strict=True)]
    assert len(read) == lengths.count(lengths[4])
