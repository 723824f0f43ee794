"""The JSON of written texts in OpenAI's protocol: bodies of whole replies, and chunks; their shape and nothing else.

Beside what is theirs stands `edgewise`, what our answers say of themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from edgewise.contracts import Reason, Source, Status
from edgewise.wire.native import DecisionBody

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer of ours says of itself."""

    id: str
    status: Status
    source: Source
    reason: Reason
    model_digest: str
    decision: DecisionBody
    timings_ms: Mapping[str, float]


class PromptTokens(msgspec.Struct, frozen=True):
    """Tokens of the prompt that did not have to be computed again."""

    cached_tokens: int


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, counted by whoever wrote the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could have stood in a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token, and what could have stood in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities in the chat protocol; tokens of which nobody says any are left out."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities in the other protocol; `text_offset` counts characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class FunctionReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool, and its arguments or a piece of them."""

    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class CallReply(msgspec.Struct, frozen=True, kw_only=True):
    """One call; `index` in chunks only, and there id and type in the first one only."""

    index: int | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET
    function: FunctionReply


class MessageReply(msgspec.Struct, frozen=True, kw_only=True):
    """The message of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[CallReply] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer."""

    index: int = 0
    message: MessageReply
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a reply to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage | None
    system_fingerprint: str
    edgewise: Facts


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer, or a piece of it."""

    index: int = 0
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None


class TextReply(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a reply to `POST /v1/completions`, and each chunk of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    edgewise: Facts | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CallReply] | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the one answer."""

    index: int = 0
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One chunk of a streamed reply to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: TokenUsage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    edgewise: Facts | msgspec.UnsetType = msgspec.UNSET
