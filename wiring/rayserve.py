"""A cloud service all of whose parts live on a Ray cluster: the front door as the ingress of a Ray Serve application.

What Ray Serve imports: `edgewise.wiring.rayserve:app`, with arguments from its configuration file. Each model is a
deployment of its own with its own scaling; the doors, one or more, form the batches and hand them over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgewise import tracing
from edgewise.config import Config, ServerSection, checked
from edgewise.contracts import new_id
from edgewise.errors import ConfigError
from edgewise.telemetry import Metrics
from edgewise.wire.catalog import check_model_name
from edgewise.wire.door import front_door
from edgewise.wiring.server import api_keys, limits


class RayArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `args` of the application.

    Attributes:
        models: Folder by name, the same on every node; the first is the default.
        engine: What computes checkpoints: auto, torch or onnx.
        min_replicas: Replicas of each model that are always there.
        max_replicas: The most replicas of each model.
        threads: Threads, and cores, of a replica.
        doors: Front doors.
        max_batch: Most requests computed together.
        api_keys_env: Environment variable with keys as "tenant:key,tenant:key", set on every node.
        max_body_bytes: Largest request body.
        max_concurrency: Requests in flight in one door before new ones are turned away.
    """

    models: dict[str, str]
    engine: str = "auto"
    min_replicas: int = 1
    max_replicas: int = 4
    threads: int = 1
    doors: int = 1
    max_batch: int = 16
    api_keys_env: str | None = None
    max_body_bytes: int = ServerSection().max_body_bytes
    max_concurrency: int = ServerSection().max_concurrency


def app(args: dict[str, Any]) -> Any:
    """The application, for `serve run` and `serve deploy`.

    Raises:
        ConfigError: An argument is unknown or out of its range.
    """
    from ray import serve

    from edgewise.cloud.engine import check_runtime
    from edgewise.cloud.messages import EngineSpec
    from edgewise.cloud.rayserve import engine_deployment

    wanted = ray_arguments(args)
    engines = {
        name: engine_deployment(
            EngineSpec(path=str(Path(path)), name=name, threads=wanted.threads, engine=check_runtime(wanted.engine)),
            min_replicas=wanted.min_replicas,
            max_replicas=wanted.max_replicas,
            name=_deployment(name),
        )
        for name, path in wanted.models.items()
    }
    door = serve.deployment(
        serve.ingress()(Door),
        name="door",
        num_replicas=wanted.doors,
        # The door has limits of its own, and says so to the client.
        max_ongoing_requests=2 * wanted.max_concurrency,
        ray_actor_options={"num_cpus": 0.1},
    )
    return door.bind(engines, msgspec.to_builtins(wanted))


def ray_arguments(args: Mapping[str, Any]) -> RayArguments:
    """Check the arguments.

    Raises:
        ConfigError: One is unknown or out of its range.
    """
    try:
        wanted = msgspec.convert(args, RayArguments)
    except msgspec.ValidationError as error:
        known = ", ".join(RayArguments.__struct_fields__)
        raise ConfigError(f"The arguments of the application are wrong: {error}.", f"Known: {known}.") from error
    if not wanted.models:
        raise ConfigError("No model is given.", "Name one under args.models: NAME: PATH.")
    for name in wanted.models:
        check_model_name(name)
    least = min(wanted.min_replicas, wanted.threads, wanted.doors, wanted.max_batch)
    if least < 1 or wanted.max_replicas < wanted.min_replicas:
        raise ConfigError(
            "min_replicas, threads, doors or max_batch is below 1, or max_replicas below min_replicas.",
            "Give each 1 or more, and max_replicas at least min_replicas.",
        )
    return wanted


class Door:
    """The front door in an actor of Ray Serve; `serve.ingress` makes it one.

    Args:
        engines: Handle of each model's deployment, by name.
        args: The application's arguments.
    """

    def __init__(self, engines: Mapping[str, Any], args: Mapping[str, Any]) -> None:
        self._engines = engines
        self._args = ray_arguments(args)

    def __serve_build_asgi_app__(self) -> Any:
        """The front door over the engines."""
        from ray import serve

        from edgewise.cloud.rayserve import HandleWorkers
        from edgewise.cloud.repository import ModelRepository
        from edgewise.cloud.service import EngineService

        wanted = self._args
        tracing.start("cloud")
        metrics = Metrics()
        application = serve.get_replica_context().app_name

        def opener(name: str) -> Any:
            async def opened() -> EngineService:
                workers = HandleWorkers(self._engines[name], application, _deployment(name))
                return EngineService(workers, clock=time, max_batch=wanted.max_batch, metrics=metrics)

            return opened

        # By which names clients call Ray's proxy is not known here.
        server = ServerSection(
            host="0.0.0.0", max_body_bytes=wanted.max_body_bytes, max_concurrency=wanted.max_concurrency
        )
        repository = ModelRepository({name: opener(name) for name in wanted.models})
        return front_door(
            repository.models,
            answers=None,
            metrics=metrics,
            api_keys=api_keys(wanted.api_keys_env),
            limits=limits(checked(Config(server=server))),
            lifespan=repository.lifespan,
            new_id=new_id,
        )


def _deployment(name: str) -> str:
    return f"engine-{name}"
