"""The text of an answer while its tokens come in: what may be told at once, and where a stop text ends it.

Chooses no token, and asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream  # type: ignore[import-untyped]  # ships stubs without a py.typed

from edgewise.dialogue import Piece, Prompt
from edgewise.edge.stops import begun

_CONTEXT_TOKENS = 16
"""Tokens before a continued text that its first token is decoded with: some begin a word only behind another."""


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
        self._tokenizer = tokenizer
        self._stop = prompt.sampling.stop
        continued = prompt.text is not None or bool(prompt.begun)
        self._stream = DecodeStream(ids=list(ids[-_CONTEXT_TOKENS:]) if continued else [], skip_special_tokens=True)
        self._held: list[Piece] = []
        self.told = ""
        self.is_over = False

    def push(self, token: int, logprob: float) -> list[Piece]:
        """Take a token in; returns what may be told now."""
        self._held.append(Piece(self._stream.step(self._tokenizer, token) or "", token, logprob))
        text = "".join(piece.text for piece in self._held)
        found = [at for word in self._stop if (at := text.find(word)) >= 0]
        self.is_over = bool(found)
        return self._let_go(min(found) if found else len(text) - begun(text, self._stop), cut=bool(found))

    def close(self) -> list[Piece]:
        """The answer ends here; returns what was held back."""
        return self._let_go(sum(len(piece.text) for piece in self._held), cut=False)

    def _let_go(self, end: int, *, cut: bool) -> list[Piece]:
        """The pieces before character `end`; the one across it is cut there, or stays."""
        told = []
        while self._held and len(self._held[0].text) <= end:
            end -= len(self._held[0].text)
            told.append(self._held.pop(0))
        if cut and end > 0:
            told.append(self._held[0]._replace(text=self._held[0].text[:end]))
        self.told += "".join(piece.text for piece in told)
        return told
