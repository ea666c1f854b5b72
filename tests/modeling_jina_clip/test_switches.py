"""Switches of the whole process, which other libraries set at import, decide nothing about vectors."""

import csv
import locale
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Features, Value
from PIL import GifImagePlugin, Image, ImageFile

from modeling_jina_clip import JinaCLIPModel
from tests.modeling_jina_clip.test_transparency import logo, stored
from trainer_ext.data.csv_reader import MAX_CELL, csv_tables, read_header
from trainer_ext.data.readers import FAULT

TEXTS = ["one", "a longer text of two", "[PAD] three"]


def pictures() -> list[bytes]:
    colours = Image.merge("RGB", (Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256))))
    odd = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # announces five entries and has none: Pillow warns of it
    palette = colours.quantize(8)
    return [
        stored(colours, "JPEG", exif=odd),
        stored(palette, "PNG", transparency=bytes(range(0, 256, 32))),
        stored(palette, "GIF", transparency=3),
        stored(logo(), "TIFF"),
    ]


@contextmanager
def switched(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def called(switch: Callable[[object], object], value: object, before: object) -> Iterator[None]:
    switch(value)
    try:
        yield
    finally:
        switch(before)


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def other_seeds() -> Iterator[None]:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    yield


SWITCHES: dict[str, Callable[[], AbstractContextManager]] = {
    "warnings are errors": warnings_are_errors,
    "seeds": other_seeds,
    "default device": lambda: torch.device("meta"),
    "gradients off": lambda: torch.set_grad_enabled(False),
    "gradients on": lambda: torch.set_grad_enabled(True),
    "inference mode": torch.inference_mode,
    "default type": lambda: called(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic algorithms": lambda: called(torch.use_deterministic_algorithms, True, False),
    "numpy's errors": lambda: np.errstate(all="raise"),
    "tokenizers' parallelism": lambda: called(lambda v: os.environ.update(TOKENIZERS_PARALLELISM=v), "true", "false"),
    "locale": lambda: called(lambda v: locale.setlocale(locale.LC_ALL, v), "C", locale.setlocale(locale.LC_ALL)),
    "Pillow's blocks": lambda: switched(ImageFile, "MAXBLOCK", 64),
    "Pillow's cut files": lambda: switched(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "Pillow's limit": lambda: switched(Image, "MAX_IMAGE_PIXELS", 5),
    "Pillow's GIFs": lambda: switched(GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_ALWAYS),
}


@pytest.fixture(scope="module")
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()


@pytest.fixture(scope="module")
def expected(model: JinaCLIPModel) -> tuple[np.ndarray, np.ndarray]:
    return model.encode_text(TEXTS), model.encode_image(pictures())


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_decides_nothing(model: JinaCLIPModel, expected: tuple[np.ndarray, np.ndarray], name: str) -> None:
    files = pictures()
    filters = warnings.filters[:]
    with SWITCHES[name]():
        found = model.encode_text(TEXTS), model.encode_image(files)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert warnings.filters == filters


def test_encoding_draws_no_numbers(model: JinaCLIPModel) -> None:
    def states() -> list[object]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()]

    before = states()
    model.encode_text(TEXTS)
    model.encode_image(pictures())
    assert states() == before


def test_reading_csv_leaves_the_limit_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("query,answer\n" + "a" * 200_000 + ",b\n")
    before = csv.field_size_limit()
    features = Features({"query": Value("string"), "answer": Value("string"), FAULT: Value("string")})
    [table] = csv_tables(str(path), features, ",")
    assert len(table["query"][0].as_py()) == 200_000
    assert read_header(str(path), ",") == ["query", "answer"]
    assert csv.field_size_limit() == before < MAX_CELL
