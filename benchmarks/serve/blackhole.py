"""The cloud goes silent under load: who still answers in time, and what becomes of what was promised for later?

    python benchmarks/serve/blackhole.py [--seconds 60] [--rate 50] [--budget-ms 100] [--rounds 3] [--out JSON]

Open loop: requests are due at fixed times and timed from then, whatever happens to those before. Every request is
escalated, none is in the cache, and the cloud stands behind a TCP proxy that at second 0 begins to accept and never
answer. The edge model is tiny, so that the network is what is measured.

    edgewise                  as `edgewise edge serve` comes
    edgewise, breaker closed  the same with a breaker that never opens: every request waits its whole budget
    httpx with a time-out     what one writes by hand: ask the cloud with `timeout=budget`, else the local model

When the load is over the proxy forwards again. Each provisional answer is then polled for until it is final: none may
be missing, none may come under another id or change afterwards.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.append(str(Path(__file__).parents[1] / "quantize"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "unit"))

import httpx
import numpy as np

ROOT = Path(__file__).parents[2]
WAITED = 0.8
"""A provisional answer that took this share of its budget waited for the cloud."""

OVER_P999_MS, OVER_MAX_MS = 10.0, 50.0
PATIENCE_S = 120.0
POLLERS = 16
_READY = re.compile(r"ready on (http://\S+)")

CONFIG = """
[edge]
bundle = "{bundle}"
budget_ms = {budget_ms}
inference_threads = 1
[policy]
use = "random"
local_share = 0.0
[cache]
max_bytes = 0
[cloud]
cool_down_s = 1.0
failures_to_open = {failures_to_open}
[cloud.backends.main]
url = "{cloud}"
[state]
path = "{state}"
[server]
port = 0
"""

CONTENDERS = ("edgewise", "edgewise, breaker closed", "httpx with a time-out")
NEVER = 10**9


@dataclass(frozen=True)
class Told:
    """What one request was told, and how long after it was due.

    Attributes:
        id: Its id.
        ms: Milliseconds from when it was due to the whole reply.
        own_ms: Milliseconds by the service's own account.
        reason: Why the answer is what it is.
        status: "final" or "provisional".
    """

    id: str
    ms: float
    own_ms: float
    reason: str
    status: str


@dataclass(frozen=True)
class Drain:
    """What became of the provisional answers once the cloud was back.

    Attributes:
        owed: How many there were.
        delivered: Those that became final under their id, and stayed so.
        seconds: From the cloud's return to the last one.
    """

    owed: int
    delivered: int
    seconds: float


def load(path: Path) -> ModuleType:
    """A module by its path."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(arguments: Sequence[str | Path], log: Path) -> Iterator[str]:
    """Run an `edgewise … serve` process, and give its URL."""
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "edgewise.cli", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        until = time.monotonic() + PATIENCE_S
        while not (found := _READY.search(log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{arguments} does not serve: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Caller:
    """Native requests over kept connections, with no HTTP library in the way."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def open(self, count: int) -> None:
        """Connect beforehand: connecting is not what is measured."""
        for _ in range(count):
            self._idle.append(await asyncio.open_connection(self._host, self._port))

    async def __call__(self, request_id: str, text: str) -> dict[str, Any]:
        """The answer to one request."""
        body = json.dumps({"inputs": text, "id": request_id}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nhost: {self._host}\r\ncontent-length: {len(body)}\r\n\r\n"
        wanted = head.encode() + body
        # The one that was idle longest first, so that none is idle for so long that the server closes it.
        streams = self._idle.popleft() if self._idle else await asyncio.open_connection(self._host, self._port)
        try:
            answer = await _answer(streams, wanted)
        except (ConnectionError, asyncio.IncompleteReadError):
            # It was closed while idle all the same; a fresh one may not.
            streams[1].close()
            streams = await asyncio.open_connection(self._host, self._port)
            answer = await _answer(streams, wanted)
        self._idle.append(streams)
        if "error" in answer:
            raise RuntimeError(f"{request_id} was refused: {answer['error']}")
        return answer

    def close(self) -> None:
        """Hang up."""
        for _, writer in self._idle:
            writer.close()


async def _answer(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], wanted: bytes) -> dict[str, Any]:
    reader, writer = streams
    writer.write(wanted)
    reply = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    size = int(reply.partition("content-length:")[2].partition("\r\n")[0])
    answer: dict[str, Any] = json.loads(await reader.readexactly(size))
    return answer


class ByHand:
    """The fallback that one writes without a gateway: no breaker, no promise of anything later."""

    def __init__(self, cloud: str, bundle: Path, budget_ms: float) -> None:
        from edgewise.edge import EdgeModel

        self._model = EdgeModel.load(bundle, threads=1)
        self._client = httpx.AsyncClient(base_url=cloud, timeout=budget_ms / 1000)

    async def __call__(self, request_id: str, text: str) -> dict[str, Any]:
        """The cloud's answer, or the local model's."""
        started = time.perf_counter()
        try:
            reply = await self._client.post("/v1/predict", json={"inputs": text, "id": request_id})
            output, status, reason = reply.raise_for_status().json()["output"], "final", "cloud"
        except httpx.HTTPError as error:
            (prediction,) = await asyncio.to_thread(self._model.predict, [text])
            output, status, reason = prediction.output, "provisional", type(error).__name__
        total = 1000 * (time.perf_counter() - started)
        return {"id": request_id, "output": output, "status": status, "reason": reason, "timings_ms": {"total": total}}

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


Ask = Callable[[str, str], Awaitable[dict[str, Any]]]


async def open_loop(ask: Ask, *, prefix: str, rate: float, seconds: float) -> list[Told]:
    """Send requests at their times, each timed from when it was due."""
    told: list[Told] = []

    async def one(number: int, due: float) -> None:
        # Texts of their own: identical ones would share a call.
        answer = await ask(f"{prefix}-{number}", f"wheat port {prefix} {number}")
        ms = 1000 * (time.perf_counter() - due)
        told.append(Told(answer["id"], ms, answer["timings_ms"]["total"], answer["reason"], answer["status"]))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(number, due))
    return told


async def drained(url: str, told: Sequence[Told], returned: float) -> Drain:
    """Poll for every provisional answer until it is final, and once more at the end."""
    owed = [answer.id for answer in told if answer.status == "provisional"]
    pollers = asyncio.Semaphore(POLLERS)
    settled: list[float] = [returned]

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:

        async def final(request_id: str) -> dict[str, Any] | None:
            """The final answer under an id, or None where none came."""
            async with pollers:
                while time.perf_counter() - returned < PATIENCE_S:
                    reply = await client.get(f"/v1/answers/{request_id}", params={"wait_ms": 5000})
                    if reply.status_code != 200:
                        return None
                    if reply.json()["status"] == "final":
                        settled.append(time.perf_counter())
                        found: dict[str, Any] = reply.json()
                        return found
            return None

        first = await asyncio.gather(*map(final, owed))
        again = await asyncio.gather(*map(final, owed))
    whole = [
        one is not None and one["id"] == name and one == two for name, one, two in zip(owed, first, again, strict=True)
    ]
    return Drain(len(owed), sum(whole), max(settled[: len(owed) + 1]) - returned)


@dataclass(frozen=True)
class Figures:
    """One run of one contender, in milliseconds from when requests were due."""

    requests: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    reasons: dict[str, int]
    asked_while_closed: int
    waited_while_closed: int
    after_opening: int
    waited_after_opening: int


def figures(told: Sequence[Told], budget_ms: float) -> Figures:
    """Judge what was told. Behind an open breaker the reason is `breaker_open`; other provisionals asked the cloud."""
    times = np.array([answer.ms for answer in told])
    opened = [answer for answer in told if answer.reason == "breaker_open"]
    asked = [answer for answer in told if answer.status == "provisional" and answer.reason != "breaker_open"]
    p50, p99, p999 = (float(np.percentile(times, at)) for at in (50, 99, 99.9))
    return Figures(
        requests=len(told),
        p50_ms=p50,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=float(times.max()),
        reasons=dict(Counter(answer.reason for answer in told)),
        asked_while_closed=len(asked),
        waited_while_closed=sum(answer.ms >= WAITED * budget_ms for answer in asked),
        after_opening=len(opened),
        waited_after_opening=sum(answer.own_ms >= WAITED * budget_ms for answer in opened),
    )


async def run_edgewise(url: str, proxy: Any, faults: ModuleType, given: Any) -> tuple[Figures, Drain]:
    """One run of a gateway: well, black, well again."""
    caller = Caller(url)
    await caller.open(int(given.rate * given.budget_ms / 1000) + 10)
    await open_loop(caller, prefix="warm", rate=given.rate, seconds=2)
    proxy.set(faults.BLACKHOLE)
    told = await open_loop(caller, prefix="black", rate=given.rate, seconds=given.seconds)
    proxy.set(faults.PASS)
    drain = await drained(url, told, time.perf_counter())
    caller.close()
    return figures(told, given.budget_ms), drain


async def run_by_hand(bundle: Path, proxy: Any, faults: ModuleType, given: Any) -> tuple[Figures, None]:
    """One run of the fallback written by hand."""
    by_hand = ByHand(proxy.url, bundle, given.budget_ms)
    await open_loop(by_hand, prefix="warm", rate=given.rate, seconds=2)
    proxy.set(faults.BLACKHOLE)
    told = await open_loop(by_hand, prefix="black", rate=given.rate, seconds=given.seconds)
    proxy.set(faults.PASS)
    await by_hand.aclose()
    return figures(told, given.budget_ms), None


def one_round(
    bundle: Path, folder: Path, given: Any, say: Callable[[str], None]
) -> dict[str, tuple[Figures, Drain | None]]:
    """Every contender once, each with a gateway, a network and a state of its own; the cloud is the same."""
    faults = load(ROOT / "tests" / "faults" / "proxy.py")
    found: dict[str, tuple[Figures, Drain | None]] = {}
    cloud_command = ["cloud", "serve", bundle, "--port", 0, "--engine", "onnx", "--replicas", 0]
    with serving(cloud_command, folder / "cloud.log") as cloud:
        host, _, port = cloud.removeprefix("http://").rpartition(":")
        for name in CONTENDERS:
            say(name)
            with faults.FaultProxy(host, int(port)) as proxy:
                if name == "httpx with a time-out":
                    found[name] = asyncio.run(run_by_hand(bundle, proxy, faults, given))
                    continue
                config = folder / "edgewise.toml"
                opens = NEVER if name.endswith("closed") else 3
                state = folder / f"state-{time.monotonic_ns()}.db"
                values = {"bundle": bundle, "cloud": proxy.url, "state": state, "budget_ms": given.budget_ms}
                config.write_text(CONFIG.format(**values, failures_to_open=opens))
                with serving(["edge", "serve", "--config", config], folder / "gateway.log") as url:
                    found[name] = asyncio.run(run_edgewise(url, proxy, faults, given))
    return found


def goals(rounds: Sequence[dict[str, tuple[Figures, Drain | None]]], budget_ms: float, goal: Any) -> list[Any]:
    """What is promised, judged by the worst round."""
    judged = []
    for name in CONTENDERS[:2]:
        runs = [found[name] for found in rounds]
        p999, longest = max(run.p999_ms for run, _ in runs), max(run.max_ms for run, _ in runs)
        owed = sum(drain.owed for _, drain in runs if drain)
        delivered = sum(drain.delivered for _, drain in runs if drain)
        judged += [
            goal(
                f"{name}: p99.9 at most budget + {OVER_P999_MS:g} ms",
                f"{p999:.1f} ms",
                p999 <= budget_ms + OVER_P999_MS,
            ),
            goal(
                f"{name}: longest at most budget + {OVER_MAX_MS:g} ms",
                f"{longest:.1f} ms",
                longest <= budget_ms + OVER_MAX_MS,
            ),
            goal(f"{name}: every provisional answer delivered", f"{delivered} of {owed}", delivered == owed > 0),
        ]
    default = [found[CONTENDERS[0]][0] for found in rounds]
    asked, waited = sum(run.asked_while_closed for run in default), sum(run.waited_while_closed for run in default)
    opened, late = sum(run.after_opening for run in default), sum(run.waited_after_opening for run in default)
    judged += [
        goal("while the breaker is closed requests wait for the cloud", f"{waited} of {asked}", waited == asked > 0),
        goal("after it opened none waits", f"{late} of {opened}", late == 0 < opened),
    ]
    return judged


def main() -> int:
    import tables
    import tiny_models
    from figures import Goal, spread
    from harness import machine
    from minilm import WORK

    parser = tables.parser(__doc__, WORK / "results" / "serve-blackhole.json", rounds=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load without a cloud (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--budget-ms", type=float, default=100.0, help="of every request (default: %(default)s)")
    given = parser.parse_args()
    where = machine()
    tables.show_machine(where)
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = tiny_models.pack_text(Path(scratch))
        for turn in range(given.rounds):
            say = lambda name, turn=turn: tables.say(f"round {turn + 1}/{given.rounds}: {name}")  # noqa: E731
            rounds.append(one_round(bundle, Path(scratch), given, say))
    rows = []
    for name in CONTENDERS:
        runs = [found[name][0] for found in rounds]
        drains = [drain for found in rounds if (drain := found[name][1])]
        shown = [
            tables.shown(spread([getattr(run, key) for run in runs]), 1)
            for key in ("p50_ms", "p99_ms", "p999_ms", "max_ms")
        ]
        settled = f"{sum(d.delivered for d in drains)} of {sum(d.owed for d in drains)}" if drains else "none"
        took = tables.shown(spread([drain.seconds for drain in drains]), 1) if drains else ""
        rows.append([name, *shown, settled, took])
    columns = ("contender", "p50 ms", "p99 ms", "p99.9 ms", "longest ms", "settled later", "within s")
    title = f"No cloud, {given.rate:g} requests a second, budget {given.budget_ms:g} ms"
    tables.show_table(title, columns, rows)
    judged = goals(rounds, given.budget_ms, Goal)
    tables.show_goals(judged)
    settings = {"rate": given.rate, "seconds": given.seconds, "budget_ms": given.budget_ms, "rounds": given.rounds}
    runs = [
        {name: [asdict(part) if part else None for part in both] for name, both in found.items()} for found in rounds
    ]
    tables.write_json(given.out, {"machine": where, "settings": settings, "runs": runs, "goals": judged})
    return 0 if all(goal.met for goal in judged) else 1


if __name__ == "__main__":
    import tables

    sys.exit(tables.run(main))
