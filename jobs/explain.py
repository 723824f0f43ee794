"""What the router would decide on an item, and why: score, threshold, vetoes, and the items most like it.

Owns what is looked up and how it is put side by side. The decision is taken by the very code that serves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgewise.bundle import Bundle
from edgewise.contracts import Certificate, Groups, Input, Prediction, Progress, Reason, Request
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError, ConfigError
from edgewise.jobs.beside import certificate_beside, load_certificate, load_fitted
from edgewise.jobs.nearest import Near, References, asked_references, kept_references
from edgewise.jobs.predict import read_items
from edgewise.router.certificate import check_model
from edgewise.router.fitted import Fitted
from edgewise.router.instruments import Instruments
from edgewise.router.judgement import Judgement
from edgewise.router.policies.threshold import BY_LABEL
from edgewise.router.promise import Promise
from edgewise.router.signals import SIGNALS, score_of
from edgewise.telemetry import Metrics

_HOW_TO_SEE = "To see the items themselves, give --tuning FILE, or certify with --keep-texts."

_BY_EMBEDDING = "The bundle gives embeddings: to find the nearest by them, give --tuning FILE, or certify with --veto."


@dataclass(frozen=True)
class ExplainJob:
    """What to explain.

    Attributes:
        bundle: The bundle.
        items: Texts, or paths of images.
        certificate: Path of the certificate; None takes the file beside the bundle, if there is one.
        fitted: Path of what was fitted for it; None takes the file beside the certificate.
        tuning: Tuning items to look for neighbours among, or None.
        attributes: Attributes of the requests, by which a certificate may group them.
        text_field: Field of the text in the tuning items.
        label_field: Field of their label.
    """

    bundle: Path
    items: Sequence[str]
    certificate: Path | None = None
    fitted: Path | None = None
    tuning: Path | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    text_field: str = "text"
    label_field: str = "label"


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """One item, and what the router would do with it.

    Attributes:
        input: The text, or the path of the image.
        output: The edge model's answer.
        action: "local" or "escalate".
        reason: Why; see `contracts.Reason`.
        certificate_id: The certificate that covers a local answer, or None.
        signal: Name of the score.
        score: The score; None where it has none.
        threshold: Local iff score > threshold, as text where infinite; None where no certificate is in force.
        group: What it is grouped by has this value; None where it has none, or there are no groups.
        grouped_by: "label", or the attribute by which the certificate groups; None where there are no groups.
        groups: The groups that the certificate lists; a request of no such group is escalated.
        tenth: Where the score lies among the certifying items': 1 in the lowest tenth, 10 in the highest.
        distance: Distance to its neighbours among the tuning items; None where none were fitted.
        distance_cut: Beyond it an item is out of distribution; None where the distance vetoes nothing.
        complexity: How likely the edge is wrong, as seen from the text alone; None where that was not fitted.
        complexity_cut: Above it the edge model is not asked; "inf" where no text was found to be hopeless.
        signals: Every simple signal, to compare.
        nearest_by: "embedding" or "score"; None where there is nothing to compare with.
        nearest: The tuning items most like it, the nearest first.
        notes: What else there is to know.
    """

    input: str
    output: str
    action: str
    reason: Reason
    certificate_id: str | None
    signal: str
    score: float | None
    threshold: float | str | None
    group: str | None
    grouped_by: str | None = None
    groups: tuple[str, ...] = ()
    tenth: int | None
    distance: float | None
    distance_cut: float | None
    complexity: float | None
    complexity_cut: float | str | None
    signals: dict[str, float | None]
    nearest_by: str | None
    nearest: tuple[Near, ...]
    notes: tuple[str, ...]


def explain_items(job: ExplainJob, progress: Progress) -> list[Explained]:
    """What the router would decide on each item, and why.

    Raises:
        CertificateError: The certificate is of another bundle, was changed, or lacks what was fitted with it.
        BundleError, DataError, ConfigError: The input cannot be used.
    """
    bundle = Bundle.open(job.bundle)
    _refuse_without_score(bundle)
    model = EdgeModel.from_bundle(bundle)
    certificate = _certificate(job)
    fitted = None
    if certificate is not None:
        # Whether what was fitted is the one that it names is found out where that is read.
        check_model(certificate, model.digest, certificate.fitted_digest)
        fitted = load_fitted(job.bundle, certificate, job.fitted, issued=job.certificate)
    signal = _signal(model, certificate)
    if job.tuning is None:
        named = None if certificate is None else certificate.fitted_digest
        references = kept_references(
            job.bundle,
            job.certificate,
            model_digest=model.digest,
            signal=signal,
            fitted=fitted,
            fitted_digest=named,
        )
    else:
        references = asked_references(
            job.tuning, model, signal, fitted, progress, text_field=job.text_field, label_field=job.label_field
        )
    bench = _Bench(job, model, certificate, fitted, references)
    inputs = read_items(model, job.items)
    return [bench.explain(item, value) for item, value in zip(job.items, inputs, strict=True)]


def _refuse_without_score(bundle: Bundle) -> None:
    if bundle.core.kind == "generator":
        raise ConfigError(
            f"The bundle {bundle.path} is a language model, and explain speaks of labels.",
            "Ask it with edgewise chat: below each answer stand its score, the threshold and the reason.",
        )
    if not bundle.core.labels:
        raise CertificateError(
            f"The bundle does {bundle.core.task}; its answers have no score to explain.",
            "Explain one that gives labels, or see its answers with edgewise predict.",
        )


def _certificate(job: ExplainJob) -> Certificate | None:
    beside = certificate_beside(job.bundle)
    if job.certificate is None and not beside.exists():
        return None
    return load_certificate(job.certificate or beside)


class _Bench:
    """Explains one item after the other with the same certificate."""

    def __init__(
        self,
        job: ExplainJob,
        model: EdgeModel,
        certificate: Certificate | None,
        fitted: Fitted | None,
        references: References,
    ) -> None:
        self._job = job
        self._model = model
        self._certificate = certificate
        self._fitted = fitted
        self._references = references
        self._signal = _signal(model, certificate)
        instruments = Instruments(Metrics())
        self._judgement = Judgement(certificate, fitted, instruments)
        complexity = None if fitted is None else fitted.complexity
        self._promise = Promise(certificate, clock=_Now(), instruments=instruments, complexity=complexity)
        self._notes = tuple(_notes(certificate, self._promise))

    def explain(self, item: str, value: Input) -> Explained:
        request = Request(inputs=value, attributes=self._job.attributes)
        prediction = self._model.predict_one(value)
        decision = self._promise.before(request) or self._judgement.decide(self._promise, request, prediction)
        score = score_of(prediction, self._signal, self._fitted)
        groups = None if self._certificate is None else self._certificate.groups
        by, nearest = self._references.near(prediction, score)
        distance, distance_cut = self._distance(prediction)
        complexity, complexity_cut = self._complexity(value)
        return Explained(
            input=item,
            output=str(prediction.output),
            action=str(decision.action),
            reason=decision.reason,
            certificate_id=decision.certificate_id,
            signal=self._signal,
            score=_known(score),
            threshold=_in_json(decision.threshold),
            group=_group(groups, request, prediction),
            grouped_by=None if groups is None else groups.by,
            groups=() if groups is None else tuple(groups.bounds),
            tenth=self._tenth(score),
            distance=distance,
            distance_cut=distance_cut,
            complexity=complexity,
            complexity_cut=_in_json(complexity_cut),
            signals={name: _known(score_of(prediction, name)) for name in SIGNALS},
            nearest_by=by,
            nearest=nearest,
            notes=self._notes + self._unseen(by, prediction),
        )

    def _distance(self, prediction: Prediction) -> tuple[float | None, float | None]:
        """Distance to the fitted neighbours, and its cut where they veto."""
        if self._fitted is None or self._fitted.neighbours is None or prediction.embedding is None:
            return None, None
        neighbours = self._fitted.neighbours
        return _known(neighbours.distance(prediction.embedding)), neighbours.cut if neighbours.vetoes else None

    def _complexity(self, value: Input) -> tuple[float | None, float | None]:
        """How complex a text is, and the cut."""
        if self._fitted is None or self._fitted.complexity is None or not isinstance(value, str):
            return None, None
        return self._fitted.complexity.score(value), self._fitted.complexity.cut

    def _tenth(self, score: float) -> int | None:
        """Written so that a score on a decile counts to the tenth below it, as it does not lie above."""
        deciles = () if self._certificate is None else self._certificate.score_deciles
        if not deciles or math.isnan(score):
            return None
        return 1 + sum(score > decile for decile in deciles)

    def _unseen(self, by: str | None, prediction: Prediction) -> tuple[str, ...]:
        """How to see more of the nearest items, where there is more to see."""
        if by is None or self._references.items is None:
            return (_HOW_TO_SEE,)
        return (_BY_EMBEDDING,) if by == "score" and prediction.embedding is not None else ()


def _group(groups: Groups | None, request: Request, prediction: Prediction) -> str | None:
    if groups is None:
        return None
    return str(prediction.output) if groups.by == BY_LABEL else request.attributes.get(groups.by)


class _Now:
    """The clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()


def _notes(certificate: Certificate | None, promise: Promise) -> Iterator[str]:
    """What the reader should know before he takes a decision for what a gateway would do."""
    if certificate is None:
        yield "There is no certificate, so every routed request is escalated. Issue one: edgewise certify BUNDLE."
        return
    if promise.certificate is None:
        yield (
            f"The certificate's stated life ended at {certificate.expires}, or this machine's clock is wrong; every "
            "routed request is escalated. Certify again: edgewise certify BUNDLE."
        )
    device = probe()
    here = (f"onnxruntime {device.onnxruntime}", device.isa)
    if here != (certificate.runtime, certificate.isa):
        yield (
            f"The certificate was issued with {certificate.runtime} on {certificate.isa}; this is {' on '.join(here)}, "
            "where scores may differ."
        )


def _signal(model: EdgeModel, certificate: Certificate | None) -> str:
    return model.bundle.core.signal if certificate is None else certificate.signal


def _known(value: float) -> float | None:
    """The value, or None for NaN, which JSON lacks."""
    return None if math.isnan(value) else float(value)


def _in_json(threshold: float | None) -> float | str | None:
    return str(threshold) if threshold is not None and math.isinf(threshold) else threshold
