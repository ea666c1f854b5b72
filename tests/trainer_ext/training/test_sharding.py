"""``fully_shard: true``: processes that hold a share of every weight take the steps of one that holds them all."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPProcessor
from tests.trainer_ext.own_process import (
    in_two_processes,
    noisy_evaluation,
    run_command,
    settle,
    tiny_suite,
    train_rank,
)
from tests.trainer_ext.tiny_run import RunFactory, entries_of, make_model, trained, write_data, write_recipe
from tests.trainer_ext.training.test_trainer_distributed import QUIET
from trainer_ext import __main__ as command_line
from trainer_ext.training.embedding import chunks_of, encoder_inputs
from trainer_ext.training.monitoring import NonFiniteError
from trainer_ext.training.sharding import (
    is_sharded,
    load_optimizer_state,
    shard_model,
    whole_copy,
    whole_optimizer_state,
)
from trainer_ext.training.trainer import JinaCLIPTrainer

SIZES = [f"stages.{stage}.{side}.batch_size=8" for stage in range(3) for side in ("image_text", "text")]
LONG = [f"stages.{stage}.max_length=32" for stage in range(3)]
CACHE = ["gradient_cache_chunk_size=1", "gradient_accumulation_steps=2", *SIZES, *LONG]
SCORED = "stages.1.text={sources: [scored], batch_size: 4, loss: cosent}"
# Adam takes hardly more than the signs of its first gradients: of tiny ones it would take those of their roundings.
EPSILON = "adam_epsilon=1e-4"
# Every run has pairs at two resolutions and, in its last stage, hard negatives.
RUNS: dict[str, dict[str, list[str]]] = {
    "fast": {
        "cache, accumulation": CACHE,
    },
    "slow": {
        "plain": [],
        "first stage without images": ["stages.0.image_text=null"],
        "frozen tower, then a new optimizer": ["stages.0.trainable=[text]", "stages.2.reset_optimizer=true", EPSILON],
        "last without images, cache": ["stages.2.image_text=null", "gradient_cache_chunk_size=1"],
        "frozen tower, cache": ["stages.1.trainable=[vision]", "stages.1.text=null", *CACHE[:1]],
        "kept graphs": [*CACHE, "gradient_cache_keep_last=true"],
        "tiles, scores, prefixes": ["tile_size=1", SCORED, "matryoshka={dims: [16, 4]}", EPSILON],
        "parameters of the losses": ["stages.0.image_text.loss=siglip", "stages.1.text.temperature=trained"],
        "checkpointed activations": ["gradient_checkpointing=true"],
        "adamw_torch, no clipping": ["optim=adamw_torch", "max_grad_norm=0"],
        "sgd, much clipping": ["optim=sgd", "max_grad_norm=0.01", "stages.0.learning_rate=1.0"],
        "rates by layer": ["stages.0.layer_decay=0.5", "stages.1.learning_rates={vision: 1e-4}"],
    },
}
CASES = [
    pytest.param(speed, name, id=name, marks=[pytest.mark.slow] if speed == "slow" else [])
    for speed, runs in RUNS.items()
    for name in runs
]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> RunFactory:
    """The tiny run, some of whose texts are long, so that the two processes' chunks would not be cut alike."""
    folder = tmp_path_factory.mktemp("uneven")
    write_data(folder)
    path = folder / "successors.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for number, row in enumerate(rows):
        row["query"] += " not" * (24 if number % 3 == 0 else 0)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    values = json.loads((folder / "model.json").read_text())
    values["text_config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # for the command line
    (folder / "model.json").write_text(json.dumps(values))
    return RunFactory(write_recipe(folder))


def share_held(tensors: list[Tensor]) -> float:
    """Elements that this process holds, of all elements."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() for tensor in local) / sum(tensor.numel() for tensor in tensors)


def chunk_counts(trainer: JinaCLIPTrainer) -> list[int]:
    """How many chunks each part of the run would have, cut by tokens as on one process."""
    parts = (encoder_inputs(batch) for batch in trainer.get_train_dataloader())
    return [len(chunks) for step in parts for chunks, _ in chunks_of(step, 1, 4).values()]


def train_each(recipe: Path, folder: Path, runs: dict[str, list[str]]) -> None:
    """All runs, one after the other: it is the start of the processes that takes its time."""
    settle()
    make = RunFactory(recipe)
    for name, overrides in runs.items():
        trainer = trained(make(folder / name, *overrides, dropout=0.0, evaluate_fn=noisy_evaluation))
        states = [value for state in trainer.optimizer.state.values() for key, value in state.items() if key != "step"]
        found = {
            "log": entries_of(trainer),
            "weights": share_held(list(trainer.model.parameters())),
            "state": share_held([value for value in states if isinstance(value, Tensor)] or [torch.zeros(1)]),
            "chunks": chunk_counts(trainer),
            "class": type(trainer.model).__name__,
        }
        torch.save(found, folder / name / f"{trainer.args.process_index}.pt")


@pytest.fixture(scope="module")
def sharded(factory: RunFactory, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of all sharded runs of a speed, done once."""
    done: dict[str, Path] = {}

    def get(speed: str) -> Path:
        if speed not in done:
            done[speed] = tmp_path_factory.mktemp(speed)
            runs = {name: [*QUIET, "fully_shard=true", *extra] for name, extra in RUNS[speed].items()}
            assert in_two_processes(train_each, factory.recipe, done[speed], runs) == [0, 0]
        return done[speed]

    return get


@pytest.mark.parametrize(("speed", "name"), CASES)
def test_two_sharded_processes_equal_one(
    factory: RunFactory, sharded: Callable[[str], Path], tmp_path: Path, speed: str, name: str
) -> None:
    """Every line of the log, evaluations included, and the weights."""
    folder = sharded(speed) / name
    one = trained(factory(tmp_path, *QUIET, *RUNS[speed][name], dropout=0.0, evaluate_fn=noisy_evaluation))
    assert not is_sharded(one.model)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    assert found[0]["log"] == found[1]["log"]
    for left, right in zip(found[0]["log"], entries_of(one), strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            close = value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-6)
            assert right[key] == close, key
    stored, start = load_file(folder / "checkpoint-8" / "model.safetensors"), make_model().state_dict()
    assert stored.keys() == start.keys()
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(stored[key], value, rtol=0.0, atol=1e-6)
    assert max((stored[key] - start[key]).abs().max() for key in start) > 1e-3
    optimizer = torch.load(folder / "checkpoint-8" / "optimizer.pt")
    assert_same_state(optimizer, one.optimizer.state_dict())
    for rank in range(2):
        assert found[rank]["class"] == "JinaCLIPModel"
        assert 0.45 < found[rank]["weights"] < 0.55
        assert 0.45 < found[rank]["state"] < 0.55 or "optim=sgd" in RUNS[speed][name]
    if "cache" in name and "accumulation" in name:
        assert found[0]["chunks"] != found[1]["chunks"]  # cut by tokens, one process would wait for the other


def assert_same_state(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Of two optimizers: the same groups, and plain tensors of the same values but for rounding."""
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for number, values in right["state"].items():
        assert left["state"][number].keys() == values.keys()
        for key, value in values.items():
            assert type(left["state"][number][key]) is type(value)
            if isinstance(value, Tensor):
                torch.testing.assert_close(left["state"][number][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_autocast_is_that_of_whole_weights(factory: RunFactory, tmp_path: Path) -> None:
    """bf16, two processes both times: FSDP2 in the place of DDP changes next to nothing."""
    ways = {"once": [], "cached": CACHE}
    runs = {
        f"{way}, {sharded}": [*QUIET, *extra, "bf16=true", f"fully_shard={sharded}"]
        for way, extra in ways.items()
        for sharded in ("true", "false")
    }
    assert in_two_processes(train_each, factory.recipe, tmp_path, runs) == [0, 0]
    start = make_model().state_dict()
    for way in ways:
        folders = [tmp_path / f"{way}, {sharded}" for sharded in ("true", "false")]
        sharded, whole = (load_file(folder / "checkpoint-8" / "model.safetensors") for folder in folders)
        moved = max((whole[name] - value).abs().max() for name, value in start.items())
        difference = max((whole[name] - value).abs().max() for name, value in sharded.items())
        # The chunks are cut in other places, and bf16 rounds each one's gradients.
        assert difference < (0.03 if way == "cached" else 0.002) * moved
        first = [torch.load(folder / "0.pt")["log"][0] for folder in folders]
        assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("from_one", [True, False], ids=["one, then two", "two, then one"])
def test_any_number_of_processes_goes_on(factory: RunFactory, tmp_path: Path, from_one: bool) -> None:
    """A checkpoint does not tell how many processes wrote it."""
    overrides = [*QUIET, "save_steps=4", "stages.0.trainable=[text]"]
    one = trained(factory(tmp_path / "one", *overrides, dropout=0.0))
    runs = (factory.recipe, tmp_path / "two", [*overrides, "fully_shard=true"], 0.0)
    if from_one:
        assert in_two_processes(train_rank, *runs, tmp_path / "one" / "checkpoint-4") == [0, 0]
        stored = load_file(tmp_path / "two" / "checkpoint-8" / "model.safetensors")
    else:
        assert in_two_processes(train_rank, *runs) == [0, 0]
        again = factory(tmp_path / "again", *overrides, dropout=0.0)
        stored = trained(again, tmp_path / "two" / "checkpoint-4").model.state_dict()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=0.0, atol=1e-6)


@pytest.mark.slow
def test_command_line_finishes_with_whole_models(
    factory: RunFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage folders, the finished folder, its report and its pictures."""
    quiet = [*QUIET, "evaluation=tiny"]
    command = [str(factory.recipe), "--output_dir", str(tmp_path / "two"), *quiet, "fully_shard=true"]
    assert in_two_processes(run_command, command) == [0, 0]
    monkeypatch.setattr("trainer_ext.run.evaluating.open_suite", tiny_suite)
    assert command_line.main([str(factory.recipe), "--output_dir", str(tmp_path / "one"), *quiet]) == 0
    for place in ("", "stages/0-pairs", "stages/1-larger", "stages/2-hard"):
        model = JinaCLIPModel.from_pretrained(tmp_path / "two" / place)
        model.processor = JinaCLIPProcessor.from_pretrained(tmp_path / "two" / place)
        assert model.encode_text(["one red bar"]).shape == (1, 16)
        assert model.config.vision_config.patch_dropout == 0.1
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}
    assert "contact_sheet.png" in names
    rows = [json.loads((tmp_path / name / "metrics.json").read_text())["rows"] for name in ("one", "two")]
    assert [row["name"] for row in rows[1]] == ["chance", "BM25", "before training", "pairs", "larger", "hard"]
    for left, right in zip(*rows, strict=True):
        assert left["metrics"] == pytest.approx(right["metrics"], abs=1e-4), left["name"]


class PoisonOne(TrainerCallback):
    """Breaks a gradient on one process alone."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and args.process_index == 1:
            model.vision_model.norm.weight.grad.to_local().fill_(torch.nan)


def train_poisoned(recipe: Path, folder: Path) -> None:
    settle()
    trainer = RunFactory(recipe)(folder, "fully_shard=true", callbacks=[PoisonOne()])
    with pytest.raises(NonFiniteError, match=r"not finite at step 2 \(1 tensors: vision_model.norm.weight"):
        trainer.train()


@pytest.mark.slow
def test_a_gradient_that_is_no_number_stops_all_processes(factory: RunFactory, tmp_path: Path) -> None:
    assert in_two_processes(train_poisoned, factory.recipe, tmp_path) == [0, 0]


def step_v2_layout() -> None:
    """A text tower with the stacked low-rank factors of v2, of which there are fewer rows than processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    text = {"position_embedding_type": "rotary", "mlp_type": "mlp", "lora_adaptations": ["one"], "lora_rank": 2}
    text |= {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "embed_dim": 16}
    text |= {"lora_main_params_trainable": True, "default_lora_task": "one", "intermediate_size": 32}
    vision = {"embed_dim": 16, "width": 16, "head_width": 8, "layers": 1, "image_size": 16, "patch_size": 4}
    torch.manual_seed(rank)  # the main process's values go to all
    model = JinaCLIPModel(JinaCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    plain = JinaCLIPModel(model.config).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    shard_model(model, torch.device("cpu"))
    assert any("lora_A" in name and value.shape[0] < 2 for name, value in plain.named_parameters())
    ids = torch.randint(1, 64, (4, 9))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-3) for m in (plain, model)]
    before = torch.get_rng_state()
    for _ in range(2):
        for m, rows, optimizer in zip((plain, model), (ids, ids[2 * rank : 2 * rank + 2]), optimizers, strict=True):
            m(input_ids=rows).text_embeds[:, 0].mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        state = whole_optimizer_state(optimizers[1])
        whole = whole_copy(model)
        assert (whole is None) == (state is None) == (rank > 0)
        if whole is not None:
            for (name, left), right in zip(plain.named_parameters(), whole.parameters(), strict=True):
                torch.testing.assert_close(left, right, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name} {text}")
            assert torch.equal(whole(input_ids=ids).text_embeds, whole(input_ids=ids).text_embeds)
        load_optimizer_state(optimizers[1], copy.deepcopy(optimizers[0].state_dict()))  # an ordinary state, cut
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_layout_of_v2_and_the_values_of_the_main_process() -> None:
    assert in_two_processes(step_v2_layout) == [0, 0]


def test_one_process_keeps_its_weights_and_says_so(
    make_trainer: RunFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("trainer_ext.arguments")
    logger.addHandler(caplog.handler)
    try:
        trainer = trained(make_trainer(tmp_path, "fully_shard=true", "save_strategy=no"))
    finally:
        logger.removeHandler(caplog.handler)
    assert "fully_shard has a single process to shard over" in caplog.text
    assert not is_sharded(trainer.model)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["lora={towers: [text]}"], r"lora is towers.*text.*fully_shard is on"),
        (["ema_decay=0.9"], "ema_decay is 0.9 and fully_shard is on"),
    ],
)
def test_what_needs_whole_weights_is_refused(
    make_trainer: RunFactory, tmp_path: Path, extra: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, "fully_shard=true", *extra)


def test_deepspeed_by_the_launcher_is_refused(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "fully_shard=true")
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="fully_shard is on and so is DeepSpeed"):
        trainer._check_objective()
