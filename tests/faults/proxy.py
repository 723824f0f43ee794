"""A TCP proxy that misbehaves on demand, for every test that needs a network which does.

    with FaultProxy("127.0.0.1", port) as proxy:
        client = OipClient(proxy.url)
        proxy.set(BLACKHOLE)

Owns faults on the wire below any protocol. It runs its own event loop in a thread, so that a test may block or use a
loop of its own. What is left to chance comes from a seed.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

_CHUNK = 64 << 10
_MOST_RECEIVED = 16 << 20
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Fault:
    """What happens to the bytes; build one with the functions and constants below."""

    kind: str
    seconds: float = 0.0
    jitter_s: float = 0.0
    after_bytes: int = 0


PASS = Fault("pass")
BLACKHOLE = Fault("blackhole")
"""Connections are accepted, also new ones, and nothing is ever answered."""
REFUSE = Fault("refuse")
"""Nothing listens; open connections are reset."""


def latency(seconds: float, jitter_s: float = 0.0) -> Fault:
    """Each piece waits, in both directions, `seconds` plus up to `jitter_s`."""
    return Fault("latency", seconds=seconds, jitter_s=jitter_s)


def drip(every_s: float) -> Fault:
    """The response comes one byte at a time."""
    return Fault("drip", seconds=every_s)


def reset(after_bytes: int = 0) -> Fault:
    """The connection is reset once that many bytes of responses have passed, before any more."""
    return Fault("reset", after_bytes=after_bytes)


def half_close(after_bytes: int = 0) -> Fault:
    """The response ends in an orderly way once that many bytes have passed, while the request is still read."""
    return Fault("half_close", after_bytes=after_bytes)


def stall(after_bytes: int = 0) -> Fault:
    """The response stops once that many bytes have passed, and the connection stays open."""
    return Fault("stall", after_bytes=after_bytes)


class FaultProxy:
    """Forwards a port of this machine to an upstream, as badly as it is told. Use it as a context manager.

    Args:
        host: Upstream host.
        port: Upstream port.
        fault: The first fault.
        seed: Where jitter comes from.
    """

    def __init__(self, host: str, port: int, fault: Fault = PASS, *, seed: int = 0) -> None:
        self._upstream = (host, port)
        self._fault = fault
        self._jitter = random.Random(seed)
        self._changed = threading.Condition()
        self._accepted = 0
        self._received = bytearray()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._switched = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def accepted(self) -> int:
        """Connections accepted so far."""
        return self._accepted

    @property
    def received(self) -> bytes:
        """What clients sent, the first 16 MiB of it."""
        return bytes(self._received)

    @property
    def open(self) -> int:
        """Clients connected now."""
        return len(self._open)

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        # Bound before it may refuse, so that the port is known and stays ours.
        self._call(self._listen())
        self.set(self._fault)
        return self

    def __exit__(self, *exception: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def set(self, fault: Fault) -> None:
        """Change the fault, at once and for open connections too.

        A connection of which a blackhole swallowed something stays in it: what was lost would be missing further on.
        """
        self._call(self._apply(fault))

    def lead_to(self, host: str, port: int) -> None:
        """Change the upstream of connections to come: one that was started again has another port."""
        self._upstream = (host, port)

    def wait_until(self, happened: Callable[[FaultProxy], bool]) -> None:
        """Block until a connection came or went such that `happened(self)`.

        Raises:
            TimeoutError: It did not, within 20 s.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: happened(self), _PATIENCE_S):
                raise TimeoutError(f"accepted {self.accepted}, open {self.open}")

    def _call(self, coroutine) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _apply(self, fault: Fault) -> None:
        self._fault = fault
        self._switched.set()
        self._switched = asyncio.Event()
        if fault.kind == "refuse":
            await self._close()
        elif self._server is None:
            await self._listen()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            _abort(writer)

    async def _stop(self) -> None:
        await self._close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._note(lambda: self._open.add(writer), accepted=1)
        try:
            if self._fault.kind == "blackhole":
                await self._swallow(reader)
            else:
                await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            _abort(writer)
        except asyncio.CancelledError:
            # Only the end of the proxy cancels, and asyncio's streams report a cancelled connection as an error.
            _abort(writer)
        finally:
            writer.close()
            self._note(lambda: self._open.discard(writer))

    def _note(self, change: Callable[[], None], accepted: int = 0) -> None:
        with self._changed:
            self._accepted += accepted
            change()
            self._changed.notify_all()

    def _keep(self, chunk: bytes) -> None:
        self._received += chunk[: _MOST_RECEIVED - len(self._received)]

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(_CHUNK):
            self._keep(chunk)

    async def _discard(self, up_reader: asyncio.StreamReader) -> str:
        """Read and drop what upstream still sends; the client's side lives on."""
        while await up_reader.read(_CHUNK):
            pass
        return "stay"

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        try:
            requests = asyncio.create_task(self._requests(reader, up_writer))
            responses = asyncio.create_task(self._responses(up_reader, writer))
            try:
                # The client decides when it is over, except where the upstream ends or a fault cuts the response.
                done, _ = await asyncio.wait({requests, responses}, return_when=asyncio.FIRST_COMPLETED)
                if responses in done and responses.result() == "stay":
                    await requests
                for task in done:
                    task.result()
            finally:
                requests.cancel()
                responses.cancel()
                await asyncio.gather(requests, responses, return_exceptions=True)
        finally:
            up_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            self._keep(chunk)
            await self._wait(self._fault)
            if self._fault.kind == "blackhole":
                await self._swallow(reader)
                return
            up_writer.write(chunk)
            await up_writer.drain()

    async def _responses(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Forward responses; returns "stay" where the client's side of the connection must live on, else "over"."""
        fault, passed = self._fault, 0
        while chunk := await up_reader.read(_CHUNK):
            if fault is not self._fault:
                fault, passed = self._fault, 0
            await self._wait(fault)
            if self._fault.kind == "blackhole":
                return await self._discard(up_reader)
            if fault.kind == "drip":
                chunk = await self._drip(chunk, writer)
            cut = fault.kind in ("reset", "half_close", "stall") and passed + len(chunk) > fault.after_bytes
            sent = chunk[: fault.after_bytes - passed] if cut else chunk
            writer.write(sent)
            await writer.drain()
            passed += len(sent)
            if cut and fault.kind == "reset":
                _abort(writer)
                return "over"
            if cut:
                if fault.kind == "half_close":
                    writer.write_eof()
                return await self._discard(up_reader)
        return "stay" if self._fault.kind == "blackhole" else "over"

    async def _wait(self, fault: Fault) -> None:
        if fault.kind == "latency":
            await self._pause(fault.seconds + self._jitter.random() * fault.jitter_s)

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the fault is changed meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._switched.wait(), seconds)

    async def _drip(self, chunk: bytes, writer: asyncio.StreamWriter) -> bytes:
        """Send byte by byte while the fault is the same; returns what is left when it is changed."""
        fault, sent = self._fault, 0
        while sent < len(chunk) and fault is self._fault:
            writer.write(chunk[sent : sent + 1])
            sent += 1
            await writer.drain()
            await self._pause(fault.seconds)
        return chunk[sent:]


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset: linger on, for no time, makes the kernel send RST."""
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
