"""Whether an edge answer agrees with the cloud's: for audits, and for answers that the cloud confirms.

Owns what is compared: outputs, of texts by the judge that the certificate names, and the calls of tools, which are the
same or not. Which judges there are is `agreement`'s.
"""

from __future__ import annotations

import asyncio
import math
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


def _calls(written: Written | None) -> list[tuple[str, str | bytes]]:
    return [] if written is None else [(call.name, _arguments(call.arguments)) for call in written.tool_calls]


def _arguments(text: str) -> str | bytes:
    """What arguments say, however they are spelled; text that is no JSON says itself.

    As JSON of one spelling, since `true` equals 1 in Python and is another value to a tool.
    """
    try:
        return msgspec.json.encode(_decoder.decode(text), order="sorted")
    except (msgspec.DecodeError, RecursionError):
        return text


def _number(text: str) -> int | float:
    """A number with a point or an exponent; 1.0 is the 1 of JSON Schema."""
    value = float(text)
    if math.isinf(value):
        raise ValueError("Beyond what a float holds.")
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


_EXACT = 2**53
"""Below it every whole float is the number that was written."""

_decoder = msgspec.json.Decoder(float_hook=_number)
