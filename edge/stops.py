"""Where a generated text ends.

Owns what a stop text means in the middle of a stream: nothing of it is ever handed out, not even its first half. Runs
no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edgewise.dialogue import Piece


def until(pieces: Iterable[Piece], stop: Sequence[str]) -> Iterator[Piece]:
    """The pieces before the stop text that is complete first.

    A piece is held back while what it ends with may become a stop text. The piece in which a stop text begins is cut
    short; what follows is not asked for any more.

    Args:
        pieces: What the model generates.
        stop: Texts that end it, none of them empty.
    """
    held = Held()
    for piece in pieces:
        held.push(piece)
        text = held.text
        found = [at for word in stop if (at := text.find(word)) >= 0]
        if found:
            yield from held.cut(min(found))
            return
        yield from held.before(len(text) - begun(text, stop))
    yield from held.rest()


class Held:
    """Pieces that are not told yet, since what they end with may become something that is not to be told."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    @property
    def text(self) -> str:
        """All of their text."""
        return "".join(piece.text for piece in self._pieces)

    def push(self, piece: Piece) -> None:
        """Hold one more."""
        self._pieces.append(piece)

    def before(self, end: int) -> list[Piece]:
        """Take out the pieces that end before character `end` of the text; one across it stays."""
        told = []
        while self._pieces and len(self._pieces[0].text) <= end:
            end -= len(self._pieces[0].text)
            told.append(self._pieces.pop(0))
        return told

    def cut(self, end: int) -> list[Piece]:
        """Take out everything, and give back the pieces that begin before character `end`, the last one cut there."""
        told = []
        for piece in self.rest():
            if end <= 0:
                break
            told.append(piece._replace(text=piece.text[:end]))
            end -= len(piece.text)
        return told

    def emptied(self, end: int) -> list[Piece]:
        """Take out everything, without the text from character `end` on."""
        told = []
        for piece in self.rest():
            told.append(piece._replace(text=piece.text[: max(0, end)]))
            end -= len(piece.text)
        return told

    def rest(self) -> list[Piece]:
        """Take out everything."""
        told, self._pieces = self._pieces, []
        return told


def begun(text: str, words: Sequence[str]) -> int:
    """How many characters at the end of `text` one of these texts may begin with."""
    return max((size for word in words for size in range(1, len(word)) if text.endswith(word[:size])), default=0)
