"""The client of the Open Inference Protocol against our own front door over an engine, nothing in between."""

import asyncio
import contextlib
import threading
import time
from collections import defaultdict

import pytest

from edgewise.cloud.clients import CLIENTS
from edgewise.cloud.clients.oip import upstream_id
from edgewise.cloud.service import EngineService
from edgewise.cloud.workers import ThreadWorkers
from edgewise.contracts import (
    Action,
    Answer,
    Answered,
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
from edgewise.errors import CloudError, CloudRefusedError, CloudResponseError
from edgewise.telemetry import Metrics
from edgewise.wire.door import Limits, front_door
from edgewise.wire.serve import BackgroundServer

REQUEST = Request(id="r1", inputs="corn rose")
REFERENCE = Reference("news", "sha256:1")
LONG_S, SHORT_S = 20.0, 0.3


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
    assert await own.describe(timeout_s=LONG_S) == REFERENCE
    replies = await asyncio.gather(
        *(own.predict(Request(id=f"r{i}", inputs=f"text {i}"), timeout_s=LONG_S) for i in range(20))
    )
    assert replies == [CloudReply(f"label of text {i}", REFERENCE) for i in range(20)]


GIVEN_UP, PATIENT = Request(id="given-up", inputs="given up"), Request(id="patient", inputs="patient")


@pytest.mark.parametrize("how", ["time-out", "cancel"])
async def test_our_own_service_computes_nothing_for_a_client_that_gave_up(own, engine, service, how):
    engine.gate.clear()
    first = asyncio.create_task(own.predict(Request(id="first", inputs="first"), timeout_s=LONG_S))
    await asyncio.to_thread(engine.entered.wait, LONG_S)
    if how == "time-out":
        # The service may say first that the budget is spent.
        with pytest.raises(CloudError):
            await own.predict(GIVEN_UP, timeout_s=SHORT_S)
    else:
        given_up = asyncio.create_task(own.predict(GIVEN_UP, timeout_s=LONG_S))
        await service.until(service.came[upstream_id(GIVEN_UP)])
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
    patient = asyncio.create_task(own.predict(PATIENT, timeout_s=LONG_S))
    await service.until(service.left[upstream_id(GIVEN_UP)])
    await service.until(service.came[upstream_id(PATIENT)])
    engine.gate.set()
    assert [reply.output for reply in await asyncio.gather(first, patient)] == ["label of first", "label of patient"]
    assert engine.seen == ["first", "patient"]


async def test_an_expired_key_is_told_as_such(cloud_url):
    client = CLIENTS["oip"](cloud_url, model="news", api_key="key-old")
    with pytest.raises(CloudResponseError, match="status 401") as caught:
        await client.predict(REQUEST, timeout_s=LONG_S)
    assert "key" in caught.value.remedy
    assert "key-old" not in str(caught.value)
    await client.aclose()


async def test_an_unknown_model_is_told_as_such(cloud_url):
    client = CLIENTS["oip"](cloud_url, model="olds", api_key="key-5eb1")
    with pytest.raises(CloudResponseError, match="status 404"):
        await client.describe(timeout_s=LONG_S)
    with pytest.raises(CloudResponseError, match="status 404"):
        await client.predict(REQUEST, timeout_s=LONG_S)
    await client.aclose()


async def test_a_service_with_enough_to_do_is_told_as_such(engine):
    service = EngineService(ThreadWorkers(engine), clock=time)
    with front(service, engine, service.lifespan, limits=Limits(max_concurrency=1)) as url:
        client = CLIENTS["oip"](url, model="news")
        engine.gate.clear()
        first = asyncio.create_task(client.predict(REQUEST, timeout_s=LONG_S))
        await asyncio.to_thread(engine.entered.wait, LONG_S)
        with pytest.raises(CloudResponseError, match="status 429"):
            await client.predict(REQUEST, timeout_s=LONG_S)
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
        assert (await client.predict(REQUEST, timeout_s=LONG_S)).reference == REFERENCE
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
            await client.predict(REQUEST, timeout_s=LONG_S)
        assert type(caught.value) is kind
        await client.aclose()
