"""The command line: ``python -m trainer_ext RECIPE.yaml --output_dir DIR [--resume] [dotted.key=value ...]``.

It reads the arguments, calls ``trainer_ext.train``, and turns errors into one line each. ``trainer_ext/run/train.py``
is the run itself. The word ``train`` may stand before the recipe; other commands are those of ``trainer_ext.commands``.
"""

import argparse
import sys
from collections.abc import Sequence

from trainer_ext.commands import COMMANDS, run_command
from trainer_ext.run.failures import explain
from trainer_ext.run.signals import Stopped, how_to_go_on, is_main_process, say_to_user, stops_are_told
from trainer_ext.run.train import train


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options and overrides in any order."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_ext",
        description="Train a Jina CLIP model through all stages of a recipe.",
        epilog=f"Other commands, each with its own --help: {', '.join(COMMANDS)}." if COMMANDS else None,
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a packaged one, for example openmoji")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="for example stages.0.steps=12")
    parser.add_argument("--output_dir", required=True, help="folder of this run; must be new unless --resume is given")
    parser.add_argument("--only_stage", metavar="NAME", help="train this stage alone, for example from a model folder")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    parser.add_argument("--allow_recipe_change", action="store_true", help="resume although the recipe has changed")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 after an error, 130 after Ctrl-C, 143 after SIGTERM."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    if command and command[0] in COMMANDS:
        return run_command(COMMANDS[command[0]], command[1:])
    if command and command[0] == "train":
        command = command[1:]
    options = parse(command)
    try:
        with stops_are_told(say_to_user):
            train(
                options.recipe,
                options.output_dir,
                resume=options.resume,
                overrides=options.overrides,
                only_stage=options.only_stage,
                allow_recipe_change=options.allow_recipe_change,
                command=command,
            )
    except KeyboardInterrupt as stop:
        if is_main_process():
            say_to_user(f"error: interrupted ({str(stop) or 'Ctrl-C'}). {how_to_go_on(command, options.output_dir)}")
        return stop.exit_code if isinstance(stop, Stopped) else 130
    except Exception as error:
        words = None if options.traceback else explain(error, options.output_dir)
        if words is None:
            raise
        say_to_user(f"error: {words}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
