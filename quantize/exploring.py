"""A search within a run: which candidates there are, how one is looked at, and how long the end will take.

Owns the link between `search.py`, which decides, and the makers and measurements that do the work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edgewise.contracts import Progress
from edgewise.quantize.assess import LOOK_ITEMS, Assessor
from edgewise.quantize.candidates import Maker
from edgewise.quantize.measure import ROUNDS
from edgewise.quantize.plan import Plan, QuantizeJob
from edgewise.quantize.recipes import BASELINE, Choice, parse_choices
from edgewise.quantize.search import Budget, Ledger, Tried, explore, finalists
from edgewise.quantize.space import Space


@dataclass(frozen=True)
class Explorer:
    """A search within a run.

    Attributes:
        job: What was asked for.
        plan: What was read.
        maker: Builds candidates.
        assessor: Measures them.
        ledger: Where each finished look is written down, for a search that goes on after a kill.
        progress: Advanced by seconds.
    """

    job: QuantizeJob
    plan: Plan
    maker: Maker
    assessor: Assessor
    ledger: Ledger
    progress: Progress

    @property
    def space(self) -> Space:
        """What the search may choose."""
        recipes = {name: recipe for name, recipe in self.plan.recipes.items() if name != BASELINE}
        return Space(recipes, self.plan.transforms)

    def chosen(self, tried: Sequence[Tried]) -> tuple[Choice, ...]:
        """What is measured in full: the baseline, the front of what was tried, and what a search could not propose."""
        named = [choice for choice in self.plan.choices if not self.space.has(choice)]
        spellings = {found.id: found.spelling for found in tried}
        best = parse_choices(self.plan.recipes, [spellings[name] for name in finalists(tried)])
        return (*named, *best)

    def run(self) -> tuple[Tried, ...]:
        """Explore until the time is up."""
        known = self.ledger.read()
        if known:
            self.progress.note(f"The search goes on: {len(known)} candidates were tried before.")
        return explore(
            self.space,
            self._look,
            first=[choice for choice in self.plan.choices[1:] if self.space.has(choice)],
            known=known,
            seed=self.job.seed,
            budget=Budget(60 * self.job.minutes, self._finishing, time.monotonic),
            progress=self.progress,
        )

    def _look(self, choice: Choice) -> Tried:
        started = time.monotonic()
        built = self.maker.build(choice)
        tried = Tried(
            id=choice.id,
            spelling=choice.spelling(),
            parameters=self.space.parameters(choice),
            model_digest=built.made.model_digest,
            problem=built.made.problem,
            lasting=built.made.lasting,
            seconds=time.monotonic() - started,
        )
        if built.usable:
            tried = self.assessor.look(built, self.maker.build(self.plan.choices[0]), tried)
        if tried.lasting:
            self.ledger.keep(tried)
        return tried

    def _finishing(self, tried: Sequence[Tried]) -> float:
        """Seconds that measuring the front in full will take: a look is two models on a part of the items."""
        looked = [found.look_seconds for found in tried if not found.problem]
        if not looked:
            return 0.0
        more = max(float(ROUNDS), len(self.plan.tuning.inputs) / LOOK_ITEMS) * len(self.job.threads)
        return (len(finalists(tried)) + 1) * more * median(looked) / 2
