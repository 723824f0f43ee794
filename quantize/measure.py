"""Measures a bundle with the runtime that will serve it, each time in a fresh process.

Owns what is timed and how: load, first answer, then every item once, batch of one, at the data's own lengths; then the
graph alone on texts of chosen lengths, where they are asked for. Draws no conclusion: `quality.py`, `bounds.py` and
`select.py` do. `measure_here`, `golden_here` and `check_here` run in a worker, and need the base install only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from edgewise.bundle import Bundle, GoldenItem
from edgewise.contracts import Input
from edgewise.edge import Device, EdgeGenerator, EdgeModel, golden_items, probe
from edgewise.errors import CertificateError, ConfigError, DiskFullError, EdgewiseError
from edgewise.quantize.answers import Answers, answer_of, join, load, save, stacked
from edgewise.quantize.items import Item, inputs_of, items_of
from edgewise.quantize.lengths import LengthCalls, time_lengths
from edgewise.quantize.process import run_fresh
from edgewise.quantize.report import Performance, Setting
from edgewise.quantize.statistics import latency
from edgewise.router.signals import signal_named

ROUNDS = 3
"""Fresh processes a candidate; each takes its share of the items, so that a slow minute hits all candidates alike."""

WARM_UP = 3
MIN_TIMED = 20
"""Timed calls a process at least; few items are repeated."""


class MeasureJob(msgspec.Struct, frozen=True):
    """Measure a bundle.

    Attributes:
        bundle: Its folder.
        items: A JSON file of items.
        threads: Threads of one prediction.
        answers: Where the answers go, as .npz; empty to keep none.
        check_golden: Whether the golden items are predicted again and compared.
        lengths: Lengths of text, in tokens, at which the graph is timed as well.
    """

    bundle: str
    items: str
    threads: int
    answers: str
    check_golden: bool = False
    lengths: tuple[int, ...] = ()


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one process measured.

    Attributes:
        threads: Threads of one prediction.
        load_ms: From the folder to a model ready to answer, verification included.
        first_ms: The first answer.
        calls_ms: Each timed call after warming up, preprocessing included; of a generator to the first token.
        peak_rss_bytes: Largest resident memory of the process.
        device: The machine.
        lengths: At the chosen lengths.
        tokens_per_s: Of a generator: tokens a second after the first.
        facts: What was asked for and not measured, and why.
    """

    threads: int
    load_ms: float
    first_ms: float
    calls_ms: tuple[float, ...]
    peak_rss_bytes: int
    device: Device
    lengths: tuple[LengthCalls, ...] = ()
    tokens_per_s: float | None = None
    facts: tuple[str, ...] = ()


class GoldenJob(msgspec.Struct, frozen=True):
    """Let a bundle answer the inputs that become its golden items.

    Attributes:
        bundle: Its folder.
        items: The inputs.
        signal: Name of the signal that scores them; a generator has its own.
    """

    bundle: str
    items: tuple[Item, ...]
    signal: str


class GoldenAnswers(msgspec.Struct, frozen=True):
    """The inputs with their answers."""

    items: tuple[GoldenItem, ...]


class CheckJob(msgspec.Struct, frozen=True):
    """Predict the golden items of a bundle again.

    Attributes:
        bundle: Its folder.
    """

    bundle: str


class Checked(msgspec.Struct, frozen=True):
    """How the golden items came out.

    Attributes:
        golden: "same", or the difference in words.
    """

    golden: str


def measure_here(job: MeasureJob) -> Round:
    """Measure in this process."""
    inputs = inputs_of(msgspec.json.decode(Path(job.items).read_bytes(), type=tuple[Item, ...]))
    started = time.perf_counter()
    bundle = Bundle.open(job.bundle)
    if bundle.core.kind == "generator":
        return _measure_generator(job, inputs)
    model = EdgeModel.from_bundle(bundle, threads=job.threads)
    loaded = time.perf_counter()
    model.predict_one(inputs[0])
    answered = time.perf_counter()
    for item in inputs[:WARM_UP]:
        model.predict_one(item)
    calls, answers = _time_calls(model, inputs)
    lengths, facts = time_lengths(model, inputs, job.lengths)
    if job.check_golden:
        model.check_golden()
    if job.answers:
        save(Path(job.answers), answers)
    return Round(
        threads=job.threads,
        load_ms=(loaded - started) * 1e3,
        first_ms=(answered - loaded) * 1e3,
        calls_ms=calls,
        peak_rss_bytes=peak_rss_bytes(),
        device=probe(),
        lengths=lengths,
        facts=facts,
    )


def golden_here(job: GoldenJob) -> GoldenAnswers:
    """Compute golden items in this process."""
    inputs = inputs_of(job.items)
    model = _load(job.bundle)
    if isinstance(model, EdgeGenerator):
        from edgewise.quantize.measure_generator import prompts_of

        return GoldenAnswers(model.golden_items(prompts_of(model, inputs)))
    return GoldenAnswers(golden_items(model, inputs, signal_named(job.signal)))


def check_here(job: CheckJob) -> Checked:
    """Check golden items in this process."""
    try:
        _load(job.bundle).check_golden()
    except CertificateError as e:
        return Checked(e.problem)
    return Checked("same")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far.

    Linux's VmHWM, since `getrusage` also counts the parent's memory at the moment of the fork; elsewhere `getrusage`.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class Measured(NamedTuple):
    """All rounds of one candidate.

    Attributes:
        rounds: What each process measured.
        answers: Its answers, in the order of the data.
        others: What each process with another number of threads measured.
    """

    rounds: tuple[Round, ...]
    answers: Answers
    others: tuple[Round, ...] = ()

    @property
    def facts(self) -> tuple[str, ...]:
        """What was asked for and not measured, each once."""
        return tuple(dict.fromkeys(fact for round_ in (*self.rounds, *self.others) for fact in round_.facts))


def measure_interleaved(
    bundles: Mapping[str, Path],
    inputs: Sequence[Input],
    *,
    work: Path,
    log: Path,
    threads: int,
    rounds: int = ROUNDS,
    check_golden: bool = False,
    lengths: tuple[int, ...] = (),
    thread_counts: tuple[int, ...] = (),
    advance: Callable[[], None] = lambda: None,
    peak: Callable[[int], None] = lambda _: None,
) -> dict[str, Measured | EdgewiseError]:
    """Measure several bundles on the same items, taking turns.

    Args:
        bundles: Folders by name, at least one.
        inputs: The items.
        work: A folder for passing things on; `NAME.npz` with the answers stays there.
        log: What the processes print.
        threads: Threads of one prediction.
        rounds: Fresh processes a bundle, and of each other number of threads.
        check_golden: Whether each process also checks the golden items.
        lengths: Lengths of text, in tokens, at which the graph is timed as well.
        thread_counts: Other numbers of threads at which latency is measured.
        advance: Called after each bundle's turn.
        peak: Told the largest resident memory of each process in bytes, see `run_fresh`.

    Returns:
        By name, what was measured, or why a bundle could not be.

    Raises:
        ConfigError: A length or a number of threads below 1.
    """
    _check_positive("text length", lengths)
    _check_positive("number of threads", thread_counts)
    rounds = min(rounds, len(inputs))
    found: dict[str, list[_Turn]] = {name: [] for name in bundles}
    broken: dict[str, EdgewiseError] = {}
    for number in range(rounds):
        items = work / "items.json"
        items.write_bytes(msgspec.json.encode(items_of(inputs[number::rounds])))
        for name in _turns(list(bundles), number):
            if name not in broken:
                answers = work / "round.npz"
                job = MeasureJob(str(bundles[name]), str(items), threads, str(answers), check_golden, lengths)
                try:
                    found[name].append(_turn(job, thread_counts, log, peak))
                except DiskFullError:
                    # It would meet every other bundle as well.
                    raise
                except EdgewiseError as e:
                    broken[name] = e
            advance()
    joined = {name: _join(turns, len(inputs)) for name, turns in found.items() if name not in broken}
    for name, measured in joined.items():
        save(work / f"{name}.npz", measured.answers)
    return {**joined, **broken}


def performance(measured: Measured, size_bytes: int) -> Performance:
    """What was measured in figures: medians over the processes, quantiles over the calls of all of them.

    Args:
        measured: All rounds of a candidate.
        size_bytes: Bytes of its bundle.
    """
    rounds = measured.rounds
    rates = [round_.tokens_per_s for round_ in rounds if round_.tokens_per_s is not None]
    return Performance(
        size_bytes=size_bytes,
        load_ms=float(np.median([round_.load_ms for round_ in rounds])),
        first_ms=float(np.median([round_.first_ms for round_ in rounds])),
        latency=latency(np.concatenate([round_.calls_ms for round_ in rounds])),
        peak_rss_bytes=max(round_.peak_rss_bytes for round_ in rounds),
        settings=_settings(measured),
        tokens_per_s=float(np.median(rates)) if rates else None,
    )


def _settings(measured: Measured) -> tuple[Setting, ...]:
    calls: dict[tuple[int, int], list[float]] = {}
    for round_ in measured.others:
        calls.setdefault((round_.threads, 0), []).extend(round_.calls_ms)
    for round_ in (*measured.rounds, *measured.others):
        for part in round_.lengths:
            calls.setdefault((round_.threads, part.tokens), []).extend(part.calls_ms)
    return tuple(
        Setting(threads=threads, tokens=tokens or None, latency=latency(np.array(times)))
        for (threads, tokens), times in sorted(calls.items())
    )


def _measure_generator(job: MeasureJob, inputs: Sequence[Input]) -> Round:
    from edgewise.quantize.measure_generator import pace_of, prompts_of, score_texts

    started = time.perf_counter()
    model = EdgeGenerator.load(job.bundle, threads=job.threads)
    loaded = time.perf_counter()
    prompts = prompts_of(model, inputs)
    cold = pace_of(model, prompts[:1], tokens=1)
    pace = pace_of(model, prompts)
    if job.check_golden:
        model.check_golden()
    if job.answers:
        save(Path(job.answers), score_texts(model, inputs))
    return Round(
        threads=job.threads,
        load_ms=(loaded - started) * 1e3,
        first_ms=cold.first_ms[0],
        calls_ms=pace.first_ms,
        peak_rss_bytes=peak_rss_bytes(),
        device=probe(),
        tokens_per_s=pace.tokens_per_s,
        facts=("latency at chosen lengths was not measured: prompts have their own",) if job.lengths else (),
    )


def _load(bundle: str) -> EdgeModel | EdgeGenerator:
    opened = Bundle.open(bundle)
    return EdgeGenerator.load(bundle) if opened.core.kind == "generator" else EdgeModel.from_bundle(opened)


def _time_calls(model: EdgeModel, inputs: Sequence[Input]) -> tuple[tuple[float, ...], Answers]:
    calls: list[float] = []
    answers: list[Answers] = []
    for turn in range(-(-MIN_TIMED // len(inputs)) if len(inputs) < MIN_TIMED else 1):
        for item in inputs:
            started = time.perf_counter()
            prediction = model.predict_one(item)
            calls.append((time.perf_counter() - started) * 1e3)
            if turn == 0:
                answers.append(answer_of(model, item, prediction))
    return tuple(calls), stacked(answers)


def _turns(names: list[str], number: int) -> list[str]:
    """The names, starting with another one each round."""
    start = number % len(names)
    return names[start:] + names[:start]


class _Turn(NamedTuple):
    """One bundle in one round."""

    round: Round
    answers: Answers
    others: tuple[Round, ...]


def _turn(job: MeasureJob, thread_counts: Iterable[int], log: Path, peak: Callable[[int], None]) -> _Turn:
    measured = run_fresh("measure", job, Round, log=log, threads=job.threads, peak=peak)
    others = []
    for threads in dict.fromkeys(thread_counts):
        if threads != job.threads:
            other = msgspec.structs.replace(job, threads=threads, answers="", check_golden=False)
            others.append(run_fresh("measure", other, Round, log=log, threads=threads, peak=peak))
    return _Turn(measured, load(Path(job.answers)), tuple(others))


def _join(turns: Sequence[_Turn], count: int) -> Measured:
    return Measured(
        rounds=tuple(turn.round for turn in turns),
        answers=join([turn.answers for turn in turns], count),
        others=tuple(round_ for turn in turns for round_ in turn.others),
    )


def _check_positive(what: str, values: Iterable[int]) -> None:
    wrong = next((value for value in values if value < 1), None)
    if wrong is not None:
        raise ConfigError(f"A {what} of {wrong} cannot be measured.", "Give 1 or more.")
