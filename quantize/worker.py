"""The far side of `process.py`: `python -m edgewise.quantize.worker WORK JOB RESULT`.

Owns the list of works and the way their errors travel. Not a public command.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from edgewise.errors import DiskFullError, EdgewiseError
from edgewise.quantize.process import DISK_FULL, Failure

# Each names a function of one struct; a worker imports the module of its own work and no other.
WORK: Mapping[str, str] = {
    "export": "edgewise.quantize.export:export_here",
    "take": "edgewise.quantize.onnx_source:take_here",
    "prepare": "edgewise.quantize.graph:prepare_here",
    "feeds": "edgewise.quantize.calibration:feeds_here",
    "sensitivity": "edgewise.quantize.sensitivity:sensitivity_here",
    "build": "edgewise.quantize.build:build_here",
    "measure": "edgewise.quantize.measure:measure_here",
    "answer": "edgewise.quantize.answering:answer_here",
    "golden": "edgewise.quantize.measure:golden_here",
    "check": "edgewise.quantize.measure:check_here",
    "genai": "edgewise.quantize.generation.builder:genai_here",
    "agree": "edgewise.quantize.generation.agreement:agreement_here",
}

_NO_ROOM_BYTES = 1 << 16


def main(arguments: list[str]) -> None:
    """Do one piece of work and write its result, or its error, as JSON."""
    work, asked, answered = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, job_type = _find(work)
    job = msgspec.json.decode(Path(asked).read_bytes(), type=job_type)
    try:
        Path(answered).write_bytes(msgspec.json.encode(_answer(function, job)))
    except Exception as e:
        # Whatever failed: libraries that write by themselves do not say why they could not.
        if (isinstance(e, OSError) and DiskFullError.caused_by(e)) or shutil.disk_usage(asked).free < _NO_ROOM_BYTES:
            sys.exit(DISK_FULL)
        raise


def _answer(function: Callable[[Any], Any], job: Any) -> dict[str, Any]:
    try:
        return {"result": function(job)}
    except EdgewiseError as e:
        return {"failure": Failure(type(e).__name__, e.problem, e.remedy)}


def _find(work: str) -> tuple[Callable[[Any], Any], Any]:
    module, name = WORK[work].split(":")
    function = getattr(import_module(module), name)
    return function, get_type_hints(function)["job"]


def _end_with_parent() -> None:
    # The descriptor, not sys.stdin: a buffered reader held by a daemon thread aborts the interpreter's own end.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
