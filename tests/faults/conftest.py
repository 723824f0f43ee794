"""What the fault tests share: the proxy that misbehaves, and services as processes."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]


def load(name: str, path: Path) -> ModuleType:
    """A module of the tests, none of which can import another by name in pytest's importlib mode."""
    spec = importlib.util.spec_from_file_location(f"edgewise_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def faults() -> ModuleType:
    """The module tests/faults/proxy.py."""
    return load("fault_proxy", TESTS / "faults" / "proxy.py")


@pytest.fixture
def start_service() -> Iterator[Callable[..., Any]]:
    """Start `edgewise … serve` processes; every one is killed when the test ends."""
    service = load("services", TESTS / "e2e" / "conftest.py").Service
    with contextlib.ExitStack() as running:

        def start(*arguments: str | Path, **environment: str) -> Any:
            started = service([str(part) for part in arguments], **environment)
            running.callback(started.stop, 9)
            return started

        yield start
