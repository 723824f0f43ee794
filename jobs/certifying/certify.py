"""Certifying a bundle: its own answers against a reference cloud's on items that no choice has seen.

Owns the order of the steps and where the certificate is written. What is chosen and fitted before is `tuning`'s, what
the items prove is `proving`'s.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from edgewise.bundle import Bundle
from edgewise.contracts import Certificate, CloudClient, Output, Prediction, Progress, Reference
from edgewise.edge import probe
from edgewise.errors import DataError, InputError, OutputExistsError
from edgewise.files import write_atomically
from edgewise.jobs.answerers import runtime_of
from edgewise.jobs.asking import answers_of, read_recorded, reference_of
from edgewise.jobs.beside import certificate_beside, fitted_beside, load_certificate, record_beside, sharing
from edgewise.jobs.certifying.job import CertifyJob, check_job
from edgewise.jobs.certifying.opening import Work, open_work
from edgewise.jobs.certifying.proving import Proof, certified_point, prove, share_curve
from edgewise.jobs.certifying.tuning import Tuned, TuningRecord, asked_of, kept_record, tune, write_tuned
from edgewise.jobs.parts import Answered, Part, shared_note
from edgewise.jobs.plots import plot_operating_curve, require_plotting
from edgewise.jobs.pricing import cost_model
from edgewise.jobs.targets import CurveRow, disagreements, losses
from edgewise.router import certificate as certificates
from edgewise.router.certificate import TARGET_AGREEMENT
from edgewise.router.cost import Choice, Cost, cheapest
from edgewise.router.signals import COMBINED

_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Price:
    """What a request costs on average.

    Attributes:
        cheapest: The cheapest way that keeps the promise: the certified threshold, or only the cloud.
        cloud_only: If only the cloud is asked, and the edge not even first.
    """

    cheapest: Choice
    cloud_only: Cost


@dataclass(frozen=True)
class LocalAnswers:
    """What answering locally does to the certifying items, by their labels.

    Attributes:
        count: Items answered locally.
        lost: Of these, items that count against the edge.
        won: Of these, items that the edge alone gets right; under selective risk none count.
    """

    count: int
    lost: int
    won: int


@dataclass(frozen=True)
class Certified:
    """What a certifying run found.

    Attributes:
        certificate: The certificate.
        path: Where it was written.
        disagreements: Certifying items on which edge and cloud differ, answered locally or not; with groups, of those
            in a listed group. None where nothing was computed.
        local: What the local answers lose and win, by labels; None for agreement, and where nothing was computed.
        reused: It was there already and nothing was computed.
        tuning: What the tuning part showed, or None without one.
        curve: What would be certified at other bounds on the risk.
        price: What requests cost under the certificate, or None.
        plot: Where a picture of the operating curve was written, or None.
    """

    certificate: Certificate
    path: Path
    disagreements: int | None
    reused: bool
    tuning: TuningRecord | None = None
    curve: tuple[CurveRow, ...] = ()
    price: Price | None = None
    plot: Path | None = None
    local: LocalAnswers | None = None

    @property
    def goal_met(self) -> bool:
        """Whether anything may be answered locally; the certificate is written either way."""
        certificate = self.certificate
        bounds = [certificate.bound] if certificate.groups is None else certificate.groups.bounds.values()
        return any(bound.local_share > 0 for bound in bounds)


def certify_with_cloud(job: CertifyJob, cloud: CloudClient, progress: Progress) -> Certified:
    """Ask `cloud` about every item, compare with the bundle's answers, and write the certificate.

    Raises:
        TooFewItemsError: The data cannot certify anything; found out before the cloud is asked.
        CertificateError: The data was used to choose the bundle, tuning and certifying part share items, the cloud
            changed while it was asked, or the bundle behaves differently on this machine.
        CloudError: The cloud did not answer.
        OutputExistsError: The certificate exists and may neither be kept nor replaced.
        BundleError, DataError, ConfigError: The input cannot be used.
        MissingExtraError: A plot is asked for, and matplotlib is not installed.
    """
    return asyncio.run(_certify_with_cloud(job, cloud, progress))


async def _certify_with_cloud(job: CertifyJob, cloud: CloudClient, progress: Progress) -> Certified:
    try:
        _check(job)
        reference = await reference_of(cloud, timeout_s=job.timeout_s, wait_s=job.wait_s)
        work = _prepare(job, reference)
        if isinstance(work, Certified):
            return work
        progress.stage("Asking the cloud", len(work.asked))
        outputs = await answers_of(
            cloud,
            work.asked,
            reference,
            timeout_s=job.timeout_s,
            concurrency=job.concurrency,
            progress=progress,
            place=work.place_asked,
        )
    finally:
        await cloud.aclose()
    return _finish(job, work, outputs, progress)


def certify_with_predictions(
    job: CertifyJob, predictions: Path, progress: Progress, *, tuning_predictions: Path | None = None
) -> Certified:
    """Like `certify_with_cloud`, with the cloud's answers read from JSONL files; see `asking.read_recorded`.

    Args:
        job: The job.
        predictions: Answers to the certifying items, one line an item in the same order.
        progress: Where to say how far it is.
        tuning_predictions: Answers to the tuning items, where there are some.

    Raises:
        DataError: A file does not fit the data.
        TooFewItemsError, CertificateError, OutputExistsError, BundleError, ConfigError, MissingExtraError: As for a
            cloud.
    """
    _check(job)
    if (job.tuning is None) != (tuning_predictions is None):
        raise DataError(
            "The tuning part and the cloud's answers to it go together.",
            "Give both --tuning and --tuning-predictions, or ask a cloud with --cloud.",
        )
    outputs, reference = read_recorded(predictions)
    tuning_outputs: list[Output] = []
    if tuning_predictions is not None:
        tuning_outputs, other = read_recorded(tuning_predictions)
        _refuse_another(reference, other, tuning_predictions)
    work = _prepare(job, reference)
    if isinstance(work, Certified):
        return work
    _refuse_misfit(job.data, len(work.certifying.examples), outputs, predictions)
    if job.tuning is not None and tuning_predictions is not None:
        _refuse_misfit(job.tuning, work.tuning_given, tuning_outputs, tuning_predictions)
    tuned_on = [tuning_outputs[at] for at in work.tuning_places]
    return _finish(job, work, [*tuned_on, *outputs], progress)


def _check(job: CertifyJob) -> None:
    check_job(job)
    if job.plot is not None:
        require_plotting()


def _refuse_another(reference: Reference, other: Reference, path: Path) -> None:
    if other != reference:
        raise DataError(
            f"{path} holds answers of {other.name} {other.version}, not of {reference.name} {reference.version}.",
            "Give answers of one model and version for both parts.",
        )


def _refuse_misfit(data: Path, items: int, outputs: Sequence[Output], path: Path) -> None:
    if len(outputs) != items:
        raise DataError(
            f"{path} holds {len(outputs)} answers for the {items} items of {data}.",
            "Give one answer an item, in the same order.",
        )


def _prepare(job: CertifyJob, reference: Reference) -> Work | Certified:
    """The job's files, opened; or the certificate that it left before and may keep."""
    work = open_work(job, reference)
    out = _out(job)
    if out.exists() and not job.overwrite:
        kept = _kept(job, work, out)
        if kept is not None:
            return kept
    if job.tuning is not None:
        _refuse_sharing(job)
    if job.veto or job.complexity or job.signal == COMBINED:
        _refuse_replacing_fitted(job)
    work.model.check_golden()
    return work


def _refuse_sharing(job: CertifyJob) -> None:
    """Two certificates must not write one record and one fitted file."""
    out = _out(job)
    for other in sharing(out):
        raise OutputExistsError(
            f"What belongs to {out} would lie where that of {other} does: {record_beside(job.bundle, out).name} and "
            "the like.",
            "Name another --out.",
        )


def _refuse_replacing_fitted(job: CertifyJob) -> None:
    fitted = fitted_beside(job.bundle, job.out)
    if fitted.exists() and not (job.overwrite or job.cached):
        raise OutputExistsError(
            f"{fitted}, which another certificate may need, exists already.",
            "Name another --out, remove it, or replace it with --overwrite.",
        )


def _out(job: CertifyJob) -> Path:
    return job.out or certificate_beside(job.bundle)


def _kept(job: CertifyJob, work: Work, out: Path) -> Certified | None:
    """The existing certificate where it is this very job's; None for a stale one, where that may be replaced."""
    if not job.cached:
        raise OutputExistsError(
            f"The certificate {out} exists already.", "Name another --out, or replace it with --overwrite."
        )
    found = load_certificate(out)
    record = None
    signal, fitted_digest = job.signal or work.default_signal, None
    if work.tuning is not None:
        record = kept_record(job.bundle, out, asked_of(job, work.tuning, work.model.digest, work.reference, work.judge))
        if record is None:
            return None
        signal, fitted_digest = record.signal, record.fitted_digest
    wanted = (
        work.model.digest, job.target, signal, fitted_digest, work.certifying.digest, work.reference,
        job.group_by, frozenset(work.groups), _life(job), *_machine(work.model.bundle), work.judge,
    )  # fmt: skip
    have = (
        found.model_digest, found.target, found.signal, found.fitted_digest, found.data_digest, found.reference,
        found.groups.by if found.groups else None, frozenset(found.groups.bounds if found.groups else ()),
        _life_of(found), found.runtime, found.isa, found.judge,
    )  # fmt: skip
    drawn = job.plot is None or job.plot.exists()
    promised = (found.bound.alpha, found.bound.delta) == (job.alpha, job.delta / max(len(work.groups), 1))
    if have == wanted and promised and drawn:
        return Certified(found, out, None, reused=True, tuning=record, plot=job.plot)
    return None


def _life(job: CertifyJob) -> timedelta | None:
    return None if job.valid_days is None else timedelta(seconds=round(86_400 * job.valid_days))


def _life_of(certificate: Certificate) -> timedelta | None:
    if certificate.expires is None:
        return None
    return datetime.fromisoformat(certificate.expires) - datetime.fromisoformat(certificate.created)


def _finish(job: CertifyJob, work: Work, outputs: Sequence[Output], progress: Progress) -> Certified:
    """Ask the edge model, tune, prove, and write everything, the certificate last."""
    progress.stage("Asking the edge model", len(work.asked))
    tuned, split = None, 0
    if work.tuning is not None:
        split = len(work.tuning.examples)
        answered = _answered(work, work.tuning, outputs[:split], progress)
        tuned = tune(job, answered, work.model, work.reference, default=work.default_signal, judge=work.judge)
    began = time.perf_counter()
    answered = _answered(work, work.certifying, outputs[split:], progress)
    edge_ms = 1000 * (time.perf_counter() - began) / len(answered.edge)
    signal = tuned.record.signal if tuned else job.signal or work.default_signal
    proof = prove(job, answered, signal, tuned, work.groups, labelled=work.labelled)
    certificate = _issued(job, work, proof, signal, tuned)
    picture = _picture(job, answered, proof, labelled=work.labelled)
    if tuned is not None:
        if tuned.fitted_bytes is not None:
            _refuse_replacing_fitted(job)
        write_tuned(job.bundle, _out(job), tuned, keep_texts=job.keep_texts)
    if job.plot is not None and picture is not None:
        write_atomically(job.plot, picture)
    write_atomically(_out(job), certificates.encode(certificate))
    _note(work, answered, tuned, progress)
    differ = disagreements(answered)
    return Certified(
        certificate,
        _out(job),
        int((differ if proof.listed is None else differ[proof.listed]).sum()),
        reused=False,
        tuning=tuned.record if tuned else None,
        curve=proof.curve,
        price=_price(job, proof, edge_ms),
        plot=job.plot,
        local=_local_answers(job, answered, proof),
    )


def _local_answers(job: CertifyJob, answered: Answered, proof: Proof) -> LocalAnswers | None:
    if job.target == TARGET_AGREEMENT:
        return None
    lost = losses(job.target, answered)[proof.scores > proof.bound.threshold]
    return LocalAnswers(len(lost), int((lost > 0).sum()), int((lost < 0).sum()))


def _answered(work: Work, part: Part, cloud: Sequence[Output], progress: Progress) -> Answered:
    predictions: list[Prediction] = []
    for at, example in enumerate(part.examples):
        try:
            predictions.append(work.model.predict_one(example.input))
        except InputError as e:
            raise DataError(f"{work.place(part, at)}: {e.problem}", e.remedy) from e
        progress.advance()
    return Answered(part, predictions, list(cloud), work.agree)


def _issued(job: CertifyJob, work: Work, proof: Proof, signal: str, tuned: Tuned | None) -> Certificate:
    runtime, isa = _machine(work.model.bundle)
    created = datetime.now(UTC).replace(microsecond=0)
    life = _life(job)
    return certificates.issue(
        proof.bound,
        model_digest=work.model.digest,
        signal=signal,
        data_digest=work.certifying.digest,
        reference=work.reference,
        created=created.strftime(_TIME),
        runtime=runtime,
        isa=isa,
        target=job.target,
        expires=None if life is None else (created + life).strftime(_TIME),
        fitted_digest=tuned.record.fitted_digest if tuned else None,
        groups=proof.groups,
        score_deciles=proof.deciles,
        out_of_distribution_share=proof.unscored_share,
        judge=work.judge,
    )


def _price(job: CertifyJob, proof: Proof, edge_ms: float) -> Price | None:
    if job.cost is None or proof.groups is not None:
        return None
    model = cost_model(job.cost, edge_ms=edge_ms)
    tokens = job.cost.tokens
    choice = cheapest(proof.bound, proof.scores, model, tokens=np.full(len(proof.scores), tokens))
    return Price(choice, model.cloud_only(tokens=tokens))


def _picture(job: CertifyJob, answered: Answered, proof: Proof, *, labelled: bool) -> bytes | None:
    if job.plot is None:
        return None
    points = share_curve(answered, proof.scores, labelled=labelled)
    return plot_operating_curve(
        points,
        certified_point(points, proof),
        proof.bound,
        measure="accuracy" if labelled else "agreement with the cloud",
        form=job.plot.suffix.lower().removeprefix("."),
    )


def _note(work: Work, answered: Answered, tuned: Tuned | None, progress: Progress) -> None:
    """Say what is no error and yet not as it looks."""
    part, shared = work.certifying, work.tuning_given - len(work.tuning_places)
    if work.tuning is not None and shared:
        progress.note(shared_note(work.tuning.path, part.path, shared))
    complexity = tuned.fitted.complexity if tuned is not None and tuned.fitted is not None else None
    if complexity is not None and math.isinf(complexity.cut):
        progress.note("note: no tuning text looks hopeless enough, so --complexity will escalate none.")
    core = work.model.bundle.core
    if core.kind == "classifier" and not set(answered.cloud) & set(core.labels):
        progress.note(
            f"note: edge and cloud share no label: the cloud answers {answered.cloud[0]!r}, the edge "
            f"{answered.edge[0].output!r}. They differ on every item unless both name their labels alike."
        )
    if part.repeated:
        progress.note(
            f"note: {part.repeated} of the {len(part.examples)} certifying items repeat an earlier one, and the proof "
            "takes all for drawn independently. Remove the copies unless your requests repeat like that."
        )


def _machine(bundle: Bundle) -> tuple[str, str]:
    return runtime_of(bundle), probe().isa
