"""The record of speed: a line a log entry, cut back where a run is resumed; and the machine without its name."""

import platform
from types import SimpleNamespace

import pytest

from trainer_ext.run.hardware import hardware
from trainer_ext.run.speed import SpeedRecord


def state(step: int, is_main: bool = True) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, is_world_process_zero=is_main)


LOGS = {"loss": 1.0, "pairs_per_second": 12.25, "tokens_per_second": 300.0}


def test_a_line_for_each_entry_that_has_a_speed(tmp_path):
    record = SpeedRecord(tmp_path)
    record.on_train_begin(None, state(0), None)
    record.on_log(None, state(5), None, LOGS)
    record.on_log(None, state(5), None, {"eval_x": 1.0})
    record.on_log(None, state(9, is_main=False), None, LOGS)
    text = (tmp_path / "sources" / "speed.csv").read_text()
    assert text == "step,pairs_per_second,tokens_per_second\n5,12.25,300\n"


@pytest.mark.parametrize(("step", "kept"), [(0, []), (5, ["5"]), (7, ["5"]), (10, ["5", "10"])])
def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path, step, kept):
    record = SpeedRecord(tmp_path)
    record.on_train_begin(None, state(0), None)
    for logged in (5, 10, 15):
        record.on_log(None, state(logged), None, LOGS)
    with record.path.open("a") as file:
        file.write("2")  # cut by a kill
    SpeedRecord(tmp_path).on_train_begin(None, state(step), None)
    lines = record.path.read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["step", *kept]


def test_the_machine_is_named_by_kind_not_by_name():
    found = hardware()
    assert {"system", "cores"} <= found.keys()
    assert all(isinstance(value, str) for value in found.values())
    assert platform.node() not in " ".join(found.values())
