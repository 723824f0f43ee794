"""Sends what is owed to webhooks until it arrives or is given up.

Owns the loop, the connections and the time; what is sent, and when again, are `webhooks`' rules. What is owed lies in
a durable queue and leaves it only after the target has taken it, so it is delivered at least once, whatever dies in
between. A target that does not answer holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import httpx

from edgewise import telemetry
from edgewise.contracts import Answer, Clock, Hook, HookQueue
from edgewise.errors import StoreError
from edgewise.telemetry import Metrics
from edgewise.wire.webhooks import LONGEST_PAUSE_S, Fate, Target, fate_of, headers, is_away, message_body, pause_s

_log = logging.getLogger("edgewise.wire")

MAX_CONCURRENCY = 8
_LOOK_EVERY_S = 1.0
"""How often the queue is asked for what is due while something is owed."""

_MAX_SKIMMED_BYTES = 16 * 1024
"""Read of a response so that its connection can be used again; what is longer is cut off with the connection."""

_IDLE_S = 4.0
"""Idle connections go before most servers drop them."""


class _Outcome(NamedTuple):
    """One attempt: the HTTP status, or None with the kind of failure; seconds the target asks to be left alone."""

    status: int | None
    failure: str
    retry_after_s: float = 0.0


class _Away(NamedTuple):
    """A target that did not answer: how often in a row, and until when it is left alone, seconds since the epoch."""

    failures: int
    until_s: float


class WebhookSender:
    """Delivers to webhooks while `run` runs.

    Args:
        queue: What is owed.
        targets: Where it goes.
        clock: Time.
        uniform: Draws from [0, 1), for the jitter of retries.
        metrics: Where the fate of each attempt is counted.
        transport: Replaces the network, for tests.
        max_concurrency: Deliveries at the same time.
    """

    def __init__(
        self,
        queue: HookQueue,
        targets: Iterable[Target],
        *,
        clock: Clock,
        uniform: Callable[[], float],
        metrics: Metrics,
        transport: httpx.AsyncBaseTransport | None = None,
        max_concurrency: int = MAX_CONCURRENCY,
    ) -> None:
        self._queue = queue
        self._targets = {target.name: target for target in targets}
        self._clock = clock
        self._uniform = uniform
        self._outcomes = metrics.counter(*telemetry.WEBHOOKS)
        self._transport = transport
        self._max_concurrency = max_concurrency
        self._under_way: set[int] = set()
        self._away: dict[str, _Away] = {}
        self._wake = asyncio.Event()

    def owe(self, tenant: str, answer: Answer) -> None:
        """Owe a settled answer to every webhook of its tenant; durable where the queue is.

        Raises:
            StoreError: The queue cannot be written.
        """
        for target in self._targets.values():
            if tenant in target.tenants:
                self._queue.put(target.name, tenant, answer)
                self._wake.set()

    async def run(self) -> None:
        """Deliver what is owed until cancelled; what is under way then stays owed."""
        async with self._connections() as client, asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                is_waiting = self._start_due(client, group)
                # Wait for news, and where something waits for its time, not longer than a moment.
                # Not wait_for: where it is woken and cancelled at once, Python 3.11's forgets that it was cancelled.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S if is_waiting else None):
                        await self._wake.wait()

    def _connections(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            # Building the TLS context costs tens of milliseconds; plain HTTP does without.
            verify=any(target.url.startswith("https:") for target in self._targets.values()),
            headers={"user-agent": "edgewise", "accept-encoding": "identity"},
            timeout=None,  # noqa: S113  each delivery is bounded as a whole
            limits=httpx.Limits(max_keepalive_connections=self._max_concurrency, keepalive_expiry=_IDLE_S),
            trust_env=False,
            follow_redirects=False,
            transport=self._transport,
        )

    def _start_due(self, client: httpx.AsyncClient, group: asyncio.TaskGroup) -> bool:
        """Start what may start; tells whether something else is owed."""
        try:
            for hook in self._due():
                self._start(hook, client, group)
            return len(self._queue) > len(self._under_way)
        except StoreError as error:
            _log.error("The webhooks' queue cannot be used; asking it again: %s", error)
            return True

    def _due(self) -> list[Hook]:
        free = self._max_concurrency - len(self._under_way)
        if free == 0:
            return []
        due = self._queue.due(self._clock.time(), self._max_concurrency)
        return [hook for hook in due if hook.position not in self._under_way][:free]

    def _start(self, hook: Hook, client: httpx.AsyncClient, group: asyncio.TaskGroup) -> None:
        target = self._targets.get(hook.target)
        if target is None:
            self._settle(hook, Fate.UNKNOWN, "the configuration names no such target")
            return
        away = self._away.get(target.name)
        if away is not None and away.until_s > self._clock.time():
            self._queue.retry(hook.position, away.until_s)
            self._wake.set()  # others may stand behind it
            return
        self._under_way.add(hook.position)
        group.create_task(self._deliver(hook, target, client))

    async def _deliver(self, hook: Hook, target: Target, client: httpx.AsyncClient) -> None:
        try:
            outcome = await self._attempt(hook, target, client)
            self._conclude(hook, target, outcome)
        except StoreError as error:
            _log.error("Webhook %s: the queue cannot be written, so it is sent again: %s", target.name, error)
            self._leave_alone(target, 0.0)
        finally:
            self._under_way.discard(hook.position)
            self._wake.set()

    async def _attempt(self, hook: Hook, target: Target, client: httpx.AsyncClient) -> _Outcome:
        body = message_body(hook)
        signed = headers(target, hook, body, self._clock.time())
        try:
            async with (
                asyncio.timeout(target.timeout_s),
                client.stream("POST", target.url, content=body, headers=signed) as response,
            ):
                await _skim(response)
                return _Outcome(response.status_code, f"HTTP {response.status_code}", _retry_after_s(response))
        except TimeoutError:
            return _Outcome(None, f"no answer within {target.timeout_s:g} s")
        except Exception as error:  # whatever a target or its name does to the network: the sender lives
            return _Outcome(None, type(error).__name__)

    def _conclude(self, hook: Hook, target: Target, outcome: _Outcome) -> None:
        now_s = self._clock.time()
        fate = fate_of(outcome.status, age_s=now_s - hook.created_s, give_up_after_s=target.give_up_after_s)
        self._watch(target, outcome)
        if fate is not Fate.RETRIED:
            self._settle(hook, fate, outcome.failure)
            return
        pause = max(pause_s(hook.attempts + 1, self._uniform), outcome.retry_after_s)
        self._queue.retry(hook.position, now_s + pause)
        self._outcomes.inc(fate.value)
        _log.warning(
            "Webhook %s did not take answer %s (%s); again in %.0f s.",
            target.name, hook.answer.id, outcome.failure, pause,
        )  # fmt: skip

    def _watch(self, target: Target, outcome: _Outcome) -> None:
        """Leave a target alone that does not answer; one that answers is well again."""
        if is_away(outcome.status):
            self._leave_alone(target, outcome.retry_after_s)
        else:
            self._away.pop(target.name, None)

    def _leave_alone(self, target: Target, at_least_s: float) -> None:
        """Send nothing there for a while, longer each time in a row."""
        now_s = self._clock.time()
        known = self._away.get(target.name, _Away(0, 0.0))
        if known.until_s <= now_s:  # else this was under way when it was found out
            pause = max(pause_s(known.failures + 1, self._uniform), at_least_s)
            self._away[target.name] = _Away(known.failures + 1, now_s + pause)

    def _settle(self, hook: Hook, fate: Fate, why: str) -> None:
        self._queue.done(hook.position)
        self._outcomes.inc(fate.value)
        if fate is not Fate.DELIVERED:
            _log.error(
                "Webhook %s: answer %s is given up, put off %d times before (%s): %s.",
                hook.target, hook.answer.id, hook.attempts, fate.value, why,
            )  # fmt: skip


async def _skim(response: httpx.Response) -> None:
    size = 0
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > _MAX_SKIMMED_BYTES:
            return


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that the target asks for, as far as we follow it; a date is not read."""
    text = response.headers.get("retry-after", "")
    return min(float(text), LONGEST_PAUSE_S) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
