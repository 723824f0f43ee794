"""One cloud out of several, in order: the next is asked where those before it fail or keep silent.

    primary ─ fails, or silent for `after_s` → second ─ … → the first answer counts

Owns the order, how long each is waited for alone, and which backend is known not to answer. A backend is known so after
some failures in a row, silence included, and is then skipped at once until it describes itself again, which it is asked
to beside the traffic.

Only the primary is the reference: replies of the others say `fail_over`. And only its refusal of an item counts: that
another model refuses it says nothing of what the reference would answer.

Of streams the first piece decides: what comes after it is of the same backend, since text that was told cannot be gone
on with by another model. A backend that streams nothing answers as a stream of its whole reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from edgewise.contracts import CloudClient, CloudReply, Reference, Request, StreamingCloudClient, Token
from edgewise.errors import (
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    InputError,
    outline,
)

T = TypeVar("T")
P = TypeVar("P", Token, CloudReply, Token | CloudReply)

_log = logging.getLogger("edgewise.cloud")
_PROBE_TIMEOUT_S = 5.0


class FailOverClient:
    """Several backends that look like one.

    Args:
        backends: Clients by the name that messages call them, the primary first.
        after_s: Seconds after which the next one is asked beside a silent one; sooner where the time-out, shared among
            those that are left, is less.
        failures_to_open: Consecutive failures after which a backend is known not to answer.
        cool_down_s: Seconds between attempts to have it describe itself.

    Raises:
        ConfigError: There are fewer than two backends.
    """

    def __init__(
        self,
        backends: Mapping[str, CloudClient],
        *,
        after_s: float = 1.0,
        failures_to_open: int = 3,
        cool_down_s: float = 5.0,
    ) -> None:
        if len(backends) < 2:
            raise ConfigError("Fail-over needs a second backend.", "Name another, or leave fail_over out.")
        self._backends = [_Backend(name, client, failures_to_open, cool_down_s) for name, client in backends.items()]
        self._after_s = after_s

    async def describe(self, *, timeout_s: float) -> Reference:
        """Ask which model and version the primary is; the others are no reference.

        Raises:
            CloudError: It cannot be reached, is not ready, or does not say.
        """
        reference = await self._backends[0].client.describe(timeout_s=timeout_s)
        self._backends[0].answered()
        return reference

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Ask for the final answer to one request; cancelling cancels every call.

        Raises:
            CloudRefusedError: The primary will refuse this very request every time.
            CloudError: No backend answered within `timeout_s`; of several errors the first backend's.
        """
        call, reply = await self._first(lambda client, left_s: client.predict(request, timeout_s=left_s), timeout_s)
        call.answered()
        return self._marked(call, reply)

    async def stream(self, request: Request, *, timeout_s: float) -> AsyncIterator[Token | CloudReply]:
        """Ask for the final answer in pieces; the whole reply comes last. Closing the iterator cancels every call.

        Raises:
            CloudRefusedError: The primary will refuse this very request every time.
            CloudError: No backend began within `timeout_s`, or the one that did failed: of several errors the first
                backend's.
        """

        async def begin(client: CloudClient, left_s: float) -> _Begun:
            return await _Begun.of(client, request, left_s)

        call, begun = await self._first(begin, timeout_s, drop=_Begun.aclose)
        async with aclosing(begun):
            yield self._marked(call, begun.first)
            try:
                async for piece in begun.rest:
                    yield self._marked(call, piece)
            except CloudRefusedError:
                call.answered()
                raise
            except CloudError as error:
                call.failed(error)
                raise
            call.answered()

    async def aclose(self) -> None:
        """Close every backend's connections."""
        for backend in self._backends:
            await backend.aclose()

    async def _first(
        self,
        ask: Callable[[CloudClient, float], Coroutine[Any, Any, T]],
        timeout_s: float,
        drop: Callable[[T], Awaitable[None]] | None = None,
    ) -> tuple[_Call, T]:
        """The first answer of any backend, and whose it is; the others are cancelled.

        Args:
            ask: Asks one backend, in the seconds that are left.
            timeout_s: Seconds for all of them.
            drop: Lets go of an answer that came at the same time as the first.

        Raises:
            CloudError: As `predict`.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        waiting = [backend for backend in self._backends if not backend.is_away]
        calls: dict[asyncio.Task[T], _Call] = {}
        errors: dict[_Backend, CloudError] = {}
        try:
            while waiting or calls:
                patience_s = None
                if waiting:
                    left_s = deadline - asyncio.get_running_loop().time()
                    call = _Call(waiting.pop(0), left_s, self._after_s)
                    calls[asyncio.create_task(ask(call.backend.client, left_s))] = call
                    patience_s = min(self._after_s, left_s / (len(waiting) + 1)) if waiting else None
                done, _ = await asyncio.wait(calls, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    call.is_silent(patience_s or 0.0)
                for task in [task for task in calls if task in done]:
                    call = calls.pop(task)
                    error = task.exception()
                    if error is None:
                        return call, task.result()
                    self._note(error, call, errors)
        finally:
            for task in calls:
                task.cancel()
            left = await asyncio.gather(*calls, return_exceptions=True)
            for answer in left:
                if drop is not None and not isinstance(answer, BaseException):
                    await drop(answer)
        raise self._verdict(errors)

    def _marked(self, call: _Call, piece: P) -> P:
        """What a backend says, with the word that it is not the reference where it is not."""
        if isinstance(piece, CloudReply) and call.backend is not self._backends[0]:
            return msgspec.structs.replace(piece, fail_over=True)
        return piece

    def _note(self, error: BaseException, call: _Call, errors: dict[_Backend, CloudError]) -> None:
        """Keep why a call failed.

        Raises:
            CloudRefusedError: The primary refuses the item, which is the last word.
            InputError: Likewise.
        """
        if isinstance(error, CloudRefusedError | InputError):
            call.answered()
            if call.backend is self._backends[0]:
                raise error
        else:
            call.failed(error)
        if isinstance(error, CloudError) and not isinstance(error, CloudRefusedError):
            errors[call.backend] = error
        else:
            said = f"{type(error).__name__}: {error}"
            errors[call.backend] = CloudResponseError(f"The cloud backend {call.backend.name} failed: {said}")

    def _verdict(self, errors: dict[_Backend, CloudError]) -> CloudError:
        """The error of the first backend that was asked."""
        for backend in self._backends:
            if backend in errors:
                return errors[backend]
        names = ", ".join(backend.name for backend in self._backends)
        return CloudUnreachableError(
            f"None of the cloud backends {names} answers.", "Check them; they are asked again."
        )


class _Begun:
    """A stream and its first piece."""

    def __init__(self, rest: AsyncGenerator[Token | CloudReply], first: Token | CloudReply) -> None:
        self.rest = rest
        self.first = first

    @classmethod
    async def of(cls, client: CloudClient, request: Request, timeout_s: float) -> _Begun:
        """Begin one, and wait for its first piece."""
        rest = _pieces(client, request, timeout_s)
        try:
            return cls(rest, await anext(rest))
        except StopAsyncIteration as error:
            raise CloudResponseError("The cloud ended its stream before the reply.") from error
        except BaseException:
            await rest.aclose()
            raise

    async def aclose(self) -> None:
        """Cancel the call."""
        await self.rest.aclose()


async def _pieces(client: CloudClient, request: Request, timeout_s: float) -> AsyncGenerator[Token | CloudReply]:
    if not isinstance(client, StreamingCloudClient):
        yield await client.predict(request, timeout_s=timeout_s)
        return
    stream = client.stream(request, timeout_s=timeout_s)
    try:
        async for piece in stream:
            yield piece
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


class _Backend:
    """One backend and whether it is known not to answer."""

    def __init__(self, name: str, client: CloudClient, failures_to_open: int, cool_down_s: float) -> None:
        self.name = name
        self.client = client
        self._failures_to_open = failures_to_open
        self._cool_down_s = cool_down_s
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        return self._failures >= self._failures_to_open

    def answered(self) -> None:
        if self.is_away:
            _log.warning("The cloud backend %s answers again.", self.name)
        self._failures = 0

    def failed(self, why: str) -> None:
        self._failures += 1
        if self.is_away and (self._probing is None or self._probing.done()):
            _log.warning("The cloud backend %s is skipped until it answers again: %s", self.name, why)
            self._probing = asyncio.create_task(self._probe())

    async def aclose(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self.client.aclose()

    async def _probe(self) -> None:
        while self.is_away:
            await asyncio.sleep(self._cool_down_s)
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    await self.client.describe(timeout_s=_PROBE_TIMEOUT_S)
            except Exception as error:  # whatever a client of somebody else's raises must not end the watch
                _log.info("The cloud backend %s still does not answer: %s", self.name, error)
            else:
                self.answered()


class _Call:
    """One call to one backend, and what it says of that backend, once: the first word counts.

    A time-out shorter than `after_s` says nothing: its caller had no more time.
    """

    def __init__(self, backend: _Backend, given_s: float, after_s: float) -> None:
        self.backend = backend
        self._given_s = given_s
        self._after_s = after_s
        self._is_told = False

    def is_silent(self, waited_s: float) -> None:
        if waited_s >= self._after_s:
            self._is_told = True
            self.backend.failed(f"no answer within {waited_s:g} s")

    def failed(self, error: BaseException) -> None:
        cut_short = isinstance(error, CloudTimeoutError) and self._given_s < self._after_s
        if not self._is_told and not cut_short:
            self.backend.failed(outline(error))

    def answered(self) -> None:
        if not self._is_told:
            self.backend.answered()
