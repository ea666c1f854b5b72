"""The files by which sentence-transformers loads a model folder of a run: our module, and vectors of length one.

Without them it would load the folder as well, by its stock module, and return vectors of any length. They are those
of a folder that ``hub_upload.py`` builds (a test compares them), which trains nothing and shares no code with a run.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import modeling_jina_clip

_CODE = "custom_st.py"
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
]
_FIRST = {
    "transformer_task": "feature-extraction",
    "module_output_name": "sentence_embedding",
    "modality_config": {
        kind: {"method": f"get_{kind}_features", "method_output_name": None} for kind in ("text", "image")
    },
}
_SETTINGS = {
    "model_type": "SentenceTransformer",
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
    "requirements": {"transformers": ">=5.5", "sentence-transformers": ">=5.5.1"},
}


def write_sentence_files(folder: Path, truncate_dim: int | None) -> None:
    """Add them to ``folder``, which has a model or an adapter, its code and its processor.

    Args:
        truncate_dim: to how many dimensions the model cuts its vectors, if it does.
    """
    files: dict[str, Any] = {
        "modules.json": _MODULES,
        "sentence_bert_config.json": _FIRST,
        "config_sentence_transformers.json": {**_SETTINGS, "truncate_dim": truncate_dim},
        "1_Normalize/config.json": {},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(modeling_jina_clip.__file__).with_name(_CODE), folder / _CODE)
