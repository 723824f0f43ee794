"""A certifying job: what is asked for, and which wishes do not go together.

Owns the settings and what can be said of them before any file is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgewise.config import CostSection
from edgewise.errors import ConfigError
from edgewise.jobs.targets import LABELLED
from edgewise.router.agreement import SIMILARITY, check_judge
from edgewise.router.certificate import TARGET_AGREEMENT, TARGETS, items_needed
from edgewise.router.policies.threshold import BY_LABEL
from edgewise.router.signals import COMBINED, check_signal

AUTO = "auto"
_LONGEST_LIFE_DAYS = 36_500


@dataclass(frozen=True)
class CertifyJob:
    """What to certify, on what, and how strictly.

    Attributes:
        bundle: The bundle.
        data: Certifying items; labels are needed for accuracy and selective risk.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the bound may fail, in (0, 1).
        target: What is bounded: "agreement", "accuracy" or "selective".
        tuning: Items disjoint from `data` on which the signal is chosen and everything is fitted; None chooses nothing.
        signal: Name of the score, "auto" for the best on the tuning part; None is "auto" where there is a tuning part
            and the bundle's own signal where not.
        veto: Escalate what lies far from all tuning items in the model's embedding.
        complexity: Escalate texts that look too hard, before the edge model runs.
        group_by: Field of the data, or "label" for the label that the edge predicts; None makes no groups.
        groups: Their names; none takes all labels, or all values in the tuning part.
        valid_days: Stated life of the certificate; None states none.
        keep_texts: Keep the tuning items beside the certificate, for `explain` to show.
        out: Where the certificate goes, and beside it what was fitted; None takes the file beside the bundle.
        cost: What answers cost; None prices nothing.
        plot: Where a picture of the operating curve goes, .png or .svg; None draws none.
        concurrency: Cloud calls at the same time.
        timeout_s: Longest one cloud call may take.
        wait_s: Longest to wait for a cloud that is still starting.
        text_field: Field of the text in the data.
        label_field: Field of the label in the data, which then must have one; None takes "label" where there is one.
        judge: Name of the function by which two texts agree, for a language model; None for other bundles.
        judge_bundle: The embedding bundle of the judge "similarity", or None.
        max_tokens: Tokens of a language model's answer at most.
        cached: Keep a certificate that was issued for exactly this job.
        overwrite: Replace a certificate that exists.
    """

    bundle: Path
    data: Path
    alpha: float
    delta: float
    target: str = TARGET_AGREEMENT
    tuning: Path | None = None
    signal: str | None = None
    veto: bool = False
    complexity: bool = False
    group_by: str | None = None
    groups: tuple[str, ...] = ()
    valid_days: float | None = None
    keep_texts: bool = False
    out: Path | None = None
    cost: CostSection | None = None
    plot: Path | None = None
    concurrency: int = 4
    timeout_s: float = 30.0
    wait_s: float = 0.0
    text_field: str = "text"
    label_field: str | None = None
    judge: str | None = None
    judge_bundle: Path | None = None
    max_tokens: int = 256
    cached: bool = False
    overwrite: bool = False


def check_job(job: CertifyJob) -> None:
    """Refuse wishes that do not go together, before anything is read.

    Raises:
        ConfigError: A setting is out of its range, unknown, or needs another one.
    """
    items_needed(job.alpha, job.delta)
    if job.target not in TARGETS:
        raise ConfigError(f"There is no target {job.target!r}.", f"Choose one of: {', '.join(TARGETS)}.")
    if job.valid_days is not None and not 0 < job.valid_days <= _LONGEST_LIFE_DAYS:
        raise ConfigError(
            f"A certificate cannot live {job.valid_days:.15g} days.",
            f"Give days above 0 and up to {_LONGEST_LIFE_DAYS}, such as 90.",
        )
    if job.plot is not None and job.plot.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"The plot {job.plot} is of no known kind.", "Name a file that ends in .png or .svg.")
    if job.tuning is None:
        _refuse_what_needs_tuning(job)
    if job.signal is not None and job.signal not in (AUTO, COMBINED):
        check_signal(job.signal, None)
    if job.judge is not None:
        check_judge(job.judge)
    if job.judge_bundle is not None and (job.judge or "").partition(":")[0] != SIMILARITY:
        raise ConfigError("--judge-bundle goes with --judge similarity.", "Leave it out, or judge by similarity.")
    _check_groups(job)


def _refuse_what_needs_tuning(job: CertifyJob) -> None:
    wishes = {
        f"--target {job.target}": job.target in LABELLED,
        f"--signal {job.signal}": job.signal in (AUTO, COMBINED),
        "--veto": job.veto,
        "--complexity": job.complexity,
        "--keep-texts": job.keep_texts,
    }
    for wish, wanted in wishes.items():
        if wanted:
            raise ConfigError(
                f"{wish} needs a tuning part.",
                "Give --tuning FILE: items apart from the certifying ones, on which thresholds, signals and "
                "fits are chosen.",
            )


def _check_groups(job: CertifyJob) -> None:
    if job.group_by is None and job.groups:
        raise ConfigError("--groups names groups of nothing.", f"Add --group-by {BY_LABEL}, or a field of the data.")
    if job.group_by is None:
        return
    if job.target != TARGET_AGREEMENT:
        raise ConfigError(
            f"Groups are certified for agreement, not for {job.target}.", "Leave out --group-by, or the --target."
        )
    if job.group_by != BY_LABEL and not job.groups and job.tuning is None:
        raise ConfigError(
            f"The groups of '{job.group_by}' must be fixed before the certifying items are looked at.",
            "Name them with --groups a,b,c, or give --tuning FILE and take its values.",
        )
