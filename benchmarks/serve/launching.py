"""Servers that are compared, each in a process group of its own, and the one load generator for all of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from harness import BenchmarkError

START_S, STOP_S = 180.0, 30.0
SERVER_CORE, LOAD_CORE = "0", "1"

HERE = Path(__file__).parent


@contextmanager
def launched(
    name: str,
    command: Callable[[int], Sequence[str]],
    ready: str | None,
    log: Path,
    *,
    pinned: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, int]]:
    """Start a server, wait until it is ready, give its URL and process id; at the end nothing of it is left.

    Args:
        name: For errors.
        command: Gives the command for a port.
        ready: Path that answers 200 once it serves; None where the first connection tells.
        log: Where its output goes.
        pinned: Whether it has one core, and the generator another.
        environment: Variables besides those of this process.

    Raises:
        BenchmarkError: It ended, or was not ready in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log.parent.mkdir(parents=True, exist_ok=True)
    pin = ["taskset", "-c", SERVER_CORE] if pinned else []
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*pin, *command(port)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "CI": "1", **(environment or {})},
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _until_ready(name, ready, port, process, log)
            yield url, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            # Some leave workers behind, which would compute on under the next one's measuring.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until_ready(name: str, ready: str | None, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise BenchmarkError(f"{name} ended at start.", f"See {log}.")
        try:
            if ready is None:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            if httpx.get(f"http://127.0.0.1:{port}{ready}", timeout=1).status_code == 200:
                return
        except (OSError, httpx.TransportError):
            pass
        time.sleep(0.005)
    raise BenchmarkError(f"{name} was not ready after {START_S:g} s.", f"See {log}.")


def loaded(
    name: str, url: str, bodies: Path, connections: int, seconds: float, *, warm: float = 0.5, pinned: bool = False
) -> dict[str, Any]:
    """What load.py tells of one run against `url`, `warm` seconds after its beginning.

    Raises:
        BenchmarkError: It failed, or requests did.
    """
    pin = ["taskset", "-c", LOAD_CORE] if pinned else []
    flags = ["--connections", str(connections), "--seconds", str(seconds), "--warm", str(warm)]
    command = [*pin, sys.executable, str(HERE / "load.py"), url, str(bodies), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"load.py failed against {name}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    odd = {status: count for status, count in found["statuses"].items() if status != "200"}
    if odd or found["lost_connections"]:
        raise BenchmarkError(f"{name} answered {odd} and lost {found['lost_connections']} connections.")
    return found
