"""The whole way on data the product has never heard of: texts and images, from a checkpoint to a routed answer."""

import json

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEYS = {
    "cloud_accuracy", "edge_accuracy", "routed_accuracy", "local_share", "local_disagreement",
    "disagreement_given_local", "alpha", "delta", "n_certify", "n_test", "latency_ms", "bundle_bytes",
    "checkpoint_bytes", "cloud_calls_saved", "wall_s",
}  # fmt: skip


@pytest.mark.parametrize(("name", "alpha", "cloud_accuracy"), [("newsgroups", 0.05, 0.75), ("digits", 0.02, 0.9)])
def test_from_a_checkpoint_to_a_routed_answer(request, tmp_path, edgewise, start_service, name, alpha, cloud_accuracy):
    work = request.getfixturevalue(name)
    run, results = tmp_path / "run", tmp_path / "results"
    edgewise(
        "quantize", work.edge, "--data", work.tuning, "--gate", work.gate,
        "--max-drop", 0.1, "--prefer", "size", "--out", run,
    )  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    by_id = {candidate["id"]: candidate for candidate in report["candidates"]}
    assert {"fp32", "int8_dynamic", "int4_matmul"} <= set(by_id)
    assert by_id[report["winner"]]["performance"]["size_bytes"] < by_id["fp32"]["performance"]["size_bytes"]

    cloud = start_service("cloud", "serve", work.cloud, "--port", 0)
    certify = ("certify", run / "bundle", "--cloud", cloud.url, "--data", work.certify, "--alpha", alpha, "--json")
    certificate = json.loads(edgewise(*certify).stdout)
    gateway = start_service("edge", "serve", run / "bundle", "--cloud", cloud.url, "--port", 0)
    services = ("--gateway", gateway.url, "--cloud", cloud.url)
    edgewise("evaluate", run / "bundle", *services, "--data", work.test, "--out", results)

    summary = json.loads((results / "summary.json").read_text())
    assert set(summary) >= KEYS
    assert set(summary["latency_ms"]) == {"local", "escalated"}
    assert set(summary["latency_ms"]["local"]) == {"p50", "p95", "p99"}
    assert (results / "operating_curve.png").read_bytes().startswith(b"\x89PNG")
    assert summary["cloud_accuracy"] >= cloud_accuracy
    assert summary["n_certify"] == certificate["bound"]["n"]
    assert 0 < summary["local_share"] < 1
    assert summary["bundle_bytes"] < summary["checkpoint_bytes"]
    # Three standard deviations of a share of `alpha` among the test items: more would speak against the promise.
    slack = 3 * (alpha * (1 - alpha) / summary["n_test"]) ** 0.5
    assert summary["local_disagreement"] <= alpha + slack
    assert gateway.stop() == 0
    assert cloud.stop() == 0
