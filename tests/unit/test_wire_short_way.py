"""The door behind its own protocol: replies without a task, access log, several models."""

import asyncio
import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from edgewise.contracts import Answer, Served
from edgewise.errors import CloudRefusedError, RequestError
from edgewise.telemetry import Metrics
from edgewise.wire import accesslog, native, oip
from edgewise.wire.catalog import infer_path
from edgewise.wire.door import Limits, front_door
from edgewise.wire.http import Reply


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")
HELLO = b'{"inputs":"hello","id":"7"}'
INFER = b'{"id":"7","inputs":[{"name":"text","shape":[2],"datatype":"BYTES","data":["a","wait"]}]}'


class Prompt(fakes.FakeService):
    """Answers at once, unless it is asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    def respond(self, request):
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return self.waited(request) if request.inputs == "wait" else fakes.make_answer(request.id)

    async def waited(self, request) -> Answer:
        await self.go.wait()
        return fakes.make_answer(request.id, "late")


@pytest.fixture
def service() -> Prompt:
    return Prompt()


def door(service: object, **options: object):
    return front_door(fakes.served(service), **{"answers": None, "metrics": Metrics(), **options})


def scope(path: str = "/v1/predict", method: str = "POST", **headers: str) -> dict:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": method, "headers": lines, "edgewise.arrived_s": 5.0}


class Wire:
    """Both ends of a connection."""

    def __init__(self) -> None:
        self.sent: list[dict] = []
        self.gone = asyncio.Event()

    async def receive(self) -> dict:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


# Without a task


async def test_an_answer_that_is_known_is_a_reply_at_once(service: Prompt) -> None:
    reply = door(service).at_once(scope(), HELLO)
    assert isinstance(reply, Reply)
    assert reply.status == 200
    assert native.decode_answer(reply.body) == fakes.make_answer("7")
    assert dict(reply.lines())[b"x-edgewise-id"] == b"7"
    assert service.requests[0].arrived_s == 5.0


async def test_the_short_way_says_what_the_long_way_says(service: Prompt) -> None:
    app, wire = door(service), Wire()
    reply = app.at_once(scope(), HELLO)
    await app({**scope(), "edgewise.whole_body": HELLO}, wire.receive, wire.send)
    assert (reply.status, reply.body) == (wire.status, wire.body)
    assert reply.lines() == wire.sent[0]["headers"]


async def test_an_answer_that_waits_goes_on_as_an_application_and_holds_a_slot(service: Prompt) -> None:
    app, wire = door(service, limits=Limits(max_concurrency=1)), Wire()
    rest = app.at_once(scope(), HELLO.replace(b"hello", b"wait"))
    assert not isinstance(rest, Reply)
    refused = app.at_once(scope(), HELLO)
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (429, "too_many_requests")
    service.go.set()
    await rest(scope(), wire.receive, wire.send)
    assert json.loads(wire.body)["output"] == "late"
    assert app.at_once(scope(), HELLO).status == 200


async def test_a_client_that_leaves_cancels_what_waits_and_frees_the_slot(service: Prompt) -> None:
    app, wire = door(service, limits=Limits(max_concurrency=1)), Wire()
    rest = app.at_once(scope(), HELLO.replace(b"hello", b"wait"))
    wire.gone.set()
    await rest(scope(), wire.receive, wire.send)
    assert wire.sent == []
    assert app.at_once(scope(), HELLO).status == 200


async def test_items_that_are_known_and_items_that_wait_share_a_reply(service: Prompt) -> None:
    app, wire = door(service), Wire()
    rest = app.at_once(scope("/v2/models/newswire/infer"), INFER)
    service.go.set()
    await rest(scope("/v2/models/newswire/infer"), wire.receive, wire.send)
    reply = oip.decode_infer_response(wire.body)
    assert [reply.output(0), reply.output(1)] == ["earn", "late"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("inputs", "No.", "Yes."), 400),
        (CloudRefusedError("It will not.", "Ask otherwise."), 422),
        (KeyError(), 500),
    ],
)
async def test_an_error_is_a_reply_too(service: Prompt, error: Exception, status: int) -> None:
    service.error = error
    assert door(service).at_once(scope(), HELLO).status == status


@pytest.mark.parametrize(
    "given",
    [scope("/healthz", "GET"), scope("/metrics"), scope("/v1/predict", "GET"), scope(accept="text/event-stream")],
    ids=["health", "page", "method", "events"],
)
async def test_what_is_not_hot_takes_the_long_way(service: Prompt, given: dict) -> None:
    assert door(service).at_once(given, HELLO) is None


async def test_the_short_way_asks_for_keys_hosts_rates_and_sizes(service: Prompt) -> None:
    app = door(
        service, api_keys={"k": "t"}, limits=Limits(hosts=("localhost",), rate_per_s=0.1, burst=2, max_body_bytes=50)
    )
    assert app.at_once(scope(host="evil.example", x_api_key="k"), HELLO).status == 421
    assert app.at_once(scope(host="localhost"), HELLO).status == 401
    assert app.at_once(scope(host="localhost:1", x_api_key="k"), HELLO).status == 200
    assert app.at_once(scope(host="localhost", x_api_key="k", content_length="51"), HELLO + b" " * 24).status == 413
    limited = app.at_once(scope(host="localhost", x_api_key="k"), HELLO)
    assert limited.status == 429
    assert int(dict(limited.headers)[b"retry-after"]) == 10
    assert service.requests[0].tenant == "t"


async def test_health_needs_no_known_host(service: Prompt) -> None:
    transport = httpx.ASGITransport(door(service, limits=Limits(hosts=("localhost",))))
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/metrics")).status_code == 421


# Several models


async def test_models_are_found_by_name_and_looked_up_at_every_request() -> None:
    services = {name: fakes.FakeService() for name in "abc"}
    models = {
        name: Served(info=fakes.service_info(name=name), service=services[name], ready=lambda: None) for name in "ab"
    }
    app = front_door(lambda: models, answers=None, metrics=Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:

        async def ask(**named: str) -> int:
            return (await client.post("/v1/predict", json={"inputs": "x", **named})).status_code

        assert [await ask(), await ask(model="b"), await ask(model="c")] == [200, 200, 404]
        assert [len(services[name].requests) for name in "abc"] == [1, 1, 0]
        swapped = Served(
            info=fakes.service_info(name="c", version="2"), service=services["c"], ready=lambda: "it loads."
        )
        models = {"c": swapped, "b": models["b"]}
        assert [await ask(), await ask(model="c"), await ask(model="a")] == [200, 200, 404]
        assert len(services["c"].requests) == 2
        unknown = (await client.post("/v1/predict", json={"inputs": "x", "model": "a"})).json()["error"]
        assert (unknown["field"], "'c', 'b'" in unknown["remedy"]) == ("model", True)
        assert (
            await client.post("/v2/models/c/versions/2/infer", content=INFER.replace(b"wait", b"b"))
        ).status_code == 200
        assert (await client.post("/v2/models/c/versions/1/infer", content=INFER)).status_code == 404
        assert "it loads." in (await client.get("/readyz")).text
        assert (await client.get("/v2/models/b/ready")).status_code == 200
        models = {}
        assert [await ask(), (await client.get("/readyz")).status_code] == [503, 503]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v2/models/a/infer", ("a", None)),
        ("/v2/models/a.b-c/versions/sha256:1/infer", ("a.b-c", "sha256:1")),
        ("/v2/models//infer", None),
        ("/v2/models/infer", None),
        ("/v2/models/a/versions//infer", None),
        ("/v2/models/a/versions/1/2/infer", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/a/infer/", None),
        ("/v2/models/a/ready", None),
        ("/v1/predict", None),
    ],
)
def test_an_infer_path_names_a_model(path: str, found: tuple | None) -> None:
    assert infer_path(path) == found


# The end of service


async def test_readiness_and_long_polls_end_with_the_service(service: Prompt) -> None:
    app = door(service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
        assert (await client.get("/readyz")).status_code == 200
        app.drain()
        assert (await client.get("/readyz")).status_code == 503
        assert "shutting down" in (await client.get("/v2/health/ready")).text
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post("/v1/predict", content=HELLO)).status_code == 200


# The access log


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, accesslog.log.name)
    return lambda: [json.loads(record.getMessage()) for record in caplog.records if record.name == accesslog.log.name]


async def test_each_request_is_a_line_without_payload_key_or_query(service: Prompt, lines) -> None:
    app = door(service, api_keys={"the-key": "acme"}, access_log=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
        headers = {"authorization": "Bearer the-key"}
        answer = await client.post("/v1/predict?q=query", json={"inputs": "the-payload", "id": "7"}, headers=headers)
        await client.post("/v1/predict", json={"inputs": "the-payload"})
        await client.get("/nowhere?q=query", headers=headers)
    first, second, third = lines()
    assert {
        name: first[name] for name in ("method", "route", "status", "tenant", "id", "source", "reason", "answer")
    } == {
        "method": "POST",
        "route": "/v1/predict",
        "status": 200,
        "tenant": "acme",
        "id": "7",
        "source": "edge",
        "reason": "confident",
        "answer": "final",
    }
    assert first["bytes"] == len(answer.content)
    assert first["ms"] >= 0
    assert first["time"] > 1e9
    assert (second["status"], second["tenant"], third["status"], third["route"]) == (401, "", 404, "/nowhere")
    assert not any(secret in json.dumps(lines()) for secret in ("the-payload", "the-key", "query"))


async def test_a_client_that_left_is_a_line_too(service: Prompt, lines) -> None:
    app, wire = door(service, access_log=True), Wire()
    assert app.at_once(scope(), HELLO) is None
    wire.gone.set()
    body = HELLO.replace(b"hello", b"wait")
    await app({**scope(), "edgewise.whole_body": body}, wire.receive, wire.send)
    (line,) = lines()
    assert (line["status"], line["bytes"]) == (499, 0)


async def test_nothing_is_logged_unless_it_is_wanted(service: Prompt, lines) -> None:
    app = door(service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
        await client.post("/v1/predict", content=HELLO)
    assert lines() == []


async def test_a_body_whose_length_was_not_announced_is_bounded_too(service: Prompt) -> None:
    app = door(service, limits=Limits(max_body_bytes=len(HELLO) - 1))
    reply = app.at_once(scope(), HELLO)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "payload_too_large")
    assert service.requests == []
