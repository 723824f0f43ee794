"""Log-probabilities of OpenAI's protocol, in its shape for chats and its older one for texts. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from edgewise.dialogue import TokenChoice
from edgewise.errors import CloudResponseError


class Told(NamedTuple):
    """A piece of a streamed text.

    Attributes:
        text: The text; empty where a token ends in mid-character, or is part of a tool call.
        logprob: Natural log-probability of its token, where it is one token and that is sent.
        top: The likeliest tokens in its place, the likeliest first.
    """

    text: str
    logprob: float | None = None
    top: tuple[TokenChoice, ...] = ()


class _Top(msgspec.Struct):
    token: str
    logprob: float


class _Logprob(msgspec.Struct):
    logprob: float
    token: str = ""
    top_logprobs: list[_Top] | None = None


class Logprobs(msgspec.Struct):
    """What stands under `logprobs`: of a chat `content`, of a text the three others."""

    content: list[_Logprob] | None = None
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


def tokens_of(text: str, logprobs: Logprobs | None, top: int, *, is_last: bool = False) -> list[Told]:
    """A chunk's text, in tokens where their texts are known to make it up.

    Where there are texts that end an answer, vLLM holds text back and sends it with a later token. The token of the
    last chunk is then the one that ended the answer, and none of its text.

    Args:
        text: The text.
        logprobs: What was sent of its tokens.
        top: How many of the likeliest tokens were asked for.
        is_last: Whether the answer ends with it.

    Raises:
        CloudResponseError: Tokens and log-probabilities are not as many.
    """
    tokens = _logprobs(logprobs, top)
    if len(tokens) == 1 and (tokens[0].text == text or not is_last):
        return [tokens[0]._replace(text=text)]
    if tokens and "".join(token.text for token in tokens) == text:
        return tokens
    return [Told(text)] if text else []


def _logprobs(logprobs: Logprobs | None, top: int) -> list[Told]:
    if logprobs is None:
        return []
    if logprobs.content is not None:
        return [
            Told(
                entry.token,
                _finite(entry.logprob),
                _likeliest(((other.token, other.logprob) for other in entry.top_logprobs or ()), top),
            )
            for entry in logprobs.content
        ]
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    if not len(logprobs.tokens) == len(logprobs.token_logprobs) == len(tops):
        raise CloudResponseError("The server sent log-probabilities of another number of tokens.")
    told = zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True)
    return [Told(token, _finite(logprob), _likeliest((others or {}).items(), top)) for token, logprob, others in told]


def _likeliest(others: Iterable[tuple[str, float]], top: int) -> tuple[TokenChoice, ...]:
    """In order: vLLM puts the token that was taken first, and may add it to those that were asked for."""
    found = sorted((TokenChoice(text, logprob) for text, logprob in others), key=lambda other: -other.logprob)
    return tuple(found[:top])


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is not None and math.isfinite(logprob) else None
