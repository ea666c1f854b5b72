"""Any model as two encoders: ours, a peer of texts alone; instructions; fingerprints; what is no model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.own_files import save_ours, save_peer
from tests.trainer_ext.tiny_run import picture
from trainer_ext.measuring.models import by_instruction, encoders_of, open_model
from trainer_ext.measuring.texts import Instructed


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ours(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_peer(tmp_path_factory.mktemp("peer"))


def test_ours_encodes_as_the_model_does(ours: Path) -> None:
    found, model = open_model(ours, device="cpu", batch_size=2), JinaCLIPModel.from_pretrained(ours)
    texts, images = ["one red bar", "two", "a blue bar"], [picture("red", 1), picture("blue", 3)]
    assert np.array_equal(found.encode_text(texts), model.encode_text(texts, batch_size=2))
    assert found.encode_image is not None
    assert np.array_equal(found.encode_image(images), model.encode_image(images, batch_size=2))
    assert (found.dimension, found.logit_scale) == (16, model.logit_scale.item())


def test_a_peer_of_texts_has_no_image_encoder_and_its_own_prompts(peer: Path) -> None:
    found = open_model(peer, device="cpu")
    assert found.encode_image is None
    plain, asked = found.encode_text(["one", Instructed("one", "query")])
    assert np.allclose(found.encode_text(["the number one"])[0], asked, atol=1e-6)
    assert not np.allclose(plain, asked, atol=1e-3)
    with pytest.raises(ValueError, match="passage"):
        found.encode_text([Instructed("one", "passage")])


def test_texts_are_encoded_by_instruction_and_come_back_in_their_order() -> None:
    asked: list[tuple[str | None, list[str]]] = []

    def encode(instruction: str | None, some: list[str]) -> np.ndarray:
        asked.append((instruction, some))
        return np.array([[float(text), 0.0 if instruction is None else 1.0] for text in some])

    rows = by_instruction(["1", Instructed("2", "query"), "3", Instructed("4", "query")], encode)
    assert rows.tolist() == [[1, 0], [2, 1], [3, 0], [4, 1]]
    assert asked == [(None, ["1", "3"]), ("query", ["2", "4"])]


def test_a_fingerprint_is_the_content(ours: Path, peer: Path, tmp_path: Path) -> None:
    prints = {open_model(path, device="cpu").fingerprint for path in (ours, save_ours(tmp_path / "copy"))}
    assert len(prints) == 1, "of the same weights elsewhere"
    model = JinaCLIPModel.from_pretrained(ours)
    model.logit_scale.data += 1e-3
    prints |= {encoders_of(model, "x").fingerprint}
    model.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    prints |= {encoders_of(model, "x").fingerprint, open_model(peer, device="cpu").fingerprint}
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such folder"),
        ({}, "has no config.json or modules.json; it holds: nothing"),
        ({"adapter_config.json": "{}"}, "holds LoRA's adapters without the weights"),
        ({"checkpoint-4/x": "", "run.json": "{}"}, "is a run that has not finished. Give one of its checkpoints"),
        ({"config.json": "{"}, "cannot be loaded"),
        ({"config.json": '{"model_type": "jina_clip"}'}, "cannot be loaded"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, content: dict[str, str] | None, said: str) -> None:
    folder = tmp_path / "model"
    for name, text in (content or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if content == {}:
        folder.mkdir()
    with pytest.raises(ValueError, match=said) as refused:
        open_model(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_a_name_that_is_neither_a_folder_nor_on_the_hub() -> None:
    with pytest.raises(ValueError, match="Model 'owner/none' is no folder here, and is not had from the Hub: "):
        open_model("owner/none", device="cpu")


def test_code_of_a_peer_runs_only_when_it_is_trusted(peer: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(peer, tmp_path / "peer")
    modules = (folder / "modules.json").read_text()
    code = "from sentence_transformers.sentence_transformer.modules import Pooling\nclass Mine(Pooling):\n    pass\n"
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{code}")
    (folder / "modules.json").write_text(_with_kind(modules, "own.Mine"))
    with pytest.raises(ValueError, match=r"'own\.Mine'.*pass --trust_remote_code"):
        open_model(folder, device="cpu")
    assert not (tmp_path / "ran").exists()
    assert open_model(folder, device="cpu", trust_remote_code=True).dimension == 16
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["router_config.json", "config.json"])
def test_so_does_code_that_a_router_asks_for(peer: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(peer, tmp_path / "peer")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    router = "sentence_transformers.base.modules.Router"
    (folder / "modules.json").write_text(_with_kind((folder / "modules.json").read_text(), router))
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / name).write_text(json.dumps({"types": {"a": "own.Mine"}, "structure": {}}))
    with pytest.raises(ValueError, match=rf"1_Pooling/{name} asks for the class 'own\.Mine'.*pass --trust_remote_code"):
        open_model(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def _with_kind(modules: str, kind: str) -> str:
    """With a pooling of another class."""
    items = json.loads(modules)
    items[1]["type"] = kind
    return json.dumps(items)


def test_a_device_that_is_not_there_is_refused(ours: Path) -> None:
    with pytest.raises(ValueError, match=r"--device nowhere: .* Use cpu"):
        open_model(ours, device="nowhere")
