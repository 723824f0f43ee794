"""What a transform is: a change of the graph that goes with any recipe, before it or after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from edgewise.quantize.technique import Aids, Outcome


class Changed(msgspec.Struct, frozen=True):
    """What a transform did.

    Attributes:
        outcome: As of a recipe; inapplicable where it found nothing to do.
        aids: What goes with the written graph: a transform that renumbers tokens renumbers the calibration data too.
    """

    outcome: Outcome
    aids: Aids


class Transform(Protocol):
    """Writes the changed graph; runs in a worker process."""

    def __call__(self, source: Path, out: Path, *, aids: Aids) -> Changed:
        """Read the graph at `source`, write the changed one to `out`."""
        ...


@dataclass(frozen=True)
class TransformKind:
    """One transform.

    Attributes:
        name: Its name.
        summary: One line on what it does.
        apply: Does it.
        needs: What it reads beside the graph: names of fields of `Aids`.
        after: Whether it changes the quantized graph; else it changes the one that the recipe reads.
    """

    name: str
    summary: str
    apply: Transform
    needs: frozenset[str] = frozenset()
    after: bool = False
