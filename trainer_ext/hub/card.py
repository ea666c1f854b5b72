"""The model card: how to use the model, how it was trained, what it scored, and the scores for the Hub's index.

Its text is in ``card_template/``: ``card.md``, and the parts that only some models have.

The Hub refuses a commit whose card has licences, languages or models by names that it does not accept, so the options
are checked before anything is built. Licences: https://huggingface.co/docs/hub/repositories-licenses.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from trainer_ext.hub.folder import MANIFEST, PLACEHOLDER
from trainer_ext.hub.installed import HubFolderError, plain_file
from trainer_ext.hub.run_record import RunRecord, as_code, table
from trainer_ext.hub.shortening import UNMEASURED, Cut
from trainer_ext.sentence_files import REQUIREMENTS

NOTES = "card_notes.md"
TEMPLATES = Path(__file__).with_name("card_template")

_LICENCES = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 "
    "lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 "
    "openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"
)
LICENCES = frozenset(_LICENCES.split())
MODEL_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
LICENCE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def check_licence(licence: str, name: str | None = None, link: str | None = None) -> None:
    """Raise ``HubFolderError`` unless the Hub knows the licence, or it is "other" with a name of its own.

    >>> check_licence("cc-by-sa-4.0")
    >>> check_licence("Apache 2.0")
    Traceback (most recent call last):
    trainer_ext.hub.installed.HubFolderError: license 'Apache 2.0' is not an identifier of the Hub, did you mean
    'apache-2.0'? See https://huggingface.co/docs/hub/repositories-licenses, or use 'other' with --license_name
    """
    if licence not in LICENCES:
        close = difflib.get_close_matches(licence.lower().replace(" ", "-"), LICENCES, n=1)
        hint = f", did you mean {close[0]!r}?" if close else "."
        raise HubFolderError(
            f"license {licence!r} is not an identifier of the Hub{hint} See "
            "https://huggingface.co/docs/hub/repositories-licenses, or use 'other' with --license_name"
        )
    if licence != "other" and (name or link):
        raise HubFolderError(
            f"license {licence!r} has a name and a text; --license_name and --license_link are for 'other'"
        )
    if licence == "other" and not (name and LICENCE_NAME.fullmatch(name)):
        raise HubFolderError(
            f"license 'other' needs a name of small letters, digits and hyphens, got {name!r}; "
            "give --license_name such as my-terms-1.0"
        )
    if link is not None and not re.fullmatch(r"https://[^\s\"'<>]+", link):
        raise HubFolderError(f"license_link {link!r} is not an address; give one that begins with https://")


def check_languages(languages: Sequence[str]) -> None:
    """Raise ``HubFolderError`` unless all are codes of two or three letters, or "multilingual".

    >>> check_languages(["en", "de"])
    """
    if bad := [language for language in languages if not LANGUAGE.fullmatch(language)]:
        raise HubFolderError(
            f"language {bad[0]!r} is not an ISO 639 code; give two or three small letters, or 'multilingual'"
        )


def check_base_models(names: Sequence[str]) -> None:
    """Raise ``HubFolderError`` unless all look like names of models on the Hub.

    >>> check_base_models(["jinaai/jina-clip-v1"])
    """
    if bad := [name for name in names if not MODEL_NAME.fullmatch(name) or "--" in name or ".." in name]:
        raise HubFolderError(
            f"base_model {bad[0]!r} is not the name of a model on the Hub; give owner/name, not a path"
        )


@dataclass(frozen=True)
class CardOptions:
    """What only the author can say; ``build`` explains each.

    Raises:
        HubFolderError: something the Hub would refuse.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: Sequence[str] = ()
    base_model: Sequence[str] = ()
    notes: str = ""
    onnx: bool = False

    def __post_init__(self) -> None:
        if self.license is not None:
            check_licence(self.license, self.license_name, self.license_link)
        elif self.license_name or self.license_link:
            raise HubFolderError("--license_name and --license_link are for a licence of your own; add --license other")
        check_languages(self.language)
        check_base_models(self.base_model)


def read_notes(notes: str | Path | None, checkpoint: Path) -> str:
    """The author's own words: of the file ``notes``, or of ``card_notes.md`` in the checkpoint if there is one."""
    path = checkpoint / NOTES if notes is None else Path(notes)
    if notes is None and not plain_file(path):
        return ""
    if path.exists() and not path.is_file():  # a pipe may wait for ever
        raise HubFolderError(f"notes {str(path)!r} is not a file; give a Markdown file in UTF-8")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise HubFolderError(f"notes {str(path)!r} cannot be read ({error}); give a Markdown file in UTF-8") from error


def card_snippets(repo_id: str, onnx: bool) -> list[str]:
    """The programs that this package writes into a card."""
    shown = [_template(name).safe_substitute(repo_id=repo_id) for name in ("card", *(["onnx"] * onnx))]
    return snippets("\n".join(shown))


def snippets(text: str) -> list[str]:
    """The Python programs shown in a Markdown text, in their order.

    >>> snippets("Use\\n```python\\nprint(1)\\n```\\n`pip install x`")
    ['print(1)\\n']
    """
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def card_text(
    model: Any, processor: Any, title: str, checkpoint: Path, options: CardOptions, cut: Cut | None = None
) -> str:
    """Fill the template from the model, the records of its run, and what its author says.

    A model that is ``cut`` has fewer layers than the checkpoint's, whose figures are not its own.
    """
    from huggingface_hub import ModelCardData

    record, text = RunRecord(checkpoint, options.base_model), model.config.text_config
    second = text.position_embedding_type == "rotary"  # the layout of jina-clip-v2
    metadata = ModelCardData(
        model_name=title,
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        language=_one_or_all(list(options.language)),
        base_model=_one_or_all(record.base_models),
        datasets=record.datasets or None,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["jina-clip", "clip", "sentence-transformers", "image-text-retrieval", "zero-shot-image-classification"]
        + ["onnx"] * options.onnx,
        eval_results=None if cut else record.evaluations,
    )
    dims = ", ".join(map(str, model.config.matryoshka_dimensions or []))
    return _template("card").substitute(
        metadata=metadata.to_yaml(),
        title=title,
        text_tower="a Jina XLM-RoBERTa with rotary positions" if second else "a JinaBERT",
        paper="2412.08802" if second else "2405.20204",
        shorter=f" Embeddings may be cut to their first {dims} numbers (`truncate_dim`)." if dims else "",
        cut=f" {cut.words(record.trained_layers)}" if cut else "",
        repo_id=PLACEHOLDER,
        manifest=MANIFEST,
        instructions=_instructions(text),
        onnx=_part("onnx", repo_id=PLACEHOLDER) if options.onnx else "",
        parameters=f"{model.num_parameters():,}",
        dimension=model.config.projection_dim,
        image_size=processor.image_processor.size,
        length=_length(min(processor.tokenizer.model_max_length, text.max_position_embeddings), record.trained_length),
        dtype=str(model.dtype).removeprefix("torch."),
        packages=" ".join(f'"{name}{bound}"' for name, bound in REQUIREMENTS.items()),
        training=record.training,
        data=record.data,
        results=UNMEASURED if cut else record.results,
        notes=f"\n## Notes of the author\n\n{options.notes}\n" if options.notes else "",
        license=_licence_text(options),
        second_paper=_part("second_paper") if second else "",
    )


def _length(accepted: int, trained: int | None) -> str:
    """The longest text that is accepted, and the longest that the last run trained on: beyond it nobody has looked."""
    if trained is None or trained >= accepted:
        return f"{accepted:,} tokens"
    return f"trained up to {trained:,} tokens, accepts {accepted:,}"


def _template(name: str) -> Template:
    return Template((TEMPLATES / f"{name}.md").read_text(encoding="utf-8").rstrip("\n"))


def _part(name: str, **values: str) -> str:
    """A part that only some cards have, between empty lines."""
    return f"\n{_template(name).substitute(values)}\n"


def _one_or_all(names: list[str]) -> str | list[str] | None:
    return names[0] if len(names) == 1 else names or None


def _licence_text(options: CardOptions) -> str:
    shown = options.license_name or options.license or "not stated"
    return f"[{shown}]({options.license_link})" if options.license_link else shown


def _instructions(text_config: Any) -> str:
    """How to use the model's task instructions; empty if it has none."""
    tasks, default = text_config.task_instructions, text_config.default_instruction_task
    if not tasks:
        return ""
    words = f"texts get that of `{default}`" if default else "texts are embedded as they are"
    rows = [[as_code(task), f"`{instruction}`"] for task, instruction in tasks.items()]
    return _part("instructions", default=words, table=table(["task", "instruction"], *rows))
