"""A million valid, broken and hostile requests over every protocol: does the process stay healthy, its memory flat?

    python benchmarks/serve/soak.py [--requests 1000000] [--seed 0] [--connections 16] [--out JSON]

A gateway with a tiny classifier stands before a cloud service with the same and a tiny embedder; both doors get half of
the requests each: native JSON, events, polls, WebSockets, Open Inference Protocol as JSON and as bytes, embeddings,
pages, and bytes that are no HTTP. What is sent comes from a seed (fuzzing.py).

Sought are: a status of 500 or above that is not documented, a valid request that is not answered with
200, an error without a body that says what to do, a traceback in a log, a process that ends, and resident memory that
goes on growing. Memory is sampled all along; its first half is warming up (caches and the kept answers fill to their
bounds), and over the second half it may grow by 5 % of itself at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "quantize"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "unit"))
sys.path.append(str(Path(__file__).parent))

import numpy as np
from fuzzing import LATER, Fuzzer, Shot
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

GROWTH = 0.05
REPLY_S = 30.0
DOCUMENTED = {
    "cloud_timeout": 504,
    **dict.fromkeys(("cloud_unavailable", "outbox_full", "store_unavailable", "not_ready", "shutting_down"), 503),
}
"""Codes that a service in good health may reply, with their status."""

MOST_PROBLEMS = 50
_READY = re.compile(r"ready on (http://\S+)")


class Process:
    """An `edgewise … serve` process with its log in a file."""

    def __init__(self, name: str, arguments: Sequence[str | Path], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "edgewise.cli", *map(str, arguments)]
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        self.url = self._wait_ready()
        self.memory: list[tuple[float, int]] = []

    def _wait_ready(self) -> str:
        until = time.monotonic() + 120
        while time.monotonic() < until and self.alive:
            if found := _READY.search(self.log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not serve: {self.log.read_text(errors='replace')[-2000:]}")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def sample(self, done: float) -> None:
        """Note the resident memory, in bytes, when the share `done` of all requests is sent."""
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
            self.memory.append((done, pages * os.sysconf("SC_PAGE_SIZE")))

    def stop(self) -> int:
        """End it, and give its exit code."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@dataclass
class Seen:
    """What came back."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    sent: int = 0

    def note(self, shot: Shot, status: str) -> None:
        """Count an outcome."""
        self.statuses[shot.kind, status] += 1

    def complain(self, shot: Shot, what: str) -> None:
        """Something that must not happen."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(f"{shot.kind}: {what}; sent {shot.path} {shot.body[:200]!r} {shot.messages!r:.300}")


class Client:
    """One client with a connection of its own, that it opens again where the door closed it."""

    def __init__(self, door: Process, seen: Seen) -> None:
        self._door = door
        self._seen = seen
        self._later: deque[str] = deque(maxlen=50)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, shots: Iterator[Shot]) -> None:
        """Send one after the other."""
        for shot in shots:
            try:
                async with asyncio.timeout(REPLY_S):
                    await self._send(shot)
            except TimeoutError:
                self._seen.complain(shot, f"no reply within {REPLY_S:g} s")
                await self._hang_up()
            self._seen.sent += 1
        await self._hang_up()

    async def _send(self, shot: Shot) -> None:
        if shot.how == "http":
            await self._http(shot)
        elif shot.how == "raw":
            await self._raw(shot)
        else:
            await self._socket(shot)

    async def _http(self, shot: Shot) -> None:
        wanted = shot.encoded("127.0.0.1").replace(LATER.encode(), (self._later[0] if self._later else "none").encode())
        for attempt in range(2):
            reused = self._streams is not None
            reader, writer = self._streams = self._streams or await asyncio.open_connection(*self._door.address)
            try:
                writer.write(wanted)
                await writer.drain()
                status, headers, body = await _read_reply(reader, head_only=shot.method == "HEAD")
            except (OSError, asyncio.IncompleteReadError) as error:
                await self._hang_up()
                # A connection that had been kept may have been closed meanwhile; once more, on a fresh one.
                if reused and attempt == 0:
                    continue
                self._seen.complain(shot, f"the connection broke ({type(error).__name__})")
                return
            if headers.get("connection") == "close":
                await self._hang_up()
            self._judge(shot, status, body)
            return

    def _judge(self, shot: Shot, status: int, body: bytes) -> None:
        self._seen.note(shot, str(status))
        if b"Traceback" in body:
            self._seen.complain(shot, "a traceback in the reply")
        if status == 200:
            self._remember(body)
            return
        code = _code_of(body)
        if status >= 500 and DOCUMENTED.get(code) != status:
            self._seen.complain(shot, f"status {status}: {body[:300]!r}")
        elif shot.valid and DOCUMENTED.get(code) != status:
            self._seen.complain(shot, f"a valid request was answered {status}: {body[:300]!r}")
        elif status >= 400 and not body and shot.method != "HEAD":
            self._seen.complain(shot, f"status {status} without a body")

    def _remember(self, body: bytes) -> None:
        if b'"status":"provisional"' in body and (found := re.search(rb'"id":"([^"]+)"', body)):
            self._later.append(found[1].decode())

    async def _raw(self, shot: Shot) -> None:
        reader, writer = await asyncio.open_connection(*self._door.address)
        try:
            writer.write(shot.body)
            writer.write_eof()
            reply = await reader.read(4096)
            status = reply[9:12].decode("latin-1") if reply.startswith(b"HTTP/1.1 ") else "closed"
            self._seen.note(shot, status)
            if status.startswith("5"):
                self._seen.complain(shot, reply[:300].decode("latin-1"))
        except OSError:
            self._seen.note(shot, "reset")
        finally:
            writer.close()

    async def _socket(self, shot: Shot) -> None:
        try:
            async with connect(self._door.url.replace("http", "ws") + shot.path, max_size=None) as socket:
                for message in shot.messages:
                    await socket.send(message)
                    told = json.loads(await socket.recv())
                    code = told.get("error", {}).get("code", "")
                    if code == "internal" or "Traceback" in str(told):
                        self._seen.complain(shot, f"told {told!r:.300}")
                    self._seen.note(shot, told["type"])
        except WebSocketException as error:
            self._seen.note(shot, type(error).__name__)

    async def _hang_up(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()


async def _read_reply(reader: asyncio.StreamReader, *, head_only: bool) -> tuple[int, dict[str, str], bytes]:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status >= 200:
            break
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    if head_only or status in (204, 304):
        return status, headers, b""
    if headers.get("transfer-encoding") == "chunked":
        return status, headers, await _read_chunks(reader)
    return status, headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


def _code_of(body: bytes) -> str:
    """The code in an error's body, whichever protocol's it is."""
    found = re.search(rb'"code":"(\w+)"|"error":"(\w+):', body)
    return (found[1] or found[2]).decode() if found else ""


async def soaked(doors: Sequence[tuple[Process, Fuzzer]], requests: int, connections: int, seen: Seen) -> None:
    """Send the requests, half of them to each door; memory is sampled all along."""
    clients: list[Coroutine[Any, Any, None]] = []
    for door, fuzzer in doors:
        shots = fuzzer.shots(requests // len(doors))
        clients += [Client(door, seen).run(shots) for _ in range(connections)]
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(_sample([door for door, _ in doors], requests, seen))
        await asyncio.gather(*clients)
        sampling.cancel()


async def _sample(doors: Sequence[Process], requests: int, seen: Seen) -> None:
    while True:
        for door in doors:
            door.sample(seen.sent / requests)
        await asyncio.sleep(0.25)


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process over the second half of a soak.

    Attributes:
        start_mb: Median of the first fifth of it, in millions of bytes.
        end_mb: Median of its last fifth.
        slope_mb: Least-squares growth over a whole run as long as this one.
    """

    start_mb: float
    end_mb: float
    slope_mb: float

    @property
    def growth(self) -> float:
        """Relative growth over the second half."""
        return self.end_mb / self.start_mb - 1


def memory_of(samples: Sequence[tuple[float, int]]) -> Memory:
    """Judge samples of (share of the requests sent, resident bytes).

    Raises:
        ValueError: There are too few.
    """
    late = np.array([(done, size / 1e6) for done, size in samples if done >= 0.5])
    if len(late) < 10:
        raise ValueError(f"{len(late)} samples tell nothing of memory.")
    fifth = len(late) // 5
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    return Memory(float(np.median(late[:fifth, 1])), float(np.median(late[-fifth:, 1])), slope)


_CONFIG = """
[edge]
bundle = "{bundle}"
inference_threads = 1
[policy]
use = "random"
local_share = 0.5
[cloud.backends.main]
url = "{cloud}"
model = "{classifier}"
[cache]
max_bytes = 1000000
[state]
path = "{state}"
[server]
port = 0
"""


def soak(
    classifier: Path, embedder: Path, folder: Path, *, requests: int, seed: int, connections: int
) -> dict[str, Any]:
    """Start both processes, soak them, stop them; gives what was found."""
    cloud = Process(
        "cloud", ["cloud", "serve", f"news={classifier}", f"places={embedder}", "--port", 0, "--engine", "onnx"], folder
    )
    gateway = None
    try:
        config = folder / "edgewise.toml"
        config.write_text(
            _CONFIG.format(bundle=classifier, cloud=cloud.url, classifier="news", state=folder / "state.db")
        )
        gateway = Process("gateway", ["edge", "serve", "--config", config], folder)
        seen = Seen()
        doors = [
            (gateway, Fuzzer(seed, classifier="tiny-text", embedder=None, gateway=True)),
            (cloud, Fuzzer(seed + 1, classifier="news", embedder="places", gateway=False)),
        ]
        started = time.perf_counter()
        asyncio.run(soaked(doors, requests, connections, seen))
        seconds = time.perf_counter() - started
        problems = [*seen.problems, *_aftermath([gateway, cloud])]
    finally:
        codes = {process.name: process.stop() for process in (gateway, cloud) if process is not None}
    problems += [f"{name} ended with code {code}" for name, code in codes.items() if code != 0]
    return {
        "requests": seen.sent,
        "seconds": seconds,
        "statuses": {f"{kind} → {status}": count for (kind, status), count in sorted(seen.statuses.items())},
        "problems": problems,
        "memory": {process.name: process.memory for process in (gateway, cloud)},
    }


def _aftermath(processes: Sequence[Process]) -> list[str]:
    """What is wrong with processes that were soaked."""
    import httpx

    found = []
    for process in processes:
        if not process.alive:
            found.append(f"{process.name} is dead")
            continue
        for path in ("/healthz", "/readyz"):
            status = httpx.get(process.url + path, timeout=REPLY_S).status_code
            found += [f"{process.name}{path} answers {status}"] if status != 200 else []
        answer = httpx.post(f"{process.url}/v1/predict", json={"inputs": "wheat corn"}, timeout=REPLY_S).json()
        found += [f"{process.name} answers {answer}"] if answer.get("output") != "grain" else []
        log = process.log.read_text(errors="replace")
        found += (
            [f"{process.name} logged a traceback: {log[log.index('Traceback') :][:1500]}"] if "Traceback" in log else []
        )
    return found


def main() -> int:
    import tables
    import tiny_models
    from figures import Goal
    from harness import machine
    from minilm import WORK

    parser = tables.parser(__doc__, WORK / "results" / "serve-soak.json", rounds=1)
    parser.add_argument("--requests", type=int, default=1_000_000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what is sent comes from it (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=16, help="a door (default: %(default)s)")
    given = parser.parse_args()
    where = machine()
    tables.show_machine(where)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "text").mkdir()
        (folder / "places").mkdir()
        bundles = tiny_models.pack_text(folder / "text"), tiny_models.pack_embedder(folder / "places")
        found = soak(*bundles, folder, requests=given.requests, seed=given.seed, connections=given.connections)
    tables.show_table("Replies", ("what → status", "count"), [[what, str(n)] for what, n in found["statuses"].items()])
    judged = {name: memory_of(samples) for name, samples in found["memory"].items()}
    rows = [
        [name, *(f"{value:.1f}" for value in (memory.start_mb, memory.end_mb, memory.slope_mb))]
        for name, memory in judged.items()
    ]
    tables.show_table("Resident memory, second half", ("process", "start MB", "end MB", "slope MB a run"), rows)
    goals = [
        Goal("nothing that must not happen", f"{len(found['problems'])} problems", not found["problems"]),
        *(
            Goal(f"memory of the {name} flat within {GROWTH:.0%}", f"{memory.growth:+.1%}", memory.growth <= GROWTH)
            for name, memory in judged.items()
        ),
    ]
    for problem in found["problems"]:
        tables.say(problem)
    tables.show_goals(goals)
    settings = {"requests": given.requests, "seed": given.seed, "connections": given.connections}
    tables.write_json(given.out, {"machine": where, "settings": settings, **found, "judged": judged, "goals": goals})
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    import tables

    sys.exit(tables.run(main))
