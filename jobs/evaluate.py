"""Evaluating a running gateway on labelled items: its answers, the edge model's and the cloud's, side by side.

Owns the traffic and the files it leaves (summary and plot). What the answers amount to is `router.evaluation`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np

from edgewise.bundle import Bundle, kind_of
from edgewise.cloud.clients.http import checked_url
from edgewise.contracts import (
    Action,
    Answer,
    Certificate,
    CloudClient,
    CloudReply,
    Example,
    Output,
    Progress,
    Reason,
    Reference,
    Request,
    Source,
)
from edgewise.dataset import load_examples, require_labels
from edgewise.edge import EdgeModel
from edgewise.errors import (
    CertificateError,
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
)
from edgewise.files import refuse_existing, write_atomically
from edgewise.jobs.asking import ask_all, reference_of, until_ready
from edgewise.jobs.beside import certificate_beside, load_certificate, load_fitted
from edgewise.jobs.plots import plot_operating_curve, require_plotting
from edgewise.jobs.scoring import served_scores
from edgewise.router.certificate import (
    TARGET_ACCURACY,
    TARGET_AGREEMENT,
    TARGET_SELECTIVE,
    check_model,
    unsurprising_violations,
)
from edgewise.router.evaluation import CurvePoint, Routed, evaluate, is_local, operating_curve
from edgewise.wire import native

SUMMARY = "summary.json"
PLOT = "operating_curve.png"


@dataclass(frozen=True)
class EvaluateJob:
    """What to evaluate and on what.

    Attributes:
        bundle: The bundle the gateway serves.
        gateway: URL of the gateway.
        data: Labelled items that nothing was chosen or certified on.
        out: Folder for `summary.json` and `operating_curve.png`.
        certificate: Path of the certificate; None takes the file beside the bundle.
        concurrency: Requests to the gateway at the same time.
        timeout_s: Longest one request may take.
        wait_s: Longest to wait for a gateway or cloud that is still starting.
        text_field: Field of the text in the data file.
        label_field: Field of the label in the data file.
        api_key: Key of the gateway, or None.
        overwrite: Replace a summary that exists.
        since: Unix time that `wall_s` counts from; None counts from the start of this job.
    """

    bundle: Path
    gateway: str
    data: Path
    out: Path
    certificate: Path | None = None
    concurrency: int = 1
    timeout_s: float = 30.0
    wait_s: float = 0.0
    text_field: str = "text"
    label_field: str = "label"
    api_key: str | None = None
    overwrite: bool = False
    since: float | None = None


class Summary(Routed, frozen=True, kw_only=True):
    """Everything an evaluation found, as `summary.json` holds it.

    Attributes:
        target: What the certificate bounds: "agreement", "accuracy" or "selective" risk.
        risk: That risk as seen on these items: `local_disagreement`, `local_accuracy_loss` or `wrong_given_local`.
        alpha: The certificate's bound on it.
        delta: The probability with which that bound may fail.
        threshold: The certified threshold, as text where it is infinite.
        n_certify: Items the certificate rests on.
        n_test: Items evaluated.
        local_disagreements: Items behind `local_disagreement`.
        unsurprising_up_to: As many would be no surprise (5 %) at a risk of exactly alpha: a count scatters. None where
            something else than agreement is bounded.
        bundle_bytes: Size of the bundle's core.
        checkpoint_bytes: Size of the fp32 weights it was made from; None where the bundle does not say.
        wall_s: Seconds, see `EvaluateJob.since`.
    """

    target: str
    risk: float
    alpha: float
    delta: float
    threshold: float | str
    n_certify: int
    n_test: int
    local_disagreements: int
    unsurprising_up_to: int | None
    bundle_bytes: int
    checkpoint_bytes: int | None
    wall_s: float


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and the files it wrote."""

    summary: Summary
    summary_path: Path
    plot_path: Path


def evaluate_gateway(job: EvaluateJob, cloud: CloudClient, progress: Progress) -> Evaluated:
    """Send every item through the gateway, ask edge model and cloud alone as well, and write summary and plot.

    A summary speaks of one certificate, so every answer must be one that the certificate speaks of.

    Raises:
        CertificateError: The certificate is missing or not this bundle's, or gateway or cloud answer as something that
            it was not issued for.
        CloudError: The gateway or the cloud did not answer.
        BundleError, DataError, ConfigError: The input cannot be used.
        MissingExtraError: Plots are not installed.
        OutputExistsError: There is a summary and it may not be replaced.
    """
    started = time.time() if job.since is None else job.since
    _refuse_texts(job.bundle)
    require_plotting()
    url = checked_url(job.gateway, whose="gateway", key="--gateway-key-env")
    if not job.overwrite:
        refuse_existing(job.out / SUMMARY)
    examples = load_examples(job.data, text_field=job.text_field, label_field=job.label_field)
    labels = require_labels(examples, job.data)
    model = EdgeModel.load(job.bundle)
    certificate = load_certificate(job.certificate or certificate_beside(job.bundle))
    check_model(certificate, model.digest, certificate.fitted_digest)
    fitted = load_fitted(job.bundle, certificate, issued=job.certificate)
    gateway = _GatewayClient(job, url, certificate)
    answers, waited_ms, cloud_outputs = asyncio.run(_ask_both(job, gateway, cloud, examples, progress))
    progress.stage("Asking the edge model", len(examples))
    predictions = []
    for example in examples:
        predictions.append(model.predict_one(example.input))
        progress.advance()
    edge_outputs = [prediction.output for prediction in predictions]
    routed = evaluate(answers, waited_ms, labels=labels, edge_outputs=edge_outputs, cloud_outputs=cloud_outputs)
    curve = operating_curve(
        served_scores(examples, predictions, certificate.signal, fitted),
        _correct(edge_outputs, labels),
        _correct(cloud_outputs, labels),
    )
    return _write(job, model.bundle, certificate, routed, curve, len(examples), started)


def _refuse_texts(bundle: Path) -> None:
    if kind_of(bundle) == "generator":
        raise ConfigError(
            f"The bundle {bundle} is a language model, and evaluate compares labels.",
            "Hold its texts to the cloud's with edgewise certify --judge; edgewise chat shows single answers.",
        )


async def _ask_both(
    job: EvaluateJob, gateway: _GatewayClient, cloud: CloudClient, examples: Sequence[Example], progress: Progress
) -> tuple[list[Answer], list[float], list[Output]]:
    certificate = gateway.certificate
    try:
        _check_reference(certificate, await reference_of(cloud, timeout_s=job.timeout_s, wait_s=job.wait_s))
        async with gateway:
            await until_ready(gateway.check_ready, wait_s=job.wait_s)
            progress.stage("Asking the gateway", len(examples))
            timed = await ask_all(examples, gateway.ask, concurrency=job.concurrency, progress=progress)
        progress.stage("Asking the cloud alone", len(examples))

        async def ask(example: Example) -> CloudReply:
            reply = await cloud.predict(Request(inputs=example.input), timeout_s=job.timeout_s)
            _check_reference(certificate, reply.reference)
            return reply

        replies = await ask_all(examples, ask, concurrency=4, progress=progress)
    finally:
        await cloud.aclose()
    return [answer for answer, _ in timed], [waited for _, waited in timed], [reply.output for reply in replies]


def _check_reference(certificate: Certificate, found: Reference) -> None:
    issued = certificate.reference
    if found != issued:
        raise CertificateError(
            f"The cloud is {found.name} {found.version}; certificate {certificate.id} was issued against "
            f"{issued.name} {issued.version}.",
            "Point --cloud at that one, or certify against this one: edgewise certify BUNDLE.",
        )


def check_answer(answer: Answer, certificate: Certificate, gateway: str) -> None:
    """Refuse an answer that a gateway under this certificate would not give.

    Args:
        answer: The answer; a cached one keeps the model and the decision it was computed with.
        certificate: The certificate that is evaluated.
        gateway: The gateway's URL, for messages.

    Raises:
        CertificateError: It comes from another bundle, under another certificate or none, or from another cloud.
    """
    decision, who = answer.decision, f"The gateway {gateway}"
    cached_local = answer.source is Source.CACHE and decision.action is Action.LOCAL
    from_edge = answer.source is Source.EDGE or cached_local
    if from_edge and answer.model_digest != certificate.model_digest:
        raise CertificateError(
            f"{who} answers with the bundle {answer.model_digest}; evaluated is {certificate.model_digest}.",
            "Serve this bundle there, or name the bundle that it serves.",
        )
    if is_local(answer) and decision.certificate_id != certificate.id:
        held = f"certificate {decision.certificate_id}" if decision.certificate_id else "no certificate"
        raise CertificateError(
            f"{who} answers alone under {held} (reason {decision.reason}); evaluated is certificate {certificate.id}.",
            "Serve with this certificate in the mode guarded or speculative, or name the one that it serves with.",
        )
    if decision.reason is Reason.CERTIFICATE_VOID:
        raise CertificateError(
            f"{who} holds its certificate void: its cloud is not the one that was certified.",
            "Check the gateway's cloud; its log names both versions. Then restart it.",
        )
    if not from_edge and answer.model_digest != certificate.reference.version:
        raise CertificateError(
            f"{who} brought an answer of the cloud version {answer.model_digest}; certificate {certificate.id} was "
            f"issued against {certificate.reference.name} {certificate.reference.version}.",
            "Point the gateway at that cloud, or certify against its own: edgewise certify BUNDLE.",
        )


class _GatewayClient:
    """Speaks the native protocol with a gateway, times what its caller waits, and takes only what is evaluated."""

    def __init__(self, job: EvaluateJob, url: str, certificate: Certificate) -> None:
        headers = {"content-type": "application/json"}
        if job.api_key:
            headers["authorization"] = f"Bearer {job.api_key}"
        self._url = url
        self.certificate = certificate
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=job.timeout_s, trust_env=False)

    async def __aenter__(self) -> _GatewayClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def check_ready(self) -> None:
        """Raise CloudError unless the gateway is ready to answer."""
        await self._exchange("GET", "/readyz", None)

    async def ask(self, example: Example) -> tuple[Answer, float]:
        """The gateway's first answer to an item, and the milliseconds it took.

        Raises:
            CertificateError: It is none under the certificate.
            CloudError: There is none.
        """
        body = native.encode_request(Request(inputs=example.input))
        started = time.perf_counter()
        content = await self._exchange("POST", "/v1/predict", body)
        waited_ms = 1000 * (time.perf_counter() - started)
        answer = native.decode_answer(content)
        check_answer(answer, self.certificate, self._url)
        return answer, waited_ms

    async def _exchange(self, method: str, path: str, body: bytes | None) -> bytes:
        try:
            response = await self._http.request(method, path, content=body)
        except httpx.TimeoutException as error:
            raise CloudTimeoutError(f"The gateway {self._url} did not answer in time.", "Is it overloaded?") from error
        except (httpx.HTTPError, UnicodeError) as error:
            raise CloudUnreachableError(
                f"The gateway {self._url} cannot be reached: {error}.", "Start it: edgewise edge serve BUNDLE."
            ) from error
        if response.status_code != httpx.codes.OK:
            detail = native.decode_error(response.content)
            said = detail.message if detail else response.text[:200]
            raise CloudResponseError(f"The gateway {self._url} answered {response.status_code}: {said}")
        return response.content


def _correct(outputs: Sequence[Output], labels: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array([output == label for output, label in zip(outputs, labels, strict=True)], dtype=np.bool_)


def _write(
    job: EvaluateJob,
    bundle: Bundle,
    certificate: Certificate,
    routed: Routed,
    curve: Sequence[CurvePoint],
    n: int,
    started: float,
) -> Evaluated:
    summary_path, plot_path = job.out / SUMMARY, job.out / PLOT
    certified = CurvePoint(routed.local_share, routed.routed_accuracy)
    write_atomically(plot_path, plot_operating_curve(curve, certified, certificate.bound))
    threshold = certificate.bound.threshold
    summary = Summary(
        **{name: getattr(routed, name) for name in Routed.__struct_fields__},
        target=certificate.target,
        risk=_risk(routed, certificate.target),
        alpha=certificate.bound.alpha,
        delta=certificate.bound.delta,
        threshold=threshold if np.isfinite(threshold) else str(threshold),
        n_certify=certificate.bound.n,
        n_test=n,
        local_disagreements=round(routed.local_disagreement * n),
        unsurprising_up_to=(
            unsurprising_violations(n, certificate.bound.alpha) if certificate.target == TARGET_AGREEMENT else None
        ),
        bundle_bytes=bundle.size_bytes,
        checkpoint_bytes=_checkpoint_bytes(bundle),
        wall_s=time.time() - started,
    )
    write_atomically(summary_path, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return Evaluated(summary, summary_path, plot_path)


def _risk(routed: Routed, target: str) -> float:
    seen = {TARGET_ACCURACY: routed.local_accuracy_loss, TARGET_SELECTIVE: routed.wrong_given_local}
    return seen.get(target, routed.local_disagreement)


def _checkpoint_bytes(bundle: Bundle) -> int | None:
    """Size of the fp32 weights, as the bundle's own measurement states it."""
    for attestation in bundle.attestations():
        size = attestation.payload.get("checkpoint_bytes")
        if attestation.kind == "measurement" and isinstance(size, int):
            return size
    return None
