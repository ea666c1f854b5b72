"""Pictures a second of the training path, from tars of JPEGs to uint8 batches, against open_clip's webdataset pipeline.

Both sides read the same tars, crop at random (0.9 to 1 of the area) and make pictures of 224 pixels; open_clip's come
out as normalised floats, as its trainer takes them. Variants run in turns, each timed from its first batch on. Prints
medians with quartiles: CPU milliseconds a picture in one process without workers, then pictures a second with workers.
``kept`` is ``image_cache`` in the epochs after the first, without a crop. The pictures are cut from two photographs of
scikit-learn, at their own resolution.

Then what ``image_decoding: fast`` changes: the mean difference of the model's pixels, and the cosine of vectors to
those of exact decoding, beside the cosine of different pictures.

    make peers
    python benchmarks/picture_loading.py --peers .peers [--rounds 7] [--workers 0 1 2] [--model FOLDER]
"""

import argparse
import io
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from encode_speed import tokenizer
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.data.images import picture_of
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.recipe import Recipe
from trainer_ext.run.start import training_arguments
from trainer_ext.training.trainer import JinaCLIPTrainer

SIZE, ROWS, SHARDS = 224, 32, 4
CROP = [0.9, 1.0]
KINDS = ["640x480", "1600x1200"]
Loader = Callable[[int], Any]  # from a number of workers


@cache
def photographs() -> list[np.ndarray]:
    """Two of 640 x 427 pixels."""
    return load_sample_images().images


def photograph(width: int, height: int, random: np.random.Generator) -> bytes:
    """A JPEG of parts of real photographs, none of which is enlarged."""
    real = photographs()
    whole = np.zeros((height, width, 3), dtype=np.uint8)
    for top in range(0, height, 400):
        for left in range(0, width, 600):
            photo = real[random.integers(2)][:, :: 1 - 2 * int(random.integers(2))]
            y, x = random.integers(photo.shape[0] - 400), random.integers(photo.shape[1] - 600)
            part = photo[y : y + 400, x : x + 600][: height - top, : width - left]
            whole[top : top + 400, left : left + 600] = part
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tars(folder: Path, kind: str, photos: int) -> Path:
    """Shards of samples: a JPEG and a caption."""
    random = np.random.default_rng(0)
    width, height = map(int, kind.split("x"))
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for sample in range(photos // SHARDS):
                files = {"jpg": photograph(width, height, random), "txt": b"w1 w2 w3 w4 w5"}
                for suffix, content in files.items():
                    entry = tarfile.TarInfo(f"{shard:02d}{sample:04d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


def ours(tars: Path, folder: Path, **keys: Any) -> Loader:
    """The trainer's own loader."""
    stage: dict[str, Any] = {"name": "only", "steps": 10**5, "learning_rate": 1e-3, "max_length": 77}
    stage |= {"image_text": {"sources": ["photos"], "batch_size": ROWS}, "random_resized_crop": CROP}
    stage |= {"random_resized_crop": None} if "image_cache" in keys else {}
    source = {"name": "photos", "task": "image-text", "format": "webdataset", "location": str(tars)}
    source |= {"columns": {"image": "jpg", "caption": "txt"}}
    tree = {"name": "loading", "model": "openmoji-small", "sources": [source], "stages": [stage], **keys}
    processor = JinaCLIPProcessor(JinaCLIPImageProcessor(size=SIZE), tokenizer(1000))
    tables = load_sources(Recipe.model_validate(tree | {"training": {}}).sources)

    def loader(workers: int) -> Any:
        training = {"per_device_train_batch_size": ROWS, "dataloader_num_workers": workers, "report_to": "none"}
        recipe = Recipe.model_validate(tree | {"training": training})
        config = JinaCLIPConfig(
            text_config={"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "embed_dim": 16},
            vision_config={"layers": 1, "width": 16, "head_width": 8, "embed_dim": 16, "image_size": SIZE},
            projection_dim=16,
        )
        trainer = JinaCLIPTrainer(
            model=JinaCLIPModel(config),
            args=training_arguments(recipe, folder / "run"),
            recipe=recipe,
            train_dataset=tables,
            processing_class=processor,
        )
        return trainer.get_train_dataloader()

    return loader


def open_clip(tars: Path, peers: str) -> Loader:
    """open_clip's training loader, its transform of torchvision included."""
    from tests.modeling_jina_clip.peer_features import import_peers

    if peers not in sys.path:
        import_peers(peers)
    from open_clip.transform import AugmentationCfg, image_transform
    from open_clip_train import data

    data._SAMPLE_SHUFFLE_INITIAL = ROWS  # samples read before the first batch: what a turn does not wait for
    transform = image_transform(SIZE, is_train=True, aug_cfg=AugmentationCfg(scale=tuple(CROP)))

    def loader(workers: int) -> Any:
        arguments = SimpleNamespace(
            train_data=f"{tars}/train-{{0..{SHARDS - 1}}}.tar", train_num_samples=10**6, dataset_resampled=True,
            train_data_upsampling_factors=None, seed=0, workers=workers, batch_size=ROWS, world_size=1,
        )  # fmt: skip
        ids = torch.zeros(1, 77, dtype=torch.long)
        return data.get_wds_dataset(arguments, transform, is_train=True, tokenizer=lambda text: ids).dataloader

    return loader


class Turn:
    """Batches of a loader in turns, each a new one: seconds and CPU seconds a picture."""

    def __init__(self, loader: DataLoader, workers: int, batches: int) -> None:
        rows: Iterator[Any] = iter(loader)
        for _ in range(1 + 2 * workers):  # start, and what is made ahead
            next(rows)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in islice(rows, batches):
            pass
        pictures = batches * ROWS
        self.seconds = (time.perf_counter() - wall) / pictures
        self.cpu = (time.process_time() - cpu) / pictures
        del rows


def table(loaders: dict[str, Loader], kind: str, workers: int, rounds: int) -> None:
    """Print a line for each variant, the first one being the peer."""
    batches = 3 * max(1, workers)
    turns: dict[str, list[Turn]] = {name: [] for name in loaders}
    made = {name: loader(0) for name, loader in loaders.items()}
    for _ in range(rounds):
        for name, loader in loaders.items():  # workers stay, and read ahead, as long as their loader
            turns[name].append(Turn(loader(workers) if workers else made[name], workers, batches))
    print(f"\n{kind}, {workers} workers: median (quartiles)")
    peer = None
    for name, found in turns.items():
        values = [1000 * turn.cpu for turn in found] if not workers else [1 / turn.seconds for turn in found]
        low, middle, high = statistics.quantiles(values, n=4) if rounds > 1 else values * 3
        peer = middle if peer is None else peer
        ratio = middle / peer if workers else peer / middle
        unit = "pictures/s" if workers else f"ms of CPU, {1000 / middle:.0f} pictures/s and core"
        print(f"  {name:18} {middle:7.2f} ({low:.2f}-{high:.2f}) {unit}; {ratio:.2f}x", flush=True)


@torch.inference_mode()
def what_fast_changes(kind: str, model: JinaCLIPModel, named: str) -> None:
    """Print how far pixels and vectors of fast decoding are from those of exact decoding."""
    random = np.random.default_rng(1)
    width, height = map(int, kind.split("x"))
    contents = [photograph(width, height, random) for _ in range(16)]
    processor = model.processor.image_processor
    exact = processor.fitted([picture_of(content) for content in contents])
    fast = processor.fitted([picture_of(content, least_side=processor.size) for content in contents])
    vectors = [model.encode_image(list(pixels)) for pixels in (exact, fast)]
    cosines = (vectors[0] * vectors[1]).sum(-1)
    others = (vectors[0] @ vectors[0].T)[~np.eye(len(contents), dtype=bool)]
    pixels = np.abs(exact.astype(float) - fast).mean()
    words = f"cosine of fast to exact {cosines.mean():.5f}, at least {cosines.min():.5f}"
    sizes = f"{kind} to {processor.size}, {named}: pixels differ by {pixels:.2f} of 255"
    print(f"{sizes}; {words}; of different pictures {others.mean():.3f}", flush=True)


def main() -> None:
    """Write the tars, measure all loaders, then compare the two ways to decode."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", help="folder that has open_clip and webdataset")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photos", type=int, default=128, help="of each kind")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--model", help="folder of a trained model, for the cosines; by default one of random weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.kinds:
            folder = Path(scratch)
            tars = write_tars(folder / kind, kind, options.photos)
            cache = {"folder": str(folder / "kept"), "max_gigabytes": 1.0}
            loaders = {"open_clip": open_clip(tars, options.peers)} if options.peers else {}
            loaders |= {
                "ours, exact": ours(tars, folder),
                "ours, fast": ours(tars, folder, image_decoding="fast"),
                "ours, kept": ours(tars, folder, image_cache=cache),
            }
            for _ in islice(loaders["ours, kept"](0), options.photos // ROWS + 1):
                pass
            for workers in options.workers:
                table(loaders, kind, workers, options.rounds)
    torch.manual_seed(0)
    if options.model:
        model = JinaCLIPModel.from_pretrained(options.model)
    else:
        model = JinaCLIPModel(JinaCLIPConfig())
        model.processor = JinaCLIPProcessor(JinaCLIPImageProcessor(size=SIZE), tokenizer(1000))
    for kind in options.kinds:
        what_fast_changes(kind, model.eval(), options.model or "random weights")


if __name__ == "__main__":
    main()
