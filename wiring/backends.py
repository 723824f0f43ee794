"""From settings to a connected cloud. Keys are read from the environment here and kept nowhere else.

Clients are imported where there is a cloud: a gateway without one starts without an HTTP client.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgewise.bundle import kind_of
from edgewise.config import BackendSection, Config, backend_in_use, backends_in_use, load_config
from edgewise.contracts import CloudClient, Mode
from edgewise.errors import ConfigError

if TYPE_CHECKING:
    from edgewise.edge import EdgeGenerator
    from edgewise.telemetry import Metrics

_KIND = BackendSection().kind
_KIND_OF_TEXTS = "openai"
_NETWORK = ("connect_timeout_s", "keep_alive_s", "http2", "ca_file")
_TENSORS = ("input", "input_shape", "output", "labels")


def connect(
    backend: BackendSection, *, generator: EdgeGenerator | None = None, metrics: Metrics | None = None
) -> CloudClient:
    """A client for a cloud backend; its key is read from the environment here and kept nowhere else.

    Args:
        backend: Its settings.
        generator: A language model that is loaded already; it drafts where it is the one that the settings name.
        metrics: Where drafting shows its figures.

    Raises:
        ConfigError: The kind is unknown, a setting is not its own or cannot be used, or the key's variable is not set.
        BundleError: The model that is to draft cannot be loaded.
        MissingExtraError: The kind, HTTP/2 or drafting needs an extra that is not installed.
    """
    from edgewise.cloud.clients import CLIENTS

    if backend.draft is not None or backend.draft_tokens is not None:
        return _drafted(backend, generator, metrics)
    if backend.kind not in CLIENTS:
        raise ConfigError(
            f"There is no cloud client {backend.kind!r}.", f"Choose one of: {', '.join(sorted(CLIENTS))}."
        )
    make = CLIENTS[backend.kind]
    taken = inspect.signature(make).parameters
    if not backend.url and taken["url"].default is inspect.Parameter.empty:
        raise ConfigError(f"A cloud backend of kind {backend.kind!r} has no URL.", "Give `url`.")
    options = _options(backend, set(taken))
    unknown = [name for name in options if name not in taken]
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        raise ConfigError(
            f"A cloud backend of kind {backend.kind!r} takes no {names}.", "Drop it, or choose another kind."
        )
    return make(backend.url or None, model=backend.model, api_key=secret(backend.api_key_env), **options)


def _drafted(backend: BackendSection, generator: EdgeGenerator | None, metrics: Metrics | None) -> CloudClient:
    """A client whose text a language model here drafts."""
    from edgewise.bundle import Bundle
    from edgewise.cloud.clients import Network
    from edgewise.cloud.clients.drafting import DraftedCloud
    from edgewise.cloud.clients.openai import OpenAIClient
    from edgewise.edge import EdgeGenerator
    from edgewise.edge.drafting import draft_model

    if backend.draft is None:
        raise ConfigError("`draft_tokens` is set and no model drafts.", "Name its bundle as `draft`.")
    if backend.kind != "openai":
        raise ConfigError(f"A cloud backend of kind {backend.kind!r} takes no `draft`.", 'Choose kind = "openai".')
    plain = connect(msgspec.structs.replace(backend, draft=None, draft_tokens=None))
    if not isinstance(plain, OpenAIClient) or not backend.url:
        raise ConfigError("A cloud backend with a `draft` has no URL.", "Give `url`.")
    if generator is None or generator.digest != Bundle.open(backend.draft).model_digest:
        generator = EdgeGenerator.load(backend.draft, slots=0)
    return DraftedCloud(
        backend.url,
        plain=plain,
        drafts=draft_model(generator),
        model=backend.model,
        api_key=secret(backend.api_key_env),
        k=backend.draft_tokens,
        network=Network(**{name: getattr(backend, name) for name in _NETWORK}),
        metrics=metrics,
    )


def backend_at(
    cloud: str,
    *,
    kind: str | None,
    model: str | None,
    api_key_env: str | None,
    bundle: str | Path | None = None,
) -> BackendSection:
    """The backend that the command line names: by its URL, or by a configuration file in which one is in use.

    Args:
        cloud: A URL, or the path of a file that ends in .toml.
        kind: Its client; of a URL only, as the rest is. None takes the one that can ask what the bundle is asked.
        model: Its model.
        api_key_env: Environment variable that holds its key.
        bundle: The bundle it stands behind, where there is one.

    Raises:
        ConfigError: The file cannot be used, has no cloud in use, or one that no prompt of the bundle can be sent to.
        BundleError: The bundle's kind cannot be read.
    """
    texts = bundle is not None and kind_of(bundle) == "generator"
    backend = _named(cloud, kind or (_KIND_OF_TEXTS if texts else _KIND), model, api_key_env)
    if texts:
        _check_carries_prompts(backend)
    return backend


def _named(cloud: str, kind: str, model: str | None, api_key_env: str | None) -> BackendSection:
    if not cloud.endswith(".toml"):
        return BackendSection(url=cloud, kind=kind, model=model, api_key_env=api_key_env)
    backend = backend_in_use(load_config(Path(cloud)).cloud)
    if backend is None:
        raise ConfigError(f"{cloud} names no cloud backend.", "Add [cloud.backends.NAME].")
    return backend


def _check_carries_prompts(backend: BackendSection) -> None:
    """Refuse a cloud that would refuse every request of a language model."""
    from edgewise.cloud.clients import CLIENTS, PROMPT_KINDS

    if backend.kind in CLIENTS and backend.kind not in PROMPT_KINDS:
        raise ConfigError(
            f"A cloud backend of kind {backend.kind!r} carries no prompts, and the bundle is a language model.",
            'Choose --cloud-kind openai, or kind = "openai" in the configuration; bedrock does too.',
        )


def cloud_of(
    config: Config, *, generator: EdgeGenerator | None = None, metrics: Metrics | None = None
) -> CloudClient | None:
    """The cloud that the configuration names, or None where requests need none.

    Args:
        config: The configuration.
        generator: As in `connect`.
        metrics: As in `connect`.

    Raises:
        ConfigError: The mode needs a cloud and none is given, a backend cannot be connected to, or one carries no
            prompts and the edge model is a language model.
        MissingExtraError: A backend needs an extra that is not installed.
    """
    backends = backends_in_use(config.cloud)
    if not backends and config.edge.mode is not Mode.EDGE_ONLY:
        raise ConfigError(
            f"The mode is {config.edge.mode.value!r} and no cloud is given.", "Give --cloud URL, or --mode edge_only."
        )
    for backend in backends.values() if generator is not None else ():
        _check_carries_prompts(backend)
    clients = {name: connect(backend, generator=generator, metrics=metrics) for name, backend in backends.items()}
    if len(clients) > 1:
        from edgewise.cloud.clients import FailOverClient

        return FailOverClient(
            clients,
            after_s=config.cloud.fail_over_after_s,
            failures_to_open=config.cloud.failures_to_open,
            cool_down_s=config.cloud.cool_down_s,
        )
    return next(iter(clients.values()), None)


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


def _options(backend: BackendSection, taken: set[str]) -> dict[str, Any]:
    """What the settings say besides address, model and key; a client is told only what was set."""
    from edgewise.cloud.clients import Network, Tensors

    said = {
        field.name: getattr(backend, field.name)
        for field in msgspec.structs.fields(backend)
        if field.name not in ("url", "kind", "model", "api_key_env") and getattr(backend, field.name) != field.default
    }
    network = {name: said.pop(name) for name in _NETWORK if name in said}
    if network:
        said["network"] = Network(**network)
    if "tensors" in taken:
        tensors = {name: said.pop(name) for name in _TENSORS if name in said}
        if tensors:
            said["tensors"] = Tensors(**tensors)
    return said
