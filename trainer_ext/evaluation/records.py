"""Retrieval among records: one vector for a picture with its text, as a shop's index has them (arXiv 2304.03464)."""

from collections.abc import Hashable, Sequence

from trainer_ext.evaluation.items import Record, key_of
from trainer_ext.evaluation.retrieval import RetrievalTask


def among_records(task: RetrievalTask, records: Sequence[Record]) -> RetrievalTask:
    """The queries of ``task`` among records in place of its pictures: right are the records of right pictures.

    A record that holds the query itself, as its picture or its text, is left out for it: it would be found by that
    alone. A query whose answers are all left out is none.

    Args:
        task: retrieval among pictures, by texts or by pictures.
        records: one or more of each candidate of ``task``.

    Raises:
        ValueError: no query is left.
    """
    distinct = list(dict.fromkeys(records))
    holding: dict[Hashable, set[int]] = {}
    for place, record in enumerate(distinct):
        for part in (record.picture, record.text):
            holding.setdefault(key_of(part), set()).add(place)
    left_out = [holding.get(key_of(query), set()) for query in task.queries]
    answers = [
        {place for picture in pictures for place in holding[key_of(task.candidates[picture])]} - own
        for pictures, own in zip(task.relevant, left_out, strict=True)
    ]
    kept = [place for place, own in enumerate(answers) if own]
    if not kept:
        raise ValueError(
            f"Task {task.label!r}: no query is left for fuse, since each is in the only record that answers it. Give "
            "rows a list of captions, of which the first is the record's and the others are queries, or an id that "
            "rows of one thing share."
        )
    fused = RetrievalTask(
        task.name,
        [task.queries[place] for place in kept],
        distinct,
        [answers[place] for place in kept],
        task.metrics,
        task.prefix,
        exclude=[left_out[place] for place in kept],
    )
    fused.splits = None if task.splits is None else [task.splits[place] for place in kept]
    return fused
