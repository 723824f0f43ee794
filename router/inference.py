"""Where the edge model runs: in the thread that wants the prediction, or in one of a bounded pool.

Owns the pool and the measuring. What a prediction means, and who waits for it how long, is the flow's.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

from edgewise import tracing
from edgewise.contracts import Clock, Input, LocalModel, Prediction
from edgewise.router.pace import Pace, Recent

_HOPS = 5
_LONGEST_HOP_S = 0.0005
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
        self._measuring = False

    @property
    def is_quick(self) -> bool:
        """Whether a prediction was measured to take less than a hop to the pool."""
        return self._pace.is_quick

    @property
    def set_aside_s(self) -> float:
        """Seconds before a deadline at which a prediction has to be started; `inf` where none was seen yet."""
        return 0.0 if self._pace.is_quick else self._turnaround.seconds

    def here(self, item: Input) -> Prediction:
        """Predict in the calling thread.

        Raises:
            InputError: The model cannot read the item.
        """
        began = self._clock.monotonic()
        with tracing.span("edge.predict"):
            (prediction,) = self._model.predict([item])
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

    @property
    def is_measured(self) -> bool:
        """Whether what a hop costs was measured, or is being measured."""
        return self._measuring

    async def measure(self) -> None:
        """Measure what a hop costs, beside the pool that may be busy already."""
        self._measuring = True
        loop, shortest = asyncio.get_running_loop(), _LONGEST_HOP_S
        with ThreadPoolExecutor(1, thread_name_prefix="edgewise-hop") as pool:
            for _ in range(_HOPS):
                began = self._clock.monotonic()
                await loop.run_in_executor(pool, _nothing)
                shortest = min(shortest, self._clock.monotonic() - began)
        self._pace.hop_takes(shortest)

    def close(self) -> None:
        """Start nothing more and drop what is queued; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _in_pool(self, item: Input, submitted: float) -> Prediction:
        began = self._clock.monotonic()
        (prediction,) = self._model.predict([item])
        ended = self._clock.monotonic()
        self._pace.took_in_pool(ended - began)
        self._turnaround.took(ended - submitted)
        return prediction


def _nothing() -> None:
    return None
