"""Batches computed on a Ray cluster: an engine as a Ray Serve deployment, and the `Workers` that hand it batches.

Owns the deployment, its scaling and its health, and the way of a batch there and back. Batches are formed before they
get here: `@serve.batch` gathers requests in a replica, where nobody knows how long the others wait and none has a
deadline, while the service in front sees all that wait, how long each may, and which replicas are there. Ray carries
bytes of ours, not pickled requests. Ray is imported when it is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from edgewise.cloud import messages
from edgewise.cloud.engine import load_engine
from edgewise.cloud.messages import Computed, EngineSpec, Loaded
from edgewise.cloud.workers import ThreadWorkers, unheard, worker_gone
from edgewise.contracts import Input, Prediction, ServiceInfo
from edgewise.errors import (
    CloudError,
    CloudResponseError,
    CloudTimeoutError,
    EdgewiseError,
    InputError,
    MissingExtraError,
    RequestError,
)

_log = logging.getLogger(__name__)

BATCH_S = 60.0
"""The longest a batch may take, the wait for a replica included; a replica that takes longer is started again."""

_LOOK_S = 1.0
"""Seconds between two looks at how many replicas there are."""

_HEALTH_S = 2.0
_TRIES = 2
_STARTS = 2
_LOCAL_STORE_BYTES = 128 << 20
_TOLD = re.compile(r"edgewise\.errors\.(?P<kind>\w+): (?P<words>[^\n]+)")
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine.

    Raises:
        MissingExtraError: Ray is not installed.
        CloudError: There is no cluster at that address.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("The engine 'ray'", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.serve  # sets up its logger, which would tell every step on the terminal

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    # What a cluster is made of may be said only of one that is started here.
    options = {} if address else {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
    try:
        ray.init(address or "local", logging_level=logging.WARNING, log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CloudError(
            f"No Ray cluster answers at {address or 'this machine'}: {_first_line(error)}.",
            "Correct RAY_ADDRESS, or unset it to start a cluster here.",
        ) from error


def disconnect() -> None:
    """Leave the cluster, and end it where `connect` started it; does nothing where there is none."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


class EngineReplica:
    """One engine in an actor of Ray Serve.

    Args:
        spec: An encoded `EngineSpec`.

    Raises:
        EdgewiseError: The model cannot be loaded.
    """

    async def __init__(self, spec: bytes) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        wanted = messages.decode_spec(spec)
        engine = await asyncio.to_thread(
            load_engine,
            Path(wanted.path),
            threads=wanted.threads or 1,
            name=wanted.name,
            engine=wanted.engine,
            max_slots=1,
        )
        self._workers = ThreadWorkers(engine)
        await self._workers.start()
        self._since: dict[object, float] = {}

    async def describe(self) -> bytes:
        """What is served, as an encoded `Loaded`."""
        return messages.encode(Loaded(self._workers.info))

    async def compute(self, version: str, batch: bytes) -> bytes:
        """Compute an encoded batch with that version of the model; returns an encoded `Computed`."""
        inputs = messages.decode_batch(batch)
        if version != self._workers.info.version:
            # A replica that Ray started later reads the files again.
            stale = CloudResponseError("The model's files have changed since it was loaded.", "Load it again.")
            return messages.encode_outcomes([stale] * len(inputs))
        key = object()
        self._since[key] = time.monotonic()
        try:
            return messages.encode_outcomes(await self._workers.compute(inputs))
        finally:
            del self._since[key]

    async def check_health(self) -> None:
        """Asked by Ray, which starts a replica again that raises here.

        Raises:
            RuntimeError: The engine is not running, or hangs over a batch.
        """
        trouble = self._workers.ready()
        if trouble is not None:
            raise RuntimeError(trouble)
        if self._since and time.monotonic() - min(self._since.values()) > BATCH_S:
            raise RuntimeError(f"A batch takes over {BATCH_S:g} s.")


def engine_deployment(spec: EngineSpec, *, min_replicas: int, max_replicas: int, name: str = "engine") -> Any:
    """The engine as an application of Ray Serve, to run or to bind to an ingress.

    Args:
        spec: What each replica loads; its threads are the cores that a replica takes.
        min_replicas: Replicas that are always there.
        max_replicas: The most there may be.
        name: Name of the deployment.

    Returns:
        What `serve.run` takes.
    """
    from ray import serve

    deployment = serve.deployment(
        EngineReplica,
        name=name,
        ray_actor_options={"num_cpus": spec.threads or 1},
        # One batch is computed, one waits beside it.
        max_ongoing_requests=2,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 3.0,
            "downscale_delay_s": 120.0,
        },
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=5 * _HEALTH_S,
        graceful_shutdown_timeout_s=BATCH_S,
        max_constructor_retry_count=_STARTS,
        logging_config=_QUIET,
    )
    return deployment.bind(messages.encode(spec))


class HandleWorkers:
    """Hands batches to a deployment that is there already.

    Args:
        handle: Ray Serve's handle of it.
        application: Name of the application it belongs to.
        deployment: Its name.
    """

    def __init__(self, handle: Any, application: str, deployment: str = "engine") -> None:
        self._handle = handle
        self._application = application
        self._deployment = deployment
        self._info: ServiceInfo | None = None
        self._replicas = 0
        self.on_change: Callable[[], None] = unheard
        self._looks: asyncio.Task[None] | None = None

    @property
    def info(self) -> ServiceInfo:
        """What is served; known once they have started.

        Raises:
            RuntimeError: They have not.
        """
        if self._info is None:
            raise RuntimeError("These workers have not started.")
        return self._info

    @property
    def slots(self) -> int:
        """A batch for each replica, and one that waits: Ray adds a replica where that is always so."""
        return self._replicas + 1

    def ready(self) -> str | None:
        """None while a replica runs."""
        if self._looks is None:
            return "The workers are not running."
        return None if self._replicas else f"No replica of {self._application} is up."

    async def start(self) -> None:
        """Ask what is served, and begin to count replicas.

        Raises:
            CloudError: Nobody answers.
        """
        self._info = await self._described()
        await self._look()
        self._looks = asyncio.create_task(self._keep_looking(), name="edgewise-ray-replicas")

    async def aclose(self) -> None:
        """Stop counting; batches that are being computed end first, since their callers wait for them."""
        looks, self._looks = self._looks, None
        if looks is not None:
            looks.cancel()
            await asyncio.wait({looks})

    async def compute(self, inputs: Sequence[Input]) -> list[Prediction | EdgewiseError]:
        """Compute one batch in any replica; once more in another where that one dies over it."""
        try:
            batch = messages.encode_batch(inputs)
        except InputError as error:
            return [RequestError("inputs", f"inputs: {error.problem}", error.remedy) for _ in inputs]
        try:
            async with asyncio.timeout(BATCH_S):
                return await self._tried(batch)
        except TimeoutError:
            late: EdgewiseError = CloudTimeoutError(f"A batch took over {BATCH_S:g} s.", "Send fewer items at once.")
        except CloudError as error:
            late = error
        return [late for _ in inputs]

    async def _tried(self, batch: bytes) -> list[Prediction | EdgewiseError]:
        from ray.exceptions import RayActorError

        for _ in range(_TRIES):
            try:
                reply = messages.decode_reply(await self._handle.compute.remote(self.info.version, batch))
            except RayActorError as error:
                _log.error("A replica of %s died over a batch: %s", self._application, type(error).__name__)
                continue
            except Exception as error:  # Ray promises no set of exceptions
                _log.error("A batch on %s failed: %s", self._application, type(error).__name__)
                break
            if isinstance(reply, Computed):
                return messages.unpacked(reply)
        raise worker_gone()

    async def _described(self) -> ServiceInfo:
        try:
            reply = messages.decode_reply(await self._handle.describe.remote())
        except Exception as error:  # Ray promises no set of exceptions
            raise CloudError(
                f"{self._application} does not say what it serves: {_first_line(error)}.", "See the log of Ray Serve."
            ) from error
        if not isinstance(reply, Loaded):
            raise CloudError(f"{self._application} is no engine of ours.", "Deploy edgewise there.")
        return reply.info

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._look()

    async def _look(self) -> None:
        before = self._replicas
        try:
            self._replicas = await asyncio.to_thread(_running, self._application, self._deployment)
        except Exception as error:  # Ray promises no set of exceptions
            self._replicas = 0
            _log.error("Ray Serve does not say how %s is: %s", self._application, type(error).__name__)
        if self._replicas != before:
            self.on_change()


class RayWorkers(HandleWorkers):
    """A model as a Ray Serve application of its own, deployed when these workers start and deleted when they close.

    Args:
        spec: What each replica loads.
        max_replicas: The most replicas there may be.
        min_replicas: Replicas that are always there.
    """

    def __init__(self, spec: EngineSpec, *, max_replicas: int, min_replicas: int = 1) -> None:
        # Two versions of one model stand side by side while one takes over from the other.
        super().__init__(None, f"edgewise-{spec.name}-{uuid4().hex[:8]}")
        self._app = (spec, min_replicas, max(min_replicas, max_replicas))

    async def start(self) -> None:
        """Deploy, wait until a replica is warm, and begin to count replicas.

        Raises:
            EdgewiseError: The model cannot be loaded there, or Ray cannot start it.
        """
        try:
            self._handle = await asyncio.to_thread(self._deployed)
            await super().start()
        except BaseException:
            await asyncio.shield(self.aclose())
            raise

    async def aclose(self) -> None:
        """Delete the application, after the batches that are being computed."""
        await super().aclose()
        handle, self._handle = self._handle, None
        if handle is not None:
            # Else its thread goes on telling the cluster of a deployment that is gone.
            with contextlib.suppress(Exception):  # the cluster may be gone already
                await handle.shutdown_async()
        await asyncio.to_thread(self._deleted)

    def _deployed(self) -> Any:
        from ray import serve

        spec, least, most = self._app
        app = engine_deployment(spec, min_replicas=least, max_replicas=most)
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
        try:
            return serve.run(app, name=self._application, route_prefix=None, logging_config=_QUIET)
        except RuntimeError as error:
            raise self._reason(error) from error

    def _deleted(self) -> None:
        from ray import serve

        with contextlib.suppress(Exception):  # gone already, or the cluster is
            serve.delete(self._application)

    def _reason(self, error: RuntimeError) -> EdgewiseError:
        """Why a replica did not start: our own words where it said them, else Ray's."""
        from ray import serve

        found = serve.status().applications.get(self._application)
        parts = found.deployments.values() if found else ()
        told = _TOLD.search("\n".join(part.message for part in parts))
        if told is not None:
            return messages.NotLoaded(told["kind"], told["words"], "").error()
        return CloudError(f"{self._application} was not deployed: {_first_line(error)}.", "See the log of Ray Serve.")


def _running(application: str, deployment: str) -> int:
    from ray import serve

    found = serve.status().applications.get(application)
    state = found.deployments.get(deployment) if found else None
    return int(state.replica_states.get("RUNNING", 0)) if state else 0


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
