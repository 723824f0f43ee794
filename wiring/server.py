"""What gateway and cloud service have in common: their address, their keys and their limits."""

from __future__ import annotations

from collections.abc import Mapping

from edgewise.config import Config
from edgewise.errors import ConfigError
from edgewise.wire.door import Limits
from edgewise.wire.serve import bind
from edgewise.wiring.backends import secret


def check_address(config: Config) -> None:
    """Find out that an address cannot be bound, or a key is not set, before a model is loaded."""
    bind(config.server.host, config.server.port).close()
    api_keys(config.server.api_keys_env)


def limits(config: Config) -> Limits:
    """What one client may ask of the front door."""
    return Limits(max_body_bytes=config.server.max_body_bytes, max_concurrency=config.server.max_concurrency)


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
