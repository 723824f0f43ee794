"""Examining a machine: versions, processor, extras, and what will not work here and why.

Owns the checks. Imports nothing it examines: what is installed is read from package metadata.
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec

import msgspec

from edgewise import __version__
from edgewise.edge import probe
from edgewise.edge.device import Device

_EXTRAS = {
    "quantize": "edgewise quantize and pack",
    "cloud": "edgewise cloud serve over a checkpoint (over a bundle the base install is enough)",
    "generate": "language models on this device",
    "aws": "cloud backends on AWS",
}
_FAST_INT8 = ("amx", "vnni", "dotprod", "i8mm")


class Package(msgspec.Struct, frozen=True):
    """An installed or missing distribution; version None is missing."""

    name: str
    version: str | None


class Extra(msgspec.Struct, frozen=True):
    """An extra, what it is for, and what of it is missing."""

    name: str
    enables: str
    packages: tuple[Package, ...]

    @property
    def complete(self) -> bool:
        """Whether everything is installed."""
        return all(package.version is not None for package in self.packages)


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine can and cannot do.

    Attributes:
        edgewise: Version.
        device: The machine.
        base: What the base install needs.
        extras: The optional parts.
        problems: What will not work here, why, and the remedy; one sentence each.
        healthy: Whether the base install is complete.
    """

    edgewise: str
    device: Device
    base: tuple[Package, ...]
    extras: tuple[Extra, ...]
    problems: tuple[str, ...]
    healthy: bool


def diagnose() -> Diagnosis:
    """Examine this machine; never fails."""
    needs = _requirements()
    device = probe()
    base = tuple(_package(name) for name in needs[""])
    extras = tuple(
        Extra(name, enables, tuple(_package(need) for need in needs.get(name, ()))) for name, enables in _EXTRAS.items()
    )
    missing_base = [package.name for package in base if package.version is None]
    return Diagnosis(
        edgewise=__version__,
        device=device,
        base=base,
        extras=extras,
        problems=(*_base_problems(missing_base), *_extra_problems(extras), *_device_problems(device)),
        healthy=not missing_base,
    )


def _requirements() -> dict[str, list[str]]:
    """Distribution names by extra, "" for the base, as the installed edgewise declares them."""
    needs: dict[str, list[str]] = {"": []}
    for line in metadata.requires("edgewise") or []:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[<>=!~\[ (]", requirement.strip(), maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
        needs.setdefault(extra[1] if extra else "", []).append(name)
    return needs


def _package(name: str) -> Package:
    try:
        return Package(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Package(name, None)


def _base_problems(missing: list[str]) -> list[str]:
    return [f"The base install lacks {', '.join(missing)}: pip install edgewise"] if missing else []


def _extra_problems(extras: tuple[Extra, ...]) -> list[str]:
    problems = []
    for extra in extras:
        missing = [package.name for package in extra.packages if package.version is None]
        if missing:
            problems.append(
                f"{extra.enables} will not work: {', '.join(missing)} missing. pip install 'edgewise[{extra.name}]'"
            )
    if find_spec("torch") is not None and (version := _package("transformers").version) is not None:
        major = int(version.split(".")[0])
        if major >= 5:
            problems.append(
                f"transformers {version} is too new for the ONNX exporter: pip install 'edgewise[quantize]'"
            )
    return problems


def _device_problems(device: Device) -> list[str]:
    if any(feature in device.isa for feature in _FAST_INT8):
        return []
    return [
        f"This processor ({device.isa}) has no 8-bit dot product: int8 may be no faster than fp32, and its answers "
        "can differ from those of one that has; measure and certify on this machine."
    ]
