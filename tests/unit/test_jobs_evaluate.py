"""A summary speaks of one certificate: what answers as anything else is refused, early and by name."""

import json
from dataclasses import replace

import httpx
import msgspec
import pytest

from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    Bound,
    CloudReply,
    Decision,
    Done,
    Reason,
    Reference,
    Served,
    ServiceInfo,
    Source,
    Status,
)
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError, CloudUnreachableError, ConfigError
from edgewise.jobs.evaluate import EvaluateJob, evaluate_gateway
from edgewise.quantize import NullProgress
from edgewise.router import certificate as certificates
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wire.serve import BackgroundServer

REFERENCE = Reference("big", "sha256:cloud")
ITEMS = 40


class Cloud:
    """Says what the items' own labels say."""

    def __init__(self, reference=REFERENCE, *, answers_as=None):
        self.reference, self.answers_as, self.asked = reference, answers_as or reference, 0

    async def describe(self, *, timeout_s):
        return self.reference

    async def predict(self, request, *, timeout_s):
        self.asked += 1
        return CloudReply("grain", self.answers_as)

    async def aclose(self):
        pass


class Gateway:
    """Answers each request with the answer it was told, and counts."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    async def events(self, request):
        self.asked += 1
        yield Answered(msgspec.structs.replace(self.answer, id=request.id))
        yield Done(request.id)


@pytest.fixture(scope="module")
def certificate(tiny_text_bundle):
    device = probe()
    return certificates.issue(
        Bound(threshold=0.0, local_share=1.0, n=400, k=0, alpha=0.01, delta=0.05),
        model_digest=EdgeModel.load(tiny_text_bundle).digest, signal="margin", data_digest="d", reference=REFERENCE,
        created="2026-01-01T00:00:00Z", runtime=f"onnxruntime {device.onnxruntime}", isa=device.isa,
    )  # fmt: skip


@pytest.fixture
def job(tiny_text_bundle, certificate, tmp_path):
    (tmp_path / "certificate.json").write_bytes(certificates.encode(certificate))
    line = json.dumps({"text": "wheat harvest rose", "label": "grain"}) + "\n"
    (tmp_path / "test.jsonl").write_text(line * ITEMS)
    return EvaluateJob(
        bundle=tiny_text_bundle, gateway="", data=tmp_path / "test.jsonl", out=tmp_path / "out",
        certificate=tmp_path / "certificate.json",
    )  # fmt: skip


@pytest.fixture
def good(certificate):
    """What a gateway under the certificate says of an item it is sure of."""
    return Answer(
        id="", output="grain", status=Status.FINAL, source=Source.EDGE, timings_ms={"total": 1.0},
        model_digest=certificate.model_digest,
        decision=Decision(action=Action.LOCAL, reason=Reason.CONFIDENT, policy="certified", score=0.9, threshold=0.0,
                          certificate_id=certificate.id),
    )  # fmt: skip


def changed(answer, *, decision=None, **fields):
    return msgspec.structs.replace(
        answer, **fields, decision=msgspec.structs.replace(answer.decision, **(decision or {}))
    )


def escalated(answer, **fields):
    decision = {"action": Action.ESCALATE, "reason": Reason.BELOW_THRESHOLD} | fields.pop("decision", {})
    given = {"source": Source.CLOUD, "model_digest": REFERENCE.version} | fields
    return changed(answer, decision=decision, **given)


def run(job, answer, cloud=None):
    """The evaluation, the URL of its gateway, and how often the gateway was asked."""
    info = ServiceInfo(
        name="tiny", version="sha256:x", task="text-classification", labels=(), input="text", role="gateway"
    )
    service = Gateway(answer)
    models = {"tiny": Served(info=info, service=service, ready=lambda: None)}
    with BackgroundServer(front_door(lambda: models, answers=None, metrics=Metrics())) as server:
        try:
            return evaluate_gateway(replace(job, gateway=server.url), cloud or Cloud(), NullProgress()), service
        except CertificateError as error:
            error.asked, error.url = service.asked, server.url
            raise


ACCEPTED = {
    "local": lambda good: good,
    "local from the cache": lambda good: changed(good, source=Source.CACHE),
    "escalated": escalated,
    "escalated, from the cache": lambda good: escalated(good, source=Source.CACHE),
    "provisional": lambda good: escalated(
        good, source=Source.EDGE, model_digest=good.model_digest, status=Status.PROVISIONAL,
        decision={"reason": Reason.BUDGET_SPENT, "certificate_id": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_a_gateway_under_this_certificate_says_is_summed_up(job, good, name):
    found, service = run(job, ACCEPTED[name](good))
    assert service.asked == found.summary.n_test == ITEMS
    assert found.summary.local_share == (1.0 if name.startswith("local") else 0.0)
    assert json.loads(found.summary_path.read_text())["alpha"] == 0.01


REFUSED = {
    "another bundle": (lambda good: changed(good, model_digest="sha256:other"), "with the bundle sha256:other"),
    "another bundle, from the cache": (
        lambda good: changed(good, source=Source.CACHE, model_digest="sha256:other"), "with the bundle sha256:other"),
    "another bundle, provisionally": (
        lambda good: escalated(good, source=Source.EDGE, status=Status.PROVISIONAL, model_digest="sha256:other"),
        "with the bundle sha256:other"),
    "edge_only": (
        lambda good: changed(good, decision={"reason": Reason.EDGE_ONLY, "certificate_id": None}),
        r"alone under no certificate \(reason edge_only\)"),
    "another certificate": (
        lambda good: changed(good, decision={"certificate_id": "sha256:older"}), "under certificate sha256:older"),
    "another certificate, from the cache": (
        lambda good: changed(good, source=Source.CACHE, decision={"certificate_id": "sha256:older"}),
        "under certificate sha256:older"),
    "another cloud": (lambda good: escalated(good, model_digest="sha256:mini"), "cloud version sha256:mini"),
    "a void certificate": (
        lambda good: escalated(good, decision={"reason": Reason.CERTIFICATE_VOID}), "holds its certificate void"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_gateway_that_answers_as_anything_else_is_refused_at_once(job, good, name):
    make, match = REFUSED[name]
    with pytest.raises(CertificateError, match=match) as caught:
        run(job, make(good))
    assert caught.value.url in caught.value.problem
    assert caught.value.remedy
    assert caught.value.asked == 1
    assert not job.out.exists()


def test_a_cloud_that_was_not_certified_is_refused_before_anything_is_asked(job, good):
    cloud = Cloud(Reference("big", "sha256:newer"))
    with pytest.raises(CertificateError, match=r"big sha256:newer; .* issued against big sha256:cloud") as caught:
        run(job, good, cloud)
    assert (caught.value.asked, cloud.asked) == (0, 0)


def test_a_cloud_that_changes_meanwhile_is_refused(job, good):
    cloud = Cloud(answers_as=Reference("big", "sha256:newer"))
    with pytest.raises(CertificateError, match="big sha256:newer"):
        run(job, good, cloud)
    assert cloud.asked <= 4, "not more than were asked at once"
    assert not job.out.exists()


def test_credentials_in_the_gateways_url_are_never_shown(job):
    with pytest.raises(ConfigError, match="gateway URL carries a user name") as caught:
        evaluate_gateway(replace(job, gateway="http://me:pa55word@127.0.0.1:9"), Cloud(), NullProgress())
    assert "pa55word" not in str(caught.value)
    assert "--gateway-key-env" in caught.value.remedy


@pytest.mark.parametrize("url", ["not a url", "127.0.0.1:8701", "ftp://x", "http://[::1"])
def test_a_gateway_url_that_is_none_is_refused(job, url):
    with pytest.raises(ConfigError, match="gateway URL"):
        evaluate_gateway(replace(job, gateway=url), Cloud(), NullProgress())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://a..b.invalid"])
def test_a_gateway_that_is_not_there_is_told_as_such(job, url):
    with pytest.raises(CloudUnreachableError, match=url) as caught:
        evaluate_gateway(replace(job, gateway=url), Cloud(), NullProgress())
    assert "edge serve" in caught.value.remedy
    assert isinstance(caught.value.__cause__, httpx.HTTPError | UnicodeError)
