"""What does deciding cost, beside the model that it decides about?

    python benchmarks/router/overhead.py [--rounds 5] [--calls 4000]

Times, call by call, what a request pays after the edge model: its score, the policy, the decision, for every signal on
150 classes; the distance to 2,000 embeddings of width 384; and before the edge model the complexity of a text of up to
100 words, and of a very long one. One thread. A round takes every case in turn, so that what slows the machine slows
all; the table has the median over the rounds of each percentile, with the smallest and the largest.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Read when numpy's library is loaded: a gateway answers many requests at once, each on a thread of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from borrowed import WORK, Goal, machine, tables
from figures import Spread, spread

from edgewise.contracts import Bound, Certificate, Prediction, Reference, Request
from edgewise.router.combination import ClassifierCombination, GeneratorCombination, fit_combination
from edgewise.router.complexity import Complexity
from edgewise.router.complexity_fit import fit_complexity
from edgewise.router.fitted import Fitted
from edgewise.router.neighbours import Outcomes, fit_neighbours
from edgewise.router.policies.threshold import CertifiedThreshold
from edgewise.router.signals import GENERATOR_SIGNALS, SIGNALS, score_of

CLASSES, EMBEDDINGS, WIDTH, WORDS, TOKENS = 150, 2000, 384, 100, 64
WARM_UP = 200
SEED = 45

DECISION_P50_US, DECISION_P99_US = 15.0, 50.0
DISTANCE_P50_US = 150.0
COMPLEXITY_P99_US = 200.0


@dataclass(frozen=True)
class Case:
    """Something timed: its name, and what is called with the number of the call."""

    name: str
    call: Callable[[int], object]


@dataclass(frozen=True)
class Cost:
    """Microseconds of one call, over the rounds."""

    name: str
    p50_us: Spread
    p99_us: Spread


def percentiles_us(case: Case, calls: int) -> tuple[float, float]:
    """50th and 99th percentile of the microseconds of one call."""
    for number in range(WARM_UP):
        case.call(number)
    taken = np.empty(calls)
    clock = time.perf_counter_ns
    for number in range(calls):
        begin = clock()
        case.call(number)
        taken[number] = clock() - begin
    p50, p99 = np.percentile(taken, (50, 99)) / 1e3
    return float(p50), float(p99)


def measure(cases: Sequence[Case], rounds: int, calls: int) -> list[Cost]:
    """Time every case in each round."""
    found: Mapping[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    for number in range(rounds):
        tables.say(f"round {number + 1} of {rounds}")
        for case in cases:
            found[case.name].append(percentiles_us(case, calls))
    return [
        Cost(name, spread([p50 for p50, _ in values]), spread([p99 for _, p99 in values]))
        for name, values in found.items()
    ]


def certificate(signal: str) -> Certificate:
    """A certificate that half of the items pass or so; which ones costs nothing."""
    bound = Bound(threshold=0.5, local_share=0.5, n=2000, k=12, alpha=0.01, delta=0.05)
    return Certificate(
        id="0" * 64,
        bound=bound,
        target="agreement",
        model_digest="0" * 64,
        signal=signal,
        data_digest="0" * 64,
        reference=Reference("cloud", "1"),
        created="2026-01-01T00:00:00Z",
        runtime="1",
        isa="any",
    )


def decision(name: str, signal: str, predictions: Sequence[Prediction], fitted: Fitted | None = None) -> Case:
    """Score, policy and decision, as the router takes them one after the other."""
    policy, request = CertifiedThreshold(certificate(signal)), Request(inputs="x")

    def call(number: int) -> object:
        prediction = predictions[number % len(predictions)]
        return policy.after(request, prediction, score_of(prediction, signal, fitted))

    return Case(name, call)


def classified(rng: np.random.Generator, *, margin: bool = False) -> list[Prediction]:
    """Predictions on 150 classes, one of them likelier than the others."""
    logits = rng.normal(0, 2, (500, CLASSES)).astype(np.float32)
    logits[:, 7] += rng.exponential(5, 500).astype(np.float32)
    return [Prediction(output="label", logits=row, margin=0.4 if margin else None) for row in logits]


def generated(rng: np.random.Generator) -> list[Prediction]:
    """Predictions of 64 tokens."""
    return [
        Prediction(output="text", token_logprobs=-rng.exponential(0.5, TOKENS).astype(np.float32), margin=float(m))
        for m in rng.random(200)
    ]


def texts(rng: np.random.Generator, count: int) -> list[str]:
    """Texts of 10 to 100 words that are drawn from 5,000 as language does: the n-th with a share of 1 / n."""
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 10))) for _ in range(5000)]
    shares = 1 / np.arange(1, 5001)
    shares /= shares.sum()
    return [" ".join(rng.choice(words, rng.integers(10, WORDS + 1), p=shares)) for _ in range(count)]


def fitted_combination(predictions: Sequence[Prediction], rng: np.random.Generator) -> Fitted:
    """A combination of all signals; what it learned does not change what it costs."""
    combination: ClassifierCombination | GeneratorCombination = fit_combination(
        predictions, rng.random(len(predictions)) < 0.2
    )
    return Fitted(combination=combination)


def decisions(rng: np.random.Generator) -> list[Case]:
    """A case a signal."""
    plain, texts_of_tokens = classified(rng), generated(rng)
    return [
        decision("margin, from the graph", "margin", classified(rng, margin=True)),
        *(decision(name, name, plain) for name in SIGNALS),
        decision("margin:temperature=1.7", "margin:temperature=1.7", plain),
        decision("combined", "combined", plain, fitted_combination(plain, rng)),
        *(decision(name, name, texts_of_tokens) for name in GENERATOR_SIGNALS),
        decision("combined, generated", "combined", texts_of_tokens, fitted_combination(texts_of_tokens, rng)),
    ]


def others(rng: np.random.Generator) -> list[Case]:
    """Distance and complexity."""
    answers = rng.integers(0, CLASSES, EMBEDDINGS).astype(np.int32)
    outcomes = Outcomes(answers, rng.random(EMBEDDINGS) < 0.2)
    neighbours = fit_neighbours(rng.normal(size=(EMBEDDINGS, WIDTH)).astype(np.float32), outcomes)
    queries = rng.normal(size=(500, WIDTH)).astype(np.float32)
    shown = texts(rng, 500)
    complexity: Complexity = fit_complexity(shown, rng.random(500) < 0.3, ridges=(4.0,))
    endless = " ".join(shown * 40)
    return [
        Case("distance", lambda number: neighbours.distance(queries[number % 500])),
        Case(
            "distance, vote and error rate", lambda number: neighbours.around(queries[number % 500], number % CLASSES)
        ),
        Case("complexity", lambda number: complexity.score(shown[number % 500])),
        Case(f"complexity, {len(endless) // 1000:,} kB", lambda number: complexity.score(endless)),
    ]


def goals(costs: Mapping[str, Cost]) -> list[Goal]:
    """The targets: of the default signal, from the logits; of the distance; of a text of up to 100 words."""
    margin, distance, complexity = costs["margin"], costs["distance"], costs["complexity"]
    return [
        _goal("decision after the edge model, p50", margin.p50_us, DECISION_P50_US),
        _goal("decision after the edge model, p99", margin.p99_us, DECISION_P99_US),
        _goal(f"distance to {EMBEDDINGS:,} x {WIDTH}, p50", distance.p50_us, DISTANCE_P50_US),
        _goal(f"complexity of up to {WORDS} words, p99", complexity.p99_us, COMPLEXITY_P99_US),
    ]


def _goal(what: str, found: Spread, limit_us: float) -> Goal:
    return Goal(f"{what}: at most {limit_us:g} us", f"{tables.shown(found, 1)} us", found.median <= limit_us)


def main() -> int:
    """Measure, show, write."""
    parser = tables.parser(__doc__, WORK / "results" / "overhead.json", rounds=5)
    parser.add_argument("--calls", type=int, default=4000, help="calls of each case a round (default: %(default)s)")
    options = parser.parse_args()
    before = machine()
    rng = np.random.default_rng(SEED)
    costs = measure([*decisions(rng), *others(rng)], options.rounds, options.calls)
    met = goals({cost.name: cost for cost in costs})
    tables.show_machine(before)
    rows = [(cost.name, tables.shown(cost.p50_us, 1), tables.shown(cost.p99_us, 1)) for cost in costs]
    tables.show_table("Microseconds of one request, one thread", ("what", "p50", "p99"), rows)
    tables.show_goals(met)
    tables.write_json(options.out, {"machine": before, "costs": costs, "goals": met})
    return 0 if all(goal.met for goal in met) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
