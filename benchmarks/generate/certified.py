"""Does the certified hybrid of two language models keep its alpha? Over resampled calibration sets, per pair and judge.

    python benchmarks/generate/certified.py [--sets 1000] [--items 400] [--data DATA] [--out JSON]

Pairs and populations:

    short, exact     SmolLM2-135M-Instruct in 4 bits against itself in float32, on short questions made here
    letters, choice  the same on multiple-choice questions made here
    gsm8k, mmlu      Mixtral-8x7B against GPT-4 on RouteLLM's recorded verdicts; neither runs here

Of SmolLM2 both answer greedily through the serving path, once; the score is the gate's, of the first 16 tokens, and the
judge says whether the two texts agree. RouteLLM recorded whether each model was right, no text and no probability: the
score is our complexity of the prompt, fitted on one half and asked on the other, and two answers agree only where both
are right, since two wrong ones may differ.

From each population calibration sets are drawn with replacement. The promise is broken by a set whose threshold has a
risk above alpha on the whole population; that may happen in delta of the sets. Beside it stands the usual practice: the
lowest threshold that keeps alpha on the calibration set itself. The pair needs what benchmarks/quantize/smollm2.py
leaves behind.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "router"), str(HERE.parents[1] / "examples" / "chat")]

from borrowed import DATA, WORK, BenchmarkError, Goal, machine, tables  # noqa: E402
from practices import Curve, Kept, best_possible, curve, empirical, kept, tolerated  # noqa: E402
from questions import questions  # noqa: E402

from edgewise.dialogue import Message, Prompt, Role, Sampling  # noqa: E402
from edgewise.files import sha256_bytes, write_atomically  # noqa: E402
from edgewise.router.agreement import judge_named  # noqa: E402
from edgewise.router.certificate import certify  # noqa: E402
from edgewise.router.signals import score_of  # noqa: E402

N, DELTA, ALPHAS = 300, 0.05, (0.02, 0.05, 0.1, 0.2)
SIGNAL = "mean_logprob:first=16"
TOKENS = 16
OURS, USUAL = "certified", "usual practice"
KINDS = {"short": "exact", "letters": "choice"}
"""Populations of the pair that runs here, and their judges."""

_SEED = 62


@dataclass(frozen=True)
class Population:
    """Requests with what both models made of them.

    Attributes:
        name: Its name.
        judge: What says whether they agree.
        scores: The edge's confidence, shape (n,); NaN is escalated.
        disagree: Whether they differ, shape (n,).
    """

    name: str
    judge: str
    scores: NDArray[np.float64]
    disagree: NDArray[np.bool_]

    @property
    def curve(self) -> Curve:
        """What every threshold comes to."""
        return curve(self.scores, self.disagree.astype(np.int64), "agreement")


@dataclass(frozen=True)
class Cell:
    """One way to choose a threshold, at one alpha.

    Attributes:
        population: Whose.
        method: "certified" or "usual practice".
        alpha: Bound on the risk.
        best: The largest share that could be local at that risk, known only with hindsight.
        kept: How the promise was kept.
    """

    population: str
    method: str
    alpha: float
    best: float
    kept: Kept


def multiple_choice(count: int) -> list[str]:
    """Questions for the one of four words that is of a kind, drawn by a seed."""
    text = (HERE.parents[1] / "examples" / "chat" / "words.txt").read_text(encoding="utf-8")
    lists = {part.split()[0]: part.split()[1:] for part in text.split("# ")[1:]}
    asked = {"places": "a country", "animals": "an animal", "words": "neither a country nor an animal"}
    draw, found = random.Random(_SEED), []
    for _ in range(count):
        kind = draw.choice(sorted(asked))
        others = [word for name, words in lists.items() if name != kind for word in words]
        words = [draw.choice(lists[kind]), *draw.sample(others, 3)]
        draw.shuffle(words)
        options = "\n".join(f"{letter}. {word}" for letter, word in zip("ABCD", words, strict=True))
        found.append(f"Which of these is {asked[kind]}?\n{options}\nAnswer with the letter alone.")
    return found


def smollm2(run: Path, kind: str, items: int, kept_in: Path) -> Population:
    """Ask both models, or read what they answered before."""
    bundles = {"edge": run / "candidates" / "int4", "cloud": run / "candidates" / "fp32"}
    for path in bundles.values():
        if not path.is_dir():
            raise BenchmarkError(f"There is no {path}.", "Make it: python benchmarks/quantize/smollm2.py")
    texts = questions(_SEED)[:items] if kind == "short" else multiple_choice(items)
    answers = {who: answered(path, texts, kept_in) for who, path in bundles.items()}
    agree = judge_named(KINDS[kind])
    pairs = zip(answers["edge"], answers["cloud"], strict=True)
    return Population(
        kind,
        KINDS[kind],
        np.array([answer["score"] for answer in answers["edge"]], dtype=np.float64),
        np.array([not agree(edge["text"], cloud["text"]) for edge, cloud in pairs]),
    )


def answered(bundle: Path, texts: Sequence[str], kept_in: Path) -> list[dict[str, Any]]:
    """Text and score of every answer, kept by what shaped them."""
    from edgewise.edge import EdgeGenerator
    from edgewise.jobs.answerers import runtime_of, written_prediction

    with EdgeGenerator.load(bundle) as model:
        key = sha256_bytes(json.dumps([model.digest, runtime_of(model.bundle), TOKENS, SIGNAL, list(texts)]).encode())
        path = kept_in / f"{key.removeprefix('sha256:')[:16]}.json"
        if path.exists():
            return list(json.loads(path.read_text()))
        tables.say(f"{model.bundle.core.recipe.name} answers {len(texts)} questions")
        found = []
        for text in texts:
            said = (Message(role=Role.USER, content=text),)
            prediction = written_prediction(model, Prompt(messages=said, sampling=Sampling(max_tokens=TOKENS)))
            found.append({"text": prediction.output, "score": score_of(prediction, SIGNAL)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found).encode())
    return found


def recorded(name: str, data: Path) -> Population:
    """RouteLLM's verdicts, scored by our complexity of the prompt."""
    from routellm import ComplexityScorer, read_questions

    asked = read_questions(name, data)
    order = np.random.default_rng([_SEED, len(asked)]).permutation(len(asked))
    fit, ask = order[::2], order[1::2]
    names = ("subject",) if any(asked.attributes) else ()
    need = ComplexityScorer("weak wrong", names)(asked, fit, ask)
    return Population(name, "both right", -need, ~(asked.weak & asked.strong)[ask])


def cells_of(population: Population, sets: int) -> Iterator[Cell]:
    """Both methods at every alpha, on the same calibration sets."""
    whole, items = population.curve, len(population.scores)
    drawn = np.random.default_rng([_SEED, items, N]).integers(0, items, size=(sets, N))
    for alpha in ALPHAS:
        best = float(whole.local[whole.at(np.array([best_possible(whole, alpha)]))][0] / whole.n)
        methods: dict[str, Callable[[NDArray[np.int64]], float]] = {
            OURS: lambda at, alpha=alpha: (
                certify(population.scores[at], population.disagree[at], alpha=alpha, delta=DELTA).threshold
            ),
            USUAL: lambda at, alpha=alpha: empirical(
                curve(population.scores[at], population.disagree[at].astype(np.int64), "agreement"), alpha
            ),
        }
        for method, choose in methods.items():
            thresholds = np.array([choose(at) for at in drawn])
            yield Cell(population.name, method, alpha, best, kept(whole, thresholds, alpha))


def goals(cells: Sequence[Cell]) -> list[Goal]:
    """Whether every certified cell is within what delta explains."""
    judged = [cell for cell in cells if cell.method == OURS]
    limits = [tolerated(cell.kept.sets, DELTA, len(judged)) for cell in judged]
    broken = [cell for cell, limit in zip(judged, limits, strict=True) if cell.kept.violations > limit]
    worst = max(cell.kept.rate for cell in judged)
    what = f"in every cell at most {DELTA:.0%} of the calibration sets break alpha, within binomial error"
    return [Goal(what, f"{len(judged) - len(broken)} of {len(judged)} cells, worst rate {worst:.1%}", not broken)]


def show(populations: Sequence[Population], cells: Sequence[Cell], found: Sequence[Goal]) -> None:
    """Print it all."""
    for population in populations:
        tables.CONSOLE.print(
            f"{population.name}: {len(population.scores)} requests, judge {population.judge}; edge and cloud differ on "
            f"{population.disagree.mean():.1%}"
        )
    columns = ("population", "alpha %", "method", "sets that break it %", "95 % interval", "local %", "best possible %")
    percent = tables.percent
    rows = [
        (
            cell.population, percent(cell.alpha, 0), cell.method, percent(cell.kept.rate, 1),
            f"{percent(cell.kept.low, 1)} to {percent(cell.kept.high, 1)}", percent(cell.kept.local_share, 1),
            percent(cell.best, 1),
        )
        for cell in cells
    ]  # fmt: skip
    tables.show_table(f"Thresholds of {N} calibration items, delta {DELTA:.0%}", columns, rows)
    tables.show_goals(found)


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "generate-certified.json")
    options.add_argument("--data", type=Path, default=DATA, help="folder with routellm (default: %(default)s)")
    options.add_argument("--sets", type=int, default=1000, help="calibration sets (default: %(default)s)")
    options.add_argument("--items", type=int, default=400, help="questions a kind that are asked here, at most 491")
    arguments = options.parse_args()
    work = arguments.work or WORK
    kept_in = work / "generate" / "certified"
    populations = [smollm2(work / "smollm2" / "run", kind, arguments.items, kept_in) for kind in KINDS]
    populations += [recorded(name, arguments.data) for name in ("gsm8k", "mmlu")]
    cells = [cell for population in populations for cell in cells_of(population, arguments.sets)]
    found = goals(cells)
    show(populations, cells, found)
    facts = {
        population.name: {
            "judge": population.judge,
            "items": len(population.scores),
            "differ": float(population.disagree.mean()),
        }
        for population in populations
    }
    settings = {"n": N, "delta": DELTA, "signal": SIGNAL, "populations": facts}
    tables.write_json(arguments.out, {"machine": machine(), **settings, "cells": cells, "goals": found})
    return 0 if all(goal.met for goal in found) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
