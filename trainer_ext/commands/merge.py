"""``merge``: a model between others that were trained from the same start, as a folder of its own."""

import argparse
from pathlib import Path

from trainer_ext.files import read_json
from trainer_ext.merging import merge
from trainer_ext.merging.merge import MERGE_FILE

EXAMPLE = """\
examples:
  half of the way from a model to its fine-tune, which keeps more of what the model could do before (WiSE-FT):
    python -m trainer_ext merge outputs/start outputs/tuned --scale 0.5 --output_dir outputs/half
  two fine-tunes of one model in one (a soup), 60% and 40%:
    python -m trainer_ext merge outputs/start outputs/first outputs/second --weights 0.6 0.4 --output_dir outputs/both
  weights and scale by the losses of a recipe (Self Positioning):
    python -m trainer_ext merge outputs/start outputs/first outputs/second --search probe.yaml --output_dir outputs/best

docs/merging.md has the formula, and when to use it. Exit code: 0, or 2 where something is wrong with what was given."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m trainer_ext merge",
        description="Merge models: BASE + scale * sum of weight * (MODEL - BASE), tensor by tensor.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("base", metavar="BASE", help="the folder of the model that the others were trained from")
    made.add_argument("models", nargs="+", metavar="MODEL", help="folders of models, or of LoRA's adapters on BASE")
    made.add_argument("--output_dir", required=True, help="the merged model's folder; must be new")
    made.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="one for each MODEL, sum 1 (default: equal)"
    )
    made.add_argument("--scale", type=float, default=1.0, help="0 is BASE, 1 (default) the mean of the models")
    made.add_argument("--search", metavar="PROBE.yaml", help="find weights and scale by the losses of this recipe")
    return made


def work(options: argparse.Namespace) -> int:
    """Merge, and say what was done."""
    target: Path = merge(
        options.base,
        options.models,
        options.output_dir,
        weights=options.weights,
        scale=options.scale,
        probe=options.search,
    )
    record = read_json(target / MERGE_FILE)
    for name, model in zip(options.models, record["models"], strict=True):
        print(f"{name}: weight {model['weight']:.4g}, {model['distance']:.3f} of {options.base}'s length away from it")
    print(f"scale {record['scale']:.4g}; the merged model is {target}")
    return 0
