"""``python -m trainer_ext check RECIPE [--output_dir DIR] [dotted.key=value ...]``: look at data before training."""

import argparse
from collections.abc import Iterator

from trainer_ext.checking.check import Checked, check
from trainer_ext.checking.findings import SHOWN
from trainer_ext.checking.page import describe_source, verdict
from trainer_ext.commands.frame import FOUND
from trainer_ext.files import refuse_unwritable
from trainer_ext.recipe.recipe import load_recipe

_EXAMPLE = """\
example:
  python -m trainer_ext check my_recipe.yaml --output_dir outputs/check
exit codes: 0 nothing but warnings, 1 errors were found, 2 the recipe cannot be read
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m trainer_ext check",
        description="Read all that a recipe reads, train nothing, and say what is wrong with it.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("recipe", help="a recipe file, or the name of a packaged one, for example openmoji")
    made.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="for example stages.0.steps=12")
    made.add_argument(
        "--output_dir", help="folder for check.html, check.json and findings.jsonl; else nothing is written"
    )
    made.add_argument(
        "--shown", type=_count, default=SHOWN, metavar="N", help="findings of each kind that are shown (5)"
    )
    made.add_argument("--pictures", type=_count, metavar="N", help="decode so many pictures of each source, not all")
    made.add_argument("--processes", type=_count, default=1, metavar="N", help="that the run will have; 1 by default")
    made.add_argument("--no_steps", action="store_true", help="do not try two steps of every stage")
    return made


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a number from 1 on")
    return number


def work(options: argparse.Namespace) -> int:
    """Check, and print what was found; the exit code."""
    if options.output_dir is not None:
        refuse_unwritable(options.output_dir, "--output_dir")
    recipe = load_recipe(options.recipe, options.overrides)
    checked = check(
        recipe, options.output_dir, options.shown, not options.no_steps, options.processes, options.pictures
    )
    print("\n".join(report_lines(checked)))
    if options.output_dir is not None:
        print(f"the page is {options.output_dir}/check.html")
    return FOUND if checked.log.count("error") else 0


def report_lines(checked: Checked) -> Iterator[str]:
    """What the command prints."""
    for name, record in checked.sources.items():
        broken = f" and {record['broken']:,} that cannot be used" if record["broken"] else ""
        yield f"{name}: {record['rows']:,} rows{broken}"
        yield from (f"    {words}" for words in describe_source(record))
    for share in checked.shares:
        epochs = "" if share.epochs is None else f", {share.epochs:.2f} epochs"
        yield f"plan: {share.side} takes {share.rows:,} rows of {share.source}, {share.share:.1%} of its rows{epochs}"
    if checked.fit is not None:
        yield checked.fit.describe()
    yield from checked.log.describe()
    yield verdict(checked.log)
