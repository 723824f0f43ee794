"""What the router costs in process, answered locally: beside session.run alone, and beside tokenizer and session.run.

    python benchmarks/serve/inprocess.py [--rounds 7] [--calls 300] [--seconds 3] [--work WORK] [--out JSON]

Models: int8 MiniLM-L6 fine-tuned on Reuters R52, as `edgewise quantize` packs it, with logits alone and with the margin
in its graph; and a trivial text classifier, to see what is not the model. Everything is answered locally under a
certificate, no cache. One thread a prediction, uvloop.

In a round the cases take turns, some calls each (of the first two nothing counts): caches are as warm as a caller that
does nothing else keeps them, and no case meets a faster hour. Shown are medians over the rounds of a round's median,
with the smallest and the largest; differences and ratios are taken round by round.

    session.run       the graph, its inputs at hand
    tokenizer + run   and the text made into inputs
    answer_blocking   the router's blocking face
    in an executor    tokenizer + run in a thread that an event loop waits for, and nothing else: what a hop costs here
    await answer, 1   the async face, one request at a time
    await answer, 32  32 callers in a closed loop, each with texts of its own; a timer of 5 ms runs beside them and
                      tells how late it fires
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when numpy's library is loaded: a gateway answers many requests at once, each on a thread of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import uvloop

# The scripts of a benchmark import their neighbours by bare names, as Python runs them; so must who borrows from them.
sys.path.append(str(Path(__file__).parents[1] / "quantize"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "unit"))

import tables
import tiny_models
from figures import Goal, Spread, ratios, spread
from harness import edgewise_quantize, machine
from minilm import WORK, prepare_minilm, rebuild

from edgewise.contracts import Bound, Certificate, CloudReply, Reference, Request
from edgewise.dataset import load_examples
from edgewise.edge import EdgeModel
from edgewise.errors import CloudUnreachableError
from edgewise.files import sha256_file, sha256_tree
from edgewise.router import Router
from edgewise.router import certificate as certificates

RECIPES = ("int8_dynamic", "margin+int8_dynamic")
TRIVIAL = "trivial"
TOKENS = 64
TEXTS = 64
CONCURRENCY = 32
TIMER_S = 0.005
WARM_UP = 30

SKIPPED = 2

RUN, TOKENS_AND_RUN, BLOCKING, HOP, AWAITED, CROWD = (
    "session.run", "tokenizer + run", "answer_blocking", "in an executor", "await answer, 1",
    f"await answer, {CONCURRENCY}",
)  # fmt: skip

BLOCKING_RATIO = 1.03
BLOCKING_TRIVIAL_US = 25.0
AWAITED_US = 150.0
LATE_MS = 5.0


@dataclass(frozen=True)
class Subject:
    """A model, what it is asked, and how often in a row."""

    name: str
    model: EdgeModel
    texts: tuple[str, ...]
    turn: int

    @functools.cached_property
    def plain(self) -> onnxruntime.InferenceSession:
        """The same graph in a session of its own, set up as the product's."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = str(self.model.bundle.graph_path)
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Measured:
    """One round of one subject.

    Attributes:
        us: Median microseconds of a call by case.
        per_second: Answers a second of the crowd.
        late_p99_ms: How late the timer fired beside the crowd, 99th percentile.
        late_ms: The same, at most.
    """

    us: Mapping[str, float]
    per_second: float
    late_p99_ms: float
    late_ms: float


class NoCloud:
    """A cloud that is not there: everything is answered locally."""

    async def describe(self, *, timeout_s: float) -> Reference:
        """Fail."""
        raise CloudUnreachableError("There is no cloud in this benchmark.")

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        """Fail."""
        raise CloudUnreachableError("There is no cloud in this benchmark.")

    async def aclose(self) -> None:
        """Nothing is open."""


def prepare(work: Path) -> list[Subject]:
    """Load the models; the MiniLM ones are made where they are not yet there."""
    checkpoints = prepare_minilm(work, lengths=(TOKENS,), say=tables.say)
    texts = tuple(str(example.input) for example in load_examples(checkpoints.test)[:TEXTS])
    subjects = [
        Subject(f"MiniLM, {recipe}", EdgeModel.load(bundle), texts, turn=10)
        for recipe in RECIPES
        for bundle in [quantized(work, checkpoints.checkpoints[TOKENS], checkpoints.tuning, recipe)]
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = EdgeModel.load(tiny_models.pack_text(Path(folder)))
        trivial = Subject(TRIVIAL, model, tiny_models.TEXTS, turn=100)
        _ = trivial.plain  # read while its file is there
    return [*subjects, trivial]


def quantized(work: Path, checkpoint: Path, tuning: Path, recipe: str) -> Path:
    """A bundle of the checkpoint by a recipe, made where it is not yet there."""
    out = work / "serve" / f"minilm-{recipe.replace('+', '-')}"

    def build(stage: Path) -> None:
        options = ["--data", str(tuning), "--recipes", recipe, "--golden", "synthetic"]
        edgewise_quantize([str(checkpoint), *options], stage / "run", out.parent / f"{out.name}.log")

    out.parent.mkdir(parents=True, exist_ok=True)
    rebuild(out, {"checkpoint": sha256_tree(checkpoint), "tuning": sha256_file(tuning), "recipe": recipe}, build)
    return out / "run" / "candidates" / recipe


def certificate(model: EdgeModel) -> Certificate:
    """A certificate that lets everything be answered locally; what it proves costs nothing."""
    bound = Bound(threshold=-1.0, local_share=1.0, n=2000, k=12, alpha=0.01, delta=0.05)
    return certificates.issue(
        bound,
        model_digest=model.digest,
        signal="margin",
        data_digest="0" * 64,
        reference=Reference("cloud", "1"),
        created="2026-01-01T00:00:00Z",
        runtime="1",
        isa="any",
    )


async def alternating(subject: Subject, calls: int) -> dict[str, float]:
    """Median microseconds of a call by case; the cases take turns, some calls each."""
    model, plain, clock = subject.model, subject.plain, time.perf_counter_ns
    outputs = [output.name for output in plain.get_outputs()]
    feeds = {text: dict(model.feeds(text)) for text in subject.texts}
    loop = asyncio.get_running_loop()
    blocking = Router(model, NoCloud(), certificate(model))
    awaited = Router(model, NoCloud(), certificate(model))

    def run(text: str) -> None:
        plain.run(outputs, feeds[text])

    def tokens_and_run(text: str) -> None:
        plain.run(outputs, dict(model.feeds(text)))

    def block(text: str) -> None:
        blocking.answer_blocking(Request(inputs=text))

    async def answer(text: str) -> None:
        await awaited.answer(Request(inputs=text))

    with ThreadPoolExecutor(1) as pool:

        async def hop(text: str) -> None:
            await loop.run_in_executor(pool, tokens_and_run, text)

        cases: dict[str, Callable[[str], Any]] = {
            RUN: run, TOKENS_AND_RUN: tokens_and_run, BLOCKING: block, HOP: hop, AWAITED: answer,
        }  # fmt: skip
        taken: dict[str, list[int]] = {case: [] for case in cases}
        for turn in range(-1, -(-calls // subject.turn)):
            for case, call in cases.items():
                for number in range(-SKIPPED, subject.turn):
                    text = subject.texts[(turn * subject.turn + number) % len(subject.texts)]
                    begin = clock()
                    pending = call(text)
                    if pending is not None:
                        await pending
                    if turn >= 0 and number >= 0:
                        taken[case].append(clock() - begin)
    blocking.close()
    await awaited.aclose()
    return {case: float(np.median(ns)) / 1e3 for case, ns in taken.items()}


async def crowd(subject: Subject, seconds: float) -> tuple[float, list[float]]:
    """Answers a second of callers that ask for different texts, and how late a timer beside them was, in ms."""
    router = Router(subject.model, NoCloud(), certificate(subject.model))
    try:
        for number in range(WARM_UP):
            await router.answer(Request(inputs=subject.texts[number % len(subject.texts)]))
        late = asyncio.ensure_future(_lateness(seconds))
        until = time.perf_counter() + seconds
        done = await asyncio.gather(*(_ask_until(router, subject, until, place) for place in range(CONCURRENCY)))
        return sum(done) / seconds, await late
    finally:
        await router.aclose()


async def _ask_until(router: Router, subject: Subject, until: float, place: int) -> int:
    done = 0
    texts = subject.texts[place::CONCURRENCY] or (f"{subject.texts[place % len(subject.texts)]} {place}",)
    while time.perf_counter() < until:
        await router.answer(Request(inputs=texts[done % len(texts)]))
        done += 1
        await asyncio.sleep(0)  # an answer that comes at once never lets go of the loop; a server's sockets do
    return done


async def _lateness(seconds: float) -> list[float]:
    late, until = [], time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        await asyncio.sleep(TIMER_S)
        late.append(1000 * (time.perf_counter() - now - TIMER_S))
    return late


def measure(subjects: Sequence[Subject], rounds: int, calls: int, seconds: float) -> dict[str, list[Measured]]:
    """Take every case in each round."""
    found: dict[str, list[Measured]] = {subject.name: [] for subject in subjects}
    for number in range(rounds):
        tables.say(f"round {number + 1} of {rounds}")
        for subject in subjects:
            us = uvloop.run(alternating(subject, calls))
            per_second, late = uvloop.run(crowd(subject, seconds))
            found[subject.name].append(Measured(us, per_second, float(np.percentile(late, 99)), max(late)))
    return found


def _over(rounds: Sequence[Measured], case: str, base: str) -> Spread:
    return spread([found.us[case] - found.us[base] for found in rounds])


def _ratio(rounds: Sequence[Measured], case: str, base: str) -> Spread:
    return ratios([found.us[case] for found in rounds], [found.us[base] for found in rounds])


def goals(found: Mapping[str, Sequence[Measured]]) -> list[Goal]:
    """The targets of serving in process."""
    met = []
    for name, rounds in found.items():
        base = RUN if name == TRIVIAL else TOKENS_AND_RUN
        if name == TRIVIAL:
            over = _over(rounds, BLOCKING, RUN)
            what = f"{name}: blocking at most {BLOCKING_TRIVIAL_US:g} us over {RUN}"
            met.append(Goal(what, f"{tables.shown(over, 1)} us", over.median <= BLOCKING_TRIVIAL_US))
        else:
            ratio = _ratio(rounds, BLOCKING, TOKENS_AND_RUN)
            what = f"{name}: blocking at most {BLOCKING_RATIO:g} x ({TOKENS_AND_RUN})"
            met.append(Goal(what, tables.shown(ratio, 3), ratio.median <= BLOCKING_RATIO))
        over = _over(rounds, AWAITED, base)
        what = f"{name}: await at most {AWAITED_US:g} us over {base}"
        bare = _over(rounds, HOP, base)
        told = f"{tables.shown(over, 1)} us (in an executor: {tables.shown(bare, 1)} us)"
        met.append(Goal(what, told, over.median <= AWAITED_US))
        late = spread([one.late_p99_ms for one in rounds])
        what = f"{name}: at concurrency {CONCURRENCY} a timer at most {LATE_MS:g} ms late, p99"
        met.append(Goal(what, f"{tables.shown(late)} ms", late.median <= LATE_MS))
    return met


def rows(found: Mapping[str, Sequence[Measured]]) -> list[tuple[str, ...]]:
    """A line a case."""
    lines = []
    for name, rounds in found.items():
        for case in (RUN, TOKENS_AND_RUN, BLOCKING, HOP, AWAITED):
            us = spread([one.us[case] for one in rounds])
            over, ratio = _over(rounds, case, RUN), _ratio(rounds, case, TOKENS_AND_RUN)
            lines.append((name, case, tables.shown(us, 1), tables.shown(over, 1), tables.shown(ratio, 3), "", "", ""))
        crowd = [
            tables.shown(spread([getattr(one, figure) for one in rounds]), digits)
            for figure, digits in (("per_second", 0), ("late_p99_ms", 2), ("late_ms", 2))
        ]
        lines.append((name, CROWD, "", "", "", *crowd))
    return lines


_COLUMNS = ("model", "case", "us", f"over {RUN}", f"x ({TOKENS_AND_RUN})", "answers/s", "timer late p99 ms", "most ms")


def main() -> int:
    """Measure, show, write."""
    parser = tables.parser(__doc__, WORK / "results" / "serve-inprocess.json")
    parser.add_argument("--rounds", type=int, default=7, help="times every case is taken (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=300, help="calls of a block (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the crowd, a round (default: %(default)s)")
    options = parser.parse_args()
    subjects = prepare(options.work or WORK)
    before: dict[str, Any] = machine()
    found = measure(subjects, options.rounds, options.calls, options.seconds)
    met = goals(found)
    tables.show_machine(before)
    tables.show_table("In process, answered locally", _COLUMNS, rows(found))
    tables.show_goals(met)
    bundles = {subject.name: subject.model.digest for subject in subjects}
    tables.write_json(options.out, {"machine": before, "bundles": bundles, "measured": found, "goals": met})
    return 0 if all(goal.met for goal in met) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
