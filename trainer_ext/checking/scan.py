"""One pass over the rows of a source, by the readers that training has, in the order of its files.

1. The source is opened with no limit to its broken rows, so that all of them are listed.
2. Its rows come some at a time; pictures are decoded in threads.
3. What is wrong with a row by itself is said at once. What takes all rows, such as twins, is worked out from the hashes
   that are kept of each: ``duplicates`` and ``overlap``.

Kept are, of 1,000,000 rows, some 100 MB for each text and each picture of a row, and no text and no pixel. A streaming
source is read file by file in the same way.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm

from trainer_ext.checking.alike import Grown
from trainer_ext.checking.captions import SeenCaptions, reading_whole
from trainer_ext.checking.findings import Finding, FindingLog, Level, share
from trainer_ext.checking.near_texts import plain, sketches, text_key, text_keys
from trainer_ext.checking.pictures import PictureFacts, Pictures, picture_facts
from trainer_ext.checking.texts import Frequent, Place, TokenCounts, says_a_side, text_findings
from trainer_ext.data.broken_rows import BrokenRow, BrokenRows, over_budget
from trainer_ext.data.images import IMAGE_ERRORS, undecodable
from trainer_ext.data.places import RowPlaces
from trainer_ext.data.sources import ROW_NUMBER, Rows, load_source, undecoded
from trainer_ext.data.streams import SourceStream
from trainer_ext.recipe.schema import Source
from trainer_ext.recipe.stages import Stage

NO_LIMIT = 2**62
TEXT_COLUMNS = ("caption", "query", "positive", "text")
_ROWS_AT_ONCE, _PICTURES_AT_ONCE = 1000, 100
_THREADS = 8


@dataclass
class TextColumn:
    """What is kept of the texts of a column: hashes of each, and counts.

    ``keys``, ``rows`` and ``things`` are (texts,): hash of the plain text, number of its row, and what the row shows.
    ``sided`` are captions that say left or right, the first of them in row ``first_sided``.
    """

    tokens: TokenCounts | None = None
    texts: int = 0
    sided: int = 0
    first_sided: int = 0
    frequent: Frequent = field(default_factory=Frequent)
    openings: Frequent = field(default_factory=Frequent)
    keys: Grown = field(default_factory=Grown)
    rows: Grown = field(default_factory=Grown)
    things: Grown = field(default_factory=Grown)
    minima: Grown = field(default_factory=Grown)

    def add(self, texts: Sequence[str], rows: np.ndarray, things: np.ndarray, caption: bool) -> None:
        """Keep the hashes of texts."""
        normal = [plain(text) for text in texts]
        blocks = (text_keys(normal), rows, things, sketches(normal))
        for grown, block in zip((self.keys, self.rows, self.things, self.minima), blocks, strict=True):
            grown.add(block)
        for text, row in zip(normal, rows.tolist(), strict=True) if caption else ():
            self.frequent.add(text, row)
            if says_a_side(text):
                self.first_sided, self.sided = self.first_sided if self.sided else row, self.sided + 1
            if len(words := text.split(maxsplit=4)) > 4:
                self.openings.add(" ".join(words[:4]), row)

    def __len__(self) -> int:
        return len(self.keys.values)


@dataclass
class SourceScan:
    """What one pass over a source has kept.

    Args:
        rows: that can be used.
        broken: that cannot.
        texts: by our names of the columns. captions: those of pictures, as stages see them.
        things: (rows,) hash of what each row shows: its id, else its picture's file, else a number of its own.
        numbers: (rows,) numbers of the rows, for ``place``.
        row_keys: (rows,) equal for rows that say the same.
        pairs: (pairs,) hashes of a picture or query with a text that belongs to it; ``pair_rows`` are their rows.
        negative_pairs: of a query with a text that is said not to belong to it.
    """

    source: Source
    place: Place
    rows: int = 0
    broken: int = 0
    texts: dict[str, TextColumn] = field(default_factory=dict)
    captions: SeenCaptions | None = None
    pictures: Pictures = field(default_factory=Pictures)
    things: Grown = field(default_factory=Grown)
    numbers: Grown = field(default_factory=Grown)
    row_keys: Grown = field(default_factory=Grown)
    pairs: Grown = field(default_factory=Grown)
    pair_rows: Grown = field(default_factory=Grown)
    negative_pairs: Grown = field(default_factory=Grown)
    negative_rows: Grown = field(default_factory=Grown)
    self_negatives: Grown = field(default_factory=Grown)
    self_pairs: Grown = field(default_factory=Grown)
    scores: set[float] = field(default_factory=set)

    def column(self, name: str) -> str:
        """The data's own name of a column."""
        return self.source.columns[name]


class AllBroken(BrokenRows):
    """A list of broken rows without a limit, in memory."""

    def add(self, source: Source, row: BrokenRow) -> None:
        """List a row."""
        self.found(source, [row])

    def of(self, source: str) -> list[BrokenRow]:
        """The rows of a source, in the order of its files."""
        found = [row for place, row in self._known.items() if place[0] == source]
        return sorted(found, key=lambda row: (row.file, row.row))


def open_source(source: Source, seed: int, broken: BrokenRows) -> Rows:
    """The rows of a source without a limit to those that cannot be used.

    Raises:
        DataError: it cannot be read at all.
    """
    lenient = source.model_copy(update={"max_broken_rows": NO_LIMIT})
    return SourceStream(lenient, seed, broken) if source.streaming else load_source(lenient, broken)


def scan(
    source: Source, rows: Rows, broken: AllBroken, tokenizer: Any, stages: Sequence[Stage], log: FindingLog,
    most_pictures: int | None = None,
) -> SourceScan:  # fmt: skip
    """Read all rows of a source once.

    Args:
        rows: of ``open_source``, with the same ``broken``.
        tokenizer: None leaves tokens uncounted.
        stages: those that read the source.
        log: takes what is wrong with single rows.
        most_pictures: pictures to look at, evenly spread (of a streaming source the first ones); None for all.

    Raises:
        DataError: files that turn out not to be readable.
    """
    found = SourceScan(source, _places(source, rows))
    if "caption" in source.columns:
        found.captions = SeenCaptions(tokenizer, stages)
    for name in (*TEXT_COLUMNS, "negatives"):
        if name in source.columns:
            limits = [stage.max_length for stage in reading_whole(name, stages)]
            found.texts[name] = TextColumn(None if tokenizer is None else TokenCounts(tokenizer, limits))
    looked_at = _spread(None if isinstance(rows, SourceStream) else len(rows), most_pictures)
    total = None if isinstance(rows, SourceStream) else len(rows)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        with tqdm(total=total, desc=f"checking {source.name}", unit="row", leave=False) as bar:
            for numbers, table in _tables(rows, pictures="image" in source.columns):
                _take(found, broken, pool, numbers, table, log, looked_at)
                bar.update(len(numbers))
    listed = broken.of(source.name)
    found.broken = len(listed)
    log.add(broken_findings(source, listed, found.rows))
    return found


def broken_findings(source: Source, broken: Sequence[BrokenRow], usable: int) -> Iterator[Finding]:
    """Every row that cannot be used, and whether they are too many for the source."""
    over = len(broken) > source.max_broken_rows
    level: Level = "error" if over else "warning"
    if broken:
        rest = f"{over_budget(source, len(broken))} Correct them, or set max_broken_rows." if over else (
            f"{share(len(broken), len(broken) + usable)} of the rows cannot be used and are left out."
        )  # fmt: skip
        yield Finding(level, "broken-rows", source.name, rest)
    for row in broken:
        yield Finding(level, "broken-row", source.name, row.reason, row.file, row.row, row.column)


def _places(source: Source, rows: Rows) -> Place:
    return rows.place if isinstance(rows, SourceStream) else RowPlaces(source)


def _spread(rows: int | None, most: int | None) -> Callable[[int], bool]:
    """Whether the picture of a row, by its place among the rows, is to be decoded."""
    if most is None:
        return lambda place: True
    if rows is None:
        return lambda place: place < most
    step = max(1, -(-rows // most))
    return lambda place: place % step == 0


def _tables(rows: Rows, pictures: bool) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Some rows at a time, with their numbers in the source as it was read."""
    if isinstance(rows, SourceStream):
        yield from rows.tables()
        return
    stored: Dataset = undecoded(rows).with_format("arrow")
    begin = 0
    for table in stored.iter(_PICTURES_AT_ONCE if pictures else _ROWS_AT_ONCE):
        numbers = np.arange(begin, begin + len(table))
        begin += len(table)
        if ROW_NUMBER in table.column_names:
            numbers = table.column(ROW_NUMBER).to_numpy()
        yield numbers, table


# --- a block of rows -----------------------------------------------------------------------------------------------


def _take(
    found: SourceScan, broken: AllBroken, pool: ThreadPoolExecutor, numbers: np.ndarray, table: pa.Table,
    log: FindingLog, looked_at: Callable[[int], bool],
) -> None:  # fmt: skip
    columns = {name: table.column(name).to_pylist() for name in table.column_names if name != ROW_NUMBER}
    facts: list[PictureFacts | None] = [None] * len(numbers)
    if "image" in columns:
        chosen = [place for place in range(len(numbers)) if looked_at(found.rows + place)]
        good = np.ones(len(numbers), bool)
        for place, seen in zip(
            chosen, pool.map(_looked_at, [columns["image"][place] for place in chosen]), strict=True
        ):
            if isinstance(seen, Exception):
                good[place] = False
                reason = undecodable(columns["image"][place]["path"], seen)
                where = found.place(int(numbers[place]))
                broken.add(found.source, BrokenRow(found.source.name, *where, found.column("image"), reason))
            else:
                facts[place] = seen
        kept = np.flatnonzero(good).tolist()
        numbers, facts = numbers[good], [facts[place] for place in kept]
        columns = {name: [values[place] for place in kept] for name, values in columns.items() if name != "image"}
        seen_pictures = [(one, int(row)) for one, row in zip(facts, numbers, strict=True) if one is not None]
        found.pictures.add([one for one, _ in seen_pictures], [row for _, row in seen_pictures])
    things = _things(found.source, columns, facts, numbers)
    found.rows += len(numbers)
    found.numbers.add(numbers)
    found.things.add(things)
    keys = {name: _take_texts(found, name, columns[name], numbers, things, log) for name in found.texts}
    _take_pairs(found, keys, facts, numbers, things)
    if "score" in columns and len(found.scores) < 2:
        found.scores.update(map(float, columns["score"]))


def _looked_at(stored: dict[str, Any]) -> PictureFacts | Exception:
    try:
        return picture_facts(stored)
    except IMAGE_ERRORS as error:
        return error


def _things(
    source: Source, columns: dict[str, list[Any]], facts: Sequence[PictureFacts | None], numbers: np.ndarray
) -> np.ndarray:
    if "id" in columns:
        return text_keys([f"id/{value}" for value in columns["id"]])
    names = [
        f"{source.name}/{row}" if one is None else f"file/{one.label}" for one, row in zip(facts, numbers, strict=True)
    ]
    return text_keys(names)


def _take_texts(
    found: SourceScan, name: str, values: list[Any], numbers: np.ndarray, things: np.ndarray, log: FindingLog
) -> list[list[int]]:
    """Look at the texts of a column; return the hashes of each row's."""
    lists = [value if isinstance(value, list) else [value] for value in values]
    counts = np.array([len(texts) for texts in lists], np.int64)
    texts = [text for row in lists for text in row]
    rows, column = np.repeat(numbers, counts), found.texts[name]
    column.texts += len(texts)
    right = "caption" if found.source.task == "image-text" else "positive"
    prompt = found.source.prompts.get(right if name == "negatives" else name, "")
    if name == "caption" and found.captions is not None:
        found.captions.add(lists, numbers.tolist(), prompt)
    if column.tokens is not None:
        column.tokens.add([prompt + text for text in texts] if prompt else texts, rows.tolist())
    if name == "negatives":  # other rows' positives, mostly: only their hashes are of use
        keys = [text_key(plain(text)) for text in texts]
    else:
        column.add(texts, rows, np.repeat(things, counts), caption=name == "caption")
        log.add(
            text_findings(
                found.source.name, found.column(name), texts, rows.tolist(), found.place, caption=name == "caption"
            )
        )
        keys = column.keys.last().tolist()
    ends = np.cumsum(counts).tolist()
    return [keys[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]


def pair_key(left: int, right: int) -> int:
    """A hash of two hashes, in this order."""
    return text_key(f"{left}/{right}")


def _take_pairs(
    found: SourceScan, keys: dict[str, list[list[int]]], facts: Sequence[PictureFacts | None], numbers: np.ndarray,
    things: np.ndarray,
) -> None:  # fmt: skip
    """Which texts belong to which pictures or queries, and which do not."""
    row_keys, pairs, pair_rows, negative, negative_rows = [], [], [], [], []
    for place, row in enumerate(numbers.tolist()):
        if "text" in keys:
            mine = []
            row_keys += keys["text"][place]
        elif "query" not in keys:  # of pictures: paired with each other they have no texts, and the id instead
            one, texts = facts[place], keys["caption"][place] if "caption" in keys else [int(things[place])]
            row_keys.append(text_key(f"{row if one is None else one.label}/{sorted(texts)}"))
            query = None if one is None or "caption" not in keys else one.pixels
            mine = [] if query is None else [pair_key(query, text) for text in texts]
        else:
            [query], [positive] = keys["query"][place], keys["positive"][place]
            mine = [pair_key(query, positive)]
            row_keys.append(mine[0])
            if query == positive:
                found.self_pairs.add([row])
        if "negatives" in keys and query is not None:
            against = keys["negatives"][place]
            if query in against:
                found.self_negatives.add([row])
            negative += [pair_key(query, text) for text in against]
            negative_rows += [row] * len(against)
        pairs += mine
        pair_rows += [row] * len(mine)
    found.row_keys.add(np.array(row_keys, np.uint64))
    found.pairs.add(np.array(pairs, np.uint64))
    found.pair_rows.add(np.array(pair_rows, np.int64))
    found.negative_pairs.add(np.array(negative, np.uint64))
    found.negative_rows.add(np.array(negative_rows, np.int64))
