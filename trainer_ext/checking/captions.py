"""What stages see of a source's captions beyond whole ones: their sentences, and several of one picture."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trainer_ext.checking.findings import Finding, share
from trainer_ext.checking.texts import Place, TokenCounts, token_findings
from trainer_ext.data.captions import sentences
from trainer_ext.recipe.schema import Side
from trainer_ext.recipe.stages import Stage


def reading_whole(column: str, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that read the texts of one of our columns as they stand."""
    return [stage for stage in stages if column != "caption" or not _splits(stage.image_text)]


class SeenCaptions:
    """Counts a source's captions by stages that split them, or take several a picture.

    Args:
        tokenizer: None leaves tokens uncounted.
        stages: those that read the source.
    """

    def __init__(self, tokenizer: Any, stages: Sequence[Stage]) -> None:
        self._splitting = [stage for stage in stages if _splits(stage.image_text)]
        self._several = [
            (stage.name, side) for stage in stages if (side := stage.image_text) and side.captions_per_image > 1
        ]
        self.tokens: TokenCounts | None = None
        if self._splitting and tokenizer is not None:
            self.tokens = TokenCounts(tokenizer, [stage.max_length for stage in self._splitting])
        self._rows = 0
        self._fewer: Counter[str] = Counter()
        self._first: dict[str, int] = {}

    def add(self, captions: Sequence[Sequence[str]], rows: Sequence[int], prompt: str) -> None:
        """Count the captions of rows, each with the row's number; ``prompt`` is what training puts before a text."""
        self._rows += len(rows)
        split = [[one for text in texts for one in sentences(text)] if self._splitting else [] for texts in captions]
        if self.tokens is not None:
            numbers = [row for row, texts in zip(rows, split, strict=True) for _ in texts]
            self.tokens.add([prompt + text for texts in split for text in texts], numbers)
        for name, side in self._several:
            for row, whole, parts in zip(rows, captions, split, strict=True):
                if len(whole if side.split_captions is None else parts) < side.captions_per_image:
                    self._fewer[name] += 1
                    self._first.setdefault(name, row)

    def findings(self, source: str, column: str, place: Place) -> Iterator[Finding]:
        """Sentences that are cut, and rows that have fewer captions than a stage takes.

        Args:
            column: the data's own name of the column. place: file and row of a row's number.
        """
        if self.tokens is not None:
            found = token_findings(source, column, "sentence", self.tokens, self._splitting, place)
            yield from (finding for finding in found if finding.kind == "cut")  # what is unknown is said of captions
        for name, side in self._several:
            if fewer := self._fewer[name]:
                words = (
                    f"stage {name!r} takes captions_per_image {side.captions_per_image}, and "
                    f"{share(fewer, self._rows)} of the rows have fewer: theirs are taken again, which costs time and "
                    "shows nothing new. Set it lower, or split_captions: sentences if captions are long; first here."
                )
                yield Finding("note", "few-captions", source, words, *place(self._first[name]), column)


def _splits(side: Side | None) -> bool:
    return side is not None and side.split_captions is not None
