"""The fields of a prompt in JSON, as OpenAI's chat protocol writes them: their shape and nothing else.

What they may hold is `prompts`' business.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec


class TextPart(msgspec.Struct, frozen=True):
    """A part of a message; the only kind that is read here."""

    type: Literal["text"]
    text: str


class CalledFunction(msgspec.Struct, frozen=True):
    """The tool that an assistant called; `arguments` is a JSON object as text."""

    name: str
    arguments: str = ""


class CallBody(msgspec.Struct, frozen=True):
    """One call in an assistant's message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message; other fields are ignored, so that an answer's message can be sent back as it came.

    Attributes:
        role: Who says it; "developer" is another word for "system".
        content: Its text, whole or in parts; may be left out where an assistant calls tools.
        tool_calls: The calls of an assistant.
        tool_call_id: Of a tool's message, the call that it answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None


class FunctionBody(msgspec.Struct, frozen=True, kw_only=True):
    """A tool; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that may be called."""

    type: Literal["function"] = "function"
    function: FunctionBody


class FunctionName(msgspec.Struct, frozen=True):
    """The name of a tool."""

    name: str


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    """The tool that has to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


ToolChoice: TypeAlias = Literal["auto", "none", "required"] | NamedTool | None


class JsonSchemaBody(msgspec.Struct, frozen=True, kw_only=True):
    """The schema of an answer; its name is not looked at."""

    name: str = ""
    schema: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer has to be: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen, and where an answer ends; None is the default of `dialogue.Sampling`, which is greedy.

    Attributes:
        max_tokens: As in `dialogue.Sampling`.
        temperature: As in `dialogue.Sampling`.
        top_p: As in `dialogue.Sampling`.
        top_k: As in `dialogue.Sampling`; -1 sets no limit either.
        seed: As in `dialogue.Sampling`.
        stop: A text that ends the answer, or several.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
