"""Texts as items to encode: a plain ``str``, one behind a prompt, or one that asks for an instruction of the model."""

from typing import Any


class Prompted(str):
    """A text behind its prompt: a ``str`` in all, which knows the text without it as ``bare``.

    Two models measured under different prompts have answered the same questions: ``Task.contents`` goes by ``bare``.

    >>> text = Prompted("query: red shoes", "red shoes")
    >>> text == "query: red shoes", text.bare
    (True, 'red shoes')
    """

    bare: str

    def __new__(cls, text: str, bare: str) -> "Prompted":
        made = super().__new__(cls, text)
        made.bare = bare
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Prompted, (str(self), self.bare)


class Instructed(str):
    """A text to be encoded under an instruction that the model has (``retrieval.query``, ``query``).

    It reads as the text alone, for BM25 and for people; as a key it is another one than the text without instruction.

    >>> text = Instructed("red shoes", "query")
    >>> str(text), text == "red shoes", text == Instructed("red shoes", "query"), len({text, "red shoes"})
    ('red shoes', False, True, 2)
    """

    instruction: str
    bare: str

    def __new__(cls, text: str, instruction: str, bare: str | None = None) -> "Instructed":
        made = super().__new__(cls, text)
        made.instruction, made.bare = instruction, text if bare is None else bare
        return made

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Instructed):
            return self.instruction == other.instruction and str(self) == str(other)
        return False

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.instruction, str(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Instructed, (str(self), self.instruction, self.bare)


def as_item(text: str, prompt: str, instruction: str | None) -> str:
    """The text behind its prompt, under an instruction if one is asked for."""
    if instruction is not None:
        return Instructed(prompt + text, instruction, text)
    return Prompted(prompt + text, text) if prompt else text
