"""What a user sees while training runs."""

from pathlib import Path

import pytest

from tests.trainer_ext.tiny_run import RunFactory


@pytest.mark.parametrize("bar", [True, False])
def test_one_readable_line_per_log_entry(
    make_trainer: RunFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str], bar: bool
) -> None:
    make_trainer(tmp_path, f"disable_tqdm={not bar}".lower(), "stages.1.text=null").train()
    seen = capsys.readouterr()
    lines = [line.strip() for line in seen.out.splitlines() if line.strip()]
    assert [line.split(" | ")[0] for line in lines] == [
        *(f"step {step}/8 pairs" for step in (1, 2, 3)),
        *(f"step {step}/8 larger" for step in (4, 5)),
        *(f"step {step}/8 hard" for step in (6, 7, 8)),
    ]
    assert [sum(part.startswith(("image_text ", "text ")) for part in line.split(" | ")) for line in lines] == [
        2, 2, 2, 1, 1, 2, 2, 2,
    ]  # fmt: skip
    assert ("hard, image_text " in seen.err) == bar
