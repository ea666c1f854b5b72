"""A corpus embedded with Ray Data, and a database in LanceDB: killed, gone on with, changed, told no. Needs `[ray]`."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples import embed_corpus, vector_database
from modeling_jina_clip import JinaCLIPModel
from tests.source_imports import ROOT
from tests.trainer_ext.own_files import save_ours
from trainer_ext.commands.guard import guarded

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="pip install '.[ray]'")
pytest.importorskip("lancedb", reason="pip install '.[ray]'")

ROWS = 1500


@pytest.mark.parametrize("name", ["embed_corpus", "vector_database"])
def test_an_example_stays_short(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 150


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model; parquet files of texts; a folder of pictures, one of them broken; a tar of samples."""
    folder = tmp_path_factory.mktemp("scale")
    save_ours(folder / "model")
    for part in range(3):
        rows = range(part * ROWS // 3, (part + 1) * ROWS // 3)
        texts = [f"text {row} {'word ' * (row % 20)}" for row in rows]
        table = pa.table({"url": [f"u{row}" for row in rows], "body": texts, "title": [f"t{row}" for row in rows]})
        pq.write_table(table, folder / f"corpus-{part}.parquet")
    (folder / "photos").mkdir()
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 100, 200 - 20 * number)).save(folder / "photos" / f"{number}.png")
    (folder / "photos" / "5.png").write_bytes(b"no picture")
    (folder / "photos" / "words.txt").write_text("words of a file")
    with tarfile.open(folder / "shard-0.tar", "w") as tar:
        for number in range(3):
            (folder / f"{number}.txt").write_text(f"caption {number}")
            tar.add(folder / "photos" / f"{number}.png", f"s{number}.png")
            tar.add(folder / f"{number}.txt", f"s{number}.txt")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(place / "model")


def started(name: str, *arguments: object) -> subprocess.Popen:
    """An example in a session of its own, so that all it starts can be killed."""
    command = [sys.executable, f"examples/{name}.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True)


def run(name: str, *arguments: object, code: int = 0) -> str:
    process = started(name, *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    if code:
        [line] = [line for line in err.splitlines() if line.startswith("error:")]
        return line
    return out + err


def database(*arguments: object, code: int = 0) -> str:
    """What the database's example prints, or its line of error; it needs no process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["vector_database.py", *map(str, arguments)])
        assert guarded(vector_database.main) == code, err.getvalue()
    if code:
        assert err.getvalue().splitlines()[-1].startswith("error:"), err.getvalue()
        return err.getvalue().splitlines()[-1]
    return out.getvalue() + err.getvalue()


def vectors_of(folder: Path, key: str) -> dict[str, np.ndarray]:
    rows = ds.dataset(folder, format="parquet").to_table().to_pylist()
    assert len({row[key] for row in rows}) == len(rows), "written twice"
    return {row[key]: np.array(row["vector"], np.float32) for row in rows if row["vector"] is not None}


@pytest.fixture(scope="module")
def embedded(place: Path) -> Path:
    """Killed with -9 after its first files, with all that Ray had started; then run again."""
    out = place / "vectors"
    asked = ["embed_corpus", place / "model", f"{place}/corpus-*.parquet", "--text", "body", "--id", "url"]
    asked += ["--fields", "title", "--rows_per_file", 100, "--batch_size", 2, "--output_dir", out]
    process = started(*asked)
    until = time.monotonic() + 240
    while len(list(out.glob("*.parquet"))) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == process.pid:
                os.kill(int(entry.name), signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert process.wait() == -signal.SIGKILL, "it was killed in the middle"
    assert 0 < len(list(out.glob("*.parquet"))) < ROWS // 100
    said = run(*asked)
    assert f"{ROWS:,} rows, 0 unreadable" in said
    return out


def test_a_killed_corpus_is_gone_on_with(embedded: Path, place: Path, model: JinaCLIPModel) -> None:
    """Each row once, with the vector of the plain loop."""
    found = vectors_of(embedded, "url")
    rows = ds.dataset([*place.glob("corpus-*.parquet")]).to_table().to_pylist()
    assert set(found) == {row["url"] for row in rows}
    expected = model.encode_text([row["body"] for row in rows])
    np.testing.assert_allclose(np.stack([found[row["url"]] for row in rows]), expected, atol=1e-5)
    assert ds.dataset(embedded, format="parquet").schema.names == ["url", "title", "vector", "unreadable"]


def test_other_vectors_do_not_get_into_the_folder(embedded: Path, place: Path) -> None:
    said = run(
        "embed_corpus", place / "model", f"{place}/corpus-*.parquet", "--text", "title", "--id", "url",
        "--output_dir", embedded, code=2,
    )  # fmt: skip
    assert said == f"error: --output_dir {embedded} holds vectors of another text; give another folder"


def test_pictures_of_a_folder_and_what_cannot_be_read(place: Path, tmp_path: Path, model: JinaCLIPModel) -> None:
    asked = ["embed_corpus", place / "model", place / "photos", "--output_dir", tmp_path / "out"]
    said = run(*asked, code=2)
    assert said.startswith("error: 1 rows cannot be read, --max_unreadable allows 0; such as: "), said
    assert "6 rows, 1 unreadable" in run(*asked, "--max_unreadable", 1)
    found = vectors_of(tmp_path / "out", "path")
    assert {Path(name).name for name in found} == {f"{number}.png" for number in range(5)}
    for name, vector in found.items():
        np.testing.assert_allclose(vector, model.encode_image(name), atol=1e-5)
    [line] = (tmp_path / "out" / "_unreadable.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("5.png")


def test_samples_of_tars(place: Path, tmp_path: Path, model: JinaCLIPModel) -> None:
    out = tmp_path / "out"
    run("embed_corpus", place / "model", f"{place}/shard-*.tar", "--image", "png", "--output_dir", out)
    found = vectors_of(out, "__key__")
    assert set(found) == {"s0", "s1", "s2"}
    np.testing.assert_allclose(found["s1"], model.encode_image(place / "photos" / "1.png"), atol=1e-5)


def test_a_column_that_is_not_there(place: Path, tmp_path: Path) -> None:
    asked = ["embed_corpus", place / "model", f"{place}/corpus-*.parquet", "--text", "body", "--id", "uri"]
    assert "uri is none of its columns: url, body, title" in run(*asked, "--output_dir", tmp_path / "out", code=2)


def test_more_actors_than_there_is_room_for() -> None:
    """They would wait for ever."""
    assert embed_corpus.threads_of(2, {"CPU": 16.0}, 16) == 8
    assert embed_corpus.threads_of(2, {"CPU": 5.0}, 1) == 1
    for actors, resources in ((2, {"CPU": 16.0, "GPU": 1.0}), (14, {"CPU": 16.0})):
        with pytest.raises(ValueError, match=rf"--actors {actors}: there is room for {actors - 1}"):
            embed_corpus.threads_of(actors, resources, 16)


# --- the database ----------------------------------------------------------------------------------------------------
def test_a_database_takes_what_is_new_and_finds_it(place: Path, tmp_path: Path, model: JinaCLIPModel) -> None:
    folder, notes = tmp_path / "db", tmp_path / "notes.jsonl"
    lines = [{"id": f"n{number}", "text": f"note {number}"} for number in range(400)]
    notes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [place / "model", folder]
    said = database(*asked, "--add", place / "photos", notes, "--index_from", 300)
    assert "406 embedded, 0 unchanged, 1 left out" in said
    assert "left out photos/5.png: " in said
    recall = float(said.split("recall@10 ")[1].split()[0])
    assert recall > 0.8
    lines[7]["text"] = "another note, with other words"
    notes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1 embedded, 405 unchanged, 1 left out" in database(*asked, "--add", place / "photos", notes)

    def first(*query: object) -> str:
        return database(*asked, *query).splitlines()[0]

    assert "notes.jsonl/n7 " in first("--text", "another note, with other words")
    assert first("--text", "another note, with other words").startswith(" 1.000")
    assert "photos/" in first("--text", "note 3", "--where", "kind = 'image'")
    assert "photos/2.png" in first("--image", place / "photos" / "2.png")
    both = database(*asked, "--text", "note 3", "--image", place / "photos" / "2.png", "--weight", 1)
    assert "photos/2.png" in both.splitlines()[0]


def test_a_database_keeps_to_one_model(place: Path, tmp_path: Path) -> None:
    save_ours(tmp_path / "other", seed=1)
    database(place / "model", tmp_path / "db", "--add", place / "photos")
    said = database(tmp_path / "other", tmp_path / "db", "--text", "word", code=2)
    assert "holds vectors of another model" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "no id"}', 'line 1: give "id"'),
        ('{"id": 1, "text": "a", "image": "b.png"}', "line 1"),
        ("[1]", "line 1"),
    ],
)
def test_lines_that_are_no_items_are_named(place: Path, tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    said = database(place / "model", tmp_path / "db", "--add", tmp_path / "bad.jsonl", code=2)
    assert f"{tmp_path}/bad.jsonl" in said
    assert words in said
