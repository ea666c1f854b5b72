"""How a script of examples/ ends: its errors in one line each, with the exit codes of the commands."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

from trainer_ext.commands.frame import BAD_INPUT, INTERRUPTED
from trainer_ext.run.failures import explain


def guarded(main: Callable[[], int | None], output_dir: str = ".") -> int:
    """Run a script's ``main`` and return its exit code: 0, 2 after an error said in one line, 130 after Ctrl-C.

    An error that is no known one is a bug and keeps its traceback.

    >>> def main() -> None:
    ...     raise ValueError("--steps 0: must be at least 1")
    >>> guarded(main)  # prints "error: --steps 0: must be at least 1" on stderr
    2
    """
    try:
        return main() or 0
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        print(f"error: {end.code}", file=sys.stderr)
        return BAD_INPUT
    except Exception as error:
        words = explain(error, output_dir)
        if words is None:
            raise
        print(f"error: {' '.join(words.split())}", file=sys.stderr)
        return BAD_INPUT


def needed(module: str, extra: str) -> ModuleType:
    """Import what an extra brings, or say in one line how to install it.

    >>> needed("json", "train").dumps(1)
    '1'
    >>> needed("no_such_module", "ray")
    Traceback (most recent call last):
    ...
    ImportError: no_such_module is needed here: pip install '.[ray]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here: pip install '.[{extra}]'") from error
