"""Runs one piece of work in a fresh process, and brings back its result or its error.

Owns the process: its environment, its log, its end. Exporting needs a fresh one because torch is large and talkative,
measuring because load time and memory of one candidate must not depend on another. Knows no work itself: `worker.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from edgewise import errors
from edgewise.errors import DiskFullError, EdgewiseError

Result = TypeVar("Result")

DISK_FULL = 74
"""Exit code of a worker that found no room, not even for its result; EX_IOERR of sysexits.h."""

_SHOWN_LINES = 3


class WorkerError(EdgewiseError):
    """A worker process ended without a result: it crashed, or was killed."""


class Failure(msgspec.Struct, frozen=True):
    """An error raised on purpose in a worker.

    Attributes:
        kind: Name of its class in `edgewise.errors`.
        problem: What was wrong.
        remedy: What the reader can do.
    """

    kind: str
    problem: str
    remedy: str


def run_fresh(
    work: str,
    job: msgspec.Struct,
    result: type[Result],
    *,
    log: Path,
    threads: int,
    peak: Callable[[int], None] = lambda _: None,
) -> Result:
    """Do a piece of work in a fresh process.

    Args:
        work: Its name in `worker.WORK`.
        job: Its argument.
        result: Type of its result.
        log: Whatever it prints is appended here.
        threads: Threads that numeric libraries in it may use.
        peak: Told the largest resident memory of the process, or of one that it started and waited for, in bytes,
            however it ended. Linux counts what this process held when it started the other one, so it is never less
            than that. Not told on systems that do not say.

    Raises:
        EdgewiseError: What the work itself raised.
        DiskFullError: There was no room for what it wrote, or for its result.
        WorkerError: It ended without a result.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Beside the log, so that what a kill leaves goes with the run it belongs to.
    with tempfile.TemporaryDirectory(prefix=f".{work}.", dir=log.parent) as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_bytes(msgspec.json.encode(job))
        command = [sys.executable, "-P", "-m", "edgewise.quantize.worker", work, str(asked), str(answered)]
        code = _run(command, log, _environment(threads), peak)
        if code == DISK_FULL:
            raise DiskFullError(
                f"There is no room for what '{work}' writes beside {log.parent}.",
                "Free some space, or choose another disk.",
            )
        if not answered.exists():
            raise WorkerError(*_death(work, code, log))
        return _read(answered.read_bytes(), result)


def _read(data: bytes, result: type[Result]) -> Result:
    answer = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    if "failure" not in answer:
        return msgspec.json.decode(answer["result"], type=result)
    failure = msgspec.json.decode(answer["failure"], type=Failure)
    kind = getattr(errors, failure.kind, EdgewiseError)
    # Only the classes that keep the common constructor travel under their own name.
    plain = kind if kind.__init__ is EdgewiseError.__init__ else errors.InputError
    raise plain(failure.problem, failure.remedy)


def _run(command: list[str], log: Path, environment: Mapping[str, str], peak: Callable[[int], None]) -> int:
    with log.open("ab") as stream:
        # The pipe to its standard input closes when this process ends, however it ends; the worker ends with it.
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment
        )
        try:
            return _wait(process, peak)
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _wait(process: subprocess.Popen[bytes], peak: Callable[[int], None]) -> int:
    if not hasattr(os, "wait4"):  # Windows
        return process.wait()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak(usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024)
    return process.returncode


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # A checkpoint is a local folder: nothing is looked up, nothing is sent.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONHASHSEED": "0",
    }


def _death(work: str, code: int, log: Path) -> tuple[str, str]:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = " | ".join(line.strip() for line in lines[-_SHOWN_LINES:])
    if code < 0:
        return f"The process for '{work}' was killed by signal {-code}.", "It may have run out of memory."
    return f"The process for '{work}' failed: {last or f'exit code {code}'}.", ""
