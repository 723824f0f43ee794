"""Verdicts from the cloud: drawn local answers wait here until the certified cloud says what it would have answered.

A cloud that is away is asked again, less and less often, until it answers or time is up: its silence says nothing of
the edge's answer. Whether and when it is asked again depends on the cloud alone, never on what was answered here, so
waiting favours neither verdict. Another backend's word in its place is such a silence. A refusal is final, and so is
another version, which cannot judge.

Owns the waiting. What a verdict is is `audit`'s; one call, its time-out and the breaker are `escalation`'s.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from edgewise.contracts import CloudReply, Output, Request
from edgewise.dialogue import Written
from edgewise.errors import CloudError, CloudRefusedError, CloudUnreachableError, outline
from edgewise.router.audit import Draw
from edgewise.router.background import Background
from edgewise.router.escalation import Escalation

_log = logging.getLogger("edgewise.router")
_AT_ONCE = 8
"""Questions to the cloud at the same time: audits go on beside the traffic, not in its way."""

_LONGEST_PAUSE_S = 60.0
_LAST_VERDICTS_S = 5.0


class Judging:
    """Asks for verdicts beside the flow, a few at a time, in the order of the answers.

    Args:
        cloud: Who judges.
        deadline_s: Seconds after its answer for which a draw may wait for its verdict; then that is missing.
        retry_s: Seconds until a cloud that was away is asked again; doubled at every further time.
    """

    def __init__(self, cloud: Escalation, *, deadline_s: float, retry_s: float) -> None:
        self._cloud = cloud
        self._deadline_s = deadline_s
        self._retry_s = retry_s
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._closing = asyncio.Event()
        self._tasks = Background()

    def start(
        self, draw: Draw, request: Request, output: Output, score: float | None, written: Written | None = None
    ) -> None:
        """Bring the verdict on a final local answer."""
        if self._tasks.closed:
            draw.missed(score)
            return
        due = asyncio.get_running_loop().time() + self._deadline_s
        self._tasks.start(self._judge(draw, request, output, score, due, written))

    async def aclose(self) -> None:
        """Give what waits a last chance of a few seconds; what has no verdict by then is missing."""
        self._closing.set()
        await self._tasks.close(finish_s=_LAST_VERDICTS_S)

    async def _judge(
        self, draw: Draw, request: Request, output: Output, score: float | None, due: float, written: Written | None
    ) -> None:
        try:
            await draw.compared(output, score, await self._reply(request, due), written=written)
        except CloudError as error:
            _log.warning("The audit of request %s has no verdict: %s", request.id, outline(error))
        finally:
            draw.missed(score)

    async def _reply(self, request: Request, due: float) -> CloudReply:
        """What the cloud says, sooner or later.

        Raises:
            CloudError: It refused, or was away until time was up.
        """
        pause_s = self._retry_s
        while True:
            try:
                return await self._ask(request)
            except CloudRefusedError:
                raise
            except CloudError:
                left_s = due - asyncio.get_running_loop().time()
                if left_s <= 0 or self._closing.is_set():
                    raise
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, left_s)):
                    await self._closing.wait()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _ask(self, request: Request) -> CloudReply:
        async with self._slots:
            if self._cloud.is_open:
                raise CloudUnreachableError("The cloud is known to be away.")
            reply = await self._cloud.ask(request)
        if reply.fail_over:
            raise CloudUnreachableError("Another backend stood in for the cloud that judges.")
        return reply
