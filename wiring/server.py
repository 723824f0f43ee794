"""What gateway and cloud service have in common: their address, their keys and their limits."""

from __future__ import annotations

import gc
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from edgewise.config import Config
from edgewise.errors import ConfigError
from edgewise.wire.accesslog import write_to_stderr
from edgewise.wire.door import FrontDoor, Limits
from edgewise.wire.serve import bind, serve
from edgewise.wiring.backends import secret

_FULL_COLLECTION = 50
"""Collections of the middle generation between two full ones: five times Python's own number."""


def check_address(config: Config) -> None:
    """Find out that an address cannot be bound, or a key is not set, before a model is loaded."""
    bind(config.server.host, config.server.port).close()
    _server_of(config)
    api_keys(config.server.api_keys_env)


def limits(config: Config) -> Limits:
    """What one client may ask of the front door."""
    server = config.server
    return Limits(
        max_body_bytes=server.max_body_bytes,
        body_timeout_s=server.body_timeout_s,
        max_concurrency=server.max_concurrency,
        max_polls=server.max_polls,
        rate_per_s=server.rate_per_s,
        burst=server.burst,
        hosts=_hosts(server.host) if server.hosts is None else server.hosts,
    )


def _hosts(bound: str) -> tuple[str, ...] | None:
    """The names of a server that nobody named: loopback's where it is bound to that, else any.

    On loopback the only callers that use another name are web pages that had it made ours by DNS rebinding.
    """
    try:
        is_loopback = ipaddress.ip_address(bound).is_loopback
    except ValueError:
        is_loopback = bound == "localhost"
    return ("localhost", "127.0.0.1", "::1", bound) if is_loopback else None


def serve_app(app: FrontDoor, config: Config, on_bound: Callable[[str, int], None]) -> None:
    """Serve an application as configured, until it is told to stop; `on_bound` hears where, once it answers.

    Raises:
        ConfigError: The address cannot be bound, or `server.http` is unknown.
        MissingExtraError: `server.http` is not installed.
    """
    server = config.server
    if server.access_log:
        write_to_stderr()

    with ExitStack() as serving:

        def started(host: str, port: int) -> None:
            serving.enter_context(_collecting_rarely())
            on_bound(host, port)

        _server_of(config)(
            app,
            host=server.host,
            port=server.port,
            on_bound=started,
            drain_s=server.drain_s,
            linger_s=server.linger_s,
        )


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Keep full collections from holding every request up: a server holds many objects, and each is looked at.

    What is here at the beginning stays until the end and is left out of them, and they come after some 350,000 new
    objects. Whoever runs a server inside of another program gets its own collector back.
    """
    thresholds = young, middle, _ = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(young, middle, _FULL_COLLECTION)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _server_of(config: Config) -> Callable[..., None]:
    if config.server.http == "uvicorn":
        return serve
    if config.server.http != "granian":
        raise ConfigError(f"server.http is {config.server.http!r}.", "Choose one of: uvicorn, granian.")
    from edgewise.wire.http2 import check_installed, serve_http2

    check_installed()
    return serve_http2


def api_keys(variable: str | None) -> Mapping[str, str]:
    """Tenants by key, from "tenant:key,tenant:key".

    Raises:
        ConfigError: The variable is not set, or does not hold that.
    """
    pairs = [pair.partition(":") for pair in (secret(variable) or "").split(",") if pair.strip()]
    if any(not (tenant.strip() and key.strip()) for tenant, _, key in pairs):
        raise ConfigError(f"{variable} does not hold API keys.", "Write them as tenant:key,tenant:key.")
    keys = {key.strip(): tenant.strip() for tenant, _, key in pairs}
    if len(keys) < len(pairs):
        raise ConfigError(f"{variable} gives one key to several tenants.", "Give each tenant a key of its own.")
    return keys
