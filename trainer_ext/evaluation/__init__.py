"""How good a model is. It takes two callables, texts -> vectors and images -> vectors, never a model class.

Read ``tasks`` (tasks made of rows, and ``evaluate``), ``base`` (what every task has), ``retrieval`` and its siblings
(what each kind measures), ``search`` (ranks at scale), ``metrics`` and ``figures`` (values and their intervals),
``items`` and ``precisions`` (the vectors), ``suites`` (named sets of tasks), ``baselines`` (what a model has to beat)
and ``report`` (the files with the figures).

>>> import numpy as np
>>> def encode(texts):  # as poor as can be: the vector counts words and letters
...     return np.array([[len(text.split()), len(text), 1.0] for text in texts])
>>> evaluate(encode, encode, [text_task("toy", [("a", "b"), ("two words", "too long")])], progress=False)
{'toy/ndcg10': 1.0, 'toy/r5': 1.0}
"""

from trainer_ext.evaluation.tasks import Task, evaluate, image_text_tasks, text_task

__all__ = ["Task", "evaluate", "image_text_tasks", "text_task"]
