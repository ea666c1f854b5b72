"""Long captions: composed from an emoji's name, its aliases, its group words and dictionary definitions of its nouns.

They were not written by someone looking at the picture. Only definitions of training headwords are used, for every
split, and none whose text is held out in a text table.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainer_ext.demo_data.dictionary import PairTables, Sense
from trainer_ext.demo_data.drawings import Drawing
from trainer_ext.demo_data.groups import group_words
from trainer_ext.negatives import text_key

MIN_WORDS = 40
MAX_WORDS = 80
MAX_DEFINITION_WORDS = 24
# Words that name nothing to explain: anything of one or two letters, prepositions, and the words of tone and side.
_SILENT = re.compile(
    r"..?|and|for|from|into|not|off|over|the|with|without|facing|right|left|light|medium|dark|skin|tone"
)
_USAGE = re.compile(r"(?:; |, )(?:as|also|hence|specif|esp)\b.*|\s-- .*|\s*\([^)]*\)")


@dataclass(frozen=True)
class Glossary:
    """Short noun definitions by headword key, in dictionary order."""

    nouns: dict[str, list[str]]

    @classmethod
    def of(cls, senses: list[Sense], pairs: PairTables, words: set[str]) -> "Glossary":
        """The nouns among ``words`` (headword keys) that are not held out, and whose text no held-out word shares."""
        unseen = pairs.held_out_headwords
        keyed = [(text_key(sense.headword), sense) for sense in senses]
        banned = pairs.held_out_texts | {
            text_key(text)
            for word, sense in keyed
            if word in unseen
            for text in (sense.definition, shorten(sense.definition))
        }
        nouns: dict[str, list[str]] = {}
        for word, sense in keyed:
            if word in words and word not in unseen and re.search(r"\bn\.", sense.part_of_speech):
                short = shorten(sense.definition)
                if len(short.split()) > 2 and banned.isdisjoint((text_key(sense.definition), text_key(short))):
                    nouns.setdefault(word, []).append(short)
        return cls(nouns)

    def look_up(self, word: str) -> tuple[str, list[str]]:
        """The headword and its definitions, for a word or its plural; no definitions when it is unknown."""
        key = next((key for key in _singulars(word) if key in self.nouns), word)
        return key, self.nouns.get(key, [])


def _singulars(word: str) -> tuple[str, ...]:
    return word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)


def vocabulary(drawings: list[Drawing]) -> set[str]:
    """Keys of all headwords that a caption of these drawings may explain."""
    return {key for drawing in drawings for word in _candidates(drawing) for key in _singulars(word)}


def shorten(definition: str) -> str:
    """The first clauses of a definition, without usage notes, at most ``MAX_DEFINITION_WORDS`` words of them.

    >>> shorten("A firework (esp. a big one) that flies; as, a signal rocket. It is used at sea.")
    'A firework that flies'
    """
    first = re.split(r"(?<=\w{3})\.\s", _USAGE.sub("", definition), maxsplit=1)[0]
    words = first.split()
    if len(words) > MAX_DEFINITION_WORDS:
        clipped = " ".join(words[:MAX_DEFINITION_WORDS])
        clauses = re.split(r"[;,:](?=\s)", clipped)
        # Stop at the end of a clause; a definition that is one long clause is cut where it must be.
        first = clipped[: -len(clauses[-1]) - 1] if len(clauses) > 1 else clipped
    return first.rstrip(" .,;:")


def compose(drawing: Drawing, glossary: Glossary, variants: int) -> list[str]:
    """Up to ``variants`` different long captions of about ``MIN_WORDS`` to ``MAX_WORDS`` words."""
    captions = [_compose(drawing, glossary, variant) for variant in range(variants)]
    return list(dict.fromkeys(captions))


def _compose(drawing: Drawing, glossary: Glossary, variant: int) -> str:
    name, *aliases = drawing.names
    themes = group_words(drawing.text)
    sentences = [_OPENINGS[variant % len(_OPENINGS)].format(name=name)]
    if aliases:
        sentences.append(f"It is also called {' or '.join(aliases[:3])}.")
    if themes:
        sentences.append(f"Group: {', '.join(themes[:3])}.")
    length = sum(len(sentence.split()) for sentence in sentences)
    for sentence in _explanations(drawing, glossary, variant):
        words = len(sentence.split())
        if length < MIN_WORDS and length + words <= MAX_WORDS:
            sentences.append(sentence)
            length += words
    return " ".join(sentences)


def _explanations(drawing: Drawing, glossary: Glossary, variant: int) -> Iterator[str]:
    """One sentence for each noun, and then one more for each that has another sense."""
    context = set(text_key(" ".join([*drawing.names, *group_words(drawing.text)])).split())
    # The sense that shares most words with the names and themes fits best; a second caption starts with the next one.
    ranked = {
        word: sorted(senses, key=lambda sense: -len(context & set(text_key(sense).split()) - {word}))
        for word, senses in _nouns(drawing, glossary)
    }
    for word, senses in ranked.items():
        yield f"{word.capitalize()}: {senses[min(variant, len(senses) - 1)]}."
    for word, senses in ranked.items():
        if variant + 1 < len(senses):
            yield f"{word.capitalize()}, also: {senses[variant + 1]}."


_OPENINGS = ("A drawing of {name}.", "This emoji shows {name} in a simple, flat style with outlines.")


def _candidates(drawing: Drawing) -> list[str]:
    """What may be explained, the most telling first: whole names, then single words, last to first, then groups."""
    phrases = [text_key(name) for name in drawing.names]
    themes = [text_key(theme) for theme in group_words(drawing.text)]
    words = [word for phrase in [*phrases, *themes] for word in reversed(phrase.split())]
    return [candidate for candidate in dict.fromkeys([*phrases, *words]) if not _SILENT.fullmatch(candidate)]


def _nouns(drawing: Drawing, glossary: Glossary) -> Iterator[tuple[str, list[str]]]:
    """The candidates that have a definition, each headword once."""
    seen: set[str] = set()
    for candidate in _candidates(drawing):
        word, senses = glossary.look_up(candidate)
        if senses and word not in seen:
            seen.add(word)
            yield word, senses
