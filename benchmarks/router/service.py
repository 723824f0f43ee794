"""Does the promise hold in service? Risks read off a running gateway's answers, over many certificates.

    python benchmarks/router/service.py [--pair clinc150] [--certificates 200] [--data DATA]

A population of 300 items is drawn from the pool of a pair of pairs.py. For each certificate its items are drawn from it
with replacement; the certificate goes into a gateway as `edgewise edge serve` wires it: HTTP, exact cache, audits, a
latency budget, a circuit breaker, outbox and pick-up of late answers. Behind it answers a real cloud process. Traffic
is drawn with replacement as well, and goes on until every item of the population was asked about; with every fifth
certificate the cloud process is stopped for a while in the middle of it, so that answers are late, the breaker opens
and closes again, and what is owed is delivered afterwards.

An item counts as lost where its final answer was given at the edge and differs from the cloud's. Provisional answers
are no final ones; their updates are picked up as a client would. Since every item gets its final answer, the risk is
read off exactly, without the noise of a finite sample. An alarm only warns here: what is measured is the certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from borrowed import DATA, WORK, BenchmarkError, Goal, machine, tables
from numpy.typing import NDArray
from pairs import NAMES, Pair, describe, prepare_pair
from practices import tolerated
from scipy.stats import beta

from edgewise import wiring
from edgewise.cloud.clients import OipClient
from edgewise.config import Config, parse_config
from edgewise.contracts import FINAL_PROVISIONALS, Action, Answer, Certificate, Reference, Request, Source, Status
from edgewise.edge import EdgeModel, probe
from edgewise.jobs.asking import ask_all
from edgewise.jobs.scoring import edge_scores
from edgewise.quantize import NullProgress
from edgewise.router import certificate as certificates
from edgewise.router import certify
from edgewise.wire import native
from edgewise.wire.serve import BackgroundServer

ALPHA, DELTA = 0.04, 0.05
"""With 300 items the exact test has a level of 4.3 %, so that a broken promise has nowhere to hide."""
POPULATION, CERTIFYING_ITEMS = 300, 300
SIGNAL = "margin"
AUDIT_SHARE = 0.05
BUDGET_MS = 100
CONCURRENCY = 8
STALL_EVERY = 5
STALLED_REQUESTS = 60

_SEED = 44
_READY = re.compile(r"ready on (http://\S+)")


@dataclass(frozen=True)
class Population:
    """The items that certificates and traffic are drawn from, with what edge and cloud say of each.

    Attributes:
        texts: The items.
        scores: Of the edge model, shape (n,).
        edge: Its answers.
        cloud: The cloud's answers.
        reference: Which cloud gave them.
        bundle: Of the edge model.
        digest: Its digest.
    """

    texts: tuple[str, ...]
    scores: NDArray[np.float64]
    edge: tuple[str, ...]
    cloud: tuple[str, ...]
    reference: Reference
    bundle: Path
    digest: str

    @property
    def disagree(self) -> NDArray[np.bool_]:
        """Whether edge and cloud differ, shape (n,)."""
        return np.array([one != other for one, other in zip(self.edge, self.cloud, strict=True)])


@dataclass(frozen=True)
class Served:
    """What came of one certificate.

    Attributes:
        threshold: Its threshold.
        risk: Share of the population whose final answer was given at the edge and differs from the cloud's.
        local_share: Share of the population answered at the edge as final.
        stalled: Whether the cloud was stopped in the middle.
        requests: Requests sent.
        cached: Of these answered from the cache.
        provisional: Answered provisionally at first.
        by_reason: Answers by reason.
        audits: Audits by outcome.
        wrong: Final answers that are neither the edge's under the certificate nor the cloud's; none may be.
    """

    threshold: float
    risk: float
    local_share: float
    stalled: bool
    requests: int
    cached: int
    provisional: int
    by_reason: dict[str, int]
    audits: dict[str, int]
    wrong: int


class Cloud:
    """A cloud service in a process of its own, which can be stopped and go on.

    Args:
        checkpoint: What it serves.
    """

    def __init__(self, checkpoint: Path) -> None:
        command = [sys.executable, "-m", "edgewise.cli", "cloud", "serve", str(checkpoint), "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.url = self._ready()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It computes nothing and answers nobody while the block runs; connections stay open."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        self._process.wait(timeout=60)

    def _ready(self) -> str:
        for line in self._process.stdout or ():
            if found := _READY.search(line):
                return found[1]
        raise BenchmarkError("The cloud service ended before it was ready.", "Start it by hand to see why.")


def population_of(pair: Pair, cloud: Cloud, rng: np.random.Generator) -> Population:
    """Draw the population, and ask edge and cloud about it."""
    texts = tuple(pair.pool.texts[place] for place in rng.choice(len(pair.pool), POPULATION, replace=False))
    model = EdgeModel.load(pair.bundle)
    predictions = model.predict(texts)
    replies = asyncio.run(_ask_cloud(cloud.url, texts))
    return Population(
        texts,
        edge_scores(predictions, SIGNAL),
        tuple(str(found.output) for found in predictions),
        tuple(str(reply.output) for reply in replies),
        replies[0].reference,
        pair.bundle,
        model.digest,
    )


async def _ask_cloud(url: str, texts: Sequence[str]) -> list[Any]:
    client = OipClient(url)
    try:
        return await ask_all(
            texts,
            lambda text: client.predict(Request(inputs=text), timeout_s=60),
            concurrency=CONCURRENCY,
            progress=NullProgress(),
        )
    finally:
        await client.aclose()


def certificate_of(population: Population, drawn: NDArray[np.int64]) -> Certificate:
    """Certify on the drawn items, as `edgewise certify` does."""
    device = probe()
    return certificates.issue(
        certify(population.scores[drawn], population.disagree[drawn], alpha=ALPHA, delta=DELTA),
        model_digest=population.digest,
        signal=SIGNAL,
        data_digest=f"draw {hash(drawn.tobytes()):x}",
        reference=population.reference,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        runtime=f"onnxruntime {device.onnxruntime}",
        isa=device.isa,
    )


def settings(population: Population, certificate: Path, cloud_url: str) -> Config:
    """The gateway's settings."""
    return parse_config(
        {
            "edge": {"bundle": str(population.bundle), "certificate": str(certificate), "budget_ms": BUDGET_MS},
            "cloud": {
                "backends": {"main": {"url": cloud_url}},
                "timeout_s": 1.0,
                "failures_to_open": 3,
                "cool_down_s": 0.1,
            },
            "audit": {"share": AUDIT_SHARE, "on_alarm": "warn"},
        }
    )


def serve_and_ask(
    population: Population, certificate: Certificate, traffic: Sequence[int], cloud: Cloud, *, stalled: bool
) -> Served:
    """Put a certificate into service, send the traffic, and read the risk off the answers."""
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "certificate.json"
        path.write_bytes(certificates.encode(certificate))
        gateway = wiring.build_gateway(settings(population, path, cloud.url), resources)
        server = resources.enter_context(BackgroundServer(gateway.app))
        asked = asyncio.run(_replay(server.url, population.texts, traffic, cloud, stalled=stalled))
        metrics = httpx.get(f"{server.url}/metrics").text
    return _judged(population, certificate, asked, _audits(metrics), stalled=stalled)


@dataclass(frozen=True)
class _Asked:
    """A request's first answer and its last."""

    position: int
    first: Answer
    last: Answer


async def _replay(
    url: str, texts: Sequence[str], traffic: Sequence[int], cloud: Cloud, *, stalled: bool
) -> list[_Asked]:
    limits = httpx.Limits(max_connections=CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

        async def ask(position: int) -> tuple[int, Answer]:
            response = await client.post("/v1/predict", content=native.encode_request(Request(inputs=texts[position])))
            return position, native.decode_answer(response.raise_for_status().content)

        async def settle(found: tuple[int, Answer]) -> _Asked:
            position, first = found
            last = first
            while last.status is not Status.FINAL and last.decision.reason not in FINAL_PROVISIONALS:
                response = await client.get(f"/v1/answers/{first.id}", params={"wait_ms": 10_000})
                last = native.decode_answer(response.raise_for_status().content)
            return _Asked(position, first, last)

        async def send(part: Sequence[int]) -> list[tuple[int, Answer]]:
            return await ask_all(part, ask, concurrency=CONCURRENCY, progress=NullProgress())

        middle = len(traffic) // 3
        answers = await send(traffic[:middle])
        if stalled:
            with cloud.stopped():
                answers += await send(traffic[middle : middle + STALLED_REQUESTS])
            middle += STALLED_REQUESTS
        answers += await send(traffic[middle:])
        return await ask_all(answers, settle, concurrency=CONCURRENCY, progress=NullProgress())


def _audits(metrics: str) -> dict[str, int]:
    found = re.findall(r'^edgewise_audits_total\{outcome="(\w+)"\} (\S+)$', metrics, re.MULTILINE)
    return {outcome: int(float(count)) for outcome, count in found}


def _judged(
    population: Population, certificate: Certificate, asked: Sequence[_Asked], audits: dict[str, int], *, stalled: bool
) -> Served:
    n = len(population.texts)
    answered, lost, local = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool)
    wrong = 0
    for found in asked:
        last, says = found.last, population.cloud[found.position]
        if last.status is not Status.FINAL:
            continue
        answered[found.position] = True
        if last.decision.action is Action.LOCAL:
            local[found.position] = True
            lost[found.position] |= last.output != says
            wrong += last.decision.certificate_id != certificate.id
        else:
            wrong += last.output != says
    if not answered.all():
        raise BenchmarkError(f"{(~answered).sum()} items got no final answer.", "Look at the gateway's log.")
    return Served(
        threshold=certificate.bound.threshold,
        risk=float(lost.mean()),
        local_share=float(local.mean()),
        stalled=stalled,
        requests=len(asked),
        cached=sum(found.first.source is Source.CACHE for found in asked),
        provisional=sum(found.first.status is Status.PROVISIONAL for found in asked),
        by_reason=dict(Counter(found.first.decision.reason.value for found in asked)),
        audits=audits,
        wrong=wrong,
    )


def measure(pair: Pair, certificates_wanted: int) -> list[Served]:
    """Serve many certificates of one pair, one after the other."""
    rng = np.random.default_rng(_SEED)
    served = []
    with ExitStack() as resources:
        cloud = Cloud(pair.cloud)
        resources.callback(cloud.close)
        population = population_of(pair, cloud, rng)
        for number in range(certificates_wanted):
            certificate = certificate_of(population, rng.integers(0, POPULATION, CERTIFYING_ITEMS))
            stalled = number % STALL_EVERY == 0
            served.append(serve_and_ask(population, certificate, _traffic(rng), cloud, stalled=stalled))
            if (number + 1) % 20 == 0:
                tables.say(f"{pair.name}: {number + 1} certificates, {_violations(served)} broken")
    return served


def _traffic(rng: np.random.Generator) -> list[int]:
    """Positions drawn with replacement, and after them, in random order, those that were not."""
    drawn = rng.integers(0, POPULATION, POPULATION)
    rest = np.setdiff1d(np.arange(POPULATION), drawn)
    return [*drawn.tolist(), *rng.permutation(rest).tolist()]


def _violations(served: Sequence[Served]) -> int:
    return sum(found.risk > ALPHA for found in served)


def interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a rate (Clopper & Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return low, high


def goals_of(pair: str, served: Sequence[Served]) -> list[Goal]:
    """What the promise owes in service."""
    sets, broken = len(served), _violations(served)
    limit = tolerated(sets, DELTA, 1)
    low, high = interval(broken, sets)
    wrong = sum(found.wrong for found in served)
    return [
        Goal(
            f"{pair}: at most {DELTA:.0%} of the certificates break alpha {ALPHA:.0%}, within binomial error",
            f"{broken} of {sets}, {broken / sets:.1%} ({low:.1%} to {high:.1%}), tolerated {limit}",
            broken <= limit,
        ),
        Goal(f"{pair}: each final answer is covered by the certificate, or the cloud's", f"{wrong} are not", not wrong),
    ]


def row(pair: str, served: Sequence[Served]) -> tuple[str, ...]:
    """A line of the table."""
    requests = sum(found.requests for found in served)
    audits = Counter[str]()
    for found in served:
        audits.update(found.audits)
    low, high = interval(_violations(served), len(served))
    return (
        pair,
        str(len(served)),
        str(len({found.threshold for found in served})),
        f"{_violations(served)}, {100 * low:.1f} to {100 * high:.1f} %",
        tables.percent(float(np.mean([found.risk for found in served]))),
        tables.percent(float(np.mean([found.local_share for found in served])), 1),
        str(requests),
        tables.percent(sum(found.cached for found in served) / requests, 1),
        tables.percent(sum(found.provisional for found in served) / requests, 1),
        " ".join(f"{outcome} {count}" for outcome, count in sorted(audits.items())),
    )


_COLUMNS = (
    "pair", "certificates", "thresholds", "broken", "mean risk %", "mean local %", "requests", "cached %",
    "provisional %", "audits",
)  # fmt: skip


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "router-service.json")
    options.add_argument("--data", type=Path, default=DATA, help="folder with clinc150 (default: %(default)s)")
    options.add_argument("--pair", choices=NAMES, default="clinc150", help="the pair (default: %(default)s)")
    options.add_argument("--certificates", type=int, default=200, help="how many (default: %(default)s)")
    arguments = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("edgewise").setLevel(logging.CRITICAL)  # a stopped cloud is what is wanted here
    where = machine()
    began = time.monotonic()
    pair = prepare_pair(arguments.pair, arguments.work or WORK, arguments.data, tables.say)
    served = measure(pair, arguments.certificates)
    goals = goals_of(pair.name, served)
    tables.show_machine(where)
    tables.CONSOLE.print(describe(pair))
    title = f"alpha {ALPHA:.0%}, delta {DELTA:.0%}, {CERTIFYING_ITEMS} items from a population of {POPULATION}"
    tables.show_table(title, _COLUMNS, [row(pair.name, served)])
    tables.show_goals(goals)
    facts = {
        "pair": pair.name, "alpha": ALPHA, "delta": DELTA, "population": POPULATION, "items": CERTIFYING_ITEMS,
        "budget_ms": BUDGET_MS, "audit_share": AUDIT_SHARE, "seconds": time.monotonic() - began,
    }  # fmt: skip
    tables.write_json(arguments.out, {"machine": where, **facts, "served": served, "goals": goals})
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
