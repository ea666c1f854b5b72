"""A stage's losses, summed: the joint objective of arXiv 2405.20204, section 3, and the table of losses.

One call of ``JointObjective``, for each side of the stage:

1. look up the side's loss in ``LOSSES``, and its temperature;
2. gather the side's embeddings, ids and scores from all processes (``gather``);
3. compute the loss and the side's ``TERMS`` on them, or on each Matryoshka prefix (``matryoshka``);
4. add them to the sum with the side's weight, and note the terms to log.

Each column of a joint batch (``columns``) is embedded by itself. Unless a recipe says otherwise, the image-text side
has the model's trained temperature and the others a fixed one. docs/losses.md has the options and their equations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer_ext.losses.batch_metrics import in_batch_accuracy, mean_cosine, order_accuracy
from trainer_ext.losses.captions import SideLosses, mean_of_slots, per_picture, principal_part, slots
from trainer_ext.losses.columns import BESIDE, COLUMNS, IDS, NEGATIVES
from trainer_ext.losses.cosent import cosent
from trainer_ext.losses.distillation import margin_term, teacher_term
from trainer_ext.losses.gather import Shard, gather_ids, gather_with_grad, replicated, shard_of
from trainer_ext.losses.info_nce import info_nce, info_nce_plus
from trainer_ext.losses.layers import EARLIER, earlier_terms
from trainer_ext.losses.logits import clamp_logit_scale_, clamped_temperature
from trainer_ext.losses.matryoshka import matryoshka
from trainer_ext.losses.nt_xent import nt_xent
from trainer_ext.losses.siglip import BIAS, siglip, siglip_chance
from trainer_ext.losses.stored import StoredParameters
from trainer_ext.losses.uniformity import TERMS, terms_of
from trainer_ext.recipe.schema import (
    IMAGES_TEMPERATURE,
    LOSS_RULES,
    FalseNegatives,
    LossRule,
    Matryoshka,
    Side,
    SideName,
    trains_temperature,
)
from trainer_ext.recipe.stages import Stage, TeacherSpec

# The parameter of a trained text temperature. The image-text one is the model's.
TEXT_SCALE = "text_logit_scale"


@dataclass(frozen=True)
class Loss:
    """One line of the table of losses.

    Args:
        function: ``function(queries, targets, temperature=t, **options)`` -> scalar. Queries and targets are (B, dim),
            the raw vectors of all processes; with hard negatives, those (B, m, dim) as well. Options:

            - ``rows``, the slice of the batch that this process answers for, whose mean is asked for, and
              ``tile_size``;
            - ``reduction`` and ``directions``, if its rule has directions; ``label_smoothing`` and ``hardness``, if it
              has a softmax;
            - ``duplicates``, ``query_ids``, ``target_ids``, ``row_ids`` and ``negative_ids``, as far as the batch has
              them and unless ``false_negatives`` is "keep": see ``info_nce``;
            - its own ``parameters``, as tensors; as numbers where ``chance`` passes some.

            A loss of scored pairs gets ``scores`` (B,) and its own ``parameters`` instead: it compares pairs with each
            other, so every process computes all of it.
        rule: what recipes may ask of it.
        parameters: its own trained parameters, with their starting values. In ``objective.safetensors`` they are
            called SIDE_NAME, in the log NAME_SIDE. Losses that name a parameter alike share it on the same side.
        chance: ``chance(loss, temperature)``, its value for vectors that tell nothing, of ``loss`` as a function of
            its parameters for vectors that are all the same. By default it is that value.
        chance_ceiling: a loss above this multiple of chance is on its way down, not stuck.
    """

    function: Callable[..., Tensor]
    rule: LossRule
    parameters: Mapping[str, float] = field(default_factory=dict)
    chance: Callable[[Callable[..., Tensor], float | Tensor], Tensor] | None = None
    chance_ceiling: float = math.inf


# The one table of losses, by the names that recipes use.
LOSSES: dict[str, Loss] = {
    "info_nce": Loss(info_nce, LOSS_RULES["info_nce"]),
    "info_nce_plus": Loss(info_nce_plus, LOSS_RULES["info_nce_plus"]),
    # It begins far above chance and may take long to come down, with a bias for more rows than most batches have.
    "siglip": Loss(siglip, LOSS_RULES["siglip"], {"bias": BIAS}, siglip_chance, chance_ceiling=1.25),
    "cosent": Loss(cosent, LOSS_RULES["cosent"]),
    "nt_xent": Loss(nt_xent, LOSS_RULES["nt_xent"]),
}


def register(name: str, loss: Loss) -> None:
    """Add a loss to the table, for recipes that are loaded from now on.

    Raises:
        ValueError: the name is taken.

    >>> def gap(queries, targets, temperature, rows, **options):
    ...     return (queries - targets)[rows].square().mean() / temperature
    >>> register("gap", Loss(gap, LossRule("mean squared gap", {"text": "text-pair"}, has_directions=False)))
    >>> Side(sources=["pairs"], batch_size=4, loss="gap").loss
    'gap'
    >>> del LOSSES["gap"], LOSS_RULES["gap"]
    """
    if name in LOSS_RULES:
        raise ValueError(f"{name!r} is taken by the loss {LOSS_RULES[name].words}; choose another name")
    LOSSES[name], LOSS_RULES[name] = loss, loss.rule


def own_parameters(name: SideName, side: Side, text_temperature: float = 1.0) -> dict[str, float]:
    """The parameters of the objective that a side trains, with their starting values.

    >>> own_parameters("image_text", Side(sources=["photos"], batch_size=4, loss="siglip"))
    {'image_text_bias': -10.0}
    """
    found = {f"{name}_{parameter}": start for parameter, start in LOSSES[side.loss].parameters.items()}
    if name == "text" and trains_temperature(name, side):
        found[TEXT_SCALE] = -math.log(text_temperature)
    return found


class JointObjective(StoredParameters):
    """The weighted sum of a stage's losses over the rows of all processes.

    Args:
        text_temperature: of the text side: its fixed value, or where a trained one starts.
        tile_size: see ``losses.info_nce``.
        false_negatives: what becomes of another row's target that is true as well, because its text or image is in
            the batch twice or the rows have one ``id``: it is left out ("mask"), shares the role of the own target
            ("positive"), or stays a negative, as the paper's formula has it ("keep").
        stages: whose losses may have parameters of their own. The image-text temperature is the model's.
        matryoshka: prefixes for every loss whose side has none of its own.
        teacher: the recipe's; without the teacher's embeddings of a batch it adds nothing.

    Its parameters are those that some stage trains: ``text_logit_scale`` (a trained text temperature) and those of
    losses, such as ``image_text_bias`` (SigLIP). Most runs have none.

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
        teacher: TeacherSpec | None = None,
    ) -> None:
        super().__init__()
        self.text_temperature, self.tile_size, self.false_negatives = text_temperature, tile_size, false_negatives
        self.matryoshka, self.teacher = matryoshka, teacher
        starts: dict[str, float] = {}
        for stage in stages:
            for name, side in stage.sides():
                starts |= own_parameters(name, side, text_temperature)
        # The temperature first: an optimizer's checkpoint identifies parameters by their order.
        for key in sorted(starts, key=lambda key: key != TEXT_SCALE):
            self.register_parameter(key, nn.Parameter(torch.tensor(starts[key])))

    def forward(
        self, stage: Stage, batch: Mapping[str, Any], embeddings: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a joint batch, and what to log of it.

        Args:
            stage: says which sides there are, and each one's loss.
            batch: as ``JointCollator`` makes it; only its ids, scores and margins are read.
            embeddings: (rows, dim) of each column of this process; negatives (rows * negatives, dim) row by row, as
                are several captions a picture; and ``temperature``, the scalar of the image-text side. ``teacher``
                holds those of a teacher, and ``earlier`` those of earlier layers.

        Returns:
            the loss; and, detached, ``temperature`` and each side's ``loss_*`` and ``accuracy_*``, the share of rows
            whose own target scores highest among all candidates of the global batch (of scored pairs: the share of
            comparisons in the right order); ``teacher_*``, ``short_caption_*``, ``earlier_*``, ``divergence_*`` and
            those ``TERMS`` that are weighed; ``similarity_*``, the ``mean_cosine`` of its queries and of its targets;
            and where they are trained ``temperature_text`` and the losses' own parameters, such as ``bias_image_text``.
        """
        terms = {"temperature": embeddings["temperature"].detach()}
        total = 0.0 * embeddings["temperature"]  # keeps the image side in the graph when a stage has no images
        for name, side in stage.sides():
            temperature = self._temperature(name, side, embeddings["temperature"])  # (1)
            parameters = {key: getattr(self, f"{name}_{key}") for key in LOSSES[side.loss].parameters}
            given: dict[str, Any] = {key: replicated(x) for key, x in parameters.items()} | {"temperature": temperature}
            side_loss: Callable[..., Any] = partial(self._side_loss, name, side, batch[name], **given)
            loss, added, measured = side_loss(embeddings)
            added |= earlier_terms(side_loss, (*COLUMNS[name], *BESIDE[name]), embeddings)
            added |= margin_term(self.teacher, name, (*COLUMNS[name], NEGATIVES.get(name, "")), batch[name], embeddings)
            weighted = sum((weight * value for weight, value in added.values()), loss)
            total = total + side.weight * weighted  # (4)
            terms |= {f"loss_{name}": loss.detach(), f"accuracy_{name}": measured[0]}
            terms |= {f"{term}_{name}": value.detach() for term, (_, value) in added.items()}
            terms |= {f"similarity_{column}": value for column, value in zip(COLUMNS[name], measured[1:], strict=True)}
            if name == "image_text":
                terms["temperature"] = torch.as_tensor(temperature, device=loss.device).detach()
            elif isinstance(temperature, Tensor):
                terms["temperature_text"] = temperature.detach()
            terms |= {f"{key}_{name}": value.detach().clone() for key, value in parameters.items()}
        return total, terms

    def clamp_(self) -> None:
        """Put a trained text temperature back between its limits; call it after each optimiser step."""
        if hasattr(self, TEXT_SCALE):
            clamp_logit_scale_(getattr(self, TEXT_SCALE))

    @torch.no_grad()
    def chance(self, stage: Stage, batch: Mapping[str, Any], embeddings: Mapping[str, Any]) -> dict[str, Tensor]:
        """Each side's ``loss_*`` if all vectors were the same and so told nothing: ln(candidates) per direction.

        Computed by the losses themselves, so that masked pairs are left out. Arguments as for a call.
        """
        rest = ("temperature", "teacher", EARLIER)
        same = {name: torch.ones_like(x) for name, x in embeddings.items() if name not in rest}
        same["temperature"] = embeddings["temperature"]
        # Hardness raises the logits of negatives by their cosine: 1 here, but near 0 for vectors that tell nothing.
        plain: dict[str, Side] = {name: side.model_copy(update={"hardness": 0.0}) for name, side in stage.sides()}
        _, terms = self(stage.model_copy(update=plain), batch, same)
        costs = {name: value for name, value in terms.items() if name.startswith("loss_")}
        for name, side in stage.sides():
            if (chance := LOSSES[side.loss].chance) is not None:
                temperature = self._temperature(name, side, same["temperature"])
                costs[f"loss_{name}"] = chance(
                    partial(self._value, name, side, batch[name], same, temperature), temperature
                )
        return costs

    def _value(
        self,
        name: SideName,
        side: Side,
        batch: Mapping[str, Tensor],
        embeddings: Mapping[str, Tensor],
        temperature: float | Tensor,
        *values: float | Tensor,
    ) -> Tensor:
        """A side's loss with these values of its own parameters, in the table's order."""
        parameters = dict(zip(LOSSES[side.loss].parameters, values, strict=True))
        return self._side_loss(name, side, batch, embeddings, temperature, **parameters)[0]

    def _temperature(self, name: SideName, side: Side, trained: Tensor) -> float | Tensor:
        if not trains_temperature(name, side):
            usual = IMAGES_TEMPERATURE if name == "images" else self.text_temperature
            return cast(float | None, side.temperature) or usual  # "trained" is what it is not
        return trained if name == "image_text" else clamped_temperature(replicated(getattr(self, TEXT_SCALE)))

    def _side_loss(
        self,
        name: SideName,
        side: Side,
        batch: Mapping[str, Tensor],
        embeddings: Mapping[str, Any],
        temperature: float | Tensor,
        **parameters: float | Tensor,
    ) -> SideLosses:
        """Steps (2) and (3) for one caption a picture, or for each slot of several."""
        own, several = [embeddings[column] for column in COLUMNS[name]], side.captions_per_image
        shard = shard_of(own[0])
        if LOSSES[side.loss].rule.takes_negatives(name):
            own.append(embeddings[NEGATIVES[name]].unflatten(0, (len(own[0]), -1)))
        if several > 1:
            own[1] = per_picture(own[1], len(own[0]), several)
        vectors = [gather_with_grad(column, shard) for column in own]  # (B, D), (B, D), (B, negatives, D)
        losses = partial(self._pair_losses, name, side, temperature, parameters, shard)
        teacher = embeddings.get("teacher") if self.teacher is not None and self.teacher.compares(name) else None
        if several == 1:
            found = losses(batch, vectors, teacher)
        else:
            found = mean_of_slots([losses(*slot) for slot in slots(batch, vectors, teacher)])
        if side.short_caption is not None:
            short = gather_with_grad(embeddings["short_caption"], shard)
            pairs = [principal_part(vectors[0], side.short_caption.principal_components), short]
            plain = side.model_copy(update=dict.fromkeys(TERMS, 0.0))
            ids = {**batch, "text_ids": batch["short_text_ids"]}
            value, *_ = self._pair_losses(name, plain, temperature, parameters, shard, ids, pairs, None)
            found[1]["short_caption"] = side.short_caption.weight, value
        return found

    def _pair_losses(
        self,
        name: SideName,
        side: Side,
        temperature: float | Tensor,
        parameters: Mapping[str, float | Tensor],
        shard: Shard,
        batch: Mapping[str, Tensor],
        vectors: Sequence[Tensor],
        teacher: Mapping[str, Tensor] | None,
    ) -> SideLosses:
        """The side's own pairs against all others; this process answers for its own rows."""
        entry = LOSSES[side.loss]
        negatives = entry.rule.takes_negatives(name)
        loss = partial(entry.function, temperature=temperature, **parameters)
        if entry.rule.tasks[name] == "scored-pair":
            # Pairs against each other: it does not split into rows, so every process computes all of it.
            scores = gather_ids(batch["score"], shard)
            accuracy, weight, duplicates = order_accuracy(vectors[0], vectors[1], scores), 1.0, {}
            loss = partial(loss, scores=scores)
        else:
            duplicates = self._duplicates(name, negatives, batch, shard)
            loss = partial(loss, rows=shard.rows, tile_size=self.tile_size, **duplicates)
            candidates = torch.cat([column.flatten(0, -2) for column in vectors[1:]])
            accuracy = in_batch_accuracy(vectors[0], candidates, shard.rows) * shard.weight
            weight = shard.weight
        if entry.rule.has_directions:
            loss = partial(loss, reduction=side.reduction, directions=side.directions)
        if entry.rule.has_softmax:
            loss = partial(loss, label_smoothing=side.label_smoothing, hardness=side.hardness)
        measured = accuracy, mean_cosine(vectors[0]), mean_cosine(vectors[1])
        names = [term for term in TERMS if getattr(side, term)]
        on_prefixes = partial(self._on_prefixes, side)
        values = terms_of(names, vectors[:2], duplicates, shard, self.tile_size, on_prefixes)
        added = {term: (getattr(side, term), value) for term, value in values.items()}
        if self.teacher is not None and teacher is not None:
            known = [teacher[column] for column in COLUMNS[name]]
            # Its own temperature where the student's is trained, the same one elsewhere.
            theirs = teacher["temperature"] if name == "image_text" else self.text_temperature
            theirs = theirs if trains_temperature(name, side) else temperature
            value = teacher_term(self.teacher.kind, vectors[:2], known, temperature, theirs, shard, self.tile_size)
            added["teacher"] = self.teacher.weight, value
        return on_prefixes(loss, vectors) * weight, added, measured

    def _duplicates(self, name: SideName, negatives: bool, batch: Mapping[str, Tensor], shard: Shard) -> dict[str, Any]:
        """A loss's options for true pairs that are not own pairs."""
        if self.false_negatives == "keep":
            return {}
        keys = zip(("query_ids", "target_ids"), IDS[name], strict=True) if name in IDS else ()
        options: dict[str, Any] = {option: gather_ids(batch[key], shard) for option, key in keys}
        options["duplicates"] = self.false_negatives
        if "row_ids" in batch:
            options["row_ids"] = gather_ids(batch["row_ids"], shard)
        if negatives:
            own = batch["negative_ids"].reshape(shard.rows.stop - shard.rows.start, -1)
            options["negative_ids"] = gather_ids(own, shard)
        return options

    def _on_prefixes(self, side: Side, loss: Callable[..., Tensor], vectors: Sequence[Tensor]) -> Tensor:
        if (prefixes := side.matryoshka or self.matryoshka) is None:
            return loss(*vectors)
        return matryoshka(loss, *vectors, dims=prefixes.dims, weights=prefixes.weights)
