"""What the gateway costs over HTTP: beside a bare echo, beside a control that runs the same graph, and beside rivals.

    python benchmarks/serve/gateway.py [--rounds 5] [--seconds 3] [--connections 32] [--work WORK] [--out JSON]

One load generator for all (load.py, a closed loop, a process of its own), the same connections, servers in turn, every
other round backwards. Shares are taken round by round, so that what slows the machine slows both. The servers of the
trivial model are each pinned to one core and the generator to another; those of MiniLM have the machine.

    echo            a bare ASGI callable that parses the body and sends it back: uvicorn, uvloop, httptools
    echo + run      the same with session.run of the trivial graph on inputs at hand
    gateway, hit    `edgewise edge serve`, every request answered from the exact cache
    gateway, miss   the same without a cache: tokenizer, graph, decision
    litserve        one worker, a model that does nothing
    kserve          KServe's Python server, a model that does nothing
    executor        int8 MiniLM, tokenizer and graph in an executor with a thread a core, on a bare ASGI callable
    gateway, MiniLM int8 MiniLM behind the gateway, without a cache; both tell how late a timer of 5 ms fires

Then the gateway with int8 MiniLM starts anew, time after time: seconds from the start of its process until /readyz
answers 200, and its resident memory after a few hundred answers. A rival that cannot be installed is told and left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parents[1] / "quantize"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "unit"))

import tables
import tiny_models
from figures import Goal, ratios, spread
from harness import machine, memory_of
from inprocess import TOKENS, quantized
from launching import launched, loaded
from minilm import WORK, prepare_minilm

from edgewise.dataset import load_examples
from edgewise.files import write_atomically

HERE = Path(__file__).parent
LITSERVE, KSERVE = "litserve==0.2.19", "kserve==0.21.0"
STARTS = 7
TEXTS = 512
HIT_SHARE, MISS_SHARE, RIVAL_TIMES, EXECUTOR_SHARE = 0.75, 0.8, 5.0, 0.9
P50_MS, LATE_MS, READY_S, RSS_MB = 0.3, 10.0, 0.8, 140.0

_PREDICT = "/v1/predict"
_OURS = ("gateway, hit", "gateway, miss")


@dataclass(frozen=True)
class Server:
    """One server that is compared.

    Attributes:
        name: In tables.
        command: Gives the command for a port.
        path: Where requests go.
        ready: Path that answers 200 once it serves; None where the first connection tells.
        body: A request for one text.
        pinned: Whether it has one core, and the generator another.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    path: str = _PREDICT
    ready: str | None = None
    body: Callable[[str], Any] = lambda text: {"inputs": text}
    pinned: bool = True


def trivial_servers(bundle: Path, work: Path) -> list[Server]:
    """Those of the trivial model, the rivals last."""
    return [
        Server("echo", _control("echo")),
        Server("echo + run", _control("echo-run", bundle)),
        Server("gateway, hit", _gateway(_config(bundle, work, cached=True)), ready="/readyz"),
        Server("gateway, miss", _gateway(_config(bundle, work, cached=False)), ready="/readyz"),
        *_rival("litserve", [LITSERVE], work, "/predict", "/health", lambda text: {"inputs": text}),
        *_rival("kserve", [KSERVE], work, "/v1/models/trivial:predict", "/", lambda text: {"instances": [text]}),
    ]


def minilm_servers(bundle: Path, work: Path) -> list[Server]:
    """Those of int8 MiniLM."""
    timed = _config(bundle, work, cached=False)
    return [
        Server("executor", _control("executor", bundle), pinned=False),
        Server("gateway, MiniLM", _control("gateway", timed), ready="/readyz", pinned=False),
    ]


def _control(kind: str, *more: Path) -> Callable[[int], Sequence[str]]:
    return lambda port: [sys.executable, str(HERE / "controls.py"), kind, str(port), *map(str, more)]


def _gateway(config: Path) -> Callable[[int], Sequence[str]]:
    program = (sys.executable, "-m", "edgewise.cli", "edge", "serve")
    return lambda port: [*program, "--config", str(config), "--port", str(port)]


def _config(bundle: Path, work: Path, *, cached: bool) -> Path:
    path = work / "serve" / f"{bundle.parent.name}-{'cached' if cached else 'plain'}.toml"
    size = 16 << 20 if cached else 0
    text = f'[edge]\nbundle = {json.dumps(str(bundle))}\nmode = "edge_only"\n[cache]\nmax_bytes = {size}\n'
    write_atomically(path, text.encode())
    return path


def _rival(
    name: str, wanted: Sequence[str], work: Path, path: str, ready: str, body: Callable[[str], Any]
) -> list[Server]:
    """A rival in a virtual environment of its own; nothing but a line where it cannot be installed."""
    folder = work / "serve" / f"{name}-venv"
    python = folder / "bin" / "python"
    if not python.exists():
        tables.say(f"making {folder} with {', '.join(wanted)}: a minute or two")
        commands = (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-qq", *wanted],
        )
        if any(subprocess.run(command, check=False).returncode != 0 for command in commands):
            shutil.rmtree(folder, ignore_errors=True)
            tables.say(f"{name} cannot be installed here and is left out")
            return []
    script = HERE / "peers" / f"{name}_trivial.py"
    return [Server(name, lambda port: [str(python), str(script), str(port)], path, ready, body)]


def serving(server: Server, log: Path) -> AbstractContextManager[tuple[str, int]]:
    """The server started, as its URL and process id."""
    one_thread = {"OMP_NUM_THREADS": "1"}
    return launched(server.name, server.command, server.ready, log, pinned=server.pinned, environment=one_thread)


Runs = dict[str, list[dict[str, Any]]]


def measured(
    servers: Sequence[Server],
    texts: Sequence[str],
    work: Path,
    *,
    rounds: int,
    connections: Sequence[int],
    seconds: float,
) -> dict[int, Runs]:
    """What load.py saw of each server in each round, by connections; every other round goes backwards."""
    found: dict[int, Runs] = {count: {server.name: [] for server in servers} for count in connections}
    with ExitStack() as stack:
        running = {}
        for server in servers:
            log = work / "serve" / "logs" / f"{server.name.replace(' ', '-').replace(',', '')}.log"
            running[server.name], _ = stack.enter_context(serving(server, log))
        for turn in range(rounds):
            for server in servers if turn % 2 == 0 else tuple(reversed(servers)):
                bodies = work / "serve" / "gateway.bodies"
                write_atomically(bodies, b"".join(json.dumps(server.body(text)).encode() + b"\n" for text in texts))
                for count in connections:
                    tables.say(f"round {turn + 1}/{rounds}: {server.name}, {count} connections")
                    url = running[server.name]
                    _late(server, url)
                    one = loaded(server.name, url + server.path, bodies, count, seconds, pinned=server.pinned)
                    found[count][server.name].append({**one, **_late(server, url)})
    return found


def _late(server: Server, url: str) -> dict[str, float]:
    """How late the server's timer fired since it was asked last, where it has one."""
    if server.pinned:
        return {}
    told = httpx.get(f"{url}/late").json()
    return {"late_p99_ms": told["p99_ms"], "late_max_ms": told["max_ms"]}


def started(bundle: Path, texts: Sequence[str], work: Path, starts: int) -> dict[str, list[float]]:
    """Seconds to ready and resident megabytes of fresh gateways."""
    server = Server("gateway, start", _gateway(_config(bundle, work, cached=False)), ready="/readyz", pinned=False)
    ready_s, rss_mb = [], []
    for _ in range(starts):
        begun = time.perf_counter()
        with serving(server, work / "serve" / "logs" / "start.log") as (url, process):
            ready_s.append(time.perf_counter() - begun)
            with httpx.Client(base_url=url) as client:
                for text in texts[:300]:
                    client.post(_PREDICT, json={"inputs": text}).raise_for_status()
            rss_mb.append(memory_of(process)[0] / 1e6)
    return {"ready_s": ready_s, "rss_mb": rss_mb}


def column(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One figure of every round."""
    return [float(run[name]) for run in runs]


def goals(
    trivial: Mapping[int, Runs], minilm: Mapping[int, Runs], start: Mapping[str, Sequence[float]], crowd: int
) -> list[Goal]:
    """What is promised, and what came of it."""
    many, late = trivial[crowd], spread(column(minilm[crowd]["gateway, MiniLM"], "late_p99_ms"))
    asked = [
        ("gateway, hit", "echo", HIT_SHARE),
        ("gateway, miss", "echo + run", MISS_SHARE),
        *((ours, rival, RIVAL_TIMES) for rival in ("litserve", "kserve") if rival in many for ours in _OURS),
    ]
    found = [_share(many, *one) for one in asked]
    found.append(_share(minilm[crowd], "gateway, MiniLM", "executor", EXECUTOR_SHARE))
    for name in _OURS:
        p50 = spread(column(trivial[1][name], "p50_ms"))
        found.append(Goal(f"{name}: p50 at 1 connection <= {P50_MS} ms", tables.shown(p50, 3), p50.median <= P50_MS))
    ready, rss = spread(start["ready_s"]), spread(start["rss_mb"])
    return [
        *found,
        Goal(f"MiniLM: event loop late at p99 <= {LATE_MS:g} ms", tables.shown(late), late.median <= LATE_MS),
        Goal(f"MiniLM: start to ready <= {READY_S} s", tables.shown(ready), ready.median <= READY_S),
        Goal(f"MiniLM: resident <= {RSS_MB:g} MB", tables.shown(rss, 1), rss.median <= RSS_MB),
    ]


def _share(runs: Runs, name: str, base: str, wanted: float) -> Goal:
    share = ratios(column(runs[name], "rps"), column(runs[base], "rps"))
    return Goal(f"{name}: req/s >= {wanted:g} x {base}", tables.shown(share), share.median >= wanted)


def show(found: Mapping[int, Runs]) -> None:
    """Print a row a server and number of connections."""
    rows = [
        (
            f"{name}, {count} connections",
            tables.shown(spread(column(runs, "rps")), 0),
            *(tables.shown(spread(column(runs, field)), 3) for field in ("p50_ms", "p99_ms")),
            tables.shown(spread(column(runs, "late_p99_ms"))) if "late_p99_ms" in runs[0] else "-",
        )
        for count, servers in found.items()
        for name, runs in servers.items()
    ]
    tables.show_table("Gateway", ("server", "req/s", "p50 ms", "p99 ms", "timer late p99 ms"), rows)


def main() -> int:
    parser = tables.parser(__doc__, WORK / "results" / "serve-gateway.json")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load in each (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="of the crowd (default: %(default)s)")
    given = parser.parse_args()
    work = given.work or WORK
    where = machine()
    checkpoints = prepare_minilm(work, (TOKENS,), tables.say)
    bundle = quantized(work, checkpoints.checkpoints[TOKENS], checkpoints.tuning, "int8_dynamic")
    texts = [str(example.input) for example in load_examples(checkpoints.test)[:TEXTS]]
    folder = work / "serve" / "trivial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trivial_bundle = tiny_models.pack_text(folder)
    crowd = [1, given.connections]
    trivial = measured(
        trivial_servers(trivial_bundle, work),
        tiny_models.TEXTS,
        work,
        rounds=given.rounds,
        connections=crowd,
        seconds=given.seconds,
    )
    minilm = measured(
        minilm_servers(bundle, work),
        texts,
        work,
        rounds=given.rounds,
        connections=crowd[1:],
        seconds=given.seconds,
    )
    start = started(bundle, texts, work, min(STARTS, 2 + given.rounds))
    tables.show_machine(where)
    show(trivial)
    show(minilm)
    met = goals(trivial, minilm, start, given.connections)
    tables.show_goals(met)
    tables.write_json(given.out, {"machine": where, "trivial": trivial, "minilm": minilm, "start": start, "goals": met})
    return 0 if all(goal.met for goal in met) else 1


if __name__ == "__main__":
    raise SystemExit(tables.run(main))
