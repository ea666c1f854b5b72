"""Several threads on one model: every result is that of a thread alone."""

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from modeling_jina_clip import JinaCLIPModel

LONG = ["word " * n for n in (3, 40, 90, 200)]


@pytest.fixture
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model").eval()


def together(*tasks: Callable[[], Any], rounds: int = 30) -> list[list[Any]]:
    """Each task in a thread of its own, again and again."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(lambda task=task: [task() for _ in range(rounds)]) for task in tasks]
        return [future.result() for future in futures]


def test_limits_of_one_thread_do_not_cut_the_texts_of_another(model: JinaCLIPModel) -> None:
    limits = (8, 32, 512)
    alone = {limit: model.encode_text(LONG, max_length=limit) for limit in limits}
    ids = model.processor(text=LONG, truncation=True, max_length=16, padding=True)["input_ids"]
    tasks = [lambda limit=limit: model.encode_text(LONG, max_length=limit) for limit in limits]
    tasks.append(lambda: model.processor(text=LONG, truncation=True, max_length=16, padding=True)["input_ids"])
    *found, tokens = together(*tasks)
    for limit, vectors in zip(limits, found, strict=True):
        assert all(np.array_equal(one, alone[limit]) for one in vectors), limit
    assert all(one == ids for one in tokens)


def test_sentence_transformers_beside_the_methods(golden: Path, tmp_path: Path) -> None:
    from hub_upload import build

    folder = build(golden / "tiny_model", tmp_path / "hub")
    encoder = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    whole = encoder.encode(LONG)
    model = encoder[0].model
    model.processor = encoder[0].processor
    short = model.encode_text(LONG, max_length=8)
    ours, theirs = together(lambda: model.encode_text(LONG, max_length=8), lambda: encoder.encode(LONG), rounds=15)
    assert all(np.array_equal(one, short) for one in ours)
    assert all(np.allclose(one, whole, atol=1e-6) for one in theirs)


def test_the_mode_is_restored_and_decides_nothing(golden: Path) -> None:
    config = {"hidden_dropout_prob": 0.5}
    model = JinaCLIPModel.from_pretrained(
        golden / "tiny_model", text_config=config, vision_config={"patch_dropout": 0.5}
    )
    pictures = [Image.linear_gradient("L"), Image.radial_gradient("L")]
    model.eval()
    texts, images = model.encode_text(LONG), model.encode_image(pictures)
    model.train()
    found = together(
        lambda: model.encode_text(LONG), lambda: model.encode_image(pictures), lambda: model.train() and None, rounds=15
    )
    assert all(np.allclose(one, texts, atol=1e-6) for one in found[0])
    assert all(np.allclose(one, images, atol=1e-6) for one in found[1])
    assert model.training
    assert all(module.training for module in model.modules())
    model.eval()
    together(lambda: model.encode_text(LONG), lambda: model.encode_text(LONG), rounds=5)
    assert not model.training


def test_a_copy_made_while_encoding_is_a_model_of_its_own(model: JinaCLIPModel) -> None:
    copies: list[JinaCLIPModel] = []

    def texts() -> Iterator[str]:
        yield "one"
        copies.append(copy.deepcopy(model).train())
        copies.append(pickle.loads(pickle.dumps(model)).train())  # noqa: S301

    model.encode_text(texts())
    assert [one.training for one in copies] == [True, True]
    assert not model.training


def test_one_lazily_opened_picture_in_four_threads(model: JinaCLIPModel, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    alone = model.encode_image(str(tmp_path / "noise.png"))
    for _ in range(10):
        picture = Image.open(tmp_path / "noise.png")
        found = together(*[lambda picture=picture: model.encode_image(picture)] * 4, rounds=1)
        assert all(np.array_equal(one[0], alone) for one in found)


def test_vectors_train_a_head(model: JinaCLIPModel) -> None:
    head = torch.nn.Linear(model.config.projection_dim, 2)
    for vectors in (
        model.encode_text(LONG, convert_to_tensor=True),
        model.encode_image([Image.linear_gradient("L")], convert_to_tensor=True),
    ):
        assert not vectors.requires_grad
        head(vectors).sum().backward()
    assert head.weight.grad is not None
