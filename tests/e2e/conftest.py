"""Real services as processes, for tests that talk to them over sockets."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

READY = re.compile(r"ready on (http://\S+)")


class Service:
    """A `edgewise … serve` process; `url` is where it answers."""

    def __init__(self, arguments: list[str], python_options: tuple[str, ...] = (), **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *python_options, "-m", "edgewise.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.stderr: list[str] = []
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()
        self.url = self._wait_ready()

    def _read_stderr(self) -> None:
        for line in self.process.stderr:
            self.stderr.append(line)

    def _wait_ready(self) -> str:
        for line in self.process.stdout:
            if found := READY.search(line):
                return found[1]
        self._drain.join()
        raise AssertionError(f"The service ended before it was ready: {''.join(self.stderr)[-3000:]}")

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Signal it, wait for its end, return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        self._drain.join()
        return code


@pytest.fixture
def start_service() -> Iterator[Callable[..., Service]]:
    """Start services; every one is stopped when the test ends."""
    with contextlib.ExitStack() as running:

        def start(*arguments: str | Path, python_options: tuple[str, ...] = (), **environment: str) -> Service:
            service = Service([str(part) for part in arguments], python_options, **environment)
            running.callback(service.stop, signal.SIGKILL)
            return service

        yield start


@pytest.fixture
def edgewise() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one command of the command line as a process; returns it with its output."""

    def run(*arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "edgewise.cli", *map(str, arguments)], capture_output=True, text=True, timeout=600
        )
        assert not ok or done.returncode == 0, done.stderr[-3000:]
        return done

    return run


CACHE = Path(__file__).parents[2] / "build" / "tests"


def beside(name: str) -> ModuleType:
    """A module of this folder, which pytest's importlib mode lets no test import by name."""
    spec = importlib.util.spec_from_file_location(f"edgewise_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def workloads() -> ModuleType:
    """The module tests/e2e/workloads.py."""
    return beside("workloads")


@pytest.fixture(scope="session")
def newsroom(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module tests/e2e/newsroom.py, with `checkpoint`: a trained classifier."""
    module = beside("newsroom")
    module.checkpoint = module.train_text(tmp_path_factory.mktemp("newsroom") / "newsroom")
    return module


@pytest.fixture(scope="session")
def digits(workloads: ModuleType) -> Any:
    """Handwritten digits: data parts, a cloud checkpoint and an edge checkpoint."""
    return workloads.digits(CACHE)


@pytest.fixture(scope="session")
def newsgroups(workloads: ModuleType) -> Any:
    """Newsgroup texts: data parts, a cloud checkpoint and an edge checkpoint."""
    return workloads.newsgroups(CACHE)


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two ports that were free a moment ago."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
