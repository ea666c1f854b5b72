"""Measuring a model on the user's own sources.

Read ``tasks_from_sources`` (rows of sources become tasks), ``models`` (any model as two encoders), ``vector_cache``
(what was encoded once is not encoded again) and ``measure`` (models x tasks -> the report).
"""

from trainer_ext.measuring.models import Encoders, open_model
from trainer_ext.measuring.rows import TaskRows
from trainer_ext.measuring.tasks_from_sources import build_tasks, load_task_rows

__all__ = ["Encoders", "TaskRows", "build_tasks", "load_task_rows", "open_model"]
