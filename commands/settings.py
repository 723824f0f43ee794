"""From options to settings: what was given on the command line wins over the configuration file. Prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgewise.config import BackendSection, Config, checked, load_config
from edgewise.contracts import Mode

if TYPE_CHECKING:
    from edgewise.contracts import CloudClient

_HERE = "command line"
"""The name of the backend that options describe."""


@dataclass(frozen=True)
class CloudOptions:
    """The options that name a cloud.

    Attributes:
        url: Its URL, or the path of a file that ends in .toml; None where no cloud is named.
        kind: Its protocol; None takes what fits the bundle.
        model: Its model.
        key_env: Environment variable that holds its key.
    """

    url: str | None
    kind: str | None
    model: str | None
    key_env: str | None

    def backend(self, bundle: str | Path | None = None) -> BackendSection:
        """The backend that they describe.

        Raises:
            ConfigError: The file cannot be used, or the cloud cannot be asked what the bundle is asked.
            BundleError: The bundle's kind cannot be read.
        """
        from edgewise import wiring

        return wiring.backend_at(
            self.url or "", kind=self.kind, model=self.model, api_key_env=self.key_env, bundle=bundle
        )

    def client(self, bundle: str | Path | None = None) -> CloudClient:
        """A client for it.

        Raises:
            ConfigError, BundleError: As for `backend`; or its key is not set.
            MissingExtraError: It needs an extra that is not installed.
        """
        from edgewise import wiring

        return wiring.connect(self.backend(bundle))

    def over(self, config: Config, bundle: str | Path | None) -> Config:
        """The configuration with this cloud in place of its own, where one is named.

        Raises:
            ConfigError, BundleError: As for `backend`.
        """
        if self.url is None:
            return config
        backends = {_HERE: self.backend(bundle)}
        return overridden(config, cloud={"use": _HERE, "backends": backends, "fail_over": ()})


def configured(path: Path | None) -> Config:
    """The configuration of a file, or the defaults where none is named.

    Raises:
        ConfigError: The file cannot be used.
    """
    return load_config(path) if path else Config()


def overridden(config: Config, **sections: dict[str, Any]) -> Config:
    """The configuration with the options that were given in place of the file's; ranges are checked again.

    Args:
        config: The configuration.
        sections: Values by section and key; None leaves the file's.

    Raises:
        ConfigError: A value is out of its range.
    """
    replaced = {
        name: msgspec.structs.replace(
            getattr(config, name),
            **{
                key: str(value) if isinstance(value, Path) else value
                for key, value in given.items()
                if value is not None
            },
        )
        for name, given in sections.items()
    }
    return checked(msgspec.structs.replace(config, **replaced))


def for_a_chat(config: Config, bundle: Path, certificate: Path | None, mode: Mode | None) -> Config:
    """The configuration of one conversation with a bundle: alone where there is no cloud, and with no state of its own.

    Raises:
        ConfigError: A value is out of its range.
    """
    if mode is None and not config.cloud.backends:
        mode = Mode.EDGE_ONLY
    settings = overridden(config, edge={"bundle": bundle, "certificate": certificate, "mode": mode})
    # A gateway may be running on the same settings: its file of what is owed is not this conversation's.
    return msgspec.structs.replace(settings, state=msgspec.structs.replace(settings.state, path=None))
