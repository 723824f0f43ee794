"""Answers that have to keep to a grammar: JSON by a schema, or the call of a tool.

Owns which tokens may come next. llguidance (extra "generate") does the parsing, with the checkpoint's own tokenizer;
onnxruntime-genai brings the same parser, but feeds it by its own tokenizer, and binds it to a sequence for good, which
cannot be kept for the next turn then.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.dialogue import AUTO, NO_TOOL, REQUIRED, Prompt
from edgewise.edge.multiples import are_few
from edgewise.edge.toolcalls import BEGIN, END
from edgewise.errors import BeyondModelError, InputError, MissingExtraError
from edgewise.schemas import moved

# Several times what schemas need that people write. The library's own let one take seconds and half a gigabyte.
_LIMITS: dict[str, Any] = {"initial_lexer_fuel": 250_000, "max_lexer_states": 50_000, "max_grammar_size": 50_000}

# JSON as most models were trained to write it. Blanks wherever JSON allows them let a small model write nothing else.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}


def grammar_of(prompt: Prompt) -> str | None:
    """What the answer to a prompt has to keep to, as a grammar in Lark's notation; None: nothing.

    Raises:
        InputError: A schema is no JSON Schema.
        BeyondModelError: Keeping to it would take too long.
    """
    calls = prompt.tools if prompt.tool_choice != NO_TOOL else ()
    must_call = bool(calls) and prompt.tool_choice != AUTO
    text = None if must_call else prompt.sampling.schema
    if text is None and not must_call:
        return None
    chosen = [tool for tool in calls if prompt.tool_choice in (AUTO, REQUIRED, tool.name)]
    parameters = [_schema(tool.parameters, f"tools: {tool.name}") for tool in chosen]
    answer = [] if text is None else [_schema(text, "schema")]
    if not are_few([*parameters, *answer]):
        raise _beyond("it asks for multiples (multipleOf) of numbers that are too large together")
    rules = {}
    if answer:
        rules["answer"] = f"answer: %json {json.dumps(*answer)}\n"
    if chosen:
        rules["call"] = _call([tool.name for tool in chosen], parameters)
    return f"start: {' | '.join(rules)}\n{''.join(rules.values())}"


class Grammars:
    """Grammars over one vocabulary. Any thread may use it.

    Args:
        tokenizer: `tokenizer.json` of the checkpoint.
        size: Tokens that the model tells apart.
        ends: Tokens that end an answer.
    """

    def __init__(self, tokenizer: bytes, size: int, ends: Sequence[int]) -> None:
        self._source, self._size, self._ends = tokenizer, size, list(ends)
        self._vocabulary: Any = None
        self._lock = threading.Lock()

    def constraint(self, grammar: str, begun: str) -> Constraint:
        """A fresh constraint.

        Args:
            grammar: What the answer has to keep to.
            begun: What it begins with already.

        Raises:
            BeyondModelError: The grammar cannot be kept to.
            InputError: The beginning does not keep to it.
            MissingExtraError: llguidance is not installed.
        """
        try:
            from llguidance import LLMatcher, LLParserLimits, LLTokenizer
        except ImportError as e:
            raise MissingExtraError("JSON by a schema", "generate") from e
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = LLTokenizer(self._source.decode(), n_vocab=self._size, eos_token=self._ends or None)
        limits = LLParserLimits(**_LIMITS)
        matcher = LLMatcher(self._vocabulary, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=limits)
        if matcher.is_error():
            raise _beyond(_line(matcher))
        if begun and not matcher.consume_tokens(self._vocabulary.tokenize_str(begun)):
            raise InputError(f"begun: the schema allows no answer that begins with {begun!r}.", "Leave it out.")
        return Constraint(matcher, self._size)


class Constraint:
    """What one answer may go on with."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size = matcher, size

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits, with -inf for what may not come next.

        Raises:
            BeyondModelError: The grammar is too complex to go on with.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=self._size, bitorder="little").view(bool)
        return np.where(allowed, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """Go on by a token that was allowed.

        Raises:
            BeyondModelError: The grammar is too complex to go on with.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _beyond(_line(self._matcher))


def _call(names: Sequence[str], parameters: Sequence[dict[str, Any]]) -> str:
    """The rule of one call of one of these tools.

    Each tool's schema stands among the definitions of one around all, so what it refers to is moved there.
    """
    definitions, either = {}, []
    for index, (name, schema) in enumerate(zip(names, parameters, strict=True)):
        place = f"#/$defs/tool{index}"
        definitions[f"tool{index}"] = moved(schema, place)
        either.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": place}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    around = {**(either[0] if len(either) == 1 else {"anyOf": either}), "$defs": definitions, "x-guidance": _STYLE}
    return f'call: "{BEGIN}\\n" arguments "\\n{END}"\narguments: %json {json.dumps(around)}\n'


def _schema(text: str, field: str) -> dict[str, Any]:
    """A JSON Schema as its value; one that says nothing means an object, as everybody expects of it here."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{field}: this schema is not JSON: {e}.", "Give a JSON Schema.") from e
    if not isinstance(value, dict):
        raise InputError(f"{field}: a JSON Schema is an object here, not {text[:100]}.", 'Give {"type": "object"}.')
    return {**(value or {"type": "object"}), "x-guidance": _STYLE}


def _beyond(reason: str) -> BeyondModelError:
    return BeyondModelError(f"schema: answers cannot be held to it: {reason}.", "Give a simpler JSON Schema.")


def _line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().splitlines()[0].rstrip(".")
