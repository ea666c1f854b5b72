"""Texts of a source: how long they are in tokens, what the tokenizer does not know, and captions that say nothing.

Lengths are kept as a count per length, so that every stage's limit can be asked for afterwards.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from trainer_ext.checking.findings import Finding, Level, quoted, share
from trainer_ext.recipe.stages import Stage

# Share of a source's texts cut by a stage, and of its tokens that are unknown, from which it is a warning.
MUCH_CUT, MUCH_UNKNOWN = 0.1, 0.01
# Share of a source's captions that say left or right, from which flipping its pictures is a warning.
MUCH_SIDED = 0.01
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)

Place = Callable[[int], tuple[str, int]]

# What programs, cameras and web pages write where a caption belongs. The first that matches is named.
_MADE: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (words, re.compile(pattern, re.IGNORECASE))
    for words, pattern in (
        ("a file's name", r"^[\w ()+.,-]*\.(jpe?g|png|gif|webp|bmp|tiff?|heic|avif|svg)$"),
        ("a camera's or a phone's number", r"^(img|dsc[nf_]?|pxl|mvi|vid|screen ?shot|image|photo|picture|scan|file)"
                                           r"[-_ #]*\d[\d_ .:-]*$"),
        ("a date", r"^\d{4}[-_./]?\d{2}[-_./]?\d{2}([ t_-]*\d{2}[:._-]?\d{2}([:._-]?\d{2})?)?$"),
        ("an address", r"^(https?://|www\.)\S+$"),
        ("a hash or an id", r"^([0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"),
        ("a placeholder", r"^[\W_]*(null|none|nan|n/?a|untitled|undefined|unknown|no (caption|description|title)"
                          r"|(no )?alt text|(an? |the )?(image|photo|picture|caption)|todo|lorem ipsum.*)[\W_]*$"),
        ("markup", r"</?[a-z][^<>]*>|&(amp|lt|gt|quot|nbsp|#\d+);|\{\{|\]\(https?:"),
        ("text read in a wrong encoding", "\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\ufffd"),
        ("a language model's talk", r"^(as an ai\b|i'?m sorry\b|i (cannot|can't|am unable)\b|sure[,!]|certainly[,!]"
                                    r"|here('s| is| are) (a|the|your) )"),
        ("a captioning model's opening", r"^(the|this) (image|picture|photo|photograph) "
                                         r"(shows|depicts|features|captures|displays|showcases|presents)\b"
                                         r"|^in (this|the) (image|picture|photo)\b"),
        ("one word over and over", r"\b(\w+)(\W+\1\b){3,}"),
    )
)  # fmt: skip
# Only these are wrong in questions and answers, too.
_WRONG_ANYWHERE = ("markup", "text read in a wrong encoding")
# One letter of these scripts is a word.
_WORD_LETTERS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")


def made_by_machine(text: str, caption: bool = True) -> str | None:
    """What a text is, in words, if no person wrote it for its picture; None if it looks like a text.

    >>> made_by_machine("IMG_0042.JPG"), made_by_machine("A photo."), made_by_machine("a photo of a cat")
    ("a file's name", 'a placeholder', None)
    """
    text = text.strip()
    for words, pattern in _MADE:
        if (caption or words in _WRONG_ANYWHERE) and pattern.search(text):
            return words
    return None


def too_short(text: str) -> bool:
    """Whether a caption has fewer than two letters or digits; of scripts without spaces one is enough.

    >>> too_short("x"), too_short("!?"), too_short("ox"), too_short("猫")
    (True, True, False, False)
    """
    return sum(letter.isalnum() for letter in text) < 2 and not _WORD_LETTERS.search(text)


def says_a_side(text: str) -> bool:
    """Whether an English text says left or right, which a flip of its picture would make wrong.

    >>> says_a_side("an arrow to the left"), says_a_side("a bright leftover")
    (True, False)
    """
    return _SIDE.search(text) is not None


def flip_findings(
    source: str, column: str, sided: int, texts: int, first: int, stages: Sequence[Stage], place: Place
) -> Iterator[Finding]:
    """Captions that say left or right, in stages that flip pictures.

    Args:
        column: the data's own name of the column.
        sided: captions that say a side, of ``texts``; ``first`` is the row of the first of them.
        stages: those that read the source.
    """
    flips = [stage.name for stage in stages if stage.augmentation is not None and stage.augmentation.horizontal_flip]
    if flips and sided:
        words = (
            f"stage {flips[0]!r} flips pictures, and {share(sided, texts)} of the captions say left or right, which "
            "is wrong of a flipped picture. Set horizontal_flip: 0, or give them a stage without it; first here."
        )
        level: Level = "warning" if sided >= MUCH_SIDED * texts else "note"
        yield Finding(level, "flip", source, words, *place(first), column)


class Seen(NamedTuple):
    """A text that is named in a message, and the number of its row."""

    text: str
    row: int


class TokenCounts:
    """Tokens of one column: a count per length, special tokens included, and how many are unknown.

    Args:
        tokenizer: a tokenizer of transformers.
        limits: the longest text of each stage that reads the column, in tokens.
    """

    def __init__(self, tokenizer: Any, limits: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.lengths: Counter[int] = Counter()
        self.unknown, self.texts_with_unknown = 0, 0
        self.first_cut: dict[int, Seen] = {}
        self.first_unknown: Seen | None = None
        self._limits = sorted(set(limits))
        self._special = tokenizer.num_special_tokens_to_add()

    def add(self, texts: Sequence[str], rows: Sequence[int]) -> None:
        """Count the tokens of texts, each with its row's number."""
        encoded = self._tokenizer(
            list(texts), return_attention_mask=False, return_token_type_ids=False, truncation=False, verbose=False
        )["input_ids"]
        unk = self._tokenizer.unk_token_id
        self.lengths.update(map(len, encoded))
        for text, row, ids in zip(texts, rows, encoded, strict=True):
            for limit in self._limits:
                if len(ids) > limit:
                    self.first_cut.setdefault(limit, Seen(text, row))
            missing = 0 if unk is None else ids.count(unk)
            if missing:
                self.unknown, self.texts_with_unknown = self.unknown + missing, self.texts_with_unknown + 1
                self.first_unknown = self.first_unknown or Seen(text, row)

    @property
    def texts(self) -> int:
        """Texts that were counted."""
        return self.lengths.total()

    @property
    def tokens(self) -> int:
        """Tokens of all texts, without those that begin and end each."""
        return sum(length * count for length, count in self.lengths.items()) - self._special * self.texts

    def quantile(self, part: float) -> int:
        """The length, special tokens included, that this part of the texts does not exceed."""
        lengths = sorted(self.lengths)
        ends = np.cumsum([self.lengths[length] for length in lengths])
        return lengths[int(np.searchsorted(ends, part * ends[-1]))] if lengths else 0

    def cut(self, limit: int) -> int:
        """Texts that are longer than a limit."""
        return sum(count for length, count in self.lengths.items() if length > limit)

    def lost(self, limit: int) -> float:
        """Share of all tokens that lie behind a limit."""
        total = sum(length * count for length, count in self.lengths.items())
        return sum((length - limit) * count for length, count in self.lengths.items() if length > limit) / max(total, 1)

    def as_record(self) -> dict[str, Any]:
        """The figures of the report."""
        return {
            "texts": self.texts,
            "tokens": self.tokens,
            "unknown": self.unknown,
            "length": {name: self.quantile(part) for name, part in (("median", 0.5), ("p95", 0.95), ("longest", 1.0))},
            "cut": {
                str(limit): {"texts": self.cut(limit), "share_of_tokens": self.lost(limit)} for limit in self._limits
            },
        }


def token_findings(
    source: str, column: str, name: str, counts: TokenCounts, stages: Sequence[Stage], place: Place
) -> Iterator[Finding]:
    """What is cut by each stage's limit, and what the tokenizer does not know.

    Args:
        column: the data's own name of the column.
        name: ours, for messages.
        stages: those that read it.
        place: file and row of a row's number.
    """
    for stage in stages:
        if not (cut := counts.cut(stage.max_length)):
            continue
        seen = counts.first_cut[stage.max_length]
        much = cut >= MUCH_CUT * counts.texts
        yield Finding(
            "warning" if much else "note",
            "cut",
            source,
            f"stage {stage.name!r} cuts {share(cut, counts.texts)} of the {name} texts at max_length "
            f"{stage.max_length}, which loses {counts.lost(stage.max_length):.1%} of their tokens; the longest has "
            f"{counts.quantile(1.0):,} tokens. Set a larger max_length, or shorten the texts; the first is here.",
            *place(seen.row),
            column,
        )
    if counts.unknown and (seen_unknown := counts.first_unknown):
        part = counts.unknown / max(counts.tokens, 1)
        yield Finding(
            "warning" if part >= MUCH_UNKNOWN else "note",
            "unknown",
            source,
            f"the tokenizer does not know {share(counts.unknown, counts.tokens)} of the tokens of the {name} texts, in "
            f"{share(counts.texts_with_unknown, counts.texts)} of them, the first {quoted(seen_unknown.text)}. Use a "
            "tokenizer of this language, or a larger vocab_size.",
            *place(seen_unknown.row),
            column,
        )


def text_findings(
    source: str, column: str, texts: Sequence[str], rows: Sequence[int], place: Place, caption: bool
) -> Iterator[Finding]:
    """Captions that are too short, and texts that no person wrote."""
    for text, row in zip(texts, rows, strict=True):
        if (made := made_by_machine(text, caption)) is not None:
            words = f"{quoted(text)} is {made}, not {'a caption' if caption else 'a clean text'}. Write one, or remove "
            yield Finding("warning", "machine-text", source, f"{words}the row.", *place(row), column)
        elif caption and too_short(text):
            words = f"{quoted(text)} says next to nothing. Write a caption, or remove the row."
            yield Finding("warning", "short-caption", source, words, *place(row), column)


class Frequent:
    """The texts that occur most, by the counters of Misra and Gries (1982): memory for ``most`` of them, no more.

    Every text that is more than 1 in ``most`` of all is among them; a count is too low by at most that share.

    >>> frequent = Frequent(most=2)
    >>> for text in ("a", "b", "a", "c", "a"):
    ...     frequent.add(text, 0)
    >>> max(frequent.counts, key=frequent.counts.get), frequent.total
    ('a', 5)
    """

    def __init__(self, most: int = 2000) -> None:
        self.most = most
        self.counts: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.total = 0

    def add(self, text: str, row: int) -> None:
        """Count a text once more; ``row`` is kept of its first occurrence."""
        self.total += 1
        if text in self.counts:
            self.counts[text] += 1
        elif len(self.counts) < self.most:
            self.counts[text] = 1
            self.first[text] = row
        else:
            self.counts = {kept: count - 1 for kept, count in self.counts.items() if count > 1}
            self.first = {kept: self.first[kept] for kept in self.counts}
