"""How every command runs: its arguments, its errors in one line each, its exit code."""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

from trainer_ext.run.failures import explain
from trainer_ext.run.signals import say_to_user

# 0: done; 1: something was found, or is worse; 2: bad input; 130: Ctrl-C.
FOUND, BAD_INPUT, INTERRUPTED = 1, 2, 130


def run_command(module: str, arguments: Sequence[str]) -> int:
    """Parse ``arguments`` with the module's ``parser()`` and call its ``work(options)``; returns the exit code."""
    command = import_module(module)
    parser: argparse.ArgumentParser = command.parser()
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    options = parser.parse_intermixed_args(arguments)  # overrides may stand behind options
    work: Callable[[argparse.Namespace], int] = command.work
    try:
        return work(options)
    except KeyboardInterrupt:
        say_to_user("error: interrupted")
        return INTERRUPTED
    except Exception as error:
        words = None if options.traceback else explain(error, getattr(options, "output_dir", None) or ".")
        if words is None:
            raise
        say_to_user(f"error: {words}")
        return BAD_INPUT
