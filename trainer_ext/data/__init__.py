"""What a run reads: sources become rows, the plan says which rows feed which step, batches become tensors.

Read ``sources``, then ``plan`` (pure: which rows at which step) and ``batches`` (with a teacher, ``taught_batches``).
``formats``, ``readers``, ``columns``
and ``streams`` know the files; ``broken_rows`` and ``record`` keep account of what was left out and what was read;
``places`` finds the file and line of a row.
"""

from trainer_ext.data.sources import DataError, load_sources

__all__ = ["DataError", "load_sources"]
