"""How soon do audits find a broken promise, and how often do they cry wolf? The e-process beside the usual monitors.

    python benchmarks/router/audit.py [--runs 2000]

Null: streams of 60,000 audits at a risk of exactly alpha; the share of streams with an alarm, ever, against delta.
Power: audits from the break to the alarm, at risks of 1.25 to 10 alpha, from the start and after 20,000 audits at
half of alpha; and the requests that go by meanwhile at the gateway's usual share of audits. All monitors see the same
streams. The rivals:

- peeking: the exact binomial test at delta of all audits so far, repeated once a day, here each 100 audits
- CUSUM (Page 1954) of alpha against 3 alpha, alarm at ln(1/delta), as it would be set by hand
- the same with its limit fitted by simulation to delta over these very 60,000 audits: it knows when the watch ends

The streams are simulated many at a time by the rule of `edgewise.router.monitor`; a part of them is fed to
`AuditMonitor` itself, which must raise its alarm at the same audit. Takes about a minute.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from borrowed import WORK, Goal, machine, tables
from numpy.typing import NDArray
from scipy.stats import binom

from edgewise.router import monitor as product
from edgewise.router.monitor import AuditMonitor
from edgewise.router.settings import RouterSettings

DELTA = 0.05
ALPHA = 0.01
NULL_ALPHAS = (0.005, 0.01, 0.05)
RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
AUDITS = 60_000
"""Audits of a stream; also the most that a break is watched."""

GOOD = 20_000
GOOD_RISK = 0.5
"""Multiple of alpha at which the promise is kept before it breaks."""

DAY = 100
CHECKED = 20
"""Streams that `AuditMonitor` itself sees."""

_SEED = 6
_BLOCK = 500
_TARGET = 330

E_PROCESS, PEEKING, CUSUM, FITTED = "e-process (edgewise)", "binomial, daily", "CUSUM, ln(1/delta)", "CUSUM, fitted"

Verdicts = NDArray[np.bool_]


class Detector(Protocol):
    """Watches many streams at once."""

    def step(self, violations: Verdicts) -> Verdicts:
        """Take the next verdict of each stream, shape (streams,); returns where an alarm is up now."""
        ...


class Bettors:
    """`AuditMonitor` for many streams: the same rule and constants, in vectors."""

    def __init__(self, alpha: float, streams: int) -> None:
        self._rule = AuditMonitor(alpha, DELTA)
        self._alpha = alpha
        self._audits = 0
        self._log_staked = np.full(streams, -np.inf)
        self._recent = np.zeros(streams)
        self._recent_audits = 0.0

    def step(self, violations: Verdicts) -> Verdicts:
        rule, alpha = self._rule, self._alpha
        prior = product._PRIOR_VIOLATIONS / alpha
        risk = min(product._PRIOR_RISK * alpha, rule._largest_bet)
        estimate = (prior * risk + self._recent) / (prior + self._recent_audits)
        bet = np.clip(estimate, rule._smallest_bet, rule._largest_bet)
        entering = math.log(product._waiting(self._audits) - product._waiting(self._audits + 1))
        factor = np.where(violations, bet / alpha, (1 - bet) / (1 - alpha))
        self._log_staked = np.logaddexp(self._log_staked, entering) + np.log(factor)
        self._audits += 1
        self._recent = rule._memory * self._recent + violations
        self._recent_audits = rule._memory * self._recent_audits + 1
        return np.logaddexp(self._log_staked, math.log(product._waiting(self._audits))) >= rule._log_limit


class Peeking:
    """An exact binomial test of all audits so far, once a day."""

    def __init__(self, alpha: float, streams: int) -> None:
        self._alpha = alpha
        self._audits = 0
        self._violations = np.zeros(streams)

    def step(self, violations: Verdicts) -> Verdicts:
        self._audits += 1
        self._violations += violations
        if self._audits % DAY:
            return np.zeros(len(violations), dtype=np.bool_)
        return self._violations > binom.isf(DELTA, self._audits, self._alpha)


class Cusum:
    """Page's cumulative sum of the log-likelihood ratio of 3 alpha to alpha."""

    def __init__(self, alpha: float, streams: int, limit: float) -> None:
        self._gains = math.log(3), math.log1p(-3 * alpha) - math.log1p(-alpha)
        self._limit = limit
        self._sum = np.zeros(streams)
        self.largest = np.zeros(streams)

    def step(self, violations: Verdicts) -> Verdicts:
        self._sum = np.maximum(self._sum, 0) + np.where(violations, *self._gains)
        self.largest = np.maximum(self.largest, self._sum)
        return self._sum >= self._limit


def first_alarms(
    detectors: Sequence[Detector], risk_at: Callable[[int], float], audits: int, streams: int, seed: int
) -> NDArray[np.int64]:
    """The audit at which each stream has its first alarm, from 1, or 0 for none; shape (detectors, streams)."""
    found = np.zeros((len(detectors), streams), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for start in range(0, audits, _BLOCK):
        for audit in range(start, start + _BLOCK):
            violations = generator.random(streams) < risk_at(audit)
            for place, detector in enumerate(detectors):
                found[place, detector.step(violations) & (found[place] == 0)] = audit + 1
        if found.all():
            break
    return found


def fitted_limit(alpha: float, streams: int) -> float:
    """The limit that a CUSUM exceeds in a share of delta of streams at exactly alpha."""
    cusum = Cusum(alpha, streams, math.inf)
    first_alarms([cusum], lambda audit: alpha, AUDITS, streams, _SEED + 1)
    return float(np.quantile(cusum.largest, 1 - DELTA))


def detectors(alpha: float, streams: int, limit: float) -> dict[str, Detector]:
    return {
        E_PROCESS: Bettors(alpha, streams),
        PEEKING: Peeking(alpha, streams),
        CUSUM: Cusum(alpha, streams, -math.log(DELTA)),
        FITTED: Cusum(alpha, streams, limit),
    }


@dataclass(frozen=True)
class Null:
    """False alarms of one monitor within 60,000 audits at exactly alpha."""

    alpha: float
    monitor: str
    streams: int
    alarms: int


@dataclass(frozen=True)
class Power:
    """Audits from the break to the alarm; None where that share of the streams had none in 60,000.

    Attributes:
        good: Audits before the break.
        ratio: Risk after the break, as a multiple of alpha.
        monitor: Which one.
        streams: Streams without an alarm before the break.
        false_share: Share of all streams that had one.
        median: Median of the audits.
        late: Their 90 % quantile.
    """

    good: int
    ratio: float
    monitor: str
    streams: int
    false_share: float
    median: float | None
    late: float | None


def nulls(alpha: float, streams: int, limit: float) -> list[Null]:
    watching = detectors(alpha, streams, limit)
    found = first_alarms(list(watching.values()), lambda audit: alpha, AUDITS, streams, _SEED)
    return [Null(alpha, name, streams, int((row > 0).sum())) for name, row in zip(watching, found, strict=True)]


def powers(good: int, ratio: float, streams: int, limit: float) -> list[Power]:
    watching = detectors(ALPHA, streams, limit)
    found = first_alarms(
        list(watching.values()),
        lambda audit: ALPHA * (GOOD_RISK if audit < good else ratio),
        good + AUDITS,
        streams,
        _SEED + int(100 * ratio),
    )
    return [_power(good, ratio, name, row) for name, row in zip(watching, found, strict=True)]


def _power(good: int, ratio: float, name: str, alarms: NDArray[np.int64]) -> Power:
    is_false = (alarms > 0) & (alarms <= good)
    waited = np.where(alarms > good, alarms - float(good), np.inf)[~is_false]
    quantiles = np.quantile(waited, (0.5, 0.9), method="higher") if len(waited) else (np.inf, np.inf)
    median, late = (float(value) if math.isfinite(value) else None for value in quantiles)
    return Power(good, ratio, name, len(waited), float(is_false.mean()), median, late)


def differences(streams: int) -> int:
    """Streams of 3 alpha in which `AuditMonitor` raises its alarm at another audit than the vectors do."""
    together = first_alarms([Bettors(ALPHA, streams)], lambda audit: 3 * ALPHA, 3000, streams, _SEED)[0]
    generator = np.random.default_rng(_SEED)
    monitors = [AuditMonitor(ALPHA, DELTA) for _ in range(streams)]
    alone = np.zeros(streams, dtype=np.int64)
    for audit in range(3000):
        for place, violation in enumerate(generator.random(streams) < 3 * ALPHA):
            monitors[place].update(bool(violation))
            if monitors[place].alarm and not alone[place]:
                alone[place] = audit + 1
    return int((alone != together).sum())


def goals(null: Sequence[Null], power: Sequence[Power], differing: int) -> list[Goal]:
    found = [Goal("the vectors are AuditMonitor", f"{differing} of {CHECKED} streams differ", differing == 0)]
    for row in null:
        if row.monitor == E_PROCESS:
            most = int(binom.ppf(0.99, row.streams, DELTA))
            what = f"alarms at exactly alpha = {row.alpha:.1%}, {AUDITS} audits: at most {DELTA:.0%} of streams"
            found.append(Goal(what, f"{row.alarms / row.streams:.2%}", row.alarms <= most))
    (start,) = (row for row in power if (row.monitor, row.ratio, row.good) == (E_PROCESS, 3.0, 0))
    what = f"median at 3 alpha, alpha = {ALPHA:.0%}: at most {_TARGET} audits"
    return [*found, Goal(what, _audits(start.median), start.median is not None and start.median <= _TARGET)]


def _audits(count: float | None) -> str:
    return f"> {AUDITS}" if count is None else f"{count:.0f}"


def show(null: Sequence[Null], power: Sequence[Power], share: float, found: Sequence[Goal]) -> None:
    rows = [(f"{n.alpha:.1%}", n.monitor, str(n.streams), f"{n.alarms / n.streams:.2%}") for n in null]
    title = f"False alarms within {AUDITS} audits at exactly alpha, delta = {DELTA:.0%}"
    tables.show_table(title, ("alpha", "monitor", "streams", "with an alarm"), rows)
    columns = (
        "risk / alpha",
        "monitor",
        "median audits",
        "90 %",
        f"requests at a share of {share:.0%}",
        "false before",
    )
    for good in sorted({row.good for row in power}):
        since = f"after {good} audits at {GOOD_RISK} alpha" if good else "from the start"
        cells = [_cells(row, share) for row in power if row.good == good]
        tables.show_table(f"Audits to the alarm, alpha = {ALPHA:.0%}, broken {since}", columns, cells)
    tables.show_goals(found)


def _cells(row: Power, share: float) -> tuple[str, ...]:
    requests = "-" if row.median is None else f"{row.median / share:,.0f}"
    false = f"{row.false_share:.1%}" if row.good else "-"
    return f"{row.ratio:g}", row.monitor, _audits(row.median), _audits(row.late), requests, false


def main() -> int:
    """Run the command line."""
    options = tables.parser(__doc__, WORK / "results" / "router-audit.json")
    options.add_argument("--runs", type=int, default=2000, help="streams of the null (default: %(default)s)")
    arguments = options.parse_args()
    where, streams = machine(), arguments.runs
    differing = differences(CHECKED)
    limits = {alpha: fitted_limit(alpha, streams) for alpha in NULL_ALPHAS}
    null = [row for alpha in NULL_ALPHAS for row in nulls(alpha, streams, limits[alpha])]
    tables.say("false alarms are counted")
    power = []
    for good in (0, GOOD):
        for ratio in RATIOS:
            power += powers(good, ratio, max(1, streams // 4), limits[ALPHA])
            tables.say(f"{ratio:g} alpha after {good} good audits: {_audits(power[-4].median)} audits")
    found = goals(null, power, differing)
    share = RouterSettings().audit_share
    show(null, power, share, found)
    facts = {"alpha": ALPHA, "delta": DELTA, "audits": AUDITS, "good": GOOD, "good_risk": GOOD_RISK, "day": DAY}
    facts |= {"share": share, "cusum_limits": limits}
    tables.write_json(arguments.out, {"machine": where, **facts, "null": null, "power": power, "goals": found})
    return 0 if all(goal.met for goal in found) else 1


if __name__ == "__main__":
    sys.exit(tables.run(main))
