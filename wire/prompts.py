"""From the fields of a prompt in JSON to a `Prompt`: messages, tools, and how tokens are chosen.

Owns what those fields may hold; does no I/O. By which route they came, and what else stands beside them, is
`completions`' and `stream_messages`' business. Whether a model's template takes the order of the roles, and its context
the length, its own service says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from edgewise.dialogue import (
    AUTO,
    MAX_STOPS,
    NO_TOOL,
    REQUIRED,
    Message,
    Prompt,
    Role,
    Sampling,
    Tool,
    ToolCall,
    is_object,
)
from edgewise.errors import RequestError
from edgewise.wire.parsing import shown
from edgewise.wire.prompt_messages import (
    CallBody,
    ChatMessage,
    FunctionBody,
    NamedTool,
    ResponseFormat,
    SamplingFields,
    TextPart,
    ToolBody,
    ToolChoice,
)
from edgewise.wire.schemas import SchemaReader

N = TypeVar("N", int, float)

MAX_MESSAGES = 1024
MAX_CHARACTERS = 1_000_000
"""Of all texts of a prompt together."""

MAX_TOOLS = 128
MAX_TOKENS = 1_000_000
MAX_TEMPERATURE = 2.0
MAX_STOP_CHARACTERS = 256

TOOL_NAME = "[A-Za-z0-9_-]{1,64}"

_TOOL_NAME = re.compile(TOOL_NAME, re.ASCII)
_MAX_SEED = 2**63 - 1


def chat_prompt(
    sent: SamplingFields,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[ToolBody] | None = None,
    tool_choice: ToolChoice = None,
    response_format: ResponseFormat | None = None,
    begun: str | None = None,
    top_logprobs: int = 0,
) -> Prompt:
    """The prompt of a conversation.

    Args:
        sent: How tokens are chosen.
        messages: The conversation.
        tools: What may be called.
        tool_choice: Whether something is called, and what.
        response_format: What the answer has to be.
        begun: What the answer begins with already.
        top_logprobs: How many likely tokens are told in each place.

    Raises:
        RequestError: A field holds what it may not; names it.
        MissingExtraError: There are schemas, and what reads them is not installed.
    """
    _check_sizes(messages, begun or "")
    schemas = SchemaReader()
    known = _tools(tools or (), schemas)
    return Prompt(
        messages=_conversation(messages),
        tools=known,
        tool_choice=_tool_choice(tool_choice, known),
        begun=begun or "",
        sampling=_sampling(sent, top_logprobs, _schema_of(response_format, schemas)),
    )


def text_prompt(
    sent: SamplingFields, text: str, *, response_format: ResponseFormat | None = None, top_logprobs: int = 0
) -> Prompt:
    """The prompt of a text that is continued.

    Raises:
        RequestError: A field holds what it may not; names it.
    """
    if not text:
        raise RequestError("prompt", "prompt: empty.", "Send a text of one character or more.")
    if len(text) > MAX_CHARACTERS:
        raise _too_long("prompt", len(text))
    schema = _schema_of(response_format, SchemaReader())
    return Prompt(text=text, sampling=_sampling(sent, top_logprobs, schema))


# Messages


def _check_sizes(messages: Sequence[ChatMessage], begun: str) -> None:
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise RequestError("messages", f"messages: {len(messages)} of them.", f"Send 1 to {MAX_MESSAGES} messages.")
    sizes = (len(_text(message.content)) + _size_of_calls(message) for message in messages)
    characters = sum(sizes) + len(begun)
    if characters > MAX_CHARACTERS:
        raise _too_long("messages", characters)


def _size_of_calls(message: ChatMessage) -> int:
    return sum(len(call.function.arguments) for call in message.tool_calls or ())


def _too_long(field: str, characters: int) -> RequestError:
    problem = f"{field}: {characters} characters."
    return RequestError(
        field, problem, f"Send {MAX_CHARACTERS} at most; a model reads less.", code="context_length_exceeded"
    )


def _text(content: str | list[TextPart] | None) -> str:
    return "".join(part.text for part in content) if isinstance(content, list) else content or ""


def _conversation(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The messages, with every call of a tool answered before somebody else speaks.

    Raises:
        RequestError: A message lacks what its role needs, or has what it cannot have, or answers no call.
    """
    found: list[Message] = []
    pending: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            _check_result(message, pending, where)
            pending.discard(message.tool_call_id or "")
        elif pending:
            raise _unanswered(pending, where)
        pending |= {call.id for call in message.tool_calls or ()}
        found.append(_message(message, where))
    if pending:
        raise _unanswered(pending, f"messages[{len(messages) - 1}]")
    return tuple(found)


def _check_result(message: ChatMessage, pending: set[str], where: str) -> None:
    if message.tool_call_id is None:
        raise RequestError(f"{where}.tool_call_id", f"{where}.tool_call_id: missing.", "Name the call it answers.")
    if message.tool_call_id not in pending:
        raise RequestError(
            f"{where}.tool_call_id",
            f"{where}.tool_call_id: {shown(message.tool_call_id)} is no call that waits for its result here.",
            "Put a tool's message behind the assistant's that called it, once for each call.",
        )


def _unanswered(pending: set[str], where: str) -> RequestError:
    return RequestError(
        where,
        f"{where}: the call {shown(min(pending))} has no result.",
        "Send one message of role tool for each call, right behind the calls.",
    )


def _message(message: ChatMessage, where: str) -> Message:
    if message.tool_calls and message.role != "assistant":
        raise RequestError(
            f"{where}.tool_calls", f"{where}.tool_calls: only an assistant calls tools.", "Leave it out."
        )
    if message.tool_call_id is not None and message.role != "tool":
        raise RequestError(f"{where}.tool_call_id", f"{where}.tool_call_id: no tool's message.", "Leave it out.")
    if message.content is None and not message.tool_calls:
        raise RequestError(f"{where}.content", f"{where}.content: missing.", "Send a text.")
    calls = tuple(_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(message.tool_calls or ()))
    if len({call.id for call in calls}) < len(calls):
        raise RequestError(
            f"{where}.tool_calls", f"{where}.tool_calls: an id stands there twice.", "Give each its own."
        )
    return Message(
        role=Role.SYSTEM if message.role == "developer" else Role(message.role),
        content=_text(message.content),
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
    )


def _call(call: CallBody, where: str) -> ToolCall:
    arguments = call.function.arguments or "{}"  # some models write nothing where there is nothing to say
    if not is_object(arguments):
        field = f"{where}.function.arguments"
        raise RequestError(field, f"{field}: no JSON object.", "Send the arguments as the text of a JSON object.")
    return ToolCall(id=call.id, name=call.function.name, arguments=arguments)


def begun_by(messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], str]:
    """Messages whose last one, an assistant's, is to be continued: those before it, and its text.

    Raises:
        RequestError: The last is none that can be continued, or the only one.
    """
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or last.tool_calls or last.content is None or len(messages) == 1:
        raise RequestError(
            "continue_final_message",
            "continue_final_message: the last message is no assistant's text behind another message.",
            "Put what the answer begins with into a last message of role assistant.",
        )
    return messages[:-1], _text(last.content)


# Tools


def _tools(sent: Sequence[ToolBody], schemas: SchemaReader) -> tuple[Tool, ...]:
    if len(sent) > MAX_TOOLS:
        raise RequestError("tools", f"tools: {len(sent)} of them.", f"Send {MAX_TOOLS} at most.", code="invalid_tool")
    found: dict[str, Tool] = {}
    for index, tool in enumerate(sent):
        one = _tool(tool.function, f"tools[{index}].function", schemas)
        if one.name in found:
            field = f"tools[{index}].function.name"
            raise RequestError(
                field, f"{field}: {one.name} stands there twice.", "Name each once.", code="invalid_tool"
            )
        found[one.name] = one
    return tuple(found.values())


def _tool(function: FunctionBody, where: str, schemas: SchemaReader) -> Tool:
    name = function.name
    if _TOOL_NAME.fullmatch(name) is None or name in (AUTO, NO_TOOL, REQUIRED):
        raise RequestError(
            f"{where}.name",
            f"{where}.name: {shown(name)} cannot name a tool.",
            "Send 1 to 64 characters of A-Z, a-z, 0-9, '_' and '-', and no word of tool_choice.",
            code="invalid_tool",
        )
    if len(function.description or "") > MAX_CHARACTERS:
        raise RequestError(
            f"{where}.description", f"{where}.description: too long.", "Be brief.", code="context_length_exceeded"
        )
    parameters = function.parameters or {}
    return Tool(
        name=name,
        description=function.description or "",
        parameters=schemas.read(parameters, f"{where}.parameters") if parameters else "{}",
    )


def _tool_choice(choice: ToolChoice, tools: Sequence[Tool]) -> str:
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in {tool.name for tool in tools}:
            raise RequestError(
                "tool_choice",
                f"tool_choice: {shown(name)} is none of the tools.",
                f"The tools sent: {', '.join(tool.name for tool in tools) or 'none'}.",
                code="invalid_tool",
            )
        return name
    if choice == REQUIRED and not tools:
        raise RequestError("tool_choice", "tool_choice: required, and no tools.", "Send tools.", code="invalid_tool")
    return choice or AUTO


# Sampling


def _schema_of(form: ResponseFormat | None, schemas: SchemaReader) -> str | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return "{}"
    field = "response_format.json_schema.schema"
    if form.json_schema is None or form.json_schema.schema is None:
        raise RequestError(field, f"{field}: missing.", "Send the schema.", code="invalid_json_schema")
    return schemas.read(form.json_schema.schema, field)


def _sampling(sent: SamplingFields, top_logprobs: int, schema: str | None) -> Sampling:
    top_p = 1.0 if sent.top_p is None else sent.top_p
    if not 0 < top_p <= 1:
        raise RequestError("top_p", f"top_p: {top_p:g} is out of range.", "Send a number above 0 and at most 1.")
    return Sampling(
        max_tokens=checked_number(sent.max_tokens, "max_tokens", 1, MAX_TOKENS),
        temperature=checked_number(sent.temperature, "temperature", 0, MAX_TEMPERATURE) or 0.0,
        top_p=top_p,
        top_k=max(0, checked_number(sent.top_k, "top_k", -1, MAX_TOKENS) or 0),
        seed=checked_number(sent.seed, "seed", -_MAX_SEED - 1, _MAX_SEED),
        stop=_stops(sent.stop),
        schema=schema,
        top_logprobs=top_logprobs,
    )


def checked_number(value: N | None, field: str, low: float, high: float) -> N | None:
    """Return a number if it lies between two others, which it may equal; None stays None.

    Raises:
        RequestError: It does not.
    """
    if value is not None and not low <= value <= high:  # NaN is not
        raise RequestError(field, f"{field}: {shown(value)} is out of range.", f"Send {_plain(low)} to {_plain(high)}.")
    return value


def _plain(number: float) -> str:
    """A whole number in digits, however large."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _stops(sent: str | list[str] | None) -> tuple[str, ...]:
    stops = [sent] if isinstance(sent, str) else sent or []
    if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise RequestError(
            "stop",
            "stop: too many, too long, or empty.",
            f"Send {MAX_STOPS} texts at most, of 1 to {MAX_STOP_CHARACTERS} characters.",
        )
    return tuple(stops)
