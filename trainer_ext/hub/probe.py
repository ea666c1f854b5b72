"""What a folder embeds, and the program that ``verify`` runs in a fresh interpreter to find out.

    python -I probe.py FOLDER SNIPPETS REPLY

It stands alone: it imports nothing of ours, and at the top only the standard library, because as a program it runs
where our packages cannot be imported, perhaps with an older interpreter.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

OUR_PACKAGES = ("modeling_jina_clip", "trainer_ext", "hub_upload")
LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "huggingface-hub")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide how the folder loads."""
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def embed_probe(model: Any, processor: Any) -> dict[str, Any]:
    """Embeddings of the probe's texts and images by batches of the processor and from raw inputs, float32.

    ``verify`` runs it twice: here on this package's classes, and in the fresh interpreter on what the folder gives.
    """
    import torch

    texts, images = probe_inputs()
    with torch.inference_mode():
        output = model.eval()(**processor(text=texts, images=images, padding=True, return_tensors="pt"))
    found = {"texts": output.text_embeds.numpy(), "images": output.image_embeds.numpy()}
    found |= {f"task {task}": model.encode_text(texts, task=task) for task in tasks(model)}
    return found | {"encode_text": model.encode_text(texts), "encode_image": model.encode_image(images)}


def tasks(model: Any) -> list[str]:
    """Names of the tasks that the model has instructions for; jina-clip-v1 has none."""
    return list(model.config.text_config.task_instructions or {})


def embed_by_onnx(folder: Path, processor: Any) -> dict[str, Any]:
    """Embeddings of the same inputs by the folder's ONNX graphs, in one padded batch and one by one."""
    import numpy as np
    import onnxruntime

    texts, images = probe_inputs()
    found = {}
    for tower, argument, items in (("text", "text", texts), ("vision", "images", images)):
        session = onnxruntime.InferenceSession(folder / "onnx" / f"{tower}_model.onnx")
        for way, batches in (("one batch", [items]), ("one by one", [[item] for item in items])):
            rows = []
            for batch in batches:
                inputs = processor(**{argument: batch}, padding=True, return_tensors="np")
                rows.append(session.run(None, {wanted.name: inputs[wanted.name] for wanted in session.get_inputs()})[0])
            found[f"onnxruntime, {way}/{'texts' if tower == 'text' else 'images'}"] = np.concatenate(rows)
    return found


def probe_inputs() -> tuple[list[str], list[Any]]:
    """Texts of several lengths, two that look like an address and a file; images of several modes and shapes."""
    from PIL import Image

    ramp = Image.linear_gradient("L")
    colours = Image.merge("RGB", (ramp, ramp.rotate(90), Image.radial_gradient("L")))
    images = [colours, colours.resize((90, 40)), ramp, colours.convert("RGBA"), Image.new("RGB", (17, 31), "red")]
    return ["a red circle", "Vier grüne Quadrate, 四", "photo.jpg", "https://127.0.0.1:9/cat.png", "word " * 40], images


def block_our_packages() -> None:
    """From here on, importing our packages raises: what still loads does not need them.

    Cutting the import path would not do: an editable installation is found by other means.
    """
    from importlib.abc import MetaPathFinder

    class Blocked(MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] in OUR_PACKAGES:
                raise ModuleNotFoundError(f"{name} is blocked: the folder has to load without it", name=name)

    sys.meta_path.insert(0, Blocked())


def block_network() -> None:
    """From here on, connecting to anything raises, for as long as the interpreter lives."""

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            raise PermissionError(f"loading reached for the network: {event} {arguments}")

    sys.addaudithook(guard)


def probe(folder: Path, snippets: Path, reply: Path) -> None:
    """Load ``folder`` by every public way, run the programs of ``snippets``, and write what came out.

    Args:
        folder: what ``build`` wrote.
        snippets: a JSON file with a list of programs; each leaves finite ``scores``.
        reply: the folder for ``arrays.npz`` (a row of vectors for every input, by the way of loading) and
            ``facts.json`` (the modules of the loaded classes, the versions that loaded them).
    """
    block_our_packages()
    block_network()
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, pipeline

    # Under its public name, old versions (5.5) without torchvision give a stand-in that raises.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    trusted: dict[str, Any] = {"trust_remote_code": True}
    (texts, images), exact = probe_inputs(), trusted | {"dtype": torch.float32}
    images[0].save("photo.jpg")  # opened by the card's snippets, and by nothing that is given the text "photo.jpg"
    model, processor = AutoModel.from_pretrained(folder, **exact), AutoProcessor.from_pretrained(folder, **trusted)
    parts = AutoImageProcessor.from_pretrained(folder, **trusted), AutoTokenizer.from_pretrained(folder, **trusted)
    arrays = {f"AutoModel, AutoProcessor/{name}": rows for name, rows in embed_probe(model, processor).items()}
    found = embed_probe(model, type(processor)(*parts))
    arrays |= {f"AutoImageProcessor, AutoTokenizer/{name}": found[name] for name in ("texts", "images")}
    encoder = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, **trusted)
    for name, inputs in {"encode_text": texts, "encode_image": images, "mixed": [*texts, *images]}.items():
        arrays[f"SentenceTransformer/{name}"] = encoder.encode(inputs)
    for task in tasks(model):
        arrays[f"SentenceTransformer/task {task}"] = encoder.encode(texts, prompt_name=task)
    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu", **exact)
    chances = {answer["label"]: answer["score"] for answer in classify(images[0], texts, hypothesis_template="{}")}
    arrays["zero-shot-image-classification/probabilities"] = np.array([chances[text] for text in texts])
    found_versions = versions()
    if (folder / "onnx").is_dir():
        arrays |= embed_by_onnx(folder, processor)
        found_versions["onnxruntime"] = importlib.metadata.version("onnxruntime")
    np.savez(reply / "arrays.npz", **arrays)

    for source in json.loads(snippets.read_text(encoding="utf-8")):
        names: dict[str, Any] = {}
        exec(source, names)
        if not torch.as_tensor(names["scores"]).isfinite().all():
            raise ValueError(f"a snippet of the card gives scores that are not finite:\n{source}")
    loaded = [AutoConfig.from_pretrained(folder, **trusted), model, processor, parts[0], encoder[0], classify.model]
    classes = sorted({type(item).__module__ for item in loaded})
    facts = json.dumps({"classes": classes, "versions": found_versions})
    (reply / "facts.json").write_text(facts, encoding="utf-8")


if __name__ == "__main__":
    probe(*map(Path, sys.argv[1:]))
