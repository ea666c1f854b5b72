"""The errors that the guides quote are those of the code. Their commands and snippets: tests/test_commands.py."""

import ast
import re

import pytest

from tests.source_imports import ROOT, files_of
from trainer_ext.losses.joint import COLUMNS
from trainer_ext.training.monitoring import RATES

TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def quoted_errors() -> list[str]:
    return re.findall(r"^### `(.+)`$", TROUBLES, re.MULTILINE)


def spoken_texts() -> str:
    """Every string of our code, the pieces between the placeholders of f-strings each on a line of its own."""
    texts = []
    for path in [*files_of("modeling_jina_clip"), *files_of("trainer_ext"), ROOT / "hub_upload.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(" ".join(node.value.split()))
    return "\n".join(texts)


def test_quoted_errors_are_those_of_the_code() -> None:
    spoken, quoted = spoken_texts(), quoted_errors()
    assert len(quoted) > 10
    for error in quoted:
        pieces = [piece.strip() for piece in error.split("...") if piece.strip()]
        assert max(map(len, pieces)) > 12, f"{error}: too little of it is fixed to be found"
        for piece in pieces:
            assert piece in spoken, f"no code says {piece!r} of {error!r}"


def test_the_page_on_monitoring_names_what_is_logged() -> None:
    """Each side's terms, in the words of the code that makes them."""
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page.split("## Trackers")[0]))
    terms = {f"{term}_{side}" for term in ("loss", "accuracy") for side in COLUMNS}
    terms |= {f"similarity_{column}" for columns in COLUMNS.values() for column in columns}
    assert {*terms, *RATES, "loss", "temperature", "temperature_text", "stage", "learning_rate", "grad_norm"} <= named
    spoken = spoken_texts()
    for term in ("loss_", "accuracy_", "similarity_", "temperature_text", *RATES):
        assert term in spoken


@pytest.mark.parametrize("page", [path.name for path in sorted((ROOT / "docs").glob("*.md"))])
def test_sentences_are_whole(page: str) -> None:
    """No two beginnings of a sentence in a row, as a bad edit leaves them ("in 30 s. The Its metrics")."""
    text = re.sub(r"^```.*?^```", "", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"[.:] (?:The|A|An|It|Its|This|In|For|With) (?:The|An|It|Its|This|These|For|With)\b.*", text)
    assert found == []
