"""The first step: a trained model becomes a folder that anyone can load without our packages."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from trainer_ext.files import refuse_unwritable, whole_folder
from trainer_ext.hub.card import CardOptions, card_text, read_notes
from trainer_ext.hub.folder import alone_in, manifest_differences, write_manifest
from trainer_ext.hub.installed import HubFolderError, load_checkpoint, plain_file, refuse_irregular, remote_code
from trainer_ext.hub.onnx_export import export_onnx, need_libraries
from trainer_ext.hub.safety import foreign_code, keep_own_code
from trainer_ext.hub.shortening import shorten
from trainer_ext.sentence_files import write_sentence_files


def build(
    checkpoint: str | Path,
    out: str | Path,
    *,
    max_shard_size: str = "5GB",
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    language: Sequence[str] = (),
    base_model: Sequence[str] = (),
    notes: str | Path | None = None,
    onnx: bool = False,
    text_layers: int | None = None,
    image_layers: int | None = None,
) -> Path:
    """Turn a trained model into a folder for the Hub, and return its path.

    Args:
        checkpoint: a folder written by the trainer or by ``save_pretrained`` (model and processor). Its
            ``metrics.json`` and ``run.json``, where present, fill the model card.
        out: the new folder. An older one that ``build`` wrote is replaced; anything else is refused.
        max_shard_size: weights above this size are split over several files.
        license: the licence of the weights, as the Hub spells it; "other" for one that it does not list.
            Without it the card says that none is stated.
        license_name: with "other", its name, such as "my-terms-1.0".
        license_link: with "other", the address of its text.
        language: codes of the model's languages; without them the card names none.
        base_model: names on the Hub of the models it was trained from; by default those found in the run's record.
        notes: a Markdown file with the author's own words for the card; by default ``card_notes.md`` of the
            checkpoint, if it exists, so that every rebuild includes them.
        onnx: also export both towers to ONNX.
        text_layers: publish only the first so many layers of the text tower; by default all. The figures of the run
            are those of the whole model and stay out.
        image_layers: the same of the image tower.

    Raises:
        HubFolderError: the weights are incomplete, not finite or a pickle; a file holds a secret; a library for ONNX
            is missing; the Hub would refuse an option; ``out`` holds something else; a tower has fewer layers; or a
            name that is read from the checkpoint belongs to a link, a pipe or a device.
    """
    checkpoint, out = Path(checkpoint).resolve(), Path(out).resolve()
    options = CardOptions(
        license, license_name, license_link, language, base_model, read_notes(notes, checkpoint), onnx
    )
    if not re.fullmatch(r"(?!0+(?:\.0*)?[A-Z])\d+(?:\.\d+)?[KMGT]B", max_shard_size.upper()):
        raise HubFolderError(f"max_shard_size {max_shard_size!r} is not a size; give one such as 500MB or 5GB")
    try:
        refuse_unwritable(out, "the new folder")
    except ValueError as error:
        raise HubFolderError(str(error)) from None
    _refuse_target(out)
    refuse_irregular(checkpoint)
    if onnx:
        need_libraries()
    model, processor = load_checkpoint(checkpoint)
    model, cut = shorten(model, text_layers, image_layers)
    card = card_text(model, processor, out.name, checkpoint, options, cut)
    with alone_in(out, "build"), whole_folder(out) as partial:
        model.config.auto_map = {"AutoModelForZeroShotImageClassification": "modeling_jina_clip.JinaCLIPModel"}
        model.save_pretrained(partial, max_shard_size=max_shard_size)
        processor.save_pretrained(partial)
        processor.image_processor.save_pretrained(partial)  # preprocessor_config.json, which older readers look for
        for path in remote_code():
            shutil.copyfile(path, partial / path.name)
        keep_own_code(partial)
        write_sentence_files(partial, model.config)
        if onnx:
            export_onnx(model, partial)
        if plain_file(checkpoint / "metrics.json") and cut is None:
            shutil.copyfile(checkpoint / "metrics.json", partial / "metrics.json")
        (partial / "README.md").write_text(card, encoding="utf-8")
        if found := foreign_code(partial):
            raise HubFolderError(
                f"{checkpoint} would let its users run code from elsewhere: {found[0]} of the checkpoint"
            )
        write_manifest(partial)
        for path in (partial, *partial.rglob("*")):  # some writers close their files to other users
            path.chmod(0o755 if path.is_dir() else 0o644)
    return out


def _refuse_target(out: Path) -> None:
    """Accept a new name, an empty folder or a folder that ``build`` wrote; refuse to overwrite anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        lost = [line for line in manifest_differences(out) if "not in the manifest" in line]
    except HubFolderError as error:
        lost = [str(error).partition(";")[0]]
    if lost:
        raise HubFolderError(f"{out} holds something else ({lost[0]}); choose another folder or move it away")
