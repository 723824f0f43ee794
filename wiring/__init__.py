"""Builds running systems out of settings: the only room that knows every other.

Owns which part goes where. Decides nothing about a request and prints nothing. Its names are imported when they are
asked for, so that a gateway loads nothing of the cloud service.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.wiring.backends import backend_at, connect, secret
    from edgewise.wiring.cloud import CloudModel, CloudService, CloudSettings, build_cloud, cloud_models, serve_cloud
    from edgewise.wiring.gateway import Gateway, build_gateway, serve_gateway

__all__ = [
    "CloudModel",
    "CloudService",
    "CloudSettings",
    "Gateway",
    "backend_at",
    "build_cloud",
    "build_gateway",
    "cloud_models",
    "connect",
    "secret",
    "serve_cloud",
    "serve_gateway",
]

_GATEWAY = ("Gateway", "build_gateway", "serve_gateway")
_BACKENDS = ("backend_at", "connect", "secret")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "gateway" if name in _GATEWAY else "backends" if name in _BACKENDS else "cloud"
    return getattr(import_module(f"{__name__}.{home}"), name)
