"""How much each matrix's quantization moves the answers, one matrix at a time.

Owns the measurement and its file. The choice that follows from it is `recipes/mixed.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.quantize.calibration import Feeds, read_feeds

Precision = Literal["int4", "int8"]

Array = NDArray[np.float64]


class SensitivityJob(msgspec.Struct, frozen=True, kw_only=True):
    """Measure the sensitivity of every eligible matrix.

    Attributes:
        source: The prepared float graph.
        calibration: Calibration data, as `calibration.write_feeds` wrote it.
        out: The JSON file that is written: precision to weight to distance, largest first.
        precisions: Precisions to measure: "int4" in blocks, "int8" one scale a column.
        block_size: Block size of int4.
        count: At most so many calibration items.
    """

    source: str
    calibration: str
    out: str
    precisions: tuple[Precision, ...] = ("int4",)
    block_size: int = 32
    count: int = 32


class SensitivityDone(msgspec.Struct, frozen=True):
    """What was measured.

    Attributes:
        weights: Matrices measured at each precision.
    """

    weights: int


def sensitivity_here(job: SensitivityJob) -> SensitivityDone:
    """Measure and write the file.

    The distance is the mean Kullback-Leibler divergence of the class probabilities where the graph gives "logits", else
    the mean of |difference|² over |answer|².

    Raises:
        DataError: No calibration data, or the graph cannot run on it.
    """
    import onnx

    from edgewise.quantize import graph

    feeds = read_feeds(job.calibration)[: job.count]
    model = onnx.load(job.source)
    weights = {name: _array(tensor) for name, tensor in graph.eligible_weights(model, "MatMul").items()}
    run, distance = _runner(model, list(weights))
    exact = [run(feed, {}) for feed in feeds]
    found: dict[str, dict[str, float]] = {}
    for precision in job.precisions:
        moved = {
            name: _mean(run, distance, feeds, exact, {name: rounded(weight, precision, job.block_size)})
            for name, weight in weights.items()
        }
        odd = next((name for name, distance in moved.items() if not np.isfinite(distance)), None)
        if odd is not None:
            raise DataError(
                f"Answers are NaN or infinite where {odd!r} alone is rounded to {precision}.", "Leave `mixed` out."
            )
        found[precision] = dict(sorted(moved.items(), key=lambda item: (-item[1], item[0])))
    Path(job.out).write_bytes(msgspec.json.encode(found))
    return SensitivityDone(len(weights))


def read_distances(path: str, precision: Precision, names: Sequence[str]) -> dict[str, float]:
    """The distances of these weights at a precision.

    Raises:
        DataError: No such file, or it is of another graph or lacks the precision.
    """
    if not path or not Path(path).is_file():
        raise DataError("This recipe needs measured sensitivities, and there are none.", "Give tuning items.")
    found = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, dict[str, float]])
    if precision not in found:
        raise DataError(f"No sensitivity was measured at {precision}.", f"There is: {', '.join(found)}.")
    missing = next((name for name in names if name not in found[precision]), None)
    if missing is not None:
        raise DataError(f"The measured sensitivities know no weight {missing!r}.", "Measure this graph's own.")
    return {name: found[precision][name] for name in names}


def rounded(weight: NDArray[np.float32], precision: Precision, block_size: int) -> NDArray[np.float32]:
    """A matrix of shape (inputs, outputs), as it comes back from a precision."""
    if precision == "int4":
        from edgewise.quantize.recipes.blocks import restored, round_to_nearest

        blocks = round_to_nearest(np.ascontiguousarray(weight.T), 4, block_size, symmetric=False)
        return np.ascontiguousarray(restored(blocks, 4, len(weight)).T)
    scale = np.abs(weight).max(axis=0, keepdims=True) / 127
    scale = np.where(scale == 0, 1, scale)
    return np.asarray(np.clip(np.rint(weight / scale), -127, 127) * scale, dtype=np.float32)


def divergence(exact: Array, found: Array) -> float:
    """Mean Kullback-Leibler divergence of softmax over the last axis, in nats."""
    p, q = _log_softmax(exact), _log_softmax(found)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def relative_square(exact: Array, found: Array) -> float:
    """Squared distance over the squared length of the exact answer."""
    return float(np.sum((exact - found) ** 2) / max(float(np.sum(exact**2)), 1e-12))


Run = Callable[[Feeds, dict[str, Any]], Array]

Distance = Callable[[Array, Array], float]


def _runner(model: Any, names: Sequence[str]) -> tuple[Run, Distance]:
    """One session for all: a weight that is an input too can be replaced for one run, and nothing is written twice."""
    import onnxruntime
    from onnx import TensorProto, helper

    inputs = {value.name for value in model.graph.input}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    model.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, tensors[name].dims) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    wanted = "logits" if "logits" in outputs else outputs[0]

    def run(feed: Feeds, replaced: dict[str, Any]) -> Array:
        given = {name: value for name, value in feed.items() if name in inputs}
        try:
            (answer,) = session.run([wanted], {**given, **replaced})
        except Exception as e:  # onnxruntime's errors share no base but Exception
            raise DataError(f"The graph cannot run on the calibration data: {e}", "Give items of its kind.") from e
        return np.asarray(answer, dtype=np.float64)

    return run, divergence if wanted == "logits" else relative_square


def _mean(
    run: Run, distance: Distance, feeds: Sequence[Feeds], exact: Sequence[Array], replaced: dict[str, Any]
) -> float:
    return float(np.mean([distance(right, run(feed, replaced)) for feed, right in zip(feeds, exact, strict=True)]))


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _array(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)
