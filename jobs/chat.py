"""A conversation with a bundle, through the router as every other request: what is asked, heard, and taken back.

Owns the conversation, the thread in which the router lives while somebody reads at a terminal, and the figures of an
answer. Reading lines and printing are the command line's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec

from edgewise.bundle import Bundle
from edgewise.contracts import Answer, Answered, Event, Mode, Request, Revised, Source, Token, new_id
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling
from edgewise.errors import BundleError, ConfigError

_TASK = "text-generation"
_AT_ONCE_S = 0.005
"""What comes within so many seconds of the first text was held back with it, and says nothing of a pace."""
MOST_TOKENS = 1_000_000
_LOOK_UP_S = 0.1


class Service(Protocol):
    """What a chat asks: the router."""

    def events(self, request: Request) -> Any:
        """The events of one request."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Serve until the block ends."""
        ...


def check_chat(bundle: Path, max_tokens: int) -> None:
    """Refuse what nobody can chat with, before anything is loaded.

    Raises:
        BundleError: It is no bundle, or none of a language model.
        ConfigError: `max_tokens` is out of its range.
    """
    core = Bundle.open(bundle).core
    if core.kind != "generator":
        raise BundleError(f"The bundle {core.name} does {core.task}, it does not chat.", "Give a language model's.")
    if not 1 <= max_tokens <= MOST_TOKENS:
        raise ConfigError(f"--max-tokens is {max_tokens}.", f"Give 1 to {MOST_TOKENS:,}.")


@dataclass(frozen=True)
class Talk:
    """A conversation.

    Attributes:
        system: What stands before it; may be empty.
        sampling: How answers are written.
        messages: What was said, oldest first.
        session: Its name, by which the edge model knows what it computed already.
    """

    system: str
    sampling: Sampling
    messages: tuple[Message, ...] = ()
    session: str = field(default_factory=new_id)

    def asking(self, text: str) -> Prompt:
        """The prompt of the next message."""
        asked = Message(role=Role.USER, content=text)
        return self._prompt((*self.messages, asked))

    def editing(self, text: str) -> Prompt | None:
        """The prompt that continues the last answer as if it had begun with `text`; None where there is none."""
        if not self.messages or self.messages[-1].role is not Role.ASSISTANT:
            return None
        return self._prompt(self.messages[:-1], begun=text)

    def after(self, prompt: Prompt, answer: str) -> Talk:
        """The conversation once `answer` was heard; where nothing was, the question was not asked."""
        if not prompt.begun + answer:
            return self
        said = prompt.messages[1:] if self.system else prompt.messages
        return replace(self, messages=(*said, Message(role=Role.ASSISTANT, content=prompt.begun + answer)))

    def anew(self) -> Talk:
        """A new conversation with the same settings."""
        return Talk(self.system, self.sampling)

    def _prompt(self, messages: tuple[Message, ...], begun: str = "") -> Prompt:
        first = (Message(role=Role.SYSTEM, content=self.system),) if self.system else ()
        return Prompt(messages=(*first, *messages), begun=begun, sampling=self.sampling)


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """An answer with its figures; None where nobody said.

    Attributes:
        text: What was written.
        source: Who wrote it.
        reason: Why it came from there.
        status: Whether it is final.
        score: The edge model's confidence.
        threshold: Above it the edge may answer.
        finish: Why it ended.
        revised: It took the place of a text that was told before.
        tokens: Tokens of the answer.
        tokens_per_s: Tokens after those that came with the first one, by the seconds that they took.
        first_token_ms: Milliseconds until the first text was there.
        total_ms: Milliseconds until it was over.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Tokens of the prompt that did not have to be computed again.
    """

    text: str
    source: str | None
    reason: str | None
    status: str | None
    score: float | None
    threshold: float | None
    finish: str | None
    revised: bool
    tokens: int
    tokens_per_s: float | None
    first_token_ms: float | None
    total_ms: float
    prompt_tokens: int | None
    cached_tokens: int | None


class Said(NamedTuple):
    """What a reader has to be shown next: more text, or another text in place of all that was shown."""

    text: str
    replaces: bool = False


class Reply:
    """An answer as it is heard, event by event.

    Args:
        began_s: When it was asked, in monotonic seconds.
    """

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._first_s: float | None = None
        self._last_s = began_s
        self._pieces = 0
        self._held = 0
        self._held_s = began_s
        self._source: Source | None = None
        self._answer: Answer | None = None
        self._revised = False
        self.text = ""
        """What was heard so far."""

    def hear(self, event: Event, now_s: float) -> Said | None:
        """What an event changes for the reader; None where nothing."""
        if isinstance(event, Token):
            self._source = event.source or self._source
            return self._more(event.text, now_s, pieces=1)
        if isinstance(event, Answered | Revised):
            self._answer = event.answer
            return self._whole(str(event.answer.output), now_s)
        return None

    def heard(self, now_s: float) -> Heard:
        """The answer with its figures; one that is not whole was interrupted."""
        answer = self._answer
        decision = None if answer is None else answer.decision
        written = None if answer is None else answer.written
        tokens = written.completion_tokens if written is not None else self._pieces
        source = self._source if answer is None else answer.source
        finish = Finish.INTERRUPTED if answer is None else None if written is None else written.finish
        return Heard(
            text=self.text,
            source=None if source is None else source.value,
            reason=None if decision is None else decision.reason.value,
            status=None if answer is None else answer.status.value,
            score=None if decision is None else decision.score,
            threshold=None if decision is None else decision.threshold,
            finish=None if finish is None else finish.value,
            revised=self._revised,
            tokens=tokens,
            tokens_per_s=self._pace(),
            first_token_ms=None if self._first_s is None else 1000 * (self._first_s - self._began_s),
            total_ms=1000 * (now_s - self._began_s),
            prompt_tokens=None if written is None else written.prompt_tokens,
            cached_tokens=None if written is None else written.cached_tokens,
        )

    def _more(self, text: str, now_s: float, *, pieces: int) -> Said | None:
        self._first_s = now_s if self._first_s is None else self._first_s
        self._last_s = now_s
        self._pieces += pieces
        if now_s - self._first_s < _AT_ONCE_S:
            self._held, self._held_s = self._pieces, now_s
        self.text += text
        return Said(text) if text else None

    def _whole(self, text: str, now_s: float) -> Said | None:
        """The rest of a text that was told in part, or another one."""
        if text.startswith(self.text):
            rest = text[len(self.text) :]
            return self._more(rest, now_s, pieces=0) if rest else None
        self.text, self._revised = text, True
        return Said(text, replaces=True)

    def _pace(self) -> float | None:
        after = self._pieces - self._held
        return after / (self._last_s - self._held_s) if after > 0 and self._last_s > self._held_s else None


class Chat:
    """The router in a thread of its own, so that reading a line holds up nothing.

    Args:
        service: The router; it is this chat's alone, and ends with it.
        mode: How requests trade waiting against certainty; None takes the router's.
    """

    def __init__(self, service: Service, *, mode: Mode | None = None) -> None:
        self._running = service.running()
        self._service = service
        self._mode = mode
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="edgewise-chat", daemon=True)

    def __enter__(self) -> Chat:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._running.__aenter__(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._running.__aexit__(None, None, None), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, prompt: Prompt, session: str) -> Generator[Event, None, None]:
        """The events of one answer. Closing the generator, or an exception in the reader's thread, ends the answer.

        Raises:
            EdgewiseError: As the router says.
        """
        request = Request(inputs=prompt, task=_TASK, session=session, mode=self._mode, revisable=True)
        told: SimpleQueue[Event | Exception | None] = SimpleQueue()
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            task = self._loop.create_task(self._pump(request, told))
            task.add_done_callback(lambda _: told.put(None))
            tasks.append(task)

        self._loop.call_soon_threadsafe(start)
        over = False
        try:
            while not over:
                event = _next(told)
                over = event is None
                if isinstance(event, Exception):
                    raise event
                if event is not None:
                    yield event
        finally:
            if not over:
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            # Then edge and cloud have stopped, and the next turn finds its session free.
            while not over:
                over = _next(told) is None

    async def _pump(self, request: Request, told: SimpleQueue[Event | Exception | None]) -> None:
        try:
            async with aclosing(self._service.events(request)) as events:
                async for event in events:
                    told.put(event)
        except Exception as error:  # raised again where the events are read
            told.put(error)


def _next(told: SimpleQueue[Event | Exception | None]) -> Event | Exception | None:
    """What is told next. Looks up now and then: a Ctrl-C just before a wait is heard only after it."""
    while True:
        try:
            return told.get(timeout=_LOOK_UP_S)
        except Empty:
            continue


def now_s() -> float:
    """The time by which replies are measured, in monotonic seconds."""
    return time.monotonic()
