"""One load generator for every server: its own process, uvloop, one socket a connection, no HTTP library.

    python benchmarks/serve/load.py URL BODIES [--connections 32] [--seconds 3] [--rate N] [--warm 0.5]

BODIES holds one JSON body a line; they are sent in turn. Closed loop: each connection sends its next request when its
answer is here. Open loop (`--rate`): requests are due at fixed times, whatever the server does, and a request's time
runs from when it was due, so that a server that stalls pays for all who wait (no coordinated omission). Prints JSON.

It costs about 12 µs a request here, so one core of it saturates one core of any Python server. A reply without
content-length is read to its last chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop


def encoded(url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """One HTTP/1.1 request."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One connection with at most one request on its way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._due = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._load.free(self)

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at `due`, in seconds of `perf_counter`."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        head = data.find(b"\r\n\r\n")
        if head < 0 or not _is_whole(data, head):
            self._buffer = data
            return
        self._buffer = b""
        self._load.answered(self, int(data[9:12]), self._due)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(self)

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


def _is_whole(data: bytes, head: int) -> bool:
    lower = data[:head].lower()
    place = lower.find(b"content-length:")
    if place >= 0:
        return len(data) - head - 4 >= int(lower[place + 15 :].split(b"\r\n", 1)[0])
    return data.endswith(b"0\r\n\r\n")


class Load:
    """A run: sends requests, and notes when each was answered and with what status."""

    def __init__(self, requests: Iterator[bytes], *, closed: bool) -> None:
        self._requests = requests
        self._closed = closed
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._connections: set[Connection] = set()
        self._running = True
        self.lost_connections = 0
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []

    async def connect(self, host: str, port: int, count: int) -> None:
        """Open the connections."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, connection = await loop.create_connection(lambda: Connection(self), host, port)
            self._connections.add(connection)

    def begin(self) -> None:
        """Closed loop: every connection sends its first request."""
        while self._idle:
            self._idle.popleft().send(next(self._requests), time.perf_counter())

    def due(self, at: float) -> None:
        """Open loop: a request is due at `at`; it waits where every connection is taken."""
        if self._idle:
            self._idle.popleft().send(next(self._requests), at)
        else:
            self._waiting.append(at)

    def free(self, connection: Connection) -> None:
        """A connection has nothing to do."""
        self._idle.append(connection)

    def answered(self, connection: Connection, status: int, due: float) -> None:
        """A reply is here."""
        now = time.perf_counter()
        self.seconds.append(now - due)
        self.statuses[status] += 1
        if not self._running:
            return
        if self._closed:
            connection.send(next(self._requests), now)
        elif self._waiting:
            connection.send(next(self._requests), self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        if self._running:
            self.lost_connections += 1
        self._connections.discard(connection)

    def forget(self) -> None:
        """The warm-up is over."""
        self.seconds.clear()
        self.statuses.clear()

    def end(self) -> int:
        """Stop, and tell how many requests had no answer by then."""
        self._running = False
        unanswered = len(self._waiting) + (0 if self._closed else len(self._connections) - len(self._idle))
        for connection in list(self._connections):
            connection.close()
        return unanswered


async def run(
    url: str,
    bodies: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    warm: float,
    rate: float | None,
    headers: Mapping[str, str],
) -> dict[str, Any]:
    """Load a server, and give what was seen."""
    load = Load(cycle([encoded(url, body, headers) for body in bodies]), closed=rate is None)
    parts = urlsplit(url)
    await load.connect(parts.hostname or "", parts.port or 80, connections)
    started = time.perf_counter()
    if rate is None:
        load.begin()
        await asyncio.sleep(warm)
    else:
        await _keep_rate(load, rate, warm)
    load.forget()
    measured = time.perf_counter()
    if rate is None:
        await asyncio.sleep(seconds)
    else:
        await _keep_rate(load, rate, seconds)
    wall = time.perf_counter() - measured
    found = np.array(load.seconds) * 1000
    return {
        "requests": len(found),
        "seconds": wall,
        "warm_s": measured - started,
        "rps": len(found) / wall,
        "statuses": dict(load.statuses),
        "lost_connections": load.lost_connections,
        "unanswered": load.end(),
        **{name: float(np.percentile(found, at)) if len(found) else None for name, at in _SHOWN.items()},
    }


_SHOWN = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p999_ms": 99.9, "max_ms": 100}


async def _keep_rate(load: Load, rate: float, seconds: float) -> None:
    started = time.perf_counter()
    for index in range(int(rate * seconds)):
        at = started + index / rate
        wait = at - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        load.due(at)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url")
    arguments.add_argument("bodies", type=Path)
    arguments.add_argument("--connections", type=int, default=32)
    arguments.add_argument("--seconds", type=float, default=3.0)
    arguments.add_argument("--warm", type=float, default=0.5)
    arguments.add_argument("--rate", type=float)
    given = arguments.parse_args()
    bodies = given.bodies.read_bytes().splitlines()
    found = uvloop.run(
        run(
            given.url,
            bodies,
            connections=given.connections,
            seconds=given.seconds,
            warm=given.warm,
            rate=given.rate,
            headers={},
        )
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
