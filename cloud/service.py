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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import zip_longest
from typing import Any

from edgewise import telemetry, tracing
from edgewise.cloud.batching import Pending, Result, enough, in_a_hurry, length_of, share, take_batch
from edgewise.cloud.costs import Costs
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
from edgewise.dialogue import Prompt
from edgewise.errors import (
    CloudError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    EdgewiseError,
    RequestError,
)
from edgewise.telemetry import Metrics

_log = logging.getLogger(__name__)

FAILED_BATCHES = 3
"""So many failed batches in a row, with none good in between, and the service says that it is not ready."""

DOUBT_S = 30.0
"""A failed batch is held against the service so long: a balancer that heeds `ready` has to try it again some time."""

_DECISION = Decision(action=Action.LOCAL, reason=Reason.NO_ROUTER, policy="engine")


class EngineService:
    """Answers requests from one model, each finally, none twice.

    Args:
        workers: What computes; started and closed with the service.
        clock: Time.
        max_batch: Most requests computed together.
        max_wait_ms: Longest an idle service waits for as many requests as came together the last time.
        metrics: Where sizes of batches and times in the queue are counted.

    Raises:
        ConfigError: `max_batch` is below 1, or `max_wait_ms` below 0.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        clock: Clock,
        max_batch: int = 16,
        max_wait_ms: float = 2.0,
        metrics: Metrics | None = None,
    ) -> None:
        if max_batch < 1 or not 0 <= max_wait_ms < math.inf:
            raise ConfigError(
                f"max_batch is {max_batch} and max_wait_ms is {max_wait_ms}.",
                "Give a max_batch of 1 or more and a max_wait_ms of 0 or more.",
            )
        self._workers = workers
        workers.on_change = self._changed
        self._clock = clock
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1e3
        self._costs = Costs()
        self._queue: list[Pending] = []
        self._computing: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._stopping = False
        self._failed = 0
        self._failed_s = -math.inf
        metrics = metrics or Metrics()
        self._sizes = metrics.histogram(*telemetry.BATCH_SIZE, buckets=telemetry.BATCH_SIZE_BUCKETS)
        self._queue_seconds = metrics.histogram(*telemetry.QUEUE_SECONDS)

    @property
    def info(self) -> ServiceInfo:
        """What the workers answer to."""
        return self._workers.info

    def ready(self) -> str | None:
        """None while requests are answered, else why they are not.

        Where batch after batch failed, requests are tried all the same: one that is answered ends the doubt.
        """
        return self._refusal() or self._doubt()

    def _refusal(self) -> str | None:
        if self._dispatcher is None:
            return "The engine is not running."
        if self._stopping:
            return "The service is stopping."
        if self._dispatcher.done():
            return "The worker ended unexpectedly; restart the service."
        return self._workers.ready()

    def _doubt(self) -> str | None:
        if self._failed < FAILED_BATCHES or self._clock.monotonic() - self._failed_s >= DOUBT_S:
            return None
        return f"The last {self._failed} batches failed; the service's log says why."

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
        self._failed = 0
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

    async def events(self, request: Request) -> AsyncGenerator[Event]:
        """Answer one request: `Answered`, then `Done`.

        Raises:
            RequestError: It is for another task or of another kind than this model's, or the item cannot be read.
            CloudTimeoutError: Its budget was spent.
            CloudError: The engine failed, or the service is not running.
        """
        yield Answered(await self.respond(request))
        yield Done(request.id)

    async def respond(self, request: Request) -> Answer:
        """Answer one request; raises what `events` does."""
        arrived_s = self._clock.monotonic() if request.arrived_s is None else request.arrived_s
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
        refusal = self._refusal()
        if refusal is not None:
            raise CloudUnreachableError(refusal, "Send the request again, to this service later or to another one.")
        info = self.info
        if request.task and request.task != info.task:
            raise RequestError(
                "task", f"task: {request.task} is not what {info.name} does.", f"Send {info.task}, or leave it out."
            )
        if isinstance(request.inputs, Prompt):
            raise RequestError(
                "inputs", f"inputs: {info.name} writes no text, it does {info.task}.", "Ask a language model."
            )
        kind = "text" if isinstance(request.inputs, str) else "image"
        if kind != info.input:
            raise RequestError("inputs", f"inputs: {info.name} reads no {kind}.", f"Send {info.input}.")

    async def _result(self, request: Request, arrived_s: float) -> Result:
        loop = asyncio.get_running_loop()
        given_s = [given_ms / 1e3 for given_ms in (request.budget_ms, request.patience_ms) if given_ms is not None]
        deadline_s = arrived_s + max(given_s, default=math.inf)
        item = Pending(
            request,
            arrived_s,
            arrived_s + min(given_s, default=math.inf),
            deadline_s,
            length_of(request.inputs),
            loop.create_future(),
            loop.create_future(),
        )
        self._queue.append(item)
        self._wake.set()
        # The caller hears at its deadline, not when the engine is free again.
        left_s = deadline_s - self._clock.monotonic()
        alarm = None if left_s == math.inf else loop.call_later(max(left_s, 0.0), _fail, item, _spent)
        try:
            return await (_traced(item) if tracing.on() else item.result)
        finally:
            # Who is gone leaves the queue by it.
            item.result.cancel()
            if alarm is not None:
                alarm.cancel()

    async def _dispatch(self) -> None:
        last_batch = 0
        try:
            running = True
            while running:
                try:
                    running = await self._can_start(last_batch)
                    last_batch = self._start_batch() or last_batch
                except Exception as error:
                    # Whatever fails here must not end the service, nor fail for ever over the same requests.
                    _log.error("No batch could be formed of %d requests: %s", len(self._queue), frames(error))
                    self._fail_queued(_not_formed)
                    running = not self._stopping
        finally:
            # Nobody may wait for ever for a worker that is gone.
            self._fail_queued(lambda _: worker_gone())
            for task in self._computing if sys.exception() else ():
                task.cancel()
            await asyncio.gather(*self._computing, return_exceptions=True)

    def _fail_queued(self, error: Callable[[Pending], EdgewiseError]) -> None:
        for item in self._queue:
            _fail(item, error)
        self._queue.clear()

    def _start_batch(self) -> int:
        """Start the next batch, if anybody can still be answered; returns its size."""
        most = share(len(self._queue), self._workers.slots - len(self._computing), self._max_batch)
        batch, spent, self._queue = take_batch(self._queue, self._clock.monotonic(), most, self._costs)
        for item in spent:
            _fail(item, _spent)
        if batch:
            task = asyncio.create_task(self._compute(batch), name="edgewise-batch")
            self._computing.add(task)
            task.add_done_callback(self._ended)
        return len(batch)

    def _changed(self) -> None:
        """There may be another slot."""
        self._wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._computing.discard(task)
        self._wake.set()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("The outcome of a batch could not be noted: %s", frames(error))

    async def _can_start(self, last_batch: int) -> bool:
        """Wait until a batch should start; False once the service stops and nothing is queued."""
        if not self._queue:
            await self._until(lambda: bool(self._queue) or self._stopping)
            if not self._computing:
                await self._linger(last_batch)
        await self._until(lambda: len(self._computing) < self._workers.slots)
        return bool(self._queue) or not self._stopping

    async def _linger(self, last_batch: int) -> None:
        """Wait for company, where it may come and nobody is in a hurry."""

        def may_start() -> bool:
            waiting = len(self._queue)
            return (
                self._stopping
                or enough(waiting, last_batch, self._max_batch)
                or in_a_hurry(self._queue, self._clock.monotonic(), self._max_wait_s, self._costs)
            )

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait_s):
                await self._until(may_start)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._wake.clear()
            await self._wake.wait()

    async def _compute(self, batch: list[Pending]) -> None:
        started_s = self._clock.monotonic()
        self._sizes.observe(len(batch), self.info.name)
        for item in batch:
            self._queue_seconds.observe(started_s - item.arrived_s, self.info.name)
            item.started.set_result(None)
        outcomes: Sequence[Prediction | EdgewiseError] = ()
        try:
            outcomes = await self._workers.compute([item.request.inputs for item in batch])
        except Exception as error:
            _log.error("The workers failed on a batch of %d: %s", len(batch), frames(error))
        finally:
            ended_s = self._clock.monotonic()
            for item, outcome in zip_longest(batch, outcomes):
                _settle(item, outcome or worker_gone(), started_s, ended_s, len(batch))
        self._judge(outcomes, ended_s)
        if all(isinstance(outcome, Prediction) for outcome in outcomes):
            longest = max(item.length for item in batch)
            self._costs = self._costs.observed(len(batch), longest, ended_s - started_s, ended_s)

    def _judge(self, outcomes: Sequence[Prediction | EdgewiseError], ended_s: float) -> None:
        """Count failed batches in a row; items that cannot be read say nothing of the engine."""
        if any(isinstance(outcome, Prediction) for outcome in outcomes):
            self._failed = 0
        elif not outcomes or not all(isinstance(outcome, RequestError) for outcome in outcomes):
            self._failed += 1
            self._failed_s = ended_s


async def _traced(item: Pending) -> Result:
    """The result of an item, with spans of its waiting and of its computing in its caller's trace."""
    with tracing.span("cloud.queue"):
        first: set[asyncio.Future[Any]] = {item.started, item.result}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not item.started.done():
            return await item.result
    with tracing.span("engine.predict") as span:
        result = await item.result
        span.set("edgewise.batch_size", result.batch)
        return result


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
    given_ms = (item.deadline_s - item.arrived_s) * 1e3
    return CloudTimeoutError(
        f"The budget of {given_ms:g} ms was spent, or the rest too short, for request {item.request.id}.",
        "Allow it more time, or send fewer requests at once.",
    )


def _not_formed(_: Pending) -> CloudError:
    return CloudError("The service could not form a batch.", "Send the request again; the service's log says why.")


def _settle(item: Pending, outcome: Prediction | EdgewiseError, started_s: float, ended_s: float, batch: int) -> None:
    if not isinstance(outcome, Prediction):
        _fail(item, lambda _: outcome)
    elif not item.result.done():
        queued_ms, engine_ms = (started_s - item.arrived_s) * 1e3, (ended_s - started_s) * 1e3
        item.result.set_result(Result(outcome, queued_ms, engine_ms, batch))


def _fail(item: Pending, error: Callable[[Pending], EdgewiseError]) -> None:
    if not item.result.done():
        item.result.set_exception(error(item))
