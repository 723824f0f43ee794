"""The calls of tools that a model writes into its answer.

Owns the syntax that Hermes, Qwen and SmolLM2 were trained on, read from a stream of pieces: `<tool_call>` around one
JSON object with a name and arguments, or around a list of them. Whether such a tool exists, and takes such arguments,
is not decided here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from edgewise.dialogue import Piece, ToolCall
from edgewise.edge.stops import Held, begun

BEGIN, END = "<tool_call>", "</tool_call>"


class ToolCalls:
    """Takes the calls out of a stream.

    Args:
        new_id: The id of a call, by its place among the calls and its text.

    Attributes:
        found: The calls so far. One that cannot be read has no name, and its text with the marks for arguments.
    """

    def __init__(self, new_id: Callable[[int, str], str]) -> None:
        self.found: list[ToolCall] = []
        self._new_id = new_id
        self._body: str | None = None  # of the call that is being read
        self._after = False  # a call has just ended, and only blanks came since

    def taken_out(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces, each without its text of calls. Held back are those that may begin a call."""
        held = Held()
        for piece in pieces:
            held.push(piece._replace(text=self._outside(piece.text)))
            while (at := held.text.find(BEGIN)) >= 0:
                behind = held.text[at + len(BEGIN) :]
                *whole, last = held.emptied(at)
                yield from whole
                self._body = ""
                held.push(last._replace(text=last.text + self._outside(behind)))
            yield from held.before(len(held.text) - begun(held.text, (BEGIN,)))
        yield from held.rest()

    def finish(self) -> None:
        """The answer is over: a call that was not closed is read as far as it goes."""
        if self._body is not None:
            self._add(self._body, "")
            self._body = None

    def _outside(self, text: str) -> str:
        """What of a text is no part of a call."""
        if self._body is None:
            rest = text.lstrip() if self._after else text
            self._after = self._after and not rest
            return rest
        known = len(self._body)
        self._body += text
        at = self._body.find(END, max(0, known - len(END)))
        if at < 0:
            return ""
        body, self._body, self._after = self._body, None, True
        self._add(body[:at], END)
        return self._outside(body[at + len(END) :])

    def _add(self, raw: str, end: str) -> None:
        for name, arguments in parse(raw):
            given = arguments if name else f"{BEGIN}{raw}{end}"
            self.found.append(ToolCall(id=self._new_id(len(self.found), raw), name=name, arguments=given))


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
    name, written = item["name"], json.dumps(arguments, ensure_ascii=False)
    f"{name}{written}".encode()  # half a character is no text: nobody could be sent it
    return name, written
