"""The trainer: ``transformers.Trainer`` for joint contrastive training in stages.

1. ``trainer``: one step, hop by hop.
2. ``stages``: what changes at a boundary, and what a stage trains. ``model_parts``: parameters by part of the model.
3. ``embedding``: a batch's columns to vectors; ``earlier_layers``: at an earlier layer as well. ``optimization``:
   parameter groups and learning rates.
4. ``saving``: checkpoints and model folders. ``lora``, ``ema``, ``sharding``: other ways to hold the weights.
5. ``monitoring``: progress, speed, and warnings of a run that learns nothing.
6. ``switches``: what other code has set in torch.

    from trainer_ext.training import JinaCLIPTrainer, trained_in
"""

from trainer_ext.training.stages import trained_in
from trainer_ext.training.trainer import JinaCLIPTrainer

__all__ = ["JinaCLIPTrainer", "trained_in"]
