"""Builds running systems out of settings: the only room that knows every other.

Owns which part goes where. Decides nothing about a request and prints nothing.
"""

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
