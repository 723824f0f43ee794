"""A short soak: valid, broken and hostile requests over every protocol, against real processes."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

# By its path, under a name of its own: the folder has scripts that are named like rooms.
PLACE = Path(__file__).parents[2] / "benchmarks" / "serve" / "soak.py"
SPEC = importlib.util.spec_from_file_location("benchmark_soak", PLACE)
soak = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = soak
SPEC.loader.exec_module(soak)


def fuzzer(seed=1):
    return soak.Fuzzer(seed, classifier="news", embedder="places", gateway=True)


@pytest.mark.slow
def test_two_thousand_requests_of_every_kind_leave_both_doors_healthy(tiny_text_bundle, tiny_embedder_bundle, tmp_path):
    found = soak.soak(tiny_text_bundle, tiny_embedder_bundle, tmp_path, requests=2000, seed=20, connections=8)
    assert found["problems"] == []
    assert found["requests"] == 2000
    seen = Counter()
    for what, count in found["statuses"].items():
        kind, _, status = what.partition(" → ")
        seen[kind] += count
        seen[status] += count
    assert {"predict", "infer, binary", "embeddings", "answers", "garbage bytes", "websocket"} <= set(seen)
    assert min(seen["200"], seen["400"], seen["404"]) > 20
    assert all(found["memory"].values())


def test_what_is_sent_is_the_seeds():
    shots = list(fuzzer().shots(500))
    assert shots == list(fuzzer().shots(500))
    assert shots != list(fuzzer(2).shots(500))
    assert len({shot.kind for shot in shots}) >= 14
    assert 0.3 < sum(shot.valid for shot in shots) / 500 < 0.8


def test_a_shot_is_a_request_as_it_stands_on_the_wire():
    shot = soak.Shot("k", path="/v1/predict", headers={"accept": "x"}, body=b"{}")
    assert (
        shot.encoded("here") == b"POST /v1/predict HTTP/1.1\r\nhost: here\r\naccept: x\r\ncontent-length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize(("per_step", "flat"), [(0, True), (10_000, True), (500_000, False)])
def test_memory_that_goes_on_growing_is_not_flat(per_step, flat):
    # Warming up grows and does not count.
    samples = [(step / 100, 10**8 + min(step, 50) * 10**6 + max(step - 50, 0) * per_step) for step in range(101)]
    memory = soak.memory_of(samples)
    assert (memory.growth <= soak.GROWTH) is flat
    assert memory.slope_mb == pytest.approx(per_step * 100 / 1e6, abs=0.01)


def test_too_few_samples_are_no_verdict():
    with pytest.raises(ValueError, match="nothing of memory"):
        soak.memory_of([(0.6, 1), (0.7, 1)])


@pytest.mark.parametrize(
    ("valid", "status", "body", "problems"),
    [
        (True, 200, b"{}", 0),
        (False, 400, b'{"error":{"code":"invalid_request"}}', 0),
        (True, 503, b'{"error":{"code":"cloud_unavailable"}}', 0),
        (False, 503, b"", 1),
        (False, 500, b'{"error":{"code":"internal"}}', 1),
        (True, 400, b'{"error":{"code":"invalid_request"}}', 1),
        (False, 404, b"", 1),
        (False, 400, b"Traceback (most recent call last)", 1),
    ],
)
def test_what_must_not_be_is_told(valid, status, body, problems):
    seen = soak.Seen()
    soak.Client(None, seen)._judge(soak.Shot("k", valid=valid), status, body)
    assert len(seen.problems) == problems
