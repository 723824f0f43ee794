"""Bedrock's Converse as values: what of a text or a prompt it has a place for, and what its answers mean. Pure.

Converse has no place for a seed, and tells no log-probabilities: both are left out. What would change an answer unseen
is refused instead: `top_k`, a text without a chat, tools that must not be called though the conversation called some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from edgewise.cloud.clients import prompting
from edgewise.cloud.clients.prompting import json_begun, json_object
from edgewise.cloud.clients.toolcalls import ToolCalls
from edgewise.dialogue import AUTO, NO_TOOL, REQUIRED, Finish, Message, Prompt, Role, Sampling, Tool, ToolCall, Written
from edgewise.errors import CloudRefusedError, CloudResponseError

_KEPT_BACK = ("guardrail_intervened", "content_filtered")
_ENDINGS = {
    "end_turn": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "max_tokens": Finish.LENGTH,
}
_CALLED = "tool_use"


class Said(NamedTuple):
    """What a model wrote, how that came about, and the model that was invoked where the reply says so."""

    text: str
    written: Written
    invoked: str | None


def text_parameters(prompt: prompting.Prompt, text: str) -> dict[str, Any]:
    """Parameters of Converse, without the model, that ask about one text."""
    system = {"system": [{"text": prompt.system}]} if prompt.system else {}
    return {
        "messages": [{"role": "user", "content": [{"text": text}]}],
        "inferenceConfig": {"maxTokens": prompt.max_tokens, "temperature": 0.0},
        **system,
    }


def prompt_parameters(prompt: Prompt, max_tokens: int | None) -> dict[str, Any]:
    """Parameters of Converse, without the model, that ask for an answer to a prompt.

    Args:
        prompt: The prompt.
        max_tokens: Longest answer where the prompt sets none; None leaves it to the model.

    Raises:
        CloudRefusedError: Converse has no place for something that the prompt wants, or a JSON in it is no object.
    """
    if prompt.text is not None:
        raise CloudRefusedError("Converse continues no text without a chat.", "Send `messages`.")
    if prompt.begun and prompt.sampling.schema is not None:
        raise json_begun()
    first = next((at for at, said in enumerate(prompt.messages) if said.role != Role.SYSTEM), len(prompt.messages))
    system = [{"text": message.content} for message in prompt.messages[:first] if message.content]
    return {
        "messages": _turns(prompt.messages[first:], prompt.begun),
        "inferenceConfig": _inference(prompt.sampling, max_tokens),
        **({"system": system} if system else {}),
        **_tools(prompt),
        **_format(prompt.sampling.schema),
    }


def said_in(answer: Mapping[str, Any], *, tools: bool = False) -> Said:
    """Read a whole answer.

    Args:
        answer: What botocore made of it.
        tools: Whether it may call tools; calls are not read where it may not.

    Raises:
        CloudRefusedError: A guardrail or filter keeps it back.
        CloudResponseError: It did not end as an answer does.
    """
    blocks = ((answer.get("output") or {}).get("message") or {}).get("content") or []
    calls = ToolCalls()
    for number, block in enumerate(blocks if tools else ()):
        used = block.get("toolUse")
        if used:
            calls.add(number, used.get("toolUseId"), used.get("name"), _json(used.get("input")))
    written = _written(answer.get("stopReason"), calls.whole(), answer.get("usage") or {})
    return Said("".join(block.get("text", "") for block in blocks), written, _invoked(answer))


class ConverseStream:
    """An answer that comes in events.

    Args:
        tools: Whether it may call tools; calls are not read where it may not.
    """

    def __init__(self, *, tools: bool = False) -> None:
        self._tools = tools
        self._texts: list[str] = []
        self._calls = ToolCalls()
        self._ending: str | None = None
        self._invoked: str | None = None
        self._usage: Mapping[str, Any] = {}

    def add(self, event: Mapping[str, Any]) -> str:
        """Take one event; gives the text that it brings, or none."""
        metadata = event.get("metadata") or {}
        self._ending = (event.get("messageStop") or {}).get("stopReason", self._ending)
        self._invoked = _invoked(metadata) or self._invoked
        self._usage = metadata.get("usage") or self._usage
        begun, more = event.get("contentBlockStart") or {}, event.get("contentBlockDelta") or {}
        if self._tools:
            self._add_call(begun.get("contentBlockIndex"), (begun.get("start") or {}).get("toolUse"))
            self._add_call(more.get("contentBlockIndex"), (more.get("delta") or {}).get("toolUse"))
        text = str((more.get("delta") or {}).get("text") or "")
        self._texts.append(text)
        return text

    def whole(self) -> Said:
        """What was said, once the stream is over.

        Raises:
            CloudRefusedError: A guardrail or filter keeps it back.
            CloudResponseError: It did not end as an answer does.
        """
        written = _written(self._ending, self._calls.whole(), self._usage)
        return Said("".join(self._texts), written, self._invoked)

    def _add_call(self, index: int | None, used: Mapping[str, Any] | None) -> None:
        if used is not None:
            self._calls.add(index, used.get("toolUseId"), used.get("name"), used.get("input"))


def _turns(messages: tuple[Message, ...], begun: str) -> list[dict[str, Any]]:
    """Messages of user and assistant by turns: Converse wants the results of all calls in one turn of the user."""
    turns: list[dict[str, Any]] = []
    for message in (*messages, *((Message(role=Role.ASSISTANT, content=begun),) if begun else ())):
        if message.role == Role.SYSTEM:
            raise CloudRefusedError("Converse takes no system message behind others.", "Put it first.")
        role = "assistant" if message.role == Role.ASSISTANT else "user"
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        turns[-1]["content"] += _blocks(message)
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    text = [{"text": message.content}] if message.content else []
    if message.role == Role.TOOL:
        return [{"toolResult": {"toolUseId": message.tool_call_id or "", "content": text}}]
    return [*text, *({"toolUse": _use(call)} for call in message.tool_calls)]


def _use(call: ToolCall) -> dict[str, Any]:
    arguments = json_object(call.arguments, f"arguments of the call {call.id!r}")
    return {"toolUseId": call.id, "name": call.name, "input": arguments}


def _tools(prompt: Prompt) -> dict[str, Any]:
    if prompt.tool_choice == NO_TOOL:
        if any(message.tool_calls or message.role == Role.TOOL for message in prompt.messages):
            raise CloudRefusedError(
                'Converse has no tool_choice "none" for a conversation that called tools.', 'Leave it "auto".'
            )
        return {}
    if not prompt.tools:
        return {}
    choices: dict[str, dict[str, Any]] = {AUTO: {"auto": {}}, REQUIRED: {"any": {}}}
    choice = choices.get(prompt.tool_choice, {"tool": {"name": prompt.tool_choice}})
    return {"toolConfig": {"tools": [{"toolSpec": _spec(tool)} for tool in prompt.tools], "toolChoice": choice}}


def _spec(tool: Tool) -> dict[str, Any]:
    about = {"description": tool.description} if tool.description else {}
    schema = json_object(tool.parameters, f"parameters of the tool {tool.name!r}")
    return {"name": tool.name, **about, "inputSchema": {"json": schema or {"type": "object"}}}


def _inference(sampling: Sampling, max_tokens: int | None) -> dict[str, Any]:
    config: dict[str, Any] = {"temperature": 0.0 if sampling.is_greedy else sampling.temperature}
    if not sampling.is_greedy:
        if sampling.top_k:
            raise CloudRefusedError(f"`top_k` is {sampling.top_k}, and Converse knows none.", "Drop it; use `top_p`.")
        config["topP"] = sampling.top_p
    most = max_tokens if sampling.max_tokens is None else sampling.max_tokens
    if most is not None:
        config["maxTokens"] = most
    if sampling.stop:
        config["stopSequences"] = list(sampling.stop)
    return config


def _format(schema: str | None) -> dict[str, Any]:
    if schema is None:
        return {}
    parsed = json_object(schema, "schema of the answer") or {"type": "object"}
    structure = {"jsonSchema": {"name": "answer", "schema": _json(parsed)}}
    return {"outputConfig": {"textFormat": {"type": "json_schema", "structure": structure}}}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode() if value is not None else ""


def _written(ending: str | None, calls: tuple[ToolCall, ...], usage: Mapping[str, Any]) -> Written:
    return Written(
        finish=_finish(ending, calls),
        prompt_tokens=int(usage.get("inputTokens") or 0),
        completion_tokens=int(usage.get("outputTokens") or 0),
        cached_tokens=int(usage.get("cacheReadInputTokens") or 0),
        tool_calls=calls,
    )


def _finish(ending: str | None, calls: tuple[ToolCall, ...]) -> Finish:
    if ending in _KEPT_BACK:
        raise CloudRefusedError(f"Bedrock keeps the answer back: {ending}.", "Change the item, or the guardrail.")
    if calls and ending == _CALLED:
        return Finish.TOOL_CALLS
    if ending not in _ENDINGS:
        raise CloudResponseError(
            f"Bedrock's answer ended with {ending!r}.", "Its endings: " + ", ".join(_ENDINGS) + "."
        )
    return _ENDINGS[ending]


def _invoked(answer: Mapping[str, Any]) -> str | None:
    model = ((answer.get("trace") or {}).get("promptRouter") or {}).get("invokedModelId")
    return str(model) if model else None
