"""What is wrong with the data of a recipe, before a run of days: ``check`` reads them all and trains nothing.

Read ``check``, then ``scan`` (one pass over a source) and ``findings``. ``texts``, ``pictures``, ``duplicates`` and
``overlap`` say what is wrong; ``alike`` and ``near_texts`` find twins without comparing all with all; ``plan_shares``,
``fit`` and ``batches_shown`` look at the run; ``page`` writes it down. The function is in the module of its name.
"""

from trainer_ext.checking.findings import Finding, FindingLog

__all__ = ["Finding", "FindingLog"]
