"""The baseline: the exported graph as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edgewise.quantize.recipes.base import Aids, Outcome, Recipe


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has none."""


def apply(source: Path, out: Path, options: Options, *, seed: int, aids: Aids) -> Outcome:  # the registry's shape
    """Copy the exported graph. The runtime fuses it at load, as it does every candidate."""
    shutil.copyfile(source, out)
    return Outcome(("the exported graph, unchanged",))


RECIPE = Recipe("fp32", "the exported graph, not quantized", Options, apply, prepared=False)
