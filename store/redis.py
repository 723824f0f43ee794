"""The exact cache that several gateways share, in Redis.

Owns the bytes there and what happens when Redis does not answer: it is an empty cache then. After a few failures in a
row nobody waits for it any more; whether it is back is asked beside the requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from edgewise.contracts import Answer, Clock, Status
from edgewise.errors import ConfigError, MissingExtraError, StoreError
from edgewise.store.records import decode_answer, encode_answer

if TYPE_CHECKING:
    from redis.asyncio import Redis

_log = logging.getLogger("edgewise.store")
_PREFIX = b"edgewise:answer:"
_VERSION = b"\x01"
_MAX_VALUE_BYTES = 1 << 20
_FAILURES = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


class RedisCache:
    """Final answers in Redis; implements `contracts.SharedCache`.

    A value is a version byte, its own key and the answer's record. So what another program wrote there, an older
    format, or a reply that belongs to another question is found out, and is a miss.

    Args:
        url: redis://, rediss:// (TLS) or unix://, with its password where it needs one. Never shown.
        ttl_s: Seconds after which an answer is forgotten.
        timeout_s: Longest wait for Redis, connecting included.
        clock: The time.

    Raises:
        MissingExtraError: The package redis is not installed.
        ConfigError: The URL cannot be used.
        ValueError: A number is not above 0.
    """

    def __init__(self, url: str, ttl_s: float, *, timeout_s: float, clock: Clock) -> None:
        if not (ttl_s > 0 and timeout_s > 0):
            raise ValueError(f"A cache of {ttl_s} seconds that may take {timeout_s} keeps nothing.")
        self._redis = _client(url, timeout_s)
        self._ttl_ms = max(1, round(1000 * ttl_s))
        self._timeout_s = timeout_s
        self._clock = clock
        self._failures = 0
        self._pause_s = _FIRST_PAUSE_S
        self._look_at: float | None = None
        self._looking: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[Any]] = set()

    @property
    def is_away(self) -> bool:
        """Whether nobody waits for it at the moment."""
        return self._look_at is not None

    async def get(self, key: bytes) -> Answer | None:
        """The answer stored under `key`, or None, also where Redis does not answer in time."""
        value = await self._within(lambda: self._redis.get(_PREFIX + key))
        head = _VERSION + key
        if not isinstance(value, bytes) or not value.startswith(head) or len(value) > _MAX_VALUE_BYTES:
            return None
        try:
            answer = decode_answer(value[len(head) :])
        except StoreError:
            return None
        return answer if answer.status is Status.FINAL else None

    async def put(self, key: bytes, answer: Answer) -> None:
        """Keep a final answer; does nothing where Redis does not take it in time, or where it is larger than 1 MiB.

        Raises:
            ValueError: The answer is provisional; a cache of those would break the certificate.
        """
        if answer.status is not Status.FINAL:
            raise ValueError(f"The answer to {answer.id} is {answer.status.value}; only final answers are cached.")
        value = _VERSION + key + encode_answer(answer)
        if len(value) <= _MAX_VALUE_BYTES:
            await self._within(lambda: self._redis.set(_PREFIX + key, value, px=self._ttl_ms))

    async def aclose(self) -> None:
        """Close its connections."""
        running = [*self._asking, *([] if self._looking is None else [self._looking])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._redis.aclose()

    async def _within(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What Redis says, or None where it does not in time; nobody waits while it is known to be away.

        Whoever has less patience leaves, and the question goes on: else a Redis that hangs would never be found out.
        """
        if self._look_at is not None:
            self._look(self._look_at)
            return None
        asking = asyncio.ensure_future(self._asked(ask))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        return await asyncio.shield(asking)

    async def _asked(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                said = await ask()
        except _failures() as error:
            self._failed(error)
            return None
        self._failures = 0
        return said

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        if self._failures >= _FAILURES and self._look_at is None:
            # Its message may carry the address, and that a password.
            _log.warning("The shared cache is away (%s): every look is a miss until it is back.", type(error).__name__)
            self._look_at = self._clock.monotonic() + self._pause_s

    def _look(self, due: float) -> None:
        """Start to ask whether it is back, where that is due and nobody does."""
        if self._clock.monotonic() >= due and (self._looking is None or self._looking.done()):
            self._looking = asyncio.ensure_future(self._ping())

    async def _ping(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.ping()
        except _failures():
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._look_at = self._clock.monotonic() + self._pause_s
            return
        self._look_at, self._failures, self._pause_s = None, 0, _FIRST_PAUSE_S
        _log.warning("The shared cache answers again.")


def _client(url: str, timeout_s: float) -> Redis:
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ModuleNotFoundError as error:
        raise MissingExtraError("A cache in Redis", "redis") from error
    try:
        # One more attempt mends a connection that the server closed meanwhile.
        return Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 1)
        )
    except ValueError:
        # Neither shown nor chained: it may hold a password.
        raise ConfigError(
            "The URL of the shared cache cannot be used.", "Give redis://host:port/0, rediss:// or unix://."
        ) from None


def _failures() -> tuple[type[BaseException], ...]:
    from redis.exceptions import RedisError

    return RedisError, OSError, TimeoutError
