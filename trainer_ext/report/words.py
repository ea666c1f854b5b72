"""Names and values of figures as people read them: ``shop[de]@64/t2i_r5`` is task shop, part de, variant 64, R@5.

A flat name is ``TASK[PART]@VARIANT/DIRECTION_METRIC``; part, variant and direction may be missing. A part is the rows
with one value of a column; a variant is a width (Matryoshka), a precision, or both (``64@int8``).
"""

import re
from dataclasses import dataclass

from trainer_ext.evaluation.figures import TASK_OF_FIGURE, is_share, less_is_better
from trainer_ext.report.data import Interval

DIRECTIONS = {"t2i": "text to image", "i2t": "image to text", "i2i": "image to image", "t2t": "text to text"}
_LABELS = {
    "accuracy": "accuracy",
    "acc": "accuracy@",
    "r": "R@",
    "ndcg": "nDCG@",
    "map": "MAP@",
    "hit": "hit@",
    "mrr": "MRR",
    "auroc": "AUROC",
    "ap": "AP",
    "f1": "F1",
    "ece": "ECE",
    "spearman": "Spearman",
    "pearson": "Pearson",
}
# Control characters, those that turn the direction of a line, and those that no XML file may have.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]")
_CORRECTED = "corrected_"  # one-index retrieval with the correction for each modality
_NUMBERED = re.compile(r"([a-z_]+?)(\d*)")


@dataclass(frozen=True)
class FigureName:
    """The parts of a flat name.

    >>> name = FigureName.of("shop[de]@64/t2i_r5")
    >>> name.task, name.part, name.variant, name.direction, name.metric
    ('shop', 'de', '64', 't2i', 'r5')
    >>> name.label, name.panel, FigureName.of("words/ndcg10").label
    ('R@5', 'shop, text to image', 'nDCG@10')
    >>> FigureName.of("one-index/corrected_r5").label, FigureName.of("match/f1").label
    ('R@5, corrected', 'F1')
    >>> [(name.width, name.precision) for name in map(FigureName.of, ("a@64/r5", "a@int8/r5", "a@64@int8/r5"))]
    [(64, None), (None, 'int8'), (64, 'int8')]
    """

    task: str
    part: str | None
    variant: str | None
    direction: str
    metric: str

    @classmethod
    def of(cls, name: str) -> "FigureName":
        """Take a flat name apart; what does not look like one is a task's metric of that name."""
        task, _, metric = name.rpartition("/")
        found = TASK_OF_FIGURE.fullmatch(task)
        base, before, variant, after = found.groups() if found else (task, None, None, None)
        direction, _, rest = metric.partition("_")
        if direction not in DIRECTIONS or not rest:
            direction, rest = "", metric
        return cls(base, before if before is not None else after, variant, direction, rest)

    @property
    def width(self) -> int | None:
        """The components that the variant keeps; None for all."""
        return next((int(word) for word in (self.variant or "").split("@") if word.isdecimal()), None)

    @property
    def precision(self) -> str | None:
        """The variant's precision; None for the model's own."""
        return next((word for word in (self.variant or "").split("@") if word and not word.isdecimal()), None)

    @property
    def kind(self) -> str:
        """The metric without its number: ``r`` of ``r5``, and of ``corrected_r5``."""
        metric = self.metric.removeprefix(_CORRECTED)
        found = _NUMBERED.fullmatch(metric)
        return found[1] if found and found[1] in _LABELS else metric

    @property
    def label(self) -> str:
        """The metric in words."""
        number = self.metric.removeprefix(_CORRECTED).removeprefix(self.kind)
        words = _LABELS.get(self.kind, self.kind.replace("_", " "))
        more = ", corrected" if self.metric.startswith(_CORRECTED) else ""
        return f"{words}{number}{more}" if number else f"{words.rstrip('@')}{more}"

    @property
    def panel(self) -> str:
        """The task and its direction, which one panel or one group of rows shows."""
        words = self.task.replace("_", " ")
        return f"{words}, {DIRECTIONS[self.direction]}" if self.direction else words

    @property
    def is_share(self) -> bool:
        """Shown in percent: all but a few, such as a threshold, and losses."""
        return is_share(self.metric)

    @property
    def better(self) -> int:
        """1: higher is better; -1: lower; 0: neither, as of a threshold."""
        if less_is_better(self.metric):
            return -1
        return 1 if self.is_share else 0

    def show(self, value: float, sign: bool = False) -> str:
        """A value as a table has it.

        >>> FigureName.of("a/r5").show(0.1234), FigureName.of("a/median_rank").show(12.0)
        ('12.3', '12')
        >>> FigureName.of("match/threshold").show(0.31415), FigureName.of("a/r5").show(0.01, sign=True)
        ('0.314', '+1.0')
        """
        plus = "+" if sign else ""
        if self.is_share:
            return f"{100 * value:{plus}.1f}"
        return f"{value:{plus}.0f}" if self.metric == "median_rank" and value == round(value) else f"{value:{plus}.3g}"

    def show_interval(self, interval: Interval, sign: bool = False) -> str:
        """An interval as a table has it.

        >>> FigureName.of("a/r5").show_interval((0.1, 0.2))
        '10.0 to 20.0'
        """
        return " to ".join(self.show(value, sign) for value in interval)


def plain(text: str, longest: int = 300) -> str:
    r"""Text that any file and font can hold: one line, no control characters, no half characters, not too long.

    >>> plain("a\x00b\ud800c\n  d"), plain("x" * 400, 10)
    ('a�b?c d', 'xxxxxxxxx…')
    """
    words = " ".join(text[: 20 * longest].encode("utf-8", "replace").decode().split())
    words = _UNFIT.sub("\N{REPLACEMENT CHARACTER}", words)
    return words if len(words) <= longest else words[: longest - 1] + "…"


def number(value: float) -> str:
    """A logged value in at most four figures.

    >>> number(0.00012345), number(12345.0), number(2.5)
    ('0.0001234', '12,345', '2.5')
    """
    if value == 0 or not abs(value) < float("inf"):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.2), duration(95), duration(7260)
    ('4.2 s', '1 min 35 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
