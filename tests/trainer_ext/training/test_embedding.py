"""Chunks and pixels of a step, against the whole batch and the image processor."""

import numpy as np
import pytest
import torch
from torch import nn

from modeling_jina_clip import JinaCLIPImageProcessor
from tests.trainer_ext.tiny_run import make_model
from trainer_ext.training.embedding import InputEmbedder, chunks_of


def embedder(images: JinaCLIPImageProcessor) -> InputEmbedder:
    return InputEmbedder(images.mean, images.std, torch.device("cpu"))


@pytest.mark.parametrize(
    "images", [JinaCLIPImageProcessor(16), JinaCLIPImageProcessor(16, mean=[0.1] * 3, std=[0.3] * 3)]
)
def test_every_pixel_value_is_that_of_the_image_processor(images: JinaCLIPImageProcessor) -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = images(picture, return_tensors="pt")["pixel_values"]
    bytes_ = torch.from_numpy(images.fitted(picture)).permute(0, 3, 1, 2)
    assert bytes_.dtype == torch.uint8
    assert torch.equal(embedder(images).normalized(bytes_), expected)
    assert expected.unique().numel() >= 256


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunks_hold_every_row_once_and_come_back_in_order(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 21, (10,), generator=generator)
    lengths[4] = 21
    mask = (torch.arange(21) < lengths[:, None]).long()
    ids = torch.randint(4, 60, (10, 21), generator=generator) * mask
    longer = {"input_ids": torch.full((2, 30), 5), "attention_mask": torch.ones(2, 30, dtype=torch.long)}
    parts = {"query": {"input_ids": ids, "attention_mask": mask}, "positive": longer}
    chunks, order = chunks_of(parts, size, 16)["query"]
    padded = [nn.functional.pad(chunk["input_ids"], (0, 21 - chunk["input_ids"].shape[1])) for chunk in chunks]
    assert torch.equal(torch.cat(padded)[order], ids)
    for chunk in chunks:
        width, need = chunk["input_ids"].shape[1], int(chunk["attention_mask"].sum(1).max())
        assert need <= width < need + 8
        assert width % 8 == 0 or width == 21
        assert chunk["input_ids"].numel() <= size * 30  # the work of `size` rows of the step's longest text
    assert len(chunks) < -(-10 // size) or size == 100  # fewer than by rows
    model = make_model(dropout=0.0).eval()
    embed = embedder(JinaCLIPImageProcessor(16))
    with torch.no_grad():
        together = embed(model, parts["query"])
        apart = torch.cat([embed(model, chunk) for chunk in chunks])[order]
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [[1, 2, 3, 4, 5], [30, 1, 30, 1, 17]])
def test_equal_rows_make_as_many_chunks_of_any_lengths(lengths: list[int]) -> None:
    """Shortest texts first, each chunk as wide as it needs; pictures take no more rows where they are small."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(5)[:, None] * mask
    parts = {
        "image": {"pixel_values": torch.zeros(5, 3, 8, 8)},
        "caption": {"input_ids": ids, "attention_mask": mask},
    }
    found = chunks_of(parts, 2, 4, equal_rows=True)
    assert [len(chunk["pixel_values"]) for chunk in found["image"][0]] == [2, 2, 1]
    chunks, order = found["caption"]
    assert [len(chunk["input_ids"]) for chunk in chunks] == [2, 2, 1]
    rows = torch.cat([chunk["input_ids"].amax(dim=1) for chunk in chunks])
    assert rows[order].tolist() == [0, 1, 2, 3, 4]
    widths = [chunk["input_ids"].shape[1] for chunk in chunks]
    assert widths == ([5, 5, 5] if max(lengths) == 5 else [8, 30, 30])


def test_pictures_keep_their_order() -> None:
    pixels = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 8, 12)
    chunks, order = chunks_of({"image": {"pixel_values": pixels}}, 2, 4)["image"]
    assert order is None
    assert [len(chunk["pixel_values"]) for chunk in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat([chunk["pixel_values"] for chunk in chunks]), pixels)


@pytest.mark.parametrize(("tokens", "rows"), [(3, [2, 2, 1]), (7, [2, 2, 1]), (14, [4, 1]), (99, [5])])
def test_small_pictures_fill_a_chunk_like_texts(tokens: int, rows: list[int]) -> None:
    """A picture of 8 x 12 pixels has 6 patches of 4 pixels, 7 tokens; a chunk is worth two of the longest text."""
    ids = torch.ones(5, tokens, dtype=torch.long)
    parts = {"image": {"pixel_values": torch.zeros(5, 3, 8, 12)}, "caption": {"input_ids": ids, "attention_mask": ids}}
    assert [len(chunk["pixel_values"]) for chunk in chunks_of(parts, 2, 4)["image"][0]] == rows
