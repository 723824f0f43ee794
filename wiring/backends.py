"""From settings to a connected cloud. Keys are read from the environment here and kept nowhere else."""

from __future__ import annotations

import os

from edgewise.cloud.clients import CLIENTS
from edgewise.config import BackendSection, Config, backend_in_use
from edgewise.contracts import CloudClient, Mode
from edgewise.errors import ConfigError


def connect(backend: BackendSection) -> CloudClient:
    """A client for a cloud backend; its key is read from the environment here and kept nowhere else.

    Raises:
        ConfigError: The kind is unknown, the URL is none, or the key's variable is not set.
    """
    if backend.kind not in CLIENTS:
        raise ConfigError(
            f"There is no cloud client {backend.kind!r}.", f"Choose one of: {', '.join(sorted(CLIENTS))}."
        )
    return CLIENTS[backend.kind](backend.url, model=backend.model, api_key=secret(backend.api_key_env))


def cloud_of(config: Config) -> CloudClient | None:
    """The cloud that the configuration names, or None where requests need none.

    Raises:
        ConfigError: The mode needs a cloud and none is given, or the backend cannot be connected to.
    """
    backend = backend_in_use(config.cloud)
    if backend is None and config.edge.mode is not Mode.EDGE_ONLY:
        raise ConfigError(
            f"The mode is {config.edge.mode.value!r} and no cloud is given.", "Give --cloud URL, or --mode edge_only."
        )
    return None if backend is None else connect(backend)


def secret(variable: str | None) -> str | None:
    """The value of an environment variable that holds a key; None where none is named.

    Raises:
        ConfigError: It is named and not set.
    """
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"The environment variable {variable} is not set.", "Set it to the key, or drop the setting.")
    return value
