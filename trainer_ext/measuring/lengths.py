"""How long the texts of a task are, for figures by length."""

from collections.abc import Iterator, Sequence
from typing import Any

from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.hard_negatives import HardNegativeTask
from trainer_ext.evaluation.items import Item
from trainer_ext.evaluation.retrieval import RetrievalTask
from trainer_ext.evaluation.similarity import SimilarityTask

# Texts tokenised at once.
_AT_ONCE = 1000


def set_lengths(tasks: Sequence[Task], tokenizer: Any) -> None:
    """Give every task that has texts the tokens of each query: of the longer of its text and its first answer's.

    Tasks without texts, or of another kind, stay as they are.
    """
    pairs = {id(task): list(_pairs(task)) for task in tasks}
    texts = sorted({str(item) for found in pairs.values() for pair in found for item in pair if isinstance(item, str)})
    tokens: dict[str, int] = {}
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        ids = tokenizer(some, truncation=False, verbose=False)["input_ids"]
        tokens |= dict(zip(some, map(len, ids), strict=True))
    for task in tasks:
        if found := pairs[id(task)]:
            task.lengths = [max(tokens[str(item)] for item in pair if isinstance(item, str)) for pair in found]


def _pairs(task: Task) -> Iterator[tuple[Item, Item]]:
    """A query and its first answer; nothing for tasks without lengths."""
    if isinstance(task, RetrievalTask):
        for query, answers in zip(task.queries, task.relevant, strict=True):
            answer = task.candidates[answers[0]]
            if isinstance(query, str) or isinstance(answer, str):
                yield query, answer
    elif isinstance(task, HardNegativeTask):
        yield from zip(task.queries, task.positives, strict=True)
    elif isinstance(task, SimilarityTask):
        yield from zip(task.firsts, task.seconds, strict=True)
