"""A language model as an `AnswerService`: who is in its batch, who waits, and what each caller hears.

Owns the queue, the deadlines and the service's lifetime. The steps run in one thread beside the event loop: torch lets
go of the interpreter while it computes, and what an answer has read so far lives in that thread's memory, which another
process could take over only by reading it all again. A caller that leaves is out of the batch before the next step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from edgewise import telemetry, tracing
from edgewise.cloud.prompts import Reading
from edgewise.cloud.rows import Told
from edgewise.cloud.service import DOUBT_S, FAILED_BATCHES
from edgewise.cloud.text_engine import TextEngine
from edgewise.cloud.text_loop import Step, TextLoop
from edgewise.cloud.text_metrics import TextMetrics
from edgewise.cloud.workers import frames
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Clock,
    Decision,
    Done,
    Event,
    Reason,
    Request,
    ServiceInfo,
    Source,
    Status,
    Token,
)
from edgewise.dialogue import Prompt, Written, refuse
from edgewise.errors import (
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
    EdgewiseError,
    InputError,
    RequestError,
)
from edgewise.telemetry import Metrics

MAX_WAITING = 64
"""Requests that wait for a place in the batch; one more is told to come back."""

_DECISION = Decision(action=Action.LOCAL, reason=Reason.NO_ROUTER, policy="engine")
_Heard: TypeAlias = Told | EdgewiseError
_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Asked:
    """A request that is answered or waits for it."""

    key: str
    request: Request
    prompt: Prompt
    arrived_s: float
    reading: Reading | None = None
    heard: asyncio.Queue[_Heard] = field(default_factory=asyncio.Queue)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    started_s: float | None = None
    first_s: float | None = None
    text: list[str] = field(default_factory=list)


class TextService:
    """Answers prompts from one language model, each finally.

    Args:
        engine: Writes; this service's alone.
        clock: Time.
        max_waiting: Requests that wait for a place in the batch at most, those included whose prompts are being read.
        metrics: Where tokens and times are counted.
    """

    def __init__(
        self, engine: TextEngine, *, clock: Clock, max_waiting: int = MAX_WAITING, metrics: Metrics | None = None
    ) -> None:
        metrics = metrics or Metrics()
        self._engine = engine
        self._clock = clock
        self._max_waiting = max_waiting
        self._loop: TextLoop | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._keys = itertools.count()
        self._running: dict[str, _Asked] = {}
        self._waiting: deque[_Asked] = deque()
        self._reading = 0  # prompts that are being read, or wait for it
        self._idle = asyncio.Event()
        self._stopping = False
        self._failed = 0
        self._failed_s = -math.inf
        self._metrics = TextMetrics(metrics, engine.info.name, has_draft=engine.has_draft)
        self._queue_seconds = metrics.histogram(*telemetry.QUEUE_SECONDS)

    @property
    def info(self) -> ServiceInfo:
        """What is served."""
        return self._engine.info

    def ready(self) -> str | None:
        """None while requests are answered, else why they are not.

        Where step after step failed, requests are tried all the same: one that is answered ends the doubt.
        """
        return self._refusal() or self._doubt()

    def _refusal(self) -> str | None:
        if self._loop is None:
            return "The engine is not running."
        if self._stopping:
            return "The service is stopping."
        return None if self._loop.is_alive else "The engine ended unexpectedly; restart the service."

    def _doubt(self) -> str | None:
        if self._failed < FAILED_BATCHES or self._clock.monotonic() - self._failed_s >= DOUBT_S:
            return None
        return f"The last {self._failed} steps failed; the service's log says why."

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Answer requests inside the block; at its end refuse new ones and answer those that are here.

        Raises:
            RuntimeError: It runs already.
        """
        if self._loop is not None:
            raise RuntimeError("This service runs already.")
        self._stopping = False
        self._failed = 0
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="edgewise-prompts")
        self._loop = TextLoop(self._engine, self._hear, self._ended)
        self._loop.start()
        try:
            yield
        finally:
            self._stopping = True
            try:
                while self._running or self._waiting:
                    self._idle.clear()
                    await self._idle.wait()
            finally:
                loop, self._loop = self._loop, None
                reader, self._reader = self._reader, None
                await asyncio.to_thread(loop.stop)
                reader.shutdown(wait=False)

    async def events(self, request: Request) -> AsyncGenerator[Event]:
        """Answer one prompt: a `Token` a token, then `Answered`, then `Done`.

        Its budget ends with the first token, unless it is wanted whole.

        Raises:
            InputError: It is no prompt, or one that this model cannot be asked.
            PromptTooLongError: It leaves no room for an answer.
            CloudThrottledError: Too many wait already.
            CloudTimeoutError: Its budget was spent.
            CloudError: The engine failed, or the service is not running.
        """
        asked = await self._asked(request)
        async with aclosing(self._told(asked, whole=request.whole)) as told:
            async for one in told:
                for piece in one.pieces:
                    yield Token(
                        id=request.id, text=piece.text, logprob=piece.logprob, source=Source.CLOUD, top=piece.top
                    )
                if one.written is not None:
                    yield Answered(self._answer(asked, one.written))
        yield Done(request.id)

    async def respond(self, request: Request) -> Answer:
        """The whole answer to one prompt, within its budget; raises what `events` does."""
        asked = await self._asked(request)
        async with aclosing(self._told(asked, whole=True)) as told:
            async for one in told:
                if one.written is not None:
                    return self._answer(asked, one.written)
        raise _engine_failed()

    def _answer(self, asked: _Asked, written: Written) -> Answer:
        now_s = self._clock.monotonic()
        started_s = now_s if asked.started_s is None else asked.started_s
        first_s = now_s if asked.first_s is None else asked.first_s
        return Answer(
            id=asked.request.id,
            output="".join(asked.text),
            status=Status.FINAL,
            source=Source.CLOUD,
            decision=_DECISION,
            timings_ms={
                "queue": (started_s - asked.arrived_s) * 1e3,
                "first_token": (first_s - asked.arrived_s) * 1e3,
                "engine": (now_s - started_s) * 1e3,
                "total": (now_s - asked.arrived_s) * 1e3,
            },
            model_digest=self.info.version,
            written=written,
        )

    async def _asked(self, request: Request) -> _Asked:
        arrived_s = self._clock.monotonic() if request.arrived_s is None else request.arrived_s
        asked = _Asked(str(next(self._keys)), request, self._checked(request), arrived_s)
        work = asyncio.get_running_loop().run_in_executor(self._reader, self._read, asked)
        self._reading += 1
        try:
            # Who is out of time, or leaves, takes a prompt along whose turn has not come.
            asked.reading = await _in_time(asked, work, self._left_s(asked))
        finally:
            self._reading -= 1
        self._check_runs()  # it may have stopped meanwhile
        return asked

    def _read(self, asked: _Asked) -> Reading:
        """Read a prompt whose budget is not spent; in the thread that reads."""
        if self._left_s(asked) <= 0:
            raise _out_of_time(asked)
        try:
            return self._engine.read(asked.prompt)
        except InputError as error:
            refuse(error, asked.prompt)
        except Exception:
            raise
        except BaseException as error:  # a panic of the tokenizer, which nobody on the way to the client expects
            _log.error("A prompt could not be read: %s", frames(error))
            raise _engine_failed() from error

    def _check_runs(self) -> None:
        refusal = self._refusal()
        if refusal is not None:
            raise CloudUnreachableError(refusal, "Send the request again, to this service later or to another one.")

    def _checked(self, request: Request) -> Prompt:
        """The prompt of a request that there is a place for."""
        self._check_runs()
        info = self.info
        if not isinstance(request.inputs, Prompt):
            raise RequestError(
                "inputs", f"inputs: {info.name} is a language model, it labels nothing.", "Ask /v1/chat/completions."
            )
        if request.task and request.task != info.task:
            raise RequestError(
                "task", f"task: {request.task} is not what {info.name} does.", f"Send {info.task}, or leave it out."
            )
        # Who is being read may find a place at once: only those count that do not fit into the batch.
        waiting = len(self._waiting) + len(self._running) + self._reading - self._engine.slots
        if waiting >= self._max_waiting:
            raise CloudThrottledError(
                f"{waiting} prompts wait for {info.name} already.", "Send it again later.", retry_after_s=1.0
            )
        return request.inputs

    async def _told(self, asked: _Asked, *, whole: bool) -> AsyncGenerator[Told]:
        """What is written for a request; whoever stops listening takes it out of the batch."""
        spans = asyncio.create_task(_traced(asked)) if tracing.on() else None
        self._waiting.append(asked)
        self._fill()
        try:
            while True:
                one = await self._next(asked, whole)
                self._note(asked, one)
                yield one
                if one.written is not None:
                    return
        finally:
            self._leave(asked)
            if spans is not None:
                await spans

    async def _next(self, asked: _Asked, whole: bool) -> Told:
        left_s = self._left_s(asked) if whole or asked.first_s is None else math.inf
        heard = await _in_time(asked, asked.heard.get(), left_s)
        if isinstance(heard, EdgewiseError):
            raise heard
        if isinstance(heard.error, InputError):
            refuse(heard.error, asked.prompt)
        if heard.error is not None:
            raise heard.error
        return heard

    def _left_s(self, asked: _Asked) -> float:
        """Seconds for which anybody waits."""
        given = [value for value in (asked.request.budget_ms, asked.request.patience_ms) if value is not None]
        return asked.arrived_s + max(given, default=math.inf) / 1e3 - self._clock.monotonic()

    def _note(self, asked: _Asked, one: Told) -> None:
        asked.text += [piece.text for piece in one.pieces]
        if asked.first_s is None and one.pieces:
            asked.first_s = self._clock.monotonic()
            self._metrics.first_token(asked.first_s - asked.arrived_s)

    def _fill(self) -> None:
        """Let those who wait into the batch, the first first."""
        while self._loop is not None and self._waiting and len(self._running) < self._engine.slots:
            asked = self._waiting.popleft()
            self._running[asked.key] = asked
            asked.started_s = self._clock.monotonic()
            asked.started.set()
            self._queue_seconds.observe(asked.started_s - asked.arrived_s, self.info.name)
            assert asked.reading is not None  # noqa: S101  # for the type checker: who waits has been read
            self._loop.join(asked.key, asked.reading)

    def _leave(self, asked: _Asked) -> None:
        asked.started.set()
        asked.over.set()
        if asked in self._waiting:
            self._waiting.remove(asked)
        elif self._running.pop(asked.key, None) is not None and self._loop is not None:
            self._loop.leave(asked.key)
        self._fill()
        if not self._running and not self._waiting:
            self._idle.set()

    def _hear(self, step: Step) -> None:
        """What a step brought; in the event loop."""
        self._metrics.observe(step.stats)
        if step.failed:
            self._failed += 1
            self._failed_s = self._clock.monotonic()
        elif step.told:
            self._failed = 0
        for key in step.failed:
            self._tell(key, _engine_failed())
        for told in step.told:
            self._tell(told.key, told)

    def _tell(self, key: str, heard: _Heard) -> None:
        asked = self._running.get(key)
        if asked is not None:
            asked.heard.put_nowait(heard)

    def _ended(self) -> None:
        """The thread is over; nobody may wait for it."""
        for asked in [*self._running.values(), *self._waiting]:
            asked.heard.put_nowait(_engine_failed())


async def _traced(asked: _Asked) -> None:
    """Spans of a request's waiting and of its writing. In a task of its own: a generator may be closed by any other."""
    with tracing.span("cloud.queue"):
        await asked.started.wait()
    with tracing.span("engine.predict") as span:
        await asked.over.wait()
        span.set("edgewise.pieces", len(asked.text))


async def _in_time(asked: _Asked, work: Awaitable[_Result], left_s: float) -> _Result:
    """What is awaited, within so many seconds."""
    try:
        async with asyncio.timeout(None if left_s == math.inf else left_s):
            return await work
    except TimeoutError:
        raise _out_of_time(asked) from None


def _out_of_time(asked: _Asked) -> CloudTimeoutError:
    return CloudTimeoutError(
        f"The budget was spent before request {asked.request.id} was answered.",
        "Allow it more time, or send fewer requests at once.",
    )


def _engine_failed() -> CloudResponseError:
    return CloudResponseError("The engine failed over this answer.", "Send the request again; the log says why.")
