"""Ranges of activations, as calibration data shows them, and what makes a range worthless.

Owns what is refused: a value that the data never reaches, one side of a branch that it never takes, a constant, NaN.
Items are observed one by one at their own lengths, so no padding token widens a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.quantize.calibration import Feeds, observe
from edgewise.quantize.surgery import reads

Method = Literal["minmax", "percentile", "entropy"]

Range = tuple[float, float]

_REMEDY = "Give tuning items that use the whole graph, or leave this recipe out."

_BINS = {"percentile": 2048, "entropy": 128}


class _Observer:
    """Keeps the extremes of each value, and its histogram where the method asks for one."""

    def __init__(self, names: Sequence[str], conditions: Sequence[str], method: Method, percentile: float) -> None:
        self.extremes: dict[str, Range] = {}
        self.sides: dict[str, set[bool]] = {name: set() for name in conditions}
        self._names = set(names)
        self._histograms: Any = None
        if method != "minmax":
            from onnxruntime.quantization.calibrate import HistogramCollector

            self._histograms = HistogramCollector(method, False, _BINS[method], 128, percentile, None)

    def see(self, name: str, value: NDArray[Any]) -> None:
        if name in self.sides:
            self.sides[name].update(bool(side) for side in value.reshape(-1))
        if name not in self._names or value.size == 0:
            return
        low, high = float(value.min()), float(value.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(f"The value {name!r} is not finite on the calibration data.", "Check the checkpoint.")
        known = self.extremes.get(name, (low, high))
        self.extremes[name] = (min(known[0], low), max(known[1], high))
        if self._histograms is not None:
            self._histograms.collect({name: value.astype(np.float32)})

    def ranges(self) -> dict[str, Range]:
        if self._histograms is None:
            return self.extremes
        found = self._histograms.compute_collection_result()
        return {name: (float(entry[0]), float(entry[1])) for name, entry in found.items()}


def find_ranges(
    source: Path, nodes: Sequence[Any], feeds: Sequence[Feeds], method: Method, percentile: float, scratch: Path
) -> dict[str, Range]:
    """The range of each activation that these nodes read, and of each that they give unless they multiply matrices.

    Args:
        source: The float graph.
        nodes: Its nodes that go to 8 bits.
        feeds: The calibration data.
        method: How a range is found.
        percentile: For "percentile".
        scratch: Where a copy of the graph goes meanwhile.

    Raises:
        DataError: A range that the data does not show; the value is named.
    """
    import onnx

    model = onnx.load(source)
    names = _activations(model, nodes)
    branches = [node for node in model.graph.node if node.op_type == "If"]
    conditions = sorted({node.input[0] for node in branches})
    observer = _Observer(names, conditions, method, percentile)
    observe(source, sorted({*names, *conditions}), feeds, observer.see, scratch=scratch)
    _check(names, observer.extremes)
    _check_branches(model, branches, observer.sides, names)
    return observer.ranges()


def _activations(model: Any, nodes: Sequence[Any]) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in nodes:
        given = node.input[:1] if node.op_type in ("MatMul", "Conv", "Clip") else node.input
        found = [*given, *(() if node.op_type == "MatMul" else node.output[:1])]
        names.update(dict.fromkeys(name for name in found if name not in constants))
    return list(names)


def _check(names: Sequence[str], extremes: dict[str, Range]) -> None:
    for name in names:
        if name not in extremes:
            raise DataError(f"The calibration data never reaches the value {name!r}: it has no range.", _REMEDY)
        low, high = extremes[name]
        if low == high:
            raise DataError(f"The value {name!r} is {low:g} throughout the calibration data: it has no range.", _REMEDY)


def _check_branches(model: Any, branches: Sequence[Any], sides: dict[str, set[bool]], names: Sequence[str]) -> None:
    """Refuse a range that was seen on one side of a branch only."""
    for node in branches:
        missing = {True, False} - sides[node.input[0]]
        touched = next((name for name in names if name in _behind(model, node)), None)
        if missing and touched is not None:
            side = "then" if True in missing else "else"
            raise DataError(
                f"The calibration data never takes the {side} branch of {node.name or node.output[0]!r}, which the "
                f"range of {touched!r} depends on.",
                _REMEDY,
            )


def _behind(model: Any, start: Any) -> set[str]:
    """Names of everything computed from what a node gives."""
    reached = set(start.output)
    for node in model.graph.node:
        if reached.intersection(reads(node)):
            reached.update(node.output)
    return reached
