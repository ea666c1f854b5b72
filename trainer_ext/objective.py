"""The joint objective of arXiv 2405.20204, section 3: which embeddings meet in which loss, and the sum of both sides.

A joint batch has up to five parts, each embedded by itself: ``image`` and ``caption``; ``query``, ``positive`` and
``negatives``. The image-text side has the model's trained temperature, the text side a fixed one, unless a recipe says
otherwise. docs/losses.md has the options and their equations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from trainer_ext.distributed import Shard, gather_ids, gather_with_grad, replicated, shard_of
from trainer_ext.losses import (
    clamp_logit_scale_,
    clamped_temperature,
    cosent,
    info_nce,
    info_nce_plus,
    matryoshka,
    siglip,
)
from trainer_ext.recipe import Side, SideName, Stage
from trainer_ext.recipe_objective import Matryoshka, trains_temperature

FalseNegatives = Literal["mask", "positive", "keep"]

# Rows of the score matrix that the accuracy looks at in one go: 64 MB of fp32 against 32,768 targets.
ACCURACY_BLOCK = 512
# Where a folder keeps the parameters of the objective; they are none of the model's.
OBJECTIVE_FILE = "objective.safetensors"
# The bias that SigLIP starts with (arXiv 2303.15343, section 3.2): almost all pairs of a batch are negatives.
SIGLIP_BIAS = -10.0
# So far out, the logarithm of a sigmoid is the distance itself, to fp32's last digit, or nothing.
_FAR = 50.0
PARTS = {"image_text": ("image", "caption"), "text": ("query", "positive")}
_IDS = {"image_text": ("image_ids", "text_ids"), "text": ("query_ids", "positive_ids")}

# Accuracy of a side, and the mean cosine among its queries and among its targets.
Measured = tuple[Tensor, Tensor, Tensor]


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
    output = model(**features, pooled_only=True)
    return output.image_embeds if "pixel_values" in features else output.text_embeds


class JointObjective(nn.Module):
    """The weighted sum of a stage's losses over the rows of all processes.

    Args:
        text_temperature: of the text side: its fixed value, or where a trained one starts.
        tile_size: see ``losses.info_nce``.
        false_negatives: what becomes of another row's target that is true as well, because its text or image is in
            the batch twice or the rows have one ``id``: it is left out ("mask"), shares the role of the own target
            ("positive"), or stays a negative, as the paper's formula has it ("keep").
        stages: whose losses may have parameters of their own. The image-text temperature is the model's.
        matryoshka: prefixes for every loss that says nothing else.

    Its parameters are those that some stage trains: ``text_logit_scale`` (a trained text temperature) and
    ``image_text_bias`` (SigLIP). A run without them has none.

    >>> side = Side(sources=["photos"], batch_size=4, loss="siglip")
    >>> stage = Stage(name="one", steps=1, learning_rate=1e-3, max_length=8, image_text=side)
    >>> [name for name, _ in JointObjective(stages=[stage]).named_parameters()]
    ['image_text_bias']
    """

    def __init__(
        self,
        text_temperature: float = 0.05,
        tile_size: int | None = None,
        false_negatives: FalseNegatives = "mask",
        stages: Sequence[Stage] = (),
        matryoshka: Matryoshka | None = None,
    ) -> None:
        super().__init__()
        self.text_temperature, self.tile_size, self.false_negatives = text_temperature, tile_size, false_negatives
        self.matryoshka = matryoshka
        sides = [item for stage in stages for item in stage.sides()]
        if any(name == "text" and trains_temperature(name, side) for name, side in sides):
            self.text_logit_scale = nn.Parameter(torch.tensor(-math.log(text_temperature)))
        if any(side.loss == "siglip" for _, side in sides):
            self.image_text_bias = nn.Parameter(torch.tensor(SIGLIP_BIAS))

    def forward(
        self, stage: Stage, batch: Mapping[str, Any], embeddings: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a joint batch, and what to log of it.

        Args:
            stage: says which sides there are, and each one's loss.
            batch: as ``JointCollator`` makes it; only its ids and scores are read.
            embeddings: (rows, dim) of each part of this process, ``negatives`` (rows * negatives, dim) row by row; and
                ``temperature``, the scalar of the image-text side.

        Returns:
            the loss; and, detached, ``temperature`` and each side's ``loss_*`` and ``accuracy_*``, the share of rows
            whose own target scores highest among all candidates of the global batch (of scored pairs: the share of
            comparisons in the right order); ``similarity_*``, the ``mean_cosine`` of its queries and of its targets;
            and ``temperature_text`` and ``bias_image_text`` where they are trained.
        """
        terms = {"temperature": embeddings["temperature"].detach()}
        total = 0.0 * embeddings["temperature"]  # keeps the image side in the graph when a stage has no images
        for name, side in stage.sides():
            temperature = self._temperature(name, side, embeddings["temperature"])
            compare = self._rank if side.loss == "cosent" else self._contrast
            loss, measured = compare(name, side, batch[name], embeddings, temperature)
            total = total + side.weight * loss
            terms |= {f"loss_{name}": loss.detach(), f"accuracy_{name}": measured[0]}
            terms |= {f"similarity_{part}": value for part, value in zip(PARTS[name], measured[1:], strict=True)}
            if name == "image_text":
                terms["temperature"] = torch.as_tensor(temperature, device=loss.device).detach()
            elif isinstance(temperature, Tensor):
                terms["temperature_text"] = temperature.detach()
            if side.loss == "siglip":
                terms["bias_image_text"] = self.image_text_bias.detach().clone()
        return total, terms

    def clamp_(self) -> None:
        """Put a trained text temperature back between its limits; call it after each optimiser step."""
        if hasattr(self, "text_logit_scale"):
            clamp_logit_scale_(self.text_logit_scale)

    def save(self, folder: str | Path) -> None:
        """Write ``objective.safetensors`` into ``folder``, if there are parameters."""
        state = self.state_dict()
        if state:
            save_file(state, Path(folder) / OBJECTIVE_FILE)

    def load(self, folder: str | Path, strict: bool = True) -> None:
        """Read what ``save`` wrote.

        Args:
            folder: a checkpoint of the same run; with ``strict=False`` any model folder, of which is taken what fits.

        Raises:
            ValueError: strict, and the folder has other parameters.
        """
        path, own = Path(folder) / OBJECTIVE_FILE, self.state_dict()
        stored = load_file(path) if path.is_file() else {}
        if strict and stored.keys() != own.keys():
            raise ValueError(
                f"{path} holds the parameters {sorted(stored)} of the objective, but this recipe trains {sorted(own)}: "
                "resume with the losses and temperatures that the checkpoint was trained with"
            )
        self.load_state_dict({name: stored.get(name, value) for name, value in own.items()})

    @torch.no_grad()
    def chance(self, stage: Stage, batch: Mapping[str, Any], embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each side's ``loss_*`` if all vectors were the same and so told nothing: ln(candidates) per direction.

        Asked of the losses themselves, which know what is masked. Arguments as for a call.
        """
        same = {name: torch.ones_like(x) for name, x in embeddings.items() if name != "temperature"}
        same["temperature"] = embeddings["temperature"]
        _, terms = self(stage, batch, same)
        costs = {name: value for name, value in terms.items() if name.startswith("loss_")}
        sides = [(name, side) for name, side in stage.sides() if side.loss == "siglip"]
        return costs | {f"loss_{name}": self._sigmoid_chance(name, side, batch[name], same) for name, side in sides}

    def _sigmoid_chance(
        self, name: SideName, side: Side, batch: Mapping[str, Tensor], same: Mapping[str, Tensor]
    ) -> Tensor:
        """SigLIP's loss for the best score that all pairs have alike: N ln N - (N - 1) ln(N - 1) of N rows, about
        ln N + 1.

        The bias finds that score within a few steps whatever the vectors are, so the loss at today's bias tells
        nothing. A score far below or above all others costs its distance for each true pair or each other one.
        """
        temperature = self._temperature(name, side, same["temperature"])
        true, other = (
            self._contrast(name, side, batch, same, temperature, bias=distance - 1 / temperature)[0] / abs(distance)
            for distance in (-_FAR, _FAR)
        )
        return torch.special.entr(true) + torch.special.entr(other) - torch.special.entr(true + other)

    def _temperature(self, name: SideName, side: Side, trained: Tensor) -> float | Tensor:
        if not trains_temperature(name, side):
            return side.temperature or self.text_temperature
        return trained if name == "image_text" else clamped_temperature(replicated(self.text_logit_scale))

    def _contrast(
        self,
        name: SideName,
        side: Side,
        batch: Mapping[str, Tensor],
        embeddings: Mapping[str, Tensor],
        temperature: float | Tensor,
        bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Measured]:
        """A side's own pairs against all others; of all processes' rows, this one answers for its own."""
        own = [embeddings[part] for part in PARTS[name]]
        shard = shard_of(own[0])
        if side.loss == "info_nce_plus":
            own.append(embeddings["negatives"].unflatten(0, (len(own[0]), -1)))
        vectors = [gather_with_grad(part, shard) for part in own]  # (B, D), (B, D), (B, negatives, D)
        options = {"temperature": temperature, "rows": shard.rows, "tile_size": self.tile_size}
        options |= self._duplicates(name, side, batch, shard)
        if side.loss == "siglip":
            loss = partial(siglip, bias=replicated(self.image_text_bias) if bias is None else bias, **options)
        else:
            function = info_nce_plus if side.loss == "info_nce_plus" else info_nce
            loss = partial(function, reduction=side.reduction, directions=side.directions, **options)
        candidates = torch.cat([part.flatten(0, -2) for part in vectors[1:]])
        accuracy = in_batch_accuracy(vectors[0], candidates, shard.rows) * shard.weight
        measured = accuracy, mean_cosine(vectors[0]), mean_cosine(vectors[1])
        return self._on_prefixes(side, loss, vectors) * shard.weight, measured

    def _rank(
        self,
        name: SideName,
        side: Side,
        batch: Mapping[str, Tensor],
        embeddings: Mapping[str, Tensor],
        temperature: float | Tensor,
    ) -> tuple[Tensor, Measured]:
        """Scored pairs against each other: it does not split into rows, so every process computes all of it."""
        own = [embeddings[part] for part in PARTS[name]]
        shard = shard_of(own[0])
        vectors = [gather_with_grad(part, shard) for part in own]
        scores = gather_ids(batch["score"], shard)
        loss = self._on_prefixes(side, partial(cosent, scores=scores, temperature=temperature), vectors)
        return loss, (order_accuracy(*vectors, scores), mean_cosine(vectors[0]), mean_cosine(vectors[1]))

    def _duplicates(self, name: SideName, side: Side, batch: Mapping[str, Tensor], shard: Shard) -> dict[str, Any]:
        """What a loss is told about true pairs that are not own pairs."""
        if self.false_negatives == "keep":
            return {}
        queries, targets = (gather_ids(batch[key], shard) for key in _IDS[name])
        options = {"duplicates": self.false_negatives, "query_ids": queries, "target_ids": targets}
        if "row_ids" in batch:
            options["row_ids"] = gather_ids(batch["row_ids"], shard)
        if side.loss == "info_nce_plus":
            own = batch["negative_ids"].reshape(shard.rows.stop - shard.rows.start, -1)
            options["negative_ids"] = gather_ids(own, shard)
        return options

    def _on_prefixes(self, side: Side, loss: Callable[..., Tensor], vectors: Sequence[Tensor]) -> Tensor:
        prefixes = side.matryoshka or self.matryoshka
        if prefixes is None:
            return loss(*vectors)
        return matryoshka(loss, *vectors, dims=prefixes.dims, weights=prefixes.weights)


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
def order_accuracy(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Of all comparisons of two pairs with different scores, the share in which the higher one has the higher cosine.

    >>> x, y = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])  # cosines 1, 0.7, 0
    >>> order_accuracy(x, y, torch.tensor([2.0, 3.0, 1.0]))
    tensor(0.6667)
    """
    cosines = F.cosine_similarity(first.float(), second.float(), dim=-1)
    right = compared = cosines.new_zeros((), dtype=torch.int64)
    for block in torch.arange(len(scores), device=scores.device).split(ACCURACY_BLOCK):
        higher = scores[block, None] > scores
        compared = compared + higher.sum()
        right = right + (higher & (cosines[block, None] > cosines)).sum()
    return right / compared.clamp_min(1)


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
