"""Start a recipe on all GPUs of this machine, or on several processes of its CPU: ``accelerate launch``, made for you.

    python examples/launch_training.py my_recipe.yaml --output_dir outputs/mine
    python examples/launch_training.py my_recipe.yaml --output_dir outputs/try --processes 2 stages.0.steps=20

It checks that each batch divides by the processes, prints the command and runs it. Every process runs
``python -m trainer_ext``, so overrides and ``--resume`` are the trainer's, and the recipe means the same run on one
process and on eight: ``batch_size`` counts the rows of a step over all of them, and every row is a negative for every
other. Processes without a GPU communicate through gloo, which is for trying out and not faster.
"""

import argparse
import os
import shlex
import subprocess
import sys

import torch

from trainer_ext.__main__ import parse
from trainer_ext.recipe.recipe import load_recipe


def launcher(processes: int) -> list[str]:
    """``--multi_gpu`` is accelerate's name for several processes on one machine; bf16 is the recipe's own affair."""
    program = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
    return [*program, "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "-m", "trainer_ext"]


def refuse_uneven(command: list[str], processes: int) -> None:
    """Report a batch that does not divide once, instead of once per process."""
    options = parse(command)
    for stage in load_recipe(options.recipe, options.overrides).stages:
        for name, side in stage.sides():
            if side.batch_size % processes:
                sys.exit(
                    f"stage {stage.name!r}, {name}: batch_size {side.batch_size} is no multiple of {processes} "
                    "processes; change it, or give --processes."
                )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="All else is given to python -m trainer_ext; see its --help."
    )
    parser.add_argument("--processes", type=int, help="default: one a GPU, or 2 where there is none")
    options, command = parser.parse_known_args(arguments)
    processes = options.processes or torch.cuda.device_count() or 2
    if processes < 2:
        parser.error(f"--processes {processes}: one process needs no launcher; run python -m trainer_ext")
    try:
        refuse_uneven(command, processes)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    program = [*launcher(processes), *command]
    print(shlex.join(program), flush=True)
    cores = max(1, (os.cpu_count() or 1) // processes)  # or each process would take all of them
    return subprocess.run(program, env=os.environ | {"OMP_NUM_THREADS": str(cores)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
