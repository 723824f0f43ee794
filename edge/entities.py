"""The words of a text, their labels, and the entities these amount to. Pure.

Owns what a word is: a run of characters between ASCII white space, the way in which tagged data is written. A word has
the label of its first token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

OUTSIDE = "O"
"""The label of words that belong to no entity."""

_WORD = re.compile(r"[^ \t\n\r\f\v]+")
# BIO, BILOU and BIOES; a label without such a prefix stands for itself.
_OPENING = frozenset("BSU")
_CONTINUING = frozenset("IELM")


class Entity(msgspec.Struct, frozen=True):
    """Words in a row that belong together.

    Attributes:
        start: Position of its first character.
        end: Position after its last character.
        label: What it is, without the prefix of its scheme.
        text: Its characters.
    """

    start: int
    end: int
    label: str
    text: str


@dataclass(frozen=True)
class Words:
    """The words of a text.

    Attributes:
        spans: Of each word the position of its first character, and the one after its last.
    """

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text: str) -> Words:
        """The words of `text`."""
        return cls(tuple(match.span() for match in _WORD.finditer(text)))

    def __len__(self) -> int:
        """How many words there are."""
        return len(self.spans)

    def first_tokens(self, tokens: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Each word that has a token, with the index of the first one.

        Args:
            tokens: Characters of each token, (start, end), in the order of the text; empty ones, such as those of
                special tokens, belong to no word. A token over two words counts for the first.
        """
        word, taken = 0, -1
        for index, (start, end) in enumerate(tokens):
            while word < len(self.spans) and self.spans[word][1] <= start:
                word += 1
            if word < len(self.spans) and end > start and end > self.spans[word][0] and word != taken:
                taken = word
                yield word, index


def entities(text: str, words: Words, labels: Sequence[str]) -> list[Entity]:
    """Entities of a text whose words have these labels.

    B-, S- and U- open an entity, I-, E-, L- and M- go on with one of the same name or open it; of labels without a
    prefix, equal ones in a row are one entity. Words labelled "O" belong to none.
    """
    found: list[Entity] = []
    before = OUTSIDE
    for (start, end), label in zip(words.spans, labels, strict=True):
        prefix, name = _split(label)
        if prefix not in _OPENING and name == before != OUTSIDE:
            start = found.pop().start
        if name != OUTSIDE:
            found.append(Entity(start, end, name, text[start:end]))
        before = name
    return found


def entities_json(text: str, words: Words, labels: Sequence[str]) -> str:
    """`entities` as a compact JSON array."""
    return msgspec.json.encode(entities(text, words, labels)).decode()


def _split(label: str) -> tuple[str, str]:
    prefix, dash, name = label.partition("-")
    return (prefix, name) if dash and name and prefix in _OPENING | _CONTINUING else ("", label)
