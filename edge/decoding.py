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


def text_after(tokenizer: Any, before: Sequence[int], token: int) -> str:
    """The text that a token has in its place: some tokenizers drop the blank before the first word of a text.

    Args:
        tokenizer: Makes text of tokens, of the tokenizers library.
        before: The token before it, or none where a text begins.
        token: The token; one that ends answers has a text too.
    """
    known = str(tokenizer.decode(before, skip_special_tokens=False))
    if known.endswith(_NO_CHARACTER):
        # Behind half a character nothing can be told apart; behind itself its text is what it is elsewhere.
        before = (token,)
        known = str(tokenizer.decode(before, skip_special_tokens=False))
    return str(tokenizer.decode([*before, token], skip_special_tokens=False))[len(known) :]


class TextStream:
    """The text of one answer while its tokens come in.

    Args:
        tokenizer: Makes text of tokens, of the tokenizers library.
        before: The tokens that the text continues; none where it begins by itself.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] | NDArray[np.int32] = ()) -> None:
        self._tokenizer = tokenizer
        self._untold: list[int] = []
        self._begin(before[-_CONTEXT:])

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
        self._untold = []
        return str(text)

    def _begin(self, before: Iterable[Any]) -> None:
        context = [int(token) for token in before]
        # Behind half a character the library would tell all of the context again.
        broken = str(self._tokenizer.decode(context)).endswith(_NO_CHARACTER)
        self._stream = DecodeStream(ids=[] if broken else context, skip_special_tokens=True)
