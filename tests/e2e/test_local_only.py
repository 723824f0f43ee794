"""What must not leave does not: no byte of it reaches the cloud's socket or the state file, whatever is asked for."""

import importlib.util
import itertools
import re
import sys
from pathlib import Path

import httpx
import pytest

from edgewise.contracts import Bound, Reference
from edgewise.edge import EdgeModel, probe
from edgewise.router import certificate as certificates

SPEC = importlib.util.spec_from_file_location("edgewise_fault_proxy", Path(__file__).parents[1] / "faults" / "proxy.py")
faults = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = faults  # dataclasses look their module up
SPEC.loader.exec_module(faults)

MODES = ("guarded", "speculative", "edge_only", None)
PROFILES = ("patient", "hasty", "eager", None)
CONFIG = """
[edge]
bundle = "{bundle}"
certificate = "{certificate}"
[cloud]
cool_down_s = 0.05
[cloud.backends.main]
url = "{cloud}"
[server]
port = 0
[audit]
share = 1.0
[state]
path = "{state}"
[policy]
use = "budgeted"
calls_per_day = 1000000
[profiles.patient]
budget_ms = 60000
[profiles.hasty]
budget_ms = 0
[profiles.eager]
budget_ms = 60000
mode = "speculative"
"""


@pytest.fixture
def certificate(tiny_text_bundle, tmp_path):
    """A certificate under which the tiny model answers what it is sure of, against the same model as the cloud."""
    model, device = EdgeModel.load(tiny_text_bundle), probe()
    issued = certificates.issue(
        Bound(threshold=0.5, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05),
        model_digest=model.digest,
        signal="margin",
        data_digest="none",
        reference=Reference(model.bundle.core.name, model.digest),
        created="2026-01-01T00:00:00Z",
        runtime=f"onnxruntime {device.onnxruntime}",
        isa=device.isa,
    )
    path = tmp_path / "certificate.json"
    path.write_bytes(certificates.encode(issued))
    return path


def ask(client, text, **fields):
    body = {"inputs": text, **{name: value for name, value in fields.items() if value is not None}}
    return client.post("/v1/predict", json=body)


def ask_oip(client, model, text, **parameters):
    given = {name: value for name, value in parameters.items() if value is not None}
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    return client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor], "parameters": given})


def secrets_of(client, model, when):
    """Ask for everything that a local_only request can ask for; returns the words that may be nowhere afterwards."""
    words = []
    for number, (mode, profile) in enumerate(itertools.product(MODES, PROFILES)):
        # One that the model is sure of and one that it is not: the latter would be escalated.
        for text in ("wheat corn", "wheat port"):
            word = f"{when}x{number}x{text.split()[1]}"
            fields = {"mode": mode, "profile": profile, "data_policy": "local_only"}
            answer = ask(client, f"{text} {word}n", **fields).json()
            assert (answer["source"], answer["status"], answer["reason"]) == ("edge", "final", "local_only"), answer
            assert ask_oip(client, model, f"{text} {word}o", **fields).status_code == 200
            words += [f"{word}n", f"{word}o"]
    word = f"{when}xrefused"
    refused = ask(client, f"wheat port {word}", mode="cloud_only", data_policy="local_only")
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "mode")
    return [*words, word]


def wait_for_audits(client, count):
    """Wait until that many verdicts are in; the test's own time-out ends it."""
    while True:
        verdicts = re.findall(r"^edgewise_audits_total\{.*\} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        if sum(map(float, verdicts)) >= count:
            return


def state_bytes(state):
    """The state file, with what is beside it: SQLite's log and index."""
    return b"".join(path.read_bytes() for path in state.parent.glob(f"{state.name}*"))


def test_local_only_data_reaches_neither_the_cloud_nor_the_disk(tiny_text_bundle, certificate, tmp_path, start_service):
    state = tmp_path / "state" / "gateway.db"
    state.parent.mkdir()
    cloud = httpx.URL(start_service("cloud", "serve", tiny_text_bundle, "--port", 0).url)
    with faults.FaultProxy(cloud.host, cloud.port) as proxy:
        config = tmp_path / "edgewise.toml"
        config.write_text(CONFIG.format(bundle=tiny_text_bundle, certificate=certificate, cloud=proxy.url, state=state))
        service = start_service("edge", "serve", "--config", config)
        with httpx.Client(base_url=service.url, timeout=30) as client:
            model = client.get("/").json()["service"]["name"]
            words = secrets_of(client, model, "up")
            # What may leave does: the test can see it there.
            control = ask(client, "wheat port mayleave", mode="cloud_only").json()
            assert control["source"] == "cloud"
            assert b"mayleave" in proxy.received
            assert ask(client, "wheat corn mayleavetoo").json()["source"] == "edge"
            wait_for_audits(client, 1)
            assert b"mayleavetoo" in proxy.received, "audits ask about what may leave"
            proxy.set(faults.REFUSE)
            words += secrets_of(client, model, "down")
            owed = ask(client, "wheat port mayberemembered", mode="cloud_only").json()
            assert owed["status"] == "provisional"
            assert b"mayberemembered" in state_bytes(state)
            proxy.set(faults.PASS)
            final = client.get(f"/v1/answers/{owed['id']}", params={"wait_ms": 20000}).json()
            assert final["status"] == "final", "the outbox has been emptied into the cloud"
        service.stop()
        sent, kept = proxy.received, state_bytes(state)
    assert b"mayberemembered" in sent
    assert [word for word in words if word.encode() in sent] == []
    assert [word for word in words if word.encode() in kept] == []
    assert len(words) == 2 * (2 * 2 * len(MODES) * len(PROFILES) + 1)
    assert b"local_only" not in sent
