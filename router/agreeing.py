"""Whether an edge answer agrees with the cloud's: for audits, and for answers that the cloud confirms.

Owns what is compared: outputs, of texts by the judge that the certificate names, and the calls of tools, which are the
same or not. Which judges there are is `agreement`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from edgewise.contracts import CloudReply, Output
from edgewise.dialogue import Written

Judge: TypeAlias = Callable[[str, str], bool]
"""Whether the edge's text and the cloud's say the same; asked from several threads at once."""


class Agreement:
    """Holds an edge answer against the cloud's.

    Args:
        judge: Holds two texts; None: they are the same or not.
    """

    def __init__(self, judge: Judge | None = None) -> None:
        self._judge = judge

    @property
    def has_judge(self) -> bool:
        """Whether somebody else's function is asked, or a model, which may take its time."""
        return self._judge is not None

    async def beside(self, output: Output, written: Written | None, reply: CloudReply) -> bool:
        """Whether they agree, found out in a thread where there is a judge: the event loop goes on meanwhile."""
        if self._judge is None:
            return self(output, written, reply)
        return await asyncio.to_thread(self, output, written, reply)

    def __call__(self, output: Output, written: Written | None, reply: CloudReply) -> bool:
        """Whether they agree. What calls tools says what it calls, and its text is beside the point."""
        mine, others = _calls(written), _calls(reply.written)
        if mine or others:
            return mine == others
        if self._judge is None or not isinstance(output, str) or not isinstance(reply.output, str):
            return output == reply.output
        return self._judge(output, reply.output)


def _calls(written: Written | None) -> list[tuple[str, object]]:
    return [] if written is None else [(call.name, _arguments(call.arguments)) for call in written.tool_calls]


def _arguments(text: str) -> object:
    """What arguments say, however they are spelled; text that is no JSON says itself."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
