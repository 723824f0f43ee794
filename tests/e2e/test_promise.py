"""The promise in service: over many certificates, the risk read off a gateway's answers exceeds alpha rarely enough.

Traffic is drawn with replacement from the population the certificates are drawn from, and goes over HTTP through the
whole gateway, cache and audits on, in front of a real cloud process. Every item of the population is answered at least
once under every certificate, so the risk is read off the answers exactly, without the noise of a finite sample.
"""

import asyncio
import json
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from scipy.stats import binom

from edgewise import wiring
from edgewise.cloud.clients import OipClient
from edgewise.config import parse_config
from edgewise.contracts import Example, Reference, Request
from edgewise.dataset import load_examples
from edgewise.edge import EdgeModel, probe
from edgewise.jobs.asking import ask_all
from edgewise.jobs.scoring import edge_scores
from edgewise.quantize import NullProgress
from edgewise.router import certificate as certificates
from edgewise.router import certify
from edgewise.wire import native
from edgewise.wire.serve import BackgroundServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ALPHA, DELTA = 0.04, 0.1
CERTIFICATES, CERTIFYING_ITEMS, POPULATION = 40, 150, 300


class Pair:
    """A population with what edge and reference cloud say of each item."""

    def __init__(self, bundle, examples, cloud_url):
        self.bundle, self.examples = bundle, examples
        self.model = EdgeModel.load(bundle)
        predictions = [self.model.predict_one(example.input) for example in examples]
        self.scores = edge_scores(predictions, "margin")
        replies = asyncio.run(self._ask(cloud_url))
        self.reference = replies[0].reference
        self.cloud = [reply.output for reply in replies]
        self.disagree = np.array([p.output != c for p, c in zip(predictions, self.cloud, strict=True)])

    async def _ask(self, url):
        client = OipClient(url)
        try:

            async def ask(example: Example):
                return await client.predict(Request(inputs=example.input), timeout_s=30)

            return await ask_all(self.examples, ask, concurrency=4, progress=NullProgress())
        finally:
            await client.aclose()

    def certificate(self, drawn):
        bound = certify(self.scores[drawn], self.disagree[drawn], alpha=ALPHA, delta=DELTA)
        device = probe()
        return certificates.issue(
            bound, model_digest=self.model.digest, signal="margin", data_digest=str(drawn.tobytes().hex()[:16]),
            reference=Reference(self.reference.name, self.reference.version),
            created="2026-01-01T00:00:00Z", runtime=f"onnxruntime {device.onnxruntime}", isa=device.isa,
        )  # fmt: skip

    def threshold(self, drawn):
        """The threshold that these items certify, by trying every one: the lowest that loses at most k* of them."""
        allowed = max(k for k in range(len(drawn)) if binom.cdf(k, len(drawn), ALPHA) <= DELTA)
        scores, disagree = self.scores[drawn], self.disagree[drawn]
        return min(t for t in [-np.inf, *scores] if np.sum((scores > t) & disagree) <= allowed)


@pytest.fixture
def pair(digits, tmp_path, edgewise, start_service):
    run = tmp_path / "run"
    edgewise(
        "quantize", digits.edge, "--data", digits.tuning, "--recipes", "int8_dynamic", "--prefer", "size",
        "--max-drop", 0.5, "--out", run,
    )  # fmt: skip
    cloud = start_service("cloud", "serve", digits.cloud, "--port", 0)
    population = load_examples(digits.certify)
    chosen = np.random.default_rng(3).choice(len(population), POPULATION, replace=False)
    made = Pair(run / "bundle", [population[i] for i in chosen], cloud.url)
    made.cloud_url = cloud.url
    return made


async def replay(url, examples, traffic):
    """Answers of the gateway to the items at the positions in `traffic`, with their positions."""
    limits = httpx.Limits(max_connections=8)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

        async def ask(position):
            body = native.encode_request(Request(inputs=examples[position].input))
            response = await client.post("/v1/predict", content=body)
            assert response.status_code == 200, response.text
            return position, native.decode_answer(response.content)

        return await ask_all(traffic, ask, concurrency=8, progress=NullProgress())


def serve_and_replay(pair, certificate, traffic, tmp_path):
    path = tmp_path / "certificate.json"
    path.write_bytes(certificates.encode(certificate))
    config = parse_config(
        {
            "edge": {"bundle": str(pair.bundle), "certificate": str(path)},
            "cloud": {"backends": {"main": {"url": pair.cloud_url}}},
            # An alarm would rightly move the threshold; what is measured here is the certificate.
            "audit": {"share": 0.1, "on_alarm": "warn"},
        }
    )
    with ExitStack() as resources:
        gateway = wiring.build_gateway(config, resources)
        server = resources.enter_context(BackgroundServer(gateway.app))
        answers = asyncio.run(replay(server.url, pair.examples, traffic))
        metrics = httpx.get(f"{server.url}/metrics").text
    return answers, metrics


def test_the_promise_holds_over_many_certificates(pair, tmp_path):
    rng = np.random.default_rng(11)
    risks, shares, cached, audited = [], [], 0, 0
    for _ in range(CERTIFICATES):
        drawn = rng.integers(0, POPULATION, CERTIFYING_ITEMS)
        certificate = pair.certificate(drawn)
        traffic = rng.integers(0, POPULATION, POPULATION).tolist()
        traffic += sorted(set(range(POPULATION)) - set(traffic))
        answers, metrics = serve_and_replay(pair, certificate, traffic, tmp_path)
        # One item too many or too few would move this threshold; the counts below would rarely tell.
        thresholds = {answer.decision.threshold for _, answer in answers}
        assert thresholds == {pair.threshold(drawn)}
        lost, local = np.zeros(POPULATION, bool), np.zeros(POPULATION, bool)
        for position, answer in answers:
            assert answer.status == "final"
            if answer.decision.action == "local":
                assert answer.decision.certificate_id == certificate.id
                local[position] = True
                lost[position] = answer.output != pair.cloud[position]
            else:
                assert answer.output == pair.cloud[position]
            cached += answer.source == "cache"
        risks.append(lost.mean())
        shares.append(local.mean())
        audited += sum(
            float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith("edgewise_audits_total{")
        )
        expected = (pair.scores > certificate.bound.threshold) & pair.disagree
        assert lost.mean() == expected.mean(), "the gateway answers by the threshold it was certified for"
    violations = int(np.sum(np.array(risks) > ALPHA))
    print(json.dumps({"certificates": CERTIFICATES, "violations": violations, "local_share": float(np.mean(shares)),
                      "mean_risk": float(np.mean(risks)), "cached": cached, "audited": audited}))  # fmt: skip
    assert violations <= binom.ppf(0.999, CERTIFICATES, DELTA)
    assert np.mean(shares) > 0.3, "a gateway that answers nothing locally keeps every promise"
    assert cached > 0
    assert audited > 0
