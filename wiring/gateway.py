"""A gateway: the front door over the router's flow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgewise import tracing
from edgewise.bundle import Bundle
from edgewise.config import Config
from edgewise.contracts import Certificate, Served, ServiceInfo, SharedCache, new_id
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError, ConfigError
from edgewise.router import Plugs, Router, RouterSettings
from edgewise.router.policies import PolicySettings
from edgewise.router.settings import Profile, TextSettings
from edgewise.router.stages import GuardSettings, OnAlarm
from edgewise.store import MemoryCache, SqliteStore
from edgewise.store.redis import RedisCache
from edgewise.store.sqlite import StoreLimits
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wiring.backends import cloud_of, secret
from edgewise.wiring.promised import alarm_warnings, life_warnings, promised
from edgewise.wiring.server import api_keys, check_address, limits, serve_app
from edgewise.wiring.webhooks import webhooks_of

if TYPE_CHECKING:
    from edgewise.edge import EdgeGenerator
    from edgewise.wire.webhook_sender import WebhookSender


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
    model = _load(config, resources)
    promise = promised(model, config)
    extra = _served_with(model, promise.certificate, config)
    metrics = Metrics()
    store = resources.enter_context(SqliteStore(config.state.path or ":memory:", limits=_limits(config)))
    webhooks = webhooks_of(config, store.hooks, metrics)
    router = Router(
        model,
        cloud_of(config, generator=None if isinstance(model, EdgeModel) else model, metrics=metrics),
        promise.certificate,
        fitted=promise.fitted,
        settings=replace(_settings(config), text=extra.settings),
        plugs=_plugs(config, store, webhooks, metrics, extra.judge),
    )
    # Asked after the state file was read: audits may have earned a certificate that outlives the one beside the bundle.
    warnings = (
        *life_warnings(router.newest_certificate),
        *alarm_warnings(router.report()),
        *promise.warnings,
        *extra.warnings,
    )
    info = ServiceInfo(
        name=model.bundle.core.name,
        version=model.digest,
        task=model.task,
        labels=model.labels if isinstance(model, EdgeModel) else (),
        input=model.kind if isinstance(model, EdgeModel) else "text",
        role="gateway",
    )
    problem = None if promise.certificate is not None else _self_test(model)  # under a certificate it has passed
    models = {info.name: Served(info=info, service=router, ready=lambda: problem)}
    app = front_door(
        lambda: models,
        answers=store.answers,
        metrics=metrics,
        api_keys=api_keys(config.server.api_keys_env),
        limits=limits(config),
        lifespan=lambda: _running(router, webhooks),
        new_id=new_id,
        report=router.report,
        access_log=config.server.access_log,
    )
    return Gateway(app, router, info, warnings)


class _Extra(NamedTuple):
    """What the router of a text model is given besides."""

    settings: TextSettings = TextSettings()
    judge: Callable[[str, str], bool] | None = None
    warnings: tuple[str, ...] = ()


def _load(config: Config, resources: ExitStack) -> EdgeModel | EdgeGenerator:
    bundle = Bundle.open(Path(config.edge.bundle or ""))
    if bundle.core.kind != "generator":
        return EdgeModel.from_bundle(bundle, threads=config.edge.model_threads)
    from edgewise.wiring.texts import load_generator

    return resources.enter_context(load_generator(config))


def _served_with(model: EdgeModel | EdgeGenerator, certificate: Certificate | None, config: Config) -> _Extra:
    if isinstance(model, EdgeModel):
        return _Extra()
    from edgewise.wiring.texts import gate_warnings, judge_for, text_settings

    return _Extra(text_settings(config), judge_for(certificate, config.text), gate_warnings(certificate))


def serve_gateway(config: Config, on_bound: Callable[[Gateway, str, int], None]) -> None:
    """Serve a gateway until it is told to stop; `on_bound` hears where, once it answers.

    Raises:
        EdgewiseError: As `build_gateway`, or the address cannot be bound.
    """
    check_address(config)
    with ExitStack() as resources:
        tracing.start("gateway")
        resources.callback(tracing.stop)
        gateway = build_gateway(config, resources)
        serve_app(gateway.app, config, lambda host, port: on_bound(gateway, host, port))


@asynccontextmanager
async def _running(router: Router, webhooks: WebhookSender | None) -> AsyncIterator[None]:
    """Answer requests, and tell webhooks of what is settled, until the block ends."""
    async with router.running():
        sending = asyncio.create_task(webhooks.run()) if webhooks is not None else None
        try:
            yield
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.wait({sending})


def _self_test(model: EdgeModel | EdgeGenerator) -> str | None:
    """Why a model must not be called ready: its golden items come out differently here. None where none do."""
    if not model.bundle.golden():
        return None
    try:
        model.check_golden()
    except CertificateError as error:
        return str(error)
    return None


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
        slow_s=config.cloud.slow_s,
        attempts=config.cloud.attempts,
        hedge_share=config.cloud.hedge_share,
        failures_to_open=config.cloud.failures_to_open,
        cool_down_s=config.cloud.cool_down_s,
        max_cool_down_s=config.cloud.max_cool_down_s,
        owed_s=config.state.max_age_s,
        drop_oldest=config.state.when_full == "drop_oldest",
        inference_threads=config.edge.inference_threads or probe().cores,
        profiles={name: Profile(found.budget_ms, found.mode) for name, found in config.profiles.items()},
    )


def _limits(config: Config) -> StoreLimits:
    state = config.state
    return StoreLimits(
        max_pending=state.max_pending,
        max_answers=state.max_answers,
        max_hooks=state.max_answers,
        max_bytes=state.max_bytes,
        max_answer_age_s=state.max_age_s,
    )


def _shared_cache(config: Config) -> SharedCache | None:
    url = secret(config.cache.redis_url_env)
    if url is None:
        return None
    return RedisCache(url, config.cache.ttl_s, timeout_s=config.cache.redis_timeout_s, clock=time)


def _plugs(
    config: Config,
    store: SqliteStore,
    webhooks: WebhookSender | None,
    metrics: Metrics,
    judge: Callable[[str, str], bool] | None,
) -> Plugs:
    cache = MemoryCache(config.cache.max_bytes, config.cache.ttl_s, time) if config.cache.max_bytes else None
    return Plugs(
        cache=cache,
        shared_cache=_shared_cache(config),
        outbox=store.outbox,
        answers=store.answers,
        audits=store.audits,
        spending=store.spending,
        hooks=webhooks.owe if webhooks is not None else None,
        judge=judge,
        metrics=metrics,
    )
