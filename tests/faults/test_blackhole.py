"""A real gateway before a real cloud service, and a network between them that fails in every way.

Whatever the network does, each request is answered, says why, and every provisional answer is settled under its id.
No time is measured here: the answers' own reasons, and what the network was given to carry, tell who waited.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgewise.cloud.clients.connections import MAX_CALLS, MAX_CONNECTIONS, Connections, Network
from edgewise.cloud.clients.oip import upstream_id
from edgewise.config import parse_config
from edgewise.contracts import Request
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring.cloud import CloudModel, CloudSettings, build_cloud
from edgewise.wiring.gateway import build_gateway

WORDS = ("wheat", "vessel", "tariff", "corn", "cargo", "export")
BUDGET_MS = 100
PATIENCE_S = 60
GAVE_UP = {"budget_spent", "cloud_failed"}


@pytest.fixture(scope="module")
def cloud(tiny_text_bundle):
    settings = CloudSettings(models=(CloudModel("news", tiny_text_bundle),), engine="onnx", threads=1)
    with BackgroundServer(build_cloud(settings, parse_config({})).app) as server:
        yield server


@pytest.fixture
def proxy(cloud, faults):
    with faults.FaultProxy(cloud.host, cloud.port) as proxy:
        yield proxy


@contextmanager
def serving(bundle, cloud_url, state):
    """Escalates everything, with a budget that a well cloud keeps with ease."""
    config = parse_config(
        {
            "edge": {"bundle": str(bundle), "budget_ms": BUDGET_MS, "inference_threads": 1},
            "cloud": {"backends": {"news": {"url": cloud_url}}, "timeout_s": 0.3, "cool_down_s": 0.1},
            "state": {"path": str(state)},
            "policy": {"use": "random", "local_share": 0.0},
            "cache": {"max_bytes": 0},
        }
    )
    with ExitStack() as resources, BackgroundServer(build_gateway(config, resources).app) as server:
        yield server


@pytest.fixture
def upstream(tiny_text_bundle, proxy, tmp_path):
    with serving(tiny_text_bundle, proxy.url, tmp_path / "state.db") as server:
        yield server


@pytest.fixture
def gateway(upstream):
    with httpx.Client(base_url=upstream.url, timeout=PATIENCE_S) as client:
        yield client


def text_of(request_id):
    return f"{WORDS[sum(request_id.encode()) % len(WORDS)]} rose"


def was_sent(proxy, request_id):
    return upstream_id(Request(id=request_id, inputs=text_of(request_id))).encode() in proxy.received


def ask(gateway, request_id, **parameters):
    text = text_of(request_id)
    reply = gateway.post("/v1/predict", json={"inputs": text, "id": request_id, **parameters})
    assert reply.status_code == 200, reply.text
    return reply.json()


def metric(gateway, name, **labels):
    families = text_string_to_metric_families(gateway.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def ask_until_open(gateway, prefix):
    """Answers to requests one after the other, until the breaker is open; all are provisional."""
    answers = []
    deadline = time.monotonic() + PATIENCE_S
    while not metric(gateway, "edgewise_breaker_open"):
        assert time.monotonic() < deadline, "the breaker stays closed"
        answers.append(ask(gateway, f"{prefix}-{len(answers)}"))
    return answers


def settled(gateway, request_id):
    reply = gateway.get(f"/v1/answers/{request_id}", params={"wait_ms": 30_000})
    assert reply.status_code == 200, reply.text
    return reply.json()


def assert_all_delivered(gateway, provisional):
    """Each provisional answer is final under its id, stays so, and nothing is owed any more."""
    for first in provisional:
        final = settled(gateway, first["id"])
        assert (final["id"], final["status"], final["source"]) == (first["id"], "final", "cloud")
        assert final["output"] == first["output"]  # both models are the same one
        assert settled(gateway, first["id"]) == final
    assert metric(gateway, "edgewise_provisional_open") == 0
    assert metric(gateway, "edgewise_provisional_total", event="corrected") == len(provisional)
    assert metric(gateway, "edgewise_provisional_total", event="sent") == len(provisional)


def test_behind_an_open_breaker_nobody_waits_and_all_is_delivered_later(gateway, proxy, faults):
    assert ask(gateway, "before", budget_ms=30_000)["source"] == "cloud"
    proxy.set(faults.BLACKHOLE)
    waited = ask_until_open(gateway, "waited")
    # It may open between the last look and the last request.
    assert {answer["reason"] for answer in waited[:-1]} <= GAVE_UP
    assert "budget_spent" in {answer["reason"] for answer in waited}, "nobody waited for the cloud"
    assert all(answer["status"] == "provisional" for answer in waited)
    passed = [ask(gateway, f"passed-{number}", budget_ms=30_000) for number in range(20)]
    assert {(answer["status"], answer["reason"]) for answer in passed} == {("provisional", "breaker_open")}
    # At most one at a time was sent, as the probe: what is known of them was known without the cloud.
    assert was_sent(proxy, "waited-0")
    assert sum(was_sent(proxy, f"passed-{number}") for number in range(20)) <= 2
    assert metric(gateway, "edgewise_provisional_open") == len(waited) + len(passed)
    proxy.set(faults.PASS)
    assert_all_delivered(gateway, waited + passed)
    assert ask(gateway, "after", budget_ms=30_000)["source"] == "cloud"
    assert metric(gateway, "edgewise_breaker_open") == 0


def test_a_gateway_that_asks_another_again_and_again_under_an_id_gets_its_answer(
    gateway, upstream, proxy, faults, tiny_text_bundle, tmp_path
):
    """Whoever asks again means the same request: refusing it would settle for ever what is only late."""
    proxy.set(faults.BLACKHOLE)
    first = ask_until_open(gateway, "first")
    with (
        serving(tiny_text_bundle, upstream.url, tmp_path / "downstream.db") as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as downstream,
    ):
        owed = ask(downstream, "both")
        assert owed["status"] == "provisional"
        assert ask(gateway, "both") == ask(gateway, "both"), "the upstream gateway owes it once"
        proxy.set(faults.PASS)
        final = settled(downstream, "both")
        assert (final["status"], final["source"], final["output"]) == ("final", "cloud", owed["output"])
        assert metric(downstream, "edgewise_provisional_total", event="abandoned") == 0
        assert {settled(gateway, one["id"])["status"] for one in (*first, owed)} == {"final"}
        assert metric(gateway, "edgewise_provisional_open") == 0


async def test_calls_that_hang_keep_neither_the_pool_busy_nor_a_probe_waiting():
    """httpx's pool looks through all connections for each call that waits in it; so none may."""
    hanging, asked = 0, asyncio.Event()

    async def answer(request):
        nonlocal hanging
        if request.method == "GET":
            return httpx.Response(200)
        hanging += 1
        asked.set()
        return await asyncio.Future()

    connections = Connections(Network(), tls=False, transport=httpx.MockTransport(answer))

    async def call(method, content):
        async with connections.open(method, "http://cloud.test/", content=content) as response:
            return response.status_code

    calls = [asyncio.create_task(call("POST", b"{}")) for _ in range(MAX_CONNECTIONS + 100)]
    await asked.wait()
    assert await call("GET", None) == 200
    assert hanging == MAX_CALLS < MAX_CONNECTIONS
    for task in calls:
        task.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await connections.aclose()


FAULTS = {
    "refuse": lambda faults: faults.REFUSE,
    "reset": lambda faults: faults.reset(),
    "reset in the middle": lambda faults: faults.reset(30),
    "half-close": lambda faults: faults.half_close(),
    "half-close in the middle": lambda faults: faults.half_close(150),
    "stall in the middle": lambda faults: faults.stall(150),
    "drip": lambda faults: faults.drip(0.05),
    # Longer than a probe may take, so that it cannot close the breaker meanwhile.
    "latency": lambda faults: faults.latency(4, jitter_s=0.5),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_whatever_the_network_does_requests_are_answered_and_settled(gateway, proxy, faults, kind):
    proxy.set(FAULTS[kind](faults))
    failing = ask_until_open(gateway, "failing")
    assert {(answer["status"], answer["reason"]) for answer in failing} <= {
        ("provisional", reason) for reason in (*GAVE_UP, "breaker_open")
    }
    assert ask(gateway, "passed")["reason"] == "breaker_open"
    proxy.set(faults.PASS)
    assert_all_delivered(gateway, [*failing, {"id": "passed", "output": settled(gateway, "passed")["output"]}])


@pytest.mark.slow
def test_a_network_that_comes_and_goes_loses_nothing(gateway, proxy, faults):
    """Faults switched under load in a fixed order: whoever got a provisional answer gets the final one."""
    provisional = []
    with ThreadPoolExecutor(4) as clients:
        for turn, kind in enumerate([*FAULTS, "pass"] * 2):
            proxy.set(FAULTS[kind](faults) if kind in FAULTS else faults.PASS)
            asked = [clients.submit(ask, gateway, f"turn-{turn}-{number}", budget_ms=20) for number in range(8)]
            provisional += [call.result() for call in asked if call.result()["status"] == "provisional"]
    proxy.set(faults.PASS)
    assert provisional
    assert_all_delivered(gateway, provisional)
