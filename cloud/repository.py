"""The models of a service: loaded, swapped while requests run, and unloaded, without a request that fails for it.

Owns which version answers. A model is loaded and warm before it takes over; the switch is one assignment; the version
before it answers whom it still has, and is closed when that is nobody. A load that fails changes nothing. How a model
is opened is passed in; who may ask for a load is the wire's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Protocol

import msgspec

from edgewise.contracts import Answer, Event, Request, Served, ServiceInfo
from edgewise.errors import CloudUnreachableError, ConfigError, EdgewiseError, InputError

_log = logging.getLogger(__name__)


class ModelService(Protocol):
    """An `AnswerService` with a life: `cloud.service.EngineService`, and its like."""

    @property
    def info(self) -> ServiceInfo:
        """What it answers to; known while it runs."""
        ...

    def ready(self) -> str | None:
        """None while requests are answered, else why they are not."""
        ...

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """Answers requests inside the block; at its end answers what is queued."""
        ...

    def events(self, request: Request) -> AsyncGenerator[Event]:
        """Answer one request as a stream; closing it ends the work."""
        ...

    async def respond(self, request: Request) -> Answer:
        """The first whole answer to one request."""
        ...


Opener = Callable[[], Awaitable[ModelService]]
"""Makes a service of what stands at a model's path now; it runs once its lifespan is entered."""


class ModelState(msgspec.Struct, frozen=True):
    """One line of the index, in the words of the model repository extension.

    Attributes:
        name: The model.
        version: The version that answers; empty where none does.
        state: "READY", "UNAVAILABLE" or "LOADING".
        reason: Why it is not ready, or why its last load failed.
    """

    name: str
    version: str
    state: str
    reason: str


class Generation:
    """One loaded version of a model; counts whom it still answers.

    Args:
        service: What answers.
        life: Ends the service.
    """

    def __init__(self, service: ModelService, life: AsyncExitStack) -> None:
        self.served = Served(info=service.info, service=self, ready=service.ready)
        self._service = service
        self._life = life
        self._answering = 0
        self._idle = asyncio.Event()
        self._retired = False
        self._next: Generation | None = None

    async def events(self, request: Request) -> AsyncIterator[Event]:
        """Answer one request; see `AnswerService`."""
        with self.lent() as current:
            async with aclosing(current.events(request)) as events:
                async for event in events:
                    yield event

    async def respond(self, request: Request) -> Answer:
        """The first whole answer; see `PromptService`."""
        with self.lent() as current:
            return await current.respond(request)

    async def retire(self, successor: Generation | None) -> None:
        """Let whoever is being answered finish, then close; who comes later although it was replaced goes on."""
        self._next = successor
        while self._answering:
            self._idle.clear()
            await self._idle.wait()
        self._retired = True
        await self._life.aclose()

    @contextmanager
    def lent(self) -> Iterator[ModelService]:
        """The service that answers: this one's, or the one that replaced it since the caller looked it up.

        It is not closed inside the block.

        Raises:
            CloudUnreachableError: The model was unloaded.
        """
        current = self
        while current._retired:
            if current._next is None:
                raise CloudUnreachableError(
                    f"The model {self.served.info.name} was unloaded.", "Ask for one that GET / lists."
                )
            current = current._next
        current._answering += 1
        try:
            yield current._service
        finally:
            current._answering -= 1
            if not current._answering:
                current._idle.set()


class ModelRepository:
    """The models of a service by name.

    Args:
        openers: How each is opened, by name; the first is the service's default.

    Raises:
        ConfigError: There is none.
    """

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        if not openers:
            raise ConfigError("No model is given.", "Name one: edgewise cloud serve MODEL.")
        self._openers = dict(openers)
        self._serving: dict[str, Generation] = {}
        self._models: Mapping[str, Served] = {}
        self._loads = {name: asyncio.Lock() for name in openers}
        self._troubles: dict[str, str] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Every model that can be loaded."""
        return tuple(self._openers)

    def models(self) -> Mapping[str, Served]:
        """What answers now, for the front door; a new mapping after each change, never a changed one."""
        return self._models

    def index(self) -> list[ModelState]:
        """Every model and its state."""
        return [self._state(name) for name in self._openers]

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Load every model, serve inside the block, and at its end answer whom each still has.

        Raises:
            EdgewiseError: A model cannot be loaded.
        """
        try:
            for name in self._openers:  # one after the other: each takes every core while it loads
                await self.load(name)
            yield
        finally:
            for generation in self._serving.values():
                self._retire(generation, None)
            # What was looked up just now may still ask: the mapping stays as it is.
            self._serving = {}
            if self._retiring:
                await asyncio.wait(self._retiring)

    async def load(self, name: str) -> ServiceInfo:
        """Load what stands at a model's path now, and let it take over; returns what answers then.

        Raises:
            InputError: There is no such model.
            EdgewiseError: It cannot be loaded; what answered before still does.
        """
        lock = self._lock(name)
        async with lock:
            try:
                fresh = await _opened(self._openers[name])
            except EdgewiseError as error:
                self._troubles[name] = str(error)
                raise
            self._troubles.pop(name, None)
            self._switch(name, fresh)
        return fresh.served.info

    async def unload(self, name: str) -> None:
        """Serve a model no longer; requests that are being answered are.

        Raises:
            InputError: There is no such model, or it is the default, whose requests would be answered by another.
        """
        async with self._lock(name):
            if name == next(iter(self._openers)):
                raise InputError(
                    f"The model {name} is the service's default and stays.", "Load another version in its place."
                )
            self._switch(name, None)

    async def reload(self) -> None:
        """Load every model again; one that fails is logged and serves on as it was."""
        for name in self._openers:
            try:
                info = await self.load(name)
            except EdgewiseError as error:
                _log.error("The model %s was not loaded again: %s", name, error)
            else:
                _log.warning("The model %s now serves version %s.", name, info.version)

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._loads.get(name)
        if lock is None:
            raise InputError(f"There is no model {name!r}.", f"Known: {', '.join(self._openers)}.")
        return lock

    def _switch(self, name: str, fresh: Generation | None) -> None:
        before = self._serving.pop(name, None)
        if fresh is not None:
            self._serving[name] = fresh
        # In the order they were given: the first one is the default.
        self._models = {known: self._serving[known].served for known in self._openers if known in self._serving}
        if before is not None:
            self._retire(before, fresh)

    def _retire(self, generation: Generation, successor: Generation | None) -> None:
        task = asyncio.create_task(generation.retire(successor), name="edgewise-retire")
        self._retiring.add(task)
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("A version that was replaced did not close: %s", type(error).__name__)

    def _state(self, name: str) -> ModelState:
        trouble = self._troubles.get(name, "")
        served = self._models.get(name)
        if served is None:
            loading = self._loads[name].locked()
            return ModelState(name, "", "LOADING" if loading else "UNAVAILABLE", trouble or "unloaded")
        not_ready = served.ready()
        if not_ready is not None:
            return ModelState(name, served.info.version, "UNAVAILABLE", not_ready)
        return ModelState(name, served.info.version, "READY", trouble)


async def _opened(opener: Opener) -> Generation:
    """A new version, warm."""
    async with AsyncExitStack() as life:
        service = await opener()
        await life.enter_async_context(service.lifespan())
        return Generation(service, life.pop_all())
