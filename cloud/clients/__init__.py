"""The cloud backends a router can escalate to, by the name the configuration gives them.

A new backend is one file with a class that fulfils `contracts.CloudClient`, one line here, and one entry in its
contract tests. Importing this package loads none of what a single backend needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgewise.cloud.clients.oip import OipClient
from edgewise.contracts import CloudClient

CLIENTS: Final[dict[str, Callable[..., CloudClient]]] = {"oip": OipClient}
"""Factories by kind."""

__all__ = ["CLIENTS", "OipClient"]
