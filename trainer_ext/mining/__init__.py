"""Hard negatives for a source: texts that a retriever ranks near a right answer and that are wrong.

Read ``pairs`` (what is mined: queries, candidates, right answers), ``search`` (candidates by sentence-transformers'
mining utility, block by block), ``retrievers`` (what gives it scores: BM25, or vectors of a model), ``mine`` (the whole
of it) and ``table`` (the files it leaves). Which candidates may be right after all is judged by
``trainer_ext.negatives``, for the demo's data too.

>>> pairs = Pairs.of_texts([("what is red?", "a red car"), ("what is blue?", "a blue car"), ("and green?", "a leaf")])
>>> mined = mine(pairs, MiningSettings(retriever="bm25", negatives=1), progress=False)
>>> [(mined.pairs.queries[row.query], [pairs.candidates[n] for n in row.negatives]) for row in mined.rows]
[('what is red?', ['a blue car']), ('what is blue?', ['a red car'])]
"""

from trainer_ext.mining.mine import Mined, MiningSettings, mine
from trainer_ext.mining.pairs import Pairs, read_pairs

__all__ = ["Mined", "MiningSettings", "Pairs", "mine", "read_pairs"]
