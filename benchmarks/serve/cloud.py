"""MiniLM through the cloud service at concurrency 32, texts of mixed lengths, beside LitServe and beside itself.

    python benchmarks/serve/cloud.py [--rounds 5] [--seconds 8] [--connections 32] [--work WORK] [--out JSON]

Each round starts every server anew, in turn, loads it with the same texts over the same number of connections (load.py,
a closed loop), and stops it. All serve one checkpoint: MiniLM-L6 fine-tuned on Reuters R52, which reads texts up to 256
tokens. The texts are the test part of Reuters as published, from one line to many paragraphs.

    edgewise            as it is: the runtime is chosen at start
    edgewise, torch     the same through torch, with LitServe's torch, threads and cap
    edgewise, single    as it is, with batching off
    litserve …          batching on, at several settings; the best of them counts. A virtual environment of its own.

All must give the same labels. Figures are medians over the rounds with the smallest and the largest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "quantize"))

import tables
from figures import Goal, Spread, ratios, spread
from harness import BenchmarkError, machine
from launching import launched, loaded
from minilm import WORK, prepare_minilm, rebuild

from edgewise.dataset import load_examples
from edgewise.files import sha256_file, sha256_tree, write_atomically

LITSERVE = "litserve==0.2.19"
TOKENS = 256
MAX_BATCH = 16
CHECKED_TEXTS = 40
GOAL_RATIO = 1.5

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"


@dataclass(frozen=True)
class Server:
    """One way to serve the checkpoint.

    Attributes:
        name: In tables.
        command: Gives the command for a port.
        path: Where requests go.
        field: Name of the text in a body.
        ready: Path that answers 200 once it serves.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    path: str
    field: str
    ready: str

    def body(self, text: str) -> bytes:
        """A request for one text."""
        return json.dumps({self.field: text}).encode()


def servers(checkpoint: Path, litserve: Path, threads: int) -> list[Server]:
    """Every server that is compared."""
    return [
        _edgewise("edgewise", checkpoint, threads),
        _edgewise("edgewise, torch", checkpoint, threads, "--engine", "torch"),
        _edgewise("edgewise, single", checkpoint, threads, "--max-batch", "1"),
        _litserve("litserve, 1 worker", checkpoint, litserve, threads=threads, workers=1, wait_ms=0),
        _litserve("litserve, 1 worker, 5 ms", checkpoint, litserve, threads=threads, workers=1, wait_ms=5),
        _litserve("litserve, a worker a core", checkpoint, litserve, threads=1, workers=threads, wait_ms=5),
    ]


def _edgewise(name: str, checkpoint: Path, threads: int, *more: str) -> Server:
    cap = () if "--max-batch" in more else ("--max-batch", str(MAX_BATCH))
    serve = (sys.executable, "-m", "edgewise.cli", "cloud", "serve", str(checkpoint), "--threads", str(threads))
    return Server(name, lambda port: [*serve, "--port", str(port), *cap, *more], "/v1/predict", "inputs", "/readyz")


def _litserve(name: str, checkpoint: Path, python: Path, *, threads: int, workers: int, wait_ms: float) -> Server:
    script = HERE / "peers" / "litserve_minilm.py"
    options = {"--threads": threads, "--workers": workers, "--max-batch": MAX_BATCH, "--wait-ms": wait_ms}
    flags = [part for option, value in options.items() for part in (option, str(value))]
    return Server(
        name,
        lambda port: [str(python), str(script), str(checkpoint), "--port", str(port), *flags],
        "/predict",
        "text",
        "/health",
    )


def prepared(work: Path, say: Callable[[str], None]) -> tuple[Path, list[str]]:
    """The checkpoint, reading `TOKENS` tokens, and the texts."""
    found = prepare_minilm(work, (64,), say)
    source, checkpoint = found.checkpoints[64], work / "serve" / f"minilm-{TOKENS}"

    def build(stage: Path) -> None:
        shutil.copytree(source, stage, dirs_exist_ok=True)
        settings = stage / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": TOKENS}))

    rebuild(checkpoint, {"source": sha256_tree(source), "tokens": str(TOKENS)}, build)
    return checkpoint, [str(example.input) for example in load_examples(found.test)]


def make_litserve(work: Path, say: Callable[[str], None]) -> Path:
    """LitServe's own virtual environment; made once (about a minute, 1 GB). Returns its Python.

    Raises:
        BenchmarkError: pip failed.
    """
    folder = work / "litserve-venv"
    made_from, python = folder / ".made-from", folder / "bin" / "python"
    wanted = [LITSERVE, "safetensors", f"transformers=={metadata.version('transformers')}"]
    recipe = " ".join([*wanted, sha256_file(CONSTRAINTS)])
    if not made_from.exists() or made_from.read_text() != recipe:
        say(f"making {folder} with {LITSERVE}: about a minute")
        pip = [str(python), "-m", "pip", "install", "-qq", "--constraint", str(CONSTRAINTS)]
        # torch first: with it in place pip looks for no other build of it.
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*pip, "torch"], [*pip, *wanted]):
            if subprocess.run(command, check=False).returncode != 0:
                raise BenchmarkError(f"{' '.join(command)} failed.", "Check that the package registry can be reached.")
        write_atomically(made_from, recipe.encode())
    return python


def labels_of(server: Server, url: str, texts: Sequence[str]) -> list[str]:
    """The labels a server gives, one text after the other."""
    with httpx.Client(timeout=30) as client:
        replies = [client.post(url + server.path, content=server.body(text), headers=JSON) for text in texts]
    return [reply.raise_for_status().json()["output"] for reply in replies]


JSON = {"content-type": "application/json"}


def measured(
    candidates: Sequence[Server], texts: Sequence[str], work: Path, *, rounds: int, connections: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """What load.py saw of each server in each round; every other round goes backwards.

    Raises:
        BenchmarkError: Servers do not agree on the labels.
    """
    expected: list[str] = []
    found: dict[str, list[dict[str, Any]]] = {server.name: [] for server in candidates}
    for turn in range(rounds):
        for server in candidates if turn % 2 == 0 else reversed(candidates):
            tables.say(f"round {turn + 1}/{rounds}: {server.name}")
            bodies = work / "serve" / f"{server.field}.bodies"
            write_atomically(bodies, b"\n".join(map(server.body, texts)) + b"\n")
            log = work / "serve" / "logs" / f"{server.name.replace(' ', '-')}.log"
            with launched(server.name, server.command, server.ready, log) as (url, _):
                labels = labels_of(server, url, texts[:CHECKED_TEXTS])
                expected = expected or labels
                if labels != expected:
                    raise BenchmarkError(f"{server.name} answers otherwise than {candidates[0].name}.")
                run = loaded(server.name, url + server.path, bodies, connections, seconds, warm=2.0)
                found[server.name].append(run)
    return found


def column(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One figure of every round."""
    return [float(run[name]) for run in runs]


def goals(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Goal]:
    """What is promised, and what came of it. LitServe's best setting is the one with the most requests a second."""
    own = found["edgewise"]
    rivals = {name: runs for name, runs in found.items() if name.startswith("litserve")}
    best = max(rivals, key=lambda name: spread(column(rivals[name], "rps")).median)
    times = ratios(column(own, "rps"), column(rivals[best], "rps"))
    tail = ratios(column(own, "p99_ms"), column(rivals[best], "p99_ms"))
    same_runtime = ratios(column(found["edgewise, torch"], "rps"), column(rivals[best], "rps"))
    single = ratios(column(own, "rps"), column(found["edgewise, single"], "rps"))
    return [
        Goal(f"more req/s than {best}", _times(times), times.median > 1),
        Goal(f"{GOAL_RATIO} x its req/s", _times(times), times.median >= GOAL_RATIO),
        Goal("at equal or lower p99", _times(tail), tail.median <= 1),
        Goal("more req/s also through its own runtime", _times(same_runtime), same_runtime.median > 1),
        Goal("more req/s than with batching off", _times(single), single.median > 1),
    ]


def _times(value: Spread) -> str:
    return f"{tables.shown(value)} x"


def show(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The table."""
    names = ("rps", "p50_ms", "p99_ms", "max_ms")
    rows = [
        [server, *(tables.shown(spread(column(runs, name)), 0 if name == "rps" else 1) for name in names)]
        for server, runs in found.items()
    ]
    tables.show_table("MiniLM, texts of mixed lengths", ("server", "req/s", "p50 ms", "p99 ms", "longest ms"), rows)


def main() -> int:
    parser = tables.parser(__doc__, WORK / "results" / "serve-cloud.json", rounds=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of load a server and round (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="callers at once (default: %(default)s)")
    given = parser.parse_args()
    work = given.work or WORK
    threads = len(os.sched_getaffinity(0))
    where = machine()
    tables.show_machine(where)
    checkpoint, texts = prepared(work, tables.say)
    candidates = servers(checkpoint, make_litserve(work, tables.say), threads)
    options = {"rounds": given.rounds, "connections": given.connections, "seconds": given.seconds}
    found = measured(candidates, texts, work, **options)
    show(found)
    judged = goals(found)
    tables.show_goals(judged)
    settings = {**options, "threads": threads, "max_batch": MAX_BATCH, "tokens": TOKENS, "litserve": LITSERVE}
    tables.write_json(given.out, {"machine": where, "settings": settings, "runs": found, "goals": judged})
    return 0 if all(goal.met for goal in judged) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
