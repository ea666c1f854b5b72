"""The model card: how to use the model, how it was trained, what it scored, and the scores for the Hub's index."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .card_record import RunRecord, table
from .errors import HubFolderError
from .folder import MANIFEST, PLACEHOLDER, REQUIREMENTS
from .hub_names import check_base_models, check_languages, check_licence

NOTES = "card_notes.md"

CARD = """---
{metadata}
---

# {title}

A Jina CLIP model: one embedding space for texts and images. It searches images by text, texts by image, and texts by
text. The text tower is {text_tower}, the image tower an EVA02 vision transformer
(arXiv {paper}).{shorter}

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
{instructions}{onnx}
`trust_remote_code` runs the `.py` files of this repository and of no other. Read them, and pin what you read with
`revision="COMMIT"`. The weights are safetensors; `{manifest}` lists the sha256 of every file.

## Training

{training}

## Training data

{data}

## Results

{results}
{notes}
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
{second_paper}"""

SECOND_PAPER = """
```bibtex
@article{koukounas2024jinaclipv2,
  title = {jina-clip-v2: Multilingual Multimodal Embeddings for Text and Images},
  author = {Koukounas, Andreas and Mastrapas, Georgios and Eslami, Sedigheh and Wang, Bo and others},
  journal = {arXiv preprint arXiv:2412.08802},
  year = {2024}
}
```
"""

INSTRUCTIONS = """
Texts may begin with the instruction of a task. With sentence-transformers, `encode_query` and `encode_document` take
those of search, and `encode(..., prompt_name="TASK")` any; with transformers it is `encode_text(..., task="TASK")`.
Without one, {default}.

{table}
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


@dataclass(frozen=True)
class CardOptions:
    """What only the author can say; ``build`` explains each.

    Raises:
        HubFolderError: something the Hub would refuse.
    """

    license: str = "apache-2.0"
    license_name: str | None = None
    license_link: str | None = None
    language: Sequence[str] = ()
    base_model: Sequence[str] = ()
    notes: str = ""
    onnx: bool = False

    def __post_init__(self) -> None:
        check_licence(self.license, self.license_name, self.license_link)
        check_languages(self.language)
        check_base_models(self.base_model)


def read_notes(notes: str | Path | None, checkpoint: Path) -> str:
    """The author's own words: of the file ``notes``, or of ``card_notes.md`` in the checkpoint if there is one."""
    path = checkpoint / NOTES if notes is None else Path(notes)
    if notes is None and not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise HubFolderError(f"notes {str(path)!r} cannot be read ({error}); give a Markdown file in UTF-8") from error


def card_snippets(repo_id: str, onnx: bool) -> list[str]:
    """The programs that this package writes into a card."""
    return snippets((CARD + (ONNX if onnx else "")).replace("{repo_id}", repo_id))


def snippets(text: str) -> list[str]:
    """The Python programs shown in a Markdown text, in their order.

    >>> snippets("Use\\n```python\\nprint(1)\\n```\\n`pip install x`")
    ['print(1)\\n']
    """
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def card_text(model: Any, processor: Any, title: str, checkpoint: Path, options: CardOptions) -> str:
    """The model card: the template above, filled from the model, from its run's records, and by its author."""
    from huggingface_hub import ModelCardData

    record, text = RunRecord(checkpoint, options.base_model), model.config.text_config
    second = text.position_embedding_type == "rotary"  # the layout of jina-clip-v2
    metadata = ModelCardData(
        model_name=title,
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        language=_one_or_all(list(options.language) or ["multilingual" if second else "en"]),
        base_model=_one_or_all(record.base_models),
        datasets=record.datasets or None,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["jina-clip", "clip", "sentence-transformers", "image-text-retrieval", "zero-shot-image-classification"]
        + ["onnx"] * options.onnx,
        eval_results=record.evaluations,
    )
    dims = ", ".join(map(str, model.config.matryoshka_dimensions or []))
    return CARD.format(
        metadata=metadata.to_yaml(),
        title=title,
        text_tower="a Jina XLM-RoBERTa with rotary positions" if second else "a JinaBERT",
        paper="2412.08802" if second else "2405.20204",
        shorter=f" Embeddings may be cut to their first {dims} numbers (`truncate_dim`)." if dims else "",
        repo_id=PLACEHOLDER,
        manifest=MANIFEST,
        instructions=_instructions(text),
        onnx=ONNX.replace("{repo_id}", PLACEHOLDER) if options.onnx else "",
        parameters=model.num_parameters(),
        dimension=model.config.projection_dim,
        image_size=processor.image_processor.size,
        max_length=min(processor.tokenizer.model_max_length, text.max_position_embeddings),
        dtype=str(model.dtype).removeprefix("torch."),
        packages=" ".join(f'"{name}{bound}"' for name, bound in REQUIREMENTS.items()),
        training=record.training,
        data=record.data,
        results=record.results,
        notes=f"\n## Notes of the author\n\n{options.notes}\n" if options.notes else "",
        license=_licence_text(options),
        second_paper=SECOND_PAPER if second else "",
    )


def _one_or_all(names: list[str]) -> str | list[str] | None:
    return names[0] if len(names) == 1 else names or None


def _licence_text(options: CardOptions) -> str:
    shown = options.license_name or options.license
    return f"[{shown}]({options.license_link})" if options.license_link else shown


def _instructions(text_config: Any) -> str:
    """What a model with task instructions needs said; nothing for others."""
    tasks, default = text_config.task_instructions, text_config.default_instruction_task
    if not tasks:
        return ""
    words = f"texts get that of `{default}`" if default else "texts are embedded as they are"
    rows = [[f"`{task}`", f"`{instruction}`"] for task, instruction in tasks.items()]
    return INSTRUCTIONS.format(default=words, table=table(["task", "instruction"], *rows))
