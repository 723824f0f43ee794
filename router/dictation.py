"""A text that the cloud writes, as it comes. Owns the call behind it until somebody else waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from edgewise.contracts import CloudReply, Reason, Token
from edgewise.router.delivery import was_given_up
from edgewise.router.growing import Growing
from edgewise.router.turn import Turn

Ask: TypeAlias = Callable[[Callable[[Token], None]], Coroutine[Any, Any, CloudReply]]
"""Asks the cloud, which tells each piece to what is given."""


class Dictation(Growing[Token]):
    """One call and what was heard of it.

    Args:
        start: Runs the call.
        ask: Makes it.

    Attributes:
        call: The call.
    """

    def __init__(self, start: Callable[[Coroutine[Any, Any, CloudReply]], asyncio.Task[CloudReply]], ask: Ask) -> None:
        super().__init__()
        self.call = start(ask(self.add))
        self.call.add_done_callback(self._done)

    def _done(self, call: asyncio.Task[CloudReply]) -> None:
        if not call.cancelled():
            call.exception()  # whoever wanted it may have left
        self.end()


class Asking:
    """A request's dictation, and the next one where that is given up because the cloud came back.

    Args:
        start: Begins one; None behind an open breaker.
    """

    def __init__(self, start: Callable[[], Dictation | None]) -> None:
        self._start = start
        self._is_lent = False
        self.dictation = start()

    @property
    def call(self) -> asyncio.Task[CloudReply] | None:
        """The call."""
        return None if self.dictation is None else self.dictation.call

    async def heard(self, turn: Turn, *, whole: bool, set_aside_s: float = 0.0, patient: bool = False) -> Reason | None:
        """Wait until the cloud answers; None once it does, else the reason why this request does not wait any longer.

        Args:
            turn: The request.
            whole: Wait for all of the answer, not for its first piece.
            set_aside_s: Seconds of the budget that are needed after this wait.
            patient: The budget does not count: the answer has begun already.
        """
        while True:
            dictation = self.dictation
            if dictation is None:
                return Reason.BREAKER_OPEN
            sign = dictation.sign() if whole else dictation.sign(1)
            if patient:
                await sign
            elif not await turn.waited(sign, set_aside_s):
                return Reason.BUDGET_SPENT
            if not dictation.call.done():
                return None
            if not was_given_up(dictation.call):
                found = turn.reply_of(dictation.call)
                return found if isinstance(found, Reason) else None
            self.dictation = self._start()

    def lend(self) -> None:
        """Others wait for the call from now on."""
        self._is_lent = True

    def leave(self) -> None:
        """Wait no longer: the call ends, unless others wait for it."""
        if self.dictation is not None and not self._is_lent:
            self.dictation.call.cancel()
