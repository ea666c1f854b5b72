"""What is merged: folders of models, and of LoRA's adapters, with tensors that are read when asked for.

``open_parents`` opens them and refuses what does not fit together: other tensors, texts cut into other tokens, pictures
seen in another way, or a configuration that computes other vectors from the same weights.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPProcessor
from trainer_ext.files import file_hash
from trainer_ext.training.lora import TEMPERATURE_FILE, merged_from

ADAPTER_CONFIG = "adapter_config.json"
# What some published files store, and the model computes.
_COMPUTED = re.compile(r"rope\.freqs_(cos|sin)$")
# Keys of a configuration that change training, or how a folder is read, but no vector of the same weights. Of special
# tokens the text tower reads its own; those at the top are written by early transformers' trainer alone.
_HARMLESS = re.compile(
    r"(bos|eos|pad)_token_id|(.*\.)?(_name_or_path|transformers_version|(torch_)?dtype|architectures|auto_map\.\w+|initializer_\w+"
    r"|model_type|logit_scale_init_value|\w*dropout\w*|drop_path_rate|matryoshka_dimensions|lora_dropout_p"
    r"|hf_model_(name_or_path|config_kwargs)|use_\w+)"
)
_UNSEEN = frozenset({"processor_class", "auto_map", "image_processor_type"})  # of an image processor
Say = Callable[[str], object]


class StoredWeights(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files, each read when it is asked for: at most a few are in memory.

    Raises:
        ValueError: no such file, or one that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, weight_files(folder)
        self._home: dict[str, Any] = {}
        for path in self.files:
            try:
                file = safe_open(path, framework="pt")
                names: list[str] = list(file.keys())  # it is no dictionary: only this lists them
                self._home |= {name: file for name in names if not _COMPUTED.search(name)}
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is damaged or not safetensors ({error}); copy it again") from error

    def __getitem__(self, name: str) -> Tensor:
        return self._home[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the head of its file."""
        return tuple(self._home[name].get_slice(name).get_shape())


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: one, or those that its index names.

    Raises:
        ValueError: there are none, or an index that cannot be read or names files that are not there.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(f"{folder} has no model.safetensors; pickles are not read: save the model again")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        found = [folder / name for name in names if Path(name).name == name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} cannot be read ({error!r}); copy it again") from error
    if len(found) < len(names) or not all(path.is_file() for path in found):
        raise ValueError(f"{index} names files that are not in {folder}; copy the folder again")
    return found


@dataclass(frozen=True)
class Parent:
    """A model that is merged.

    ``name`` is what the user calls it, ``folder`` where it lies; ``hashes`` are the sha256 of the files its weights
    are in, by their names.
    """

    name: str
    folder: Path
    config: JinaCLIPConfig
    processor: JinaCLIPProcessor
    weights: Mapping[str, Tensor]
    files: Sequence[Path]

    def hashes(self) -> dict[str, str]:
        return {path.name: file_hash(path) for path in self.files}


def open_parents(base: str | Path, models: Sequence[str | Path], say: Say) -> tuple[Parent, list[Parent]]:
    """The base and the models, all of the same kind.

    Raises:
        ValueError: a model that cannot be read, that does not fit the base, or is there twice; one line that names it.
    """
    first = _open_model(str(base))
    opened: list[Parent] = []
    for name in map(str, models):
        if twin := next((one for one in opened if one.folder.samefile(_folder(name))), None):
            raise ValueError(f"{name} is the same folder as {twin.name}: give each model once, and its whole weight")
        is_adapter = (_folder(name) / ADAPTER_CONFIG).is_file() and not (_folder(name) / "config.json").is_file()
        other = _open_adapter(name, first, say) if is_adapter else _open_model(name)
        refuse_difference(first, other)
        if other.folder.samefile(first.folder):
            say(f"{name} is BASE itself: its weight only takes the merged model back to BASE, as a lower scale does")
        opened.append(other)
    return first, opened


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{name}: there is no such folder; of a model on the Hub, give the folder it is downloaded to")
    return folder


def _open_model(name: str) -> Parent:
    folder = _folder(name)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{name} holds LoRA's adapters, which are no BASE; give the model that they were trained on")
    if not (folder / "config.json").is_file():
        checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        kept = f"; of an unfinished run give a checkpoint, such as {checkpoints[-1]}" if checkpoints else ""
        raise ValueError(f"{name} has no config.json, so it is no model's folder{kept}")
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = content.get("model_type") if isinstance(content, dict) else None
        if kind != JinaCLIPConfig.model_type:
            raise ValueError(f"its config.json is of model_type {kind!r}, not {JinaCLIPConfig.model_type!r}")
        config, processor = JinaCLIPConfig.from_pretrained(folder), JinaCLIPProcessor.from_pretrained(folder)
    except Exception as error:  # what libraries raise for files that are not theirs has no common class
        _refuse_unreadable(name, error)
    weights = StoredWeights(folder)
    return Parent(name, folder, config, processor, weights, weights.files)


def _open_adapter(name: str, base: Parent, say: Say) -> Parent:
    """LoRA's adapters on the base: its weights in memory, with the changes added."""
    folder = _folder(name)
    own = folder if (folder / "tokenizer_config.json").is_file() else base.folder
    try:
        trained_on = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        processor = JinaCLIPProcessor.from_pretrained(own)
    except Exception as error:  # as above
        _refuse_unreadable(name, error)
    trained_on = str(trained_on or "")
    if trained_on and Path(trained_on).is_dir() and not Path(trained_on).samefile(base.folder):
        raise ValueError(
            f"{name} holds adapters that were trained on {trained_on}, not on {base.name}: give it as BASE"
        )
    if trained_on and not Path(trained_on).is_dir():
        say(f"{name} has adapters that were trained on {trained_on}, which is not here: is {base.name} it?")
    if not (folder / TEMPERATURE_FILE).is_file():
        say(f"{name} has adapters without a temperature: {base.name}'s is kept; the run's own folder has it")
    model = merged_from(JinaCLIPModel.from_pretrained(base.folder), folder)
    files = sorted(folder.glob("*.safetensors"))
    return Parent(name, folder, base.config, processor, model.state_dict(), files)


def _refuse_unreadable(name: str, error: Exception) -> NoReturn:
    words = " ".join(str(error).split())[:300] or type(error).__name__
    raise ValueError(f"{name} cannot be read: {words}. Is the folder complete?") from error


# --- what does not fit ---------------------------------------------------------------------------------------------


def refuse_difference(base: Parent, other: Parent) -> None:
    """Raise ``ValueError`` with the first thing that keeps two models from being merged."""
    sides = (
        config_differences(base.config, other.config),
        processor_differences(base.processor, other.processor),
        _weight_differences(base.weights, other.weights),
    )
    for difference in (difference for side in sides for difference in side):
        raise ValueError(
            f"{other.name} cannot be merged with {base.name}: {difference}. Merge models that were trained from BASE"
        )


def config_differences(base: JinaCLIPConfig, other: JinaCLIPConfig) -> Iterator[str]:
    """Keys of the configuration by which equal weights give different vectors."""
    ours, theirs = dict(_leaves(base.to_dict())), dict(_leaves(other.to_dict()))
    for key in sorted(ours.keys() | theirs.keys()):
        if not _HARMLESS.fullmatch(key) and ours.get(key) != theirs.get(key):
            yield f"{key} is {ours.get(key)!r} in the first and {theirs.get(key)!r} in the second"


def processor_differences(base: JinaCLIPProcessor, other: JinaCLIPProcessor) -> Iterator[str]:
    """Ways in which texts become other tokens, or pictures other pixels."""
    ours, theirs = base.tokenizer, other.tokenizer
    left, right = ours.get_vocab(), theirs.get_vocab()
    for token in sorted(left.keys() | right.keys(), key=lambda token: (left.get(token, right.get(token)), token)):
        if left.get(token) != right.get(token):
            yield f"the tokenizers differ: {token!r} is token {left.get(token)} and {right.get(token)}"
            break
    else:
        for name in ("model_max_length", "padding_side", "pad_token_id"):
            if getattr(ours, name) != getattr(theirs, name):
                yield f"the tokenizers differ: {name} is {getattr(ours, name)!r} and {getattr(theirs, name)!r}"
        if _steps(ours) != _steps(theirs):
            yield "the tokenizers differ: equal entries, but texts are normalised or cut in another way"
    pixels, others = (_settings(one.image_processor) for one in (base, other))
    for key in sorted(pixels.keys() | others.keys()):
        if pixels.get(key) != others.get(key):
            yield f"the image processors differ: {key} is {pixels.get(key)!r} and {others.get(key)!r}"


def _settings(image_processor: Any) -> dict[str, Any]:
    return {key: value for key, value in _leaves(image_processor.to_dict()) if key.partition(".")[0] not in _UNSEEN}


def _steps(tokenizer: Any) -> str:
    """All that a fast tokenizer does with a text, without what its last call has left in it."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: value for key, value in content.items() if key not in ("truncation", "padding")})


def _weight_differences(base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Iterator[str]:
    if missing := sorted(base.keys() - other.keys()):
        yield f"{len(missing)} tensors of the first are not in the second, such as {missing[0]}"
    if more := sorted(other.keys() - base.keys()):
        yield f"{len(more)} tensors of the second are not in the first, such as {more[0]}"
    for name in sorted(base.keys() & other.keys()):
        left, right = _shape(base, name), _shape(other, name)
        if left != right:
            yield f"{name} has shape {left} in the first and {right} in the second"


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return weights.shape(name) if isinstance(weights, StoredWeights) else tuple(weights[name].shape)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, list(value) if isinstance(value, tuple) else value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))
