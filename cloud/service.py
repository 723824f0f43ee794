"""An engine as an `AnswerService`: concurrent requests become batches in one worker thread, beside the event loop.

Owns the queue, the worker and their lifetime; which requests form a batch is `batching`'s rule. While the engine
computes, requests queue; when it is free it takes what has queued, never more than the cap. It computes for nobody who
gave up: a request whose caller went away or whose budget was spent leaves the queue uncomputed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from edgewise.cloud.batching import Pending, Result, enough, take_batch
from edgewise.cloud.engine import Engine
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Clock,
    Decision,
    Done,
    Event,
    Input,
    Prediction,
    Reason,
    Request,
    ServiceInfo,
    Source,
    Status,
)
from edgewise.errors import (
    CloudError,
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    EdgewiseError,
    InputError,
    RequestError,
)

_log = logging.getLogger(__name__)

_DECISION = Decision(action=Action.LOCAL, reason=Reason.NO_ROUTER, policy="engine")


class EngineService:
    """Answers requests from one engine, each finally, none twice.

    Args:
        engine: What answers; called from one thread only.
        clock: Time.
        max_batch: Most requests computed together.
        max_wait_ms: Longest an idle engine waits for as many requests as came together the last time.

    Raises:
        ConfigError: `max_batch` is below 1, or `max_wait_ms` below 0.
    """

    def __init__(self, engine: Engine, *, clock: Clock, max_batch: int = 16, max_wait_ms: float = 2.0) -> None:
        if max_batch < 1 or not 0 <= max_wait_ms < math.inf:
            raise ConfigError(
                f"max_batch is {max_batch} and max_wait_ms is {max_wait_ms}.",
                "Give a max_batch of 1 or more and a max_wait_ms of 0 or more.",
            )
        self._engine = engine
        self._clock = clock
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1e3
        self._queue: deque[Pending] = deque()
        self._arrival = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def info(self) -> ServiceInfo:
        """What the engine answers to."""
        return self._engine.info

    def ready(self) -> str | None:
        """None while requests are answered, else why they are not."""
        if self._worker is None:
            return "The engine is not running."
        if self._stopping:
            return "The service is stopping."
        return "The worker ended unexpectedly; restart the service." if self._worker.done() else None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Answer requests inside the block; at its end refuse new ones and answer what is queued.

        Raises:
            RuntimeError: It runs already.
        """
        if self._worker is not None:
            raise RuntimeError("This service runs already.")
        self._stopping = False
        self._arrival = asyncio.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="edgewise-engine") as thread:
            self._worker = asyncio.create_task(self._work(thread), name="edgewise-batches")
            try:
                yield
            finally:
                self._stopping = True
                self._arrival.set()
                await _drained(self._worker)
                self._worker = None

    async def events(self, request: Request) -> AsyncIterator[Event]:
        """Answer one request: `Answered`, then `Done`.

        Raises:
            RequestError: It is for another task or of another kind than this model's, or the item cannot be read.
            CloudTimeoutError: Its budget was spent before the engine took it; nothing was computed.
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
        self._arrival.set()
        # The caller hears at its deadline, not when the engine is free again.
        alarm = None if budget_s == math.inf else loop.call_later(budget_s, self._expire, item)
        try:
            return await future
        finally:
            if alarm is not None:
                alarm.cancel()

    def _expire(self, item: Pending) -> None:
        if item in self._queue:
            _fail(item, _spent(item))

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        last_batch = 0
        try:
            while await self._some_waiting(last_batch):
                batch, spent = take_batch(self._queue, self._clock.monotonic(), self._max_batch)
                for item in spent:
                    _fail(item, _spent(item))
                if batch:
                    await self._compute(thread, batch)
                    last_batch = len(batch)
        finally:
            # Nobody may wait for ever for a worker that is gone.
            for item in self._queue:
                _fail(item, _gone())
            self._queue.clear()

    async def _some_waiting(self, last_batch: int) -> bool:
        """Wait until a batch should start; False once the service stops and nothing is queued."""
        if not self._queue:
            await self._arrived()
            await self._linger(last_batch)
        return bool(self._queue) or not self._stopping

    async def _arrived(self) -> None:
        while not self._queue and not self._stopping:
            self._arrival.clear()
            await self._arrival.wait()

    async def _linger(self, last_batch: int) -> None:
        try:
            async with asyncio.timeout(self._max_wait_s):
                while not self._stopping and not enough(len(self._queue), last_batch, self._max_batch):
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            return

    async def _compute(self, thread: ThreadPoolExecutor, batch: list[Pending]) -> None:
        started_s = self._clock.monotonic()
        inputs = [item.request.inputs for item in batch]
        outcomes: list[Prediction | EdgewiseError] = [_gone() for _ in batch]
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(thread, predict_each, self._engine, inputs)
        except Exception as error:
            # Whatever an engine raises: the worker lives, the callers hear of it, the log says where.
            _log.error("The engine failed on a batch of %d: %s", len(batch), _frames(error))
            outcomes = [_engine_failed(error) for _ in batch]
        finally:
            engine_ms = (self._clock.monotonic() - started_s) * 1e3
            for item, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Prediction):
                    _deliver(item, Result(outcome, (started_s - item.arrived_s) * 1e3, engine_ms))
                else:
                    _fail(item, outcome)


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


async def _drained(worker: asyncio.Task[None]) -> None:
    try:
        await asyncio.wait({worker})
    finally:
        # Only where this wait was itself cancelled; else the worker has ended.
        worker.cancel()
    error = None if worker.cancelled() else worker.exception()
    if error is not None:
        _log.error("The worker had failed: %s", _frames(error))


def _frames(error: BaseException) -> str:
    """Type and place of an error; its message may quote what a client sent, and stays out of the log."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"


def _gone() -> CloudError:
    return CloudError("The engine's worker ended.", "Restart the service; its log says why.")


def _engine_failed(error: Exception) -> CloudResponseError:
    return CloudResponseError(f"The engine failed: {type(error).__name__}.", "See the service's log.")


def _spent(item: Pending) -> CloudTimeoutError:
    return CloudTimeoutError(
        f"The budget of {item.request.budget_ms:g} ms was spent before the engine took request {item.request.id}.",
        "Allow it more time, or send fewer requests at once.",
    )


def _deliver(item: Pending, result: Result) -> None:
    if not item.result.done():
        item.result.set_result(result)


def _fail(item: Pending, error: Exception) -> None:
    if not item.result.done():
        item.result.set_exception(error)
