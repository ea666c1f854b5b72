"""Fine-tune a model on a folder of pictures with captions, on one small GPU or a CPU, and show what it did.

    python examples/finetune_folder.py MODEL pictures/ captions.csv --texts pairs.csv --output_dir outputs/tuned

MODEL is the folder of a trained model. captions.csv has the columns ``file`` (a path inside the folder) and
``caption``; pairs.csv has ``query`` and ``positive``, texts that belong together. It trains the packaged recipe
``finetune``: LoRA on both towers, with a large batch by gradient cache. A second run without the text pairs shows what
they preserve. Without ``--texts`` it trains on the pictures alone. A tenth of both files is held out and measured,
before and after; each run's folder has the figures and the model, and OUTPUT_DIR/report.html puts the two side by side.
"""

import argparse
import json
import sys
from pathlib import Path

from trainer_ext import train
from trainer_ext.commands import compare, run_command
from trainer_ext.files import checkpoints_of
from trainer_ext.run.signals import say_to_user

PICTURES_ONLY = ["stages.0.text=null", "evaluation.tasks=[{name: pictures, source: pictures}]"]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("model", type=Path, help="folder of a trained model")
    found.add_argument("pictures", type=Path, help="folder of pictures")
    found.add_argument("captions", type=Path, help="CSV with the columns file,caption")
    found.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="of the recipe, e.g. lora.r=8")
    found.add_argument("--texts", type=Path, help="CSV with the columns query,positive")
    found.add_argument("--output_dir", type=Path, required=True, help="a new folder for the runs")
    found.add_argument("--steps", type=int, default=100)
    found.add_argument("--batch_size", type=int, default=128, help="pairs of a step, of each kind (default 128)")
    found.add_argument("--seed", type=int, default=42)
    found.add_argument("--max_broken_rows", type=int, default=0, help="how many a file may lose (default 0)")
    found.add_argument("--resume", action="store_true", help="go on in OUTPUT_DIR, with the same arguments")
    return found


def recipe_keys(options: argparse.Namespace) -> list[str]:
    """What all runs have in common."""
    paths = {"model": options.model, "sources.pictures.location": options.captions}
    paths |= {"sources.pictures.image_folder": options.pictures}
    paths |= {"sources.texts.location": options.texts} if options.texts else {}
    keys = [f"{key}={json.dumps(str(path.resolve()), ensure_ascii=False)}" for key, path in paths.items()]
    keys += [f"sources.{name}.max_broken_rows={options.max_broken_rows}" for name in ("pictures", "texts")]
    keys += [f"stages.0.image_text.batch_size={options.batch_size}"]
    return [*keys, f"seed={options.seed}", f"stages.0.steps={options.steps}"]


def tune(options: argparse.Namespace, name: str, keys: list[str]) -> Path:
    """One run in a folder of its own; the user's keys come last. A finished one is only measured again."""
    folder = options.output_dir / name
    resume = options.resume and (folder / "run.json").is_file()
    try:
        train("finetune", folder, resume=resume, overrides=[*recipe_keys(options), *keys, *options.overrides])
    except KeyboardInterrupt:
        kept = [str(path) for path in checkpoints_of(folder)[-1:]]
        words = f"{kept[0]} is kept" if kept else f"{folder} has no checkpoint yet"
        say_to_user(f"{words}; the same command with --resume goes on")
        raise
    return folder


def work(options: argparse.Namespace) -> int:
    if options.texts is None:
        tune(options, "pictures-only", PICTURES_ONLY)
        return 0
    runs = [tune(options, "with-texts", [f"stages.0.text.batch_size={options.batch_size}"])]
    runs += [tune(options, "pictures-only", PICTURES_ONLY[:1])]
    compare.work(compare.parser().parse_args([*map(str, runs), "--output_dir", str(options.output_dir)]))
    print(f"the tuned model is {runs[0]}, its adapter alone {runs[0] / 'adapter'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(__name__, sys.argv[1:]))
