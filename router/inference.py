"""Where the edge model runs: in the thread that wants the prediction, or in one of a bounded pool.

Owns the pool and the measuring. What a prediction means, and who waits for it how long, is the flow's.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgewise import tracing
from edgewise.contracts import Clock, Input, LocalModel, Prediction
from edgewise.router.pace import Pace, Recent

_HOPS = 11
_BETWEEN_HOPS_S = 0.002
_LONGEST_HOP_S = 0.0002
"""A hop that takes longer was measured on a busy machine: what it costs is what it takes on an idle one."""


class Inference:
    """The edge model as the flow sees it.

    Args:
        model: The model; called from several threads at once.
        threads: Predictions that run at the same time in the pool.
        clock: Time.
    """

    def __init__(self, model: LocalModel, threads: int, clock: Clock) -> None:
        self._model = model
        self._clock = clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="edgewise-edge")
        self._pace = Pace()
        self._turnaround = Recent(math.inf)
        self._is_measured = False
        self._computing = 0
        self._counting = threading.Lock()

    def is_quick_for(self, item: Input) -> bool:
        """Whether a prediction of items like this one was measured to take less than a hop to the pool."""
        return self._pace.is_quick and self._pace.is_quick_for(_size(item))

    def set_aside_s(self, item: Input) -> float:
        """Seconds before a deadline at which a prediction has to be started; `inf` where none was seen yet."""
        return 0.0 if self.is_quick_for(item) else self._turnaround.seconds

    def here(self, item: Input) -> Prediction:
        """Predict in the calling thread.

        Raises:
            InputError: The model cannot read the item.
        """
        began = self._clock.monotonic()
        try:
            with tracing.span("edge.predict"):
                (prediction,) = self._model.predict([item])
        finally:
            if not self._computing:  # else it may have waited for the interpreter, or for its core
                self._pace.took_here(self._clock.monotonic() - began)
        return prediction

    def start(self, item: Input) -> asyncio.Future[Prediction]:
        """Predict in the pool; cancelling takes a prediction out of the queue that has not begun.

        The future raises InputError where the model cannot read the item.

        Raises:
            RuntimeError: It is closed.
        """
        submitted = self._clock.monotonic()
        return asyncio.get_running_loop().run_in_executor(self._pool, self._in_pool, item, submitted)

    def measuring(self) -> Coroutine[Any, Any, None] | None:
        """The work that measures what a hop costs, for the first who asks; None for all others."""
        if self._is_measured:
            return None
        self._is_measured = True
        return self._measure()

    async def _measure(self) -> None:
        """Measure what a hop costs as a request meets it, beside the pool that may be busy already.

        Between two hops both threads fall asleep, as they do between two requests: waking them is most of the cost.
        """
        hops = []
        with ThreadPoolExecutor(1, thread_name_prefix="edgewise-hop") as pool:
            for _ in range(_HOPS):
                await asyncio.sleep(_BETWEEN_HOPS_S)
                began = self._clock.monotonic()
                await asyncio.create_task(_hop(pool))
                hops.append(self._clock.monotonic() - began)
        self._pace.hop_takes(min(sorted(hops)[_HOPS // 2], _LONGEST_HOP_S))

    def close(self) -> None:
        """Start nothing more and drop what is queued; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _in_pool(self, item: Input, submitted: float) -> Prediction:
        with self._computed():
            began = self._clock.monotonic()
            (prediction,) = self._model.predict([item])
            ended = self._clock.monotonic()
        self._pace.took_in_pool(ended - began, _size(item))
        self._turnaround.took(ended - submitted)
        return prediction

    @contextmanager
    def _computed(self) -> Iterator[None]:
        """Count a thread that computes, also where nobody waits for it any more."""
        with self._counting:
            self._computing += 1
        try:
            yield
        finally:
            with self._counting:
                self._computing -= 1


def _size(item: Input) -> int:
    """Characters, bytes or numbers of an item."""
    return item.size if isinstance(item, np.ndarray) else len(item) if isinstance(item, str | bytes) else 0


async def _hop(pool: ThreadPoolExecutor) -> None:
    await asyncio.get_running_loop().run_in_executor(pool, _nothing)


def _nothing() -> None:
    return None
