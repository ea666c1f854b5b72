"""A loss from elsewhere, registered by one call, is trained through the same doors as the built-in ones."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer_ext.own_process import in_two_processes, settle
from tests.trainer_ext.tiny_run import RunFactory, entries_of
from trainer_ext.__main__ import main as command_line
from trainer_ext.hub.run_record import RunRecord
from trainer_ext.losses.joint import LOSSES, Loss, register
from trainer_ext.losses.stored import OBJECTIVE_FILE
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.schema import LOSS_RULES, LossRule
from trainer_ext.training.monitoring import AT_CHANCE, HealthCallback
from trainer_ext.training.stages import trained_in
from trainer_ext.training.trainer import JinaCLIPTrainer

GUIDE = (Path(__file__).parents[3] / "docs" / "losses.md").read_text(encoding="utf-8")
(HINGE,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
STAGE = "stages=[{name: only, steps: 4, learning_rate: 1e-3, max_length: 8, patch_dropout: 0.0}]"
IMAGES = "stages.0.image_text={sources: [pictures], batch_size: 4}"
TEXTS = "stages.0.text={sources: [successors], batch_size: 4, loss: %s}"


@pytest.fixture(autouse=True)
def _clean_tables() -> Iterator[None]:
    """The tables are those of the package again after each test."""
    losses, rules = dict(LOSSES), dict(LOSS_RULES)
    yield
    for table, before in ((LOSSES, losses), (LOSS_RULES, rules)):
        for name in table.keys() - before.keys():
            del table[name]


def offset(
    queries: Tensor, targets: Tensor, temperature: float, rows: slice, offset: Tensor | float, **options: Any
) -> Tensor:
    """Squared distance of each pair, and of a parameter of the loss's own from 1."""
    return (queries - targets)[rows].square().mean() / temperature + (offset - 1.0) ** 2


RULE = LossRule("offset pairs", {"text": "text-pair"}, has_directions=False)


def test_both_tables_have_the_same_losses() -> None:
    assert LOSSES.keys() == LOSS_RULES.keys()
    assert all(loss.rule is LOSS_RULES[name] for name, loss in LOSSES.items())


def test_the_guides_loss_is_trained_by_the_command_line(tiny_recipe: Path, tmp_path: Path) -> None:
    """Unknown before; afterwards it is checked, trained, logged, recorded and named on the card."""
    overrides = [STAGE, IMAGES, TEXTS % "hinge", "save_steps=2"]
    with pytest.raises(RecipeError, match=r"stages\.0\.text\.loss: must be 'info_nce', .* or 'nt_xent', got 'hinge'"):
        load_recipe(tiny_recipe, overrides)
    exec(HINGE, {})
    assert command_line([str(tiny_recipe), "--output_dir", str(tmp_path / "run"), *overrides]) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    first = state["log_history"][0]
    assert {"loss_text", "accuracy_text", "similarity_query", "similarity_positive"} <= first.keys()
    assert first["loss"] == pytest.approx(first["loss_image_text"] + first["loss_text"], rel=1e-5)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["losses"] == {"info_nce": "InfoNCE", "hinge": "hinge"}
    assert "image-text: InfoNCE, text: hinge" in RunRecord(tmp_path / "run").training
    del record["losses"]  # as an older version wrote it: the built-in losses keep their words
    record["recipe"]["stages"][0]["text"]["loss"] = "cosent"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert "image-text: InfoNCE, text: CoSENT" in RunRecord(tmp_path / "run").training


def test_its_rule_is_checked(tiny_recipe: Path) -> None:
    register("offset", Loss(offset, RULE, {"offset": 0.0}))
    cases = {
        IMAGES.replace("4}", "4, loss: offset}"): "'offset' does not work here; the image_text side takes 'info_nce'",
        TEXTS % "offset, directions: forward": "directions: is 'forward', but offset compares pairs and has no",
        TEXTS % "ofset": "Did you mean 'offset'?",
    }
    for override, words in cases.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(tiny_recipe, [STAGE, IMAGES, TEXTS % "info_nce", override])
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["siglip", "cosent"])
def test_a_taken_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is taken by the loss .*; choose another name"):
        register(name, Loss(offset, RULE))


def with_offset(make_trainer: RunFactory, folder: Path) -> JinaCLIPTrainer:
    loss = Loss(offset, RULE, {"offset": 0.0}, chance=lambda loss, temperature: loss(1.0), chance_ceiling=2.0)
    register("offset", loss)
    overrides = [STAGE, IMAGES, TEXTS % "offset", "save_steps=2", "max_grad_norm=0"]
    return make_trainer(folder, *overrides, dropout=0.0)


def test_its_parameter_is_trained_logged_and_saved(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = with_offset(make_trainer, tmp_path)
    assert trained_in(trainer.recipe.stages[0]).objective == {"text_offset"}
    trainer.train()
    values = [entry["offset_text"] for entry in entries_of(trainer)]
    assert values[0] == 0.0
    assert values == sorted(values)
    assert values[-1] > 0.0
    stored = load_file(tmp_path / "checkpoint-4" / OBJECTIVE_FILE)
    assert stored.keys() == {"text_offset"}
    assert torch.equal(stored["text_offset"], trainer.objective.text_offset.detach())


def test_its_chance_decides_what_is_stuck(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = with_offset(make_trainer, tmp_path)
    stage, batch = trainer.recipe.stages[0], trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        vectors = trainer._embeddings(trainer.model, batch)
    assert trainer.objective.chance(stage, batch, vectors)["loss_text"].item() == 0.0  # not (0 - 1) ** 2
    health = HealthCallback([stage])
    health.chance = {"loss_text": 1.0}
    logs = [{"loss_text": value} for value in (AT_CHANCE - 0.1, 1.5, 2.5)]
    assert [bad for entry in logs for _, bad, _ in health._signs(stage, entry)] == [False, True, False]


def train_offset(recipe: Path, folder: Path) -> None:
    settle()
    with_offset(RunFactory(recipe), folder).train()


@pytest.mark.slow
def test_one_process_and_two_train_the_same_weights(make_trainer: RunFactory, tmp_path: Path) -> None:
    assert in_two_processes(train_offset, make_trainer.recipe, tmp_path / "two") == [0, 0]
    trainer = with_offset(make_trainer, tmp_path / "one")
    trainer.train()
    for file in ("model.safetensors", OBJECTIVE_FILE):
        one, two = (load_file(tmp_path / name / "checkpoint-4" / file) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
