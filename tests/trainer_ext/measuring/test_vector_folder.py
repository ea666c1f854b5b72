"""A folder of vectors is of one model and one setup."""

from pathlib import Path

import pytest

from trainer_ext.measuring.vector_folder import begin_folder


def test_a_folder_is_gone_on_with_only_as_it_began(tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "vectors"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    begin_folder(folder, str(model), {"text": "body"})
    begin_folder(folder, str(model), {"text": "body"})
    with pytest.raises(ValueError, match=r"vectors of another text; give another folder"):
        begin_folder(folder, str(model), {"text": "title"})
    (model / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ValueError, match="vectors of another model"):
        begin_folder(folder, str(model), {"text": "body"})


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else; give an empty folder"):
        begin_folder(tmp_path, "me/model", {})
