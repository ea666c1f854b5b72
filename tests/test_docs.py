"""The errors that the guides quote are those of the code. Their commands and snippets: tests/test_commands.py."""

import ast
import re

from tests.source_imports import ROOT, files_of

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
