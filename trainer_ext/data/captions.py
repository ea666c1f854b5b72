"""Which captions of a picture a step sees: all or their sentences, one or several, another choice in each epoch.

1. ``split_captions: sentences`` puts the sentences of a row's captions in their place (``sentences``).
2. ``captions_per_image: K`` draws K of them, a function of (seed, source, epoch, row) (``drawn_captions``). One alone
   is drawn by ``batches.JointDataset`` in a cheaper way.
"""

import re
from collections.abc import Sequence

import numpy as np

# What ends a sentence: signs that white space must follow, signs of scripts without spaces, and a blank line. A run of
# signs is one end, with the quotes and brackets that close behind it.
_END = re.compile(
    r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？｡।۔؟]++[”’」』）)\]"']*+|\n[^\S\n]*+\n\s*+""",
)
_CLOSING = "\"'”’»)]"
_OPENING = "\"'“‘«(["
_NEXT = re.compile(r"\s*+[\"'“‘«(\[]*+(\S)")
_LETTER = re.compile(r"[^\W\d_]")
# A full stop behind them ends nothing; behind those of the second line only before a number, else they are words.
_ABBREVIATED = {"mr", "mrs", "ms", "dr", "prof", "st", "mt", "ft", "vs", "cf", "ca", "approx", "e.g", "i.e", "bzw"}
_NUMBERED = {"no", "nr", "fig", "figs", "p", "pp", "vol", "ch", "sec"}
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_LONGEST = 20  # letters before a full stop that are looked at: more than any of these has


def sentences(text: str) -> list[str]:
    """The sentences of a text, at least one, without the white space around them.

    A sentence ends at ``.``, ``!``, ``?`` or ``…`` with white space behind, at the full stops of scripts without spaces
    (``。！？``, also of Hindi and Urdu) and at a blank line. A full stop does not end one

    - behind a title or abbreviation (``Dr.``, ``e.g.``), letters that stand alone (``J. R. Smith``, ``U.S.``) or,
      before a number, ``No.`` and the like; within a number none has white space behind (``3.5``);
    - before a small letter, unless the whole text is written small;
    - behind what has no letter: the number of a list stays with its item.

    So "in the U.S. The flag" stays one sentence: an end that is missed costs less than half a sentence.

    >>> sentences("A red bus by Dr. Lee, 3.5 m high. It is parked! 一只猫。它在睡觉。")
    ['A red bus by Dr. Lee, 3.5 m high.', 'It is parked!', '一只猫。', '它在睡觉。']
    >>> sentences("a red bus")
    ['a red bus']
    """
    found, start, written_small = [], 0, text == text.lower()
    letter = _LETTER.search(text)
    for end in _END.finditer(text):
        if letter is None:
            break
        if letter.start() < end.start() and _ends_sentence(text, start, end, written_small):
            found.append(text[start : end.end()].strip())
            start = end.end()
            letter = _LETTER.search(text, start)
    rest = text[start:].strip()
    return [*found, rest] if rest or not found else found


def _ends_sentence(text: str, start: int, end: re.Match[str], written_small: bool) -> bool:
    """Whether the sentence from ``start`` on is over at this place."""
    following = _NEXT.match(text, end.end())
    if end.group()[0] not in ".!?…" or following is None:
        return True
    first = following.group(1)
    if first.islower() and not written_small:
        return False
    if end.group().rstrip(_CLOSING) != ".":
        return True
    words = text[max(start, end.start() - _LONGEST) : end.start()].split()
    word = words[-1].lstrip(_OPENING) if words else ""
    small = word.lower()
    return not (_INITIALS.fullmatch(word) or small in _ABBREVIATED or (small in _NUMBERED and first.isdigit()))


def drawn_captions(captions: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    """``count`` captions in random order, each as often as any other, give or take one.

    They are drawn without replacement; where there are fewer than ``count``, in whole rounds and a part of one more.

    >>> sorted(drawn_captions(["a", "b"], 4, np.random.default_rng(0)))
    ['a', 'a', 'b', 'b']
    """
    rounds = -(-count // len(captions))
    order = [place for _ in range(rounds) for place in generator.permutation(len(captions)).tolist()]
    return [captions[place] for place in order[:count]]
