"""OpenAI's `/v1/chat/completions` and `/v1/completions`: from the bytes of a body to a request of the flow.

Owns the shape of their bodies and what is refused of them; does no I/O. What a prompt may hold is `prompts`', what is
answered `completion_replies`'. Specification: OpenAI API reference, "Chat" and "Completions"; the fields beyond it are
vLLM's, or ours as in `openai`.

Fields that are not listed are ignored: official clients send new ones with every version, and other servers' clients
theirs. Those that are listed as refused would change the answer, and nothing here does what they ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edgewise.contracts import Request
from edgewise.dialogue import MAX_TOP_LOGPROBS, Prompt
from edgewise.errors import RequestError
from edgewise.wire import openai
from edgewise.wire.parsing import checked_id, decode_json, shown
from edgewise.wire.prompt_messages import ChatMessage, ResponseFormat, SamplingFields, ToolBody, ToolChoice
from edgewise.wire.prompts import (
    MAX_TOKENS,
    begun_by,
    chat_prompt,
    checked_number,
    text_prompt,
)

MAX_TEXT_LOGPROBS = 5
_DEFAULT_TEXT_TOKENS = 16  # the protocol's


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is streamed.

    Attributes:
        include_usage: Whether a last chunk counts the tokens.
    """

    include_usage: bool | None = None


class _Refused(SamplingFields, frozen=True, kw_only=True, omit_defaults=True):
    """What would change the answer, in OpenAI's words and then in vLLM's; `NEUTRAL` says what each may hold.

    A new word of another server goes here where an answer without it would be another one.
    """

    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    echo: bool | None = None
    best_of: int | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    use_beam_search: bool | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Any] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    allowed_token_ids: list[Any] | None = None
    bad_words: list[Any] | None = None
    logits_processors: list[Any] | None = None
    truncate_prompt_tokens: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structural_tag: Any = None


class _Fields(_Refused, frozen=True, kw_only=True, omit_defaults=True):
    """What both bodies have beside their prompt.

    Attributes:
        model: Name of the model.
        response_format: What the answer has to be.
        stream: Whether the answer comes in pieces.
        stream_options: How.
        budget_ms: As in `contracts.Request`.
        mode: As in `contracts.Request`.
        profile: As in `contracts.Request`.
        data_policy: As in `contracts.Request`.
        session: As in `contracts.Request`; what was computed for its earlier turns is used again.
    """

    model: str
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    budget_ms: float | None = None
    mode: str | None = None
    profile: str | None = None
    data_policy: str | None = None
    session: str | None = None


class ChatBody(_Fields, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `POST /v1/chat/completions`; fields that are not listed are ignored.

    Attributes:
        messages: The conversation, oldest first.
        tools: What may be called.
        tool_choice: Whether something is called, and what.
        begun: What the answer begins with already.
        max_completion_tokens: Another word for `max_tokens`.
        logprobs: Whether each token tells its log-probability.
        top_logprobs: How many of the likeliest tokens each tells beside its own.
        continue_final_message: Whether the last message, an assistant's, is the beginning of the answer.
        functions: Refused; `tools` took its place.
        function_call: Refused; `tool_choice` took its place.
        modalities: Only text.
        documents: Refused.
        chat_template: Refused; the model's own is used.
        chat_template_kwargs: Refused.
    """

    messages: list[ChatMessage]
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoice = None
    begun: str | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    continue_final_message: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    documents: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None


class CompletionBody(_Fields, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `POST /v1/completions`; fields that are not listed are ignored.

    Attributes:
        prompt: A text, or a list of one.
        logprobs: How many of the likeliest tokens each token tells beside its own; None tells no log-probabilities.
        suffix: Refused.
        prompt_embeds: Refused.
    """

    prompt: str | list[str]
    logprobs: int | None = None
    suffix: str | None = None
    prompt_embeds: Any = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a text, and how its answer is wanted.

    Attributes:
        request: The request.
        is_chat: Whether by the chat protocol.
        streams: Whether in pieces.
        tells_usage: Whether a stream ends with the count of its tokens.
        tells_logprobs: Whether with log-probabilities.
    """

    request: Request
    is_chat: bool
    streams: bool
    tells_usage: bool
    tells_logprobs: bool


Body = ChatBody | CompletionBody

_chat_decoder = msgspec.json.Decoder(ChatBody)
_text_decoder = msgspec.json.Decoder(CompletionBody)


def decode_chat(body: bytes) -> ChatBody:
    """Read the body of `POST /v1/chat/completions`.

    Raises:
        RequestError: It has another shape; names the field.
    """
    return decode_json(body, _chat_decoder, ChatBody.__struct_fields__)


def decode_completion(body: bytes) -> CompletionBody:
    """Read the body of `POST /v1/completions`.

    Raises:
        RequestError: It has another shape; names the field.
    """
    return decode_json(body, _text_decoder, CompletionBody.__struct_fields__)


def call_of(
    sent: Body,
    headers: Mapping[bytes, bytes],
    *,
    tenant: str,
    new_id: Callable[[], str],
    max_budget_ms: float,
    arrived_s: float | None = None,
) -> Call:
    """What a body asks for.

    Args:
        sent: The body.
        headers: The request's, by lower-case name.
        tenant: Whose it is.
        new_id: Makes the id.
        max_budget_ms: The largest budget taken, in milliseconds.
        arrived_s: When its head was here, in monotonic seconds.

    Raises:
        RequestError: A field holds what it may not, or asks for what nothing here does; names it.
        MissingExtraError: There are schemas, and what reads them is not installed.
    """
    _check_refused(sent)
    if sent.stream_options is not None and not sent.stream:
        raise RequestError("stream_options", "stream_options: nothing is streamed.", "Leave it out, or send stream.")
    prompt, tells_logprobs = _chat(sent) if isinstance(sent, ChatBody) else _text(sent)
    if tells_logprobs:
        sampling = msgspec.structs.replace(prompt.sampling, logprobs=True)
        prompt = msgspec.structs.replace(prompt, sampling=sampling)
    session, field = openai.given(sent.session, "session", headers)
    request = Request(
        id=new_id(),
        inputs=prompt,
        tenant=tenant,
        task=openai.GENERATION_TASK,
        session=None if session is None else checked_id(session, field),
        arrived_s=arrived_s,
        **openai.flow_options(
            headers,
            max_budget_ms,
            budget_ms=sent.budget_ms,
            mode=sent.mode,
            profile=sent.profile,
            data_policy=sent.data_policy,
        ),
    )
    return Call(
        request=request,
        is_chat=isinstance(sent, ChatBody),
        streams=bool(sent.stream),
        tells_usage=sent.stream_options is not None and bool(sent.stream_options.include_usage),
        tells_logprobs=tells_logprobs,
    )


NEUTRAL: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": ([], ["text"]),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
    "truncate_prompt_tokens": (),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structural_tag": (),
    "documents": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "prompt_embeds": (),
}
"""What the fields may hold that would otherwise ask for what nothing here does; each may also be null."""


def _check_refused(sent: Body) -> None:
    for field, neutral in NEUTRAL.items():
        value = getattr(sent, field, None)
        if value is not None and value not in neutral:
            problem = f"{field}: {shown(value)} is not supported."
            raise RequestError(field, problem, "Leave it out.", code="unsupported_value")


def _chat(sent: ChatBody) -> tuple[Prompt, bool]:
    """The prompt, and whether log-probabilities are wanted."""
    tells_logprobs = bool(sent.logprobs)
    if sent.top_logprobs and not tells_logprobs:
        raise RequestError("top_logprobs", "top_logprobs: logprobs is not true.", "Send logprobs too, or leave it out.")
    top_logprobs = checked_number(sent.top_logprobs, "top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    messages: Sequence[ChatMessage] = sent.messages
    begun = sent.begun
    if sent.continue_final_message:
        if sent.begun:
            raise RequestError("begun", "begun: the last message begins the answer already.", "Send one of them.")
        messages, begun = begun_by(messages)
    prompt = chat_prompt(
        _one_limit(sent),
        messages,
        tools=sent.tools,
        tool_choice=sent.tool_choice,
        response_format=sent.response_format,
        begun=begun,
        top_logprobs=top_logprobs,
    )
    return prompt, tells_logprobs


def _one_limit(sent: ChatBody) -> ChatBody:
    """The body with its limit of tokens under one name."""
    if sent.max_completion_tokens is None:
        return sent
    if sent.max_tokens not in (None, sent.max_completion_tokens):
        field = "max_completion_tokens"
        raise RequestError(field, f"{field}: max_tokens says something else.", "Send one of them.")
    limit = checked_number(sent.max_completion_tokens, "max_completion_tokens", 1, MAX_TOKENS)
    return msgspec.structs.replace(sent, max_tokens=limit)


def _text(sent: CompletionBody) -> tuple[Prompt, bool]:
    texts = [sent.prompt] if isinstance(sent.prompt, str) else sent.prompt
    if len(texts) != 1:
        raise RequestError("prompt", f"prompt: {len(texts)} texts.", "Send one text in one request.")
    if sent.max_tokens is None:
        sent = msgspec.structs.replace(sent, max_tokens=_DEFAULT_TEXT_TOKENS)
    top_logprobs = checked_number(sent.logprobs, "logprobs", 0, MAX_TEXT_LOGPROBS) or 0
    prompt = text_prompt(sent, texts[0], response_format=sent.response_format, top_logprobs=top_logprobs)
    return prompt, sent.logprobs is not None
