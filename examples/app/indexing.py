"""How texts and pictures get into the index: each once, and what cannot be read or encoded is passed over, named.

No picture is kept as it came. Files are read a batch at a time, encoded, and reduced to thumbnails, so memory grows by
some ten kilobytes a picture, whatever its size.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from kept_index import Entry
from picture_files import Found, Picture, batches, digest_of, why
from search_index import Index, Item

Show = Callable[[float, str], object]  # is told the share that is done, and of what
Known = Mapping[str, Entry]  # vectors and thumbnails of an earlier start
NOTHING: Known = {}


class Report(NamedTuple):
    """What came of adding: a line on each thing left out, and how many were copies of what is there."""

    refused: list[str]
    copies: int = 0


def add_texts(index: Index, texts: Sequence[str], known: Known = NOTHING) -> tuple[Index, Report]:
    """The index with these texts; blank ones count as nothing."""
    refused: list[str] = []
    items: dict[str, Item] = {}
    copies, there = 0, {item.key for item in index.items["texts"]}
    for line, text in enumerate((text.strip() for text in texts), 1):
        key = f"text/{hashlib.sha256(text.encode(errors='replace')).hexdigest()}"
        if problem := index.too_long(text):
            refused.append(f"left out text {line}: {problem}")
        elif text and (key in items or key in there):
            copies += 1
        elif text:
            items[key] = Item(text, key=key)
    new = [key for key in items if key not in known]
    vectors, failed = encode_each(index, [items[key].name for key in new])
    for place, problem in failed.items():
        refused.append(f"left out text {items.pop(new[place]).name[:40]!r}: {problem}")
    fresh = dict(zip((key for key in new if key in items), vectors, strict=True))
    found = [fresh[key] if key in fresh else known[key][0] for key in items]
    return index.with_items("texts", found, list(items.values())), Report(refused, copies)


def add_images(
    index: Index,
    files: Iterable[Found],
    count: int,
    show: Show = lambda share, desc: None,
    known: Known = NOTHING,
) -> tuple[Index, Report]:
    """The index with ``count`` files, read, encoded and reduced batch by batch, in their order."""
    vectors: dict[str, np.ndarray] = {}
    items: dict[str, Item] = {}
    order: dict[str, int] = {item.key: -1 for item in index.items["images"]}  # key -> number of its file
    refused: list[str] = []
    copies = done = 0

    def read() -> Iterator[Picture]:
        nonlocal copies, done
        for found in files:
            done += 1
            try:
                key = digest_of(found.file)
                if key in order:
                    copies += 1
                    continue
                if key in known:
                    vectors[key], thumbnail = known[key]
                    items[key] = Item(found.name, found.caption, thumbnail, key)
                    order[key] = done
                    continue
                picture = Picture(found.name, found.caption, key, index.opener.read(found.file))
            except Exception as error:  # Pillow's readers let errors of many kinds through
                refused.append(f"left out {found.name}: {why(error)}")
                continue
            order[key] = done
            yield picture

    for batch in batches(read()):
        show((done - len(batch)) / max(1, count), f"indexing {count} files")
        found, failed = encode_each(index, [picture.image for picture in batch])
        good = iter(found)
        for place, (name, caption, key, image) in enumerate(batch):
            if place in failed:
                refused.append(f"left out {name}: {failed[place]}")
            else:
                vectors[key], items[key] = next(good), Item(name, caption, index.opener.thumbnail(image), key)
    keys = sorted(items, key=lambda key: order[key])
    new = index.with_items("images", [vectors[key] for key in keys], [items[key] for key in keys])
    return new, Report(refused, copies)


def encode_each(index: Index, things: list) -> tuple[list[np.ndarray], dict[int, str]]:
    """Vectors of what can be encoded, and by place why the others cannot: one odd thing does not end a batch."""
    if not things:
        return [], {}
    try:
        return list(index.encode(things)), {}
    except Exception as error:
        if len(things) == 1:
            return [], {0: why(error)}
    vectors: list[np.ndarray] = []
    failed: dict[int, str] = {}
    for place, thing in enumerate(things):
        found, problem = encode_each(index, [thing])
        vectors += found
        if problem:
            failed[place] = problem[0]
    return vectors, failed
