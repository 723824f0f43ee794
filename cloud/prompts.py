"""Prompts as the tokens that a language model of a checkpoint reads.

Owns the checkpoint's chat template, and every refusal that needs the tokenizer. What makes no sense whatever the model
is `edge.prompts`' to refuse, what an answer has to keep to `edge.constrained`'s to say; tokens are chosen elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from jinja2.exceptions import TemplateError

from edgewise.cloud.causal import CausalFacts
from edgewise.dialogue import AUTO, NO_TOOL, Message, Prompt, Tool
from edgewise.edge.constrained import Constraint, Grammars, grammar_of
from edgewise.edge.prompts import check
from edgewise.edge.text import first_ids
from edgewise.errors import PromptTooLongError, RequestError

_PROBE = Tool(name="edgewise_probe", description="edgewise_probe")


@dataclass(frozen=True)
class Reading:
    """A prompt, read; for one answer.

    Attributes:
        prompt: The prompt.
        ids: Its tokens, what the answer begins with included.
        left: Tokens that the answer may have.
        constraint: What the answer has to keep to, or None.
    """

    prompt: Prompt
    ids: list[int]
    left: int
    constraint: Constraint | None = None

    @property
    def calls(self) -> bool:
        """Whether calls of tools are looked for in the answer."""
        return bool(self.prompt.tools) and self.prompt.tool_choice != NO_TOOL


class PromptReader:
    """Reads prompts; for one thread at a time.

    Args:
        tokenizer: The checkpoint's, of transformers.
        facts: What the model can be asked.
        context: Tokens of prompt and answer together.
        name: The model's name, for refusals.
    """

    def __init__(self, tokenizer: Any, facts: CausalFacts, *, context: int, name: str) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._name = name
        self._chats = facts.chats
        self._knows_tools = facts.chats and self._mentions_tools()
        source = tokenizer.backend_tokenizer.to_str().encode()
        self._grammars = Grammars(source, len(tokenizer), sorted(facts.ends))

    def read(self, prompt: Prompt) -> Reading:
        """The tokens of a prompt.

        Raises:
            InputError: A field of it is absurd, or the chat template refuses it.
            PromptTooLongError: It leaves no room for an answer.
            MissingExtraError: It asks for JSON, and llguidance is not installed.
        """
        check(prompt)
        self._check_tools(prompt)
        text = prompt.text if prompt.text is not None else self._rendered(prompt)
        # The template writes the special tokens of a conversation itself.
        ids = first_ids(
            self._tokenizer.backend_tokenizer, text + prompt.begun, self._context, special=prompt.text is not None
        )
        left = self._left(len(ids), prompt.sampling.max_tokens)
        grammar = grammar_of(prompt)
        constraint = None if grammar is None else self._grammars.constraint(grammar, prompt.begun)
        return Reading(prompt, ids, left, constraint)

    def _left(self, tokens: int, wanted: int | None) -> int:
        if not tokens:
            raise RequestError("prompt", "prompt: it has no token to continue.", "Send some text.")
        left = self._context - tokens
        if left < 1:
            raise PromptTooLongError(
                f"The prompt has {tokens} tokens or more, and {self._name} reads {self._context} with its answer.",
                "Shorten the prompt, or leave out the oldest messages.",
            )
        return left if wanted is None else min(left, wanted)

    def _check_tools(self, prompt: Prompt) -> None:
        if prompt.tools and prompt.text is not None:
            raise RequestError("tools", "tools: a text to continue calls none.", "Send messages.")
        # As at the edge: a call that is forced is written by its schema, whatever the template says of tools.
        if prompt.tools and prompt.tool_choice == AUTO and not self._knows_tools:
            raise RequestError(
                "tools",
                f"tools: the chat template of {self._name} has no place for tools.",
                'Leave them out, or send tool_choice "required" or the name of one.',
            )

    def _rendered(self, prompt: Prompt) -> str:
        if not self._chats:
            raise RequestError(
                "messages", f"messages: {self._name} has no chat template.", "Send a text to /v1/completions."
            )
        are_told = prompt.tool_choice != NO_TOOL and self._knows_tools
        tools = [_tool(tool) for tool in prompt.tools] if are_told else []
        try:
            return self._template([_message(message) for message in prompt.messages], tools)
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # what templates are known to raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise RequestError(
                "messages",
                f"messages: the chat template of {self._name} refuses them: {reason}",
                "Send roles in the order that the model was trained with.",
            ) from error

    def _template(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        given = {"tools": tools or None, "add_generation_prompt": True, "tokenize": False}
        return str(self._tokenizer.apply_chat_template(messages, **given))

    def _mentions_tools(self) -> bool:
        """Whether the chat template writes tools down; one that does not would drop them silently."""
        try:
            return _PROBE.name in self._template([{"role": "user", "content": "a"}], [_tool(_PROBE)])
        except (TemplateError, TypeError, ValueError, KeyError):
            return False


def _message(message: Message) -> dict[str, Any]:
    """A message as chat templates know them."""
    found: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _json(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": _json(tool.parameters)}
    return {"type": "function", "function": function}


def _json(text: str) -> Any:
    """What a text holds as JSON, or itself: what a model wrote badly stays as it wrote it."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return text
