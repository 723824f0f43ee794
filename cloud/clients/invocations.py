"""What Hugging Face's containers on SageMaker take and give, as pure functions between bytes and values.

The inference toolkit answers {"inputs": text} with labels and scores, or with text; text-generation-inference streams
server-sent events, one a token, of which the last has the whole text.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from edgewise.cloud.clients.chat import SseLines
from edgewise.cloud.clients.prompting import EMBEDDING, GENERATION
from edgewise.contracts import Output
from edgewise.errors import CloudResponseError


class _Scored(msgspec.Struct):
    label: str
    score: float


class _Generated(msgspec.Struct):
    generated_text: str


class _Token(msgspec.Struct):
    text: str
    logprob: float | None = None
    special: bool = False


class _Event(msgspec.Struct):
    token: _Token | None = None
    generated_text: str | None = None
    error: Any = None


def encode(text: str, task: str, max_tokens: int, *, stream: bool = False) -> bytes:
    """A request of one text; generation is greedy."""
    body: dict[str, Any] = {"inputs": text}
    if task == GENERATION:
        body["parameters"] = {"max_new_tokens": max_tokens, "do_sample": False, "return_full_text": False}
        body["stream"] = stream
    return msgspec.json.encode(body)


def decode(body: bytes, task: str) -> Output:
    """The answer to one text: the label of the largest score, the text, or the vector.

    Raises:
        CloudResponseError: It is none.
    """
    if task == EMBEDDING:
        return _vector(_decoded(body, list[Any]))
    if task == GENERATION:
        generated = _decoded(body, list[_Generated] | _Generated)
        found = generated if isinstance(generated, list) else [generated]
        if len(found) != 1:
            raise CloudResponseError(f"The endpoint sent {len(found)} texts for one.")
        text: str = found[0].generated_text
        return text
    return _best(_decoded(body, list[_Scored | list[_Scored]])).label


class TokenStream:
    """A generated text that comes token by token."""

    def __init__(self) -> None:
        self._lines = SseLines()
        self._whole: str | None = None

    def add(self, piece: bytes) -> list[tuple[str, float | None]]:
        """Take the next bytes; gives the tokens that they complete, each with its log-probability where it is sent.

        Raises:
            CloudResponseError: They are an error or no events.
        """
        tokens = []
        for data in self._lines.add(piece):
            event = _decoded(data.encode(), _Event)
            if event.error is not None:
                raise CloudResponseError(f"The endpoint failed in mid-stream: {str(event.error)[:200]}", "See its log.")
            if event.token is not None and not event.token.special and event.token.text:
                tokens.append((event.token.text, event.token.logprob))
            self._whole = event.generated_text if event.generated_text is not None else self._whole
        return tokens

    def whole(self) -> str:
        """The text, once the stream is over.

        Raises:
            CloudResponseError: The stream ended before its last event.
        """
        if self._whole is None:
            raise CloudResponseError("The endpoint ended its stream before the last token.", "See its log.")
        return self._whole


def _best(scored: list[_Scored | list[_Scored]]) -> _Scored:
    """The label of the largest score; several scores for one text come in a list of their own, or not."""
    rows = scored[0] if len(scored) == 1 and isinstance(scored[0], list) else scored
    labels = [found for found in rows if isinstance(found, _Scored) and math.isfinite(found.score)]
    if not labels or len(labels) != len(rows):
        raise CloudResponseError("The endpoint sent no labels with finite scores for one text.")
    return max(labels, key=lambda found: found.score)


def _vector(rows: list[Any]) -> Output:
    """A vector, alone or as the only row; a row per token is no answer to one text."""
    row = rows[0] if len(rows) == 1 and isinstance(rows[0], list) else rows
    finite = bool(row) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) for number in row
    )
    if not finite:
        raise CloudResponseError("The endpoint sent no single vector.", "Let the container pool the tokens' vectors.")
    return tuple(float(number) for number in row)


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CloudResponseError(f"The endpoint sent no answer: {error}.", "Check task and container.") from error
