"""Texts as items to encode: a plain ``str``, or one that asks for an instruction of the model's own."""

from typing import Any


class Instructed(str):
    """A text to be encoded under an instruction that the model has (``retrieval.query``, ``query``).

    It reads as the text alone, for BM25 and for people; as a key it is another one than the text without instruction.

    >>> text = Instructed("red shoes", "query")
    >>> str(text), text == "red shoes", text == Instructed("red shoes", "query"), len({text, "red shoes"})
    ('red shoes', False, True, 2)
    """

    instruction: str

    def __new__(cls, text: str, instruction: str) -> "Instructed":
        made = super().__new__(cls, text)
        made.instruction = instruction
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
        return Instructed, (str(self), self.instruction)


def as_item(text: str, prompt: str, instruction: str | None) -> str:
    """The text behind its prompt, under an instruction if one is asked for."""
    return prompt + text if instruction is None else Instructed(prompt + text, instruction)
