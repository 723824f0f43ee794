"""Tool calls of a model, put together from the pieces in which servers stream them. Pure.

OpenAI opens a call with its id and name, and sends its arguments in pieces under one index. Others repeat the id or the
name, leave the id or the index out, or open a second call under the index of the first (vLLM 0.8): an id that
is new and comes with a name opens another call, everything else goes on with the one that is open.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgewise.dialogue import ToolCall
from edgewise.errors import CloudResponseError

MAX_CALLS = 128
"""Calls in one answer; OpenAI takes as many tools."""


@dataclass
class _Open:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class ToolCalls:
    """The tool calls of one answer, whole or as they come."""

    def __init__(self) -> None:
        self._calls: list[_Open] = []
        self._by_index: dict[int, _Open] = {}

    def add(self, index: int | None, call_id: str | None, name: str | None, arguments: str | None) -> None:
        """Take a piece of a call; None and empty texts say nothing.

        Args:
            index: Which call of the answer it belongs to.
            call_id: The call's id.
            name: The tool.
            arguments: The next part of the arguments' JSON.

        Raises:
            CloudResponseError: There are more than `MAX_CALLS`.
        """
        known = self._by_index.get(index) if index is not None else self._calls[-1] if self._calls else None
        if known is None or _opens_another(known, index, call_id, name):
            known = self._opened(index)
        known.id = known.id or call_id or ""
        known.name = known.name or name or ""
        if arguments:
            known.arguments.append(arguments)

    def whole(self) -> tuple[ToolCall, ...]:
        """The calls, in the order in which they were opened; one that has no id is given one.

        Raises:
            CloudResponseError: One names no tool.
        """
        return tuple(_checked(number, call) for number, call in enumerate(self._calls))

    def _opened(self, index: int | None) -> _Open:
        if len(self._calls) >= MAX_CALLS:
            raise CloudResponseError(f"The model calls more than {MAX_CALLS} tools in one answer.")
        call = _Open()
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call


def _opens_another(known: _Open, index: int | None, call_id: str | None, name: str | None) -> bool:
    if not name or not known.name:
        return False
    return call_id != known.id if call_id and known.id else index is None


def _checked(number: int, call: _Open) -> ToolCall:
    if not call.name:
        raise CloudResponseError("The model calls a tool and does not name it.", "See the service's log.")
    return ToolCall(id=call.id or f"call_{number}", name=call.name, arguments="".join(call.arguments) or "{}")
