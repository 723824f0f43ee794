"""Data files of prompts: what a language model is asked, one line each.

Owns the form of a line. A line has the text of a user's message, with a system message where it has that too; or a
whole conversation in `messages`; or a `prompt` that is continued as it is. Every prompt is asked greedily, since
certificates speak of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edgewise.contracts import Example
from edgewise.dataset import Row, read_examples, text_of
from edgewise.dialogue import Message, Prompt, Role, Sampling
from edgewise.errors import ConfigError, DataError
from edgewise.jobs.parts import Part
from edgewise.router.policies.threshold import BY_LABEL
from edgewise.router.saying import asked_by

_MESSAGES, _PROMPT, _SYSTEM = "messages", "prompt", "system"
MOST_TOKENS = 1_000_000


class _Said(msgspec.Struct, forbid_unknown_fields=True):
    role: Role
    content: str


def load_prompts(
    path: Path, *, text_field: str, label_field: str, max_tokens: int, group_by: str | None = None
) -> Part:
    """Read a part of prompts.

    Args:
        path: A `.jsonl` or `.csv` file.
        text_field: Field of the user's message.
        label_field: Field of the label.
        max_tokens: Tokens of each answer at most.
        group_by: Field of the group; None reads none.

    Raises:
        DataError: It cannot be read, or a line holds no prompt.
        ConfigError: `max_tokens` is out of its range.
    """
    if not 1 <= max_tokens <= MOST_TOKENS:
        raise ConfigError(f"max_tokens is {max_tokens}.", f"Give 1 to {MOST_TOKENS:,}.")
    input_of = _reader(path, text_field, Sampling(max_tokens=max_tokens))
    examples = read_examples(path, input_of, label_field=label_field)
    if group_by is None or group_by == BY_LABEL:
        return Part(path, examples)
    groups = [row.label for row in read_examples(path, input_of, label_field=group_by)]
    named = [group for group in groups if group is not None]
    if len(named) != len(examples):
        raise DataError(f"{path} has no field '{group_by}' to group by.", "Add it to every line.")
    return Part(path, examples, named)


def texts_of(part: Part) -> Part:
    """The part as plain texts, which is how a choice by `quantize` has seen it: the last message, or the prompt."""
    return Part(part.path, [Example(asked_by(example.input) or "", example.label) for example in part.examples])


def _reader(path: Path, text_field: str, sampling: Sampling) -> Callable[[Row], Prompt]:
    def read(row: Row) -> Prompt:
        fields = dict.fromkeys((_MESSAGES, _PROMPT, text_field))
        given = [field for field in fields if row.fields.get(field) is not None]
        if len(given) > 1:
            raise DataError(f"{path}, line {row.line} has both '{given[0]}' and '{given[1]}'.", "Give one of them.")
        # A field that was named is the user's message, whatever its name; but for a conversation, which is no text.
        kind = None if given == [text_field] and isinstance(row.fields[text_field], str) else given
        if kind == [_PROMPT]:
            return Prompt(text=text_of(path, row, _PROMPT), sampling=sampling)
        said = _conversation(path, row) if kind == [_MESSAGES] else _one_message(path, row, text_field)
        return Prompt(messages=said, sampling=sampling)

    return read


def _one_message(path: Path, row: Row, text_field: str) -> tuple[Message, ...]:
    asked = Message(role=Role.USER, content=text_of(path, row, text_field))
    if row.fields.get(_SYSTEM) in (None, ""):
        return (asked,)
    return Message(role=Role.SYSTEM, content=text_of(path, row, _SYSTEM)), asked


def _conversation(path: Path, row: Row) -> tuple[Message, ...]:
    try:
        said = msgspec.convert(row.fields[_MESSAGES], list[_Said])
    except msgspec.ValidationError as e:
        raise DataError(
            f"{path}, line {row.line}: the messages are no conversation: {e}.",
            'Give {"role": "system", "user" or "assistant", "content": "…"}, oldest first.',
        ) from e
    if not said or said[-1].role is not Role.USER:
        raise DataError(f"{path}, line {row.line}: no user's message is last.", "End with what is to be answered.")
    return tuple(Message(role=one.role, content=one.content) for one in said)
