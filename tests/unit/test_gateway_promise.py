"""A gateway is built with the promise that its files and its clock allow, and says where they do not."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import SimpleNamespace

import httpx
import msgspec
import numpy as np
import pytest

from edgewise import wiring
from edgewise.config import parse_config
from edgewise.contracts import AuditVerdict, Bound, Reference
from edgewise.edge import EdgeModel, probe
from edgewise.errors import CertificateError, ConfigError
from edgewise.router import certificate as certificates
from edgewise.router import fitted as fits
from edgewise.router.fitted import Fitted
from edgewise.router.guard import Guard
from edgewise.router.neighbours import Neighbours
from edgewise.router.stages import GuardSettings, OnAlarm, Stage
from edgewise.store import SqliteStore

CREATED, EXPIRES = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
CREATED_S, DAY_S = 1_767_225_600.0, 86_400.0


def certificate(bundle, path, **fields):
    model, device = EdgeModel.load(bundle), probe()
    issued = certificates.issue(
        Bound(threshold=0.5, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05), model_digest=model.digest,
        signal="margin", data_digest="none", reference=Reference("cloud", "1"), created=CREATED,
        runtime=f"onnxruntime {device.onnxruntime}", isa=device.isa, **fields,
    )  # fmt: skip
    path.write_bytes(certificates.encode(issued))
    return issued


def built(bundle, path, resources, **sections):
    edge = {"bundle": str(bundle), "certificate": str(path), **sections.pop("edge", {})}
    cloud = {"backends": {"main": {"url": "http://127.0.0.1:9"}}}
    return wiring.build_gateway(parse_config({"edge": edge, "cloud": cloud, **sections}), resources)


@pytest.fixture
def resources():
    with ExitStack() as held:
        yield held


async def test_a_model_that_fails_its_self_test_is_not_ready_and_says_why(tiny_text_bundle, resources, monkeypatch):
    def differs(self):
        raise CertificateError("Golden item 1 of 3 comes out differently on this machine.", "Certify here.")

    monkeypatch.setattr(EdgeModel, "check_golden", differs)
    config = parse_config({"edge": {"bundle": str(tiny_text_bundle), "mode": "edge_only"}})
    gateway = wiring.build_gateway(config, resources)
    transport = httpx.ASGITransport(gateway.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        told = await client.get("/readyz")
        assert (told.status_code, (await client.get("/healthz")).status_code) == (503, 200)
    assert "Golden item 1 of 3" in told.text


async def test_a_model_that_passes_its_self_test_is_ready_and_answers_to_loopbacks_names_only(
    tiny_text_bundle, resources
):
    config = parse_config({"edge": {"bundle": str(tiny_text_bundle), "mode": "edge_only"}})
    gateway = wiring.build_gateway(config, resources)
    transport = httpx.ASGITransport(gateway.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8701") as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 421


@pytest.mark.parametrize(
    ("host", "named", "names"),
    [
        ("127.0.0.1", None, {"localhost", "127.0.0.1", "::1"}),
        ("::1", None, {"localhost", "127.0.0.1", "::1"}),
        ("localhost", None, {"localhost", "127.0.0.1", "::1"}),
        ("0.0.0.0", None, None),
        ("10.0.0.7", None, None),
        ("0.0.0.0", ["api.example.org"], {"api.example.org"}),
    ],
)
def test_a_server_that_nobody_named_answers_to_loopbacks_names_where_it_is_bound_to_loopback(host, named, names):
    found = wiring.server.limits(parse_config({"server": {"host": host, **({"hosts": named} if named else {})}})).hosts
    assert (None if found is None else set(found)) == names


def test_a_server_that_nobody_knows_is_a_setting_to_change():
    with pytest.raises(ConfigError, match="'apache'"):
        wiring.server.check_address(parse_config({"server": {"http": "apache", "port": 0}}))


def test_an_expired_certificate_is_refused_with_what_to_do(tiny_text_bundle, tmp_path, resources, monkeypatch):
    certificate(tiny_text_bundle, tmp_path / "c.json", expires=EXPIRES)
    monkeypatch.setattr(time, "time", lambda: CREATED_S + 40 * DAY_S)
    with pytest.raises(CertificateError, match=f"expired at {EXPIRES}") as error:
        built(tiny_text_bundle, tmp_path / "c.json", resources)
    assert "edgewise certify" in error.value.remedy


def test_a_start_after_an_alarm_says_so(tiny_text_bundle, tmp_path, resources):
    path, state = tmp_path / "c.json", tmp_path / "state.db"
    original = certificate(tiny_text_bundle, path)
    assert built(tiny_text_bundle, path, resources).warnings == ()
    with SqliteStore(state) as store:
        guard = Guard(original, store.audits, GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY), time)
        while guard.stage is not Stage.CLOUD_ONLY:
            position = store.audits.drawn("r", guard.epoch)
            store.audits.verdict(position, AuditVerdict(violation=True, score=0.6, differs=True))
            guard.settled()
    (warning,) = built(tiny_text_bundle, path, resources, state={"path": str(state)}).warnings
    assert warning.startswith("Everything is escalated since an alarm before this start. Audit alarm: certificate")


async def test_a_certificate_that_audits_earned_outlives_the_one_beside_the_bundle(
    tiny_text_bundle, tmp_path, resources, monkeypatch
):
    path, state = tmp_path / "c.json", tmp_path / "state.db"
    original = certificate(tiny_text_bundle, path, expires=EXPIRES)
    clock = SimpleNamespace(time=lambda: CREATED_S + 20 * DAY_S, monotonic=lambda: 0.0)
    with SqliteStore(state) as store:
        guard = Guard(original, store.audits, GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY, recertify_items=500), clock)
        wrong = AuditVerdict(violation=True, score=0.6, differs=True)
        right = AuditVerdict(violation=False, score=0.9, differs=False)
        while guard.stage is not Stage.CLOUD_ONLY:
            store.audits.verdict(store.audits.drawn("r", guard.epoch), wrong)
            guard.settled()
        while guard.stage is Stage.CLOUD_ONLY:
            store.audits.verdict(store.audits.drawn("r", guard.epoch), right)
            guard.settled()
        earned = guard.certificate
    monkeypatch.setattr(time, "time", lambda: CREATED_S + 40 * DAY_S)
    gateway = built(tiny_text_bundle, path, resources, state={"path": str(state)})
    assert gateway.router.certificate == earned
    assert gateway.warnings == ()
    await gateway.router.aclose()


async def test_with_a_wrong_clock_it_serves_says_so_and_escalates(tiny_text_bundle, tmp_path, resources, monkeypatch):
    certificate(tiny_text_bundle, tmp_path / "c.json", expires=EXPIRES)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    gateway = built(tiny_text_bundle, tmp_path / "c.json", resources)
    assert "the clock is right" in gateway.warnings[0]
    assert gateway.router.certificate is None
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://localhost") as client:
        answer = (await client.post("/v1/predict", json={"inputs": "wheat corn", "budget_ms": 1})).json()
        page = (await client.get("/")).json()
    assert (answer["status"], page["promise"]["state"]) == ("provisional", "certificate_expired")
    await gateway.router.aclose()


def test_what_was_fitted_is_read_from_where_it_is_said_to_lie(tiny_text_bundle, tmp_path, resources):
    data = fits.encode(Fitted(neighbours=Neighbours(np.eye(3, dtype=np.float32), k=1, cut=0.5)))
    certificate(tiny_text_bundle, tmp_path / "c.json", fitted_digest=fits.digest(data))
    elsewhere = tmp_path / "elsewhere.npz"
    with pytest.raises(CertificateError, match=r"elsewhere\.npz"):
        built(tiny_text_bundle, tmp_path / "c.json", resources, edge={"fitted": str(elsewhere)})
    elsewhere.write_bytes(data)
    gateway = built(tiny_text_bundle, tmp_path / "c.json", resources, edge={"fitted": str(elsewhere)})
    assert gateway.router.certificate is not None
    elsewhere.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CertificateError, match="was issued with"):
        built(tiny_text_bundle, tmp_path / "c.json", resources, edge={"fitted": str(elsewhere)})


def test_the_random_baseline_needs_no_certificate_and_says_that_it_follows_none(tiny_text_bundle, tmp_path, resources):
    gateway = built(tiny_text_bundle, tmp_path / "none.json", resources, policy={"use": "random"})
    assert gateway.router.certificate is None
    assert "uncertified" in gateway.warnings[0]
    assert gateway.router.report()["policy"] == "random"


def test_a_budget_is_kept_in_the_state_file(tiny_text_bundle, tmp_path):
    certificate(tiny_text_bundle, tmp_path / "c.json")
    sections = {"state": {"path": str(tmp_path / "state.db")}, "policy": {"use": "budgeted", "calls_per_day": 3}}
    day = time.strftime("%Y-%m-%d", time.gmtime())
    with ExitStack() as resources:
        built(tiny_text_bundle, tmp_path / "c.json", resources, **sections)
    with SqliteStore(str(tmp_path / "state.db")) as store:
        store.spending.spend(day, 3.0)
    with ExitStack() as resources:
        gateway = built(tiny_text_bundle, tmp_path / "c.json", resources, **sections)
        assert gateway.router.report()["policy"] == "budgeted"
        assert b"edgewise_policy_spent_today 3" in rendered(gateway)


def rendered(gateway):
    """The metrics page."""
    import asyncio

    async def read():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://localhost") as client:
            return (await client.get("/metrics")).content

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("policy", "says"),
    [({"use": "budgeted"}, "one of the two"), ({"use": "cheapest"}, "There is no policy 'cheapest'")],
)
def test_a_policy_that_is_not_set_up_is_refused(tiny_text_bundle, tmp_path, resources, policy, says):
    certificate(tiny_text_bundle, tmp_path / "c.json")
    with pytest.raises(ConfigError, match=says):
        built(tiny_text_bundle, tmp_path / "c.json", resources, policy=policy)


def test_the_front_page_tells_what_is_promised(tiny_text_bundle, tmp_path, resources):
    issued = certificate(tiny_text_bundle, tmp_path / "c.json", expires="2999-01-01T00:00:00Z")
    report = built(tiny_text_bundle, tmp_path / "c.json", resources).router.report()
    assert (report["state"], report["certificate_id"], report["alpha"]) == ("certified", issued.id, 0.01)
    assert report["audits"]["stage"] == "certified"
    assert msgspec.json.encode(report)
