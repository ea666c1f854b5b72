"""What a check finds: one ``Finding`` each, counted by kind, the first of each kind kept to be shown.

All of them go into ``findings.jsonl`` as they are found, so that a million of them take no memory.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import IO, Literal, NamedTuple

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

# Of each kind, findings that are shown; all are counted.
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """Something about the data that is wrong, or worth knowing.

    Args:
        level: an "error" would end the run or spoil it, a "warning" makes it worse, a "note" is good to know.
        kind: one word for findings that are alike, such as ``near-text``.
        source: a source's or evaluation task's name; "" for what concerns the run.
        words: what it is, and the cure.
        file: with ``row`` (from 0, in the file) and ``column`` (the data's own name), where a single row is meant.

    >>> print(Finding("warning", "blank-picture", "photos", "one colour.", "a.parquet", 7, "image"))
    photos, a.parquet, row 7, column 'image': one colour.
    """

    level: Level
    kind: str
    source: str
    words: str
    file: str | None = None
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        place = [self.source, self.file]
        place += [
            None if self.row is None else f"row {self.row}",
            None if not self.column else f"column {self.column!r}",
        ]
        where = ", ".join(word for word in place if word)
        return f"{where}: {self.words}" if where else self.words


class Group(NamedTuple):
    """Findings of one kind and level in one source."""

    level: Level
    source: str
    kind: str


class FindingLog:
    """Takes findings: counts them, keeps the first few of each kind, writes all of them down.

    Args:
        file: where each becomes a line of JSON; None keeps no list.
        shown: how many of a kind are kept.

    >>> log = FindingLog(None, shown=1)
    >>> log.add([Finding("note", "cut", "texts", "12% are cut."), Finding("note", "cut", "texts", "80% are cut.")])
    >>> log.counts, [finding.words for finding in log.shown[Group("note", "texts", "cut")]]
    ({Group(level='note', source='texts', kind='cut'): 2}, ['12% are cut.'])
    """

    def __init__(self, file: IO[str] | None, shown: int = SHOWN) -> None:
        self._file, self._most = file, shown
        self.counts: dict[Group, int] = {}
        self.shown: dict[Group, list[Finding]] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Take note of them."""
        for finding in findings:
            group = Group(finding.level, finding.source, finding.kind)
            self.counts[group] = self.counts.get(group, 0) + 1
            kept = self.shown.setdefault(group, [])
            if len(kept) < self._most:
                kept.append(finding)
            if self._file is not None:
                self._file.write(json.dumps(asdict(finding), ensure_ascii=False) + "\n")

    def count(self, level: Level) -> int:
        """Findings of a level."""
        return sum(count for group, count in self.counts.items() if group.level == level)

    def groups(self, level: Level) -> list[Group]:
        """The kinds that were found at a level, in the order of finding."""
        return [group for group in self.counts if group.level == level]

    def describe(self) -> list[str]:
        """All that is shown, worst first: a line for each kept finding, and one for how many more there are."""
        lines = []
        for level in LEVELS:
            for group in self.groups(level):
                kept = self.shown[group]
                lines += [one_line(f"{level}: {finding}") for finding in kept]
                if (more := self.counts[group] - len(kept)) > 0:
                    lines.append(one_line(f"{level}: {group.source}: {more:,} more of the kind {group.kind}"))
        return lines


def one_line(text: str) -> str:
    """A text on one line and without a terminal's commands, whatever the data put into it."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def quoted(text: str, most: int = 60) -> str:
    """A text of the data as it stands in a message: in quotes, on one line, not endless.

    >>> quoted("a\\nb"), quoted("abcdefgh", most=5)
    ("'a\\\\nb'", "'ab...'")
    """
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def share(count: int, of: int) -> str:
    """A share as it stands in a message.

    >>> share(312, 1120), share(1, 100000)
    ('312 of 1,120 (27.9%)', '1 of 100,000 (under 0.1%)')
    """
    percent = 100 * count / max(of, 1)
    return f"{count:,} of {of:,} ({'under 0.1%' if 0 < percent < 0.05 else f'{percent:.1f}%'})"
