"""Keys to rows, rows to tensors: ``JointDataset`` reads the rows that the plan names, ``JointCollator`` makes a batch.

Each text column is padded by itself. Random crops and other changes of pictures and texts are in ``augmentation``.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import chain, count, groupby, islice
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from trainer_ext.data.augmentation import augmented_text, row_generator, with_repeats
from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.captions import drawn_captions, sentences
from trainer_ext.data.images import IMAGE_ERRORS, Opener, open_image
from trainer_ext.data.picture_pairs import picture_groups
from trainer_ext.data.pictures import PictureReader
from trainer_ext.data.pixels import stage_pixels
from trainer_ext.data.plan import Key
from trainer_ext.data.sources import Rows, broken_image, read_rows, row_count, undecoded
from trainer_ext.data.streams import SourceStream
from trainer_ext.recipe.schema import LOSS_RULES, RIGHT_ANSWERS, SideName, Source
from trainer_ext.recipe.stages import Stage

Row = dict[str, Any]


class JointDataset(Dataset[Row]):
    """Keys to rows: the columns of the source's row, and its ``key``.

    Of several captions one is drawn by the seed, source, row and epoch: another one in each epoch, the same one again
    after a resume, whichever worker reads it; or as many as the stage asks for, then a list. A stage with a short
    caption finds it as ``short_caption``. A text without a pair becomes one, with ``repeat_words`` in its second half.
    Texts get the source's prompts. A row whose image cannot be decoded is replaced by another one of its source, drawn
    from the same numbers, within the source's ``max_broken_rows``. Where pictures are paired by id, a row is a pair
    (``picture_pairs``), whose second picture is ``partner``; a picture that cannot be decoded brings another pair.

    Args:
        broken: where rows left out are listed and counted; by default in memory.
        pictures: how a stage's pictures are opened; by default whole.
        stages: the recipe's, with what each sees of the captions; by default one whole caption.

    >>> from datasets import Dataset as Table
    >>> columns = {"query": "q", "positive": "a"}
    >>> source = Source(name="pairs", task="text-pair", location="pairs.csv", format="csv", columns=columns)
    >>> rows = JointDataset([source], {"pairs": Table.from_dict({"query": ["hi"], "positive": ["hello"]})}, seed=1)
    >>> rows[Key(step=0, stage=0, side="text", source="pairs", epoch=0, index=0)]["positive"]
    'hello'
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tables: Mapping[str, Rows],
        seed: int,
        broken: BrokenRows | None = None,
        pictures: PictureReader | None = None,
        stages: Sequence[Stage] = (),
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._tables = {
            name: rows if isinstance(rows, SourceStream) else undecoded(rows) for name, rows in tables.items()
        }
        self._groups = picture_groups(sources, tables)
        self._seed = seed
        self._broken = BrokenRows(None) if broken is None else broken
        self._pictures = pictures
        self._sides = [stage.image_text for stage in stages]

    def __len__(self) -> int:
        """Rows of the sources that do not stream."""
        return sum(rows for rows in map(row_count, self._tables.values()) if rows is not None)

    def __getitem__(self, key: Key) -> Row:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Row]:
        """The rows of a micro-batch, read source by source."""
        found: list[Row] = []
        for name, group in groupby(keys, key=lambda key: key.source):
            found += [self._finished(self._sources[name], row) for row in self._read(name, list(group))]
        return found

    def _read(self, name: str, keys: list[Key]) -> list[Row]:
        """The rows as they are stored, each with the key of what was really read."""
        source, table = self._sources[name], self._tables[name]
        opener = open_image if self._pictures is None else self._pictures.opener(keys[0].stage)
        if isinstance(table, SourceStream):
            streamed = table.read([key.index for key in keys], opener)
            return [
                {**one.row, "key": key._replace(epoch=one.epoch, index=one.identity)}
                for key, one in zip(keys, streamed, strict=True)
            ]
        places = [self._places(key) for key in keys]
        try:
            rows = iter(read_rows(source, table, list(chain.from_iterable(places)), opener))
            return [_one(list(islice(rows, len(own))), key) for key, own in zip(keys, places, strict=True)]
        except IMAGE_ERRORS:
            return [self._readable(source, table, key, opener) for key in keys]

    def _places(self, key: Key) -> list[int]:
        """The rows of the table that a key stands for: its own, or the two of a pair."""
        groups = self._groups.get(key.source)
        return [key.index] if groups is None else groups.drawn(self._seed, key)

    def _readable(self, source: Source, table: datasets.Dataset, key: Key, opener: Opener) -> Row:
        """The row, or the first of its replacements that can be read."""
        drawn, units = key, len(self._groups.get(key.source, table))
        for attempt in count(1):
            found: list[Row] = []
            for place in self._places(drawn):
                try:
                    found += read_rows(source, table, [place], opener)
                except IMAGE_ERRORS as error:
                    self._broken.add(source, broken_image(source, table, place, error))
                    break
            else:
                return _one(found, drawn)
            drawn = key._replace(index=self._draw(key, units, f"/{attempt}"))
        raise AssertionError("the budget of broken rows ends the search")

    def _finished(self, source: Source, row: Row) -> Row:
        if "caption" in row:
            self._choose_captions(row)
        if source.task == "text":
            return self._two_views(source, row)
        if source.prompts:
            row["prompts"] = source.prompts  # what augmentation must not touch
        for name, prompt in source.prompts.items():
            several = isinstance(row[name], list)
            row[name] = [prompt + text for text in row[name]] if several else prompt + row[name]
            if name == "caption" and "short_caption" in row:
                row["short_caption"] = prompt + row["short_caption"]
            if name in RIGHT_ANSWERS and "negatives" in row:
                row["negatives"] = [prompt + text for text in row["negatives"]]
        return row

    def _choose_captions(self, row: Row) -> None:
        key, side = row["key"], self._sides[row["key"].stage] if self._sides else None
        texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
        right = set(texts)
        if side is not None and side.short_caption is not None:
            row["short_caption"] = sentences(texts[0])[0]
        if side is not None and side.split_captions is not None:
            texts = [sentence for text in texts for sentence in sentences(text)]
        if side is not None and side.captions_per_image > 1:
            row["caption"] = drawn_captions(texts, side.captions_per_image, row_generator(self._seed, key, "captions"))
            return
        row["caption"] = texts[self._draw(key, len(texts))]
        if "negatives" in row:  # another caption of the picture is as right as the drawn one, and counts as it
            row["negatives"] = [row["caption"] if text in right else text for text in row["negatives"]]

    def _two_views(self, source: Source, row: Row) -> Row:
        """A text as query and positive of its own pair."""
        text, prompt = row.pop("text"), source.prompts.get("text", "")
        again = text
        if source.repeat_words is not None:
            again = with_repeats(text, source.repeat_words, row_generator(self._seed, row["key"], "repeat_words"))
        row |= {"query": prompt + text, "positive": prompt + again}
        return row | {"prompts": {"query": prompt, "positive": prompt}} if prompt else row

    def _draw(self, key: Key, choices: int, purpose: str = "") -> int:
        # A hash is a random generator of one draw, and much cheaper to seed than one of many.
        label = f"{self._seed}/{key.source}/{key.epoch}/{key.index}{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(label, digest_size=8).digest()) % choices


class JointCollator:
    """Make the trainer's batch from the rows of one micro-batch, by the processor and by the rows' stage.

    Args:
        processor: has ``tokenizer``, called as in transformers, and ``image_processor`` with its ``fitted`` and
            ``background``, on which transparent pictures lie unless their source has laid them on another one.
        stages: the recipe's stages; the rows' keys say which one a batch belongs to.
        seed: decides augmentations, together with a row's source, epoch and number.
        margins: sides whose negatives are read with any loss, for a teacher's margins.

    Returns (by a call):
        ``{"stage": int, "sources": {side: source name}, "image_text": ..., "text": ..., "images": ...}``, a side
        without rows absent.

        - image_text: ``pixel_values`` (batch, 3, size, size) uint8, not yet normalised, ``input_ids`` and
          ``attention_mask`` (batch, tokens), ``image_ids`` and ``text_ids`` (batch,); of several captions a picture the
          texts and their ids are flat, row by row, (batch * captions, tokens) and (batch * captions,); a stage's
          ``short_caption``, a dict of ``input_ids`` and ``attention_mask``, with ``short_text_ids`` (batch,);
        - text: ``query`` and ``positive``, each a dict of ``input_ids`` and ``attention_mask``; ``query_ids``,
          ``positive_ids``; ``row_ids`` (batch,) of rows with an ``id``. Scored pairs have ``score`` (batch,), float32;
        - images: ``picture`` and ``partner``, each a dict of ``pixel_values``; ``row_ids`` (batch,);
        - image_text and text, if the loss takes hard negatives: ``negatives``, a dict of ``input_ids`` and
          ``attention_mask`` that are flat, row by row, (batch * negatives, tokens), and ``negative_ids``; ``margins``
          (batch, negatives), float32, of rows that have them.

        Ids are int64 and equal only for equal texts, and for images with equal ``id`` (without ids: for pictures of
        equal content). They show which candidates of a batch are no true negatives, and are of the texts and pictures
        before any augmentation.
    """

    def __init__(
        self, processor: Any, stages: Sequence[Stage], seed: int = 0, margins: Collection[SideName] = ()
    ) -> None:
        self._processor = processor
        self._stages = list(stages)
        self._seed = seed
        self._margins = margins

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        number = rows[0]["key"].stage
        stage = self._stages[number]
        batch: dict[str, Any] = {"stage": number, "sources": {}}
        for side, collate in (("image_text", self._image_text), ("text", self._text), ("images", self._images)):
            of_side = [row for row in rows if row["key"].side == side]
            if of_side:
                batch["sources"][side] = of_side[0]["key"].source
                batch[side] = collate(of_side, stage)
        return batch

    def _image_text(self, rows: Sequence[Row], stage: Stage) -> dict[str, Any]:
        columns = {"caption": [text for row in rows for text in _captions(row)]}
        loss = stage.image_text and LOSS_RULES[stage.image_text.loss]
        if "image_text" in self._margins or (loss and loss.takes_negatives("image_text")):
            columns["negatives"] = [text for row in rows for text in row["negatives"]]
        if "short_caption" in rows[0]:
            columns["short_caption"] = [row["short_caption"] for row in rows]
        tokens = self._tokens(self._shown(columns, rows, stage), stage)
        side: dict[str, Any] = {
            "pixel_values": stage_pixels(self._processor.image_processor, stage, self._seed, rows),
            **tokens["caption"],
            "image_ids": stable_ids([_image_label(row) for row in rows]),
            "text_ids": stable_ids(columns["caption"]),
        }
        if "negatives" in columns:
            side |= {"negatives": tokens["negatives"], "negative_ids": stable_ids(columns["negatives"])}
            side |= _margins(rows)
        if "short_caption" in columns:
            short = tokens["short_caption"]
            side |= {"short_caption": short, "short_text_ids": stable_ids(columns["short_caption"])}
        return side

    def _images(self, rows: Sequence[Row], stage: Stage) -> dict[str, Any]:
        """Two pictures of a row, or two views of its only one; the second has random numbers of its own."""
        partners = [{**row, "image": row.get("partner", row["image"])} for row in rows]
        pixels = partial(stage_pixels, self._processor.image_processor, stage, self._seed)
        return {
            "picture": {"pixel_values": pixels(rows)},
            "partner": {"pixel_values": pixels(partners, "partner/")},
            "row_ids": stable_ids([_image_label(row) for row in rows]),
        }

    def _text(self, rows: Sequence[Row], stage: Stage) -> dict[str, Any]:
        columns = {"query": [row["query"] for row in rows], "positive": [row["positive"] for row in rows]}
        if "negatives" in rows[0]:
            columns["negatives"] = [text for row in rows for text in row["negatives"]]
        side: dict[str, Any] = self._tokens(self._shown(columns, rows, stage), stage)
        if "id" in rows[0]:
            side["row_ids"] = stable_ids([str(row["id"]) for row in rows])
        if "score" in rows[0]:
            side["score"] = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
        for name, texts in columns.items():
            side[f"{name.removesuffix('s')}_ids"] = stable_ids(texts)
        return side | _margins(rows)

    def _shown(self, columns: dict[str, list[str]], rows: Sequence[Row], stage: Stage) -> dict[str, list[str]]:
        """The texts as the stage's augmentation leaves them, with their prompts whole."""
        spec = stage.augmentation
        if spec is None or not spec.changes_texts():
            return columns
        shown: dict[str, list[str]] = {}
        for name, texts in columns.items():
            each = len(texts) // len(rows)  # negatives are several a row, captions may be
            shown[name] = []
            for place, text in enumerate(texts):
                row = rows[place // each]
                prompt = prompt_of(row, name)
                draw = partial(_text_generator, self._seed, row["key"], f"{name}/{place % each}")
                shown[name].append(prompt + augmented_text(text.removeprefix(prompt), draw, spec))
        return shown

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


def _margins(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    if "margins" not in rows[0]:
        return {}
    return {"margins": torch.tensor([row["margins"] for row in rows], dtype=torch.float32)}


def _padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]  # (rows, tokens)
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=lengths.sum())
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def _one(rows: list[Row], key: Key) -> Row:
    """The row of a key, or the two of a pair as one."""
    return {**rows[0], "key": key} | ({"partner": rows[1]["image"]} if len(rows) > 1 else {})


def _text_generator(seed: int, key: Key, text: str, purpose: str) -> np.random.Generator:
    return row_generator(seed, key, f"{purpose}/{text}")


def prompt_of(row: Row, column: str) -> str:
    """What stands before a column's texts; negatives have that of the right answers, short captions of captions."""
    prompts = row.get("prompts", {})
    names = RIGHT_ANSWERS if column in ("negatives", "short_caption") else (column,)
    return next((prompts[name] for name in names if name in prompts), "")


def _captions(row: Row) -> list[str]:
    return row["caption"] if isinstance(row["caption"], list) else [row["caption"]]


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
