"""The kind of machine that a run ran on, for ``run.json`` and the report."""

import os
import platform
from pathlib import Path

import torch


def hardware() -> dict[str, str]:
    """The kind of machine, without its name or user: system, processor, cores, memory, GPUs.

    >>> sorted(hardware())[:2]
    ['cores', 'memory']
    """
    found = {"system": f"{platform.system()} {platform.machine()}"}
    if processor := _processor():
        found["processor"] = processor
    found["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    if hasattr(os, "sysconf"):
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        found["GPUs"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return found


def _processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
