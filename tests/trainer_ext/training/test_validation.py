"""Validation losses: the stage's own loss on held-out rows, by the slow way; and they leave training alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, make_processor, trained
from trainer_ext.data.augmentation import row_generator
from trainer_ext.data.captions import drawn_captions
from trainer_ext.data.holdout import hold_out
from trainer_ext.data.plan import Key
from trainer_ext.losses.info_nce import info_nce
from trainer_ext.training.validation import ValidationLoss


def measured(make_trainer: RunFactory, folder: Path, *overrides: str) -> tuple[ValidationLoss, object, dict]:
    trainer = make_trainer(folder, *overrides)
    held = {name: trainer.train_dataset[name] for name in ("pictures", "successors")}
    return ValidationLoss(trainer.recipe, held, make_processor(), trainer.objective), trainer, held


def test_it_is_the_loss_of_the_held_out_rows(make_trainer: RunFactory, tmp_path: Path) -> None:
    loss, trainer, held = measured(make_trainer, tmp_path / "run", "stages.0.text.sources=[successors]")
    model = trainer.model
    model.processor = make_processor()
    figures = loss(model, 0)
    # The slow way: our own batches of 4, by the public methods of the model.
    rows = held["successors"]
    places = np.random.default_rng(0).permutation(len(rows)).tolist()
    values = []
    for start in range(0, len(places) - 3, 4):
        batch = rows[places[start : start + 4]]
        with torch.no_grad():
            queries = torch.from_numpy(model.encode_text(batch["query"], max_length=6))
            positives = torch.from_numpy(model.encode_text(batch["positive"], max_length=6))
        values.append(info_nce(queries, positives, temperature=0.05).item())
    assert figures["validation/loss_text"] == pytest.approx(sum(values) / len(values), abs=1e-5)
    assert figures["validation/loss"] == pytest.approx(
        figures["validation/loss_text"] + figures["validation/loss_image_text"], abs=1e-6
    )
    assert all(math.isfinite(value) for value in figures.values())


def test_several_captions_are_those_of_epoch_0(make_trainer: RunFactory, tmp_path: Path) -> None:
    loss, trainer, held = measured(make_trainer, tmp_path / "run", "stages.0.image_text.captions_per_image=2")
    model = trainer.model
    model.processor = make_processor()
    figures = loss(model, 0)
    rows, temperature = held["pictures"], model.logit_scale.detach().neg().exp()
    places = np.random.default_rng(0).permutation(len(rows)).tolist()
    values = []
    for start in range(0, len(places) - 3, 4):
        chosen = places[start : start + 4]
        keys = [Key(0, 0, "image_text", "pictures", 0, row) for row in chosen]
        texts = [
            drawn_captions(rows[row]["caption"], 2, row_generator(7, key, "captions"))
            for row, key in zip(chosen, keys, strict=True)
        ]
        pictures = torch.from_numpy(model.encode_image([rows[row]["image"] for row in chosen]))
        slots = [torch.from_numpy(model.encode_text([two[k] for two in texts], max_length=6)) for k in range(2)]
        values += [info_nce(pictures, slot, temperature).item() for slot in slots]
    assert figures["validation/loss_image_text"] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_the_short_caption_is_no_part_of_it(make_trainer: RunFactory, tmp_path: Path) -> None:
    """As other terms beside a loss; few held-out rows may have fewer components than a batch."""
    found = [
        measured(make_trainer, tmp_path / "run", *more)
        for more in ([], ["stages.0.image_text.short_caption={principal_components: 4}"])
    ]
    figures = [loss(trainer.model, 0) for loss, trainer, _ in found]
    assert figures[0] == figures[1]


def test_it_changes_no_weight_and_no_mode(make_trainer: RunFactory, tmp_path: Path) -> None:
    plain = trained(make_trainer(tmp_path / "plain"))
    loss, trainer, _ = measured(make_trainer, tmp_path / "watched")
    trainer.evaluate_fn = lambda model, processor: loss(model, 0)
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 1
    trained(trainer)
    assert_same_weights(plain.model, trainer.model)
    assert any("eval_validation/loss" in entry for entry in trainer.state.log_history)


def test_a_stage_without_held_out_rows_has_no_figure(make_trainer: RunFactory, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run")
    held = {"scored": hold_out("scored", trainer.train_dataset["scored"], 0.3)[1]}
    assert ValidationLoss(trainer.recipe, held, make_processor(), trainer.objective)(trainer.model, 0) == {}
