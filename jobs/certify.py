"""Certifying a bundle: its own answers against a reference cloud's on items that no choice has seen.

Owns the order of the steps and where the certificate is written. The mathematics is `router.certificate`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.bundle import Bundle
from edgewise.contracts import (
    Certificate,
    CloudClient,
    CloudReply,
    Example,
    Output,
    Prediction,
    Progress,
    Reference,
    Request,
)
from edgewise.dataset import digest_examples, digest_items, load_examples
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError, DataError, OutputExistsError, TooFewItemsError
from edgewise.files import write_atomically
from edgewise.jobs.asking import ask_all, reference_of
from edgewise.router import certificate as certificates
from edgewise.router.certificate import certify, items_needed
from edgewise.router.signals import score_of, signal_named

_CHOSEN_ON = {"measurement": "tuning", "gate": "gate"}
"""Attestations that name the data behind a choice, and which part it is."""


@dataclass(frozen=True)
class CertifyJob:
    """What to certify, on what, and how strictly.

    Attributes:
        bundle: The bundle.
        data: Certifying items; labels are not needed.
        alpha: Bound on the risk, in (0, 1).
        delta: Probability with which the bound may fail, in (0, 1).
        signal: Name of the score; None takes the bundle's.
        out: Where the certificate goes; None takes the file beside the bundle.
        concurrency: Cloud calls at the same time.
        timeout_s: Longest one cloud call may take.
        wait_s: Longest to wait for a cloud that is still starting.
        text_field: Field of the text in the data file.
        cached: Keep a certificate that was issued for exactly this job.
        overwrite: Replace a certificate that exists.
    """

    bundle: Path
    data: Path
    alpha: float
    delta: float
    signal: str | None = None
    out: Path | None = None
    concurrency: int = 4
    timeout_s: float = 30.0
    wait_s: float = 0.0
    text_field: str = "text"
    cached: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Certified:
    """What a certifying run found.

    Attributes:
        certificate: The certificate.
        path: Where it was written.
        disagreements: Certifying items on which edge and cloud differ, answered locally or not.
        reused: It was there already and nothing was computed.
    """

    certificate: Certificate
    path: Path
    disagreements: int | None
    reused: bool


def certificate_beside(bundle: Path) -> Path:
    """Where the certificate of a bundle lives unless told otherwise."""
    return bundle.parent / f"{bundle.resolve().name}.certificate.json"


def load_certificate(path: Path) -> Certificate:
    """Read a certificate.

    Raises:
        CertificateError: There is none, or it was changed after it was issued.
    """
    try:
        return certificates.decode(path.read_bytes())
    except OSError as error:
        raise CertificateError(
            f"The certificate {path} cannot be read: {error.strerror}.", "Issue one: edgewise certify BUNDLE."
        ) from error


def certify_with_cloud(job: CertifyJob, cloud: CloudClient, progress: Progress) -> Certified:
    """Ask `cloud` about every item, compare with the bundle's answers, and write the certificate.

    Raises:
        TooFewItemsError: The data cannot certify anything; found out before the cloud is asked.
        CertificateError: The data was used to choose the bundle, the cloud changed while it was asked, or the bundle
            behaves differently on this machine.
        CloudError: The cloud did not answer.
        OutputExistsError: The certificate exists and may neither be kept nor replaced.
        BundleError, DataError, ConfigError: The input cannot be used.
    """
    return asyncio.run(_certify_with_cloud(job, cloud, progress))


async def _certify_with_cloud(job: CertifyJob, cloud: CloudClient, progress: Progress) -> Certified:
    try:
        reference = await reference_of(cloud, timeout_s=job.timeout_s, wait_s=job.wait_s)
        work = _prepare(job, reference)
        if isinstance(work, Certified):
            return work
        progress.stage("Asking the cloud", len(work.examples))

        async def ask(example: Example) -> CloudReply:
            reply = await cloud.predict(Request(inputs=example.input), timeout_s=job.timeout_s)
            _check_constant(reference, reply.reference)
            return reply

        replies = await ask_all(work.examples, ask, concurrency=job.concurrency, progress=progress)
    finally:
        await cloud.aclose()
    return _issue(job, work, [reply.output for reply in replies], progress)


def certify_with_predictions(job: CertifyJob, predictions: Path, progress: Progress) -> Certified:
    """Like `certify_with_cloud`, with the cloud's answers read from a JSONL file.

    Each line answers the data item of the same position: {"output", "model", "model_version"}; the last two name the
    reference and must be the same in every line.

    Raises:
        DataError: The file does not fit the data.
        TooFewItemsError, CertificateError, OutputExistsError, BundleError, ConfigError: As for a cloud.
    """
    outputs, reference = _read_predictions(predictions)
    work = _prepare(job, reference)
    if isinstance(work, Certified):
        return work
    if len(outputs) != len(work.examples):
        raise DataError(
            f"{predictions} holds {len(outputs)} answers for the {len(work.examples)} items of {job.data}.",
            "Give one answer an item, in the same order.",
        )
    return _issue(job, work, outputs, progress)


@dataclass(frozen=True)
class _Work:
    """A job with its files opened and checked."""

    model: EdgeModel
    examples: list[Example]
    data_digest: str
    reference: Reference
    signal: str
    out: Path


def _prepare(job: CertifyJob, reference: Reference) -> _Work | Certified:
    model = EdgeModel.load(job.bundle)
    examples = load_examples(job.data, text_field=job.text_field)
    needed = items_needed(job.alpha, job.delta)
    if len(examples) < needed:
        raise TooFewItemsError(len(examples), needed, job.alpha, job.delta)
    _refuse_chosen_on(job.data, examples, model.bundle)
    _refuse_without_score(model)
    signal = job.signal or model.bundle.core.signal
    signal_named(signal)
    work = _Work(
        model, examples, digest_examples(examples), reference, signal, job.out or certificate_beside(job.bundle)
    )
    if work.out.exists() and not job.overwrite:
        return _kept(job, work)
    model.check_golden()
    return work


def _refuse_without_score(model: EdgeModel) -> None:
    if not model.labels:
        raise CertificateError(
            f"The bundle does {model.task}; its answers carry no logits, so nothing tells which of them to trust.",
            "Certify a bundle that gives labels, or serve this one with --mode edge_only or cloud_only.",
        )


def _refuse_chosen_on(data: Path, examples: Sequence[Example], bundle: Bundle) -> None:
    """Refuse the parts that the bundle's own attestations name: a choice that has seen an item may owe itself to it."""
    digests = {digest_examples(examples), digest_items(examples)}
    for attestation in bundle.attestations():
        named = {attestation.payload.get("data_digest"), attestation.payload.get("items_digest")}
        if attestation.kind in _CHOSEN_ON and digests & named:
            raise CertificateError(
                f"The certifying items {data} are the {_CHOSEN_ON[attestation.kind]} part, which was used to choose "
                "this bundle.",
                "A certificate holds only for items that no choice has seen: certify on other items, drawn at random.",
            )


def _kept(job: CertifyJob, work: _Work) -> Certified | _Work:
    """The existing certificate where it is this very job's; a stale one is issued again where that is allowed."""
    if not job.cached:
        raise OutputExistsError(
            f"The certificate {work.out} exists already.", "Name another --out, or replace it with --overwrite."
        )
    found = load_certificate(work.out)
    wanted = (work.model.digest, work.signal, work.data_digest, work.reference, job.alpha, job.delta, *_machine())
    have = (found.model_digest, found.signal, found.data_digest, found.reference, found.bound.alpha, found.bound.delta)
    if (*have, found.runtime, found.isa) == wanted:
        return Certified(found, work.out, None, reused=True)
    work.model.check_golden()
    return work


def _issue(job: CertifyJob, work: _Work, cloud_outputs: Sequence[Output], progress: Progress) -> Certified:
    progress.stage("Asking the edge model", len(work.examples))
    predictions = [_predicted(work.model, example, progress) for example in work.examples]
    scores = edge_scores(predictions, work.signal)
    disagree = np.array([edge.output != cloud for edge, cloud in zip(predictions, cloud_outputs, strict=True)])
    runtime, isa = _machine()
    certificate = certificates.issue(
        certify(scores, disagree, alpha=job.alpha, delta=job.delta),
        model_digest=work.model.digest,
        signal=work.signal,
        data_digest=work.data_digest,
        reference=work.reference,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        runtime=runtime,
        isa=isa,
    )
    write_atomically(work.out, certificates.encode(certificate))
    return Certified(certificate, work.out, int(disagree.sum()), reused=False)


def _predicted(model: EdgeModel, example: Example, progress: Progress) -> Prediction:
    prediction = model.predict_one(example.input)
    progress.advance()
    return prediction


def edge_scores(predictions: Sequence[Prediction], signal: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scores of predictions, each as the router has it, shape (n,); NaN where a prediction has none.

    Raises:
        ConfigError: There is no such signal.
    """
    return np.array([score_of(prediction, signal) for prediction in predictions], dtype=np.float64)


def _machine() -> tuple[str, str]:
    device = probe()
    return f"onnxruntime {device.onnxruntime}", device.isa


def _check_constant(reference: Reference, answered: Reference) -> None:
    if answered != reference:
        raise CertificateError(
            f"The cloud changed from {reference.name} {reference.version} to {answered.name} {answered.version} "
            "meanwhile.",
            "Certify again against one version.",
        )


class _PredictedLine(msgspec.Struct):
    output: str
    model: str
    model_version: str


def _read_predictions(path: Path) -> tuple[list[Output], Reference]:
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"The predictions {path} cannot be read: {error.strerror}.", "Check the path.") from error
    rows = [_predicted_line(path, number, line) for number, line in enumerate(lines, start=1)]
    references = {Reference(row.model, row.model_version) for row in rows}
    if len(references) != 1:
        raise DataError(f"{path} names {len(references)} references.", "Give answers of exactly one model and version.")
    return [row.output for row in rows], references.pop()


def _predicted_line(path: Path, number: int, line: bytes) -> _PredictedLine:
    try:
        return msgspec.json.decode(line, type=_PredictedLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}, line {number}: {error}.", 'Write lines like {"output": …, "model": …, "model_version": …}.'
        ) from error
