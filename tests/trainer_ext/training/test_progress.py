"""What a user sees while training runs."""

import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from tests.trainer_ext.tiny_run import RunFactory, trained
from trainer_ext.training.monitoring import RATES, ThroughputCallback


@pytest.mark.parametrize("bar", [True, False])
def test_one_readable_line_per_log_entry(
    make_trainer: RunFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str], bar: bool
) -> None:
    make_trainer(tmp_path, f"disable_tqdm={not bar}".lower(), "stages.1.text=null").train()
    seen = capsys.readouterr()
    lines = [line.strip() for line in seen.out.splitlines() if line.strip().startswith("step ")]
    assert [line.split(" | ")[0] for line in lines] == [
        *(f"step {step}/8 pairs" for step in (1, 2, 3)),
        *(f"step {step}/8 larger" for step in (4, 5)),
        *(f"step {step}/8 hard" for step in (6, 7, 8)),
    ]
    assert [sum(part.startswith(("image_text ", "text ")) for part in line.split(" | ")) for line in lines] == [
        2, 2, 2, 1, 1, 2, 2, 2,
    ]  # fmt: skip
    assert all(line.split(" | ")[-2].endswith(" pairs/s") and line.endswith(" tokens/s") for line in lines)
    assert ("hard, image_text " in seen.err) == bar
    assert (" tokens/s" in seen.err) == bar


class Collect(TrainerCallback):
    """What every integration is handed, and when."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, dict[str, Any]]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begin = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            self.entries.append((time.perf_counter(), dict(logs)))


def slow_evaluation(model: Any, processor: Any) -> dict[str, float]:
    time.sleep(1.0)
    return {"figure": 1.0}


def test_speed_counts_pairs_and_unpadded_tokens_of_training_time(make_trainer: RunFactory, tmp_path: Path) -> None:
    collect = Collect()
    overrides = ["logging_steps=3", "save_steps=100", "gradient_accumulation_steps=2"]
    trainer = make_trainer(tmp_path, *overrides, callbacks=[collect], evaluate_fn=slow_evaluation)
    batches = list(trainer.get_train_dataloader())
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert steps == [3, 5, 6, 8]
    begins = [collect.begin, *(at for at, _ in collect.entries)]
    for index, (at, logs) in enumerate(collect.entries):
        first = steps[index - 1] if index else 0
        micro = batches[2 * first : 2 * steps[index]]
        texts = [[batch["image_text"], *(v for v in batch["text"].values() if isinstance(v, dict))] for batch in micro]
        tokens = sum(int(part["attention_mask"].sum()) for parts in texts for part in parts)
        pairs = 8 * (steps[index] - first)
        assert logs["tokens_per_second"] / logs["pairs_per_second"] == pytest.approx(tokens / pairs)
        seconds = pairs / logs["pairs_per_second"]
        waited = 1.0 if first in (3, 5) else 0.0  # the evaluation at a stage's end is not training time
        assert seconds <= at - begins[index] - waited + 0.01
        assert seconds >= (at - begins[index] - waited) * 0.5
    assert not any(name in entry for entry in trainer.state.log_history for name in RATES)


def test_a_picture_with_each_of_its_captions_is_a_pair(make_trainer: RunFactory, tmp_path: Path) -> None:
    counts = []
    for several in (1, 3):
        trainer = make_trainer(tmp_path, f"stages.0.image_text.captions_per_image={several}")
        callback, batch = ThroughputCallback(), next(iter(trainer.get_train_dataloader()))
        callback.count(batch)
        counts.append(callback.take()[0])
        parts = [batch["image_text"], batch["text"]["query"], batch["text"]["positive"]]
        assert counts[-1][1] == sum(int(part["attention_mask"].sum()) for part in parts)
    assert [pairs for pairs, _ in counts] == [4 + 4, 3 * 4 + 4]


def test_tensorboard_has_the_figures(make_trainer: RunFactory, tmp_path: Path) -> None:
    trained(make_trainer(tmp_path, "report_to=[tensorboard]", "stages.0.text=null"))
    files = list(tmp_path.rglob("events.out.tfevents.*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0])).Reload()
    sides = {f"train/{figure}_{side}" for figure in ("loss", "accuracy") for side in ("image_text", "text")}
    wanted = sides | {f"train/{name}" for name in ("loss", "temperature", "learning_rate", "similarity_image", *RATES)}
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss_image_text")] == list(range(1, 9))
    assert [event.step for event in events.Scalars("train/loss_text")] == list(range(4, 9))
    assert all(event.value > 0 for event in events.Scalars("train/pairs_per_second"))


def test_a_name_that_is_no_integration_is_refused(make_trainer: RunFactory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensorbord is not supported.*tensorboard"):
        make_trainer(tmp_path, "report_to=[tensorbord]")
