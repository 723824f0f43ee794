"""Where batches are computed: the `Workers` Protocol, and its simplest form, threads in this process.

Owns the way of a batch into an engine and of its outcomes back: one an item, whatever the engine does. Which requests
form a batch, and who still waits for it, is the service's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from edgewise.cloud.engine import Engine
from edgewise.contracts import Input, Prediction, ServiceInfo
from edgewise.errors import (
    CloudError,
    CloudResponseError,
    CloudUnreachableError,
    EdgewiseError,
    InputError,
    RequestError,
)
from edgewise.errors import frames as frames  # those that use workers have it from here

_log = logging.getLogger(__name__)


def unheard() -> None:
    """What workers call that nobody listens to."""


class Workers(Protocol):
    """Computes batches, `slots` of them at the same time.

    Attributes:
        on_change: Set by who hands out batches; called in the event loop when `slots` or `ready` has changed.
    """

    on_change: Callable[[], None]

    @property
    def info(self) -> ServiceInfo:
        """What is served."""
        ...

    @property
    def slots(self) -> int:
        """Batches computed at the same time, at least 1; may change while it runs."""
        ...

    def ready(self) -> str | None:
        """None while batches are computed, else why they are not."""
        ...

    async def start(self) -> None:
        """Make ready to compute; returns once it is.

        Raises:
            EdgewiseError: It cannot be started.
        """
        ...

    async def aclose(self) -> None:
        """Stop, after the batches that are being computed."""
        ...

    async def compute(self, inputs: Sequence[Input]) -> list[Prediction | EdgewiseError]:
        """Compute one batch.

        Returns:
            For each item its prediction; or `RequestError`, it cannot be read; or `CloudError`, the engine failed or
            the worker died.
        """
        ...


class ThreadWorkers:
    """An engine in this process, called from as many threads as it has slots.

    Args:
        engine: What computes.
    """

    def __init__(self, engine: Engine) -> None:
        self.on_change: Callable[[], None] = unheard
        self._engine = engine
        self._threads: ThreadPoolExecutor | None = None

    @property
    def info(self) -> ServiceInfo:
        """What is served."""
        return self._engine.info

    @property
    def slots(self) -> int:
        """Batches computed at the same time."""
        return self._engine.slots

    def ready(self) -> str | None:
        """None between `start` and `aclose`."""
        return "The engine is not running." if self._threads is None else None

    async def start(self) -> None:
        """Start the threads.

        Raises:
            RuntimeError: They run already.
        """
        if self._threads is not None:
            raise RuntimeError("These workers run already.")
        self._threads = ThreadPoolExecutor(self._engine.slots, thread_name_prefix="edgewise-engine")

    async def aclose(self) -> None:
        """Let the batches that are being computed end, then the threads."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)

    async def compute(self, inputs: Sequence[Input]) -> list[Prediction | EdgewiseError]:
        """Compute one batch in a thread of its own."""
        if self._threads is None:
            return [CloudUnreachableError("The engine is not running.", "Start the service.") for _ in inputs]
        return await asyncio.get_running_loop().run_in_executor(self._threads, outcomes, self._engine, inputs)


def outcomes(engine: Engine, inputs: Sequence[Input]) -> list[Prediction | EdgewiseError]:
    """Predict a batch whatever the engine does: where it fails, each item of this batch hears of it, and no other."""
    try:
        return predict_each(engine, inputs)
    except Exception as error:
        # Whatever an engine raises: the worker lives, the callers hear of it, the log says where.
        _log.error("The engine failed on a batch of %d: %s", len(inputs), frames(error))
        problem = f"The engine failed: {type(error).__name__}."
        return [CloudResponseError(problem, "See the service's log.") for _ in inputs]


def predict_each(engine: Engine, inputs: Sequence[Input]) -> list[Prediction | EdgewiseError]:
    """Predict a batch; an item that cannot be read fails alone.

    A batch with a bad item is halved until the bad ones are by themselves: few steps where few are bad.

    Returns:
        For each item its prediction, or why it cannot be read.
    """
    try:
        predictions = engine.predict(inputs)
    except InputError as error:
        if len(inputs) == 1:
            return [RequestError("inputs", f"inputs: {error.problem}", error.remedy)]
    else:
        if len(predictions) != len(inputs):
            raise RuntimeError(f"{len(inputs)} items got {len(predictions)} predictions.")
        return list(predictions)
    middle = len(inputs) // 2
    return predict_each(engine, inputs[:middle]) + predict_each(engine, inputs[middle:])


def worker_gone() -> CloudError:
    """What the callers of a batch hear whose worker ended before it answered."""
    return CloudError("The engine's worker ended.", "Send the request again; the service's log says why.")
