"""A search page over your pictures and texts: by text, by image, or by both at once.

    python examples/app/app.py MODEL --images photos/ --texts captions.txt

MODEL is a folder written by ``hub_upload.py build``, or a Hub name. ``--images`` is a folder of pictures or a parquet
file with a column ``image``, ``--texts`` a file with a text in each line. Without ``--images`` a folder ``pictures``
beside this file is taken, or the drawings of the demo where they are installed; else the page says how to add some.
It needs the extra ``app``, listens on this machine only, and its folder is a Hub Space as it stands (docs/app.md).
"""

import argparse
import os
import sys
from pathlib import Path

from search_index import FORMATS, KINDS, Index, files_of, read_image
from sentence_transformers import SentenceTransformer

MAX_SIZE = "20mb"  # of an uploaded file
MAX_UPLOADS = 500  # pictures that one visitor may add
EMPTY = "**There is nothing to search yet.** Add a folder of pictures below."


def embedded() -> tuple[Path, list[str]] | None:
    """The demo's held-out drawings and their names, where they are installed or were prepared before."""
    try:
        from trainer_ext.demo_data.cache import prepare

        table = prepare() / "short_captions" / "test_concepts.parquet"
    except (ImportError, ValueError):  # our package, or one that the drawings come from, is not installed
        return None
    return table, [name for name, _ in files_of(table)[1]]


def page(shared: Index, max_uploads: int = MAX_UPLOADS):
    """The page as Gradio blocks. What a visitor adds goes into a copy of the index that is theirs alone."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def counts(index: Index) -> str:
        images, texts = (len(index.items[kind]) for kind in KINDS)
        return f"{images} pictures, {texts} texts" if images or texts else EMPTY

    def gallery_of(hits: list) -> list:
        return [(item.picture(), f"{score:.3f} {item.name}") for score, kind, item in hits if kind == "images"]

    def answer(own, text, picture, image_share, kinds, dim, correct, top):
        try:
            image = read_image(Path(picture)) if picture else None
            index = own or shared
            hits = index.search(index.query(text, image, image_share), kinds, int(dim), correct, int(top))
        except (OSError, ValueError) as error:
            gr.Warning(str(error).replace(str(picture), "the picture"))
            return [], []
        return gallery_of(hits), [
            [place, f"{score:.3f}", item.name] for place, (score, kind, item) in enumerate(hits, 1) if kind == "texts"
        ]

    def add(own, paths, progress=gr.Progress()):  # noqa: B008 - Gradio finds it there
        index, paths = own or shared, sorted(paths or [], key=lambda path: Path(path).name)
        added = len(index.items["images"]) - len(shared.items["images"])
        taken = paths[: max_uploads - added]
        files = ((Path(path).name, Path(path)) for path in taken)
        index, refused = index.with_images(files, len(taken), lambda share, text: progress(share, desc=text))
        said = [f"{len(taken) - len(refused)} pictures added. {counts(index)}", *refused[:20]]
        if len(taken) < len(paths):
            said.append(f"left out {len(paths) - len(taken)} files: a visitor may add {max_uploads} pictures")
        for path in paths:
            Path(path).unlink(missing_ok=True)
        return index, "\n\n".join(said), None

    # Files that Gradio keeps of a visit are deleted after an hour.
    with gr.Blocks(title="Jina CLIP search", delete_cache=(600, 3600)) as blocks, gr.Row():
        own = gr.State()  # of this visitor: None until they add something
        with gr.Column(scale=1):
            state = gr.Markdown(counts(shared))
            text = gr.Textbox(label="Text", placeholder="a red heart")
            picture = gr.Image(label="Picture", type="filepath", image_mode=None, height=180)  # opened by us
            share = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the picture, when both are given")
            kinds = gr.CheckboxGroup(KINDS, value=["images"], label="Search in")
            dim = gr.Slider(min(16, shared.dim), shared.dim, shared.dim, step=8, label="Dimensions (Matryoshka)")
            correct = gr.Checkbox(
                False, label="Correct the modality gap", info="Lets pictures and texts compete: score within their kind"
            )
            top = gr.Slider(1, 50, 12, step=1, label="Results")
            button = gr.Button("Search", variant="primary")
            files = gr.File(
                label=f"Add a folder of pictures, {MAX_SIZE} each at most; only you will find them",
                file_count="directory",
                type="filepath",
                height=140,
            )
        with gr.Column(scale=2):
            first = [(item.picture(), item.name) for item in shared.items["images"][:24]]
            gallery = gr.Gallery(first, label="Pictures", columns=6, height=520, object_fit="contain")
            texts = gr.Dataframe(headers=["rank", "score", "text"], label="Texts", wrap=True, interactive=False)
        inputs = [own, text, picture, share, kinds, dim, correct, top]
        gr.on([button.click, text.submit], answer, inputs, [gallery, texts])
        files.upload(add, [own, files], [own, state, files])
    return blocks


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL"), help="model folder or Hub name")
    parser.add_argument("--images", type=Path, help=f"folder of pictures ({', '.join(FORMATS)}), or a parquet file")
    parser.add_argument("--texts", type=Path, help="file with one text a line")
    parser.add_argument("--max_uploads", type=int, default=MAX_UPLOADS, help=f"of a visitor (default {MAX_UPLOADS})")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    if not options.model:
        parser.error("name a MODEL, or set the variable MODEL")
    return options


def main() -> None:
    options = parse()
    beside = Path(__file__).with_name("pictures")
    images = options.images or (beside if beside.is_dir() else None)
    texts = options.texts.read_text("utf-8").splitlines() if options.texts else []
    if not images and not texts and (found := embedded()):
        images, texts = found

    index = Index(SentenceTransformer(options.model, trust_remote_code=True)).with_texts(texts)
    if images:
        try:
            count, named = files_of(images)
        except ValueError as error:
            sys.exit(f"--images {error}")
        index, refused = index.with_images(named, count, lambda share, text: print(f"{text}: {share:4.0%}", flush=True))
        print(*refused, sep="\n", file=sys.stderr)
    print(f"{len(index.items['images'])} pictures and {len(index.items['texts'])} texts indexed", flush=True)
    # GRADIO_SERVER_NAME, which a Space sets, is the only way to another interface than loopback.
    page(index, options.max_uploads).launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        server_port=options.port,
        share=False,
        max_file_size=MAX_SIZE,
        footer_links=[],
    )


if __name__ == "__main__":
    main()
