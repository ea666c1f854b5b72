"""The examples around other libraries, each as a user runs it: faiss, the trainer of sentence-transformers, ONNX."""

import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

import hub_upload
from modeling_jina_clip import JinaCLIPModel
from tests.source_imports import ROOT
from trainer_ext.demo_data.cache import prepare

Run = Callable[..., str]
NAMES = ["encode_and_search", "finetune_sentence_transformers", "export_onnx"]
pytest.importorskip("faiss")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def cache() -> str:
    """The tables of drawings and texts, made once and kept beside the checkout."""
    place = os.environ.get("JINA_CLIP_CACHE", str(ROOT / ".cache" / "tests"))
    prepare(place, progress=False)
    return place


@pytest.fixture(scope="module")
def model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_upload.build(golden / "tiny_model", tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example as a program in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))

    def start(name: str, *arguments: object, cache: str = "") -> str:
        monkeypatch.setenv("JINA_CLIP_CACHE", cache or str(tmp_path))
        script = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        return capsys.readouterr().out

    return start


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_short(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 120


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_it_does(name: str, run: Run) -> None:
    assert "model folder" in run(name, "--help")


@pytest.mark.parametrize("dimension", [None, 24])
def test_search_finds_what_was_indexed(
    model: Path, cache: str, tmp_path: Path, run: Run, dimension: int | None
) -> None:
    """An indexed picture and an indexed text, given as queries, are their own best answers, truncated or not."""
    from datasets import load_dataset

    table = Path(prepare(cache, progress=False)) / "short_captions" / "test_concepts.parquet"
    row = load_dataset("parquet", data_files=str(table), split="train", cache_dir=str(tmp_path / "datasets"))[7]
    row["image"].convert("RGB").save(tmp_path / "picture.png")
    options = ["--drawings", 30, "--definitions", 60, "--top", 3]
    options += ["--truncate_dim", dimension] if dimension else []
    done = run("encode_and_search", model, "picture.png", "The first letter of", *options, cache=cache)
    assert f"encoded 90 items into {dimension or 64} numbers each" in done
    assert "done: 2 queries against 90 items" in done
    picture, text = done.split("\n\n")[1:3]
    hits = [line.split(maxsplit=1) for line in picture.splitlines()[1:]]
    assert hits[0] == ["1.000", f"[drawing] {row['caption'][0]}"]
    assert len(hits) == len(text.splitlines()[1:]) == 3
    scores = [float(line.split()[0]) for line in text.splitlines()[1:]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("encode_and_search", ["m", "--drawings", "0", "--definitions", "0"], "nothing to index"),
        ("encode_and_search", ["m", "--top", "0"], "--top 0: must be at least 1"),
        ("finetune_sentence_transformers", ["m", "."], ". is not empty; name a new folder"),
        ("finetune_sentence_transformers", ["m", "new", "--images", "."], "there is no metadata.csv"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    name: str, arguments: list[str], message: str, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(SystemExit) as left:
        run(name, *arguments)
    assert message in f"{left.value.code} {capsys.readouterr().err}"


def table_of(text: str) -> dict[str, tuple[float, float]]:
    rows = re.findall(r"^(\w+ to \w+ R@\d+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    return {name: (float(before), float(after)) for name, before, after in rows}


@pytest.mark.slow
def test_finetuning_with_sentence_transformers_helps(model: Path, cache: str, tmp_path: Path, run: Run) -> None:
    options = ["--steps", 60, "--learning_rate", 1e-3, "--matryoshka_dims", 16]
    done = run("finetune_sentence_transformers", model, "tuned", *options, cache=cache)
    measured = table_of(done)
    assert set(measured) == {f"{way} R@{k}" for way in ("text to image", "image to text") for k in (1, 5, 10)}
    before, after = (sum(column) for column in zip(*measured.values(), strict=True))
    assert after > 1.2 * before  # on concepts that were never shown; 44 against 27 when this was written
    assert "done: the fine-tuned model is in tuned" in done
    tuned = SentenceTransformer(str(tmp_path / "tuned"), trust_remote_code=True, device="cpu")
    assert np.abs(tuned.encode("a cat") - JinaCLIPModel.from_pretrained(model).encode_text("a cat")).max() > 0.01


@pytest.mark.slow
def test_finetuning_on_a_folder_of_pictures(
    model: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    lines = ["file_name,text"]
    for number in range(40):
        Image.new("RGB", (32, 32), (6 * number, 255 - 6 * number, 90)).save(tmp_path / "mine" / f"{number}.png")
        lines.append(f"{number}.png,shade {number}")
    (tmp_path / "mine" / "metadata.csv").write_text("\n".join(lines) + "\n")
    done = run("finetune_sentence_transformers", model, "tuned", "--images", "mine", "--steps", 3)
    assert "36 pairs to learn, 4 to measure" in done
    assert len(table_of(done)) == 6
    (tmp_path / "mine" / "metadata.csv").write_text("\n".join(lines[:12]) + "\n")
    with pytest.raises(SystemExit) as left:
        run("finetune_sentence_transformers", model, "other", "--images", "mine", "--steps", 3)
    assert left.value.code == 2
    assert "error: --images mine: needs a column text and 20 pictures" in capsys.readouterr().err


@pytest.mark.slow
def test_export_serves_texts_and_images_like_the_model(golden: Path, tmp_path: Path, run: Run) -> None:
    done = run("export_onnx", golden / "tiny_model", "graphs")
    gaps = [float(gap) for gap in re.findall(r"largest difference from the model ([\d.e+-]+)", done)]
    assert len(gaps) == 2
    assert max(gaps) < 1e-5
    assert "done: onnxruntime gives the model's vectors" in done
    assert (tmp_path / "graphs" / "onnx" / "vision_model.onnx").is_file()
