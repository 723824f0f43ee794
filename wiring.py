"""Builds running systems out of settings: the only file that knows every room.

Owns which part goes where. Decides nothing about a request and prints nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.cloud.clients import CLIENTS
from edgewise.config import BackendSection, Config, backend_in_use
from edgewise.contracts import Certificate, CloudClient, Mode, ServiceInfo, new_id
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError, ConfigError
from edgewise.jobs.beside import certificate_beside, load_certificate, load_fitted
from edgewise.router import Plugs, Router, RouterSettings
from edgewise.router.certificate import check_model
from edgewise.router.lifetime import Life, Lifetime
from edgewise.router.policies import PolicySettings, policy_named
from edgewise.router.settings import Profile
from edgewise.router.stages import GuardSettings, OnAlarm, Stage
from edgewise.store import MemoryCache, SqliteStore
from edgewise.telemetry import Metrics
from edgewise.wire.door import Limits, front_door
from edgewise.wire.serve import bind, serve

if TYPE_CHECKING:
    from edgewise.cloud.engine import Engine
    from edgewise.router.fitted import Fitted

OnBound = Callable[[str, int], None]


@dataclass(frozen=True)
class _Promised:
    """What a gateway may promise, and what an operator should know of it, one sentence each."""

    certificate: Certificate | None
    fitted: Fitted | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Gateway:
    """A gateway ready to be served.

    Attributes:
        app: The ASGI application.
        router: The flow behind it.
        info: What it says of itself.
        warnings: What an operator should know, one sentence each.
    """

    app: Any
    router: Router
    info: ServiceInfo
    warnings: tuple[str, ...]


def connect(backend: BackendSection) -> CloudClient:
    """A client for a cloud backend; its key is read from the environment here and kept nowhere else.

    Raises:
        ConfigError: The kind is unknown, the URL is none, or the key's variable is not set.
    """
    if backend.kind not in CLIENTS:
        raise ConfigError(
            f"There is no cloud client {backend.kind!r}.", f"Choose one of: {', '.join(sorted(CLIENTS))}."
        )
    return CLIENTS[backend.kind](backend.url, model=backend.model, api_key=secret(backend.api_key_env))


def build_gateway(config: Config, resources: ExitStack) -> Gateway:
    """Load the bundle and everything around it.

    Args:
        config: Settings; `edge.bundle` must be set.
        resources: Takes what has to be closed when the gateway ends.

    Raises:
        ConfigError: A setting is missing or contradicts another.
        BundleError: The bundle cannot be used here.
        CertificateError: The certificate is missing or not this bundle's.
        StoreError: The state file cannot be used.
    """
    if config.edge.bundle is None:
        raise ConfigError("No bundle is given.", "Name it: edgewise edge serve BUNDLE.")
    model = EdgeModel.load(Path(config.edge.bundle), threads=config.edge.model_threads)
    promised = _promised(model, config)
    metrics = Metrics()
    store = resources.enter_context(SqliteStore(config.state.path or ":memory:"))
    router = Router(
        model,
        _cloud_of(config),
        promised.certificate,
        fitted=promised.fitted,
        settings=_settings(config),
        plugs=_plugs(config, store, metrics),
    )
    # Asked after the state file was read: audits may have earned a certificate that outlives the one beside the bundle.
    warnings = (*_life_warnings(router.newest_certificate), *_alarm_warnings(router.report()), *promised.warnings)
    info = ServiceInfo(
        name=model.bundle.core.name,
        version=model.digest,
        task=model.task,
        labels=model.labels,
        input=model.kind,
        role="gateway",
    )
    app = front_door(
        router,
        info,
        answers=store.answers,
        metrics=metrics,
        api_keys=_api_keys(config.server.api_keys_env),
        limits=_limits(config),
        ready=lambda: None,
        lifespan=router.running,
        new_id=new_id,
        report=router.report,
    )
    return Gateway(app, router, info, warnings)


def _alarm_warnings(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What an alarm before this start has left behind."""
    audits = report["audits"]
    if audits is None or audits["stage"] == Stage.CERTIFIED:
        return ()
    now = "Everything is escalated" if audits["stage"] == Stage.CLOUD_ONLY else "Local answers are uncertified"
    return (f"{now} since an alarm before this start. {audits['last_alarm'] or ''}".strip(),)


def serve_gateway(config: Config, on_bound: Callable[[Gateway, str, int], None]) -> None:
    """Serve a gateway until it is told to stop; `on_bound` hears where, once it answers.

    Raises:
        EdgewiseError: As `build_gateway`, or the address cannot be bound.
    """
    _check_address(config)
    with ExitStack() as resources:
        gateway = build_gateway(config, resources)
        serve(
            gateway.app,
            host=config.server.host,
            port=config.server.port,
            on_bound=lambda host, port: on_bound(gateway, host, port),
            drain_s=config.server.drain_s,
        )


def build_cloud(engine: Engine, config: Config, *, max_batch: int) -> Any:
    """The ASGI application of a cloud service over an engine.

    Raises:
        ConfigError: `max_batch` is below 1.
    """
    from edgewise.cloud.service import EngineService

    service = EngineService(engine, clock=time, max_batch=max_batch)
    return front_door(
        service,
        engine.info,
        answers=None,
        metrics=Metrics(),
        api_keys=_api_keys(config.server.api_keys_env),
        limits=_limits(config),
        ready=service.ready,
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

    _check_address(config)
    engine = load_engine(model, threads=threads, name=name)
    serve(
        build_cloud(engine, config, max_batch=max_batch),
        host=config.server.host,
        port=config.server.port,
        on_bound=lambda host, port: on_bound(engine.info, host, port),
        drain_s=config.server.drain_s,
    )


def _check_address(config: Config) -> None:
    """Find out that an address cannot be bound, or a key is not set, before a model is loaded."""
    bind(config.server.host, config.server.port).close()
    _api_keys(config.server.api_keys_env)


def _promised(model: EdgeModel, config: Config) -> _Promised:
    """The certificate in force and what was fitted for it; without one only modes that need none may be the default."""
    if not policy_named(config.policy.use).certified:
        warning = f"The policy {config.policy.use!r} follows no certificate: every answer is uncertified."
        return _Promised(None, None, (warning,))
    bundle = Path(config.edge.bundle or "")
    path = Path(config.edge.certificate) if config.edge.certificate else certificate_beside(bundle)
    if config.edge.certificate is None and not path.exists():
        if config.edge.mode in (Mode.EDGE_ONLY, Mode.CLOUD_ONLY):
            warning = f"No certificate: every answer in mode {config.edge.mode.value} is uncertified."
            return _Promised(None, None, (warning,))
        raise CertificateError(
            f"There is no certificate {path}.",
            "Issue one: edgewise certify BUNDLE. Or serve uncertified: --mode edge_only, or --mode cloud_only.",
        )
    certificate = load_certificate(path)
    check_model(certificate, model.digest, certificate.fitted_digest)
    named = Path(config.edge.fitted) if config.edge.fitted else None
    fitted = load_fitted(bundle, certificate, named, issued=path)
    model.check_golden()
    return _Promised(certificate, fitted, _machine_warnings(certificate, config.edge.other_machine))


def _life_warnings(certificate: Certificate | None) -> tuple[str, ...]:
    """Refuse a certificate whose stated life is over; a clock that cannot tell only gets a warning."""
    if certificate is None or certificate.expires is None:
        return ()
    life = Lifetime(certificate.created, certificate.expires).verdict(time.time(), time.monotonic())
    if life is Life.EXPIRED:
        raise CertificateError(
            f"Certificate {certificate.id} expired at {certificate.expires}.",
            "Certify this bundle again, on items of today: edgewise certify BUNDLE --overwrite.",
        )
    if life is Life.OK:
        return ()
    return (
        f"The clock says {datetime.fromtimestamp(time.time(), UTC):%Y-%m-%dT%H:%M:%SZ}, and certificate "
        f"{certificate.id} was issued at {certificate.created}: everything is escalated until the clock is right.",
    )


def _machine_warnings(certificate: Certificate, other_machine: bool) -> tuple[str, ...]:
    """Refuse a certificate of another kind of machine, unless that is accepted."""
    device = probe()
    here = (f"onnxruntime {device.onnxruntime}", device.isa)
    if here == (certificate.runtime, certificate.isa):
        return ()
    problem = (
        f"Certificate {certificate.id} was issued with {certificate.runtime} on {certificate.isa}; "
        f"here is {here[0]} on {here[1]}."
    )
    if not other_machine:
        raise CertificateError(
            problem, "Scores may differ: certify on this machine, or accept that with --other-machine."
        )
    return (f"{problem} The golden items agree, but other scores may differ.",)


def _cloud_of(config: Config) -> CloudClient | None:
    backend = backend_in_use(config.cloud)
    if backend is None and config.edge.mode is not Mode.EDGE_ONLY:
        raise ConfigError(
            f"The mode is {config.edge.mode.value!r} and no cloud is given.", "Give --cloud URL, or --mode edge_only."
        )
    return None if backend is None else connect(backend)


def _settings(config: Config) -> RouterSettings:
    return RouterSettings(
        mode=config.edge.mode,
        budget_ms=config.edge.budget_ms,
        cloud_timeout_s=config.cloud.timeout_s,
        policy=PolicySettings(
            use=config.policy.use,
            local_share=config.policy.local_share,
            calls_per_day=config.policy.calls_per_day,
            money_per_day=config.policy.money_per_day,
            price_per_call=config.policy.price_per_call,
        ),
        audit_share=config.audit.share,
        audit_verdict_deadline_s=config.audit.verdict_deadline_s,
        guard=GuardSettings(
            on_alarm=OnAlarm(config.audit.on_alarm),
            recertify_share=config.audit.recertify_share,
            recertify_items=config.audit.recertify_items,
        ),
        failures_to_open=config.cloud.failures_to_open,
        cool_down_s=config.cloud.cool_down_s,
        inference_threads=config.edge.inference_threads or probe().cores,
        profiles={name: Profile(found.budget_ms, found.mode) for name, found in config.profiles.items()},
    )


def _plugs(config: Config, store: SqliteStore, metrics: Metrics) -> Plugs:
    cache = MemoryCache(config.cache.max_bytes, config.cache.ttl_s, time) if config.cache.max_bytes else None
    return Plugs(
        cache=cache,
        outbox=store.outbox,
        answers=store.answers,
        audits=store.audits,
        spending=store.spending,
        metrics=metrics,
    )


def _limits(config: Config) -> Limits:
    return Limits(max_body_bytes=config.server.max_body_bytes, max_concurrency=config.server.max_concurrency)


def _api_keys(variable: str | None) -> Mapping[str, str]:
    """Tenants by key, from "tenant:key,tenant:key"."""
    pairs = [pair.partition(":") for pair in (secret(variable) or "").split(",") if pair.strip()]
    if any(not (tenant.strip() and key.strip()) for tenant, _, key in pairs):
        raise ConfigError(f"{variable} does not hold API keys.", "Write them as tenant:key,tenant:key.")
    keys = {key.strip(): tenant.strip() for tenant, _, key in pairs}
    if len(keys) < len(pairs):
        raise ConfigError(f"{variable} gives one key to several tenants.", "Give each tenant a key of its own.")
    return keys


def secret(variable: str | None) -> str | None:
    """The value of an environment variable that holds a key; None where none is named.

    Raises:
        ConfigError: It is named and not set.
    """
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"The environment variable {variable} is not set.", "Set it to the key, or drop the setting.")
    return value
