"""The commands beside training: ``python -m trainer_ext COMMAND ...``, or ``jina-clip COMMAND ...``.

One file a command, with two functions: ``parser()`` gives its arguments, ``work(options)`` does it and returns the exit
code: 0, or 1 where something was found or became worse. ``frame`` runs both and turns errors into one line and code 2.
"""

from trainer_ext.commands.frame import run_command

# Name -> its file. A line here is all that a new command needs.
COMMANDS: dict[str, str] = {
    "check": "trainer_ext.commands.check",
    "evaluate": "trainer_ext.commands.evaluate",
    "compare": "trainer_ext.commands.compare",
    "mine": "trainer_ext.commands.mine",
    "merge": "trainer_ext.commands.merge",
}

__all__ = ["COMMANDS", "run_command"]
