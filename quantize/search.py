"""Explores candidates under a time budget and keeps the Pareto front of size, speed and accuracy drop.

Owns the order in which candidates are tried, when to stop, and what a resumed search knows already. The proposals come
from Optuna's multi-objective TPE sampler (Ozaki et al. 2022); building and measuring are the caller's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgewise.contracts import Progress
from edgewise.errors import MissingExtraError
from edgewise.files import write_atomically
from edgewise.quantize.recipes import Choice
from edgewise.quantize.select import Entry, front
from edgewise.quantize.space import Space, Value

TRIED = "tried"
"""Folder of the ledger within a workshop."""

FINALISTS = 8
"""Candidates of the front that are measured again, in full and in turns; those that lose least come first."""

STALLED = 50
"""Proposals in a row that were tried before, or contradicted themselves: what can be explored is."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate that a search has built and looked at.

    Attributes:
        id: The candidate's id.
        spelling: How a user names it for `--recipes`.
        parameters: What the optimiser was told of it.
        model_digest: Its bundle's.
        size_bytes: Bytes of its bundle.
        p50_ratio: Its median latency over the baseline's, measured in turns with it.
        drop: Accuracy lost against the baseline on the items looked at.
        problem: Why there are no figures: it failed, or did not apply; empty otherwise.
        lasting: Whether it would come out the same again; a process that was killed may not.
        seconds: Time that building and looking at it took.
        look_seconds: Time of the look alone, the baseline's part included.
    """

    id: str
    spelling: str
    parameters: dict[str, Value]
    model_digest: str = ""
    size_bytes: int = 0
    p50_ratio: float = 0.0
    drop: float = 0.0
    problem: str = ""
    lasting: bool = True
    seconds: float = 0.0
    look_seconds: float = 0.0

    @property
    def objectives(self) -> tuple[float, float, float]:
        """What the search makes small: bytes, latency ratio, accuracy drop."""
        return float(self.size_bytes), self.p50_ratio, self.drop


@dataclass(frozen=True)
class Budget:
    """How long a search may take.

    Attributes:
        seconds: For the search and the final measurement together.
        finishing: Seconds that the final measurement will take, given what was tried.
        now: A clock, in seconds.
    """

    seconds: float
    finishing: Callable[[Sequence[Tried]], float]
    now: Callable[[], float]


def explore(
    space: Space,
    look: Callable[[Choice], Tried],
    *,
    first: Sequence[Choice],
    known: Sequence[Tried],
    seed: int,
    budget: Budget,
    progress: Progress,
) -> tuple[Tried, ...]:
    """Try candidates until the time is up or nothing new is proposed.

    Args:
        space: What may be tried.
        look: Builds and measures one candidate.
        first: Candidates to begin with, whatever the optimiser would propose.
        known: What an interrupted search had tried, in its order.
        seed: Seed of the proposals.
        budget: The time; at least one candidate is tried.
        progress: Advanced by the seconds that went by.

    Returns:
        Everything tried, the known ones included.

    Raises:
        MissingExtraError: Optuna is not installed.
    """
    optimiser = _Optimiser(space, seed)
    tried = {found.id: found for found in known}
    for found in known:
        optimiser.replay(found)
    waiting = [choice for choice in first if choice.id not in tried]
    started = told = budget.now()
    stalled = 0
    while stalled < STALLED:
        if len(tried) > len(known) and _is_spent(budget, started, tuple(tried.values())):
            break
        trial, choice = optimiser.ask(waiting.pop(0) if waiting else None, at_random=stalled > 0)
        stalled = stalled + 1 if choice is None or choice.id in tried else 0
        if choice is None:
            optimiser.refuse(trial)
            continue
        if choice.id not in tried:
            tried[choice.id] = look(choice)
        optimiser.tell(trial, tried[choice.id])
        seconds = int(budget.now() - told)
        progress.advance(seconds)
        told += seconds
    return tuple(tried.values())


def finalists(tried: Sequence[Tried]) -> tuple[str, ...]:
    """Ids of the candidates worth a full measurement: the front of what was tried, those that lose least first."""
    entries = [
        Entry(id=found.id, size_bytes=found.size_bytes, p50_ms=found.p50_ratio, drop=found.drop)
        for found in tried
        if not found.problem
    ]
    best = front(entries)
    ranked = sorted((entry for entry in entries if entry.id in best), key=lambda entry: (entry.drop, entry.size_bytes))
    return tuple(entry.id for entry in ranked[:FINALISTS])


class Ledger:
    """What a search has tried, each a file of its own, so that a kill costs only the candidate under way.

    Args:
        folder: Where the files lie; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def keep(self, found: Tried) -> None:
        """Write one down, durably."""
        number = len(list(self._folder.glob("*.json")))
        write_atomically(self._folder / f"{number:05d}.json", msgspec.json.encode(found))

    def read(self) -> tuple[Tried, ...]:
        """Everything kept, in its order; a file that cannot be read counts as not there."""
        found = []
        for file in sorted(self._folder.glob("[0-9]*.json")):
            try:
                found.append(msgspec.json.decode(file.read_bytes(), type=Tried))
            except msgspec.MsgspecError:
                continue
        return tuple(found)


class _Optimiser:
    """Optuna's sampler, asked and told."""

    def __init__(self, space: Space, seed: int) -> None:
        optuna = _load_optuna()
        self._space = space
        with warnings.catch_warnings():
            # Groups of options are marked experimental; nothing else fits a space in which each recipe has its own.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._guided = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=False)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(directions=["minimize"] * 3, sampler=self._guided)

    def ask(self, wanted: Choice | None = None, *, at_random: bool = False) -> tuple[Any, Choice | None]:
        """The next proposal: the one wanted, if any; None where it contradicts itself."""
        if wanted is not None:
            self._study.enqueue_trial(self._space.parameters(wanted))
        self._study.sampler = self._random if at_random else self._guided
        trial = self._study.ask()
        return trial, self._space.suggest(trial)

    def tell(self, trial: Any, found: Tried) -> None:
        """What became of a proposal."""
        if found.problem:
            self.refuse(trial)
        else:
            self._study.tell(trial, found.objectives)

    def refuse(self, trial: Any) -> None:
        """A proposal of which nothing came."""
        self._study.tell(trial, state=self._failed)

    def replay(self, found: Tried) -> None:
        """Tell of a proposal that an earlier search made."""
        self._study.enqueue_trial(found.parameters)
        trial = self._study.ask()
        self._space.suggest(trial)
        self.tell(trial, found)


def _is_spent(budget: Budget, started: float, tried: Sequence[Tried]) -> bool:
    """Whether another candidate like the ones before, and the final measurement, would go beyond the budget."""
    one = sum(found.seconds for found in tried) / len(tried)
    return budget.now() - started + one + budget.finishing(tried) > budget.seconds


def _load_optuna() -> Any:
    try:
        import optuna
    except ImportError as e:
        raise MissingExtraError("edgewise quantize --search", "quantize") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
