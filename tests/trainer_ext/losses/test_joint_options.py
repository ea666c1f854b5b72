"""Every option of a recipe's objectives, trained through the real trainer: one row an option.

Each row says which parameters the option trains besides the towers, and what a hand-written loss gives for the batch.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.trainer_ext.own_process import in_two_processes, train_rank
from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, entries_of, trained
from trainer_ext.__main__ import main as command_line
from trainer_ext.losses.batch_metrics import order_accuracy
from trainer_ext.losses.joint import JointObjective
from trainer_ext.losses.stored import OBJECTIVE_FILE
from trainer_ext.training.trainer import JinaCLIPTrainer

IMAGES = "stages.0.image_text={sources: [pictures], batch_size: 4%s}"
PAIRS = "stages.0.text={sources: [successors], batch_size: 4%s}"
TRIPLETS = "stages.0.text={sources: [triplets], batch_size: 4, loss: info_nce_plus%s}"
CONTRASTED = "stages.0.image_text={sources: [contrasted], batch_size: 4, loss: info_nce_plus%s}"
SCORED = "stages.0.text={sources: [scored], batch_size: 4, loss: cosent%s}"
# One stage without randomness: one process and two, or a run and its resumption, can be compared.
QUIET = [
    "stages=[{name: only, steps: 4, learning_rate: 1e-3, max_length: 8, patch_dropout: 0.0}]",
    "save_steps=2",
    "false_negatives=mask",
]
OPTIONS: dict[str, list[str]] = {
    "info_nce": [IMAGES % "", PAIRS % ""],
    "mean of directions": [IMAGES % ", reduction: mean", PAIRS % ", reduction: mean"],
    "one direction": [IMAGES % ", directions: forward", PAIRS % ", directions: backward"],
    "hard negatives": [IMAGES % "", TRIPLETS % ""],
    "negative captions": [CONTRASTED % "", TRIPLETS % ""],
    "negative captions, prefixes and tiles": [
        CONTRASTED % ", directions: forward, matryoshka: {dims: [16, 4]}",
        PAIRS % "",
        "tile_size=3",
    ],
    "smoothing and hardness": [IMAGES % ", label_smoothing: 0.1", PAIRS % ", hardness: 4.0"],
    "terms": [
        IMAGES % ", loss: siglip, alignment: 0.5, cross_uniformity: 0.25",
        TRIPLETS % ", uniformity: 2.0, weight: 3.0",
    ],
    "fixed temperature": [IMAGES % ", temperature: 0.1", PAIRS % ", temperature: 0.02"],
    "trained text temperature": [IMAGES % "", PAIRS % ", temperature: trained"],
    "weights": [IMAGES % ", weight: 0.25", PAIRS % ", weight: 3.0"],
    "siglip": [IMAGES % ", loss: siglip", PAIRS % ""],
    "several captions": [IMAGES % ", captions_per_image: 3", PAIRS % ""],
    "short caption": [IMAGES % ", short_caption: {principal_components: 2, weight: 0.5}", PAIRS % ""],
    "scored pairs": [IMAGES % "", SCORED % ""],
    "matryoshka": [IMAGES % "", TRIPLETS % "", "matryoshka={dims: [16, 4], weights: [1.0, 0.5]}"],
    "matryoshka of siglip and scores": [
        IMAGES % ", loss: siglip, matryoshka: {dims: [8, 16]}",
        SCORED % "",
        "matryoshka={dims: [16, 2]}",
    ],
    "matryoshka of siglip and scores, sentences": [
        IMAGES % ", loss: siglip, matryoshka: {dims: [8, 16]}, captions_per_image: 2, split_captions: sentences",
        SCORED % "",
        "matryoshka={dims: [16, 2]}",
    ],
    "tiles": [IMAGES % ", loss: siglip", TRIPLETS % "", "tile_size=3"],
    "duplicates positive": [IMAGES % "", TRIPLETS % "", "false_negatives=positive"],
    "duplicates kept": [IMAGES % "", TRIPLETS % "", "false_negatives=keep"],
}
# Parameters that are trained besides the towers.
SCALES = {name: {"logit_scale"} for name in OPTIONS} | {
    "fixed temperature": set(),
    "trained text temperature": {"logit_scale", "text_logit_scale"},
    "siglip": {"logit_scale", "image_text_bias"},
    "terms": {"logit_scale", "image_text_bias"},
    "tiles": {"logit_scale", "image_text_bias"},
    "matryoshka of siglip and scores": {"logit_scale", "image_text_bias"},
    "matryoshka of siglip and scores, sentences": {"logit_scale", "image_text_bias"},
}
# Of what is logged, in the loss.
WEIGHTS = {
    "weights": {"loss_image_text": 0.25, "loss_text": 3.0},
    "short caption": {"loss_image_text": 1.0, "short_caption_image_text": 0.5, "loss_text": 1.0},
    "terms": {
        "loss_image_text": 1.0,
        "alignment_image_text": 0.5,
        "cross_uniformity_image_text": 0.25,
        "loss_text": 3.0,
        "uniformity_text": 6.0,
    },
}


def make(factory: RunFactory, folder: Path, option: str, *more: str, **options: Any) -> JinaCLIPTrainer:
    return factory(folder, *QUIET, *OPTIONS[option], *more, **{"dropout": 0.0, **options})


def state_of(trainer: JinaCLIPTrainer) -> dict[str, Tensor]:
    state = trainer.model.state_dict() | trainer.objective.state_dict()
    return {name: value.clone() for name, value in state.items()}


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def direction(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)))


def by_hand(option: str, name: str, v: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """The loss of one side, written out once more; all rows of the batch are distinct."""
    t = 1.0 / v["scale"] if name == "image_text" else torch.tensor(0.05)
    if option == "fixed temperature":
        t = torch.tensor(0.1 if name == "image_text" else 0.02)
    a, b = (v["image"], v["caption"]) if name == "image_text" else (v["query"], v["positive"])
    if (several := len(b) // len(a)) > 1:
        return sum(by_hand(option, name, v | {"caption": b[k::several]}, batch) for k in range(several)) / several

    def whole(dim: int) -> Tensor:
        if name == "image_text" and ("siglip" in option or option in ("tiles", "terms")):
            logits = cosines(a[:, :dim], b[:, :dim]) / t - 10.0
            signs = 2 * torch.eye(len(a)) - 1
            return -F.logsigmoid(signs * logits).sum() / len(a)
        if name == "text" and "scor" in option:
            c, s = F.cosine_similarity(a[:, :dim], b[:, :dim]) / t, batch["text"]["score"]
            pairs = [c[j] - c[i] for i in range(len(c)) for j in range(len(c)) if s[i] > s[j]]
            return torch.log1p(torch.stack(pairs).exp().sum())
        matrix = cosines(a[:, :dim], b[:, :dim]) / t
        forward, backward = matrix, matrix.T
        extra = v.get("negatives" if name == "text" else "negative_caption")
        if extra is not None:
            forward = torch.cat([matrix, cosines(a[:, :dim], extra[:, :dim]) / t], dim=1)
        if name == "image_text" and option == "negative captions, prefixes and tiles":
            return direction(forward)
        if option == "smoothing and hardness" and name == "image_text":
            labels = torch.arange(len(matrix))
            return sum(F.cross_entropy(x, labels, label_smoothing=0.1) for x in (forward, backward))
        if option == "smoothing and hardness":
            added = 4.0 * matrix * t * (1 - torch.eye(len(matrix)))
            return direction(forward + added) + direction(backward + added.T)
        if option == "one direction":
            return direction(forward) if name == "image_text" else direction(backward)
        return (direction(forward) + direction(backward)) * (0.5 if option == "mean of directions" else 1.0)

    if name == "image_text" and option == "negative captions, prefixes and tiles":
        return whole(16) + whole(4)
    if option == "matryoshka":
        return whole(16) + 0.5 * whole(4)
    if option.startswith("matryoshka of"):
        return whole(16) + whole(8 if name == "image_text" else 2)
    return whole(16)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_is_trained_and_is_its_formula(make_trainer: RunFactory, tmp_path: Path, option: str) -> None:
    trainer = make(make_trainer, tmp_path, option)
    batch = next(iter(trainer.get_train_dataloader()))
    if "negatives" not in batch["text"]:
        captions = batch["image_text"]["text_ids"].reshape(4, -1).unbind(dim=1)
        ids = [batch["text"]["query_ids"], batch["text"]["positive_ids"], *captions]
        assert all(len(set(part.tolist())) == 4 for part in ids)
    with torch.no_grad():
        inputs = trainer._prepare_inputs(batch)
        v = trainer._embeddings(trainer.model, inputs) | {"scale": trainer.model.logit_scale.exp()}
        _, terms = trainer.objective(trainer.recipe.stages[0], inputs, v)
    for name in ("image_text", "text"):
        shared = name == "text" and "negatives" in v  # a triplet's negatives may hold another row's positive
        if not shared or option == "duplicates kept":
            torch.testing.assert_close(terms[f"loss_{name}"], by_hand(option, name, v, inputs), rtol=1e-5, atol=1e-6)
    before = state_of(trainer)
    trainer.train()
    after = state_of(trainer)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name in changed if "model." not in name} == SCALES[option]
    assert any(name.startswith("text_model") for name in changed)
    assert any(name.startswith("vision_model") for name in changed)
    assert (tmp_path / "checkpoint-4" / OBJECTIVE_FILE).is_file() == (len(trainer.objective.state_dict()) > 0)
    weights = WEIGHTS.get(option, {"loss_image_text": 1.0, "loss_text": 1.0})
    for entry in entries_of(trainer):
        assert entry["loss"] == pytest.approx(sum(w * entry[name] for name, w in weights.items()), rel=1e-5)
    decays = [
        group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
        if parameter.ndim < 2
    ]
    assert set(decays) == {0.0}


OWN = ["trained text temperature", "siglip", "terms"]


@pytest.mark.parametrize("option", OWN)
def test_resume_brings_the_objective_back(make_trainer: RunFactory, tmp_path: Path, option: str) -> None:
    through = trained(make(make_trainer, tmp_path, option))
    again = trained(make(make_trainer, tmp_path, option), tmp_path / "checkpoint-2")
    assert_same_weights(through.model, again.model)
    state = through.objective.state_dict()
    assert state.keys() == again.objective.state_dict().keys() != set()
    assert all(torch.equal(value, again.objective.state_dict()[name]) for name, value in state.items())
    assert entries_of(through) == entries_of(again)
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert stored.keys().isdisjoint(state)  # the model's folder loads strictly


def test_resume_with_other_parameters_is_refused(make_trainer: RunFactory, tmp_path: Path) -> None:
    trained(make(make_trainer, tmp_path, "siglip"))
    with pytest.raises(ValueError, match=r"\['image_text_bias'\].*this recipe trains \[\]"):
        trained(make(make_trainer, tmp_path, "info_nce"), tmp_path / "checkpoint-2")


def test_a_later_run_starts_from_what_a_model_folder_holds(tiny_recipe: Path, tmp_path: Path) -> None:
    """The command line's finished folder as the next run's model; what only one of them trains is passed by."""
    siglip = [*QUIET, *OPTIONS["siglip"]]
    assert command_line([str(tiny_recipe), "--output_dir", str(tmp_path / "a"), *siglip]) == 0
    end = load_file(tmp_path / "a" / OBJECTIVE_FILE)["image_text_bias"].item()
    assert end != pytest.approx(-10.0, abs=1e-5)
    later = [*siglip, OPTIONS["trained text temperature"][1], f"model={tmp_path / 'a'}", "tokenizer=null"]
    assert command_line([str(tiny_recipe), "--output_dir", str(tmp_path / "b"), *later, "save_steps=1"]) == 0
    first = json.loads((tmp_path / "b" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"][0]
    assert first["bias_image_text"] == pytest.approx(end, abs=1e-6)
    assert first["temperature_text"] == pytest.approx(0.05)


def test_own_parameters_and_deepspeed_are_refused_together(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = make(make_trainer, tmp_path, "siglip")
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match=r"parameters of their own \(image_text_bias\), which DeepSpeed"):
        trainer._check_objective()


def test_text_temperature_stays_between_its_limits(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = make(make_trainer, tmp_path, "trained text temperature", "stages.0.learning_rate=30.0")
    trainer.args.max_steps = 1
    trainer.train()
    assert trainer.objective.text_logit_scale.item() in (0.0, pytest.approx(math.log(100.0)))


ONE_STAGE_LATER = [
    "stages=[{name: a, steps: 2, learning_rate: 1e-3, max_length: 8, image_text: {sources: [pictures], batch_size: 4}},"
    " {name: b, steps: 2, learning_rate: 1e-3, max_length: 8, image_text: {sources: [pictures], batch_size: 4, %s}}]",
    "save_steps=2",
]


@pytest.mark.parametrize(
    ("second", "resting"), [("temperature: 0.1", "logit_scale"), ("loss: info_nce", "image_text_bias")]
)
def test_a_stage_leaves_what_it_does_not_train(
    make_trainer: RunFactory, tmp_path: Path, second: str, resting: str
) -> None:
    """No momentum of the stage before moves it."""
    overrides = [ONE_STAGE_LATER[0] % second, *ONE_STAGE_LATER[1:]]
    if resting == "image_text_bias":
        overrides.append("stages.a.image_text.loss=siglip")
    trained(make_trainer(tmp_path, *overrides))
    files = ["model.safetensors" if resting == "logit_scale" else OBJECTIVE_FILE] * 2
    half, end = (load_file(tmp_path / f"checkpoint-{step}" / file) for step, file in zip((2, 4), files, strict=True))
    assert torch.equal(half[resting], end[resting])
    start = math.log(1 / 0.07) if resting == "logit_scale" else -10.0
    assert half[resting].item() != pytest.approx(start, abs=1e-5)


CACHED = [
    "negative captions",
    "several captions",
    "short caption",
    "matryoshka of siglip and scores, sentences",
    "matryoshka of siglip and scores",
    "terms",
    "siglip",
    "scored pairs",
    "trained text temperature",
    "matryoshka",
]


@pytest.mark.parametrize("option", [CACHED[0], *(pytest.param(x, marks=pytest.mark.slow) for x in CACHED[1:])])
def test_gradient_cache_changes_nothing(make_trainer: RunFactory, tmp_path: Path, option: str) -> None:
    more = ["gradient_accumulation_steps=2"]
    plain = trained(make(make_trainer, tmp_path / "plain", option, *more))
    cached = trained(make(make_trainer, tmp_path / "cached", option, *more, "gradient_cache_chunk_size=1"))
    left, right = state_of(plain), state_of(cached)
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0.0, atol=2e-5)
    for one, other in zip(entries_of(plain), entries_of(cached), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


TERMS = ["stages.0.image_text.uniformity=0.5", "stages.0.image_text.label_smoothing=0.1", "tile_size=3"]
# Where Adam would make a step of a rounding error, gradients themselves are compared.
PLAIN_STEPS = {"smoothing and hardness": ["optim=sgd", "stages.0.learning_rate=1e-1"]}
TWO = [
    pytest.param("matryoshka of siglip and scores", ["gradient_cache_chunk_size=1"], id="siglip, scores, cache"),
    pytest.param("negative captions", ["gradient_cache_chunk_size=1", *TERMS], id="negatives, terms, cache"),
    pytest.param(
        "short caption",
        ["gradient_cache_chunk_size=1", "stages.0.image_text.captions_per_image=2", *TERMS],
        id="captions, terms, cache",
    ),
    pytest.param("trained text temperature", [], id="trained text temperature", marks=pytest.mark.slow),
    pytest.param("siglip", ["gradient_accumulation_steps=2"], id="siglip, accumulation", marks=pytest.mark.slow),
    *(
        pytest.param(option, PLAIN_STEPS.get(option, []), id=option, marks=pytest.mark.slow)
        for option in OPTIONS
        if option not in ("info_nce", "trained text temperature", "matryoshka of siglip and scores")
    ),
    *(
        pytest.param(
            option, ["fully_shard=true", *PLAIN_STEPS.get(option, [])], id=f"{option}, sharded", marks=pytest.mark.slow
        )
        for option in OPTIONS
    ),
]


@pytest.mark.parametrize(("option", "more"), TWO)
def test_two_processes_equal_one(make_trainer: RunFactory, tmp_path: Path, option: str, more: list[str]) -> None:
    """Losses, weights and the objective's own parameters, after four steps."""
    overrides = [*QUIET, *OPTIONS[option], *more]
    assert in_two_processes(train_rank, make_trainer.recipe, tmp_path / "two", overrides, 0.0) == [0, 0]
    one = trained(make(make_trainer, tmp_path / "one", option, *more))
    logs = [torch.load(tmp_path / "two" / f"log-{rank}.pt") for rank in range(2)]
    assert logs[0] == logs[1]
    steps = [entry for entry in logs[0] if "loss" in entry]
    for left, right in zip(steps, entries_of(one), strict=True):
        for name in ("loss", "loss_image_text", "loss_text", "accuracy_text", "temperature"):
            assert left[name] == pytest.approx(right[name], rel=1e-5, abs=1e-6), name
    folders = [tmp_path / name / "checkpoint-4" for name in ("two", "one")]
    for file in ("model.safetensors", OBJECTIVE_FILE):
        if (folders[1] / file).is_file():
            two, single = (load_file(folder / file) for folder in folders)
            assert two.keys() == single.keys()
            for name, value in single.items():
                torch.testing.assert_close(two[name], value, rtol=0.0, atol=2e-6)


@pytest.mark.parametrize("option", ["hard negatives", "siglip", "scored pairs", "matryoshka"])
def test_losses_are_in_fp32_under_autocast(make_trainer: RunFactory, tmp_path: Path, option: str) -> None:
    """The loss of half-precision embeddings is that of the same numbers in fp32, under autocast too."""
    trainer = make(make_trainer, tmp_path, option)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    v = trainer._embeddings(trainer.model, inputs)
    half = {name: x.detach() if name == "temperature" else x.detach().bfloat16() for name, x in v.items()}
    exact = {name: x.float() for name, x in half.items()}
    stage = trainer.recipe.stages[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = trainer.objective(stage, inputs, half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, trainer.objective(stage, inputs, exact)[0], rtol=1e-6, atol=1e-6)


def rows(*ids: int) -> Tensor:
    return torch.tensor(ids)


@pytest.mark.parametrize("kind", ["mask", "positive", "keep"])
def test_declared_duplicates_of_texts(make_trainer: RunFactory, tmp_path: Path, kind: str) -> None:
    """Rows 0 and 1 are declared to be the same: they are no negatives of each other, as configured."""
    stage = make(make_trainer, tmp_path, "info_nce").recipe.stages[0].model_copy(update={"image_text": None})
    generator = torch.Generator().manual_seed(0)
    v = {name: torch.randn(3, 4, generator=generator) for name in ("query", "positive")}
    text = {"query_ids": rows(1, 2, 3), "positive_ids": rows(4, 5, 6), "row_ids": rows(7, 7, 8)}
    loss, _ = JointObjective(false_negatives=kind)(stage, {"text": text}, v | {"temperature": torch.tensor(1.0)})
    logits = cosines(v["query"], v["positive"]) / 0.05
    same = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)

    def one(scores: Tensor) -> Tensor:
        if kind == "mask":
            scores = scores.masked_fill(same, -torch.inf)
        logp = scores.log_softmax(dim=1)
        if kind == "positive":
            true = same | torch.eye(3, dtype=torch.bool)
            return -(torch.where(true, logp, 0.0).sum(dim=1) / true.sum(dim=1)).mean()
        return -logp.diagonal().mean()

    torch.testing.assert_close(loss, one(logits) + one(logits.T))


def test_order_accuracy_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(7, 3, generator=generator), torch.randn(7, 3, generator=generator)
    scores = torch.randint(0, 3, (7,), generator=generator).float()
    c = F.cosine_similarity(a, b)
    compared = [(c[i] > c[j]).item() for i in range(7) for j in range(7) if scores[i] > scores[j]]
    for block in (2, 512):
        monkeypatch.setattr("trainer_ext.losses.batch_metrics.ACCURACY_BLOCK", block)
        assert order_accuracy(a, b, scores).item() == pytest.approx(sum(compared) / len(compared))
    assert order_accuracy(a, b, torch.ones(7)) == 0.0
