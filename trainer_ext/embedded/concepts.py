"""The concept of an emoji: what is left when skin tone, gender and direction are taken away.

Held-out concepts must be unknown in every variant, so two emoji count as one concept when either their code points or
their English names agree after that removal; the union of both readings is taken. Merging too much only makes the
split stricter, merging too little would leak.
"""

import re
from dataclasses import dataclass

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
    plainest = {key: min(rows, key=_plainness) for key, rows in members.items()}
    chosen = [plainest[root(_code_key(text))] for text, _ in emoji]
    return [Concept(best[1], best[0] == text) for best, (text, _) in zip(chosen, emoji, strict=True)]


def _plainness(row: tuple[str, str]) -> tuple[int, bool, int, str]:
    text, name = row
    return len(text.replace("\ufe0f", "")), bool(_ONE_GENDER.search(name.casefold())), len(name), name


def _code_key(text: str) -> str:
    points = [ord(point) for point in text]
    kept = [_SAME_PERSON.get(point, point) for point in points if point not in _TONES and point not in _JOINERS]
    return "code:" + "-".join(f"{point:X}" for point in kept or points)


def _name_key(name: str) -> str:
    plain = _COUNTED.sub(" ", _GENDER_WORDS.sub(" ", _TONE_WORDS.sub(" ", name.casefold())))
    return "name:" + (" ".join(plain.split()) or name.casefold())
