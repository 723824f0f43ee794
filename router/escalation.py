"""Asking the cloud: time-out, breaker and the check that it still is the certified reference.

Owns every call that leaves the process and nothing of what becomes of its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from edgewise.contracts import Clock, CloudClient, CloudReply, Reference, Request
from edgewise.errors import CloudError, CloudRefusedError, CloudResponseError, CloudTimeoutError, InputError
from edgewise.router.breaker import Breaker
from edgewise.router.instruments import Instruments

_log = logging.getLogger("edgewise.router")
_PROBE_TIMEOUT_S = 5.0


class Escalation:
    """The cloud as the flow sees it.

    Args:
        cloud: The backend.
        breaker: Its breaker.
        clock: Time.
        instruments: Where calls are counted.
        timeout_s: Longest a call may take.
        on_reference: Told which model and version answered, at every reply and probe.
        on_open: Told when the breaker is open after a failure: somebody has to probe.
    """

    def __init__(
        self,
        cloud: CloudClient,
        breaker: Breaker,
        clock: Clock,
        instruments: Instruments,
        *,
        timeout_s: float,
        on_reference: Callable[[Reference], None],
        on_open: Callable[[], None],
    ) -> None:
        self._cloud = cloud
        self._breaker = breaker
        self._clock = clock
        self._instruments = instruments
        self._on_reference = on_reference
        self._on_open = on_open
        self.timeout_s = timeout_s

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: nothing may wait for the cloud."""
        return self._breaker.is_open

    def seconds_to_probe(self) -> float:
        """Seconds until an open breaker wants its next probe."""
        return self._breaker.seconds_to_probe(self._clock.monotonic())

    async def ask(self, request: Request) -> CloudReply:
        """The cloud's answer.

        Raises:
            CloudRefusedError: It is well and will refuse this very request every time; the breaker does not count that.
            CloudError: It failed or took longer than the time-out.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await self._cloud.predict(request, timeout_s=self.timeout_s)
        except TimeoutError as error:
            self._failed("late")
            raise CloudTimeoutError(f"The cloud did not answer within {self.timeout_s:g} s.") from error
        except (CloudRefusedError, InputError) as error:
            self._breaker.succeeded()
            self._show_breaker()
            self._instruments.cloud_calls.inc("refused")
            raise CloudRefusedError(error.problem, error.remedy) from error
        except CloudError as error:
            self._failed("late" if isinstance(error, CloudTimeoutError) else "failed")
            raise
        except Exception as error:  # whatever a client of somebody else's raises must not end what waits for it
            self._failed("failed")
            raise CloudResponseError(f"The cloud client failed: {type(error).__name__}.") from error
        self._succeeded(reply.reference)
        self._instruments.cloud_calls.inc("ok")
        return reply

    async def probe(self) -> bool:
        """Ask which model answers, off the request path; returns whether it answered."""
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                reference = await self._cloud.describe(timeout_s=_PROBE_TIMEOUT_S)
        except (CloudError, TimeoutError) as error:
            self._note_failure()
            _log.warning("The cloud cannot be reached: %s", str(error) or f"no answer within {_PROBE_TIMEOUT_S:g} s")
            return False
        self._succeeded(reference)
        return True

    async def watch(self, probed: asyncio.Event, *, every_s: float, retry_s: float) -> None:
        """Ask again and again which model answers; sooner while none does.

        Args:
            probed: Set after the first probe, whatever came of it.
            every_s: Seconds until the next probe.
            retry_s: The same after one that failed.
        """
        while True:
            answered = await self.probe()
            probed.set()
            await asyncio.sleep(every_s if answered else retry_s)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._cloud.aclose()

    def _succeeded(self, reference: Reference) -> None:
        self._breaker.succeeded()
        self._show_breaker()
        self._on_reference(reference)

    def _failed(self, outcome: str) -> None:
        self._instruments.cloud_calls.inc(outcome)
        self._note_failure()

    def _note_failure(self) -> None:
        self._breaker.failed(self._clock.monotonic())
        self._show_breaker()
        if self._breaker.is_open:
            self._on_open()

    def _show_breaker(self) -> None:
        self._instruments.breaker_open.set(float(self._breaker.is_open))
