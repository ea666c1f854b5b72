"""What a run minimises: functions of embeddings that import torch alone, and ``joint``, which sums a stage's losses.

1. ``info_nce``: the paper's loss, with and without hard negatives; ``siglip`` and ``cosent`` beside it; ``nt_xent``
   for pairs of one kind.
2. ``pairing``: which entries of a score matrix are positives, negatives or left out. ``logits``: what all losses share.
3. ``tiled``: InfoNCE without the whole matrix. ``matryoshka``: any loss on prefixes of the embeddings; ``layers``: on
   earlier layers' vectors; ``captions``: for each of several captions a picture.
4. ``gather``: a batch over several processes. ``gradient_cache``: a batch through little memory.
5. ``joint``: the one table of losses, ``LOSSES``, and the joint objective; ``columns``: what a batch's are called;
   ``stored`` keeps the objective's own parameters.
   ``batch_metrics``: what is logged beside it.

To add a loss is a file with its function, a rule in ``recipe.schema.LOSS_RULES`` and a line in ``joint.LOSSES``; or,
from outside, one call of ``joint.register``.

    >>> import torch
    >>> from trainer_ext.losses import info_nce
    >>> round(info_nce(torch.ones(4, 8), torch.ones(4, 8)).item(), 4)  # 2 ln 4: identical vectors only guess
    2.7726
"""

from trainer_ext.losses.cosent import cosent
from trainer_ext.losses.info_nce import info_nce, info_nce_plus
from trainer_ext.losses.matryoshka import matryoshka
from trainer_ext.losses.nt_xent import nt_xent
from trainer_ext.losses.siglip import siglip

__all__ = ["cosent", "info_nce", "info_nce_plus", "matryoshka", "nt_xent", "siglip"]
