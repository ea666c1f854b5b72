"""The first step: a trained model becomes a folder that anyone can load without our packages."""

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .card import CardOptions, card_text, read_notes
from .code_references import foreign_code, keep_own_code
from .errors import HubFolderError
from .folder import REQUIREMENTS, manifest_differences, write_json, write_manifest
from .installed import load_checkpoint, remote_code
from .onnx_export import export_onnx, need_libraries

# Names of the tasks whose instructions sentence-transformers' two roles have.
ROLES = {
    "query": ("query", "retrieval.query"),
    "document": ("document", "passage", "retrieval.document", "retrieval.passage"),
}


def build(
    checkpoint: str | Path,
    out: str | Path,
    *,
    max_shard_size: str = "5GB",
    license: str = "apache-2.0",
    license_name: str | None = None,
    license_link: str | None = None,
    language: Sequence[str] = (),
    base_model: Sequence[str] = (),
    notes: str | Path | None = None,
    onnx: bool = False,
) -> Path:
    """Turn a trained model into a folder for the Hub, and return its path.

    Args:
        checkpoint: a folder written by the trainer or by ``save_pretrained`` (model and processor). Its
            ``metrics.json`` and ``run.json``, where present, fill the model card.
        out: the new folder. An older one that ``build`` wrote is replaced; anything else is refused.
        max_shard_size: weights above this size are split over several files.
        license: the licence of the weights, as the Hub spells it; "other" for one that it does not list.
        license_name: with "other", its name, such as "my-terms-1.0".
        license_link: with "other", the address of its text.
        language: codes of the languages that its texts may have; by default "en" for a JinaBERT and "multilingual" for
            an XLM-RoBERTa.
        base_model: names on the Hub of the models it was trained from; by default those that the run's record tells.
        notes: a Markdown file with the author's own words for the card; by default ``card_notes.md`` of the
            checkpoint, where there is one, so that every rebuild has them.
        onnx: export both towers to ONNX, too.

    Raises:
        HubFolderError: no safe, complete, finite weights, a secret in a file, no library for ONNX, an option that the
            Hub would refuse, or ``out`` holds something else.
    """
    checkpoint, out = Path(checkpoint).resolve(), Path(out).resolve()
    options = CardOptions(
        license, license_name, license_link, language, base_model, read_notes(notes, checkpoint), onnx
    )
    if not re.fullmatch(r"(?!0+(?:\.0*)?[A-Z])\d+(?:\.\d+)?[KMGT]B", max_shard_size.upper()):
        raise HubFolderError(f"max_shard_size {max_shard_size!r} is no size; give one such as 500MB or 5GB")
    _refuse_target(out)
    if onnx:
        need_libraries()
    model, processor = load_checkpoint(checkpoint)
    card = card_text(model, processor, out.name, checkpoint, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.config.auto_map = {"AutoModelForZeroShotImageClassification": "modeling_jina_clip.JinaCLIPModel"}
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        processor.save_pretrained(partial)
        processor.image_processor.save_pretrained(partial)  # preprocessor_config.json, which older readers look for
        for path in remote_code():
            shutil.copyfile(path, partial / path.name)
        keep_own_code(partial)
        _write_sentence_transformers_files(partial, model.config)
        if onnx:
            export_onnx(model, partial)
        if (checkpoint / "metrics.json").is_file():
            shutil.copyfile(checkpoint / "metrics.json", partial / "metrics.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        if found := foreign_code(partial):
            raise HubFolderError(
                f"{checkpoint} would let its users run code from elsewhere: {found[0]} of the checkpoint"
            )
        write_manifest(partial)
        for path in (partial, *partial.rglob("*")):  # temporary files are closed to others; this is for everyone
            path.chmod(0o755 if path.is_dir() else 0o644)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


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


def prompts(text_config: Any) -> tuple[dict[str, str], str | None]:
    """The task instructions as prompts of sentence-transformers, and the name of the default one.

    ``encode_query`` and ``encode_document`` look for prompts "query" and "document": those are the tasks of retrieval.
    A role without a task of its own has the default instruction, unless that is the other role's.

    >>> from modeling_jina_clip import JinaCLIPTextConfig
    >>> prompts(JinaCLIPTextConfig(task_instructions={"retrieval.query": "Find: "}))
    ({'retrieval.query': 'Find: ', 'query': 'Find: ', 'document': ''}, None)
    """
    instructions, default = dict(text_config.task_instructions or {}), text_config.default_instruction_task
    if not instructions:
        return {}, None
    of_others = {name for tasks in ROLES.values() for name in tasks}
    common = "" if default is None or default in of_others else instructions[default]
    roles = {
        role: next((instructions[name] for name in names if name in instructions), common)
        for role, names in ROLES.items()
    }
    return {**instructions, **roles}, default


def _write_sentence_transformers_files(folder: Path, config: Any) -> None:
    """The files by which sentence-transformers finds ``custom_st.py``, and normalises what it returns."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    # No output name: these methods return the tensor itself.
    methods = {kind: {"method": f"get_{kind}_features", "method_output_name": None} for kind in ("text", "image")}
    first = {"transformer_task": "feature-extraction", "module_output_name": "sentence_embedding"}
    named, default = prompts(config.text_config)
    settings = {"model_type": "SentenceTransformer", "prompts": named, "default_prompt_name": default}
    settings |= {"similarity_fn_name": "cosine", "truncate_dim": config.truncate_dim, "requirements": REQUIREMENTS}
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", first | {"modality_config": methods})
    write_json(folder / "config_sentence_transformers.json", settings)
    (folder / "1_Normalize").mkdir()
    write_json(folder / "1_Normalize" / "config.json", {})  # the Hub keeps no empty folders
