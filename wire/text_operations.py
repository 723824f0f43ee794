"""The routes of models that write: for the table of `operations`, and for `openapi` what types do not tell of them.

Apart from the others, so that a door without such a model reads none of their types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from edgewise.dialogue import MAX_STOPS, MAX_TOP_LOGPROBS
from edgewise.wire import openai, prompts
from edgewise.wire.completion_messages import ChatReply, TextReply
from edgewise.wire.completions import MAX_TEXT_LOGPROBS, NEUTRAL, ChatBody, CompletionBody
from edgewise.wire.operations import (
    ASKED,
    EVENTS,
    FACTS,
    JSON,
    LEAVES_THE_PROCESS,
    OURS,
    TRACE,
    Operation,
    Parameter,
    Reply,
)
from edgewise.wire.prompt_messages import FunctionBody

Json: TypeAlias = dict[str, Any]

_STREAM: Mapping[str, Any] = {
    "type": "object",
    "description": "One event; `data` is JSON, a chunk or an error, or the word [DONE].",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_PARAMETERS = (
    *OURS,
    Parameter("x-edgewise-session", "header", "session", "As `session` in the body, which goes before it."),
)

TEXT_OPERATIONS = (
    Operation(
        "post",
        openai.CHAT,
        "chatCompletion",
        "The next message of a conversation, in OpenAI's protocol; in pieces where the body has stream.",
        {200: Reply("The message.", {JSON: ChatReply, EVENTS: _STREAM}, (*FACTS, *TRACE))},
        faults=ASKED,
        error=openai.OpenAIError,
        parameters=_PARAMETERS,
        bodies={JSON: ChatBody},
    ),
    Operation(
        "post",
        openai.COMPLETIONS,
        "completion",
        "The continuation of a text, in OpenAI's protocol; in pieces where the body has stream.",
        {200: Reply("The continuation.", {JSON: TextReply, EVENTS: _STREAM}, (*FACTS, *TRACE))},
        faults=ASKED,
        error=openai.OpenAIError,
        parameters=_PARAMETERS,
        bodies={JSON: CompletionBody},
    ),
)


def examples(model: str) -> Mapping[type, Json]:
    """Bodies that a model which writes answers."""
    return {
        ChatBody: {"model": model, "messages": [{"role": "user", "content": "Which prices rose?"}], "max_tokens": 16},
        CompletionBody: {"model": model, "prompt": "Grain exports", "max_tokens": 16},
    }


def narrow(components: Json, words: Mapping[str, Json], models: list[str]) -> None:
    """Say in the schemas what types alone do not tell of the two bodies.

    Args:
        components: The schemas by name, which are changed.
        words: Schemas of the fields of ours.
        models: Names of the models that write.
    """
    for body in (ChatBody, CompletionBody):
        properties = components[body.__name__]["properties"]
        properties |= {name: _or_null(schema) for name, schema in _LIMITS.items() if name in properties}
        properties |= {name: _one_of(values) for name, values in NEUTRAL.items() if name in properties}
        properties |= {name: _or_null(words[name]) for name in _OF_OURS}
        properties["model"] = {"type": "string", "enum": models}
        components[body.__name__]["not"] = LEAVES_THE_PROCESS
    chat = components[ChatBody.__name__]["properties"]
    chat["messages"] |= {"minItems": 1, "maxItems": prompts.MAX_MESSAGES}
    chat["top_logprobs"] = _or_null(_whole(0, MAX_TOP_LOGPROBS))
    text = components[CompletionBody.__name__]["properties"]
    text["logprobs"] = _or_null(_whole(0, MAX_TEXT_LOGPROBS))
    text["prompt"] = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1}]}
    components[FunctionBody.__name__]["properties"]["name"]["pattern"] = f"^{prompts.TOOL_NAME}$"


def _whole(low: int, high: int) -> Json:
    return {"type": "integer", "minimum": low, "maximum": high}


_TEXT: Json = {"type": "string", "minLength": 1, "maxLength": prompts.MAX_CHARACTERS}
_STOP: Json = {"type": "string", "minLength": 1, "maxLength": prompts.MAX_STOP_CHARACTERS}
_OF_OURS = ("budget_ms", "mode", "profile", "data_policy", "session")
_LIMITS: Mapping[str, Json] = {
    "max_tokens": _whole(1, prompts.MAX_TOKENS),
    "max_completion_tokens": _whole(1, prompts.MAX_TOKENS),
    "temperature": {"type": "number", "minimum": 0, "maximum": prompts.MAX_TEMPERATURE},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "top_k": _whole(-1, prompts.MAX_TOKENS),
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]},
}


def _one_of(values: Sequence[Any]) -> Json:
    return {"enum": [*values, None], "default": None}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}], "default": None}
