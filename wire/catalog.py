"""The models behind one door, by name, looked up at every request: a service may swap them while it runs.

Owns names, versions and the reply to a name that nobody serves; what a model is and does is its service's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from edgewise.contracts import Served
from edgewise.errors import ConfigError
from edgewise.wire.faults import Fault

Models: TypeAlias = Callable[[], Mapping[str, Served]]
"""Gives the models served now; the first is the default of `/v1/predict`."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
"""What stands in a URL as it is, with no meaning of its own."""

_MODELS = "/v2/models/"
_INFER = "/infer"


def check_model_name(name: str) -> None:
    """Find out whether a model of that name can be served.

    Raises:
        ConfigError: The name cannot stand in a URL.
    """
    if _MODEL_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"The model's name {name!r} cannot stand in a URL.",
            "Give it a name of A-Z, a-z, 0-9, '.', '_' and '-' that starts with a letter or a digit.",
        )


class Catalog:
    """What is served now.

    Args:
        models: Gives the models by name.

    Raises:
        ConfigError: A name cannot stand in a URL.
    """

    def __init__(self, models: Models) -> None:
        for name in models():
            check_model_name(name)
        self.models = models

    def default(self) -> Served:
        """The first model.

        Raises:
            Fault: There is none yet.
        """
        for served in self.models().values():
            return served
        raise Fault(503, "not_ready", "No model is served yet.", remedy="Wait until /readyz says ready.")

    def named(self, name: str, version: str | None = None, *, field: str = "") -> Served:
        """The model of that name, and of that version where one is asked for.

        Args:
            name: What the client asked for.
            version: The version it asked for, or None for any.
            field: Where in its request it did, for the error.

        Raises:
            Fault: Nobody of that name or version is served here.
        """
        models = self.models()
        served = models.get(name)
        if served is None:
            known = ", ".join(f"'{name}'" for name in models) or "none"
            raise Fault(
                404, "not_found", "The model is unknown.", field=field, remedy=f"The models served here: {known}."
            )
        if version is not None and version != served.info.version:
            raise Fault(
                404, "not_found", "The version is unknown.", remedy=f"The version served is '{served.info.version}'."
            )
        return served

    def writer(self, name: str) -> Served:
        """The model of that name, of which a text is asked, as its field `model` says.

        Raises:
            Fault: Nobody of that name is served here; OpenAI's clients know its code.
        """
        try:
            return self.named(name, field="model")
        except Fault as fault:
            raise Fault(404, "model_not_found", fault.message, field="model", remedy=fault.remedy) from None

    def not_ready(self) -> str | None:
        """None when every model answers, else the first reason why not."""
        models = self.models()
        if not models:
            return "no model is served yet."
        reasons = (served.ready() for served in models.values())
        return next((reason for reason in reasons if reason is not None), None)


def infer_path(path: str) -> tuple[str, str | None] | None:
    """Model and version, or None for any, whose infer endpoint `path` is; None where it is no infer endpoint."""
    if not (path.startswith(_MODELS) and path.endswith(_INFER)):
        return None
    name, slash, rest = path[len(_MODELS) : -len(_INFER)].partition("/")
    if not slash:
        return (name, None) if name else None
    kind, _, version = rest.partition("/")
    return (name, version) if name and kind == "versions" and version and "/" not in version else None
