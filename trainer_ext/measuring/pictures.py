"""Pictures of a source as items to encode: known by a hash of their bytes, decoded only while they are encoded.

Every picture is decoded once when the tasks are built, so that one that cannot be is a broken row, found before any
model runs. Nothing decoded is kept.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.data.images import IMAGE_ERRORS, open_image
from trainer_ext.data.sources import broken_image, undecoded
from trainer_ext.evaluation.items import Picture
from trainer_ext.recipe.schema import Source

# Decoding leaves Python's lock; more threads than this wait for the disk.
THREADS = 4
# Pictures read from the table at once, and so held encoded at once.
READ_AT_ONCE = 64


class Pictures:
    """The pictures of one source by row, each read once, however many tasks ask for it.

    ``known`` has one ``Picture`` for each content, shared by all sources: what two tables hold is encoded once.
    """

    def __init__(self, source: Source, rows: Dataset, broken: BrokenRows, known: dict[str, Picture]) -> None:
        self.source, self.rows, self.broken, self.known = source, rows, broken, known
        self._stored = undecoded(rows).select_columns(["image"])
        self._found: dict[int, Picture | None] = {}

    def at(self, places: Sequence[int], progress: bool) -> list[Picture | None]:
        """The pictures of these rows; None for one that cannot be decoded, which is listed with its row.

        Raises:
            DataError: more of them than the source's ``max_broken_rows``.
        """
        wanted = [place for place in dict.fromkeys(places) if place not in self._found]
        bar = tqdm(total=len(wanted), desc=f"{self.source.name}: pictures", leave=False, disable=not progress)
        with bar, ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(wanted), READ_AT_ONCE):
                block = wanted[start : start + READ_AT_ONCE]
                for place, found in zip(block, pool.map(_key_or_error, self._stored[block]["image"]), strict=True):
                    self._found[place] = self._picture(place, found)
                bar.update(len(block))
        return [self._found[place] for place in places]

    def _picture(self, place: int, found: str | Exception) -> Picture | None:
        if isinstance(found, Exception):
            self.broken.add(self.source, broken_image(self.source, self.rows, place, found))
            return None
        return self.known.setdefault(found, Picture(found, partial(_decoded, self._stored, place)))


def _key_or_error(stored: Mapping[str, Any]) -> str | Exception:
    try:
        return open_image(stored)[1].removeprefix("bytes/")
    except IMAGE_ERRORS as error:
        return error


def _decoded(stored: Dataset, place: int) -> Image.Image:
    return open_image(stored[place]["image"])[0]
