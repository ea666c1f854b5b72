"""The files by which sentence-transformers loads a folder: of a run, of a LoRA adapter, or for the Hub.

Without them it would load the folder with its stock module, add no task instructions, and return vectors of any length.
Runs and ``hub_upload.py`` write them with the one function below, so a model encodes the same before and after it is
published.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_ext.files import write_json

if TYPE_CHECKING:
    from modeling_jina_clip import JinaCLIPConfig, JinaCLIPTextConfig

REQUIREMENTS = {"transformers": ">=5.5", "sentence-transformers": ">=5.5.1"}  # older versions cannot load the folder

# The roles of sentence-transformers, and the names of the tasks whose instructions they take.
ROLES = {
    "query": ("query", "retrieval.query"),
    "document": ("document", "passage", "retrieval.document", "retrieval.passage"),
}
_CODE = "custom_st.py"
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
]
TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "module_output_name": "sentence_embedding",
    # No output name: these methods return the tensor itself.
    "modality_config": {
        kind: {"method": f"get_{kind}_features", "method_output_name": None} for kind in ("text", "image")
    },
}


def write_sentence_files(folder: Path, config: "JinaCLIPConfig") -> None:
    """Write the files for sentence-transformers, and the module that they name, into a folder.

    Args:
        folder: has the model or the adapter, and the processor.
        config: the model's configuration; its task instructions become prompts, and its ``truncate_dim`` is kept.
    """
    import modeling_jina_clip  # here, because it loads torch

    named, default = prompts(config.text_config)
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": named,
        "default_prompt_name": default,
        "similarity_fn_name": "cosine",
        "truncate_dim": config.truncate_dim,
        "requirements": REQUIREMENTS,
    }
    contents: dict[str, Any] = {
        "modules.json": MODULES,
        "sentence_bert_config.json": TRANSFORMER,
        "config_sentence_transformers.json": settings,
        "1_Normalize/config.json": {},  # the Hub keeps no empty folders
    }
    for name, content in contents.items():
        write_json(folder / name, content)
    shutil.copyfile(Path(modeling_jina_clip.__file__).with_name(_CODE), folder / _CODE)


def prompts(text_config: "JinaCLIPTextConfig") -> tuple[dict[str, str], str | None]:
    """Return the task instructions as prompts of sentence-transformers, and the name of the default prompt.

    ``encode_query`` and ``encode_document`` look for the prompts "query" and "document", which are the retrieval tasks.
    A role without a task of its own takes the default instruction, unless that belongs to the other role.

    >>> from modeling_jina_clip import JinaCLIPTextConfig
    >>> prompts(JinaCLIPTextConfig(task_instructions={"retrieval.query": "Find: "}))
    ({'retrieval.query': 'Find: ', 'query': 'Find: ', 'document': ''}, None)
    """
    instructions, default = dict(text_config.task_instructions or {}), text_config.default_instruction_task
    if not instructions:
        return {}, None
    of_roles = {name for tasks in ROLES.values() for name in tasks}
    common = "" if default is None or default in of_roles else instructions[default]
    roles = {
        role: next((instructions[name] for name in names if name in instructions), common)
        for role, names in ROLES.items()
    }
    return {**instructions, **roles}, default


def refuse_own_code(folder: Path) -> None:
    """Raise ``ValueError`` for a folder whose modules are code of its own: sentence-transformers 5 runs it unasked."""
    for path in (folder / "modules.json", *folder.rglob("router_config.json"), *folder.rglob("config.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # whoever needs it says so
            continue
        for kind in _kinds_of_modules(content):
            if not kind.startswith("sentence_transformers."):
                raise ValueError(
                    f"{path.relative_to(folder)} asks for the class {kind!r}, which is not of sentence-transformers, so"
                    " loading it runs code that comes with the model (trust_remote_code)."
                )


def _kinds_of_modules(content: Any) -> list[str]:
    """The classes in the list of a modules.json, or in a router's configuration."""
    if isinstance(content, list):
        return [str(module["type"]) for module in content if isinstance(module, dict) and "type" in module]
    kinds = content.get("types") if isinstance(content, dict) else None
    return list(map(str, kinds.values())) if isinstance(kinds, dict) else []
