"""Runs one ONNX file by plain onnxruntime in a process of its own: python measure_onnx.py JOB RESULT.

The same for every model, ours or a rival's: same session options, same feeds, all outputs. Knows nothing of edgewise.
JOB holds onnx, feeds (.npz of "NUMBER/NAME"), threads, calls and logits (a path, or null); RESULT gets milliseconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_WARM_UP = 3
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


def open_session(path: str, threads: int) -> Any:
    """A session with one operator at a time on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])


def read_feeds(path: str, session: Any) -> list[dict[str, Any]]:
    """What the graph declares of each item, in the declared types."""
    types = {spec.name: _TYPES[spec.type] for spec in session.get_inputs()}
    with np.load(path) as stored:
        count = len({name.partition("/")[0] for name in stored.files})
        return [{name: stored[f"{i}/{name}"].astype(kind) for name, kind in types.items()} for i in range(count)]


def main() -> None:
    """Measure, and write what was found."""
    job = json.loads(Path(sys.argv[1]).read_text())
    started = time.perf_counter()
    session = open_session(job["onnx"], job["threads"])
    loaded = time.perf_counter()
    feeds = read_feeds(job["feeds"], session)
    ready = time.perf_counter()
    session.run(None, feeds[0])
    answered = time.perf_counter()
    for feed in feeds[:_WARM_UP]:
        session.run(None, feed)
    calls = []
    for number in range(job["calls"]):
        feed = feeds[number % len(feeds)]
        start = time.perf_counter()
        session.run(None, feed)
        calls.append((time.perf_counter() - start) * 1e3)
    if job["logits"]:
        save_logits(session, feeds, job["logits"])
    result = {"load_ms": (loaded - started) * 1e3, "first_ms": (answered - ready) * 1e3, "peak_rss_bytes": peak()}
    if calls:
        result |= {"p50_ms": float(np.quantile(calls, 0.5)), "p95_ms": float(np.quantile(calls, 0.95))}
    Path(sys.argv[2]).write_text(json.dumps(result))


def save_logits(session: Any, feeds: list[dict[str, Any]], path: str) -> None:
    """The output called logits, or the first, of every item: shape (items, classes)."""
    names = [spec.name for spec in session.get_outputs()]
    name = "logits" if "logits" in names else names[0]
    np.save(path, np.concatenate([session.run([name], feed)[0] for feed in feeds]).astype(np.float32))


def peak() -> int:
    """Largest resident memory of this process so far, in bytes (Linux: VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    main()
