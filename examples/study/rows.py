"""Rows of results: one run each, one line each, with where it ran."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer_ext.demo_data.cache import FORMAT

ROWS = Path(__file__).parents[2] / "docs" / "study" / "results.jsonl"
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows, none where there is no file yet.

    Raises:
        ValueError: a line that is no row, such as half of one.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no row of results ({error}). Delete the line.") from error
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One row more, as one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def surroundings() -> dict[str, Any]:
    """Versions and machine, as rows have them."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "versions": {"python": platform.python_version(), **libraries, "demo_data": FORMAT},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def _processor() -> str:
    """Its name, with what decides the speed of its products."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    except OSError:
        return platform.machine()
    found = {key.strip(): value.strip() for key, value in lines.items()}
    units = [name for name, flag in (("AMX", "amx_tile"), ("AVX-512", "avx512f")) if flag in found.get("flags", "")]
    return " ".join([found.get("model name", platform.machine()), *units[:1]])
