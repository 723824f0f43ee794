"""The gateway as a process: what it loads, how it answers, how it stops."""

import json
import shutil
import signal
import subprocess
import threading

import httpx
import pytest

HEAVY = {"torch", "transformers", "optimum", "boto3", "ray", "pydantic", "pandas", "onnx", "scipy", "matplotlib"}


@pytest.fixture
def certified(tiny_text_bundle, tmp_path, edgewise):
    """A bundle with a certificate from recorded answers that agree everywhere."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_text_bundle, bundle)
    data, predictions = tmp_path / "data.jsonl", tmp_path / "predictions.jsonl"
    data.write_text(json.dumps({"text": "wheat corn"}) * 1 + "\n")
    rows = [("wheat corn", "grain"), ("vessel port", "ship"), ("tariff quota", "trade"), ("wheat port", "trade")]
    many = [rows[i % 3] for i in range(360)] + [rows[3]] * 40
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in many))
    predictions.write_text(
        "".join(json.dumps({"output": out, "model": "reference", "model_version": "1"}) + "\n" for _, out in many)
    )
    edgewise("certify", bundle, "--predictions", predictions, "--data", data)
    return bundle


def test_the_running_gateway_loads_nothing_heavy(start_service, certified):
    service = start_service(
        "edge", "serve", certified, "--cloud", "http://127.0.0.1:9", "--port", 0, python_options=("-X", "importtime")
    )
    body = {"inputs": "wheat corn"}
    assert httpx.post(f"{service.url}/v1/predict", json=body).json()["source"] == "edge"
    assert httpx.post(f"{service.url}/v1/predict", json={"inputs": "wheat port"}).json()["status"] == "provisional"
    for path in ("/metrics", "/readyz", "/v2"):
        assert httpx.get(f"{service.url}{path}").status_code == 200
    assert service.stop() == 0
    loaded = {
        line.rsplit("|", 1)[1].strip().split(".")[0] for line in service.stderr if line.startswith("import time:")
    }
    assert "onnxruntime" in loaded, "the list of imports was not read"
    assert not loaded & HEAVY


def test_importing_the_edge_loads_nothing_heavy():
    import sys

    code = (
        "import sys, edgewise.edge, edgewise.router, edgewise.wire.door, edgewise.store, edgewise.cloud.clients;"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_sigterm_drains_and_exits_zero(start_service, certified):
    service = start_service("edge", "serve", certified, "--cloud", "http://127.0.0.1:9", "--port", 0)
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    assert service.stop(signal.SIGTERM) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/healthz")


def test_ctrl_c_ends_it_without_a_traceback(start_service, certified):
    service = start_service("edge", "serve", certified, "--cloud", "http://127.0.0.1:9", "--port", 0)
    service.stop(signal.SIGINT)
    assert "Traceback" not in "".join(service.stderr)


def test_what_a_killed_gateway_owed_is_delivered_by_the_next_one(start_service, certified, tmp_path, tiny_text_bundle):
    """A cloud that is away, kill -9 of the gateway, and the cloud's return: each provisional answer becomes final."""
    state = tmp_path / "state.db"
    common = ("edge", "serve", certified, "--port", 0, "--state", state)
    first = start_service(*common, "--cloud", "http://127.0.0.1:9")
    ids = [f"owed-{i}" for i in range(5)]
    for request_id in ids:
        body = {"inputs": "wheat port", "id": request_id}
        assert httpx.post(f"{first.url}/v1/predict", json=body).json()["status"] == "provisional"
    first.stop(signal.SIGKILL)
    cloud = start_service("cloud", "serve", tiny_text_bundle, "--port", 0)
    second = start_service(*common, "--cloud", cloud.url)
    for request_id in ids:
        answer = httpx.get(f"{second.url}/v1/answers/{request_id}", params={"wait_ms": 30000}, timeout=60).json()
        assert (answer["id"], answer["status"], answer["source"]) == (request_id, "final", "cloud")


def test_concurrent_requests_get_their_own_answers(start_service, certified):
    service = start_service("edge", "serve", certified, "--mode", "edge_only", "--port", 0)
    words = {"wheat": "grain", "vessel": "ship", "tariff": "trade"}
    wrong = []

    def ask(word):
        with httpx.Client() as client:
            for _ in range(30):
                answer = client.post(f"{service.url}/v1/predict", json={"inputs": word}).json()
                if answer["output"] != words[word]:
                    wrong.append((word, answer))

    threads = [threading.Thread(target=ask, args=(word,)) for word in [*words] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
