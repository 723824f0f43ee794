"""From bundles to figures: measures candidates in turns, and says what each costs and how it answers.

Owns what is compared with what, and on which part of the data. Builds nothing and picks nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec.structs import replace as with_figures

from edgewise.bundle import Bundle
from edgewise.edge import Device
from edgewise.errors import EdgewiseError
from edgewise.quantize.answers import Answers, finite
from edgewise.quantize.bounds import bound_of
from edgewise.quantize.candidates import Built
from edgewise.quantize.measure import ROUNDS, Measured, measure_interleaved, performance
from edgewise.quantize.plan import Part, Plan, QuantizeJob
from edgewise.quantize.process import WorkerError
from edgewise.quantize.profiling import Profile, profile_on_target
from edgewise.quantize.quality import Compared, compare
from edgewise.quantize.report import Candidate, pace_ms
from edgewise.quantize.search import Tried

LOOK_ITEMS = 150
"""Tuning items that a search looks at; the candidates of its front see all of them."""

NOT_FINITE = "it answers items of the tuning part with NaN or infinity"

Value = TypeVar("Value")


class Assessment(NamedTuple):
    """All candidates on the tuning part.

    Attributes:
        candidates: As the report shows them, in the order in which they were given.
        answers: Of those that were measured, by id.
        device: The machine that measured latency and memory.
        built_on: This machine, where another one measured.
    """

    candidates: list[Candidate]
    answers: dict[str, Answers]
    device: Device
    built_on: Device | None


@dataclass(frozen=True)
class Assessor:
    """Measures the candidates of one run.

    Attributes:
        job: What was asked for.
        plan: What was read.
        work: A folder for passing things on.
        logs: Where the processes' output goes.
        peak: Told the largest resident memory of each process, in bytes.
    """

    job: QuantizeJob
    plan: Plan
    work: Path
    logs: Path
    peak: Callable[[int], None]

    def steps(self, built: Sequence[Built]) -> int:
        """How often `on_tuning` advances."""
        return (ROUNDS + bool(self.job.profile_cmd)) * sum(item.usable for item in built)

    def on_tuning(self, built: Sequence[Built], advance: Callable[[], None]) -> Assessment:
        """Measure candidates, the baseline first, on the tuning part.

        Raises:
            EdgewiseError: The baseline cannot be measured.
        """
        bundles = {item.choice.id: item.bundle for item in built if item.usable}
        measured = self._measure(bundles, self.plan.tuning, "measure", advance=advance)
        targets = self._on_target(bundles, advance)
        first = built[0].choice.id
        baseline = _required(measured[first])
        if not finite(baseline.answers):
            raise EdgewiseError(f"{first} cannot be used: {NOT_FINITE}.", "Check the checkpoint's weights.")
        here = baseline.rounds[0].device
        target = _required(targets[first]).device if targets else None
        candidates = [self._candidate(item, measured, baseline, targets) for item in built]
        kept = {found.id for found in candidates if found.state == "measured"}
        answers = {name: _required(measured[name]).answers for name in kept}
        return Assessment(candidates, answers, target or here, here if target else None)

    def on_part(self, bundles: Mapping[str, Path], part: Part, name: str, advance: Callable[[], None]) -> list[Answers]:
        """Answers of bundles on a part, each in one fresh process that also checks the golden items.

        Raises:
            EdgewiseError: One of them cannot answer.
        """
        found = self._measure(bundles, part, name, advance=advance, rounds=1, check_golden=True)
        return [_required(found[name]).answers for name in bundles]

    def compared(self, found: Answers, baseline: Answers, part: Part) -> Compared:
        """A candidate's answers beside the baseline's."""
        return compare(self.plan.kind, found, baseline, part.truth)

    def look(self, built: Built, baseline: Built, tried: Tried) -> Tried:
        """A first look at a candidate, in turns with the baseline, on some tuning items: `tried` with its figures."""
        started = time.perf_counter()
        part = self.plan.tuning.some(LOOK_ITEMS)
        bundles = {baseline.choice.id: baseline.bundle, built.choice.id: built.bundle}
        measured = self._measure(bundles, part, "look", advance=lambda: None, rounds=1)
        other = _required(measured[baseline.choice.id])
        try:
            own = _required(measured[built.choice.id])
            quality = self.compared(own.answers, other.answers, part).quality
        except EdgewiseError as e:
            return _seen(tried, started, problem=str(e), lasting=not isinstance(e, WorkerError))
        if not finite(own.answers):
            return _seen(tried, started, problem=NOT_FINITE)
        cost, usual = (
            performance(found, Bundle.open(item.bundle).size_bytes) for found, item in ((own, built), (other, baseline))
        )
        return _seen(
            tried, started, size_bytes=cost.size_bytes, p50_ratio=pace_ms(cost) / pace_ms(usual), drop=quality.drop
        )

    def _candidate(
        self,
        built: Built,
        measured: Mapping[str, Measured | EdgewiseError],
        baseline: Measured,
        targets: Mapping[str, Profile | EdgewiseError],
    ) -> Candidate:
        if not built.usable:
            return built.describe()
        try:
            found = _required(measured[built.choice.id])
            compared = self.compared(found.answers, baseline.answers, self.plan.tuning)
            target = _required(targets[built.choice.id]).performance if targets else None
        except EdgewiseError as e:
            return built.describe(state="failed", problem=str(e))
        if not finite(found.answers):
            return built.describe(state="failed", problem=NOT_FINITE)
        return built.describe(
            more=found.facts,
            performance=target or performance(found, Bundle.open(built.bundle).size_bytes),
            quality=with_figures(compared.quality, unknown_share=built.made.outcome.unknown_share),
            drop_bound=0.0 if found is baseline else bound_of(compared, 1 - self.job.confidence),
        )

    def _measure(
        self,
        bundles: Mapping[str, Path],
        part: Part,
        name: str,
        *,
        advance: Callable[[], None],
        rounds: int = ROUNDS,
        check_golden: bool = False,
    ) -> dict[str, Measured | EdgewiseError]:
        full = name == "measure"
        return measure_interleaved(
            bundles,
            part.inputs,
            work=self.work,
            log=self.logs / f"{name}.log",
            threads=self.job.threads[0],
            lengths=self.job.lengths if full else (),
            thread_counts=self.job.threads[1:] if full else (),
            rounds=rounds,
            check_golden=check_golden,
            advance=advance,
            peak=self.peak,
        )

    def _on_target(
        self, bundles: Mapping[str, Path], advance: Callable[[], None]
    ) -> dict[str, Profile | EdgewiseError]:
        if self.job.profile_cmd is None:
            return {}
        return profile_on_target(bundles, self.job.profile_cmd, rounds=1, advance=advance)


def _seen(tried: Tried, started: float, **figures: object) -> Tried:
    spent = time.perf_counter() - started
    return with_figures(tried, seconds=tried.seconds + spent, look_seconds=spent, **figures)


def _required(found: Value | EdgewiseError) -> Value:
    if isinstance(found, EdgewiseError):
        raise found
    return found
