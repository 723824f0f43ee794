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
    held: list[Piece] = []
    for piece in pieces:
        held.append(piece)
        text = "".join(part.text for part in held)
        found = [at for word in stop if (at := text.find(word)) >= 0]
        if found:
            yield from _before(held, min(found))
            return
        free = len(text) - begun(text, stop)
        while held and len(held[0].text) <= free:
            free -= len(held[0].text)
            yield held.pop(0)
    yield from held


def _before(pieces: Iterable[Piece], end: int) -> Iterator[Piece]:
    """The pieces that begin before character `end`, the last one cut there."""
    for piece in pieces:
        if end <= 0:
            return
        yield piece._replace(text=piece.text[:end])
        end -= len(piece.text)


def begun(text: str, words: Sequence[str]) -> int:
    """How many characters at the end of `text` one of these texts may begin with."""
    return max((size for word in words for size in range(1, len(word)) if text.endswith(word[:size])), default=0)
