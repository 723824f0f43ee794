"""Webhooks as values: what is sent to a target, how it is signed, and when it is sent again.

Owns the message, the signature (Standard Webhooks 1.0, symmetric) and the schedule of retries; does no I/O, which is
`webhook_sender`'s. Targets come from the configuration and from nowhere else: no request names an address.

A message is `{"type", "timestamp", "data"}`: the type "answer.revised" with the final answer, or "answer.abandoned"
with the provisional one that nothing follows; the time it was settled, ISO 8601 in UTC; and the native answer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import urlsplit

from edgewise.contracts import Hook, Status
from edgewise.errors import ConfigError
from edgewise.wire import native

SECRET_PREFIX = "whsec_"  # noqa: S105  what every secret begins with
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 3600.0

_MIN_KEY_BYTES, _MAX_KEY_BYTES = 24, 64  # Standard Webhooks 1.0, "Signature scheme"


class Fate(StrEnum):
    """What became of one attempt to deliver; the word of the metric."""

    DELIVERED = "delivered"
    RETRIED = "retried"
    GONE = "gone"
    """The target said 410: it wants this no more, and is not asked again."""
    EXPIRED = "expired"
    """It failed, and is too old to be sent again."""
    UNKNOWN = "unknown"
    """The configuration has no such target any more."""


@dataclass(frozen=True)
class Target:
    """Where settled answers go.

    Attributes:
        name: Its name in the configuration.
        url: Its address.
        key: What messages are signed with, 24 to 64 bytes; never shown.
        tenants: Whose answers it gets.
        timeout_s: Seconds one delivery may take.
        give_up_after_s: Age, in seconds, beyond which a message that fails is given up.
    """

    name: str
    url: str
    key: bytes = field(repr=False)
    tenants: frozenset[str]
    timeout_s: float
    give_up_after_s: float


def signing_key(secret: str) -> bytes:
    """The key in a secret of the form "whsec_" + base64.

    Raises:
        ConfigError: It is no such secret; the problem does not repeat it.
    """
    remedy = f"Give {SECRET_PREFIX!r} followed by {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} random bytes in base64."
    if not secret.startswith(SECRET_PREFIX):
        raise ConfigError(f"The webhook's secret does not begin with {SECRET_PREFIX!r}.", remedy)
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ConfigError("The webhook's secret is not base64.", remedy) from error
    if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise ConfigError(f"The webhook's secret has {len(key)} bytes.", remedy)
    return key


def checked_address(url: str, name: str) -> str:
    """The address of a webhook, if it is one of HTTP.

    Raises:
        ConfigError: It is not, or carries a password or a fragment.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none, or half an IPv6 address
        fits = False
    if not fits or parts.username is not None or parts.fragment or not url.isprintable() or " " in url:
        raise ConfigError(
            f"webhooks.{name}.url is no address of a webhook.", "Give https://HOST/PATH, without password and fragment."
        )
    return url


def message_id(hook: Hook) -> str:
    """The id of a message: the same at every attempt, so that a receiver can drop what it has seen."""
    parts = "\0".join((hook.target, hook.tenant, hook.answer.id))
    return f"msg_{hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()}"


def message_body(hook: Hook) -> bytes:
    """The body of a message, the same at every attempt."""
    kind = b"answer.revised" if hook.answer.status is Status.FINAL else b"answer.abandoned"
    settled = datetime.fromtimestamp(hook.created_s, UTC).isoformat(timespec="milliseconds").encode()
    return b'{"type":"%s","timestamp":"%s","data":%s}' % (kind, settled, native.encode_answer(hook.answer))


def signature(key: bytes, message: str, sent_s: int, body: bytes) -> str:
    """The signature of a message: HMAC-SHA256 over id, time and body (Standard Webhooks 1.0, "Signature scheme").

    Args:
        key: The target's key.
        message: The message's id.
        sent_s: Time of the attempt, whole seconds since the epoch.
        body: The body as it is sent.
    """
    signed = b"%s.%d.%s" % (message.encode(), sent_s, body)
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode('ascii')}"


def headers(target: Target, hook: Hook, body: bytes, now_s: float) -> dict[str, str]:
    """The headers of one attempt."""
    message, sent_s = message_id(hook), int(now_s)
    return {
        "content-type": "application/json",
        "webhook-id": message,
        "webhook-timestamp": str(sent_s),
        "webhook-signature": signature(target.key, message, sent_s, body),
    }


def pause_s(failures: int, uniform: Callable[[], float]) -> float:
    """Seconds until the next attempt: doubled at every failure up to an hour, the upper half of it at random.

    Half is fixed, so that nothing is hurried; half is random, so that what failed together does not come back together
    ("equal jitter", Brooker 2015).

    Args:
        failures: Attempts that failed in a row, 1 or more.
        uniform: Draws from [0, 1).
    """
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 32))
    return longest / 2 * (1 + uniform())


def fate_of(status: int | None, *, age_s: float, give_up_after_s: float) -> Fate:
    """What becomes of a message after one attempt.

    Every answer but a success and 410 is sent again: a wrong secret, a path that moved or a redirect, which is not
    followed, is mended by people, and what was promised waits for them until it is too old.

    Args:
        status: The target's HTTP status; None where there was no answer.
        age_s: Seconds since the answer was settled.
        give_up_after_s: The target's limit.
    """
    if status is not None and 200 <= status < 300:
        return Fate.DELIVERED
    if status == 410:
        return Fate.GONE
    return Fate.EXPIRED if age_s >= give_up_after_s else Fate.RETRIED


def is_away(status: int | None) -> bool:
    """Whether an outcome speaks of the target rather than of the message: everything for it then waits a while."""
    return status is None or status in (429, 502, 503, 504)
