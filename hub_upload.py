"""Build, verify and push a model folder that anyone can load from the Hub, without this package.

    python hub_upload.py build CHECKPOINT OUT          # a trained model -> a complete folder with a model card
    python hub_upload.py build CHECKPOINT OUT --onnx   # with both towers as ONNX graphs
    python hub_upload.py build CHECKPOINT OUT --text_layers 8 --image_layers 8  # the first layers alone
    python hub_upload.py verify OUT                    # loads it in a fresh interpreter and compares the embeddings
    python hub_upload.py push OUT --repo_id me/model   # uploads exactly what was verified
    python hub_upload.py verify OUT --traceback        # any step: where in the code an error came from

The steps are also functions: ``build``, ``verify``, ``push``. Bad input raises ``HubFolderError`` with the cure.
This file is the command line; the steps are in ``trainer_ext/hub``, which does not use training code.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from trainer_ext.hub.build import build
from trainer_ext.hub.installed import HubFolderError, one_line
from trainer_ext.hub.push import push
from trainer_ext.hub.verify import verify

__all__ = ["HubFolderError", "build", "main", "parser", "push", "verify"]


def parser() -> argparse.ArgumentParser:
    """Build the command line: one sub-command per step, its options named like the function's arguments."""
    top = argparse.ArgumentParser(prog="hub_upload.py", description="Build, verify and push a model folder.")
    steps = top.add_subparsers(dest="step", required=True, metavar="build | verify | push")
    step = steps.add_parser("build", help="a trained model -> a folder for the Hub")
    step.add_argument("checkpoint", help="folder written by the trainer or by save_pretrained")
    step.add_argument("out", help="the new folder")
    step.add_argument("--max_shard_size", default="5GB", help="split weights above this size (default 5GB)")
    step.add_argument("--license", help="licence of the weights, such as apache-2.0 (default: not stated)")
    step.add_argument("--license_name", help="with --license other: its name, such as my-terms-1.0")
    step.add_argument("--license_link", help="with --license other: https address of its text")
    step.add_argument(
        "--language", action="append", default=[], help="ISO code, may be repeated (default: none stated)"
    )
    step.add_argument(
        "--base_model", action="append", default=[], help="Hub name of the model it was trained from, may be repeated"
    )
    step.add_argument("--notes", help="Markdown file for the card (default: card_notes.md of the checkpoint)")
    step.add_argument("--onnx", action="store_true", help="export both towers to ONNX, too")
    step.add_argument("--text_layers", type=int, help="publish only the first layers of the text tower (default: all)")
    step.add_argument("--image_layers", type=int, help="the same of the image tower")
    step = steps.add_parser("verify", help="load the folder in a fresh interpreter and compare")
    step.add_argument("out")
    step.add_argument(
        "--python", action="append", help="interpreter to load it with, may be repeated (default: this one)"
    )
    step = steps.add_parser("push", help="upload a verified folder")
    step.add_argument("out")
    step.add_argument("--repo_id", required=True, help="name/model")
    step.add_argument("--revision", help="branch (default main)")
    step.add_argument("--tag", help="tag for the new commit")
    for flag in ("private", "create_pr", "dry_run", "force"):
        step.add_argument(f"--{flag}", action="store_true")
    for step in steps.choices.values():
        step.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one step. Exit codes: 0 done, 1 verification found a difference, 2 bad input or no connection, 130 Ctrl-C."""
    options = vars(parser().parse_args(arguments))
    steps: dict[str, Callable[..., Any]] = {"build": build, "verify": verify, "push": push}
    step, traceback = steps[options.pop("step")], options.pop("traceback")
    if step is verify:
        options["python"] = options["python"] or sys.executable
    try:
        result = step(**options)
    except (HubFolderError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "; weights that arrived are not sent twice" if step is push else ""
        print(f"\nerror: interrupted; run the same command again{kept}", file=sys.stderr)
        return 130
    except Exception as error:
        if traceback:
            raise
        words = " ".join(str(error).split())[:300] or "no reason given"
        folder = options.get("checkpoint") or options["out"]
        print(
            f"error: {folder} holds something that this step does not expect ({type(error).__name__}: {words}); "
            "--traceback shows where it was met",
            file=sys.stderr,
        )
        return 2
    if step is verify:
        print("verified" if not result else f"NOT verified: {len(result)} problems", options["out"])
        return 1 if result else 0
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
