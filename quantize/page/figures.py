"""The figures of a candidate that the page shows: names, meanings, and how each is written. Pure.

Owns the words of a figure. Computes none: each is read off the report as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgewise.quantize.report import Candidate, Performance
from edgewise.quantize.statistics import Quality

Better: TypeAlias = Literal["lower", "higher", ""]

_EMBEDDER = "feature-extraction"
_GENERATOR = "text-generation"


@dataclass(frozen=True)
class Figure:
    """A figure of a candidate.

    Attributes:
        name: Its name, as short as a table's head wants it.
        meaning: What it is, in a sentence without its full stop.
        of: Reads it off a candidate; None where it has none.
        text: How it is written, unit included.
        better: Which way is better; "" where neither is.
        most: The largest value that can be.
        key: Whether it is shown beside a point that the reader looks at.
    """

    name: str
    meaning: str
    of: Callable[[Candidate], float | None]
    text: Callable[[float], str]
    better: Better = ""
    most: float = math.inf
    key: bool = False

    def read(self, candidate: Candidate) -> float | None:
        """Its value, or None where the candidate has none or none that is finite."""
        value = self.of(candidate)
        return value if value is not None and math.isfinite(value) else None

    def best(self, candidates: Sequence[Candidate]) -> float | None:
        """The best value among candidates; None where neither way is better or all have the same."""
        values = {value for candidate in candidates if (value := self.read(candidate)) is not None}
        if not self.better or len(values) < 2:
            return None
        return min(values) if self.better == "lower" else max(values)


def megabytes(value: float) -> str:
    """Bytes in megabytes of a million."""
    return f"{value / 1e6:.2f} MB" if value < 1e6 else f"{value / 1e6:.1f} MB"


def milliseconds(value: float) -> str:
    """Milliseconds, with as many digits as a measurement bears."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} ms"


def seconds(value: float) -> str:
    """Seconds."""
    return f"{value:.1f} s"


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.2f} %"


def points(value: float) -> str:
    """A share of accuracy in percentage points."""
    return f"{100 * value:.2f} points"


def ratio(value: float) -> str:
    """A number around one."""
    return f"{value:.4f}"


def count(value: float) -> str:
    """A whole number."""
    return f"{value:.0f}"


def rate(value: float) -> str:
    """Tokens a second."""
    return f"{value:.1f} /s"


SIZE = Figure("size", "Bytes of its bundle", lambda c: _cost(c, lambda p: p.size_bytes), megabytes, "lower", key=True)
TOKENS = Figure(
    "tokens/s",
    "Tokens a second after the first",
    lambda c: _cost(c, lambda p: p.tokens_per_s),
    rate,
    "higher",
    key=True,
)
DROP = Figure(
    "drop", "Accuracy lost against the baseline", lambda c: _answers(c, lambda q: q.drop), points, "lower", key=True
)
NLL = Figure(
    "NLL",
    "Mean negative log-likelihood of a token of the data, in nats",
    lambda c: _answers(c, lambda q: q.nll),
    ratio,
    "lower",
    key=True,
)


def p50(task: str) -> Figure:
    """The median latency, under the name that fits the task."""
    name = "first token p50" if task == _GENERATOR else "p50"
    meaning = "Median latency of the first token" if task == _GENERATOR else "Median latency of a single prediction"
    return Figure(name, meaning, lambda c: _cost(c, lambda p: p.latency.p50_ms), milliseconds, "lower", key=True)


def speed(task: str) -> Figure:
    """The figure that stands for speed: tokens a second of a generator, the median latency of all others."""
    return TOKENS if task == _GENERATOR else p50(task)


def accuracy(task: str) -> Figure:
    """The mean worth of an answer, under the name that fits the task."""
    name, meaning, text = {
        _EMBEDDER: ("cosine", "Mean cosine to the baseline's embeddings", ratio),
        _GENERATOR: (
            "next-token accuracy",
            "Share of the data's tokens that it would have said next",
            percent,
        ),
        "token-classification": ("accuracy", "Share of words with the right tag", percent),
    }.get(task, ("accuracy", "Share of right answers", percent))
    return Figure(name, meaning, lambda c: _answers(c, lambda q: q.accuracy), text, "higher", most=1.0, key=True)


def cost_figures(task: str) -> tuple[Figure, ...]:
    """What a candidate costs."""
    middle = p50(task)
    start = "first token " if task == _GENERATOR else ""
    return (
        SIZE,
        TOKENS,
        middle,
        _timed(f"{start}p95", "95 % quantile of the latency", lambda p: p.latency.p95_ms, key=True),
        _timed(f"{start}p99", "99 % quantile of the latency", lambda p: p.latency.p99_ms),
        _timed(f"{start}mean", "Mean latency", lambda p: p.latency.mean_ms),
        _timed("load", "From the folder to a model ready to answer", lambda p: p.load_ms),
        _timed("first answer", "The first answer after loading", lambda p: p.first_ms),
        Figure(
            "peak RSS",
            "Largest resident memory of a process",
            lambda c: _cost(c, lambda p: p.peak_rss_bytes),
            megabytes,
            "lower",
            key=True,
        ),
        Figure("calls", "Timed calls", lambda c: _cost(c, lambda p: p.latency.calls), count),
        Figure("build", "Time to build it", lambda c: c.seconds, seconds),
    )


def quality_figures(task: str) -> tuple[Figure, ...]:
    """How a candidate answers on the tuning part."""
    mean_cosine = Figure(
        "cosine", "Mean cosine to the baseline's embeddings", lambda c: _answers(c, lambda q: q.cosine_mean), ratio
    )
    return (
        accuracy(task),
        DROP,
        Figure(
            "drop, at most",
            "Upper bound on the drop from the tuning part; the choice has seen that part, so this is no promise",
            lambda c: c.drop_bound,
            points,
            "lower",
        ),
        Figure(
            "flips",
            "Items answered otherwise than by the baseline, right or wrong",
            lambda c: _answers(c, lambda q: q.flips),
            percent,
            "lower",
            key=True,
        ),
        Figure("lost", "Items answered worse than by the baseline", lambda c: _answers(c, lambda q: q.lost), count),
        Figure("won", "Items answered better than by the baseline", lambda c: _answers(c, lambda q: q.won), count),
        *(() if task == _EMBEDDER else (mean_cosine,)),
        Figure("least cosine", "The smallest cosine", lambda c: _answers(c, lambda q: q.cosine_min), ratio, "higher"),
        NLL,
        Figure(
            "KLD",
            "Mean Kullback-Leibler divergence of the next token's distribution from the baseline's, in nats",
            lambda c: _answers(c, lambda q: q.kld),
            ratio,
            "lower",
            key=True,
        ),
        Figure(
            "calibration error",
            "Expected calibration error: how far its probabilities are from how often it is right",
            lambda c: _answers(c, lambda q: q.calibration_error),
            ratio,
            "lower",
        ),
        Figure(
            "AUROC",
            "How well its confidence tells right answers from wrong ones; 1 is perfect, 0.5 is chance",
            lambda c: _answers(c, lambda q: q.auroc),
            ratio,
            "higher",
        ),
        Figure(
            "unknown tokens",
            "Share of the data's tokens that its vocabulary lacks",
            lambda c: _answers(c, lambda q: q.unknown_share),
            percent,
            "lower",
        ),
        Figure("items", "Items of the tuning part", lambda c: _answers(c, lambda q: q.n), count),
    )


def _timed(name: str, meaning: str, of: Callable[[Performance], float], *, key: bool = False) -> Figure:
    return Figure(name, meaning, lambda c: _cost(c, of), milliseconds, "lower", key=key)


def _cost(candidate: Candidate, of: Callable[[Performance], float | None]) -> float | None:
    return None if candidate.performance is None else of(candidate.performance)


def _answers(candidate: Candidate, of: Callable[[Quality], float | None]) -> float | None:
    return None if candidate.quality is None else of(candidate.quality)
