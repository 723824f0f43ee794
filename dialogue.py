"""The values of generated text: what a language model is asked, the pieces that it writes, and what came of it.

Owns shapes and meanings only, and by which names OpenAI's protocol knows them. Everything here is frozen, and equal
values mean the same question. JSON inside of it (schemas, arguments of tools) is kept as its text.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, NoReturn

import msgspec

from edgewise.errors import BeyondModelError, InputError, RequestError


class Role(StrEnum):
    """Who says a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool that a model asks for.

    Attributes:
        id: Names the call in the message that brings its result.
        name: The tool.
        arguments: A JSON object, as text.
    """

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a conversation.

    Attributes:
        role: Who says it.
        content: Its text; empty where an assistant does nothing but call tools.
        tool_calls: The calls of an assistant.
        tool_call_id: Of a tool's message, the call that it answers.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tool that a model may call.

    Attributes:
        name: Its name.
        description: What it is for.
        parameters: JSON Schema of its arguments, as text.
    """

    name: str
    description: str = ""
    parameters: str = "{}"


AUTO, NO_TOOL, REQUIRED = "auto", "none", "required"
"""What `Prompt.tool_choice` may say beside the name of one tool."""


MAX_STOPS = 16
"""Texts that may end an answer, at most."""

MAX_TOP_LOGPROBS = 20
"""Likeliest tokens that a piece may tell, as in OpenAI's protocol: each costs a look into the tokenizer."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen, and where an answer ends.

    Attributes:
        max_tokens: Tokens of the answer at most; None: as many as the model's context leaves.
        temperature: 0 takes the likeliest token each time; certificates speak of nothing else.
        top_p: Draw among the likeliest tokens that hold this much probability together, in (0, 1].
        top_k: Draw among this many likeliest tokens; 0 sets no limit.
        seed: The same seed draws the same tokens on the same machine; None draws afresh.
        stop: Texts that end the answer and do not belong to it.
        schema: JSON Schema that the answer has to satisfy, as text; "{}" takes any JSON object; None asks for no JSON.
        top_logprobs: How many of the likeliest tokens each piece tells beside its own.
        logprobs: Whether each token is to be told with its log-probability: an answer that was kept has none.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: str | None = None
    top_logprobs: int = 0
    logprobs: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether the same prompt always gets the same answer."""
        return self.temperature == 0 or self.top_k == 1


class Prompt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a language model is asked: a conversation, or a text to continue.

    Attributes:
        messages: The conversation, oldest first; empty where `text` is given.
        text: A text to continue as it is, without a chat template; None where there are messages.
        tools: What the model may call.
        tool_choice: "auto", "none", "required", or the name of the tool that must be called.
        begun: What the answer begins with already: it is continued, and what is written comes after it.
        sampling: How tokens are chosen.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = AUTO
    begun: str = ""
    sampling: Sampling = Sampling()

    @property
    def is_continued(self) -> bool:
        """Whether the answer goes on from a text, so that a blank before its first word belongs to it."""
        return self.text is not None or bool(self.begun)


class Finish(StrEnum):
    """Why an answer ended; the words of OpenAI's protocol, and one of ours."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    FILTER = "content_filter"
    INTERRUPTED = "interrupted"
    """Whoever asked has heard enough."""


class TokenChoice(msgspec.Struct, frozen=True):
    """A token that could have stood in a place, and its natural log-probability under the model."""

    text: str
    logprob: float


class Piece(NamedTuple):
    """One generated token.

    Attributes:
        text: Its text; empty where it ends in the middle of a character, which the next piece then completes.
        token: Its id.
        logprob: Its natural log-probability under the model.
        margin: Of the first token of an answer, its probability minus that of the second likeliest; else None.
        top: The likeliest tokens in its place, as many as were asked for, the likeliest first.
    """

    text: str
    token: int
    logprob: float
    margin: float | None = None
    top: tuple[TokenChoice, ...] = ()


class Written(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an answer of a language model came about; its text is the answer's output.

    Attributes:
        finish: Why it ended.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the answer.
        cached_tokens: Tokens of the prompt that did not have to be computed again.
        tool_calls: The tools that it calls.
    """

    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()


def is_object(text: str) -> bool:
    """Whether a text is a JSON object, as the parameters of a tool and the arguments of a call have to be."""
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def refuse(error: InputError, prompt: Prompt) -> NoReturn:
    """Raise what a model has against a prompt, with the field that it names in the words of OpenAI's protocol.

    Raises:
        RequestError: The prompt cannot be answered; its field is the one that the problem begins with.
        InputError: The error itself, where there is a kind of its own.
    """
    if type(error) not in (InputError, BeyondModelError):
        raise error
    name = error.problem.partition(":")[0]
    field, code = ("messages" if prompt.text is None else "prompt"), "invalid_request"
    if name == "schema":
        field, code = "response_format", "invalid_json_schema"
    elif name in Prompt.__struct_fields__ or name in Sampling.__struct_fields__:
        field = name
    raise RequestError(field, error.problem, error.remedy, code=code) from error
