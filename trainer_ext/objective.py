"""The joint objective of arXiv 2405.20204, section 3: which embeddings meet in which loss, and the sum of both sides.

A joint batch has up to five parts, each embedded by itself: ``image`` and ``caption``; ``query``, ``positive`` and
``negatives``. The image-text side has the trained temperature, the text side a fixed one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer_ext.distributed import gather_ids, gather_with_grad, shard_of
from trainer_ext.losses import info_nce, info_nce_plus
from trainer_ext.recipe import Stage

FalseNegatives = Literal["mask", "positive", "keep"]

# Rows of the score matrix that the accuracy looks at in one go: 64 MB of fp32 against 32,768 targets.
ACCURACY_BLOCK = 512


def encoder_inputs(batch: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The parts of a joint batch, each with the arguments of the model's forward."""
    parts: dict[str, dict[str, Tensor]] = {}
    if "image_text" in batch:
        side = batch["image_text"]
        parts["image"] = {"pixel_values": side["pixel_values"]}
        parts["caption"] = {name: side[name] for name in ("input_ids", "attention_mask")}
    if "text" in batch:
        parts |= {name: batch["text"][name] for name in ("query", "positive", "negatives") if name in batch["text"]}
    return parts


def embed(model: nn.Module, features: Mapping[str, Tensor]) -> Tensor:
    """One part through the (wrapped) model: (rows, dim)."""
    output = model(**features)
    return output.image_embeds if "pixel_values" in features else output.text_embeds


@dataclass(frozen=True)
class JointObjective:
    """The weighted sum of a stage's losses over the rows of all processes.

    Args:
        text_temperature: fixed temperature of the text side.
        tile_size: see ``losses.info_nce``.
        false_negatives: what becomes of another row's target that is true as well, because its text or image is in
            the batch twice: it is left out ("mask"), shares the role of the own target ("positive"), or stays a
            negative, as the paper's formula has it ("keep").
    """

    text_temperature: float = 0.05
    tile_size: int | None = None
    false_negatives: FalseNegatives = "mask"

    def __call__(
        self, stage: Stage, batch: Mapping[str, Any], embeddings: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a joint batch, and what to log of it.

        Args:
            stage: says which sides there are, their weights and the text side's loss.
            batch: as ``JointCollator`` makes it; only its ids are read.
            embeddings: (rows, dim) of each part of this process, ``negatives`` (rows * negatives, dim) row by row; and
                ``temperature``, the scalar of the image-text side.

        Returns:
            the loss; and, detached, ``temperature`` and each side's ``loss_*`` and ``accuracy_*``, the share of rows
            whose own target scores highest among all candidates of the global batch; and ``similarity_*``, the
            ``mean_cosine`` of its queries and of its targets.
        """
        terms = {"temperature": embeddings["temperature"].detach()}
        total = 0.0 * embeddings["temperature"]  # keeps the image side in the graph when a stage has no images
        for name, side in stage.sides():
            image_text = name == "image_text"
            queries, targets = ("image", "caption") if image_text else ("query", "positive")
            query_ids, target_ids = ("image_ids", "text_ids") if image_text else ("query_ids", "positive_ids")
            plus = side.loss == "info_nce_plus"
            loss, measured = self._compare(
                embeddings[queries],
                embeddings[targets],
                embeddings["negatives"] if plus else None,
                embeddings["temperature"] if image_text else self.text_temperature,
                [batch[name][key] for key in (query_ids, target_ids, *(["negative_ids"] if plus else []))],
            )
            total = total + side.weight * loss
            terms |= {f"loss_{name}": loss.detach(), f"accuracy_{name}": measured[0]}
            terms |= {f"similarity_{queries}": measured[1], f"similarity_{targets}": measured[2]}
        return total, terms

    @torch.no_grad()
    def chance(self, stage: Stage, batch: Mapping[str, Any], embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each side's ``loss_*`` if all vectors were the same and so told nothing: ln(candidates) per direction.

        Asked of the losses themselves, which know what is masked. Arguments as for a call.
        """
        same = {name: torch.ones_like(x) for name, x in embeddings.items() if name != "temperature"}
        _, terms = self(stage, batch, same | {"temperature": embeddings["temperature"]})
        return {name: value for name, value in terms.items() if name.startswith("loss_")}

    def _compare(
        self,
        queries: Tensor,
        targets: Tensor,
        negatives: Tensor | None,
        temperature: float | Tensor,
        ids: list[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Loss of one side; and accuracy and similarities. Of all processes' rows, this one answers for its own."""
        shard = shard_of(queries)
        rows = len(queries)
        queries, targets = gather_with_grad(queries, shard), gather_with_grad(targets, shard)  # (B, D)
        options: dict[str, Any] = {"temperature": temperature, "rows": shard.rows, "tile_size": self.tile_size}
        if self.false_negatives != "keep":
            options["duplicates"] = self.false_negatives
            ids = [gather_ids(part.reshape(rows, -1), shard) for part in ids]  # (B, 1), (B, 1), (B, negatives)
            options |= {"query_ids": ids[0][:, 0], "target_ids": ids[1][:, 0]}
        if negatives is None:
            loss, candidates = info_nce(queries, targets, **options), targets
        else:
            negatives = gather_with_grad(negatives.unflatten(0, (rows, -1)), shard)  # (B, negatives, D)
            if self.false_negatives != "keep":
                options["negative_ids"] = ids[2]
            loss = info_nce_plus(queries, targets, negatives, **options)
            candidates = torch.cat([targets, negatives.flatten(0, 1)])
        accuracy = in_batch_accuracy(queries, candidates, shard.rows) * shard.weight
        return loss * shard.weight, (accuracy, mean_cosine(queries), mean_cosine(targets))


@torch.no_grad()
def in_batch_accuracy(queries: Tensor, candidates: Tensor, rows: slice) -> Tensor:
    """Share of the queries in ``rows`` whose own candidate (of the same index) has the highest cosine.

    >>> in_batch_accuracy(torch.eye(3), torch.eye(3)[[0, 2, 1]], slice(0, 3))
    tensor(0.3333)
    """
    candidates = F.normalize(candidates.float(), dim=-1)
    own = torch.arange(rows.start, rows.stop, device=queries.device)
    right = [(queries[block].float() @ candidates.T).argmax(dim=-1) == block for block in own.split(ACCURACY_BLOCK)]
    return torch.cat(right).float().mean()


@torch.no_grad()
def mean_cosine(vectors: Tensor) -> Tensor:
    """Mean cosine between different rows of (rows, dim): near 1 when an embedding has collapsed.

    From the length of the rows' sum, which costs one pass: |sum_i u_i|^2 = rows + sum over i != j of cos(i, j).

    >>> mean_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
    tensor(0.3333)
    """
    rows = len(vectors)
    length = F.normalize(vectors.float(), dim=-1).sum(dim=0).square().sum()
    return (length - rows) / max(rows * (rows - 1), 1)
