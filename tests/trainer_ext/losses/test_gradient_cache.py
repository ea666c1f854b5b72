"""The cached gradients against the same chunks embedded once, with everything that makes a second pass differ."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from trainer_ext.losses.gradient_cache import Chunks, cached_embeddings, split_rows
from trainer_ext.losses.info_nce import info_nce, info_nce_plus
from trainer_ext.losses.logits import clamped_temperature

ROWS, WIDTH, NEGATIVES = 11, 6, 2


class Towers(nn.Module):
    """Two towers with dropout and row dropping, one shared by several inputs, and a trainable temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 8))
        self.image = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def embed_text(self, chunk: dict[str, Tensor]) -> Tensor:
        return self.text(chunk["x"])

    def embed_image(self, chunk: dict[str, Tensor]) -> Tensor:
        kept = torch.randperm(WIDTH)[: WIDTH // 2]  # as patch dropout draws its patches
        mask = torch.zeros(WIDTH).index_fill(0, kept, 1.0)
        return self.image(chunk["x"] * mask)

    def temperature(self, _: None) -> Tensor:
        return clamped_temperature(self.logit_scale)


def make(chunk: int, seed: int = 0) -> tuple[Towers, dict[str, Chunks]]:
    torch.manual_seed(seed)
    model = Towers()
    batch = {name: {"x": torch.randn(ROWS, WIDTH)} for name in ("image", "caption", "query", "positive")}
    batch["negatives"] = {"x": torch.randn(ROWS * NEGATIVES, WIDTH)}
    inputs = {
        name: Chunks(model.embed_image if name == "image" else model.embed_text, split_rows(rows, chunk))
        for name, rows in batch.items()
    }
    return model, inputs | {"temperature": Chunks(model.temperature, [None])}


def joint_loss(vectors: dict[str, Tensor]) -> Tensor:
    negatives = vectors["negatives"].unflatten(0, (ROWS, NEGATIVES))
    return info_nce(vectors["image"], vectors["caption"], vectors["temperature"]) + info_nce_plus(
        vectors["query"], vectors["positive"], negatives
    )


def embed_once(inputs: dict[str, Chunks]) -> dict[str, Tensor]:
    """The single pass: the same chunks in the same order, all graphs kept."""
    parts = {name: [item.embed(chunk) for chunk in item.chunks] for name, item in inputs.items()}
    return {name: torch.cat(part) if part[0].ndim else part[0] for name, part in parts.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert left.keys() == right.keys()
    assert left
    for name, expected in right.items():
        scale = expected.abs().max()
        assert scale > 1e-4, f"{name}: nothing to compare"
        assert (left[name] - expected).abs().max() <= tolerance * max(scale, 1.0), name


def run(embed: Callable, model: Towers, inputs: dict[str, Chunks], scale: float = 1.0) -> tuple[Tensor, dict, Tensor]:
    torch.manual_seed(5)
    loss = joint_loss(embed(inputs))
    (scale * loss).backward()
    return loss.detach(), gradients(model), torch.rand(3)


@pytest.mark.parametrize(("no_sync", "keep_last"), [(None, False), (None, True), ("counted", False), ("counted", True)])
@pytest.mark.parametrize("chunk", [1, 3, 4, ROWS, 100])
def test_equals_the_single_pass_under_dropout(chunk: int, no_sync: str | None, keep_last: bool) -> None:
    """All inputs, a shared tower, the temperature; chunk sizes that do not divide; the random stream goes on alike."""
    model, inputs = make(chunk)
    entered = []

    @contextmanager
    def counted():
        entered.append(1)
        yield

    embed = partial(cached_embeddings, no_sync=None if no_sync is None else counted, keep_last=keep_last)
    loss, grads, after = run(embed, model, inputs)
    expected_loss, expected, expected_after = run(embed_once, model, inputs)
    assert loss.item() == expected_loss.item()
    assert len(expected) == len(list(model.parameters()))
    assert_same(grads, expected)
    assert torch.equal(after, expected_after)
    chunks = sum(len(item.chunks) for item in inputs.values())
    assert len(entered) == (0 if no_sync is None else chunks - len(inputs))


def test_without_the_replay_the_gradients_would_differ() -> None:
    """The guard of the tests above: dropout is active, and other random numbers give other gradients."""
    model, inputs = make(3)
    _, expected, _ = run(embed_once, model, inputs)
    torch.manual_seed(6)
    joint_loss(embed_once(inputs)).backward()
    other = gradients(model)
    assert (other["text.0.weight"] - expected["text.0.weight"]).abs().max() > 1e-2


def test_scales_with_the_loss() -> None:
    """What accumulation or an fp16 gradient scaler multiplies the loss with arrives in every parameter."""
    model, inputs = make(4)
    _, full, _ = run(cached_embeddings, model, inputs)
    _, quarter, _ = run(cached_embeddings, model, inputs, scale=0.25)
    assert_same(quarter, {name: grad * 0.25 for name, grad in full.items()})


@pytest.mark.parametrize("keep_last", [False, True])
def test_accumulates_over_micro_batches(keep_last: bool) -> None:
    model, first = make(4)
    second = {name: Chunks(item.embed, list(reversed(item.chunks))) for name, item in first.items()}
    results = []
    for embed in (partial(cached_embeddings, keep_last=keep_last), embed_once):
        torch.manual_seed(5)
        for inputs in (first, second):
            (joint_loss(embed(inputs)) / 2).backward()
        results.append(gradients(model))
    assert_same(*results)


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("around", ["embedding", "everything"])
def test_autocast_is_replayed(around: str, keep_last: bool) -> None:
    """bf16 autocast, with the backward pass outside it (as Trainer does) or within it."""
    model, inputs = make(4)
    results = []
    for embed in (partial(cached_embeddings, keep_last=keep_last), embed_once):
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = joint_loss(embed(inputs))
            if around == "everything":
                loss.backward()
        if around == "embedding":
            loss.backward()
        results.append((loss.item(), gradients(model)))
    torch.manual_seed(5)
    assert results[0][0] == results[1][0] != joint_loss(embed_once(inputs)).item()
    # one bf16 rounding: the single pass adds up the chunks' weight gradients in bf16, the cache in fp32
    assert_same(results[0][1], results[1][1], tolerance=2**-7)
    assert not torch.is_autocast_enabled("cpu")


def test_no_autocast_is_replayed_too() -> None:
    """Embedded in fp32, but the backward pass called under autocast: the second pass stays fp32."""
    model, inputs = make(4)
    torch.manual_seed(5)
    loss = joint_loss(cached_embeddings(inputs))
    dtypes = []
    model.text[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.backward()
    assert set(dtypes) == {torch.float32}


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("no_sync", [None, torch.enable_grad])
def test_a_frozen_tower_is_left_alone(no_sync: Callable | None, keep_last: bool) -> None:
    model, inputs = make(4)
    model.image.requires_grad_(False)
    calls = []
    model.image.register_forward_hook(lambda *_: calls.append(1))
    _, grads, _ = run(partial(cached_embeddings, no_sync=no_sync, keep_last=keep_last), model, inputs)
    assert len(calls) <= len(inputs["image"].chunks) + 2  # not all of it a second time
    _, expected, _ = run(embed_once, model, inputs)
    assert_same(grads, expected)
    assert not any(name.startswith("image") for name in grads)


def test_with_activation_checkpointing_inside() -> None:
    model, inputs = make(4)
    plain = inputs["caption"].embed
    checkpointed = partial(torch.utils.checkpoint.checkpoint, plain, use_reentrant=False)
    inside = inputs | {name: Chunks(checkpointed, inputs[name].chunks) for name in ("caption", "query")}
    _, grads, _ = run(cached_embeddings, model, inside)
    _, expected, _ = run(embed_once, model, inputs)
    assert_same(grads, expected)


@pytest.mark.slow
def test_with_a_compiled_tower() -> None:
    """Inductor draws its random numbers in its own way, but alike with and without a graph."""
    model, inputs = make(4)
    compiled = torch.compile(model.text)

    def embed_text(chunk: dict[str, Tensor]) -> Tensor:
        return compiled(chunk["x"])

    inside = {
        name: item if name in ("image", "temperature") else Chunks(embed_text, item.chunks)
        for name, item in inputs.items()
    }
    loss, grads, _ = run(cached_embeddings, model, inside)
    expected_loss, expected, _ = run(embed_once, model, inside)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_same(grads, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_on_cuda_is_replayed() -> None:
    model, inputs = make(4)
    model.cuda()
    inputs = {
        name: Chunks(item.embed, [{"x": chunk["x"].cuda()} for chunk in item.chunks])
        for name, item in inputs.items()
        if name in ("query", "positive")
    }
    results = []
    for embed in (cached_embeddings, embed_once):
        torch.manual_seed(5)
        vectors = embed(inputs)
        info_nce(vectors["query"], vectors["positive"]).backward()
        results.append(gradients(model))
    assert_same(*results)


@pytest.mark.parametrize("no_sync", [None, nullcontext], ids=["alone", "DDP"])
@pytest.mark.parametrize("keep_last", [False, True])
def test_how_many_chunks_are_alive(no_sync: Callable | None, keep_last: bool) -> None:
    """None between the passes and one at a time; of kept ones, and under DDP at the end, one of each input."""
    _, inputs = make(1)
    assert min(len(item.chunks) for name, item in inputs.items() if name != "temperature") > 1
    alive, most = 0, 0

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal alive, most
            if torch.is_grad_enabled() or ctx.needs_input_grad[0]:
                alive += 1
                most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            nonlocal alive
            alive -= 1
            return grad

    inputs = {
        name: Chunks(partial(lambda embed, c: Watch.apply(embed(c)), s.embed), s.chunks) for name, s in inputs.items()
    }
    loss = joint_loss(cached_embeddings(inputs, no_sync=no_sync, keep_last=keep_last))
    assert alive == (len(inputs) if keep_last and no_sync is None else 0)
    loss.backward()
    assert (alive, most) == (0, len(inputs) if keep_last or no_sync else 1)


def test_without_gradients_it_only_embeds() -> None:
    _, inputs = make(4)
    with torch.no_grad():
        torch.manual_seed(5)
        cached = cached_embeddings(inputs)
        torch.manual_seed(5)
        once = embed_once(inputs)
    assert not any(vectors.requires_grad for vectors in cached.values())
    assert cached.keys() == once.keys()
    assert all(torch.equal(cached[name], once[name]) for name in once)


def test_a_side_that_the_loss_does_not_use() -> None:
    model, inputs = make(4)
    vectors = cached_embeddings(inputs)
    info_nce(vectors["query"], vectors["positive"]).backward()
    grads = gradients(model)
    assert grads["text.0.weight"].abs().max() > 0
    assert grads["image.0.weight"].abs().max() == 0


def test_bad_input_says_what_and_why() -> None:
    model, inputs = make(4)
    with pytest.raises(ValueError, match="chunk size 0"):
        split_rows({"x": torch.ones(3)}, 0)
    with pytest.raises(ValueError, match=r"same number of rows.*'a': 3.*'b': 2"):
        split_rows({"a": torch.ones(3), "b": torch.ones(2)}, 2)
    with pytest.raises(ValueError, match=r"nothing to embed for \['query'\]"):
        cached_embeddings(inputs | {"query": Chunks(model.embed_text, [])})
    with pytest.raises(ValueError, match="temperature: an input without rows"):
        cached_embeddings({"temperature": Chunks(model.temperature, [None, None])})
