"""A WordPiece tokenizer trained on the texts of a recipe's training sources."""

import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer, PreTrainedTokenizerFast

from trainer_ext.data.holdout import load_with_holdout
from trainer_ext.recipe.recipe import Recipe

# In this order from id 0 on: JinaBERT's padding id is 0.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# ALiBi has no limit itself; this is the longest text that JinaBERT was made for.
MAX_LENGTH = 8192
# Letters beyond the most frequent ones become [UNK]: a web corpus has thousands that occur once. So many are always
# kept; more, where all of them take no more than half of the vocabulary. Chinese has some 6,000 in use.
ALPHABET = 1000
_READ_AT_ONCE = 10_000
# What BertNormalizer puts spaces around: the blocks of CJK ideographs.
_CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, say: Callable[[str], object] | None = None
) -> PreTrainedTokenizerFast:
    """Train a lower-casing BERT-style WordPiece tokenizer of at most ``vocab_size`` entries.

    Each distinct text counts once. The same texts, in any order, give the same vocabulary in every process. The trainer
    of ``tokenizers`` alone does not: it numbers the letters inside words in the order of a randomly seeded hash map and
    breaks ties by number. All texts are held in memory.

    Args:
        say: called with a line that tells the letters kept, and the share of letters in the texts that become [UNK].

    Returns:
        A tokenizer that ``AutoTokenizer`` loads without remote code, of ``model_max_length`` 8,192.

    Raises:
        ValueError: no text, or fewer entries than special tokens and letters need.

    >>> tokenizer = train_wordpiece(["a red bus", "a blue bus"], vocab_size=30)
    >>> tokenizer.tokenize("A red bus"), tokenizer.pad_token_id
    (['a', 'red', 'bus'], 0)
    """
    texts = list(dict.fromkeys(texts))
    normalizer = BertNormalizer(lowercase=True)
    counts = _letter_counts(texts, normalizer)
    letters, inner = _kept_letters(counts, vocab_size)
    if not letters:
        raise ValueError("There are no texts to train a tokenizer on. Check the recipe's training sources.")
    # Numbered here, in sorted order, and not by the hash map.
    start = [*SPECIAL_TOKENS, *(f"##{letter}" for letter in inner)]
    needed = len(start) + len(letters)
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the special tokens and the letters, at the start of words and inside"
            f" them, are {needed} entries. Set vocab_size to {needed} or more."
        )
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=start,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if say is not None:
        lost = 1 - sum(counts[letter] for letter in letters) / counts.total()
        say(
            f"tokenizer: {tokenizer.get_vocab_size():,} entries, {len(letters):,} of {len(counts):,} letters kept; "
            f"{lost:.3%} of the letters in the texts are unknown to it"
        )
    # The vocabulary goes into a fresh tokenizer, where letters are ordinary pieces again and not special tokens.
    return BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=True, model_max_length=MAX_LENGTH)


def _letter_counts(texts: Sequence[str], normalizer: BertNormalizer) -> Counter[str]:
    """How often each letter occurs, as the normalizer writes it."""
    raw = np.zeros(sys.maxunicode + 1, dtype=np.int64)  # by code point
    for begin in range(0, len(texts), _READ_AT_ONCE):
        codes = np.frombuffer("".join(texts[begin : begin + _READ_AT_ONCE]).encode("utf-32-le"), dtype="<u4")
        raw += np.bincount(codes, minlength=len(raw))
    counts: Counter[str] = Counter()
    for code in np.flatnonzero(raw):  # BERT's normalizer works letter by letter, so once per letter is enough
        for letter in normalizer.normalize_str(chr(code)):
            counts[letter] += int(raw[code])
    del counts[" "]  # all white space became spaces
    return counts


def _kept_letters(counts: Counter[str], vocab_size: int) -> tuple[list[str], list[str]]:
    """The most frequent letters, and those of them that can stand inside words, both sorted."""
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))
    entries = accumulate(1 if _stands_alone(letter) else 2 for letter in frequent)
    kept = max(ALPHABET, sum(len(SPECIAL_TOKENS) + needed <= vocab_size // 2 for needed in entries))
    return sorted(frequent[:kept]), sorted(letter for letter in frequent[:kept] if not _stands_alone(letter))


def _stands_alone(letter: str) -> bool:
    """Whether the letter is always a word of its own: punctuation, and Chinese characters."""
    return _is_punctuation(letter) or any(first <= ord(letter) <= last for first, last in _CHINESE)


def _is_punctuation(letter: str) -> bool:
    """Whether BertPreTokenizer makes the letter a word by itself."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def training_texts(recipe: Recipe) -> Iterator[str]:
    """Yield every caption, query, positive and text of the sources that the recipe trains on, source by source.

    Hard negatives are left out: they are other rows' positives.
    """
    for source in recipe.used_sources():
        names = [name for name in _TEXTS if name in source.columns]
        if not names:  # pictures alone
            continue
        if source.streaming:
            raise ValueError(
                f"Source {source.name!r} is streaming, but tokenizer.vocab_size means to read all texts before"
                " training. Name a tokenizer's folder, or take streaming out."
            )
        [rows] = load_with_holdout([source])[0].values()
        assert isinstance(rows, Dataset)  # it does not stream
        table = rows.select_columns(names)
        for batch in table.iter(_READ_AT_ONCE):
            for values in batch.values():
                for value in values:
                    yield from [value] if isinstance(value, str) else value


_TEXTS = ("caption", "query", "positive", "text")
