"""Build, verify and push a model folder that anyone can load from the Hub, without this package.

    python hub_upload.py build CHECKPOINT OUT          # a trained model -> a complete folder with a model card
    python hub_upload.py verify OUT                    # loads it in a fresh interpreter and compares the embeddings
    python hub_upload.py push OUT --repo_id me/model   # uploads exactly what was verified

The steps are also functions: ``build``, ``verify``, ``push``. Bad input raises ``HubFolderError`` with the cure.
Top-level imports are standard library only, because the fresh interpreter of ``verify`` runs this very file.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OUR_PACKAGES = ("modeling_jina_clip", "trainer_ext", "hub_upload")
MANIFEST, STAMP, FORMAT = "manifest.json", ".verified.json", "jina-clip-hub-folder/1"
HUB_FILE, HUB_CACHE = ".gitattributes", ".cache/huggingface/"  # added by the Hub, and by its client when downloading
PLACEHOLDER = "your-name/your-model"  # stands in the card until `push` knows the repository
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
TOLERANCE = 1e-5  # float32, absolute, on unit vectors
REQUIREMENTS = {"transformers": ">=5.5", "sentence-transformers": ">=5.5.1"}  # earlier ones cannot load the folder
LIBRARIES = ("torch", *REQUIREMENTS, "tokenizers", "safetensors", "huggingface-hub")

# Suffixes of formats that run code when they are read, and the first bytes of such files under another name.
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".zip"}
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
SECRETS = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{50,}|\bglpat-[\w-]{20}|\bsk-[\w-]{32,}"
    rb"|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\b[a-z]+://[^/\s:@\"']+:[^/\s:@\"']{6,}@"
    rb"|(?i:\b(?:api_?key|secret|passw(?:or)?d|access_token|auth_token)\b[\"']?\s*[:=]\s*[\"'][^\"'\s]{12,}[\"'])"
)


class HubFolderError(ValueError):
    """A folder or a repository that must not be built, verified or pushed; the message ends with the cure."""


# --- the folder: what it may hold, and its manifest -----------------------------------------------------------------


def folder_files(folder: Path) -> dict[str, Path]:
    """Every file by its name on the Hub, without manifest and stamp. Refuses links, pickles and secrets.

    Of weights only the header is searched for secrets: it is the one part of a safetensors file that is text.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if f"{name}/".startswith(HUB_CACHE):
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise HubFolderError(f"{name} in {folder} is not a plain file; replace it by a copy of what it points to")
        if path.is_file() and name not in (MANIFEST, STAMP, HUB_FILE):
            found[name] = path
            _refuse_unsafe(name, path)
    return found


def _refuse_unsafe(name: str, path: Path) -> None:
    with path.open("rb") as stream:
        content = stream.read(8)
        is_weights = path.suffix == ".safetensors"
        if path.suffix.lower() in PICKLE_SUFFIXES or (not is_weights and content.startswith(PICKLE_STARTS)):
            raise HubFolderError(f"{name} is a pickle or an archive, which can run code when loaded; remove it")
        content += stream.read(int.from_bytes(content, "little") if is_weights else -1)
    if match := SECRETS.search(content):
        line, start = content[: match.start()].count(b"\n") + 1, match.group()[:6].decode(errors="replace")
        raise HubFolderError(f"{name}, line {line}, seems to hold a secret ({start}...); remove it, revoke it if real")


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide how the folder loads."""
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: the hash of every file, the versions that built them, the name used in the card."""
    files = {name: file_hash(path) for name, path in folder_files(folder).items()}
    built_with = {"modeling-jina-clip": _package().__version__, **versions()}
    _write_json(folder / MANIFEST, {"format": FORMAT, "repo_id": PLACEHOLDER, "versions": built_with, "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that ``build`` wrote; an error for any other folder."""
    try:
        manifest = _read_json(folder / MANIFEST)
        if manifest["format"] == FORMAT and REPO_ID.fullmatch(manifest["repo_id"]) and dict(manifest["files"]):
            return manifest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise HubFolderError(f"{folder} is no folder of `hub_upload.py build` (no valid {MANIFEST}); build it first")


def manifest_differences(folder: Path) -> list[str]:
    """One line for every file that is missing, changed or unknown to the manifest."""
    listed, present = read_manifest(folder)["files"], folder_files(folder)
    unknown = [f"{name} is not in the manifest" for name in present.keys() - listed.keys()]
    missing = [f"{name} is missing" for name in listed.keys() - present.keys()]
    both = listed.keys() & present.keys()
    changed = [f"{name} was changed after the build" for name in both if file_hash(present[name]) != listed[name]]
    return sorted(unknown + missing + changed)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- build ----------------------------------------------------------------------------------------------------------

CARD = """---
{metadata}
---

# {title}

A Jina CLIP model: one embedding space for texts and images. It searches images by text, texts by image, and texts by
text. The text tower is a JinaBERT, the image tower an EVA02 vision transformer (arXiv 2405.20204).

| parameters | embedding | image size | longest text | weights |
|-----------:|----------:|-----------:|-------------:|:--------|
| {parameters:,} | {dimension} | {image_size} px | {max_length} tokens | {dtype} |

## Use

`pip install {packages} pillow`

With sentence-transformers; texts and images may be mixed in one list, and a string is always a text:

```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repo_id}", trust_remote_code=True)
embeddings = model.encode(["a red circle", "a green square", Image.open("photo.jpg")])
scores = model.similarity(embeddings, embeddings)
```

With transformers:

```python
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
texts = model.encode_text(["a red circle", "a green square"])
images = model.encode_image([Image.open("photo.jpg")])
scores = texts @ images.T
```

`trust_remote_code` runs the `.py` files of this repository and of no other. Read them, and pin what you read with
`revision="COMMIT"`. The weights are safetensors; `{manifest}` lists the sha256 of every file.

## Training

{training}

## Results

{results}

## Limits

The model knows what its training data showed it, with that data's gaps and prejudices. Cosines between two texts are
higher than between a text and an image, so compare scores of one kind only. Do not use it to identify people.

## Licence

Weights: {license}. Code (`*.py`): Apache-2.0. Training data keep the licences of their sources.

## Citation

```bibtex
@article{{koukounas2024jinaclip,
  title = {{Jina CLIP: Your CLIP Model Is Also Your Text Retriever}},
  author = {{Koukounas, Andreas and Mastrapas, Georgios and G{{\\"u}}nther, Michael and others}},
  journal = {{arXiv preprint arXiv:2405.20204}},
  year = {{2024}}
}}
```
"""


def build(checkpoint: str | Path, out: str | Path, *, max_shard_size: str = "5GB", license: str = "apache-2.0") -> Path:
    """Turn a trained model into a folder for the Hub, and return its path.

    Args:
        checkpoint: a folder written by the trainer or by ``save_pretrained`` (model and processor). Its
            ``metrics.json`` and ``run.json``, where present, fill the model card.
        out: the new folder. An older one that ``build`` wrote is replaced; anything else is refused.
        max_shard_size: weights above this size are split over several files.
        license: the licence of the weights, as the Hub spells it.

    Raises:
        HubFolderError: no safe, complete, finite weights, a secret in a file, or ``out`` holds something else.
    """
    checkpoint, out = Path(checkpoint).resolve(), Path(out).resolve()
    _refuse_target(out)
    model, processor = _load(checkpoint)
    card = _card(model, processor, out.name, checkpoint, license)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.config.auto_map = {"AutoModelForZeroShotImageClassification": "modeling_jina_clip.JinaCLIPModel"}
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        processor.save_pretrained(partial)
        processor.image_processor.save_pretrained(partial)  # preprocessor_config.json, which older readers look for
        for path in remote_code():
            shutil.copyfile(path, partial / path.name)
        _write_sentence_transformers_files(partial, model.config.truncate_dim)
        if (checkpoint / "metrics.json").is_file():
            shutil.copyfile(checkpoint / "metrics.json", partial / "metrics.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        write_manifest(partial)
        for path in (partial, *partial.rglob("*")):  # temporary files are closed to others; this is for everyone
            path.chmod(0o755 if path.is_dir() else 0o644)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def remote_code() -> list[Path]:
    """The files that a loader without our package needs: all modules of the model package but its face."""
    folder = Path(_package().__file__).parent
    return [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]


def _package() -> Any:
    try:
        import modeling_jina_clip
    except ImportError as error:
        raise HubFolderError(f"{error}; run `pip install modeling-jina-clip`") from error
    return modeling_jina_clip


def _refuse_target(out: Path) -> None:
    """Let a new name, an empty folder or a folder that ``build`` wrote pass; keep everything else from being lost."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        lost = [line for line in manifest_differences(out) if "not in the manifest" in line]
    except HubFolderError as error:
        lost = [str(error).partition(";")[0]]
    if lost:
        raise HubFolderError(f"{out} holds something else ({lost[0]}); choose another folder or move it away")


def _load(folder: Path) -> tuple[Any, Any]:
    """The model, whole and finite, and the processor of a checkpoint, by the installed package's own classes."""
    import torch
    from safetensors import SafetensorError

    package = _package()
    if not (folder / "config.json").is_file():
        raise HubFolderError(f"{folder} has no config.json; give a folder of the trainer or of save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise HubFolderError(f"{folder} has no *.safetensors, and pickles are not read; save the model again")
    try:
        model = package.JinaCLIPModel.from_pretrained(folder, use_safetensors=True).eval()
        processor = package.JinaCLIPProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HubFolderError(f"{folder} does not load: {str(error).splitlines()[0]}; is it complete?") from error
    if bad := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise HubFolderError(f"{folder} has weights that are not finite ({bad[0]}); use an earlier checkpoint")
    return model, processor


def _write_sentence_transformers_files(folder: Path, truncate_dim: int | None) -> None:
    """The files by which sentence-transformers finds ``custom_st.py``, and normalises what it returns."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    # No output name: these methods return the tensor itself.
    methods = {kind: {"method": f"get_{kind}_features", "method_output_name": None} for kind in ("text", "image")}
    first = {"transformer_task": "feature-extraction", "module_output_name": "sentence_embedding"}
    settings = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
    settings |= {"similarity_fn_name": "cosine", "truncate_dim": truncate_dim, "requirements": REQUIREMENTS}
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", first | {"modality_config": methods})
    _write_json(folder / "config_sentence_transformers.json", settings)
    (folder / "1_Normalize").mkdir()
    _write_json(folder / "1_Normalize" / "config.json", {})  # the Hub keeps no empty folders


def _card(model: Any, processor: Any, title: str, checkpoint: Path, license: str) -> str:
    """The model card: the template above, filled from the model and from what the trainer measured and recorded."""
    from huggingface_hub import ModelCardData

    training, results, evaluations = "The checkpoint has no record of it.", "Nothing was measured.", None
    try:
        if (checkpoint / "run.json").is_file():
            training = _training_text(_read_json(checkpoint / "run.json"))
        if (checkpoint / "metrics.json").is_file():
            results, evaluations = _results(_read_json(checkpoint / "metrics.json")["rows"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubFolderError(
            f"metrics.json or run.json in {checkpoint} is not the trainer's ({error!r}); move it away"
        ) from error
    metadata = ModelCardData(
        model_name=title,
        license=license,
        language="en",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["jina-clip", "clip", "sentence-transformers", "image-text-retrieval", "zero-shot-image-classification"],
        eval_results=evaluations,
    )
    return CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        repo_id=PLACEHOLDER,
        manifest=MANIFEST,
        parameters=model.num_parameters(),
        dimension=model.config.projection_dim,
        image_size=processor.image_processor.size,
        max_length=min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings),
        dtype=str(model.dtype).removeprefix("torch."),
        packages=" ".join(f'"{name}{bound}"' for name, bound in REQUIREMENTS.items()),
        training=training,
        results=results,
        license=license,
    )


def _table(*rows: list[Any]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _training_text(run: dict[str, Any]) -> str:
    """Recipe, commit and stages of the run as ``run.json`` records them; no paths of the machine."""
    recipe = run["recipe"]
    rows = [["stage", "steps", "learning rate", "tokens", "image-text batch", "text batch", "sources"]]
    for stage in recipe["stages"]:
        sides = [stage.get(side) or {} for side in ("image_text", "text")]
        sources = ", ".join(dict.fromkeys(name for side in sides for name in side.get("sources", [])))
        figures = [stage[key] for key in ("name", "steps", "learning_rate", "max_length")]
        rows.append([*figures, *(side.get("batch_size", "-") for side in sides), sources])
    commit = run.get("commit") or "not recorded"
    return f"Recipe `{recipe['name']}`, seed {recipe['seed']}, commit `{commit}`.\n\n{_table(*rows)}"


def _results(rows: list[dict[str, Any]]) -> tuple[str, list[Any] | None]:
    """Table of the measured rows (metrics down, chance, BM25 and stages across), and the last stage for the Hub.

    A metric is named ``task/side_metricK``: ``pairs/t2i_r5`` is the recall at 5 of text-to-image search on pairs.
    """
    from huggingface_hub import EvalResult

    columns = sorted(rows, key=lambda row: row["kind"] != "reference")
    table, evaluations = [["task", "metric", *(row["name"] for row in columns)]], []
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        task, _, metric = name.rpartition("/")
        task = task.replace("_", " ")
        for short, words in (("t2i_", "text to image "), ("i2t_", "image to text ")):
            metric = metric.replace(short, words)
        metric = re.sub(r"\b(r|ndcg)(\d+)$", lambda m: f"{'recall' if m[1] == 'r' else m[1]}@{m[2]}", metric)
        figures = [row["metrics"].get(name) for row in columns]
        table.append([task, metric, *("-" if figure is None else f"{100 * figure:.1f}" for figure in figures)])
        if columns[-1]["kind"] == "stage" and figures[-1] is not None:
            data = {"dataset_type": task, "dataset_name": task, "metric_name": metric, "metric_value": figures[-1]}
            kind = metric.split()[-1].replace("@", "_at_")
            evaluations.append(EvalResult(task_type="retrieval", metric_type=kind, **data))
    text = f"Percent, on held-out data; the last column is this model.\n\n{_table(*table)}"
    return text, evaluations or None


# --- verify ---------------------------------------------------------------------------------------------------------


def verify(out: str | Path, *, python: str | Path = sys.executable) -> list[str]:
    """Prove that the folder loads elsewhere and gives this package's vectors; print a report.

    Args:
        out: a folder written by ``build``, or a copy downloaded from the Hub.
        python: the interpreter to load it with, for instance one with older libraries.

    Returns:
        What is wrong; an empty list when all is well. Only then the folder is stamped for ``push``.
    """
    out = Path(out).resolve()
    (out / STAMP).unlink(missing_ok=True)
    checks = {"files are those of the manifest, none is a pickle, none holds a secret": manifest_differences(out)}
    differ = [path.name for path in remote_code() if file_hash(path) != read_manifest(out)["files"].get(path.name)]
    checks["remote code is this package's"] = [f"{name} differs from the installed package" for name in differ]
    # Only then is the folder loaded: code and snippets that run below are the ones of this package.
    if not any(checks.values()):
        checks |= _check_embeddings(out, str(python))
    for name, problems in checks.items():
        print(f"  {'FAILED' if problems else 'ok':6}  {name}")
        print(*(textwrap.indent(problem, " " * 10) + "\n" for problem in problems), sep="", end="")
    failures = [problem for problems in checks.values() for problem in problems]
    if not failures:
        _write_json(out / STAMP, {"manifest": file_hash(out / MANIFEST)})
    return failures


def _check_embeddings(out: Path, python: str) -> dict[str, list[str]]:
    """Embed the probe with this package, then with the folder alone in a fresh interpreter: problems by check."""
    import numpy as np

    model, processor = _load(out)
    expected = embed_probe(model.float(), processor)
    # Constant or non-finite vectors would agree with anything.
    dull = [name for name, rows in expected.items() if not np.ptp(rows, axis=0).max() > 1e-4]
    if dull:
        return {"embeddings tell the inputs apart": [f"{name} are not finite, or all alike" for name in dull]}
    expected["mixed"] = np.concatenate([expected["encode_text"], expected["encode_image"]])
    logits = model.logit_scale.exp().item() * expected["texts"] @ expected["images"][0]
    expected["probabilities"] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return {"embeddings tell the inputs apart": [], **_compare_elsewhere(out, expected, python)}


def _compare_elsewhere(out: Path, expected: dict[str, Any], python: str) -> dict[str, list[str]]:
    """Run ``probe`` in a fresh interpreter and hold what it found against ``expected``: problems by check."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # The card's snippets name the repository; in the working directory that name is the folder itself.
        repo_id = read_manifest(out)["repo_id"]
        link = work / repo_id
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(out, target_is_directory=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "HUGGING"))}
        settings = {"HF_HOME": f"{work}/cache", "HF_MODULES_CACHE": f"{work}/modules", "HF_HUB_OFFLINE": "1"}
        command = [python, "-I", str(Path(__file__).resolve()), "probe", str(out), folder]
        environment = kept | settings | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            tail = "\n".join(run.stderr.strip().splitlines()[-12:])
            return {"loads in a fresh interpreter": [f"{python} exited with {run.returncode}:\n{tail}"]}
        facts = _read_json(work / "facts.json")
        with np.load(work / "arrays.npz", allow_pickle=False) as stored:
            found = dict(stored)
    checks = {}
    for name, rows in found.items():
        wanted = expected[name.rpartition("/")[2]]
        gap = np.abs(rows - wanted).max() if rows.shape == wanted.shape else float("nan")
        wrong = [] if gap <= TOLERANCE else [f"{name} differ by {gap:.1e}, allowed are {TOLERANCE:.0e}"]
        checks[f"{name} {rows.shape}: largest difference {gap:.1e}"] = wrong
    foreign = [name for name in facts["classes"] if not name.startswith("transformers_modules.")]
    shown = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    checks[f"without our packages and without network: {shown}"] = [f"{name} was used" for name in foreign]
    shown = SNIPPET.findall((out / "README.md").read_text(encoding="utf-8"))
    own = [source.replace("{repo_id}", repo_id) for source in SNIPPET.findall(CARD)]
    checks[f"the card's {len(own)} snippets run"] = [] if shown == own else ["README.md shows other snippets"]
    return checks


def embed_probe(model: Any, processor: Any) -> dict[str, Any]:
    """Embeddings of the probe's texts and images by batches of the processor and from raw inputs, float32.

    ``verify`` runs it twice: here on this package's classes, and in the fresh interpreter on what the folder gives.
    """
    import torch

    texts, images = probe_inputs()
    with torch.inference_mode():
        output = model.eval()(**processor(text=texts, images=images, padding=True, return_tensors="pt"))
    found = {"texts": output.text_embeds.numpy(), "images": output.image_embeds.numpy()}
    return found | {"encode_text": model.encode_text(texts), "encode_image": model.encode_image(images)}


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


def probe(folder: Path, reply: Path) -> None:
    """What ``verify`` runs in the fresh interpreter: load ``folder`` by every public way, and write what came out."""
    block_our_packages()
    block_network()
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

    trusted = {"trust_remote_code": True}
    (texts, images), exact = probe_inputs(), trusted | {"dtype": torch.float32}
    images[0].save("photo.jpg")  # opened by the card's snippets, and by nothing that is given the text "photo.jpg"
    model, processor = AutoModel.from_pretrained(folder, **exact), AutoProcessor.from_pretrained(folder, **trusted)
    parts = AutoImageProcessor.from_pretrained(folder, **trusted), AutoTokenizer.from_pretrained(folder, **trusted)
    arrays = {f"AutoModel, AutoProcessor/{name}": rows for name, rows in embed_probe(model, processor).items()}
    found = embed_probe(model, type(processor)(*parts))
    arrays |= {f"AutoImageProcessor, AutoTokenizer/{name}": found[name] for name in ("texts", "images")}
    encoder = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, **trusted)
    for name, inputs in {"encode_text": texts, "encode_image": images, "mixed": [*texts, *images]}.items():
        arrays[f"SentenceTransformer/{name}"] = encoder.encode(inputs, normalize_embeddings=True)
    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu", **exact)
    chances = {answer["label"]: answer["score"] for answer in classify(images[0], texts, hypothesis_template="{}")}
    arrays["zero-shot-image-classification/probabilities"] = np.array([chances[text] for text in texts])
    np.savez(reply / "arrays.npz", **arrays)

    for source in SNIPPET.findall(CARD):
        names: dict[str, Any] = {}
        exec(source.replace("{repo_id}", _read_json(folder / MANIFEST)["repo_id"]), names)
        if not torch.as_tensor(names["scores"]).isfinite().all():
            raise ValueError(f"a snippet of the card gives scores that are not finite:\n{source}")
    loaded = [AutoConfig.from_pretrained(folder, **trusted), model, processor, parts[0], encoder[0], classify.model]
    classes = sorted({type(item).__module__ for item in loaded})
    _write_json(reply / "facts.json", {"classes": classes, "versions": versions()})


# --- push -----------------------------------------------------------------------------------------------------------


def push(
    out: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> str:
    """Upload a verified folder in one commit, and return the address of the commit or of the pull request.

    The card's placeholder becomes ``repo_id``. An upload that was cut off is simply run again: weights that arrived
    are not sent twice. Signing in is the Hub client's business (``hf auth login`` or ``HF_TOKEN``).

    Args:
        out: a folder that ``verify`` accepted and nobody changed since.
        repo_id: ``name/model``; created if it does not exist.
        private: create it private; an existing public repository is refused.
        create_pr: open a pull request instead of committing.
        revision: the branch, created if needed; "main" by default.
        tag: a tag for the new commit, which must not exist yet.
        dry_run: check everything and print the plan, but change nothing.
        force: delete files of the repository that neither this manifest nor an earlier one knows.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not REPO_ID.fullmatch(repo_id):
        raise HubFolderError(f"repo_id {repo_id!r} is not of the form name/model; give both parts")
    if create_pr and tag:
        raise HubFolderError("a pull request has no commit to tag yet; leave out --tag, and tag after merging")
    content, branch, api = _verified_content(Path(out).resolve(), repo_id), revision or "main", HfApi()
    with _hub_errors(repo_id):
        head, remote = _remote_state(api, repo_id, branch, private, tag)
        stale = sorted(remote - content.keys() - {HUB_FILE})
        unknown = sorted(set(stale) - _earlier_files(api, repo_id, head, remote))
        if unknown and not force:
            raise HubFolderError(f"{repo_id} holds other files ({', '.join(unknown)}); delete them with --force")
        print(f"{len(content)} files to {repo_id}, branch {branch}; deletes {', '.join(stale) or 'nothing'}")
        if dry_run:
            return "dry run: nothing was sent"
        if head is None:
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            if branch != "main":
                api.create_branch(repo_id, branch=branch, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [*(CommitOperationAdd(name, item) for name, item in content.items()), *map(CommitOperationDelete, stale)],
            commit_message="Upload a Jina CLIP model",
            revision=branch,
            create_pr=create_pr,
            parent_commit=head,  # if somebody else committed since we looked, the Hub refuses
        )
        if tag:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.pr_url or str(commit.commit_url)


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """One clear line for whatever the client raises: no network, no access, a refused commit, a broken upload."""
    try:
        yield
    except HubFolderError:
        raise
    except Exception as error:
        # A failed upload wraps the Hub's own answer, which says most.
        answers = [getattr(reason, "server_message", None) for reason in (error, error.__cause__)]
        reason = " ".join(filter(None, [str(error).strip().partition("\n")[0], *answers]))
        raise HubFolderError(
            f"{repo_id}: {reason}; sign in with `hf auth login` if access was refused, else push again "
            "(weights that arrived are not sent twice)"
        ) from error


def _verified_content(out: Path, repo_id: str) -> dict[str, Path | bytes]:
    """What to upload, by name: the folder exactly as verified, with the repository's name in card and manifest."""
    manifest, stamp = read_manifest(out), out / STAMP
    if not stamp.is_file() or _read_json(stamp)["manifest"] != file_hash(out / MANIFEST):
        raise HubFolderError(f"{out} is not verified; run `hub_upload.py verify {out}` first")
    if problems := manifest_differences(out):
        raise HubFolderError(f"{out} changed after it was verified ({problems[0]}); build and verify it again")
    files = folder_files(out)
    card = files["README.md"].read_bytes().replace(manifest["repo_id"].encode(), repo_id.encode())
    manifest["files"]["README.md"] = hashlib.sha256(card).hexdigest()
    pushed = json.dumps(manifest | {"repo_id": repo_id}, indent=2) + "\n"
    return {**files, "README.md": card, MANIFEST: pushed.encode()}


def _remote_state(api: Any, repo_id: str, branch: str, private: bool, tag: str | None) -> tuple[str | None, set[str]]:
    """Head commit and file names of the branch; (None, nothing) if there is no such repository or branch yet."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        if private and not api.model_info(repo_id).private:
            raise HubFolderError(f"{repo_id} exists and is public; make it private on the Hub or leave out --private")
        if tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
            raise HubFolderError(f"{repo_id} has a tag {tag} already; choose another")
        info = api.model_info(repo_id, revision=branch)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None, set()
    return info.sha, {item.rfilename for item in info.siblings or []}


def _earlier_files(api: Any, repo_id: str, head: str | None, remote: set[str]) -> set[str]:
    """Names of the files that an earlier push put there: those may be replaced without asking."""
    if MANIFEST not in remote:
        return set()
    try:
        return {MANIFEST, *read_manifest(Path(api.hf_hub_download(repo_id, MANIFEST, revision=head)).parent)["files"]}
    except HubFolderError:
        return set()


# --- command line ---------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line: one sub-command a step, options named as the functions' arguments."""
    top = argparse.ArgumentParser(prog="hub_upload.py", description="Build, verify and push a model folder.")
    steps = top.add_subparsers(dest="step", required=True, metavar="build | verify | push")
    step = steps.add_parser("build", help="a trained model -> a folder for the Hub")
    step.add_argument("checkpoint", help="folder written by the trainer or by save_pretrained")
    step.add_argument("out", help="the new folder")
    step.add_argument("--max_shard_size", default="5GB", help="split weights above this size (default 5GB)")
    step.add_argument("--license", default="apache-2.0", help="licence of the weights (default apache-2.0)")
    step = steps.add_parser("verify", help="load the folder in a fresh interpreter and compare")
    step.add_argument("out")
    step.add_argument("--python", default=sys.executable, help="interpreter to load it with (default: this one)")
    step = steps.add_parser("push", help="upload a verified folder")
    step.add_argument("out")
    step.add_argument("--repo_id", required=True, help="name/model")
    step.add_argument("--revision", help="branch (default main)")
    step.add_argument("--tag", help="tag for the new commit")
    for flag in ("private", "create_pr", "dry_run", "force"):
        step.add_argument(f"--{flag}", action="store_true")
    step = steps.add_parser("probe")  # the child of `verify`
    step.add_argument("folder", type=Path)
    step.add_argument("reply", type=Path)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one step. Exit codes: 0 done, 1 verification found a difference, 2 bad input or no connection."""
    options = vars(parser().parse_args(arguments))
    step = {"build": build, "verify": verify, "push": push, "probe": probe}[options.pop("step")]
    if step is probe:
        probe(**options)  # `verify` shows the end of its traceback
        return 0
    try:
        result = step(**options)
    except (HubFolderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if step is verify:
        print("verified" if not result else f"NOT verified: {len(result)} problems", options["out"])
        return 1 if result else 0
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
