"""Measures a bundle with the runtime that will serve it, each time in a fresh process.

Owns what is timed and how: load, first answer, then every item once, batch of one, at the data's own lengths. Draws no
conclusion: `statistics.py` and `select.py` do. `measure_here` and `golden_here` run in a worker and load no torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.bundle import GoldenItem
from edgewise.contracts import FloatArray, Input
from edgewise.edge import Device, EdgeModel, golden_items, probe
from edgewise.errors import EdgewiseError
from edgewise.quantize.items import Item, inputs_of, items_of
from edgewise.quantize.process import run_fresh
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
        logits: Where the logits go, as .npy of shape (n, classes).
        check_golden: Whether the golden items are predicted again and compared.
    """

    bundle: str
    items: str
    threads: int
    logits: str
    check_golden: bool = False


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one process measured.

    Attributes:
        load_ms: From the folder to a model ready to answer, verification included.
        first_ms: The first answer.
        calls_ms: Each timed call after warming up, preprocessing included.
        peak_rss_bytes: Largest resident memory of the process.
        device: The machine.
    """

    load_ms: float
    first_ms: float
    calls_ms: tuple[float, ...]
    peak_rss_bytes: int
    device: Device


class GoldenJob(msgspec.Struct, frozen=True):
    """Let a bundle answer the inputs that become its golden items.

    Attributes:
        bundle: Its folder.
        items: The inputs.
        signal: Name of the signal that scores them.
    """

    bundle: str
    items: tuple[Item, ...]
    signal: str


class GoldenAnswers(msgspec.Struct, frozen=True):
    """The inputs with their answers."""

    items: tuple[GoldenItem, ...]


def measure_here(job: MeasureJob) -> Round:
    """Measure in this process."""
    inputs = inputs_of(msgspec.json.decode(Path(job.items).read_bytes(), type=tuple[Item, ...]))
    started = time.perf_counter()
    model = EdgeModel.load(job.bundle, threads=job.threads)
    loaded = time.perf_counter()
    model.predict_one(inputs[0])
    answered = time.perf_counter()
    for item in inputs[:WARM_UP]:
        model.predict_one(item)
    calls, logits = _time_calls(model, inputs)
    if job.check_golden:
        model.check_golden()
    np.save(job.logits, logits)
    return Round(
        load_ms=(loaded - started) * 1e3,
        first_ms=(answered - loaded) * 1e3,
        calls_ms=calls,
        peak_rss_bytes=peak_rss_bytes(),
        device=probe(),
    )


def golden_here(job: GoldenJob) -> GoldenAnswers:
    """Compute golden items in this process."""
    return GoldenAnswers(golden_items(EdgeModel.load(job.bundle), inputs_of(job.items), signal_named(job.signal)))


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
        logits: Shape (n, classes), in the order of the data.
    """

    rounds: tuple[Round, ...]
    logits: FloatArray


def measure_interleaved(
    bundles: Mapping[str, Path],
    inputs: Sequence[Input],
    *,
    work: Path,
    log: Path,
    threads: int,
    rounds: int = ROUNDS,
    check_golden: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Measured | EdgewiseError]:
    """Measure several bundles on the same items, taking turns.

    Args:
        bundles: Folders by name.
        inputs: The items.
        work: A folder for passing things on; `NAME.npy` with the logits stays there.
        log: What the processes print.
        threads: Threads of one prediction.
        rounds: Fresh processes a bundle.
        check_golden: Whether each process also checks the golden items.
        advance: Called after each process.

    Returns:
        By name, what was measured, or why a bundle could not be.
    """
    rounds = min(rounds, len(inputs))
    found: dict[str, list[tuple[Round, FloatArray]]] = {name: [] for name in bundles}
    broken: dict[str, EdgewiseError] = {}
    for number in range(rounds):
        items = work / "items.json"
        items.write_bytes(msgspec.json.encode(items_of(inputs[number::rounds])))
        for name in _turn(list(bundles), number):
            if name not in broken:
                logits = work / "round.npy"
                job = MeasureJob(str(bundles[name]), str(items), threads, str(logits), check_golden)
                try:
                    found[name].append((run_fresh("measure", job, Round, log=log, threads=threads), np.load(logits)))
                except EdgewiseError as e:
                    broken[name] = e
            advance()
    joined = {name: _join(parts, len(inputs)) for name, parts in found.items() if name not in broken}
    for name, measured in joined.items():
        np.save(work / f"{name}.npy", measured.logits)
    return {**joined, **broken}


def _time_calls(model: EdgeModel, inputs: Sequence[Input]) -> tuple[tuple[float, ...], FloatArray]:
    calls: list[float] = []
    logits: list[NDArray[np.floating]] = []
    for turn in range(-(-MIN_TIMED // len(inputs)) if len(inputs) < MIN_TIMED else 1):
        for item in inputs:
            started = time.perf_counter()
            prediction = model.predict_one(item)
            calls.append((time.perf_counter() - started) * 1e3)
            if turn == 0 and prediction.logits is not None:
                logits.append(prediction.logits)
    return tuple(calls), np.stack(logits)


def _turn(names: list[str], number: int) -> list[str]:
    """The names, starting with another one each round."""
    start = number % len(names)
    return names[start:] + names[:start]


def _join(found: list[tuple[Round, FloatArray]], count: int) -> Measured:
    logits = np.empty((count, found[0][1].shape[1]), dtype=np.float32)
    for number, (_, rows) in enumerate(found):
        logits[number :: len(found)] = rows
    return Measured(tuple(round_ for round_, _ in found), logits)
