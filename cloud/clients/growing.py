"""The text of an answer while its tokens come in: what may be told at once, and where a stop text ends it.

Chooses no token, and asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewise.dialogue import Piece, Prompt
from edgewise.edge.decoding import TextStream
from edgewise.edge.stops import Held, begun


class GrowingText:
    """The text of one answer; nothing that may still become a stop text is told.

    Args:
        tokenizer: Makes text of tokens, of the tokenizers library.
        prompt: What is answered.
        ids: Its tokens.

    Attributes:
        told: What was told so far.
        is_over: Whether a stop text has come.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt, ids: Sequence[int]) -> None:
        self._stop = prompt.sampling.stop
        self._stream = TextStream(tokenizer, ids if prompt.is_continued else ())
        self._held = Held()
        self.told = ""
        self.is_over = False

    def push(self, token: int, logprob: float) -> list[Piece]:
        """Take a token in; returns what may be told now."""
        self._held.push(Piece(self._stream.step(token), token, logprob))
        text = self._held.text
        found = [at for word in self._stop if (at := text.find(word)) >= 0]
        self.is_over = bool(found)
        return self._told(
            self._held.cut(min(found)) if found else self._held.before(len(text) - begun(text, self._stop))
        )

    def close(self) -> list[Piece]:
        """The answer ends here; returns what was held back."""
        return self._told(self._held.rest())

    def _told(self, told: list[Piece]) -> list[Piece]:
        self.told += "".join(piece.text for piece in told)
        return told
