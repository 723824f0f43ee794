"""API keys: whose request is this?

Where no keys are configured, everybody who reaches the port may ask, save web pages: a browser lets any page of the
internet send requests to services on its user's machine. Browsers put `origin` on every POST, also on those that DNS
rebinding makes look like a page's own; other clients do not send it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from edgewise.wire.faults import Fault

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
