"""Tokens back to text, one at a time.

Owns when a token's text is complete: half a character is no text yet. Chooses no token, and holds nothing back for any
other reason; where a text ends is `stops.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream  # type: ignore[import-untyped]  # ships stubs without a py.typed

_CONTEXT = 16
"""Tokens before a text that its first token is decoded with: some begin a word only behind another, and a character may
have several. Reading a long prompt back into text would cost more than computing a token."""

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer while its tokens come in.

    Args:
        tokenizer: Makes text of tokens, of the tokenizers library.
        before: The tokens that the text continues; none where it begins by itself.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] | NDArray[np.int32] = ()) -> None:
        self._tokenizer = tokenizer
        self._untold: list[int] = []
        self._told = [int(token) for token in before[-1:]]
        self._begin(before[-_CONTEXT:])

    def choose(self, token: int, others: Iterable[int]) -> tuple[str, list[str]]:
        """The text that a token completes, as `step` gives it, and those that others would have completed.

        Some tokenizers drop the blank before the first word of a text, and half a character has no text: what a token
        says depends on those before it. One that ends answers has a text too.
        """
        texts = {other: self._text(other) for other in others}
        chosen = self.step(token)
        return chosen, [chosen if other == token else text for other, text in texts.items()]

    def _text(self, token: int) -> str:
        known = self._decoded(self._told)
        told = [] if known.endswith(_NO_CHARACTER) else self._told  # as `_begin` has it
        text = self._decoded([*told, *self._untold, token])[len(known) if told else 0 :]
        return "" if text.endswith(_NO_CHARACTER) else text

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def step(self, token: int) -> str:
        """The text that a token completes, empty where it completes none."""
        self._untold.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:
            # The library knows no other class for it. Bytes that are no character make replacement characters also of
            # the bytes before them, whose text is told already: it stays, and what is untold is read by itself.
            text = str(self._tokenizer.decode(self._untold))
            self._begin(self._untold)
        if text is None:
            return ""
        self._told, self._untold = self._untold, []
        return str(text)

    def _begin(self, before: Iterable[Any]) -> None:
        context = [int(token) for token in before]
        # Behind half a character the library would tell all of the context again.
        broken = str(self._tokenizer.decode(context)).endswith(_NO_CHARACTER)
        self._stream = DecodeStream(ids=[] if broken else context, skip_special_tokens=True)
