"""An onnxruntime session, set up for one small model on a shared machine.

Owns session options and the translation of onnxruntime's errors. Knows nothing of texts, images or labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from edgewise.errors import BundleError, InputError

_WARNINGS_OFF = 3


class Session:
    """A graph that is ready to run. `run` may be called from several threads at once.

    Args:
        graph: An ONNX file; its weights lie beside it.
        threads: Threads of one operator; operators run one after the other.

    Raises:
        BundleError: onnxruntime cannot open the graph.
        InputError: `threads` is below 1.
    """

    def __init__(self, graph: Path, *, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"A session needs one thread or more, not {threads}.", "Give threads=1.")
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), sess_options=_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # onnxruntime's errors share no base but Exception
            raise BundleError(
                f"onnxruntime {onnxruntime.__version__} cannot open the graph: {_reason(e)}",
                "Update onnxruntime, or pack the bundle from a graph that this version runs.",
            ) from e

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
        """Compute the named outputs.

        Args:
            feeds: Arrays by input name.
            outputs: Names of the outputs wanted.

        Raises:
            InputError: onnxruntime refuses these inputs.
        """
        try:
            return self._session.run(outputs, feeds)  # type: ignore[no-any-return]  # onnxruntime ships no types
        except Exception as e:  # onnxruntime's errors share no base but Exception
            shapes = {name: list(value.shape) for name, value in feeds.items()}
            raise InputError(f"The model cannot run on inputs of shape {shapes}: {_reason(e)}") from e


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _WARNINGS_OFF
    # Spinning buys latency between operators only where there is a pool, and burns a core while waiting.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    return options


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
