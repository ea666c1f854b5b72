"""A search page over your pictures and texts: by text, by image, or by both at once.

    python examples/app/app.py MODEL --images photos/ --texts captions.txt

MODEL is a folder written by ``hub_upload.py build``, or a Hub name. ``--images`` is a folder of pictures (captions are
taken from its ``metadata.csv``) or a parquet file with a column ``image``, ``--texts`` a file with a text in each line.
Without ``--images`` a folder ``pictures`` beside this file is taken, or the drawings of the demo where they are
installed; else the page says how to add some. ``--keep_index`` keeps what was encoded for the next start. It needs the
extra ``app``, listens on this machine only, and its folder is a Hub Space as it stands (docs/app.md).
"""

import argparse
import os
import sys
from pathlib import Path

from indexing import Report, add_images, add_texts
from kept_index import KeptIndex, model_hash
from picture_files import files_of
from results import counts
from search_index import MAX_SIZE, MAX_UPLOADS, Index
from sentence_transformers import SentenceTransformer


def embedded() -> tuple[Path, list[str]] | None:
    """The demo's held-out drawings and their names, where they are installed or were prepared before."""
    try:
        from trainer_ext.demo_data.cache import prepare

        table = prepare() / "short_captions" / "test_concepts.parquet"
    except (ImportError, ValueError):  # our package, or one that the drawings come from, is not installed
        return None
    return table, [found.caption for found in files_of(table)[1] if found.caption]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL"), help="model folder or Hub name")
    parser.add_argument("--images", type=Path, help="folder of pictures, or a parquet file")
    parser.add_argument("--texts", type=Path, help="file with one text a line")
    parser.add_argument(
        "--keep_index",
        type=Path,
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="keep vectors and thumbnails there, for the next start; without FOLDER, beside the pictures",
    )
    parser.add_argument("--max_uploads", type=int, default=MAX_UPLOADS, help=f"of a visitor (default {MAX_UPLOADS})")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    if not options.model:
        parser.error("name a MODEL, or set the variable MODEL")
    return options


def index_of(options: argparse.Namespace) -> tuple[Index, Report]:
    """What the page starts with, and what was left out of it."""
    beside = Path(__file__).with_name("pictures")
    images = options.images or (beside if beside.is_dir() else None)
    texts = options.texts.read_text("utf-8").splitlines() if options.texts else []
    if not images and not texts and (found := embedded()):
        images, texts = found
    count, named = files_of(images) if images else (0, [])

    model = SentenceTransformer(options.model, trust_remote_code=True)
    index, kept = Index(model), None
    if options.keep_index:
        place = options.keep_index
        if place is True:
            if not images:
                raise ValueError("--keep_index: there are no pictures to keep it beside; name a folder")
            place = images if images.is_dir() else images.parent
        kept = KeptIndex(place, model_hash(model), index.dim)
        print(kept.problem or f"{len(kept.entries)} entries kept in {kept.path}", flush=True)
    known = kept.entries if kept else {}
    index, of_texts = add_texts(index, texts, known)
    index, of_images = add_images(
        index, named, count, lambda share, text: print(f"{text}: {share:4.0%}", flush=True), known
    )
    if kept:
        kept.write(index.entries())
    return index, Report(of_texts.refused + of_images.refused, of_texts.copies + of_images.copies)


def main() -> None:
    options = parse()
    try:
        from page import page, styles  # needs Gradio, which `--help` does not

        index, report = index_of(options)
        print(*report.refused, sep="\n", file=sys.stderr)
        print(f"{counts(index)} indexed, {len(report.refused)} left out, {report.copies} copies", flush=True)
        # GRADIO_SERVER_NAME, which a Space sets, is the only way to another interface than loopback.
        page(index, report, Path(options.model).resolve().name, options.max_uploads).launch(
            server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
            server_port=options.port,
            share=False,
            max_file_size=MAX_SIZE,
            footer_links=[],
            css=styles(),
        )
    except (OSError, ValueError, ImportError) as error:  # what a user can mend: one line
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
