"""Whether two records measured the same data under one name: by hashes of items and answers, see ``Task.contents``."""

from collections.abc import Iterator

from trainer_ext.evaluation.figures import measured_on
from trainer_ext.evaluation.report import Report


def same_data(first: Report, second: Report, figure: str) -> bool:
    """Whether a figure is of the same queries, candidates and answers in both, as far as they know."""
    return _same(first, second, measured_on(figure))


def _same(first: Report, second: Report, label: str) -> bool:
    """Whether a task, or a part of it, is the same in both, as far as they know."""
    whole = label if label in first.sizes else label.partition("[")[0]
    ours, theirs = first.contents.get(label), second.contents.get(label)
    if ours is not None and theirs is not None:
        return ours == theirs
    return whole not in first.sizes or first.sizes[whole] == second.sizes.get(whole, first.sizes[whole])


def other_data(first: Report, second: Report, name: str, other: str) -> Iterator[str]:
    """Tasks of one name that are not the same, whose figures are not compared."""
    both = [label for label in first.sizes if label in second.sizes]
    for label in both:
        sizes = first.sizes[label], second.sizes[label]
        if not _same(first, second, label):
            words = f"{sizes[0]} in {name}, {sizes[1]} in {other}" if sizes[0] != sizes[1] else (
                f"{sizes[0]} in both, but not the same rows"
            )  # fmt: skip
            yield f"{label} is not the same task: {words}. Its figures are not compared."
            continue
        parts = [part for part in first.contents if part.startswith(f"{label}[") and part in second.contents]
        if others := [part.removeprefix(label) for part in parts if not _same(first, second, part)]:
            words = f"the parts {', '.join(others)} are not the same queries in {name} and {other}"
            yield f"{label}: {words} (lengths are in tokens of each run's own tokenizer). They are not compared."
    if unknown := [label for label in both if not {label} <= first.contents.keys() & second.contents.keys()]:
        words = "was written by an older version, which did not keep what its tasks hold"
        name = name if unknown[0] not in first.contents else other
        yield f"{name} {words}: tasks of the same name and size are taken for the same."
