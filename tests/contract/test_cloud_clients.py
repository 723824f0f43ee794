"""What every cloud client must do, over real sockets, against a server that obeys and a network that does not.

A new client is one more `Case`.
"""

import asyncio
import contextlib
import importlib.util
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.cloud.clients import CLIENTS
from edgewise.cloud.service import EngineService
from edgewise.cloud.workers import ThreadWorkers
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
    CloudClient,
    CloudReply,
    Decision,
    Done,
    Prediction,
    Reason,
    Reference,
    Request,
    Served,
    ServiceInfo,
    Source,
    Status,
)
from edgewise.errors import (
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
)
from edgewise.telemetry import Metrics
from edgewise.wire.door import Limits, front_door
from edgewise.wire.serve import BackgroundServer

SPEC = importlib.util.spec_from_file_location("edgewise_fault_proxy", Path(__file__).parents[1] / "faults" / "proxy.py")
faults = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = faults  # dataclasses look their module up
SPEC.loader.exec_module(faults)

REQUEST = Request(id="r1", inputs="corn rose")
REFERENCE = Reference("news", "sha256:1")
LONG_S, SHORT_S = 20.0, 0.3


@dataclass(frozen=True)
class Case:
    """One client and how its server speaks.

    Attributes:
        client: Makes the client of a URL.
        reply: The body of a good answer to a method, a path and a body, from a version of the model.
    """

    client: Callable[[str], CloudClient]
    reply: Callable[[str, str, bytes, str], Any]


def oip_reply(method: str, path: str, body: bytes, version: str) -> Any:
    if method == "GET":
        return {"name": "news", "versions": [version]}
    sent = json.loads(body)
    label = f"label of {sent['inputs'][0]['data'][0]}"
    output = {"name": "label", "datatype": "BYTES", "shape": [1], "data": [label]}
    return {"model_name": "news", "model_version": version, "id": sent["id"], "outputs": [output]}


CASES = {"oip": Case(lambda url: CLIENTS["oip"](url, model="news", api_key="key-5eb1"), oip_reply)}


def test_every_client_is_in_this_suite():
    assert set(CASES) == set(CLIENTS)


class Handler(BaseHTTPRequestHandler):
    """Answers as its server is told."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        server = self.server
        server.asked.append((self.command, self.path))
        if server.hold:
            server.holding.set()
            # Nothing more is sent on this connection, so what is read next is its end.
            with contextlib.suppress(ConnectionError):
                assert self.rfile.read(1) == b""
            server.gone.set()
            self.close_connection = True
            return
        reply = server.case.reply(self.command, self.path, body, server.version)
        content = server.garbage if server.garbage is not None else json.dumps(reply).encode()
        self.send_response(server.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A cloud that can be told to refuse, to babble, or to hold its answer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, case: Case) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.case, self.version, self.status = case, REFERENCE.version, 200
        self.garbage: bytes | None = None
        self.hold = False
        self.holding, self.gone = threading.Event(), threading.Event()
        self.asked: list[tuple[str, str]] = []


@pytest.fixture(params=sorted(CASES))
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def server(case):
    with Server(case) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(server):
    with faults.FaultProxy(*server.server_address) as proxy:
        yield proxy


@pytest.fixture
async def client(case, proxy):
    client = case.client(proxy.url)
    yield client
    await client.aclose()


async def asked(client: CloudClient, how: str, timeout_s: float) -> Any:
    """Ask in one of the two ways; a client that exceeds its own time-out fails the test instead of hanging it."""
    async with asyncio.timeout(LONG_S * 2):
        if how == "describe":
            return await client.describe(timeout_s=timeout_s)
        return await client.predict(REQUEST, timeout_s=timeout_s)


HOW = pytest.mark.parametrize("how", ["describe", "predict"])


async def test_an_answer_names_the_reference_that_was_described(client):
    assert isinstance(client, CloudClient)
    assert await asked(client, "describe", LONG_S) == REFERENCE
    assert await asked(client, "predict", LONG_S) == CloudReply("label of corn rose", REFERENCE)


async def test_concurrent_requests_each_get_their_own_answer(client):
    requests = [Request(id=f"r{index}", inputs=f"text {index}") for index in range(40)]
    replies = await asyncio.gather(*(client.predict(request, timeout_s=LONG_S) for request in requests))
    assert [reply.output for reply in replies] == [f"label of text {index}" for index in range(40)]


async def test_connections_are_kept(client, proxy):
    for _ in range(5):
        await asked(client, "predict", LONG_S)
    assert proxy.accepted == 1


async def test_an_answer_of_another_version_says_so(client, server):
    server.version = "sha256:2"
    assert (await asked(client, "predict", LONG_S)).reference == Reference("news", "sha256:2")


@HOW
@pytest.mark.parametrize("kept", [False, True])
async def test_a_blackhole_is_a_time_out(client, proxy, how, kept):
    if kept:
        await asked(client, how, LONG_S)
    proxy.set(faults.BLACKHOLE)
    with pytest.raises(CloudTimeoutError, match=f"within {SHORT_S}") as caught:
        await asked(client, how, SHORT_S)
    assert proxy.url in str(caught.value)
    assert caught.value.remedy


@HOW
async def test_a_response_that_drips_is_a_time_out(client, proxy, how):
    # A byte comes well within any read time-out; only the total ends it.
    proxy.set(faults.drip(0.05))
    with pytest.raises(CloudTimeoutError):
        await asked(client, how, SHORT_S)


async def test_a_slow_network_is_waited_for(client, proxy):
    proxy.set(faults.latency(0.05, jitter_s=0.05))
    assert (await asked(client, "predict", LONG_S)).reference == REFERENCE


@HOW
@pytest.mark.parametrize("fault", [faults.reset(0), faults.reset(30), faults.half_close(0), faults.half_close(30)])
async def test_a_connection_cut_in_the_response_is_no_answer(client, proxy, how, fault):
    proxy.set(fault)
    with pytest.raises(CloudResponseError, match="broke off") as caught:
        await asked(client, how, LONG_S)
    assert proxy.url in str(caught.value)


@pytest.mark.parametrize("fault", [faults.BLACKHOLE, faults.drip(0.05), faults.reset(30), faults.half_close(30)])
async def test_after_a_fault_it_answers_again(client, proxy, fault):
    proxy.set(fault)
    with pytest.raises(CloudError):
        await asked(client, "predict", SHORT_S)
    proxy.set(faults.PASS)
    assert (await asked(client, "predict", LONG_S)).reference == REFERENCE


@HOW
async def test_a_refused_connection_is_unreachable(client, proxy, how):
    proxy.set(faults.REFUSE)
    with pytest.raises(CloudUnreachableError) as caught:
        await asked(client, how, LONG_S)
    assert proxy.url in str(caught.value)
    assert caught.value.remedy
    proxy.set(faults.PASS)
    assert await asked(client, "describe", LONG_S) == REFERENCE


async def test_a_cancelled_call_is_noticed_by_the_server(client, server, proxy):
    server.hold = True
    call = asyncio.create_task(client.predict(REQUEST, timeout_s=LONG_S))
    assert await asyncio.to_thread(server.holding.wait, LONG_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(server.gone.wait, LONG_S)
    proxy.wait_until(lambda proxy: proxy.open == 0)


async def test_a_call_that_timed_out_is_noticed_by_the_server(client, server):
    server.hold = True
    with pytest.raises(CloudTimeoutError):
        await client.predict(REQUEST, timeout_s=SHORT_S)
    assert await asyncio.to_thread(server.gone.wait, LONG_S)


async def test_closing_closes_its_connections(case, proxy):
    client = case.client(proxy.url)
    await asked(client, "describe", LONG_S)
    assert proxy.open == 1
    await client.aclose()
    await asyncio.to_thread(proxy.wait_until, lambda proxy: proxy.open == 0)


@HOW
@pytest.mark.parametrize("garbage", [b"", b"{}", b"[1, 2", b"<html></html>", b"\x00\xff" * 500, b'{"outputs": 7}'])
async def test_garbage_is_no_answer(client, server, how, garbage):
    server.garbage = garbage
    with pytest.raises(CloudResponseError) as caught:
        await asked(client, how, LONG_S)
    assert len(str(caught.value)) < 900


@HOW
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503, 301])
async def test_a_refusal_is_named_by_its_status_and_not_retried(client, server, how, status):
    server.status, server.garbage = status, b'{"error": "your key-5eb1 is throttled"}'
    with pytest.raises(CloudResponseError, match=f"status {status}.*your .* is throttled") as caught:
        await asked(client, how, LONG_S)
    assert "key-5eb1" not in str(caught.value)
    assert caught.value.remedy
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422])
async def test_a_server_that_is_well_and_refuses_this_request_is_told_from_one_that_is_not(client, server, status):
    server.status, server.garbage = status, b'{"error": "not this item"}'
    with pytest.raises(CloudRefusedError, match=f"status {status}.*not this item"):
        await asked(client, "predict", LONG_S)


@pytest.mark.parametrize("status", [401, 403, 404, 405, 407, 408, 425, 429, 500, 502, 503, 302])
async def test_a_key_an_address_or_a_load_speaks_of_no_single_request(client, server, status):
    server.status, server.garbage = status, b"{}"
    with pytest.raises(CloudResponseError) as caught:
        await asked(client, "predict", LONG_S)
    assert not isinstance(caught.value, CloudRefusedError)


async def test_a_question_without_an_item_is_never_a_refusal_of_one(client, server):
    server.status, server.garbage = 400, b"{}"
    with pytest.raises(CloudResponseError) as caught:
        await asked(client, "describe", LONG_S)
    assert not isinstance(caught.value, CloudRefusedError)


@pytest.mark.parametrize("item", [np.array(["a"]), np.array([[np.nan]]), np.zeros((2, 2), complex), "\ud800"])
async def test_an_item_that_the_protocol_cannot_carry_is_refused_and_not_sent(client, server, item):
    with pytest.raises(CloudRefusedError):
        await client.predict(Request(id="r1", inputs=item), timeout_s=LONG_S)
    assert server.asked == []


@HOW
@pytest.mark.parametrize("host", ["a..b.invalid", "a" * 70 + ".invalid"])
async def test_a_host_name_that_is_none_is_unreachable(case, how, host):
    client = case.client(f"http://{host}:80")
    with pytest.raises(CloudUnreachableError, match=host):
        await asked(client, how, LONG_S)
    await client.aclose()


async def test_an_upstream_that_speaks_no_http_is_no_answer(case):
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"220 mail.test ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as mail:
        client = case.client(f"http://127.0.0.1:{mail.sockets[0].getsockname()[1]}")
        with pytest.raises(CloudResponseError):
            await asked(client, "predict", LONG_S)
        await client.aclose()


async def test_proxies_of_the_environment_are_left_alone(case, proxy, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    client = case.client(proxy.url)
    assert await asked(client, "describe", LONG_S) == REFERENCE
    await client.aclose()


# From here on: the oip client against our own front door over an engine, nothing in between.


class GatedEngine:
    """Echoes texts, records them, and holds them while its gate is closed."""

    info = ServiceInfo(
        name="news", version="sha256:1", task="text-classification", labels=("a", "b"), input="text", role="cloud"
    )
    slots = 1

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def predict(self, inputs):
        self.entered.set()
        assert self.gate.wait(LONG_S)
        self.seen.extend(inputs)
        return [Prediction(output=f"label of {text}") for text in inputs]


@pytest.fixture
def engine():
    made = GatedEngine()
    yield made
    made.gate.set()


@contextlib.contextmanager
def front(service, engine, lifespan=None, ready=lambda: None, **more):
    models = {engine.info.name: Served(info=engine.info, service=service, ready=ready)}
    app = front_door(lambda: models, answers=None, metrics=Metrics(), lifespan=lifespan, **more)
    with BackgroundServer(app) as running:
        yield running.url


class Watched:
    """A service that tells who came and who left."""

    def __init__(self, service) -> None:
        self.service = service
        self.came, self.left = defaultdict(threading.Event), defaultdict(threading.Event)

    async def events(self, request):
        self.came[request.id].set()
        try:
            async for event in self.service.events(request):
                yield event
        finally:
            self.left[request.id].set()

    async def until(self, event: threading.Event) -> None:
        assert await asyncio.to_thread(event.wait, LONG_S)


@pytest.fixture
def service(engine):
    return Watched(EngineService(ThreadWorkers(engine), clock=time, max_batch=4))


@pytest.fixture
def cloud_url(engine, service):
    inner = service.service
    with front(service, engine, inner.lifespan, api_keys={"key-5eb1": "tenant"}, ready=inner.ready) as url:
        yield url


@pytest.fixture
async def own(cloud_url):
    client = CLIENTS["oip"](cloud_url, api_key="key-5eb1")
    yield client
    await client.aclose()


async def test_our_own_service_answers_and_says_what_it_serves(own):
    assert await asked(own, "describe", LONG_S) == REFERENCE
    replies = await asyncio.gather(
        *(own.predict(Request(id=f"r{i}", inputs=f"text {i}"), timeout_s=LONG_S) for i in range(20))
    )
    assert replies == [CloudReply(f"label of text {i}", REFERENCE) for i in range(20)]


@pytest.mark.parametrize("how", ["time-out", "cancel"])
async def test_our_own_service_computes_nothing_for_a_client_that_gave_up(own, engine, service, how):
    engine.gate.clear()
    first = asyncio.create_task(own.predict(Request(id="first", inputs="first"), timeout_s=LONG_S))
    await asyncio.to_thread(engine.entered.wait, LONG_S)
    if how == "time-out":
        # The service may say first that the budget is spent.
        with pytest.raises(CloudError):
            await own.predict(Request(id="given-up", inputs="given up"), timeout_s=SHORT_S)
    else:
        given_up = asyncio.create_task(own.predict(Request(id="given-up", inputs="given up"), timeout_s=LONG_S))
        await service.until(service.came["given-up"])
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
    patient = asyncio.create_task(own.predict(Request(id="patient", inputs="patient"), timeout_s=LONG_S))
    await service.until(service.left["given-up"])
    await service.until(service.came["patient"])
    engine.gate.set()
    assert [reply.output for reply in await asyncio.gather(first, patient)] == ["label of first", "label of patient"]
    assert engine.seen == ["first", "patient"]


async def test_an_expired_key_is_told_as_such(cloud_url):
    client = CLIENTS["oip"](cloud_url, model="news", api_key="key-old")
    with pytest.raises(CloudResponseError, match="status 401") as caught:
        await asked(client, "predict", LONG_S)
    assert "key" in caught.value.remedy
    assert "key-old" not in str(caught.value)
    await client.aclose()


async def test_an_unknown_model_is_told_as_such(cloud_url):
    client = CLIENTS["oip"](cloud_url, model="olds", api_key="key-5eb1")
    for how in ("describe", "predict"):
        with pytest.raises(CloudResponseError, match="status 404"):
            await asked(client, how, LONG_S)
    await client.aclose()


async def test_a_service_with_enough_to_do_is_told_as_such(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    with front(service, engine, service.lifespan, limits=Limits(max_concurrency=1)) as url:
        client = CLIENTS["oip"](url, model="news")
        engine.gate.clear()
        first = asyncio.create_task(client.predict(REQUEST, timeout_s=LONG_S))
        await asyncio.to_thread(engine.entered.wait, LONG_S)
        with pytest.raises(CloudResponseError, match="status 429"):
            await asked(client, "predict", LONG_S)
        engine.gate.set()
        assert (await first).reference == REFERENCE
        await client.aclose()


async def test_an_item_the_service_does_not_read_is_told_as_such(own):
    with pytest.raises(CloudRefusedError, match=r"status 400.*text"):
        await own.predict(Request(id="r1", inputs=b"png"), timeout_s=LONG_S)


async def test_an_item_larger_than_the_service_takes_is_told_as_such(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    with front(service, engine, service.lifespan, limits=Limits(max_body_bytes=1000)) as url:
        client = CLIENTS["oip"](url)
        with pytest.raises(CloudRefusedError, match="status 413") as caught:
            await client.predict(Request(id="r1", inputs="corn " * 1000), timeout_s=LONG_S)
        assert "smaller" in caught.value.remedy
        assert (await asked(client, "predict", LONG_S)).reference == REFERENCE
        await client.aclose()


@pytest.mark.parametrize(
    ("reason", "kind"), [(Reason.BREAKER_OPEN, CloudResponseError), (Reason.CLOUD_REFUSED, CloudRefusedError)]
)
async def test_a_gateway_that_answers_provisionally_is_no_reference(engine, reason, kind):
    class Gateway:
        async def events(self, request):
            decision = Decision(action=Action.ESCALATE, reason=reason, policy="certified")
            yield Answered(
                Answer(
                    id=request.id,
                    output="guess",
                    status=Status.PROVISIONAL,
                    source=Source.EDGE,
                    decision=decision,
                    timings_ms={"total": 1.0},
                    model_digest="sha256:edge",
                )
            )
            yield Done(request.id, pending=True)

    with front(Gateway(), engine) as url:
        client = CLIENTS["oip"](url)
        with pytest.raises(CloudResponseError, match="provisionally") as caught:
            await asked(client, "predict", LONG_S)
        assert type(caught.value) is kind
        await client.aclose()
