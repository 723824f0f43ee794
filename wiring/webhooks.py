"""From settings to webhooks. Secrets are read from the environment here and kept nowhere else."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from edgewise.config import Config
from edgewise.contracts import HookQueue
from edgewise.errors import ConfigError
from edgewise.telemetry import Metrics
from edgewise.wire.webhooks import Target, checked_address, signing_key
from edgewise.wiring.backends import secret

if TYPE_CHECKING:
    from edgewise.wire.webhook_sender import WebhookSender


def webhooks_of(config: Config, hooks: HookQueue, metrics: Metrics) -> WebhookSender | None:
    """Who owes settled answers to webhooks and sends them; None where no webhook is configured.

    Args:
        config: Settings.
        hooks: Where what is owed is kept.
        metrics: Where deliveries are counted.

    Raises:
        ConfigError: An address or a secret cannot be used, or a webhook gets nobody's answers.
    """
    if not config.webhooks:
        return None
    from edgewise.wire.webhook_sender import WebhookSender  # brings an HTTP client along

    targets = [_target(name, config) for name in config.webhooks]
    return WebhookSender(hooks, targets, clock=time, uniform=random.SystemRandom().random, metrics=metrics)


def _target(name: str, config: Config) -> Target:
    section = config.webhooks[name]
    if not section.tenants:
        raise ConfigError(f"webhooks.{name}.tenants is empty.", "Name the tenants whose answers it gets.")
    try:
        key = signing_key(secret(section.secret_env) or "")
    except ConfigError as error:
        raise ConfigError(
            f"webhooks.{name}.secret_env ({section.secret_env}): {error.problem}", error.remedy
        ) from error
    return Target(
        name=name,
        url=checked_address(section.url, name),
        key=key,
        tenants=frozenset(section.tenants),
        timeout_s=section.timeout_s,
        give_up_after_s=section.give_up_after_s,
    )
