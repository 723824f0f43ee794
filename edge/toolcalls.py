"""The calls of tools that a model writes into its answer.

Owns the syntax that Hermes, Qwen and SmolLM2 were trained on, read from a stream of pieces: `<tool_call>` around one
JSON object with a name and arguments, or around a list of them. Whether such a tool exists, and takes such arguments,
is not decided here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from edgewise.dialogue import Piece, ToolCall
from edgewise.edge.stops import begun

BEGIN, END = "<tool_call>", "</tool_call>"


class ToolCalls:
    """Takes the calls out of a stream.

    Args:
        new_id: The id of a call, by its place among the calls and its text.

    Attributes:
        found: The calls so far.
    """

    def __init__(self, new_id: Callable[[int, str], str]) -> None:
        self.found: list[ToolCall] = []
        self._new_id = new_id
        self._body: list[str] | None = None  # of the call that is being read
        self._tail = ""  # what is not decided yet: it may be the first half of a mark
        self._after = False  # a call has just ended, and only blanks came since

    def taken_out(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces, without the text of calls. A piece is held back while what it ends with may begin a call."""
        held: Piece | None = None
        for piece in pieces:
            if held is not None:
                yield held
                held = None
            free = piece._replace(text=self._read(piece.text))
            if self._body is None and self._tail:
                held = free
            else:
                yield free
        if held is not None:
            yield held._replace(text=held.text + self._tail)

    def finish(self) -> None:
        """The answer is over: a call that was not closed is read as far as it goes."""
        if self._body is not None:
            self._add("".join(self._body) + self._tail)
            self._body, self._tail = None, ""

    def _read(self, text: str) -> str:
        """What of a text, and of what was held back before it, is certain to be no part of a call."""
        rest, self._tail, free = self._tail + text, "", ""
        while rest:
            if self._body is not None:
                rest = self._read_call(rest)
                continue
            if self._after:
                rest = rest.lstrip()
                self._after = not rest
            before, mark, after = rest.partition(BEGIN)
            if mark:
                free, rest, self._body = free + before, after, []
                continue
            certain = len(rest) - begun(rest, (BEGIN,))
            free, self._tail, rest = free + rest[:certain], rest[certain:], ""
        return free

    def _read_call(self, rest: str) -> str:
        """Read on in a call; what follows it, or nothing where it goes on."""
        assert self._body is not None  # noqa: S101  # for the type checker: the caller looked
        inside, mark, after = rest.partition(END)
        if not mark:
            certain = len(rest) - begun(rest, (END,))
            self._body.append(rest[:certain])
            self._tail = rest[certain:]
            return ""
        self._add("".join(self._body) + inside)
        self._body, self._after = None, True
        return after

    def _add(self, raw: str) -> None:
        for name, arguments in parse(raw):
            self.found.append(ToolCall(id=self._new_id(len(self.found), raw), name=name, arguments=arguments))


def parse(raw: str) -> list[tuple[str, str]]:
    """Names and arguments, as JSON text, of the calls between two marks.

    What cannot be read is one call without a name, and is its own arguments.
    """
    try:
        value = json.loads(raw)
        found = [_one(item) for item in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError):
        found = []
    return found or [("", raw)]


def _one(item: object) -> tuple[str, str]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"]:
        raise ValueError
    arguments = item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote them
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError  # noqa: TRY004  # read as everything else that is no call
    return item["name"], json.dumps(arguments, ensure_ascii=False)
