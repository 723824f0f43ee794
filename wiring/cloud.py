"""A cloud service: the front door over one or more models, each in this process, in worker processes or on Ray."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import telemetry, tracing
from edgewise.config import Config
from edgewise.contracts import ServiceInfo, new_id
from edgewise.edge import probe
from edgewise.errors import ConfigError
from edgewise.telemetry import Metrics
from edgewise.wire.catalog import check_model_name
from edgewise.wire.door import front_door
from edgewise.wire.keys import PUBLIC_TENANT
from edgewise.wire.repository import repository_routes
from edgewise.wiring.server import api_keys, check_address, limits, serve_app
from edgewise.wiring.verifying import ruling, ruling_routes

if TYPE_CHECKING:
    from edgewise.cloud.engine import Engine
    from edgewise.cloud.messages import EngineSpec
    from edgewise.cloud.repository import ModelRepository, ModelService, Opener
    from edgewise.cloud.workers import Workers

_log = logging.getLogger(__name__)

RAY = "ray"
"""The engine that computes on a Ray cluster; the others compute on this machine."""

_REPLICAS = 2
"""Worker processes unless told otherwise: one that dies leaves one. ADR 17 has what they cost and gain."""

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)=(?P<path>.+)", re.ASCII)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class CloudModel:
    """A model to serve: its name in URLs, and its folder."""

    name: str
    path: Path


@dataclass(frozen=True)
class CloudSettings:
    """What a cloud service is made of.

    Attributes:
        models: The models; the first is the default.
        engine: "auto", "torch" or "onnx" on this machine, or "ray".
        replicas: Worker processes a model, or the most replicas a model on Ray; 0 computes in this process. None takes
            two, or one where there is one core, and on Ray as many as this machine has cores.
        threads: Threads that compute a model, shared out among its worker processes; None takes every core. On Ray
            those of each replica, one unless given.
        max_batch: Most requests computed together.
        admins: Tenants that may load and unload models.
        allow_load: Where there are no API keys, let everybody on this machine do so.
        draft: Checkpoint of a small language model that guesses for the first model; None lets none guess.
        max_batch_tokens: Tokens of a language model's answers, prompts included, that there is memory for, all as long
            as the longest.
    """

    models: tuple[CloudModel, ...]
    engine: str = "auto"
    replicas: int | None = None
    threads: int | None = None
    max_batch: int = 16
    admins: frozenset[str] = frozenset()
    allow_load: bool = False
    draft: Path | None = None
    max_batch_tokens: int = 32_768


def cloud_models(given: Sequence[str], name: str | None = None) -> tuple[CloudModel, ...]:
    """The models that a command line names, each as PATH or NAME=PATH.

    Args:
        given: What it names.
        name: The first one's name, where it is given as a path.

    Raises:
        ConfigError: A name cannot stand in a URL or is given twice, or there is no model.
        BundleError: A bundle that cannot be read.
    """
    models = [_cloud_model(text, name if number == 0 else None) for number, text in enumerate(given)]
    if not models:
        raise ConfigError("No model is given.", "Name one: edgewise cloud serve MODEL.")
    twice = {model.name for model in models if [other.name for other in models].count(model.name) > 1}
    if twice:
        raise ConfigError(f"Two models are named {min(twice)}.", "Name them apart: NAME=PATH.")
    return tuple(models)


def _cloud_model(text: str, name: str | None) -> CloudModel:
    named = None if Path(text).exists() else _NAMED.fullmatch(text)
    if named is not None:
        if name is not None:
            raise ConfigError(f"The model {text} is named twice.", "Drop --name, or give its path alone.")
        return CloudModel(named["name"], Path(named["path"]))
    path = Path(text)
    found = name or _own_name(path)
    check_model_name(found)
    return CloudModel(found, path)


def _own_name(path: Path) -> str:
    """A bundle's own name, or the folder's; kept for the service's life, also where the folder is a link that moves."""
    if not (path / "manifest.json").is_file():
        return path.resolve().name
    from edgewise.bundle import Bundle

    return Bundle.open(path).manifest.core.name


@dataclass(frozen=True)
class CloudService:
    """A cloud service ready to be served.

    Attributes:
        app: The ASGI application.
        repository: The models behind it; loaded while the application lives.
    """

    app: Any
    repository: ModelRepository

    def infos(self) -> tuple[ServiceInfo, ...]:
        """What is served now, the default first."""
        return tuple(served.info for served in self.repository.models().values())


def build_cloud(settings: CloudSettings, config: Config) -> CloudService:
    """The ASGI application of a cloud service, and its models.

    Raises:
        ConfigError: A setting is out of its range or contradicts another.
        EdgewiseError: A model that is computed in this process cannot be loaded.
    """
    from edgewise.cloud.repository import ModelRepository

    keys = api_keys(config.server.api_keys_env)
    admins = _admins(settings, config, frozenset(keys.values()))
    metrics = Metrics()
    repository = ModelRepository(_openers(settings, metrics))
    app = front_door(
        repository.models,
        answers=None,
        metrics=metrics,
        api_keys=keys,
        limits=limits(config),
        lifespan=lambda: _running(repository),
        new_id=new_id,
        posts={
            **repository_routes(repository, admins),
            **(ruling_routes(repository.models) if _writes(settings) else {}),
        },
        access_log=config.server.access_log,
    )
    return CloudService(app, repository)


def serve_cloud(
    settings: CloudSettings, config: Config, on_bound: Callable[[tuple[ServiceInfo, ...], str, int], None]
) -> None:
    """Load the models and serve them until told to stop; `on_bound` hears what and where, once it answers.

    Raises:
        EdgewiseError: A model cannot be loaded, or the address cannot be bound.
    """
    check_address(config)
    with _cluster(settings):
        _serve(build_cloud(settings, config), config, on_bound)


def _serve(
    service: CloudService, config: Config, on_bound: Callable[[tuple[ServiceInfo, ...], str, int], None]
) -> None:
    tracing.start("cloud")
    try:
        serve_app(service.app, config, lambda host, port: on_bound(service.infos(), host, port))
    finally:
        tracing.stop()


@contextmanager
def _cluster(settings: CloudSettings) -> Iterator[None]:
    """A Ray cluster where one computes. Connected to before the server hears signals: Ray sets handlers of its own."""
    if settings.engine != RAY:
        yield
        return
    from edgewise.cloud import rayserve

    rayserve.connect()
    try:
        yield
    finally:
        rayserve.disconnect()


def _admins(settings: CloudSettings, config: Config, tenants: frozenset[str]) -> frozenset[str]:
    """Tenants that may load and unload."""
    if not tenants:
        if settings.admins:
            raise ConfigError("--admins names tenants, and no API keys are configured.", "Give --api-keys-env.")
        if settings.allow_load and config.server.host not in _LOOPBACK:
            raise ConfigError(
                f"--allow-load would let everybody who reaches {config.server.host} load models.",
                "Bind to 127.0.0.1, or configure API keys and --admins.",
            )
        return frozenset({PUBLIC_TENANT}) if settings.allow_load else frozenset()
    if settings.allow_load:
        raise ConfigError("--allow-load is for services without API keys.", "Name the tenants that may: --admins.")
    unknown = settings.admins - tenants
    if unknown:
        raise ConfigError(f"--admins names {min(unknown)}, which has no API key.", "Name tenants that have one.")
    return settings.admins


def _writes(settings: CloudSettings) -> bool:
    """Whether a language model is among the models."""
    from edgewise.cloud.checkpoint import writes_text

    return any(writes_text(model.path) for model in settings.models)


def _openers(settings: CloudSettings, metrics: Metrics) -> dict[str, Opener]:
    """How each model is opened. What a language model is, its folder says now, before anything is loaded."""
    from edgewise.cloud.checkpoint import writes_text

    first, *_ = settings.models
    if settings.draft is not None and not writes_text(first.path):
        raise ConfigError(
            f"--draft guesses for a language model, and {first.path} is none.", "Drop --draft, or give one first."
        )
    return {
        model.name: _writer(model, settings, metrics, settings.draft if model is first else None)
        if writes_text(model.path)
        else _opener(model, settings, metrics)
        for model in settings.models
    }


def _writer(model: CloudModel, settings: CloudSettings, metrics: Metrics, draft: Path | None) -> Opener:
    """Opens a language model, in this process whatever the replicas: what its answers have read lives there."""
    if settings.engine not in ("auto", "torch"):
        raise ConfigError(
            f"{model.path} is a language model, which the engine {settings.engine} cannot run.", "Choose torch or auto."
        )
    if min(settings.max_batch, settings.max_batch_tokens) < 1:
        problem = f"max_batch is {settings.max_batch}, max_batch_tokens {settings.max_batch_tokens}."
        raise ConfigError(problem, "Give 1 or more.")

    async def opened() -> ModelService:
        from edgewise.cloud.text_engine import TextEngine
        from edgewise.cloud.text_service import TextService

        threads = settings.threads or probe().cores
        engine = await asyncio.to_thread(
            TextEngine.load,
            model.path,
            threads=threads,
            name=model.name,
            slots=settings.max_batch,
            max_tokens=settings.max_batch_tokens,
            draft=draft,
        )
        return ruling(TextService(engine, clock=time, metrics=metrics), engine, metrics)

    return opened


def _opener(model: CloudModel, settings: CloudSettings, metrics: Metrics) -> Opener:
    from edgewise.cloud.engine import check_runtime
    from edgewise.cloud.messages import EngineSpec

    if settings.replicas is not None and settings.replicas < 0:
        raise ConfigError(f"replicas is {settings.replicas}.", "Give 0 or more.")
    if settings.engine != RAY:
        check_runtime(settings.engine)
    spec = EngineSpec(
        path=str(model.path.absolute()),
        name=model.name,
        threads=settings.threads,
        engine="auto" if settings.engine == RAY else settings.engine,
    )
    if settings.engine == RAY:
        return _on_ray(spec, settings, metrics)
    replicas = min(_REPLICAS, probe().cores) if settings.replicas is None else settings.replicas
    if replicas:
        return _in_processes(spec, settings, metrics, replicas)
    return _InThisProcess(spec, settings.max_batch, metrics)


class _InThisProcess:
    """Opens a model in this process; the first time it is loaded here and now, where Ctrl-C still ends everything."""

    def __init__(self, spec: EngineSpec, max_batch: int, metrics: Metrics) -> None:
        self._spec = spec
        self._max_batch = max_batch
        self._metrics = metrics
        self._first: Engine | None = self._loaded()

    async def __call__(self) -> ModelService:
        from edgewise.cloud.workers import ThreadWorkers

        engine, self._first = self._first, None
        if engine is None:
            engine = await asyncio.to_thread(self._loaded)
        return _service(ThreadWorkers(engine), self._max_batch, self._metrics)

    def _loaded(self) -> Engine:
        from edgewise.cloud.engine import load_engine

        spec = self._spec
        return load_engine(Path(spec.path), threads=spec.threads, name=spec.name, engine=spec.engine)


def _in_processes(spec: EngineSpec, settings: CloudSettings, metrics: Metrics, replicas: int) -> Opener:
    import msgspec

    from edgewise.cloud.processes import ProcessWorkers

    deaths = metrics.counter(*telemetry.WORKER_DEATHS)
    shared = msgspec.structs.replace(spec, threads=max(1, (spec.threads or probe().cores) // replicas))

    async def opened() -> ModelService:
        workers = ProcessWorkers(shared, replicas=replicas, on_death=lambda: deaths.inc(str(spec.name)))
        return _service(workers, settings.max_batch, metrics)

    return opened


def _on_ray(spec: EngineSpec, settings: CloudSettings, metrics: Metrics) -> Opener:
    from edgewise.cloud.rayserve import RayWorkers

    replicas = probe().cores if settings.replicas is None else settings.replicas

    async def opened() -> ModelService:
        return _service(RayWorkers(spec, max_replicas=replicas), settings.max_batch, metrics)

    return opened


def _service(workers: Workers, max_batch: int, metrics: Metrics) -> ModelService:
    from edgewise.cloud.service import EngineService

    return EngineService(workers, clock=time, max_batch=max_batch, metrics=metrics)


@asynccontextmanager
async def _running(repository: ModelRepository) -> AsyncIterator[None]:
    """The models while the application lives; SIGHUP loads them again, where signals reach this thread.

    One that comes while they load the first time is heard afterwards: unhandled it would end the process.
    """
    hears = hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    if hears:
        loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        async with repository.lifespan():
            reloads = asyncio.create_task(_reloading(repository, asked), name="edgewise-reload")
            try:
                yield
            finally:
                reloads.cancel()
                await asyncio.wait({reloads})
    finally:
        if hears:
            loop.remove_signal_handler(signal.SIGHUP)


async def _reloading(repository: ModelRepository, asked: asyncio.Event) -> None:
    """Load every model again each time it is asked for; what is asked meanwhile is one more time."""
    from edgewise.cloud.workers import frames

    while True:
        await asked.wait()
        asked.clear()
        try:
            await repository.reload()
        except Exception as error:  # whatever one load meets, the next one is heard
            _log.error("The models were not loaded again: %s", frames(error))
