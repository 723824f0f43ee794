"""From a conversation to the text that a language model continues: the chat template of its checkpoint.

Owns the Jinja environment that transformers renders such templates in, rebuilt without transformers: the text is the
same, letter for letter. A template comes with a bundle, so it is kept in a `sandbox`.
jinja2 (extra "generate") is imported when a template is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from edgewise.dialogue import NO_TOOL, Message, Prompt, Role, Tool
from edgewise.edge.costs import LIMIT, TooMuchError
from edgewise.errors import BundleError, InputError, MissingExtraError

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULT, _WITH_TOOLS = "default", "tool_use"
_PROBE = Tool(name="edgewise_probe", description="edgewise_probe")


class ChatTemplate:
    """The chat template of a checkpoint.

    Args:
        files: The tokenizer's files by name.
        now: The local time, for templates that tell the model what day it is.

    Raises:
        InputError: There is none.
        BundleError: It is no template.
        MissingExtraError: jinja2 is not installed.
    """

    def __init__(self, files: Mapping[str, bytes], now: Callable[[], datetime] = datetime.now) -> None:
        self._tokens, sources = _read(files)
        environment = _environment(now)
        self._work = environment.work
        from jinja2.exceptions import TemplateError

        self._refusal = TemplateError
        try:
            self._templates = {name: environment.from_string(source) for name, source in sources.items()}
        except (TemplateError, TooMuchError, RecursionError) as e:
            raise BundleError(f"The bundle's chat template cannot be read: {e}.", "Do not use this bundle.") from e

    @cached_property
    def takes_tools(self) -> bool:
        """Whether it writes tools down; one that does not would drop them silently."""
        question = Message(role=Role.USER, content="a")
        try:
            return _PROBE.name in self.render(Prompt(messages=(question,), tools=(_PROBE,)))
        except InputError:
            return False

    def render(self, prompt: Prompt) -> str:
        """The text of a prompt's messages, up to where the model's answer begins.

        Raises:
            InputError: The template refuses the messages, or cannot read them.
        """
        tools = [_tool(tool) for tool in prompt.tools] if prompt.tool_choice != NO_TOOL else []
        name = _WITH_TOOLS if tools and _WITH_TOOLS in self._templates else _DEFAULT
        template = self._templates.get(name)
        if template is None:
            raise InputError("The bundle has no chat template for messages.", "Give a text to continue.")
        values = {
            **self._tokens,
            "messages": [_message(message) for message in prompt.messages],
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": True,
        }
        self._work.begin()
        try:
            return self._joined(template.generate(values))
        except self._refusal as e:
            raise InputError(f"messages: the model's chat template refuses them: {e}.", "Change their order.") from e
        except InputError:
            raise
        except Exception as e:  # a template may do to its values whatever Python can
            problem = f"messages: the model's chat template cannot read them: {type(e).__name__}: {e}."
            raise InputError(problem, "Use plain messages, or another model.") from e

    def _joined(self, pieces: Iterator[str]) -> str:
        parts, size = [], 0
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size > LIMIT:
                raise InputError(f"messages: they make more than {LIMIT:,} characters.", "Give shorter ones.")
        return "".join(parts)


def _environment(now: Callable[[], datetime]) -> Any:
    """As transformers 4.57 builds it, in `utils/chat_template_utils.py`."""
    try:
        import jinja2.ext
        from jinja2 import nodes
        from jinja2.exceptions import TemplateError

        from edgewise.edge.sandbox import Sandbox
    except ImportError as e:
        raise MissingExtraError("A chat template", "generate") from e

    class Generation(jinja2.ext.Extension):
        """Marks what an assistant said; it is rendered like everything else."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)

        def said(self, caller: Callable[[], str]) -> str:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols], autoescape=False
    )
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment


def _read(files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, str]]:
    """The special tokens that a template may name, and the templates by name."""
    config = _object(files, "tokenizer_config.json")
    special = {**_object(files, "special_tokens_map.json"), **config}
    tokens: dict[str, Any] = {name: _text(special[name]) for name in _TOKENS if special.get(name) is not None}
    more = special.get("additional_special_tokens") or []
    if more:
        tokens["additional_special_tokens"] = [_text(token) for token in more]
    source = files["chat_template.jinja"].decode() if "chat_template.jinja" in files else config.get("chat_template")
    if isinstance(source, str):
        return tokens, {_DEFAULT: source}
    named = {str(entry["name"]): str(entry["template"]) for entry in source or () if isinstance(entry, dict)}
    if not named:
        raise InputError(
            "The model has no chat template, so it takes no messages.", "Give a text to continue, or another model."
        )
    return tokens, named


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return msgspec.json.decode(files[name], type=dict[str, Any]) if name in files else {}


def _text(token: Any) -> str:
    """A token as these files write it: a text, or an object around one."""
    return str(token["content"] if isinstance(token, dict) else token)


def _message(message: Message) -> dict[str, Any]:
    """A message as templates know it."""
    found: dict[str, Any] = {"role": str(message.role), "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _parsed(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _tool(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    function = {"name": tool.name, **described, "parameters": _parsed(tool.parameters)}
    return {"type": "function", "function": function}


def _parsed(text: str) -> Any:
    """JSON as its value, since a template writes it as JSON itself; what is none stays a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
