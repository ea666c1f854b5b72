"""Several captions a picture: the mean of the losses of their slots, written out by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer_ext.losses.captions import principal_part
from trainer_ext.losses.info_nce import info_nce
from trainer_ext.losses.joint import JointObjective
from trainer_ext.losses.layers import layer_divergence
from trainer_ext.losses.siglip import siglip
from trainer_ext.recipe.schema import Matryoshka, ShortCaption, Side
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


# --- the short caption -------------------------------------------------------------------------------------------


def by_eigenvectors(vectors: Tensor, components: int) -> Tensor:
    """Another way to the components: eigenvectors of the covariance, in float64."""
    x = F.normalize(vectors.detach().double(), dim=-1)
    mean = x.mean(dim=0)
    _, found = torch.linalg.eigh((x - mean).T @ (x - mean))
    basis = found.flip(1)[:, :components]
    return (x - mean) @ basis @ basis.T + mean


@pytest.mark.parametrize(("rows", "dim", "components"), [(9, 4, 2), (9, 4, 3), (5, 12, 2), (5, 12, 4), (6, 6, 1)])
def test_the_principal_part_is_that_of_the_covariance(rows: int, dim: int, components: int) -> None:
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)) * 3.0
    found = principal_part(x, components)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_eigenvectors(x, components), rtol=0.0, atol=2e-6)
    centered = F.normalize(x, dim=-1) - F.normalize(x, dim=-1).mean(dim=0)
    assert torch.linalg.matrix_rank(found - found.mean(dim=0), atol=1e-4).item() == components
    assert (found - F.normalize(x, dim=-1)).square().sum() < centered.square().sum()


@pytest.mark.parametrize(("rows", "dim"), [(9, 4), (4, 9), (5, 5), (1, 3)])
def test_all_components_are_the_identity(rows: int, dim: int) -> None:
    """In value and gradient."""
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(rows, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole, units = principal_part(x, min(rows, dim)), F.normalize(x, dim=-1)
    torch.testing.assert_close(whole, units)
    if rows >= dim:  # with fewer rows V has no directions outside of their plane
        [found], [expected] = (torch.autograd.grad((y * weights).sum(), x) for y in (whole, units))
        torch.testing.assert_close(found, expected)


def test_no_gradient_flows_through_the_components() -> None:
    """That of a map with V held fast: to the place of each vector, and to all by their mean."""
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    units = F.normalize(x, dim=-1)
    fixed = units.detach() - units.detach().mean(dim=0)
    basis = torch.linalg.svd(fixed, full_matrices=False).Vh[:2].T
    expected = (units - units.mean(dim=0)) @ basis @ basis.T + units.mean(dim=0)
    [found], [wanted] = (torch.autograd.grad((y * weights).sum(), x) for y in (principal_part(x, 2), expected))
    torch.testing.assert_close(found, wanted)


def test_rounding_errors_are_no_component() -> None:
    """Two vectors differ in one direction: a second component is one of none, with the gradient of the first alone."""
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weights = torch.randn(2, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found = []
    for dtype, components in ((torch.float64, 1), (torch.float64, 2), (torch.float32, 2)):
        y = x.to(dtype).requires_grad_()
        part = principal_part(y, components)
        torch.testing.assert_close(part.double(), F.normalize(x, dim=-1), rtol=0.0, atol=1e-6)
        found += torch.autograd.grad((part * weights.to(dtype)).sum(), y)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2].double(), found[0], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("shape", "components"), [((3, 8), 4), ((8, 3), 4), ((3, 8), 0)])
def test_components_that_there_are_not(shape: tuple[int, int], components: int) -> None:
    words = rf"{components} principal components of {shape[0]} vectors of {shape[1]} dimensions: there are at most 3"
    with pytest.raises(ValueError, match=words):
        principal_part(torch.ones(shape), components)


def test_vectors_that_are_no_numbers_stay_so() -> None:
    """The run ends by its loss, whose message says where; the decomposition would end it first."""
    x = torch.ones(4, 3)
    x[1, 1] = torch.nan
    assert principal_part(x, 2).isnan().any()
    assert torch.equal(principal_part(torch.ones(4, 3), 2), F.normalize(torch.ones(4, 3), dim=-1))


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("several", [1, COUNT])
@pytest.mark.parametrize("loss", ["info_nce", "siglip"])
def test_a_short_caption_is_a_loss_beside_the_side_s(several: int, tile_size: int | None, loss: str) -> None:
    """With the same options, equal texts of its own, and no terms."""
    vectors = embedded(ROWS * several)
    vectors["short_caption"] = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(9)).requires_grad_()
    ids = {"image_ids": torch.arange(ROWS), "text_ids": torch.arange(ROWS * several)}
    short_ids = torch.tensor([7, 7, 8, 9, 10])
    batch = {"image_text": ids | {"short_text_ids": short_ids}}
    keys = {"loss": loss, "captions_per_image": several, "uniformity": 0.5}
    stages = stage_of(**keys), stage_of(**keys, short_caption=ShortCaption(principal_components=2, weight=0.3))
    objective = JointObjective(tile_size=tile_size, stages=stages)
    plain, _ = objective(stages[0], batch, vectors)
    whole, terms = objective(stages[1], batch, vectors)
    part = principal_part(vectors["image"], 2)
    function = siglip if loss == "siglip" else info_nce
    short = function(part, vectors["short_caption"], 0.2, target_ids=short_ids)
    torch.testing.assert_close(terms["short_caption_image_text"], short.detach())
    torch.testing.assert_close(whole, plain + 0.3 * short)
    for name in ("image", "short_caption"):
        [found] = torch.autograd.grad(whole - plain, vectors[name], retain_graph=True)
        [expected] = torch.autograd.grad(0.3 * short, vectors[name], retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_earlier_layers_have_the_same_losses() -> None:
    """Also of the short caption, which is no column of the text side."""
    several = embedded()
    names = {"image": ROWS, "caption": ROWS * COUNT, "short_caption": ROWS, "query": ROWS, "positive": ROWS}
    generator = torch.Generator().manual_seed(11)
    last, earlier = ({name: torch.randn(n, DIM, generator=generator) for name, n in names.items()} for _ in range(2))
    short = ShortCaption(principal_components=2, weight=0.3)
    stage = stage_of(captions_per_image=COUNT, short_caption=short)
    stage = stage.model_copy(update={"text": Side(sources=["pairs"], batch_size=ROWS)})
    rows = torch.arange(ROWS)
    batch = ids_of() | {"text": {"query_ids": rows, "positive_ids": rows}}
    batch["image_text"]["short_text_ids"] = rows
    temperature = {"temperature": several["temperature"]}
    _, found = JointObjective()(stage, batch, last | temperature | {"earlier": earlier})
    _, alone = JointObjective()(stage, batch, earlier | temperature)
    whole = alone["loss_image_text"] + 0.3 * alone["short_caption_image_text"]
    torch.testing.assert_close(found["earlier_image_text"], whole)
    for side, columns in (("image_text", ("image", "caption", "short_caption")), ("text", ("query", "positive"))):
        both = (torch.cat([vectors[name] for name in columns]) for vectors in (last, earlier))
        torch.testing.assert_close(found[f"divergence_{side}"], layer_divergence(*both))
