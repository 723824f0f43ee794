"""What there is to plan with: the candidates of a run, of a checkpoint that is quantized first, or one bundle.

Owns telling these three apart, and what a candidate is known to cost on the edge. Chooses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from edgewise.bundle import Bundle
from edgewise.contracts import Progress
from edgewise.errors import CertificateError, ConfigError, InputError
from edgewise.jobs.profile import ProfileJob, profile_bundle
from edgewise.quantize import Report, read_report
from edgewise.quantize.recipes import BASELINE
from edgewise.quantize.report import Candidate, pace_ms
from edgewise.quantize.run_folder import CANDIDATES, REPORT

Kind: TypeAlias = Literal["run", "bundle", "checkpoint"]


@dataclass(frozen=True)
class Candidates:
    """The recipes to plan with.

    Attributes:
        bundles: Opened bundles by the candidate's id, the baseline first where there is one.
        edge_ms: Median latency of each, in milliseconds.
        baseline: Id of the float32 candidate, or None.
        most_accurate: Id of the most accurate one on the run's tuning part, the smallest of several; None for a bundle.
        report: The run's, or None.
    """

    bundles: dict[str, Bundle]
    edge_ms: dict[str, float]
    baseline: str | None
    most_accurate: str | None
    report: Report | None


def kind_of(model: Path) -> Kind:
    """What lies there.

    Raises:
        InputError: None of the three.
    """
    if (model / REPORT).is_file():
        return "run"
    if (model / "manifest.json").is_file():
        return "bundle"
    if (model / "config.json").is_file():
        return "checkpoint"
    raise InputError(
        f"{model} is no run, no checkpoint and no bundle.",
        "Give a folder that quantize wrote, one with a checkpoint's config.json, or a bundle.",
    )


def candidates_of_run(run: Path, recipes: Sequence[str]) -> Candidates:
    """The measured candidates of a run, and the baseline among them.

    Raises:
        InputError: The run cannot be read, or none of its candidates was measured.
        ConfigError: A recipe is named of which there is no measured candidate.
        BundleError: A candidate's bundle is damaged.
    """
    report = read_report(run)
    measured = [found for found in report.candidates if found.state == "measured" and found.performance is not None]
    if not measured:
        raise InputError(f"No candidate of {run} was measured.", "Quantize again: report.json says what went wrong.")
    wanted = _named(measured, recipes)
    bundles = {found.id: Bundle.open(run / CANDIDATES / found.id) for found in wanted}
    return Candidates(
        bundles=bundles,
        edge_ms={found.id: pace_ms(found.performance) for found in wanted if found.performance is not None},
        baseline=next((found.id for found in wanted if found.recipe == BASELINE), None),
        most_accurate=_most_accurate(wanted),
        report=report,
    )


def _named(measured: Sequence[Candidate], recipes: Sequence[str]) -> list[Candidate]:
    """The candidates that go by these names, and the baseline."""
    known = {name: found for found in measured for name in (found.recipe, found.spelling, found.id) if name}
    for name in recipes:
        if name not in known:
            raise ConfigError(
                f"The run has no measured candidate {name!r}.",
                f"Choose from: {', '.join(found.id for found in measured)}.",
            )
    wanted = set(recipes)
    return [
        found
        for found in measured
        if not wanted or found.recipe == BASELINE or wanted & {found.recipe, found.spelling, found.id}
    ]


def _most_accurate(wanted: Sequence[Candidate]) -> str | None:
    known = [(found.quality.accuracy, -found.performance.size_bytes, found.id)
             for found in wanted if found.quality is not None and found.performance is not None]  # fmt: skip
    return max(known)[2] if known else None


def candidates_of_bundle(path: Path, data: Path, text_field: str, progress: Progress) -> Candidates:
    """One bundle, timed on this machine unless it says how fast it is.

    Raises:
        BundleError: It cannot be used.
    """
    bundle = Bundle.open(path)
    name = bundle.core.recipe.name if bundle.core.recipe.name != "none" else bundle.core.name
    measured = _attested_ms(bundle)
    if measured is None:
        profile = profile_bundle(ProfileJob(path, data, rounds=1, text_field=text_field), progress)
        measured = profile.performance.latency.p50_ms
    return Candidates({name: bundle}, {name: measured}, name if name == BASELINE else None, None, None)


class _Latency(msgspec.Struct):
    p50_ms: float


class _Performance(msgspec.Struct):
    latency: _Latency


class _Measurement(msgspec.Struct):
    performance: _Performance


def _attested_ms(bundle: Bundle) -> float | None:
    """The median latency that the bundle's own measurement states, or None."""
    for attestation in bundle.attestations():
        if attestation.kind == "measurement":
            try:
                return msgspec.convert(attestation.payload, _Measurement).performance.latency.p50_ms
            except msgspec.ValidationError:
                continue
    return None


def refuse_without_labels(candidates: Candidates) -> None:
    """Refuse models whose answers carry no logits.

    Raises:
        CertificateError: They do not.
    """
    for bundle in candidates.bundles.values():
        if bundle.core.kind == "generator":
            raise CertificateError(
                "The model is a language model, and a plan speaks of labels.",
                "Certify it: edgewise certify BUNDLE --judge.",
            )
        if not bundle.core.labels:
            raise CertificateError(
                f"The model does {bundle.core.task}; its answers carry no logits, so nothing tells which of them to "
                "trust.",
                "Plan for a classifier or a tagger, or serve this one with --mode edge_only or cloud_only.",
            )
