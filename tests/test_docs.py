"""The guides' promises: their snippets and commands run, and the errors they quote are those of the code."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.source_imports import ROOT, files_of
from tests.workspace import blocks, commands, make_workspace, run, run_online

MIGRATION = blocks("docs/migration.md", "python")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("checkout"))


@pytest.mark.parametrize("number", range(len(MIGRATION)))
def test_migration_snippets_run(number: int, workspace: Path) -> None:
    run(["-c", MIGRATION[number]], workspace)


@pytest.mark.slow
def test_publishing_commands_run_in_the_order_they_stand(workspace: Path) -> None:
    """Each push meets an empty Hub, which has no branch that a pull request or another revision could start from."""
    ran = []
    for words in commands("docs/publishing.md"):
        if words[0] != "python" or {"--create_pr", "--revision"} & set(words):
            continue  # tests/test_hub_upload_push.py
        words = [sys.executable if word.endswith("/bin/python") else word for word in words[1:]]
        (run_online if "push" in words else run)(words, workspace)
        ran.append(words[1])
    assert {"build", "verify", "push"} <= set(ran)


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
