"""Publishing fewer layers: the folder, its card, and the vectors by every door."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from sentence_transformers import SentenceTransformer

import hub_upload
from hub_upload import HubFolderError, build, verify
from modeling_jina_clip import JinaCLIPModel, shortened
from tests.hub_checkpoint import finished_run, run_record, v2_checkpoint

TEXTS = ["a red bus", "two people dancing"]


@pytest.fixture(scope="module")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(golden, tmp_path_factory.mktemp("layers") / "run")


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkpoint, tmp_path_factory.mktemp("layers") / "hub", text_layers=1, image_layers=1)


def test_all_doors_give_the_vectors_of_the_first_layers(checkpoint: Path, folder: Path) -> None:
    pictures = [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")]
    expected = shortened(JinaCLIPModel.from_pretrained(checkpoint), 1, 1)
    model = JinaCLIPModel.from_pretrained(folder)
    encoder = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert model.config.text_config.num_hidden_layers == model.config.vision_config.layers == 1
    texts, images = expected.encode_text(TEXTS), expected.encode_image(pictures)
    for vectors in (model.encode_text(TEXTS), encoder.encode(TEXTS)):
        assert np.allclose(vectors, texts, atol=1e-6)
    for vectors in (model.encode_image(pictures), encoder.encode(pictures)):
        assert np.allclose(vectors, images, atol=1e-6)


def test_the_card_says_what_was_kept_and_shows_no_figures_of_the_whole(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    words = "It has the first 1 of 2 text layers and the first 1 of 2 image layers of the model that was trained."
    assert words in card.text
    assert "Training did not prepare the text and the image tower for that, so expect worse results." in card.text
    assert "fewer layers than the one that was trained, and was not measured" in card.text
    assert card.data.eval_results is None
    assert not (folder / "metrics.json").exists()
    assert f"| {JinaCLIPModel.from_pretrained(folder).num_parameters():,} | 64 |" in card.text


def test_the_card_says_whether_training_prepared_it(golden: Path, tmp_path: Path) -> None:
    key = "matryoshka={dims: [256], layers: {text: [1, 2], image: [1, 6]}}"
    run = Path(shutil.copytree(golden / "tiny_model", tmp_path / "run"))
    (run / "run.json").write_text(json.dumps(run_record("openmoji", key)))
    card = (build(run, tmp_path / "both", text_layers=1, image_layers=1) / "README.md").read_text()
    assert "Training prepared it for that (2D Matryoshka)." in card
    assert "2D Matryoshka: vectors of layers 1, 2 of the text tower and 1, 6 of the image tower serve alone." in card
    key = "matryoshka={dims: [256], layers: {image: [1, 6]}}"
    (run / "run.json").write_text(json.dumps(run_record("openmoji", key)))
    card = (build(run, tmp_path / "one", text_layers=1, image_layers=1) / "README.md").read_text()
    assert "Training did not prepare the text tower for that" in card


def test_one_tower_alone_and_all_layers(checkpoint: Path, tmp_path: Path) -> None:
    card = (build(checkpoint, tmp_path / "one", image_layers=1) / "README.md").read_text()
    assert "It has all 2 text layers and the first 1 of 2 image layers of" in card
    whole = build(checkpoint, tmp_path / "all", text_layers=2)
    assert "of the model that was trained" not in (whole / "README.md").read_text()
    assert (whole / "metrics.json").is_file()


def test_the_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(checkpoint), str(tmp_path / "out"), "--text_layers"]
    assert hub_upload.main([*arguments, "3"]) == 2
    assert "error: text_layers=3, but this tower has 2 layers; give a number from 1 to 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert hub_upload.main([*arguments, "1", "--image_layers", "2"]) == 0
    assert JinaCLIPModel.from_pretrained(tmp_path / "out").config.text_config.num_hidden_layers == 1


def test_wrong_numbers_are_bad_input(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(HubFolderError, match="image_layers=0"):
        build(checkpoint, tmp_path / "out", image_layers=0)


@pytest.mark.slow
def test_verify_passes(golden: Path, folder: Path, tmp_path: Path) -> None:
    assert verify(folder) == []
    second = v2_checkpoint(golden, tmp_path / "v2")
    assert verify(build(second, tmp_path / "v2-hub", text_layers=1, image_layers=1, onnx=True)) == []
