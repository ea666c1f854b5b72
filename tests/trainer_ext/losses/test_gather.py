"""Two gloo processes against one process with the same global batch: values, gradients, and weights after steps."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainer_ext.losses.cosent import cosent
from trainer_ext.losses.gather import Shard, gather_ids, gather_with_grad, replicated, shard_of
from trainer_ext.losses.gradient_cache import Chunks, cached_embeddings
from trainer_ext.losses.info_nce import info_nce, info_nce_plus
from trainer_ext.losses.logits import clamped_temperature
from trainer_ext.losses.matryoshka import matryoshka
from trainer_ext.losses.nt_xent import nt_xent
from trainer_ext.losses.siglip import siglip

WIDTH, DIM, NEGATIVES = 5, 6, 2
Tensors = dict[str, Tensor]


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Linear(WIDTH, 12), nn.Tanh(), nn.Linear(12, DIM))
        self.image = nn.Linear(WIDTH, DIM)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor | None = None, **texts: Tensor) -> Tensors:
        vectors = {name: self.text(x) for name, x in texts.items()}
        if image is not None:
            vectors["image"] = self.image(image)
        return vectors | {"t": clamped_temperature(self.logit_scale)}


def pairs(loss: Callable[..., Tensor], v: Tensors, ids: Tensors, rows: slice | None, **options: object) -> Tensor:
    return loss(v["image"], v["query"], v["t"], rows=rows, **options)


def pairs_with_ids(v: Tensors, ids: Tensors, rows: slice | None, **options: object) -> Tensor:
    return info_nce(v["image"], v["query"], v["t"], query_ids=ids["a"], target_ids=ids["b"], rows=rows, **options)


def triplets(v: Tensors, ids: Tensors, rows: slice | None, **options: object) -> Tensor:
    options |= {"target_ids": ids["b"], "negative_ids": ids["n"]}
    return info_nce_plus(v["query"], v["positive"], v["negatives"], rows=rows, **options)


def prefixes(v: Tensors, ids: Tensors, rows: slice | None) -> Tensor:
    loss = partial(info_nce_plus, rows=rows, temperature=v["t"])
    return matryoshka(loss, v["query"], v["positive"], v["negatives"], dims=[2, DIM], weights=[0.5, 1.0])


def joint(v: Tensors, ids: Tensors, rows: slice | None, **options: object) -> Tensor:
    return pairs(info_nce, v, ids, rows, **options) + triplets(v, ids, rows, **options)


OBJECTIVES = {
    "info_nce": partial(pairs, info_nce),
    "info_nce tiled": partial(pairs, info_nce, tile_size=3),
    "info_nce mean": partial(pairs, info_nce, reduction="mean"),
    "info_nce forward": partial(pairs, info_nce, directions="forward"),
    "info_nce backward": partial(pairs, info_nce, directions="backward"),
    "ids mask": pairs_with_ids,
    "ids positive": partial(pairs_with_ids, duplicates="positive"),
    "ids positive tiled": partial(pairs_with_ids, duplicates="positive", tile_size=3),
    "info_nce_plus": triplets,
    "info_nce_plus tiled": partial(triplets, tile_size=3),
    "siglip": partial(pairs, siglip),
    "nt_xent": partial(pairs, nt_xent),
    "nt_xent tiled": partial(pairs, nt_xent, tile_size=3),
    "nt_xent ids": lambda v, ids, rows: nt_xent(v["image"], v["query"], v["t"], row_ids=ids["a"], rows=rows),
    "matryoshka": prefixes,
    "joint": joint,
    "joint tiled": partial(joint, tile_size=2),
}
SIZES = {"equal": (4, 4), "uneven": (5, 2), "one without rows": (0, 3)}


def global_batch(rows: int, dtype: torch.dtype) -> tuple[Tensors, Tensors, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    draw = partial(torch.randn, generator=generator, dtype=dtype)
    batch = {name: draw(rows, WIDTH) for name in ("image", "query", "positive")}
    batch["negatives"] = draw(rows, NEGATIVES, WIDTH)
    ids = {name: torch.randint(0, 5, (rows,), generator=generator) for name in "ab"}
    ids["n"] = torch.randint(0, 8, (rows, NEGATIVES), generator=generator)
    return batch, ids, draw(rows)


def towers(dtype: torch.dtype) -> Towers:
    torch.manual_seed(0)
    return Towers().to(dtype)


def embed_in_one_pass(model: nn.Module, batch: Tensors) -> Tensors:
    return model(**batch)


def embed_through_cache(model: nn.Module, batch: Tensors, no_sync: Callable | None = None) -> Tensors:
    def embed(name: str, chunk: Tensor) -> Tensor:
        return model(**{name: chunk})[name]

    inputs = {
        name: Chunks(partial(embed, name), rows.split(3) if len(rows) else [rows]) for name, rows in batch.items()
    }
    return cached_embeddings(inputs | {"t": Chunks(lambda _: model()["t"], [None])}, no_sync=no_sync or model.no_sync)


def loss_of_rank(model: nn.Module, objective: Callable, embed: Callable, shard: Shard, batch: Tensors, ids: Tensors):
    """Embed the own rows, gather, loss over the own rows: what the trainer does."""
    vectors = embed(model, {name: rows[shard.rows] for name, rows in batch.items()})
    vectors = {name: x if name == "t" else gather_with_grad(x, shard) for name, x in vectors.items()}
    ids = {name: gather_ids(x[shard.rows]) for name, x in ids.items()}
    unused = sum(0.0 * x.sum() for x in vectors.values())  # DDP waits for every parameter
    return objective(vectors, ids, shard.rows) * shard.weight + unused


def compare(objective: Callable, embed: Callable, sizes: tuple[int, ...], rank: int, dtype: torch.dtype) -> dict:
    """Largest difference from the single process, and how large the things compared are."""
    batch, ids, _ = global_batch(sum(sizes), dtype)
    single, model = towers(dtype), nn.parallel.DistributedDataParallel(towers(dtype))
    expected = objective(single(**batch), ids, None)
    expected.backward()
    loss = loss_of_rank(model, objective, embed, shard_of(torch.empty(sizes[rank], 1)), batch, ids)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    named = [(p, q) for p, q in zip(single.parameters(), model.parameters(), strict=True) if p.grad is not None]
    return {
        "loss": abs(mean.item() / len(sizes) - expected.item()),
        "gradient": max(((p.grad - q.grad).abs().max() / p.grad.abs().max()).item() for p, q in named),
        "size": min(expected.item(), *(p.grad.abs().max().item() for p, _ in named)),
        "compared": len(named),
    }


def compare_cosent(rank: int) -> dict:
    """The loss that each process computes in full."""
    (batch, _, scores), sizes = global_batch(7, torch.float64), (5, 2)
    single, model = towers(torch.float64), nn.parallel.DistributedDataParallel(towers(torch.float64))
    expected = cosent(*(single(**batch)[name] for name in ("query", "image")), scores)
    expected.backward()
    shard = Shard(sizes, rank)
    vectors = model(**{name: rows[shard.rows] for name, rows in batch.items()})
    gathered = (gather_with_grad(vectors[name], shard) for name in ("query", "image"))
    loss = cosent(*gathered, gather_with_grad(scores[shard.rows], shard)) + 0.0 * vectors["t"]
    loss.backward()
    named = [(p, q) for p, q in zip(single.parameters(), model.parameters(), strict=True) if p.grad is not None]
    return {
        "loss": abs(loss.item() - expected.item()),
        "gradient": max(((p.grad - q.grad).abs().max() / p.grad.abs().max()).item() for p, q in named),
        "size": min(p.grad.abs().max().item() for p, _ in named),
        "compared": len(named),
    }


def compare_fsdp(rank: int) -> dict:
    """FSDP2: sharded towers, chunks that gather their weights themselves."""
    (batch, ids, _), sizes = global_batch(8, torch.float32), (4, 4)
    single, model = towers(torch.float32), towers(torch.float32)
    model.logit_scale = nn.Parameter(model.logit_scale.detach()[None])  # FSDP2 shards no scalars
    for module in (model.text, model.image, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    joint(single(**batch), ids, None).backward()

    @contextmanager
    def no_sync() -> Iterator[None]:  # as accelerate has it
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)

    embed = partial(embed_through_cache, no_sync=no_sync)
    loss_of_rank(model, joint, embed, Shard(sizes, rank), batch, ids).backward()
    pairs = list(zip(single.parameters(), model.parameters(), strict=True))
    differences = [(p.grad - q.grad.full_tensor().reshape(p.shape)).abs().max() / p.grad.abs().max() for p, q in pairs]
    return {"gradient": max(differences).item(), "size": min(p.grad.abs().max().item() for p, _ in pairs)}


def train(embed: Callable, rank: int) -> dict:
    """Five AdamW steps in fp32, two micro-batches each, of which only the second synchronises."""
    single, model = towers(torch.float32), nn.parallel.DistributedDataParallel(towers(torch.float32))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (single, model)]
    worst = 0.0
    for step in range(5):
        for micro in range(2):
            batch, ids, _ = global_batch(6 + 2 * step + micro, torch.float32)
            total = len(batch["query"])
            (joint(single(**batch), ids, None) / 2).backward()
            shard = Shard((total - 2, 2), rank)
            with model.no_sync() if micro == 0 else torch.enable_grad():
                (loss_of_rank(model, joint, embed, shard, batch, ids) / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        differences = [(p - q).abs().max() for p, q in zip(single.parameters(), model.parameters(), strict=True)]
        worst = max(worst, torch.stack(differences).max().item())
    start = torch.cat([p.flatten() for p in towers(torch.float32).parameters()])
    end = torch.cat([p.detach().flatten() for p in single.parameters()])
    return {"weights": worst, "moved": (end - start).abs().max().item()}


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, dict] = {"cosent": compare_cosent(rank)}
    for sizes, shares in SIZES.items():
        for name, objective in OBJECTIVES.items():
            results[f"{name}, {sizes}"] = compare(objective, embed_in_one_pass, shares, rank, torch.float64)
    for name in ("joint", "joint tiled"):
        results[f"{name}, cached"] = compare(
            OBJECTIVES[name], embed_through_cache, SIZES["uneven"], rank, torch.float64
        )
    results["fsdp"] = compare_fsdp(rank)
    results["train"] = train(embed_in_one_pass, rank)
    results["train cached"] = train(embed_through_cache, rank)
    own = torch.tensor(2.0, requires_grad=True)
    (replicated(own) * (rank + 1)).backward()
    results["replicated"] = {"gradient": own.grad.item()}
    half = gather_with_grad(torch.full((2 - rank, 1), float(rank), dtype=torch.bfloat16))
    results["dtypes"] = {"half": str(half.dtype), "rows": half.flatten().tolist()}
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # on a busy machine a thread of gloo may still run at the interpreter's end, and torch aborts then


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(worker, (folder,), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_are_one(results: list[dict], objective: str, sizes: str) -> None:
    check(results, f"{objective}, {sizes}")


@pytest.mark.parametrize("case", ["cosent", "joint, cached", "joint tiled, cached"])
def test_two_processes_are_one_in_full_and_cached(results: list[dict], case: str) -> None:
    check(results, case)


def check(results: list[dict], case: str) -> None:
    for rank in range(2):
        found = results[rank][case]
        assert found["compared"] >= 4
        assert found["size"] > 1e-4
        assert found["loss"] < 1e-12
        assert found["gradient"] < 1e-9


def test_the_gradient_cache_works_under_fsdp2(results: list[dict]) -> None:
    for rank in range(2):
        assert results[rank]["fsdp"]["size"] > 1e-3
        assert results[rank]["fsdp"]["gradient"] < 1e-6


@pytest.mark.parametrize("case", ["train", "train cached"])
def test_training_gives_the_same_weights(results: list[dict], case: str) -> None:
    for rank in range(2):
        assert results[rank][case]["moved"] > 1e-2
        assert results[rank][case]["weights"] < 1e-6


def test_parameters_of_the_loss_get_the_mean_of_their_gradients(results: list[dict]) -> None:
    assert [found["replicated"]["gradient"] for found in results] == [1.5, 1.5]


def test_order_and_type_of_gathered_rows(results: list[dict]) -> None:
    assert results[0]["dtypes"] == results[1]["dtypes"] == {"half": "torch.bfloat16", "rows": [0.0, 0.0, 1.0]}


def test_identity_without_a_process_group() -> None:
    x, ids = torch.ones(3, 2, requires_grad=True), torch.arange(3)
    assert gather_with_grad(x) is x
    assert gather_ids(ids) is ids
    assert replicated(x) is x
    assert shard_of(x) == Shard((3,), 0)
    assert (shard_of(x).rows, shard_of(x).weight) == (slice(0, 3), 1.0)


def test_identity_in_a_group_of_one(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x = torch.ones(3, 2, requires_grad=True)
        assert gather_with_grad(x) is x
        assert shard_of(x) == Shard((3,), 0)
    finally:
        dist.destroy_process_group()


def test_weights_of_shares_average_to_one() -> None:
    for sizes in ((4, 4), (5, 2), (0, 3), (1, 2, 3)):
        shards = [Shard(sizes, rank) for rank in range(len(sizes))]
        assert sum(shard.weight for shard in shards) == pytest.approx(len(sizes))
        assert [shard.rows.stop - shard.rows.start for shard in shards] == list(sizes)
        assert shards[-1].rows.stop == shards[0].total == sum(sizes)
