"""The plan from its parts to its folder: ask the cloud once, ask every candidate, choose, certify, write.

    PLAN/bundle/                    the chosen candidate, `PLAN/bundle.certificate.json` beside it: ready to serve
    PLAN/plan.json                  every figure
    PLAN/report.html                the same for people
    PLAN/run/                       where a checkpoint was planned for: the run that made its candidates

Owns the order of the steps and what is written. What is compared and chosen is `choice.py`'s, what there is to choose
from `options.py`'s. Nothing appears before all of it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgewise.bundle import Bundle, attach
from edgewise.config import CostSection
from edgewise.contracts import Certificate, CloudClient, Output, Progress, Reference
from edgewise.dataset import place_of
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError, ConfigError, DataError, InputError
from edgewise.files import copy_tree, staged_directory, write_atomically
from edgewise.jobs.asking import answers_of, check_constant, read_recorded, reference_of
from edgewise.jobs.beside import certificate_beside, fitted_beside
from edgewise.jobs.certifying.proving import Proof
from edgewise.jobs.parts import PLANNED, Answered, Part
from edgewise.jobs.planning.choice import Choice, Evidence, choose, compare
from edgewise.jobs.planning.job import PlanJob, check_job
from edgewise.jobs.planning.opening import Work, check_candidates, open_work
from edgewise.jobs.planning.options import Candidates, candidates_of_run
from edgewise.jobs.planning.practices import practices
from edgewise.jobs.planning.result import result
from edgewise.jobs.pricing import Costs
from edgewise.jobs.report import rebuild_report
from edgewise.jobs.targets import losses
from edgewise.quantize import QuantizeJob, quantize
from edgewise.quantize.joint import PLAN, JointPlan, encode_plan
from edgewise.quantize.page import PAGE, render_page, render_plan
from edgewise.router import certificate as certificates
from edgewise.router import fitted as fits
from edgewise.router.certificate import TARGET_AGREEMENT
from edgewise.router.combination import fit_combination
from edgewise.router.fitted import Fitted
from edgewise.router.signals import COMBINED

BUNDLE = "bundle"
RUN = "run"


@dataclass(frozen=True)
class Planned:
    """A finished plan.

    Attributes:
        plan: What was found out.
        out: Its folder.
        certificate: What is proved of the choice.
    """

    plan: JointPlan
    out: Path
    certificate: Certificate

    @property
    def bundle(self) -> Path:
        """The chosen bundle, its certificate beside it: ready to serve."""
        return self.out / BUNDLE

    @property
    def goal_met(self) -> bool:
        """Whether anything is answered at the edge under the promise, and for less than the cloud alone."""
        return self.plan.outcome == "planned"


def plan_with_cloud(job: PlanJob, section: CostSection, cloud: CloudClient, progress: Progress) -> Planned:
    """Ask `cloud` once about every item, compare all recipes and signals, certify the choice, and write the plan.

    A plan that answers nothing at the edge is a result like any other: everything is saved.

    Raises:
        CertificateError: There are too few certifying items, they were used to choose the candidates or are shared by
            the parts, the cloud changed while it was asked, or a bundle behaves differently on this machine.
        CloudError: The cloud did not answer.
        OutputExistsError: The plan's folder exists.
        BundleError, DataError, ConfigError, InputError: The input cannot be used.
    """
    check_job(job)
    Costs(section, cloud_ms=0.0)  # a configuration that cannot be used is found out before anything is asked
    reference, work, outputs, cloud_ms = asyncio.run(_asked(job, cloud, progress))
    return _finish(job, work, outputs, reference, Costs(section, cloud_ms), progress)


def plan_with_predictions(
    job: PlanJob,
    section: CostSection,
    predictions: Path,
    progress: Progress,
    *,
    tuning_predictions: Path | None = None,
) -> Planned:
    """Like `plan_with_cloud`, with the cloud's answers read from JSONL files.

    Each line answers the item of the same position: {"output", "model", "model_version"}.

    Args:
        job: What to plan for.
        section: What answers cost.
        predictions: Answers to the items of `job.data`.
        progress: Told of stages and steps.
        tuning_predictions: Answers to those of `job.tuning`, by the same model and version.

    Raises:
        DataError: A file does not fit its items.
        CertificateError, OutputExistsError, BundleError, ConfigError, InputError: As for a cloud.
    """
    check_job(job)
    costs = Costs(section)
    if (job.tuning is None) != (tuning_predictions is None):
        raise ConfigError(
            "A tuning part and its recorded answers go together.",
            "Give both --tuning and --tuning-predictions, or none.",
        )
    outputs, reference = read_recorded(predictions)
    work = open_work(job, progress)
    before: list[Output] = []
    if tuning_predictions is not None:
        before, other = read_recorded(tuning_predictions)
        check_constant(reference, other)
    first = 0 if job.tuning is None else len(work.asked) - len(work.certifying.places)
    for path, given, items in ((tuning_predictions, before, first), (predictions, outputs, len(work.asked) - first)):
        if len(given) != items:
            raise DataError(
                f"{path} holds {len(given)} answers for {items} items.", "Give one answer an item, in the same order."
            )
    return _finish(job, work, [*before, *outputs], reference, costs, progress)


def _place(job: PlanJob, work: Work, at: int) -> str:
    """Where one of the items that are asked about stands in its file."""
    if job.tuning is None:
        return place_of(job.data, at)
    first = len(work.asked) - len(work.certifying.places)
    return place_of(job.tuning, at) if at < first else place_of(job.data, at - first)


async def _asked(job: PlanJob, cloud: CloudClient, progress: Progress) -> tuple[Reference, Work, list[Output], float]:
    """The cloud's answers, and how many milliseconds one took."""
    try:
        reference = await reference_of(cloud, timeout_s=job.timeout_s, wait_s=job.wait_s)
        work = open_work(job, progress)
        progress.stage("Asking the cloud", len(work.asked))
        started = time.perf_counter()
        outputs = await answers_of(
            cloud,
            work.asked,
            reference,
            timeout_s=job.timeout_s,
            concurrency=job.concurrency,
            progress=progress,
            place=lambda at: _place(job, work, at),
        )
        elapsed_ms = 1e3 * (time.perf_counter() - started)
    finally:
        await cloud.aclose()
    # By Little's law, since as many calls were under way all the time.
    return reference, work, outputs, elapsed_ms * min(job.concurrency, len(work.asked)) / len(work.asked)


def _finish(
    job: PlanJob, work: Work, outputs: Sequence[Output], reference: Reference, costs: Costs, progress: Progress
) -> Planned:
    """Ask the edge, choose, certify, write."""
    with staged_directory(job.place) as folder:
        candidates = work.candidates or _quantized(job, work, folder / RUN, progress)
        evidence = [
            _evidence(name, bundle, candidates.edge_ms[name], work, outputs, job.target, progress)
            for name, bundle in candidates.bundles.items()
        ]
        pairs = compare(evidence, job)
        choice = choose(pairs, job, costs.price)
        others = practices(
            choice, pairs, job, costs.price, baseline=candidates.baseline, most_accurate=candidates.most_accurate
        )
        fitted = _fitted_of(choice)
        certificate = _issue(choice, job, work.certifying.part, reference, fitted)
        plan = result(job, work, choice, costs, certificate, others)
        _write(folder, plan, candidates, certificate, fitted)
        attach(folder / BUNDLE, PLANNED, {"chosen_on": list(work.chosen_on), "pay": job.pay})
        if work.candidates is None:
            _show_in_run(folder / RUN, plan, progress)
    if work.candidates is not None and candidates.report is not None:
        _show_in_run(job.model, plan, progress)
    return Planned(plan, job.place, certificate)


def _quantized(job: PlanJob, work: Work, out: Path, progress: Progress) -> Candidates:
    """The candidates of a checkpoint, made now."""
    wanted = QuantizeJob(
        job.model,
        work.tuning.part.path,
        out,
        recipes=job.recipes,
        text_field=job.text_field,
        label_field=job.label_field,
    )
    quantize(wanted, progress)
    candidates = candidates_of_run(out, ())
    check_candidates(job, candidates, work.certifying.part, work)
    return candidates


def _evidence(
    name: str,
    bundle: Bundle,
    edge_ms: float,
    work: Work,
    outputs: Sequence[Output],
    target: str,
    progress: Progress,
) -> Evidence:
    """What a candidate answers to both parts, by the path that serves."""
    model = EdgeModel.from_bundle(bundle)
    tuning, certifying = (
        _answered(name, model, drawn.part, [outputs[at] for at in drawn.places], progress)
        for drawn in (work.tuning, work.certifying)
    )
    return Evidence(
        name=name,
        model_digest=bundle.model_digest,
        size_bytes=bundle.size_bytes,
        edge_ms=edge_ms,
        signal=bundle.core.signal,
        fitted=_combined(tuning) if target == TARGET_AGREEMENT else None,
        tuning=tuning,
        certifying=certifying,
    )


def _answered(name: str, model: EdgeModel, part: Part, outputs: list[Output], progress: Progress) -> Answered:
    progress.stage(f"Asking {name}", len(part.examples))
    predictions = []
    for example in part.examples:
        predictions.append(model.predict_one(example.input))
        progress.advance()
    return Answered(part, predictions, outputs)


def _combined(tuning: Answered) -> Fitted | None:
    """The combined signal as this candidate's tuning answers give it; None where they give none."""
    try:
        combination = fit_combination(tuning.edge, losses(TARGET_AGREEMENT, tuning) > 0)
    except CertificateError:
        return None
    # Read back, so that what is certified with is what the file will give.
    return fits.decode(fits.encode(Fitted(combination=combination)))


def _fitted_of(choice: Choice) -> bytes | None:
    """What decides with the chosen signal, as it lies beside the bundle."""
    fitted = choice.pair.evidence.fitted
    return fits.encode(fitted) if fitted is not None and choice.pair.signal == COMBINED else None


def _issue(choice: Choice, job: PlanJob, certifying: Part, reference: Reference, fitted: bytes | None) -> Certificate:
    device, pair = probe(), choice.pair
    proof = Proof(choice.bound, None, (), pair.evidence.scores(pair.signal))
    return certificates.issue(
        choice.bound,
        target=job.target,
        model_digest=pair.evidence.model_digest,
        signal=pair.signal,
        data_digest=certifying.digest,
        reference=reference,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        runtime=f"onnxruntime {device.onnxruntime}",
        isa=device.isa,
        fitted_digest=None if fitted is None else fits.digest(fitted),
        score_deciles=proof.deciles,
        out_of_distribution_share=proof.unscored_share,
    )


def _write(
    folder: Path, plan: JointPlan, candidates: Candidates, certificate: Certificate, fitted: bytes | None
) -> None:
    bundle = folder / BUNDLE
    copy_tree(candidates.bundles[plan.choice.recipe].path, bundle)
    if fitted is not None:
        fitted_beside(bundle).write_bytes(fitted)
    certificate_beside(bundle).write_bytes(certificates.encode(certificate))
    (folder / PLAN).write_bytes(encode_plan(plan))
    page = render_plan(plan) if candidates.report is None else render_page(candidates.report, plan)
    (folder / PAGE).write_text(page, encoding="utf-8")


def _show_in_run(run: Path, plan: JointPlan, progress: Progress) -> None:
    """Put the plan into the report of the run that it was made from; the plan itself stands without."""
    try:
        write_atomically(run / PLAN, encode_plan(plan))
        rebuild_report(run)
    except (OSError, InputError) as error:
        progress.note(f"The report of {run} does not show the plan: {error}")
