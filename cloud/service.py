"""Workers as an `AnswerService`: concurrent requests become batches, computed beside the event loop.

Owns the queue, what every caller hears and when, and the service's lifetime; which requests form a batch is
`batching`'s rule, and computing one is the workers'. While all slots compute, requests queue; a free one takes what has
queued, never more than the cap. It computes for nobody who gave up, and every caller hears at its deadline at latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest

from edgewise.cloud.batching import Pending, Result, enough, take_batch
from edgewise.cloud.workers import Workers, frames, worker_gone
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Clock,
    Decision,
    Done,
    Event,
    Prediction,
    Reason,
    Request,
    ServiceInfo,
    Source,
    Status,
)
from edgewise.errors import (
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    EdgewiseError,
    RequestError,
)

_log = logging.getLogger(__name__)

_DECISION = Decision(action=Action.LOCAL, reason=Reason.NO_ROUTER, policy="engine")


class EngineService:
    """Answers requests from one model, each finally, none twice.

    Args:
        workers: What computes; started and closed with the service.
        clock: Time.
        max_batch: Most requests computed together.
        max_wait_ms: Longest an idle service waits for as many requests as came together the last time.

    Raises:
        ConfigError: `max_batch` is below 1, or `max_wait_ms` below 0.
    """

    def __init__(self, workers: Workers, *, clock: Clock, max_batch: int = 16, max_wait_ms: float = 2.0) -> None:
        if max_batch < 1 or not 0 <= max_wait_ms < math.inf:
            raise ConfigError(
                f"max_batch is {max_batch} and max_wait_ms is {max_wait_ms}.",
                "Give a max_batch of 1 or more and a max_wait_ms of 0 or more.",
            )
        self._workers = workers
        self._clock = clock
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1e3
        self._queue: deque[Pending] = deque()
        self._computing: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def info(self) -> ServiceInfo:
        """What the workers answer to."""
        return self._workers.info

    def ready(self) -> str | None:
        """None while requests are answered, else why they are not."""
        if self._dispatcher is None:
            return "The engine is not running."
        if self._stopping:
            return "The service is stopping."
        if self._dispatcher.done():
            return "The worker ended unexpectedly; restart the service."
        return self._workers.ready()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Answer requests inside the block; at its end refuse new ones and answer what is queued.

        Raises:
            RuntimeError: It runs already.
            EdgewiseError: The workers cannot be started.
        """
        if self._dispatcher is not None:
            raise RuntimeError("This service runs already.")
        self._stopping = False
        self._wake = asyncio.Event()
        await self._workers.start()
        self._dispatcher = asyncio.create_task(self._dispatch(), name="edgewise-batches")
        try:
            yield
        finally:
            self._stopping = True
            self._wake.set()
            try:
                await _drained(self._dispatcher)
            finally:
                self._dispatcher = None
                await self._workers.aclose()

    async def events(self, request: Request) -> AsyncIterator[Event]:
        """Answer one request: `Answered`, then `Done`.

        Raises:
            RequestError: It is for another task or of another kind than this model's, or the item cannot be read.
            CloudTimeoutError: Its budget was spent.
            CloudError: The engine failed, or the service is not running.
        """
        yield Answered(await self._answer(request))
        yield Done(request.id)

    async def _answer(self, request: Request) -> Answer:
        arrived_s = self._clock.monotonic()
        self._check(request)
        result = await self._result(request, arrived_s)
        return Answer(
            id=request.id,
            output=result.prediction.output,
            status=Status.FINAL,
            source=Source.CLOUD,
            decision=_DECISION,
            timings_ms={
                "queue": result.queued_ms,
                "engine": result.engine_ms,
                "total": (self._clock.monotonic() - arrived_s) * 1e3,
            },
            model_digest=self.info.version,
        )

    def _check(self, request: Request) -> None:
        refusal = self.ready()
        if refusal is not None:
            raise CloudUnreachableError(refusal, "Send the request again, to this service later or to another one.")
        info = self.info
        if request.task and request.task != info.task:
            raise RequestError(
                "task", f"task: {request.task} is not what {info.name} does.", f"Send {info.task}, or leave it out."
            )
        kind = "text" if isinstance(request.inputs, str) else "image"
        if kind != info.input:
            raise RequestError("inputs", f"inputs: {info.name} reads no {kind}.", f"Send {info.input}.")

    async def _result(self, request: Request, arrived_s: float) -> Result:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        budget_s = math.inf if request.budget_ms is None else request.budget_ms / 1e3
        item = Pending(request, arrived_s, arrived_s + budget_s, future)
        self._queue.append(item)
        self._wake.set()
        # The caller hears at its deadline, not when the engine is free again.
        alarm = None if budget_s == math.inf else loop.call_later(budget_s, _expire, item)
        try:
            return await future
        finally:
            if alarm is not None:
                alarm.cancel()

    async def _dispatch(self) -> None:
        last_batch = 0
        try:
            while await self._can_start(last_batch):
                batch, spent = take_batch(self._queue, self._clock.monotonic(), self._max_batch)
                for item in spent:
                    _fail(item, _spent(item))
                if batch:
                    self._start(batch)
                    last_batch = len(batch)
        finally:
            # Nobody may wait for ever for a worker that is gone.
            for item in self._queue:
                _fail(item, worker_gone())
            self._queue.clear()
            for task in self._computing if sys.exception() else ():
                task.cancel()
            await asyncio.gather(*self._computing, return_exceptions=True)

    async def _can_start(self, last_batch: int) -> bool:
        """Wait until a batch should start; False once the service stops and nothing is queued."""
        if not self._queue:
            await self._until(lambda: bool(self._queue) or self._stopping)
            await self._linger(last_batch)
        await self._until(lambda: len(self._computing) < self._workers.slots)
        return bool(self._queue) or not self._stopping

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._wake.clear()
            await self._wake.wait()

    async def _linger(self, last_batch: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait_s):
                await self._until(lambda: self._stopping or enough(len(self._queue), last_batch, self._max_batch))

    def _start(self, batch: list[Pending]) -> None:
        task = asyncio.create_task(self._compute(batch), name="edgewise-batch")
        self._computing.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._computing.discard(task)
        self._wake.set()

    async def _compute(self, batch: list[Pending]) -> None:
        started_s = self._clock.monotonic()
        outcomes: Sequence[Prediction | EdgewiseError] = ()
        try:
            outcomes = await self._workers.compute([item.request.inputs for item in batch])
        except Exception as error:
            _log.error("The workers failed on a batch of %d: %s", len(batch), frames(error))
        finally:
            engine_ms = (self._clock.monotonic() - started_s) * 1e3
            for item, outcome in zip_longest(batch, outcomes):
                if isinstance(outcome, Prediction):
                    _deliver(item, Result(outcome, (started_s - item.arrived_s) * 1e3, engine_ms))
                else:
                    _fail(item, outcome or worker_gone())


async def _drained(worker: asyncio.Task[None]) -> None:
    try:
        await asyncio.wait({worker})
    finally:
        # Only where this wait was itself cancelled; else the worker has ended.
        worker.cancel()
    error = None if worker.cancelled() else worker.exception()
    if error is not None:
        _log.error("The worker had failed: %s", frames(error))


def _spent(item: Pending) -> CloudTimeoutError:
    return CloudTimeoutError(
        f"The budget of {item.request.budget_ms:g} ms was spent before request {item.request.id} was answered.",
        "Allow it more time, or send fewer requests at once.",
    )


def _expire(item: Pending) -> None:
    _fail(item, _spent(item))


def _deliver(item: Pending, result: Result) -> None:
    if not item.result.done():
        item.result.set_result(result)


def _fail(item: Pending, error: Exception) -> None:
    if not item.result.done():
        item.result.set_exception(error)
