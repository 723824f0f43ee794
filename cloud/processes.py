"""Worker processes behind a service: how many there are, who computes which batch, and what follows when one dies.

Owns supervision. A worker that dies, hangs or falls silent is noticed at once: its batch is computed once more by
another one, since asking a model twice changes nothing, and it is started again, ever more slowly while that does not
help. One process's life is `child`'s, what runs in it is `worker`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgewise.cloud import messages
from edgewise.cloud.child import Child, Limits, WorkerDiedError
from edgewise.cloud.messages import EngineSpec, Loaded
from edgewise.cloud.workers import unheard
from edgewise.contracts import Input, Prediction, ServiceInfo
from edgewise.errors import CloudError, CloudUnreachableError, ConfigError, EdgewiseError, InputError, RequestError

_log = logging.getLogger(__name__)

STEADY_S = 60.0
"""A worker that lived this long, or has answered a batch, did not die of how it starts."""

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0

_TRIES = 2


def restart_delay_s(deaths: int) -> float:
    """Seconds until a worker is started again, doubled with each death in a row.

    Args:
        deaths: Deaths in a row without a batch answered in between, at least 1.
    """
    # The exponent is bounded too: a float has no room for the thousandth death.
    return min(FIRST_DELAY_S * 2.0 ** min(deaths - 1, 30), LONGEST_DELAY_S)


class ProcessWorkers:
    """A model in worker processes, each with a copy of its own.

    Args:
        spec: What each loads.
        replicas: How many there are.
        limits: How long one may take.
        on_death: Told of each death.

    Raises:
        ConfigError: `replicas` is below 1.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        replicas: int,
        limits: Limits | None = None,
        on_death: Callable[[], None] = unheard,
    ) -> None:
        if replicas < 1:
            raise ConfigError(f"replicas is {replicas}.", "Give 1 or more worker processes.")
        self._spec = spec
        self._replicas = replicas
        self._limits = limits or Limits()
        self._on_death = on_death
        self.on_change: Callable[[], None] = unheard
        self._loaded: Loaded | None = None
        self._up: set[Child] = set()
        self._idle: deque[Child] = deque()
        self._wake = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._trouble = "The workers are not running."

    @property
    def info(self) -> ServiceInfo:
        """What is served; known once they have started.

        Raises:
            RuntimeError: They have not.
        """
        if self._loaded is None:
            raise RuntimeError("These workers have not started.")
        return self._loaded.info

    @property
    def slots(self) -> int:
        """Workers that are up, at least 1."""
        return max(1, len(self._up))

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are up."""
        return sorted(child.pid for child in self._up)

    def ready(self) -> str | None:
        """None while a worker is up, else what happened to the last one."""
        return None if self._up else self._trouble

    async def start(self) -> None:
        """Start every worker and wait until all are warm.

        Where there is a choice between engines the first one goes ahead: it measures them undisturbed, and the others
        take what it took.

        Raises:
            EdgewiseError: The model cannot be loaded.
            RuntimeError: They run already.
        """
        if self._keepers:
            raise RuntimeError("These workers run already.")
        self._loaded = None
        try:
            await self._open_all()
        except BaseException:
            await self.aclose()
            raise
        self._keepers = [asyncio.create_task(self._keep(child), name="edgewise-keeper") for child in self._up]

    async def aclose(self) -> None:
        """Let the batches that are being computed end, then the processes."""
        keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        up, self._trouble = list(self._up), "The workers are stopped."
        self._up.clear()
        self._idle.clear()
        self._wake.set()
        await asyncio.gather(*(child.close() for child in up))

    async def compute(self, inputs: Sequence[Input]) -> list[Prediction | EdgewiseError]:
        """Compute one batch in the first worker that is idle; once more in another where that one dies over it."""
        try:
            batch = messages.encode_batch(inputs)
        except InputError as error:
            return await self._halved(inputs, error)
        try:
            return await self._tried(batch)
        except CloudError as error:
            return [error for _ in inputs]

    async def _halved(self, inputs: Sequence[Input], error: InputError) -> list[Prediction | EdgewiseError]:
        """An item that cannot be sent fails alone."""
        if len(inputs) == 1:
            return [RequestError("inputs", f"inputs: {error.problem}", error.remedy)]
        middle = len(inputs) // 2
        return [*await self.compute(inputs[:middle]), *await self.compute(inputs[middle:])]

    async def _tried(self, batch: bytes) -> list[Prediction | EdgewiseError]:
        for _ in range(_TRIES):
            child = await self._next_idle()
            try:
                return await child.compute(batch)
            except WorkerDiedError as death:
                why = death
        raise CloudError(
            f"{_TRIES} workers died over this batch, the last one because {why}.",
            "Send the request again, without the items that came with it.",
        ) from why

    async def _next_idle(self) -> Child:
        while not self._idle:
            if not self._up:
                raise CloudUnreachableError(self._trouble, "Send the request again later, or to another service.")
            self._wake.clear()
            await self._wake.wait()
        return self._idle.popleft()

    def _free(self, child: Child) -> None:
        if child in self._up:
            self._idle.append(child)
            self._wake.set()

    async def _open_all(self) -> None:
        choice = self._spec.engine == "auto" and not (Path(self._spec.path) / "manifest.json").exists()
        ahead = 1 if choice else 0
        try:
            for _ in range(ahead):
                await self._opened()
            async with asyncio.TaskGroup() as group:
                for _ in range(self._replicas - ahead):
                    group.create_task(self._opened())
        except WorkerDiedError as death:
            raise _not_started(self._spec, death) from death
        except ExceptionGroup as errors:
            raise _not_started(self._spec, errors.exceptions[0]) from errors

    async def _opened(self) -> Child:
        """A new worker that is up.

        Raises:
            WorkerDiedError: It died while it started, or serves something else than the others.
            EdgewiseError: It cannot load the model.
        """
        first = self._loaded
        spec = self._spec if first is None else msgspec.structs.replace(self._spec, engine=first.engine)
        child = await Child.open(spec, self._limits, self._free)
        if first is not None and first.info != child.loaded.info:
            await child.close()
            raise WorkerDiedError("its files have changed since the others loaded them: load the model again")
        self._loaded = child.loaded
        self._up.add(child)
        self._free(child)
        self.on_change()
        return child

    async def _keep(self, child: Child) -> None:
        """Keep one worker up: whenever it dies, another one follows."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            born_s = loop.time()
            why = await child.ended()
            self._lost(child, why)
            steady = child.has_answered or loop.time() - born_s >= STEADY_S
            deaths = 1 if steady else deaths + 1
            child, deaths = await self._replaced(why, deaths)

    def _lost(self, child: Child, why: str) -> None:
        self._trouble = f"No worker is up; the last one ended because {why}."
        self._up.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        self._wake.set()
        self.on_change()

    async def _replaced(self, why: str, deaths: int) -> tuple[Child, int]:
        """Start another worker in place of a dead one; returns it and the deaths in a row until then."""
        while True:
            self._on_death()
            delay_s = restart_delay_s(deaths)
            _log.error(
                "A worker for %s died because %s; death %d in a row, another starts in %g s, %d of %d are up.",
                self._spec.path, why, deaths, delay_s, len(self._up), self._replicas,
            )  # fmt: skip
            await asyncio.sleep(delay_s)
            try:
                return await self._opened(), deaths
            except (WorkerDiedError, EdgewiseError) as error:
                why = str(error).rstrip(".")
                deaths += 1
                self._trouble = f"No worker is up; the last one did not start: {why}."


def _not_started(spec: EngineSpec, error: Exception) -> Exception:
    if not isinstance(error, WorkerDiedError):
        return error
    return CloudError(f"A worker for {spec.path} did not start: {error}.", "See the service's log.")
