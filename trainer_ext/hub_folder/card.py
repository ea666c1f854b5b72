"""The model card: how to use the model, how it was trained, what it scored, and the scores for the Hub's index."""

import re
from pathlib import Path
from typing import Any

from .errors import HubFolderError
from .folder import MANIFEST, PLACEHOLDER, REQUIREMENTS, read_json
from .hub_names import dataset_slug

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
{onnx}
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


ONNX = """
With onnxruntime (`pip install onnxruntime`); batch and length are free, the vectors have unit length:

```python
import onnxruntime
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoProcessor

folder = snapshot_download("{repo_id}")
text_model = onnxruntime.InferenceSession(f"{folder}/onnx/text_model.onnx")
vision_model = onnxruntime.InferenceSession(f"{folder}/onnx/vision_model.onnx")
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
photo, captions = Image.open("photo.jpg"), ["a red circle", "a green square"]
inputs = processor(text=captions, images=photo, padding=True, return_tensors="np")
[texts] = text_model.run(None, {name: inputs[name] for name in ("input_ids", "attention_mask")})
[images] = vision_model.run(None, {"pixel_values": inputs["pixel_values"]})
scores = texts @ images.T
```
"""


def card_snippets(repo_id: str, onnx: bool) -> list[str]:
    """The programs that this package writes into a card."""
    return snippets((CARD + (ONNX if onnx else "")).replace("{repo_id}", repo_id))


def snippets(text: str) -> list[str]:
    """The Python programs shown in a Markdown text, in their order.

    >>> snippets("Use\\n```python\\nprint(1)\\n```\\n`pip install x`")
    ['print(1)\\n']
    """
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def card_text(
    model: Any, processor: Any, title: str, checkpoint: Path, licence: tuple[str, str | None, str | None], onnx: bool
) -> str:
    """The model card: the template above, filled from the model and from what the trainer measured and recorded.

    ``licence``: its identifier, and for "other" its name and the address of its text.
    """
    from huggingface_hub import ModelCardData

    training, results, evaluations = "The checkpoint has no record of it.", "Nothing was measured.", None
    try:
        if (checkpoint / "run.json").is_file():
            training = _training_text(read_json(checkpoint / "run.json"))
        if (checkpoint / "metrics.json").is_file():
            results, evaluations = _results(read_json(checkpoint / "metrics.json")["rows"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubFolderError(
            f"metrics.json or run.json in {checkpoint} is not the trainer's ({error!r}); move it away"
        ) from error
    metadata = ModelCardData(
        model_name=title,
        license=licence[0],
        license_name=licence[1],
        license_link=licence[2],
        language="en",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["jina-clip", "clip", "sentence-transformers", "image-text-retrieval", "zero-shot-image-classification"]
        + ["onnx"] * onnx,
        eval_results=evaluations,
    )
    return CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        repo_id=PLACEHOLDER,
        manifest=MANIFEST,
        onnx=ONNX.replace("{repo_id}", PLACEHOLDER) if onnx else "",
        parameters=model.num_parameters(),
        dimension=model.config.projection_dim,
        image_size=processor.image_processor.size,
        max_length=min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings),
        dtype=str(model.dtype).removeprefix("torch."),
        packages=" ".join(f'"{name}{bound}"' for name, bound in REQUIREMENTS.items()),
        training=training,
        results=results,
        license=_licence_text(*licence),
    )


def _licence_text(licence: str, name: str | None, link: str | None) -> str:
    shown = name or licence
    return f"[{shown}]({link})" if link else shown


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
        place, _, metric = name.rpartition("/")
        task = place.replace("_", " ")
        for short, words in (("t2i_", "text to image "), ("i2t_", "image to text ")):
            metric = metric.replace(short, words)
        metric = re.sub(r"\b(r|ndcg)(\d+)$", lambda m: f"{'recall' if m[1] == 'r' else m[1]}@{m[2]}", metric)
        figures = [row["metrics"].get(name) for row in columns]
        table.append([task, metric, *("-" if figure is None else f"{100 * figure:.1f}" for figure in figures)])
        if columns[-1]["kind"] == "stage" and figures[-1] is not None:
            data = {"dataset_type": dataset_slug(place), "dataset_name": task}
            data |= {"metric_name": metric, "metric_value": figures[-1]}
            kind = metric.split()[-1].replace("@", "_at_")
            evaluations.append(EvalResult(task_type="retrieval", metric_type=kind, **data))
    text = f"Percent, on held-out data; the last column is this model.\n\n{_table(*table)}"
    return text, evaluations or None
