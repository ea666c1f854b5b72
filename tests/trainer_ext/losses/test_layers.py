"""Vectors of earlier layers in the loss: the draw, the divergence, and sentence-transformers' losses as the oracle."""

import inspect
import random
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import AdaptiveLayerLoss, Matryoshka2dLoss, MultipleNegativesRankingLoss
from sentence_transformers.models import Pooling, Transformer
from torch import Tensor
from transformers import BertConfig, BertModel

from tests.trainer_ext.tiny_run import make_tokenizer
from trainer_ext.losses import info_nce, matryoshka
from trainer_ext.losses.layers import drawn_layer, earlier_terms, layer_divergence


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6, unique=True).map(sorted),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["text", "image"]),
    st.integers(0, 10**8),
)
def test_any_layer_but_the_last_is_drawn_and_the_same_each_time(
    layers: list[int], seed: int, tower: str, step: int
) -> None:
    layer = drawn_layer(layers, seed, tower, step)
    assert layer in layers[:-1]
    assert layer == drawn_layer(layers, seed, tower, step)


def test_layers_are_drawn_about_equally_often_and_apart_for_each_tower() -> None:
    drawn = {tower: [drawn_layer([2, 4, 6, 8], 1, tower, step) for step in range(3000)] for tower in ("text", "image")}
    for layers in drawn.values():
        assert all(900 < count < 1100 for count in Counter(layers).values())
    together = sum(left == right for left, right in zip(*drawn.values(), strict=True))
    assert 900 < together < 1100
    other = [drawn_layer([2, 4, 6, 8], 2, "text", step) for step in range(3000)]
    assert other != drawn["text"]


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.05, 0.3, 2.0]))
def test_divergence_is_its_definition(seed: int, rows: int, width: int, temperature: float) -> None:
    torch.manual_seed(seed)
    last, earlier = torch.randn(2, rows, width).double().requires_grad_()
    found = layer_divergence(last, earlier, temperature)
    p, q = (x / temperature for x in (last, earlier))
    p, q = p.exp() / p.exp().sum(dim=1, keepdim=True), q.exp() / q.exp().sum(dim=1, keepdim=True)
    assert found.item() == pytest.approx(temperature * (p * (p / q).log()).sum().item() / rows, rel=1e-6, abs=1e-12)
    assert found.item() >= -1e-12


def test_divergence_teaches_the_earlier_layer_alone() -> None:
    """Its gradient is (softmax(earlier / t) - softmax(last / t)) / rows: t cancels."""
    torch.manual_seed(0)
    last, earlier = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    layer_divergence(last, earlier, 0.3).backward()
    assert last.grad is None
    expected = ((earlier / 0.3).softmax(dim=1) - (last / 0.3).softmax(dim=1)).detach() / 5
    torch.testing.assert_close(earlier.grad, expected)
    assert layer_divergence(last, last).item() == 0.0
    assert layer_divergence(torch.zeros(0, 8), torch.zeros(0, 8)).item() == 0.0


def test_half_precision_is_compared_in_float32() -> None:
    last, earlier = torch.randn(2, 4, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer_divergence(last, earlier)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer_divergence(last.float(), earlier.float()))


def test_a_tower_without_layers_stands_with_its_last_vectors() -> None:
    torch.manual_seed(0)
    image, caption, early = torch.randn(3, 4, 8)
    columns = ("image", "caption", "negative_caption")
    seen = []

    def side_loss(vectors: dict[str, Tensor]) -> tuple[Tensor, dict[str, tuple[float, Tensor]], None]:
        seen.append(vectors)
        return info_nce(vectors["image"], vectors["caption"]), {"alignment": (0.5, torch.tensor(3.0))}, None

    batch = {"image": image, "caption": caption, "temperature": torch.tensor(0.1), "teacher": {"image": image}}
    assert earlier_terms(side_loss, columns, batch) == {}
    assert earlier_terms(side_loss, columns, batch | {"earlier": {"query": early}}) == {}
    found = earlier_terms(side_loss, columns, batch | {"earlier": {"image": early}})
    assert [set(vectors) for vectors in seen] == [{"image", "caption"}]  # no teacher
    assert {name: weight for name, (weight, _) in found.items()} == {"earlier": 1.0, "divergence": 1.0}
    torch.testing.assert_close(found["earlier"][1], info_nce(early, caption) + 1.5)
    torch.testing.assert_close(found["divergence"][1], layer_divergence(image, early))


# --- sentence-transformers -----------------------------------------------------------------------------------------
DEPTH = 3


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=DEPTH, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = Transformer(str(folder))
    return SentenceTransformer(modules=[words, Pooling(16)], device="cpu").eval()


@pytest.mark.parametrize("layer", range(1, DEPTH))
@pytest.mark.parametrize("dims", [None, [16, 4]], ids=["AdaptiveLayerLoss", "Matryoshka2dLoss"])
def test_it_is_the_loss_of_sentence_transformers(
    encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, layer: int, dims: list[int] | None
) -> None:
    """Theirs draws any layer, the word embeddings too, and by default all prefixes: told to take ours, it is ours."""
    if "layer_weighting" not in inspect.signature(AdaptiveLayerLoss).parameters:
        pytest.skip("older versions weigh layers by their number")
    monkeypatch.setattr(random, "sample", lambda layers, count: [layer])
    texts = [["one is after", "two is before", "red bar number"], ["two", "one", "three red bar"]]
    features = [encoder.tokenize(column) for column in texts]
    base = MultipleNegativesRankingLoss(encoder, scale=20.0)
    theirs = (
        AdaptiveLayerLoss(encoder, base)
        if dims is None
        else Matryoshka2dLoss(encoder, base, matryoshka_dims=dims, n_dims_per_step=-1)
    )
    expected = theirs([dict(column) for column in features], None)
    with torch.no_grad():
        hidden = [encoder[0].auto_model(**column, output_hidden_states=True).hidden_states for column in features]
    masks = [column["attention_mask"][..., None] for column in features]

    def pooled(number: int) -> list[Tensor]:
        pairs = zip(hidden, masks, strict=True)
        return [(states[number] * mask).sum(dim=1) / mask.sum(dim=1) for states, mask in pairs]

    loss = partial(info_nce, temperature=0.05, directions="forward", reduction="sum")
    last, earlier = pooled(DEPTH), pooled(layer)
    ours = [loss(*vectors) if dims is None else matryoshka(loss, *vectors, dims=dims) for vectors in (last, earlier)]
    divergence = layer_divergence(torch.cat(last), torch.cat(earlier))
    assert divergence > 1e-3
    torch.testing.assert_close(sum(ours) + divergence, expected.detach(), rtol=1e-5, atol=1e-5)


def test_their_defaults_are_what_the_guide_says() -> None:
    defaults = {name: item.default for name, item in inspect.signature(AdaptiveLayerLoss).parameters.items()}
    assert (defaults["n_layers_per_step"], defaults["kl_temperature"], defaults["kl_div_weight"]) == (1, 0.3, 1.0)
    assert defaults["last_layer_weight"] == defaults["prior_layers_weight"] == 1.0
