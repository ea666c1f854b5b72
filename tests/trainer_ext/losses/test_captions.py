"""Several captions a picture: the mean of the losses of their slots, written out by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer_ext.losses.info_nce import info_nce
from trainer_ext.losses.joint import JointObjective
from trainer_ext.losses.siglip import siglip
from trainer_ext.recipe.schema import Matryoshka, Side
from trainer_ext.recipe.stages import Stage, TeacherSpec

ROWS, COUNT, DIM = 5, 3, 8


def stage_of(**keys: Any) -> Stage:
    side = Side(sources=["photos"], batch_size=ROWS, **keys)
    return Stage(name="only", steps=1, learning_rate=1e-3, max_length=8, image_text=side)


def embedded(captions: int = ROWS * COUNT) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"image": ROWS, "caption": captions}
    found = {name: torch.randn(size, DIM, generator=generator) for name, size in sizes.items()}
    return {name: x.requires_grad_() for name, x in found.items()} | {"temperature": torch.tensor(0.2)}


def ids_of(text_ids: Tensor | None = None) -> dict[str, Any]:
    texts = torch.arange(ROWS * COUNT) if text_ids is None else text_ids
    return {"image_text": {"image_ids": torch.arange(ROWS), "text_ids": texts}}


def gradients(loss: Tensor, vectors: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [vectors["image"], vectors["caption"]]))


def by_hand(pictures: Tensor, captions: Tensor, temperature: float, smoothing: float = 0.0) -> Tensor:
    total = torch.zeros(())
    for place in range(COUNT):
        texts = captions.reshape(ROWS, COUNT, -1)[:, place]
        logits = F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
        labels = torch.arange(ROWS)
        total = total + sum(F.cross_entropy(x, labels, label_smoothing=smoothing) for x in (logits, logits.T))
    return total / COUNT


@pytest.mark.parametrize("tile_size", [None, 2])
def test_it_is_the_mean_of_the_slots(tile_size: int | None) -> None:
    vectors = embedded()
    stage = stage_of(captions_per_image=COUNT, label_smoothing=0.1)
    loss, terms = JointObjective(tile_size=tile_size)(stage, ids_of(), vectors)
    expected = by_hand(vectors["image"], vectors["caption"], 0.2, 0.1)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients(loss, vectors), gradients(expected, vectors), strict=True):
        torch.testing.assert_close(found, wanted)
    unit = F.normalize(vectors["image"], dim=-1)
    right = [(unit @ F.normalize(vectors["caption"][k::COUNT], dim=-1).T).argmax(dim=1) for k in range(COUNT)]
    accuracy = torch.stack(right).eq(torch.arange(ROWS)).float().mean()
    torch.testing.assert_close(terms["accuracy_image_text"], accuracy)


ONE = {
    "plain": {},
    "hardness, one direction": {"hardness": 3.0, "directions": "forward"},
    "siglip": {"loss": "siglip"},
    "terms": {"alignment": 0.5, "uniformity": 0.2, "cross_uniformity": 0.1},
    "matryoshka": {"matryoshka": Matryoshka(dims=[8, 4])},
}


@pytest.mark.parametrize("option", ONE)
def test_equal_captions_are_one_caption(option: str) -> None:
    """The same loss, terms and figures, and a picture's gradient; a text's is cut into equal parts."""
    one = embedded(ROWS)
    several = one | {"caption": one["caption"].detach().repeat_interleave(COUNT, dim=0).requires_grad_()}
    stages = stage_of(**ONE[option]), stage_of(**ONE[option], captions_per_image=COUNT)
    objective = JointObjective(stages=stages)
    loss, terms = objective(stages[0], ids_of(torch.arange(ROWS)), one)
    mean, same = objective(stages[1], ids_of(torch.arange(ROWS).repeat_interleave(COUNT)), several)
    torch.testing.assert_close(mean, loss)
    assert terms.keys() == same.keys()
    for name, value in terms.items():
        torch.testing.assert_close(same[name], value)
    of_one, of_several = gradients(loss, one), gradients(mean, several)
    torch.testing.assert_close(of_several[0], of_one[0])
    torch.testing.assert_close(of_several[1].reshape(ROWS, COUNT, -1).sum(dim=1), of_one[1])


def test_options_hold_in_each_slot() -> None:
    """Siglip, prefixes and hardness by their own functions, slot by slot."""
    vectors = embedded()
    slots = [(vectors["image"], vectors["caption"][k::COUNT]) for k in range(COUNT)]

    def value(**keys: Any) -> Tensor:
        stage = stage_of(captions_per_image=COUNT, **keys)
        return JointObjective(stages=[stage])(stage, ids_of(), vectors)[0]

    torch.testing.assert_close(value(loss="siglip"), sum(siglip(*x, 0.2) for x in slots) / COUNT)
    torch.testing.assert_close(value(hardness=2.0), sum(info_nce(*x, 0.2, hardness=2.0) for x in slots) / COUNT)
    prefixes = sum(info_nce(x[:, :d], y[:, :d], 0.2) for x, y in slots for d in (8, 4)) / COUNT
    torch.testing.assert_close(value(matryoshka=Matryoshka(dims=[8, 4])), prefixes)


@pytest.mark.parametrize("kind", ["mask", "positive", "keep"])
def test_texts_that_are_equal_by_chance_count_within_their_slot(kind: str) -> None:
    vectors = embedded()
    ids = torch.arange(ROWS * COUNT)
    ids[COUNT] = ids[0]  # slot 0 of rows 0 and 1
    ids[2 * COUNT + 2] = ids[1]  # slot 1 of row 0 and slot 2 of row 2: never candidates of each other
    loss, _ = JointObjective(false_negatives=kind)(stage_of(captions_per_image=COUNT), ids_of(ids), vectors)
    expected = torch.zeros(())
    for place in range(COUNT):
        known = {} if kind == "keep" else {"duplicates": kind, "target_ids": ids[place::COUNT]}
        expected = expected + info_nce(vectors["image"], vectors["caption"][place::COUNT], 0.2, **known) / COUNT
    torch.testing.assert_close(loss, expected)
    other, _ = JointObjective(false_negatives=kind)(stage_of(captions_per_image=COUNT), ids_of(), vectors)
    assert (loss != other).item() == (kind != "keep")


@pytest.mark.parametrize("kind", ["scores", "vectors"])
def test_a_teacher_teaches_each_slot(kind: str) -> None:
    vectors, known = embedded(), {name: x.detach().flip(0) for name, x in embedded().items() if name != "temperature"}
    known["temperature"] = torch.tensor(0.1)
    spec = TeacherSpec(model="folder", kind=kind, weight=2.0)

    def terms(captions: int, caption: Tensor, taught: Tensor) -> dict[str, Tensor]:
        batch = {"image_text": {"image_ids": torch.arange(ROWS), "text_ids": torch.arange(len(caption))}}
        embeddings = vectors | {"caption": caption, "teacher": known | {"caption": taught}}
        return JointObjective(teacher=spec)(stage_of(captions_per_image=captions), batch, embeddings)[1]

    found = terms(COUNT, vectors["caption"], known["caption"])["teacher_image_text"]
    slots = [terms(1, vectors["caption"][k::COUNT], known["caption"][k::COUNT]) for k in range(COUNT)]
    torch.testing.assert_close(found, sum(slot["teacher_image_text"] for slot in slots) / COUNT)
    assert found > 0.01


def test_guessing_costs_as_much_as_with_one_caption() -> None:
    stage = stage_of(captions_per_image=COUNT)
    costs = JointObjective().chance(stage, ids_of(), embedded())
    assert costs["loss_image_text"].item() == pytest.approx(2 * torch.tensor(float(ROWS)).log().item())


def test_a_batch_with_one_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="captions_per_image is 3, but the batch has 5 captions for 5 pictures"):
        JointObjective()(stage_of(captions_per_image=COUNT), ids_of(torch.arange(ROWS)), embedded(ROWS))
