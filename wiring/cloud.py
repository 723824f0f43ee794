"""A cloud service: the front door over an engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import tracing
from edgewise.config import Config
from edgewise.contracts import Served, ServiceInfo, new_id
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wire.serve import serve
from edgewise.wiring.server import api_keys, check_address, limits

if TYPE_CHECKING:
    from edgewise.cloud.engine import Engine


def build_cloud(engine: Engine, config: Config, *, max_batch: int) -> Any:
    """The ASGI application of a cloud service over an engine.

    Raises:
        ConfigError: `max_batch` is below 1.
    """
    from edgewise.cloud.service import EngineService
    from edgewise.cloud.workers import ThreadWorkers

    service = EngineService(ThreadWorkers(engine), clock=time, max_batch=max_batch)
    models = {engine.info.name: Served(info=engine.info, service=service, ready=service.ready)}
    return front_door(
        lambda: models,
        answers=None,
        metrics=Metrics(),
        api_keys=api_keys(config.server.api_keys_env),
        limits=limits(config),
        lifespan=service.lifespan,
        new_id=new_id,
    )


def serve_cloud(
    model: Path,
    config: Config,
    on_bound: Callable[[ServiceInfo, str, int], None],
    *,
    threads: int | None = None,
    name: str | None = None,
    max_batch: int = 16,
) -> None:
    """Load a checkpoint or bundle and serve it until told to stop; `on_bound` hears where, once it answers.

    Raises:
        EdgewiseError: The model cannot be loaded, or the address cannot be bound.
    """
    from edgewise.cloud.engine import load_engine

    check_address(config)
    engine = load_engine(model, threads=threads, name=name)
    tracing.start("cloud")
    try:
        serve(
            build_cloud(engine, config, max_batch=max_batch),
            host=config.server.host,
            port=config.server.port,
            on_bound=lambda host, port: on_bound(engine.info, host, port),
            drain_s=config.server.drain_s,
        )
    finally:
        tracing.stop()
