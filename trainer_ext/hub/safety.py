"""What a published folder must not hold: secrets, files that run code when read, references to foreign code.

Secrets are found by two kinds of rules. A prefix such as ``hf_`` is enough by itself. A name such as ``api_key`` counts
only with a value unlike anything in our configurations, programs or vocabularies: long, without blanks and, unless it
is quoted after an unmistakable name, of letters and digits mixed.

Foreign code is named in ``auto_map``, ``custom_pipelines`` and the modules of sentence-transformers. A name such as
``owner/repository--module.Class``, wherever it stands in a configuration, makes a loader fetch and run code from that
repository. Our folders name only files of their own.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer_ext.files import read_json, write_json
from trainer_ext.hub.allowed import PACKED, is_old_pickle, key_problems, refuse_kind, without_unknown
from trainer_ext.hub.installed import HubFolderError, remote_code
from trainer_ext.hub.onnx_export import WEIGHTS_SUFFIX

# --- secrets -------------------------------------------------------------------------------------------------------
_BY_FORM = (
    rb"\bhf_(?:[A-Za-z0-9]{30,}|oauth_[\w.-]{20,})"  # Hugging Face
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{50,}|\bglpat-[\w-]{20}"
    rb"|\bsk-(?:[\w-]{32,}|[A-Za-z0-9]{20,})"  # OpenAI, Anthropic and many that follow them
    rb"|\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
    rb"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}"  # Amazon, Google
    rb"|\bxox[abeprs]-[\w-]{10,}|\bnpm_[A-Za-z0-9]{36}|\bpypi-AgE[\w-]{50,}"
    rb"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web tokens
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
    rb"|\b(?:AccountKey|SharedAccessKey)=[\w+/]{30,}={0,2}"  # Azure
    rb"|\b[a-z][a-z0-9+.-]*://[^/\s:@\"'<>{}]+:[^/\s:@\"'<>{}]{6,}@"
    rb"|(?i:\bbearer)[ \t]+(?=[A-Za-z]*[0-9])[\w+/~.-]{20,}"
)
# Endings of names that only secrets have.
_NAMES = (
    rb"(?:api[_-]?key|(?:secret|account)[_-]?(?:access[_-]?)?key|private[_-]?key|secret|passw(?:or)?d|passphrase"
    rb"|(?:access|auth|api|refresh|bearer)[_-]?token)"
)
# Between a name and its value: the closing quote of a JSON key, and a colon or an equals sign on the same line.
_IS = rb"[\"']?[ \t]*[:=][ \t]*"
_MIXED = rb"(?=[^\s\"']*[0-9])(?=[^\s\"']*[A-Za-z])"
_BY_NAME = (
    rb"(?i:" + _NAMES + _IS + rb"[\"'](?!your|my[-_]|example|<)[^\"'\s<>{}$]{12,}[\"'])"
    rb"|(?i:" + _NAMES + _IS + _MIXED + rb"[A-Za-z0-9+/=~!@%^&*-]{12,}(?=[\s,;}#]|$))"
    # A token in quotes: tokenizers have many tokens, so the name must stand alone and the value be unlike a word.
    rb"|(?i:(?<![\w.])(?:[a-z]+_)?token" + _IS + rb"[\"']" + _MIXED + rb"(?!\[|<)[\w+/=~.-]{20,}[\"'])"
    # Settings of the environment: capitals.
    rb"|\b[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|SECRET|PASSWORD)[ \t]*=[ \t]*[\"']?"
    + _MIXED
    + rb"[\w+/=~-]{16,}(?=[\s\"',;}#]|$)"
)
SECRETS = re.compile(_BY_FORM + rb"|" + _BY_NAME)

# Every match contains one of these words, in small letters. The rules are slow, so they are tried around them alone.
_WORDS = (
    b"hf_", b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_", b"glpat-", b"sk-", b"k_live_", b"k_test_",
    b"akia", b"asia", b"aiza", b"xox", b"npm_", b"pypi-", b"eyj", b"private", b"://", b"bearer",
    b"key", b"secret", b"passw", b"passphrase", b"token",
)  # fmt: skip
_BEFORE, _AFTER = 80, 1000


def find_secret(content: bytes) -> tuple[int, str] | None:
    """The line of the first apparent secret, and its first characters; None if there is none.

    Text in UTF-16, as some editors write it, is also read.

    >>> find_secret(b"a\\nb: " + b"hf_" + b"x1" * 16)
    (2, 'hf_x1x')
    >>> find_secret(b'{"pad_token": "[PAD]", "password": 30000}') is None
    True
    """
    for text in (content, content.replace(b"\0", b"")) if b"\0" in content else (content,):
        for begin, end in _places(text):
            if match := SECRETS.search(text, begin, end):
                return text.count(b"\n", 0, match.start()) + 1, match.group()[:6].decode(errors="replace")
    return None


def _places(text: bytes) -> list[tuple[int, int]]:
    """Where to look: a stretch around each of the words; overlapping stretches are joined."""
    small, found = text.lower(), []
    for word in _WORDS:
        at = small.find(word)
        while at >= 0:
            found.append(at)
            at = small.find(word, at + len(word))
    places: list[tuple[int, int]] = []
    for at in sorted(found):
        begin, end = max(at - _BEFORE, 0), at + _AFTER
        if places and begin <= places[-1][1]:
            places[-1] = places[-1][0], end
        else:
            places.append((begin, end))
    return places


# --- pickles and archives ------------------------------------------------------------------------------------------
# Suffixes of formats that can run code when they are read, and the first bytes of such files under another name.
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".zip"}
ARCHIVE_START = b"PK\x03\x04"
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", ARCHIVE_START)
ENDS = 1 << 20  # how much of both ends of a graph's weights is read: a text or an archive under that name shows there


def refuse_unsafe(name: str, path: Path) -> None:
    """Refuse a file that is a pickle or an archive, seems to hold a secret, or is of no kind that a folder needs.

    Of weights only the part that could be text is searched: the header of a safetensors file, both ends of the numbers
    beside an ONNX graph.

    Args:
        name: its name in the folder, for the message.
        path: where it is.

    Raises:
        HubFolderError: the reason and the cure.
    """
    is_weights = path.suffix == ".safetensors"
    is_numbers = name.endswith(WEIGHTS_SUFFIX) and path.with_suffix("").is_file()  # those of a graph
    with path.open("rb") as stream:
        content = stream.read(8)
        if is_weights:
            # The header's length, as the file says; of a spoiled file it may be anything.
            content += stream.read(min(int.from_bytes(content, "little"), path.stat().st_size))
        elif is_numbers:
            content += stream.read(ENDS)
            stream.seek(max(stream.tell(), path.stat().st_size - ENDS))
            content += stream.read()
        else:
            content += stream.read()
    is_pickle = not is_weights and content.startswith(PICKLE_STARTS)
    if is_numbers and not content.startswith(ARCHIVE_START):  # four bytes of numbers may look like a pickle's
        is_pickle = is_pickle and content.endswith(b".")
    elif not is_weights:
        is_pickle = is_pickle or content.startswith(PACKED) or content[257:262] == b"ustar" or is_old_pickle(content)
    if path.suffix.lower() in PICKLE_SUFFIXES or is_pickle:
        raise HubFolderError(f"{name} is a pickle or an archive, which can run code when loaded; remove it")
    if found := find_secret(content):
        raise HubFolderError(
            f"{name}, line {found[0]}, seems to hold a secret ({found[1]}...); remove it, revoke it if real"
        )
    refuse_kind(name, content)


# --- references to code --------------------------------------------------------------------------------------------
ELSEWHERE = re.compile(r"[\w.-]+(?:/[\w.-]+)?--[\w./-]+\.\w+")
HERE = re.compile(r"(\w+)\.(\w+)")
TOKENS = ("tokenizer.json", "vocab.json")  # vocabularies, which name no code


def keep_own_code(folder: Path) -> None:
    """Remove every reference to code from the folder's configurations, except those to our files beside them.

    The configurations of a checkpoint may still have the references of the model that it came from.
    """
    for path, value in _configurations(folder):
        kept = _without_foreign(value)
        if not any(ELSEWHERE.fullmatch(text) for _, text in _strings(kept)):  # else the build ends, and names it
            kept = without_unknown(path.relative_to(folder).as_posix(), kept)
        if kept != value:
            write_json(path, kept)


def foreign_code(folder: Path) -> list[str]:
    """One line for every reference in the folder's configurations to code other than our files beside them.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_json(folder / "config.json", {"text_config": {"auto_map": {"AutoModel": "me/x--code.Model"}}})
    >>> foreign_code(folder)
    ["config.json: text_config.auto_map.AutoModel is 'me/x--code.Model', code that is not of this folder; ..."]
    """
    found = []
    for path, value in _configurations(folder):
        name = path.relative_to(folder).as_posix()
        if name == "adapter_config.json":
            found.append(f"{name} makes loaders fetch another model; merge the adapter, and remove it")
            continue
        foreign = [
            f"{name}: {place} is {text!r}, code that is not of this folder; take the key out"
            for place, text in _strings(value)
            if _is_foreign(path.name, place.split("."), text)
        ]
        found += foreign or list(key_problems(name, value))
    return found


def _configurations(folder: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted(folder.rglob("*.json")):
        if path.name not in TOKENS:
            try:
                yield path, read_json(path)
            except (ValueError, RecursionError) as error:
                raise HubFolderError(
                    f"{path.relative_to(folder)} is not JSON ({error}); build the folder again"
                ) from error


def _is_ours(text: Any) -> bool:
    """Whether ``text`` is ``module.Class`` of a file that ``build`` puts into the folder."""
    found = HERE.fullmatch(text) if isinstance(text, str) else None
    return found is not None and any(path.stem == found[1] for path in remote_code())


def _is_foreign(file: str, place: list[str], text: str) -> bool:
    if ELSEWHERE.fullmatch(text):
        return True
    if "auto_map" in place or ("custom_pipelines" in place and place[-1] == "impl"):
        return not _is_ours(text)
    if file == "modules.json" and place[-1] == "type":
        return not (text.startswith("sentence_transformers.") or _is_ours(text))
    return False


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with its place, as ``text_config.auto_map.AutoModel``."""
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _strings(item, f"{place}.{key}" if place else str(key))


def _without_foreign(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_foreign(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_foreign(item) for key, item in value.items() if key not in ("auto_map", "custom_pipelines")}
    names = value.get("auto_map")
    ours = {key: name for key, name in names.items() if _is_ours(name)} if isinstance(names, dict) else {}
    return {**kept, "auto_map": ours} if ours else kept
