"""Merging: one model's weights from several that were trained from the same start (docs/merging.md).

    theta = theta0 + scale * sum_k weight_k (theta_k - theta0)

1. ``arithmetic``: the formula, one tensor at a time.
2. ``parents``: a model's folder or LoRA's adapters as tensors that are read when asked for; what does not fit together.
3. ``merge``: the merged folder, whole or not at all, with its lineage in ``merge.json``.
4. ``search``: weights and scale by gradient descent; ``probe`` gives it the losses of a recipe.

    from trainer_ext import merge
    merge("outputs/start", ["outputs/tuned"], "outputs/between", scale=0.5)
"""

from trainer_ext.merging.merge import merge

__all__ = ["merge"]
