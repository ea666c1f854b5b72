"""Plain data: they read back equal, whatever texts and numbers are in them, and foreign files are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer_ext.report.samples import page
from trainer_ext.report.data import Histogram, Row, TaskDetails, load_details, read_json, save_details, to_json

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
VALUES = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.dictionaries(TEXTS, VALUES, max_size=4), st.tuples(VALUES, VALUES))
def test_a_page_reads_back_equal(words, metrics, interval):
    data = page(words)
    data.rows.append(Row(words, metrics, "model", {"a/r5": interval}))
    assert read_json(to_json(data)) == data


def test_details_read_back_equal_and_are_none_where_no_file_is(tmp_path):
    details = page().details
    assert load_details(tmp_path) == []
    save_details(tmp_path, details)
    assert load_details(tmp_path) == details


@pytest.mark.parametrize("content", [b"{", b"{}", b'[{"task": 1}]', b'[{"task": "a", "histograms": [{"label": "x"}]}]'])
def test_a_foreign_file_of_details_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "details.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read .*details.json .*: move it away"):
        load_details(tmp_path)


def test_a_histogram_has_one_edge_more_than_counts():
    with pytest.raises(ValueError, match="2 edges for 2 counts"):
        Histogram("true pairs", [0.0, 1.0], [1, 2])
    assert TaskDetails("a").histograms == []
