"""A language model and a cloud that write what a test tells them to, and misbehave when they are told to.

Tests load it by path: under pytest's importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

import asyncio
import threading

from edgewise import contracts
from edgewise.contracts import CloudReply, Reference, Request, Source, Token
from edgewise.dialogue import Finish, Message, Piece, Prompt, Role, Sampling, ToolCall, Written
from edgewise.errors import CloudRefusedError, CloudUnreachableError, InputError
from edgewise.router import Plugs, Router, RouterSettings
from edgewise.router import certificate as certificates

CERTIFIED = Reference("cloud", "sha256:certified")
DIGEST = "sha256:writer"


def prompt_of(script: str, *, sampling: Sampling | None = None, **fields: object) -> Prompt:
    """What has the fake model write a script: "a:-0.1 b:-3" is two tokens and their log-probabilities."""
    message = Message(role=Role.USER, content=script)
    return Prompt(messages=(message,), sampling=sampling or Sampling(), **fields)


def ask(script: str, *, request_id: str = "1", sampling: Sampling | None = None, prompt=None, **fields) -> Request:
    return Request(inputs=prompt or prompt_of(script, sampling=sampling), id=request_id, **fields)


def text_of(script: str) -> str:
    return "".join(word.rpartition(":")[0] for word in script.split())


def sure(count: int, *, start: int = 0) -> str:
    """A script of so many confident tokens."""
    return " ".join(f"<{number}>:-0.1" for number in range(start, start + count))


def doubtful(count: int, *, start: int = 0) -> str:
    return " ".join(f"<{number}>:-5" for number in range(start, start + count))


class FakeWriting:
    """Writes a script; waits before token `hold_at` until it is released or stopped."""

    def __init__(self, owner: FakeGenerator, prompt: Prompt):
        self.owner = owner
        words = prompt.messages[-1].content.split() if prompt.messages else str(prompt.text).split()
        limit = prompt.sampling.max_tokens
        self.words = words if limit is None else words[:limit]
        self.finish = Finish.LENGTH if limit is not None and limit < len(words) else Finish.STOP
        self.place = 0
        self.stopped = threading.Event()
        self.closed = False
        self.thread = threading.current_thread()

    def __iter__(self):
        return self

    def __next__(self) -> Piece:
        assert not self.closed
        assert threading.current_thread() is self.thread
        if self.place == self.owner.hold_at:
            self.owner.held.set()
            while not (self.owner.release.is_set() or self.stopped.is_set()):
                self.owner.release.wait(0.005)
        if self.place == self.owner.fail_at:
            raise self.owner.error
        if self.stopped.is_set() or self.place == len(self.words):
            raise StopIteration
        text, _, logprob = self.words[self.place].rpartition(":")
        self.place += 1
        margin = 0.5 if self.place == 1 else None
        return Piece(text, self.place, float(logprob), margin)

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        assert threading.current_thread() is self.thread
        assert not self.closed, "closed twice"
        self.closed = True
        self.owner.closed += 1

    @property
    def written(self) -> Written:
        over = self.place == len(self.words)
        calls = self.owner.tool_calls if over else ()
        finish = Finish.INTERRUPTED if not over else Finish.TOOL_CALLS if calls else self.finish
        return Written(finish=finish, prompt_tokens=3, completion_tokens=self.place, tool_calls=calls)


class FakeGenerator:
    """A `LocalGenerator`: `hold_at` and `release` say when it goes on, `fail_at` and `error` where it fails."""

    digest = DIGEST
    task = "text-generation"
    max_length = 512

    def __init__(self):
        self.hold_at: int | None = None
        self.fail_at: int | None = None
        self.error: Exception = InputError("The template refuses these roles.", "Send others.")
        self.release, self.held = threading.Event(), threading.Event()
        self.tool_calls: tuple[ToolCall, ...] = ()
        self.refusal: Exception | None = None
        self.begun: list[tuple[str, str | None]] = []
        self.writings: list[FakeWriting] = []
        self.closed = 0

    def write(self, prompt: Prompt, *, tenant: str = "", session: str | None = None) -> FakeWriting:
        self.begun.append((tenant, session))
        if self.refusal is not None:
            raise self.refusal
        writing = FakeWriting(self, prompt)
        self.writings.append(writing)
        return writing


class FakeCloud:
    """A `StreamingCloudClient` that writes `words`; can be late, cut, wrong, down, or refuse."""

    def __init__(self, *words: str, reference: Reference = CERTIFIED):
        self.words = words or ("from ", "the ", "cloud")
        self.reference = reference
        self.down = self.refuses = self.lies = False
        self.cut_at: list[int | None] = []
        """By call: after how many words it breaks off."""
        self.asked: list[Request] = []
        self.cancelled = self.ended = 0
        self.release, self.rest, self.called = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.release.set()
        self.rest.set()
        self.fail_over = False
        self.tool_calls: tuple[ToolCall, ...] = ()
        self.closed = False

    async def describe(self, *, timeout_s: float) -> Reference:
        if self.down:
            raise CloudUnreachableError("down")
        return self.reference

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        items = [item async for item in self.stream(request, timeout_s=timeout_s)]
        return items[-1]

    async def stream(self, request: Request, *, timeout_s: float):
        self.asked.append(request)
        self.called.set()
        cut = self.cut_at.pop(0) if self.cut_at else None
        over = False
        try:
            if self.down:
                raise CloudUnreachableError("down")
            if self.refuses:
                raise CloudRefusedError("This prompt is refused.")
            await self.release.wait()
            # A continuation goes on where its beginning ends.
            left = "".join(self.words).removeprefix(request.inputs.begun)
            words = self.words if not request.inputs.begun else (left,)
            for number, word in enumerate(words):
                if number == cut:
                    for _ in range(20):  # what was written is told by then
                        await asyncio.sleep(0)
                    raise CloudUnreachableError("The stream broke off.")
                if number == 1:
                    await self.rest.wait()
                yield Token(id="theirs", text=word, logprob=-0.5)
            output = "".join(words) if not self.lies else "something else"
            written = Written(
                finish=Finish.STOP, prompt_tokens=4, completion_tokens=len(words), tool_calls=self.tool_calls
            )
            over = True
            yield CloudReply(output, self.reference, fail_over=self.fail_over, written=written)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += not over
            raise
        finally:
            self.ended += 1

    async def aclose(self) -> None:
        self.closed = True


class WholeCloud(FakeCloud):
    """The same without streams: `predict` alone."""

    stream = None  # type: ignore[assignment]

    def __init__(self, *words: str):
        super().__init__(*words)
        del self.rest

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        self.asked.append(request)
        if self.down:
            raise CloudUnreachableError("down")
        await self.release.wait()
        written = Written(finish=Finish.STOP, prompt_tokens=4, completion_tokens=3)
        return CloudReply("".join(self.words), self.reference, written=written)


def certificate(threshold: float = -1.0, *, signal: str = "mean_logprob:first=4", judge: str = ""):
    bound = contracts.Bound(threshold=threshold, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05)
    return certificates.issue(
        bound,
        model_digest=DIGEST,
        signal=signal,
        data_digest="data",
        reference=CERTIFIED,
        created="2026-01-01T00:00:00Z",
        runtime="1",
        isa="any",
        judge=judge,
    )


def router(edge=None, cloud=None, *, certified="default", settings=None, **plugs) -> Router:
    """A router of a fake model; `certified` None has no certificate."""
    return Router(
        edge or FakeGenerator(),
        cloud,
        certificate() if certified == "default" else certified,
        settings=settings or RouterSettings(cool_down_s=0.01),
        plugs=Plugs(**plugs),
    )


def told(events: list) -> str:
    """What the tokens before the first answer say together."""
    texts = []
    for event in events:
        if not isinstance(event, Token):
            break
        texts.append(event.text)
    return "".join(texts)


def sources(events: list) -> set[Source | None]:
    return {event.source for event in events if isinstance(event, Token)}
