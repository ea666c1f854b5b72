"""Rows to tensors: one joint batch, each of its texts' columns padded on its own."""

import hashlib
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from trainer_ext.augmentation import random_resized_crop
from trainer_ext.data_mixing import Row
from trainer_ext.recipe import Stage


class JointCollator:
    """Make the trainer's batch from the rows of one micro-batch, by the processor and by the rows' stage.

    Args:
        processor: has ``tokenizer``, called as in transformers, and ``image_processor`` with its ``fitted``.
        stages: the recipe's stages; the rows' keys say which one a batch belongs to.
        seed: decides random crops, together with a row's source, epoch and number.

    Returns (by a call):
        ``{"stage": int, "sources": {side: source name}, "image_text": ..., "text": ...}``, a side without rows absent.

        - image_text: ``pixel_values`` (batch, 3, size, size) uint8, not yet normalised, ``input_ids`` and
          ``attention_mask`` (batch, tokens), ``image_ids`` and ``text_ids`` (batch,);
        - text: ``query``, ``positive`` and, for triplets, ``negatives``, each a dict of ``input_ids`` and
          ``attention_mask``; ``query_ids``, ``positive_ids``, ``negative_ids``; ``row_ids`` (batch,) of
          rows with an ``id``. Negatives are flat, row by row:
          (batch * negatives, tokens). Scored pairs have ``score`` (batch,), float32.

        Ids are int64 and equal only for equal texts, and for images with equal ``id`` (without ids: for pictures of
        equal content). They show which candidates of a batch are no true negatives.
    """

    def __init__(self, processor: Any, stages: Sequence[Stage], seed: int = 0) -> None:
        self._processor = processor
        self._stages = list(stages)
        self._seed = seed

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        number = rows[0]["key"].stage
        stage = self._stages[number]
        batch: dict[str, Any] = {"stage": number, "sources": {}}
        for side, collate in (("image_text", self._image_text), ("text", self._text)):
            of_side = [row for row in rows if row["key"].side == side]
            if of_side:
                batch["sources"][side] = of_side[0]["key"].source
                batch[side] = collate(of_side, stage)
        return batch

    def _image_text(self, rows: Sequence[Row], stage: Stage) -> dict[str, torch.Tensor]:
        size = {} if stage.image_size is None else {"size": stage.image_size}
        captions = [row["caption"] for row in rows]
        pixels = self._processor.image_processor.fitted([self._picture(row, stage) for row in rows], **size)
        images = [_image_label(row) for row in rows]
        return {
            "pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
            **self._tokens({"caption": captions}, stage)["caption"],
            "image_ids": stable_ids(images),
            "text_ids": stable_ids(captions),
        }

    def _picture(self, row: Row, stage: Stage) -> Any:
        if stage.random_resized_crop is None:
            return row["image"]
        key = row["key"]
        label = hashlib.blake2b(f"{self._seed}/{key.source}/{key.epoch}/{key.index}/crop".encode(), digest_size=8)
        generator = np.random.default_rng(int.from_bytes(label.digest()))
        size = stage.image_size or self._processor.image_processor.size
        return random_resized_crop(row["image"], size, tuple(stage.random_resized_crop), generator)

    def _text(self, rows: Sequence[Row], stage: Stage) -> dict[str, Any]:
        columns = {"query": [row["query"] for row in rows], "positive": [row["positive"] for row in rows]}
        if "negatives" in rows[0]:
            columns["negatives"] = [text for row in rows for text in row["negatives"]]
        side: dict[str, Any] = self._tokens(columns, stage)
        if "id" in rows[0]:
            side["row_ids"] = stable_ids([str(row["id"]) for row in rows])
        if "score" in rows[0]:
            side["score"] = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
        for name, texts in columns.items():
            side[f"{name.removesuffix('s')}_ids"] = stable_ids(texts)
        return side

    def _tokens(self, columns: dict[str, list[str]], stage: Stage) -> dict[str, dict[str, torch.Tensor]]:
        """Each column's ``input_ids`` and ``attention_mask``, padded at the end to the column's longest text."""
        # One call for all columns, and arrays made here: the tokenizer's own padding and tensors take as long again.
        encoded = self._processor.tokenizer(
            [text for texts in columns.values() for text in texts],
            truncation=True,
            max_length=stage.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        rows = iter(encoded)
        pad = self._processor.tokenizer.pad_token_id
        return {name: _padded(list(islice(rows, len(texts))), pad) for name, texts in columns.items()}


def _padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]  # (rows, tokens)
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=lengths.sum())
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def _image_label(row: Row) -> str:
    """What makes two images the same: their declared id, else their content."""
    return f"id/{row['id']}" if "id" in row else row["image_label"]


def stable_ids(texts: Sequence[str]) -> torch.Tensor:
    """Int64 ids (len(texts),): equal texts have equal ids, in every process and on every machine.

    >>> ids = stable_ids(["cat", "dog", "cat"])
    >>> bool(ids[0] == ids[2]), bool(ids[0] == ids[1])
    (True, False)
    """
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)
