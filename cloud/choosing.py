"""Which runtime computes a checkpoint on this machine: measured at start, not guessed.

Owns the measurement, the proof that both runtimes answer alike, and the choice. Both runtimes themselves stand in
`torch_engine` and `onnx_engine`.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgewise.cloud.checkpoint import IMAGE_TASK, Checkpoint
from edgewise.cloud.checkpoint_engine import CheckpointEngine
from edgewise.cloud.engine import Runtime
from edgewise.cloud.onnx_engine import exported, onnx_engine
from edgewise.cloud.torch_engine import TorchModel
from edgewise.contracts import FloatArray, Input, Prediction
from edgewise.errors import EdgewiseError

_log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of a number between the runtimes, relative to the largest one where that exceeds 1.

Float32 graphs that are right agree to about 1e-5; a wrong mask or normalisation shows above 1e-2.
"""

MEASURE_S = 2.0
"""Seconds after which no further round is measured."""

_ROUNDS = 5
_BATCH = 8
_WORDS = (6, 12, 24, 48)
"""Words of the texts that are measured; requests to classifiers are mostly a sentence or a paragraph."""

_TEXT = (
    "Grain exports rose four percent in the second quarter as the harvest in the north came in early and the price of "
    "wheat fell to its lowest since the spring of the year before, which the ministry had not expected when it set the "
    "quota for the season."
)


def checkpoint_engine(
    path: Path,
    *,
    threads: int,
    name: str | None = None,
    runtime: Runtime = "auto",
    max_slots: int | None = None,
    cache: Path | None = None,
    seconds: Callable[[], float] = time.perf_counter,
) -> CheckpointEngine:
    """Load a checkpoint through the runtime asked for; "auto" takes the faster of both on this machine.

    Args:
        path: The checkpoint's folder.
        threads: Threads that compute, together.
        name: Model name; None takes the folder's.
        runtime: Which runtime.
        max_slots: Most calls at the same time that its caller makes; None sets no limit below `threads`.
        cache: Where exported graphs are kept; None takes the user's cache folder.
        seconds: A clock.

    Raises:
        CheckpointError: It cannot be loaded; or cannot be exported, or answers otherwise, where onnx was asked for.
        MissingExtraError: What it needs is not installed.
    """
    loaded = TorchModel.load(Checkpoint.open(path))
    torch = loaded.engine(threads=threads, name=name)
    if runtime == "torch":
        return torch
    try:
        engines = _onnx_engines(loaded, threads, min(threads, max_slots or threads), name, cache)
        difference = require_agreement(torch, engines[0], probes(loaded.found))
    except EdgewiseError as error:
        if runtime == "onnx":
            raise
        _log.warning("%s is served by torch. %s", path, error.problem)
        return torch
    candidates = engines if runtime == "onnx" else [*engines, torch]
    return _fastest(candidates, probes(loaded.found), difference, seconds) if len(candidates) > 1 else candidates[0]


def _onnx_engines(
    loaded: TorchModel, threads: int, slots: int, name: str | None, cache: Path | None
) -> list[CheckpointEngine]:
    """One call at a time over all threads, and a call a thread."""
    graph = exported(loaded, cache=cache)
    shapes = [(threads, 1)] if slots == 1 else [(threads // slots, slots), (threads, 1)]
    return [onnx_engine(loaded, graph, threads=each, slots=count, name=name) for each, count in shapes]


def probes(found: Checkpoint) -> list[list[Input]]:
    """A few batches of typical items."""
    if found.task == IMAGE_TASK:
        random = np.random.default_rng(0)
        return [[random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(_BATCH)]]
    return [[_words(start, count) for start in range(_BATCH)] for count in _WORDS]


def _words(start: int, count: int) -> str:
    words = _TEXT.split()
    return " ".join(words[(start + i) % len(words)] for i in range(count))


def require_agreement(torch: CheckpointEngine, onnx: CheckpointEngine, batches: Sequence[Sequence[Input]]) -> float:
    """The largest difference between the runtimes, relative to the largest number where that exceeds 1.

    Raises:
        EdgewiseError: It is above `TOLERANCE`, or a label differs that float noise does not explain.
    """
    worst = 0.0
    for batch in batches:
        for expected, got in zip(torch.predict(batch), onnx.predict(batch), strict=True):
            row, other = _numbers(expected), _numbers(got)
            # Written so that a NaN counts as a difference.
            scaled = float(np.abs(row - other).max()) / max(1.0, float(np.abs(row).max()))
            if not scaled <= TOLERANCE:
                raise EdgewiseError(f"Its exported graph differs from torch by {scaled:.3g}; {TOLERANCE:g} is allowed.")
            worst = max(worst, scaled)
            if row.size > 1 and expected.logits is not None and expected.output != got.output:
                first, second = np.sort(row)[-1:-3:-1]
                if first - second > 2 * TOLERANCE * max(1.0, float(np.abs(row).max())):
                    raise EdgewiseError(f"Its exported graph answers {got.output} where torch has {expected.output}.")
    return worst


def _numbers(prediction: Prediction) -> FloatArray:
    numbers = prediction.embedding if prediction.logits is None else prediction.logits
    if numbers is None:
        raise EdgewiseError("A prediction holds no numbers.")
    return numbers


def _fastest(
    engines: Sequence[CheckpointEngine],
    batches: Sequence[Sequence[Input]],
    difference: float,
    seconds: Callable[[], float],
) -> CheckpointEngine:
    rates = throughputs(engines, batches, seconds)
    chosen = engines[max(range(len(engines)), key=rates.__getitem__)]
    measured = ", ".join(
        f"{engine.runtime} {rate:.0f} items/s ({engine.slots} at a time)"
        for engine, rate in zip(engines, rates, strict=True)
    )
    _log.info(
        "%s is served by %s: %s; the runtimes differ by %.1g.", chosen.info.name, chosen.runtime, measured, difference
    )
    return chosen


def throughputs(
    engines: Sequence[CheckpointEngine],
    batches: Sequence[Sequence[Input]],
    seconds: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Items a second of each engine, all its slots busy: the median of rounds that alternate between the engines."""
    rates: list[list[float]] = [[] for _ in engines]
    began = seconds()
    # One round more, which warms up.
    for _ in range(_ROUNDS + 1):
        for engine, found in zip(engines, rates, strict=True):
            found.append(_rate(engine, batches, seconds))
        if seconds() - began > MEASURE_S:
            break
    return [statistics.median(found[1:] or found) for found in rates]


def _rate(engine: CheckpointEngine, batches: Sequence[Sequence[Input]], seconds: Callable[[], float]) -> float:
    work = [batch for batch in batches for _ in range(engine.slots)]
    with ThreadPoolExecutor(engine.slots) as threads:
        started = seconds()
        list(threads.map(engine.predict, work))
        return sum(map(len, work)) / max(seconds() - started, 1e-9)
