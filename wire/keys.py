"""API keys: whose request is this?

Where no keys are configured, everybody who reaches the port may ask, save web pages: a browser lets any page of the
internet send requests to services on its user's machine. Browsers put `origin` on every POST, also on those that DNS
rebinding makes look like a page's own; other clients do not send it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from functools import lru_cache

from edgewise.wire.faults import Fault

_HOSTS = 64

PUBLIC_TENANT = "public"
"""The tenant of everybody where no keys are configured."""


class ApiKeys:
    """Keys and their tenants. Only digests are kept, and each is compared in constant time.

    Args:
        keys: Tenant by key; empty lets everybody in.

    Raises:
        ValueError: A key or a tenant is empty.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        if not all(key and tenant for key, tenant in keys.items()):
            raise ValueError("An API key and its tenant must not be empty.")
        self._tenants = [(_digest(key.encode()), tenant) for key, tenant in keys.items()]

    @property
    def are_configured(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._tenants)

    def tenant(self, headers: Mapping[bytes, bytes]) -> str:
        """The tenant of a request, from `authorization: Bearer KEY` or `x-api-key: KEY`.

        Raises:
            Fault: Keys are configured and the request carries none of them, or none are and a web page asks.
        """
        if not self._tenants:
            _check_no_page(headers)
            return PUBLIC_TENANT
        presented = _presented(headers)
        digest = _digest(presented)
        found = None
        for known, tenant in self._tenants:  # all of them, so that the time taken tells nothing
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise Fault(
                401,
                "unauthenticated",
                "The API key is unknown." if presented else "An API key is needed.",
                remedy="Send it as 'authorization: Bearer KEY' or 'x-api-key: KEY'.",
                headers={"www-authenticate": "Bearer"},
            )
        return found


class Hosts:
    """The names by which clients may call a server, as the header `host` has them.

    Args:
        names: The names, without port; of IPv6 addresses without brackets too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower().strip("[]").encode() for name in names)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Find out whether a request was meant for this server; one without the header is not a browser's.

        Raises:
            Fault: It was meant for another name.
        """
        host = headers.get(b"host")
        if host is None or _without_port(host) in self._names:
            return
        raise Fault(
            421,
            "unknown_host",
            "The request was meant for another host than this one.",
            field="host",
            remedy="Call the server by a name of its own, or add the name to server.hosts.",
        )


@lru_cache(maxsize=_HOSTS)
def _without_port(host: bytes) -> bytes:
    host = host.lower()
    if host.startswith(b"["):
        return host[1:].partition(b"]")[0]
    return host.partition(b":")[0]


def _check_no_page(headers: Mapping[bytes, bytes]) -> None:
    if b"origin" in headers:
        raise Fault(
            403,
            "foreign_origin",
            "The request comes from a web page, and no API keys are configured.",
            remedy="Send it without 'origin', or configure API keys.",
        )


def _presented(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    return headers.get(b"x-api-key", b"").strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
