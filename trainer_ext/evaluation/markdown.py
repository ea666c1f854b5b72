"""Figures as a Markdown table that a terminal shows well, too: names in words, percent, intervals, columns in line."""

from trainer_ext.evaluation.figures import is_share

Interval = tuple[float, float]
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text", "i2i": "image to image"}
_WORDS = {"ndcg": "nDCG@", "map": "MAP@", "acc": "accuracy@", "r": "R@"}
_NAMES = {"mrr": "MRR", "ece": "ECE", "auroc": "AUROC", "ap": "AP", "f1": "F1", "spearman": "Spearman"}
_NAMES |= {"pearson": "Pearson"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz_"


def metric_words(name: str) -> tuple[str, str]:
    """A flat metric name in words, as (task, metric).

    >>> metric_words("concepts_short/t2i_r5"), metric_words("headword_definition/ndcg10")
    (('concepts short', 'text to image R@5'), ('headword definition', 'nDCG@10'))
    """
    task, _, metric = name.rpartition("/")
    direction, figure = _direction(metric)
    figure, more = figure.removeprefix("corrected_"), ", corrected" if figure.startswith("corrected_") else ""
    word = next((word for short, word in _WORDS.items() if figure.removeprefix(short).isdecimal()), None)
    figure = _NAMES.get(figure, figure.replace("_", " ")) if word is None else word + figure.lstrip(_LETTERS)
    return task.replace("_", " "), f"{DIRECTIONS.get(direction, direction)} {figure}{more}".strip()


def _direction(metric: str) -> tuple[str, str]:
    direction, _, figure = metric.partition("_")
    return (direction, figure) if direction in DIRECTIONS else ("", metric)


def cell(name: str, value: float | None, interval: Interval | None, sign: str = "") -> str:
    """A figure with its interval, as a table has it; of a difference (``sign`` "+") marked if 0 is not in there."""
    if value is None:
        return "-"
    shares = is_share(name)

    def shown(number: float) -> str:
        return f"{100 * number:{sign}.1f}" if shares else f"{number:{sign}.4g}"

    if interval is None:
        return shown(value)
    sure = "*" if sign and (interval[0] > 0 or interval[1] < 0) else ""
    return f"{shown(value)}{sure} [{shown(interval[0])}, {shown(interval[1])}]"


def in_cell(words: str) -> str:
    r"""A name from the data as a cell of a Markdown table: one line, no bars, no markup of HTML.

    >>> in_cell("shop[<b>\nred|blue]")
    'shop[\\<b> red/blue]'
    """
    return " ".join(words.split()).replace("|", "/").replace("<", "\\<")


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is the head; two columns of words, then figures."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (width + 1) for width in widths[:2]] + ["-" * (width + 1) + ":" for width in widths[2:]]
    lines = [_aligned(row, widths) for row in rows]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _aligned(cells: list[str], widths: list[int]) -> str:
    words = [word.ljust(width) for word, width in zip(cells[:2], widths[:2], strict=True)]
    figures = [word.rjust(width) for word, width in zip(cells[2:], widths[2:], strict=True)]
    return f"| {' | '.join(words + figures)} |"
