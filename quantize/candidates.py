"""A candidate on its way from a choice to a bundle: what was made of it, and who makes it.

Owns the values and the Protocol that the pipeline builds with. Makes nothing: `graph_maker.py` and
`generation/maker.py` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from edgewise.quantize.recipes import Choice, Outcome
from edgewise.quantize.report import Candidate, Export, Performance, State
from edgewise.quantize.statistics import Quality


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a choice.

    Attributes:
        state: As in the report; "measured" as long as nothing went wrong.
        problem: Why there is no bundle, or no measurement; empty otherwise.
        outcome: What the recipe did.
        lasting: Whether it would come out the same again; a process that was killed may not.
        model_digest: The bundle's.
        seconds: Time to build it.
    """

    state: State = "measured"
    problem: str = ""
    lasting: bool = True
    outcome: Outcome = Outcome()
    model_digest: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Built:
    """A choice that was tried.

    Attributes:
        choice: The choice.
        bundle: Where its bundle lies, if it came about.
        made: What became of it.
    """

    choice: Choice
    bundle: Path
    made: Made

    @property
    def usable(self) -> bool:
        """Whether there is a bundle."""
        return self.made.state == "measured"

    def describe(
        self,
        *,
        state: State | None = None,
        problem: str = "",
        performance: Performance | None = None,
        quality: Quality | None = None,
        drop_bound: float | None = None,
        more: tuple[str, ...] = (),
    ) -> Candidate:
        """It, as the report shows it."""
        return Candidate(
            id=self.choice.id,
            spelling=self.choice.spelling(),
            recipe=self.choice.recipe.name,
            options=self.choice.plain_options(),
            state=state or self.made.state,
            problem=problem or self.made.problem,
            facts=(*self.made.outcome.facts, *more),
            skipped=self.made.outcome.skipped,
            model_digest=self.made.model_digest,
            seconds=self.made.seconds,
            performance=performance,
            quality=quality,
            drop_bound=drop_bound,
        )


class Maker(Protocol):
    """Makes bundles of choices. What it has made once in a folder it does not make again."""

    def export(self) -> Export:
        """Make ready what every candidate is made from, and prove that it answers as the checkpoint does.

        Raises:
            CheckpointError: It does not, or cannot be exported at all.
        """
        ...

    def build(self, choice: Choice) -> Built:
        """Build one candidate; whatever goes wrong is kept as its problem, unless it is the baseline.

        Raises:
            EdgewiseError: The baseline cannot be built.
        """
        ...
