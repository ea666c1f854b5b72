"""Export both towers to ONNX, serve them with onnxruntime alone, and compare with the model.

    python examples/export_onnx.py MODEL OUT
    python examples/export_onnx.py MODEL OUT "a red heart" photo.jpg

MODEL is a checkpoint or a folder of ``hub_upload.py build``; OUT gets ``onnx/text_model.onnx`` and
``onnx/vision_model.onnx`` (``pip install '.[onnx]'``). Texts and images to embed may follow, by
default some are made up. To publish the graphs with the model, use ``hub_upload.py build --onnx`` instead.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor, open_image
from trainer_ext.commands.guard import guarded
from trainer_ext.files import refuse_unwritable
from trainer_ext.hub.onnx_export import export_onnx

TEXTS = ["a red heart", "a drawing of a clock", "four words and more of them, so that the other rows are padded"]


class OnnxEncoder:
    """Texts and images to unit vectors by onnxruntime: all that a service needs besides the processor."""

    def __init__(self, folder: Path, processor: JinaCLIPProcessor) -> None:
        self.processor = processor
        self.towers = {
            name: onnxruntime.InferenceSession(folder / f"onnx/{name}_model.onnx") for name in ("text", "vision")
        }

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return self._run("text", self.processor(text=texts, padding=True, return_tensors="np"))

    def encode_image(self, images: list[Image.Image]) -> np.ndarray:
        return self._run("vision", self.processor(images=images, return_tensors="np"))

    def _run(self, tower: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        wanted = [value.name for value in self.towers[tower].get_inputs()]
        return self.towers[tower].run(None, {name: inputs[name] for name in wanted})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="checkpoint or model folder")
    parser.add_argument("out", type=Path, help="folder for the graphs")
    parser.add_argument("inputs", nargs="*", metavar="input", help="a text, or the path of an image file")
    options = parser.parse_args()

    refuse_unwritable(options.out, "the new folder")
    model = JinaCLIPModel.from_pretrained(options.model).float().eval()
    processor = JinaCLIPProcessor.from_pretrained(options.model)
    print("exporting both towers ...", flush=True)
    for path in export_onnx(model, options.out):
        size = (path.stat().st_size + path.with_name(path.name + ".data").stat().st_size) / 1e6
        print(f"  {path}: {size:.1f} MB with its weights")

    images = [open_image(name) for name in options.inputs if Path(name).is_file()]
    texts = [text for text in options.inputs if not Path(text).is_file()]
    if not options.inputs:
        texts, images = TEXTS, [Image.linear_gradient("L").resize(size) for size in ((64, 64), (200, 80), (33, 90))]
    encoder, worst = OnnxEncoder(options.out, processor), 0.0
    for kind, inputs, ours, theirs in (
        ("texts", texts, encoder.encode_text, model.encode_text),
        ("images", images, encoder.encode_image, model.encode_image),
    ):
        if not inputs:
            continue
        start = time.perf_counter()
        vectors = ours(inputs)
        took = 1000 * (time.perf_counter() - start)
        gap = float(np.abs(vectors - theirs(inputs)).max())
        worst = max(worst, gap)
        print(f"{len(inputs)} {kind} -> {vectors.shape} in {took:.0f} ms; largest difference from the model {gap:.1e}")
    if worst > 1e-4:
        sys.exit(f"the graphs differ from the model by {worst:.1e}; allowed are 1e-4")
    print(f"done: onnxruntime gives the model's vectors; the graphs are in {options.out / 'onnx'}")


if __name__ == "__main__":
    sys.exit(guarded(main))
