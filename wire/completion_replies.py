"""Answers of models that write, in OpenAI's words: as the body of a whole reply, or as the chunks of a streamed one.

Owns what is said of an answer and in which order; does no I/O. Who is told it, and when, is `generating`'s business.
What our answers say of themselves, `edgewise`, stands in a whole reply and in the chunk that has the finish reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgewise.contracts import Answer, Token
from edgewise.dialogue import Finish, TokenChoice, ToolCall, Written
from edgewise.wire.completion_messages import (
    CallReply,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChatReply,
    ChunkChoice,
    Delta,
    Facts,
    FinishReason,
    FunctionReply,
    MessageReply,
    PromptTokens,
    TextChoice,
    TextLogprobs,
    TextReply,
    TokenLogprob,
    TokenUsage,
    TopLogprob,
)
from edgewise.wire.completions import Call
from edgewise.wire.faults import Fault
from edgewise.wire.native import decision_body
from edgewise.wire.openai import CHAT

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says in this protocol: its text, its calls, and why it ended."""

    text: str
    calls: Sequence[ToolCall]
    finish: FinishReason
    usage: TokenUsage | None


def _said(answer: Answer) -> _Said:
    """What an answer says; a call that could not be read is text, as whoever wrote it meant it."""
    if not isinstance(answer.output, str):
        raise TypeError(f"A text was asked for, and request {answer.id} was answered with a vector.")
    written = answer.written
    if written is None:
        return _Said(text=answer.output, calls=(), finish="stop", usage=None)
    calls = [call for call in written.tool_calls if call.name]
    unread = "".join(call.arguments for call in written.tool_calls if not call.name)
    return _Said(text=answer.output + unread, calls=calls, finish=_finish(written, calls), usage=_usage(written))


def _finish(written: Written, calls: Sequence[ToolCall]) -> FinishReason:
    cut = _FINISHES.get(written.finish)  # also a call: its arguments may end anywhere
    return cut or ("tool_calls" if calls else "stop")


_FINISHES: Mapping[Finish, FinishReason] = {
    Finish.LENGTH: "length",
    Finish.FILTER: "content_filter",
    Finish.INTERRUPTED: "length",  # the nearest of their words: there would have been more
}


def _usage(written: Written) -> TokenUsage:
    return TokenUsage(
        prompt_tokens=written.prompt_tokens,
        completion_tokens=written.completion_tokens,
        total_tokens=written.prompt_tokens + written.completion_tokens,
        prompt_tokens_details=PromptTokens(written.cached_tokens),
    )


def _facts(answer: Answer) -> Facts:
    return Facts(
        id=answer.id,
        status=answer.status,
        source=answer.source,
        reason=answer.decision.reason,
        model_digest=answer.model_digest,
        decision=decision_body(answer.decision),
        timings_ms=answer.timings_ms,
    )


def _name(call: Call) -> str:
    return f"{'chatcmpl' if call.is_chat else 'cmpl'}-{call.request.id}"


# Whole replies


def encode_reply(model: str, call: Call, answer: Answer, tokens: Sequence[Token], created_s: float) -> bytes:
    """Write a whole reply.

    Args:
        model: Name of the model that was asked.
        call: What it was asked.
        answer: The answer.
        tokens: Its tokens, where log-probabilities are wanted.
        created_s: Now, in seconds since the epoch.
    """
    said = _said(answer)
    name, created, fingerprint = _name(call), int(created_s), answer.model_digest
    if not call.is_chat:
        logprobs = _text_logprobs(tokens, 0) if call.tells_logprobs else None
        choice = TextChoice(text=said.text, logprobs=logprobs, finish_reason=said.finish)
        return _encoder.encode(
            TextReply(
                id=name,
                created=created,
                model=model,
                choices=[choice],
                usage=said.usage,
                system_fingerprint=fingerprint,
                edgewise=_facts(answer),
            )
        )
    calls = [_whole_call(one) for one in said.calls]
    message = MessageReply(content=said.text if said.text or not calls else None, tool_calls=calls or msgspec.UNSET)
    chat_logprobs = ChatLogprobs(_chat_logprobs(tokens)) if call.tells_logprobs else None
    return _encoder.encode(
        ChatReply(
            id=name,
            created=created,
            model=model,
            choices=[ChatChoice(message=message, logprobs=chat_logprobs, finish_reason=said.finish)],
            usage=said.usage,
            system_fingerprint=fingerprint,
            edgewise=_facts(answer),
        )
    )


def _whole_call(call: ToolCall) -> CallReply:
    return CallReply(id=call.id, type="function", function=FunctionReply(call.arguments, call.name))


def _chat_logprobs(tokens: Sequence[Token]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            token.text,
            token.logprob,
            _bytes(token.text),
            [TopLogprob(choice.text, choice.logprob, _bytes(choice.text)) for choice in token.top],
        )
        for token in tokens
        if token.logprob is not None
    ]


def _bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))


def _text_logprobs(tokens: Sequence[Token], offset: int) -> TextLogprobs:
    texts: list[str] = []
    logprobs: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for token in tokens:
        if token.logprob is not None:
            texts.append(token.text)
            logprobs.append(token.logprob)
            tops.append(_by_text(token.top))
            offsets.append(offset)
        offset += len(token.text)
    return TextLogprobs(texts, logprobs, tops if any(tops) else None, offsets)


def _by_text(choices: Sequence[TokenChoice]) -> dict[str, float]:
    """The likeliest first; of two tokens with the same text that one counts."""
    found: dict[str, float] = {}
    for choice in choices:
        found.setdefault(choice.text, choice.logprob)
    return found


# Streams


class Telling:
    """Turns the events of one request into the bytes of server-sent events.

    Args:
        model: Name of the model that was asked.
        call: What it was asked.
        created_s: Now, in seconds since the epoch.
    """

    def __init__(self, model: str, call: Call, created_s: float) -> None:
        self._model = model
        self._call = call
        self._name = _name(call)
        self._created = int(created_s)
        self._told: list[str] = []
        self._length = 0

    def opening(self) -> bytes:
        """What stands before the first piece: in the chat protocol, who speaks."""
        return self._chat(Delta(role="assistant", content="")) if self._call.is_chat else b""

    def token(self, token: Token) -> bytes:
        """One piece; empty where there is nothing to tell of it."""
        tells = self._call.tells_logprobs and token.logprob is not None
        if not token.text and not tells:
            return b""
        offset = self._length
        self._told.append(token.text)
        self._length += len(token.text)
        return self._piece(token.text, [token] if tells else [], offset)

    def answered(self, answer: Answer) -> bytes:
        """The end: what of the answer was not told yet, its calls, why it ended, and what it took.

        Raises:
            RuntimeError: It is not what was told, which nobody can take back here.
        """
        said = _said(answer)
        rest = self._rest(said.text)
        chunks = [self._piece(rest, [], self._length)] if rest else []
        if self._call.is_chat:
            chunks += [chunk for index, call in enumerate(said.calls) for chunk in self._calls(index, call)]
        return b"".join((*chunks, self._finish(said, answer), DONE))

    def _rest(self, text: str) -> str:
        told = "".join(self._told)
        if text.startswith(told):
            return text[len(told) :]
        if told.startswith(text):
            return ""  # a stop text's beginning, or blanks, that went out before they were known to be that
        raise RuntimeError("An answer is another one than what was told of it.")

    def _piece(self, text: str, tokens: Sequence[Token], offset: int) -> bytes:
        if self._call.is_chat:
            return self._chat(Delta(content=text), logprobs=ChatLogprobs(_chat_logprobs(tokens)) if tokens else None)
        return self._text(text, logprobs=_text_logprobs(tokens, offset) if tokens else None)

    def _calls(self, index: int, call: ToolCall) -> list[bytes]:
        """A call: first which tool, then with what."""
        begun = CallReply(index=index, id=call.id, type="function", function=FunctionReply("", call.name))
        rest = CallReply(index=index, function=FunctionReply(call.arguments))
        return [self._chat(Delta(tool_calls=[begun])), self._chat(Delta(tool_calls=[rest]))]

    def _finish(self, said: _Said, answer: Answer) -> bytes:
        facts = _facts(answer)
        if self._call.is_chat:
            last = self._chat(Delta(), finish=said.finish, facts=facts)
        else:
            last = self._text("", finish=said.finish, facts=facts)
        return last + (self._counted(said.usage) if self._call.tells_usage else b"")

    def _counted(self, usage: TokenUsage | None) -> bytes:
        kind: type[ChatChunk | TextReply] = ChatChunk if self._call.is_chat else TextReply
        return _data(kind(id=self._name, created=self._created, model=self._model, choices=[], usage=usage))

    def _chat(
        self,
        delta: Delta,
        *,
        logprobs: ChatLogprobs | None = None,
        finish: FinishReason | None = None,
        facts: Facts | None = None,
    ) -> bytes:
        return _data(
            ChatChunk(
                id=self._name,
                created=self._created,
                model=self._model,
                choices=[ChunkChoice(delta=delta, logprobs=logprobs, finish_reason=finish)],
                usage=None if self._call.tells_usage else msgspec.UNSET,
                system_fingerprint=msgspec.UNSET if facts is None else facts.model_digest,
                edgewise=msgspec.UNSET if facts is None else facts,
            )
        )

    def _text(
        self,
        text: str,
        *,
        logprobs: TextLogprobs | None = None,
        finish: FinishReason | None = None,
        facts: Facts | None = None,
    ) -> bytes:
        return _data(
            TextReply(
                id=self._name,
                created=self._created,
                model=self._model,
                choices=[TextChoice(text=text, logprobs=logprobs, finish_reason=finish)],
                usage=None if self._call.tells_usage else msgspec.UNSET,
                system_fingerprint=msgspec.UNSET if facts is None else facts.model_digest,
                edgewise=msgspec.UNSET if facts is None else facts,
            )
        )


def encode_break(fault: Fault) -> bytes:
    """The event that ends a stream which cannot go on; nothing follows it, no DONE either."""
    return b"data: %s\n\n" % fault.body(CHAT)


def _data(chunk: ChatChunk | TextReply) -> bytes:
    return b"data: %s\n\n" % _encoder.encode(chunk)
