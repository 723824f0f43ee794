"""A planning job: what is asked for, and what can be said of it before any file is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgewise.errors import CertificateError, ConfigError
from edgewise.files import refuse_existing
from edgewise.router.certificate import TARGET_AGREEMENT, TARGETS, items_needed
from edgewise.router.signals import COMBINED, check_signal

PAYMENTS = ("split", "share")
"""How a choice can be paid for; see `quantize.joint.JointPlan`."""


@dataclass(frozen=True)
class PlanJob:
    """What to plan for, with what, and how strictly.

    Attributes:
        model: Folder of a run, a checkpoint or a bundle.
        data: Certifying items; labels are needed for accuracy and selective risk.
        tuning: Items on which recipes and signals are compared; None draws a third of `data` for it.
        out: Where the plan goes; None takes the model's name with ".plan" after it.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the promise may fail, in (0, 1).
        target: What is bounded: "agreement", "accuracy" or "selective".
        recipes: Candidates to plan with, by id, spelling or recipe, beside the baseline; of a checkpoint, what to
            build. None takes all there are, or the usual ones.
        signals: Scores to plan with; none takes those that can be computed.
        pay: How the choice is paid for: "split" or "share"; see `quantize.joint.JointPlan`.
        concurrency: Cloud calls at the same time.
        timeout_s: Longest one cloud call may take.
        wait_s: Longest to wait for a cloud that is still starting.
        text_field: Field of the text in the data.
        label_field: Field of the label in the data.
    """

    model: Path
    data: Path
    tuning: Path | None = None
    out: Path | None = None
    alpha: float = 0.01
    delta: float = 0.05
    target: str = TARGET_AGREEMENT
    recipes: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    pay: str = "split"
    concurrency: int = 4
    timeout_s: float = 30.0
    wait_s: float = 0.0
    text_field: str = "text"
    label_field: str = "label"

    @property
    def place(self) -> Path:
        """Where the plan goes."""
        model = self.model.resolve()
        return self.out or self.model.parent / f"{model.name}.plan"


def check_job(job: PlanJob) -> None:
    """Refuse a wish that cannot be granted.

    Raises:
        ConfigError: A setting is unknown or out of its range.
        OutputExistsError: The plan's folder exists.
    """
    items_needed(job.alpha, job.delta)
    if job.target not in TARGETS:
        raise ConfigError(f"There is no target {job.target!r}.", f"Choose one of: {', '.join(TARGETS)}.")
    if job.pay not in PAYMENTS:
        raise ConfigError(f"A choice cannot be paid for by {job.pay!r}.", f"Choose one of: {', '.join(PAYMENTS)}.")
    for signal in job.signals:
        if signal != COMBINED:
            check_signal(signal, None)
    if COMBINED in job.signals and job.target != TARGET_AGREEMENT:
        raise ConfigError(
            f"The signal {COMBINED!r} is fitted to agreement, not to {job.target}.",
            "Name another, or the target agreement.",
        )
    refuse_existing(job.place)


def check_items(given: int, job: PlanJob, m: int) -> None:
    """Refuse a certifying part that can prove nothing at the share of delta that each option gets.

    Raises:
        CertificateError: It is too small; names the number needed, and what paying by share adds.
    """
    needed = items_needed(job.alpha, job.delta / m)
    if given >= needed:
        return
    alone = items_needed(job.alpha, job.delta)
    shared = f" shared by {m} recipes with signals" if m > 1 else ""
    price = f" {alone} are enough for one: --pay split, or fewer recipes or signals." if m > 1 else ""
    raise CertificateError(
        f"{given} certifying items cannot support alpha={job.alpha:g} at delta={job.delta:g}{shared}: {needed} are "
        "needed.",
        f"Give {needed} or more items, or a larger alpha or delta.{price}",
    )
