"""A search page over your pictures and texts: by text, by image, or by both at once.

    python examples/app.py MODEL --images photos/ --texts captions.txt

MODEL is a folder written by ``hub_upload.py build``, or a Hub name; ``--images`` a folder of pictures or a parquet
file with a column ``image``; ``--texts`` a file with a text in each line. More pictures can be added in the page. It
needs the extra ``app``, listens on this machine only, and is a Hub Space as it stands (docs/app.md).
"""

import argparse
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from sentence_transformers import SentenceTransformer

KINDS = ["images", "texts"]
MAX_UPLOAD = "20mb"


class Index:
    """Vectors of pictures and texts, searched by cosine at any Matryoshka dimension."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model, self.dim = model, model.get_embedding_dimension()
        self.items: dict[str, list] = {kind: [] for kind in KINDS}
        self.vectors = {kind: np.empty((0, self.dim), np.float32) for kind in KINDS}

    def add(self, kind: str, items: list, show: Callable[[float, str], object] = lambda share, text: None) -> None:
        """Encode ``items`` of a kind, 16 at a time; ``show`` is told the share that is done."""
        found = [self.vectors[kind]]
        for start in range(0, len(items), 16):
            show(start / len(items), f"indexing {len(items)} {kind}")
            found.append(self.model.encode(items[start : start + 16], show_progress_bar=False))
        self.vectors[kind], self.items[kind] = np.concatenate(found), self.items[kind] + items

    def query(self, text: str, image: Image.Image | None, image_share: float) -> np.ndarray:
        """One vector of a text, an image, or the weighted sum of both."""
        parts = [part for part in (text.strip(), image) if part]
        if not parts:
            raise ValueError("type a text, choose a picture, or both")
        vectors = self.model.encode(parts, normalize_embeddings=True, show_progress_bar=False)
        return vectors[0] if len(parts) == 1 else (1 - image_share) * vectors[0] + image_share * vectors[1]

    def search(self, query: np.ndarray, kinds: Iterable[str], dim: int, correct: bool, top: int) -> list[tuple]:
        """The best items as (score, kind, item), best first.

        Texts lie nearer to texts than pictures do (the modality gap), so a cosine ranks all of one kind before the
        other. ``correct`` counts a score in standard deviations above the mean of its kind instead.
        """
        found = []
        for kind in kinds:
            scores = unit(self.vectors[kind][:, :dim]) @ unit(query[:dim])
            if correct and len(scores):
                scores = (scores - scores.mean()) / (scores.std() + 1e-6)
            found += [(float(score), kind, item) for score, item in zip(scores, self.items[kind], strict=True)]
        return sorted(found, key=lambda hit: -hit[0])[:top]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def read_images(files: Iterable[Path | io.BytesIO]) -> tuple[list[Image.Image], list[str]]:
    """Upright RGB pictures, and one line on each file that is none."""
    images, refused = [], []
    for file in files:
        try:
            images.append(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            refused.append(f"left out {getattr(file, 'name', file)}: {type(error).__name__}")
    return images, refused


def files_of(place: Path) -> list[Path | io.BytesIO]:
    """The files of a folder, hidden ones apart, or what the column ``image`` of a parquet file holds."""
    if place.suffix == ".parquet":
        import pyarrow.parquet

        cells = pyarrow.parquet.read_table(place, columns=["image"])["image"].to_pylist()
        return [io.BytesIO(cell["bytes"]) for cell in cells]
    return sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))


def page(index: Index):
    """The page as Gradio blocks; every control is one argument of ``answer``."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def answer(text, image, image_share, kinds, dim, correct, top):
        try:
            hits = index.search(index.query(text, image, image_share), kinds, int(dim), correct, int(top))
        except ValueError as error:
            gr.Warning(str(error))
            return [], []
        shown = [(item, f"{score:.3f}") for score, kind, item in hits if kind == "images"]
        return shown, [[place, f"{hit[0]:.3f}", hit[2]] for place, hit in enumerate(hits, 1) if hit[1] == "texts"]

    def add(paths, progress=gr.Progress()):  # noqa: B008 - Gradio finds it there
        images, refused = read_images(map(Path, paths or []))
        index.add("images", images, progress)
        return "\n\n".join([f"{len(images)} pictures added, {len(index.items['images'])} in all", *refused])

    with gr.Blocks(title="Jina CLIP search") as blocks, gr.Row():
        with gr.Column(scale=1):
            text = gr.Textbox(label="Text", placeholder="a red heart")
            image = gr.Image(label="Picture", type="pil", height=180)
            share = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the picture, when both are given")
            kinds = gr.CheckboxGroup(KINDS, value=["images"], label="Search in")
            dim = gr.Slider(min(16, index.dim), index.dim, index.dim, step=8, label="Dimensions (Matryoshka)")
            correct = gr.Checkbox(False, label="Correct the modality gap")
            top = gr.Slider(1, 50, 12, step=1, label="Results")
            button = gr.Button("Search", variant="primary")
            files = gr.File(label="Add a folder of pictures", file_count="directory", type="filepath")
            state = gr.Markdown(f"{len(index.items['images'])} pictures, {len(index.items['texts'])} texts")
        with gr.Column(scale=2):
            gallery = gr.Gallery(label="Pictures", columns=6, height=520, object_fit="contain")
            texts = gr.Dataframe(headers=["rank", "score", "text"], label="Texts", wrap=True, interactive=False)
        gr.on([button.click, text.submit], answer, [text, image, share, kinds, dim, correct, top], [gallery, texts])
        files.upload(add, files, state)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL"), help="model folder or Hub name")
    parser.add_argument("--images", type=Path, help="folder of pictures, or a parquet file")
    parser.add_argument("--texts", type=Path, help="file with one text a line")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    index = Index(SentenceTransformer(options.model or parser.error("name a MODEL"), trust_remote_code=True))
    images, refused = read_images(files_of(options.images)) if options.images else ([], [])
    index.add("images", images, lambda share, text: print(f"\r{text}: {share:4.0%}", end="", flush=True))
    index.add("texts", options.texts.read_text("utf-8").splitlines() if options.texts else [])
    print(*refused, f"{len(images)} pictures and {len(index.items['texts'])} texts indexed", sep="\n")
    # GRADIO_SERVER_NAME, which a Space sets, is the only way to another interface than loopback.
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    page(index).launch(
        server_name=host, server_port=options.port, share=False, max_file_size=MAX_UPLOAD, footer_links=[]
    )


if __name__ == "__main__":
    main()
