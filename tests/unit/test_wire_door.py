import asyncio
import contextlib
import importlib.util
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import Reason, Request, Source, Status
from edgewise.errors import (
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    InputError,
    OutboxFullError,
    RequestError,
    StoreError,
)
from edgewise.store import SqliteStore
from edgewise.telemetry import Metrics
from edgewise.wire import native, oip
from edgewise.wire.door import Limits, front_door
from edgewise.wire.http import header


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")

INFER = "/v2/models/newswire/infer"
HELLO = {"inputs": "hello"}
TEXT = {"id": "c", "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"]}]}


class House:
    """A door with everything behind it in reach."""

    def __init__(self, ready: Callable[[], str | None] | None = None, **options: object) -> None:
        self.service = fakes.FakeService()
        self.models = dict(fakes.served(self.service, ready)())
        self.metrics = Metrics()
        self.answers = SqliteStore(":memory:").answers
        options = {"answers": self.answers, "metrics": self.metrics, "new_id": lambda: "new", **options}
        self.app = front_door(lambda: self.models, **options)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://door")

    def counted(self, line: str) -> bool:
        return f"{line}\n" in self.metrics.render().decode()


@pytest.fixture
def house() -> House:
    return House()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  what is awaited sets no event
            await asyncio.sleep(0)


def error_of(response: httpx.Response) -> native.ErrorDetail:
    detail = native.decode_error(response.content)
    assert detail is not None, response.text
    return detail


# The native protocol


async def test_predict_answers(house: House) -> None:
    response = await house.client.post("/v1/predict", json={**HELLO, "id": "7", "budget_ms": 50})
    assert response.status_code == 200
    assert native.decode_answer(response.content) == fakes.make_answer("7")
    assert response.headers["content-type"] == "application/json"
    assert {name: value for name, value in response.headers.items() if name.startswith("x-edgewise")} == {
        "x-edgewise-id": "7",
        "x-edgewise-source": "edge",
        "x-edgewise-reason": "confident",
        "x-edgewise-status": "final",
        "x-edgewise-model-digest": "sha256:1",
    }
    (request,) = house.service.requests
    assert (request.inputs, request.tenant, request.budget_ms) == ("hello", "public", 50)
    assert house.counted(
        'edgewise_requests_total{model="newswire",source="edge",reason="confident",status="final"} 1.0'
    )
    assert house.counted('edgewise_request_seconds_count{model="newswire",source="edge"} 1')


async def test_a_provisional_answer_says_so_in_body_header_and_metrics(house: House) -> None:
    house.service.make = lambda request: fakes.make_answer(
        request.id, status=Status.PROVISIONAL, reason=Reason.CLOUD_FAILED
    )
    response = await house.client.post("/v1/predict", json=HELLO)
    assert response.status_code == 200
    assert response.json()["status"] == response.headers["x-edgewise-status"] == "provisional"
    assert house.counted(
        'edgewise_requests_total{model="newswire",source="edge",reason="cloud_failed",status="provisional"} 1.0'
    )


async def test_a_foreign_digest_cannot_break_a_header(house: House) -> None:
    house.service.make = lambda request: fakes.make_answer(request.id, model_digest="v1\r\nx: é")
    response = await house.client.post("/v1/predict", json=HELLO)
    assert response.headers["x-edgewise-model-digest"] == "v1??x: ??"


@pytest.mark.parametrize(
    ("value", "echoed"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("garbage", False),
    ],
)
async def test_a_valid_traceparent_comes_back(house: House, value: str, echoed: bool) -> None:
    for path, body in (("/v1/predict", HELLO), (INFER, TEXT), ("/v1/predict", {})):
        response = await house.client.post(path, json=body, headers={"traceparent": value})
        assert response.headers.get("traceparent") == (value if echoed else None)


@pytest.mark.parametrize("stuck_at", ["http.response.start", "http.response.body"])
async def test_a_reply_that_nobody_reads_holds_no_room_and_is_followed_by_no_other(house: House, stuck_at: str) -> None:
    body = json.dumps(HELLO).encode()
    sent: list[str] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])
        if message["type"] == stuck_at:
            assert house.app._gate.room.taken == house.app._gate.slots.taken == 0
            await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": []}
    task = asyncio.create_task(house.app(scope, receive, send))
    await until(lambda: stuck_at in sent)
    before = list(sent)
    task.cancel()
    await asyncio.wait({task})
    assert sent == before
    assert house.app._gate.room.taken == 0


# The Open Inference Protocol


@pytest.mark.parametrize("path", [INFER, "/v2/models/newswire/versions/sha256:1/infer"])
async def test_infer_answers(house: House, path: str) -> None:
    response = await house.client.post(path, json=TEXT)
    assert response.status_code == 200
    reply = oip.decode_infer_response(response.content)
    assert (reply.output(), reply.status(), reply.id, reply.model_version) == ("earn", Status.FINAL, "c", "sha256:1")
    assert response.headers["x-edgewise-source"] == "edge"
    assert house.service.requests[0].id == "c"


async def test_items_of_one_infer_request_run_at_once(house: House) -> None:
    house.service.hold = asyncio.Event()
    body = {"id": "c", "inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "data": ["a", "b", "c"]}]}
    house.service.make = lambda request: fakes.make_answer(request.id, str(request.inputs).upper())
    asking = asyncio.create_task(house.client.post(INFER, json=body))
    await until(lambda: len(house.service.requests) == 3)
    house.service.hold.set()
    response = await asking
    assert [request.id for request in house.service.requests] == ["c-0", "c-1", "c-2"]
    assert response.json()["outputs"][0]["data"] == ["A", "B", "C"]
    assert "x-edgewise-source" not in response.headers


async def test_one_failing_item_fails_the_request_and_cancels_the_others(house: House) -> None:
    held = asyncio.Event()

    class HalfBroken(type(house.service)):
        async def events(self, request):
            if request.inputs == "bad":
                raise CloudUnreachableError("The cloud is down.")
            self.hold = held
            async for event in super().events(request):
                yield event

    service = HalfBroken()
    app = front_door(fakes.served(service), answers=None, metrics=Metrics())
    body = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "bad"]}]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
        response = await client.post(INFER, json=body)
    assert response.status_code == 503
    assert oip.decode_error(response.content) == "The cloud is down."
    assert len(service.cancelled) == 1


async def test_an_oip_error_has_the_protocols_shape(house: House) -> None:
    response = await house.client.post(INFER, json={"inputs": []})
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert "'text'" in oip.decode_error(response.content)


@pytest.mark.parametrize(
    ("method", "path", "remedy"),
    [
        ("POST", "/v2/models/other/infer", "'newswire'"),
        ("POST", "/v2/models/newswire/versions/9/infer", "'sha256:1'"),
        ("GET", "/v2/models/other", "'newswire'"),
        ("GET", "/v2/models/other/ready", "'newswire'"),
        ("GET", "/v2/models/newswire/versions/9", "'sha256:1'"),
        ("GET", "/v2/nowhere", "lists the endpoints"),
    ],
)
async def test_what_oip_does_not_know_is_named(house: House, method: str, path: str, remedy: str) -> None:
    response = await house.client.request(method, path, json=TEXT)
    assert response.status_code == 404
    assert remedy in oip.decode_error(response.content)


async def test_tensors_travel_as_bytes_both_ways(house: House) -> None:
    sent = oip.encode_binary_infer_request(Request(id="c", inputs="hello"), budget_ms=None)
    length = {"inference-header-content-length": str(sent.json_bytes)}
    response = await house.client.post(INFER, content=sent.body, headers=length)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/octet-stream"
    read = oip.decode_infer_response(response.content, int(response.headers["inference-header-content-length"]))
    assert read.output() == "earn"
    assert house.service.requests[0].inputs == "hello"


async def test_bytes_that_are_cut_are_refused_by_the_tensors_name(house: House) -> None:
    sent = oip.encode_binary_infer_request(Request(id="c", inputs="hello"), budget_ms=None)
    length = {"inference-header-content-length": str(sent.json_bytes)}
    response = await house.client.post(INFER, content=sent.body[:-1], headers=length)
    assert response.status_code == 400
    assert "'text'" in oip.decode_error(response.content)


async def test_metadata_and_health(house: House) -> None:
    get = house.client.get
    assert (await get("/v2")).json()["name"] == "edgewise"
    for path in ("/v2/models/newswire", "/v2/models/newswire/versions/sha256:1"):
        assert oip.decode_model_metadata((await get(path)).content).name == "newswire"
    assert (await get("/v2/health/live")).json() == {"live": True}
    assert (await get("/v2/health/ready")).json() == {"ready": True}
    assert (await get("/v2/models/newswire/ready")).json() == {"name": "newswire", "ready": True}
    assert (await get("/readyz")).json() == {"status": "ready"}
    assert (await get("/healthz")).json() == {"status": "alive"}
    assert (await get("/")).json()["service"]["role"] == "gateway"


async def test_not_ready_says_why_and_stays_alive() -> None:
    house = House(ready=lambda: "the model is warming up")
    for path in ("/readyz", "/v2/health/ready", "/v2/models/newswire/ready"):
        response = await house.client.get(path)
        assert response.status_code == 503
        assert "warming up" in response.text
        assert response.headers["retry-after"] == "1"
    assert (await house.client.get("/healthz")).status_code == 200
    assert (await house.client.get("/v2/health/live")).status_code == 200


# Answers for later pick-up


async def test_an_answer_can_be_picked_up(house: House) -> None:
    house.answers.put("public", fakes.make_answer("7", status=Status.PROVISIONAL))
    response = await house.client.get("/v1/answers/7")
    assert response.status_code == 200
    assert response.headers["x-edgewise-status"] == "provisional"
    assert native.decode_answer(response.content).id == "7"


async def test_a_long_poll_waits_for_the_final_answer(house: House) -> None:
    house.answers.put("public", fakes.make_answer("7", status=Status.PROVISIONAL))
    polling = asyncio.create_task(house.client.get("/v1/answers/7", params={"wait_ms": 60_000}))
    await until(lambda: len(house.answers._waiters) == 1)  # nothing outside tells that a poll has begun to wait
    house.answers.put("public", fakes.make_answer("7", "acq", source=Source.CLOUD))
    response = await polling
    assert (response.json()["output"], response.json()["status"]) == ("acq", "final")


async def test_a_poll_whose_time_is_up_gives_what_there_is(house: House) -> None:
    house.answers.put("public", fakes.make_answer("7", status=Status.PROVISIONAL))
    response = await house.client.get("/v1/answers/7", params={"wait_ms": 5})
    assert response.json()["status"] == "provisional"


@pytest.mark.parametrize("options", [{}, {"answers": None}])
async def test_an_unknown_answer_is_not_found_at_once(options: dict) -> None:
    response = await House(**options).client.get("/v1/answers/7", params={"wait_ms": 60_000})
    assert response.status_code == 404
    assert error_of(response).code == "not_found"
    assert error_of(response).remedy


@pytest.mark.parametrize("wait_ms", ["-1", "x", "nan", "inf", "60001", ""])
async def test_a_poll_without_a_sensible_wait_is_refused(house: House, wait_ms: str) -> None:
    response = await house.client.get("/v1/answers/7", params={"wait_ms": wait_ms})
    assert response.status_code == 400
    assert error_of(response).field == "wait_ms"


async def test_an_answer_that_the_cloud_refused_ends_a_poll_at_once(house: House) -> None:
    refused = fakes.make_answer("7", status=Status.PROVISIONAL, reason=Reason.CLOUD_REFUSED)
    house.answers.put("public", refused)
    response = await house.client.get("/v1/answers/7", params={"wait_ms": 60_000})
    assert native.decode_answer(response.content) == refused


async def test_one_poll_too_many_is_told_to_come_back() -> None:
    house = House(limits=Limits(max_polls=1))
    house.answers.put("public", fakes.make_answer("7", status=Status.PROVISIONAL))
    first = asyncio.create_task(house.client.get("/v1/answers/7", params={"wait_ms": 60_000}))
    await until(lambda: len(house.answers._waiters) == 1)
    second = await house.client.get("/v1/answers/7", params={"wait_ms": 60_000})
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert error_of(second).code == "too_many_requests"
    assert (await house.client.get("/v1/answers/7")).status_code == 200
    assert (await house.client.post("/v1/predict", json=HELLO)).status_code == 200
    house.answers.put("public", fakes.make_answer("7"))
    assert (await first).status_code == 200
    assert (await house.client.get("/v1/answers/7", params={"wait_ms": 60_000})).status_code == 200


# Keys and tenants

KEYS = {"key-a": "a", "key-b": "b"}


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ({"authorization": "Bearer key-a"}, "a"),
        ({"authorization": "bearer  key-b"}, "b"),
        ({"x-api-key": "key-b"}, "b"),
    ],
)
async def test_the_tenant_comes_from_the_key(headers: dict[str, str], tenant: str) -> None:
    house = House(api_keys=KEYS)
    for path, body in (("/v1/predict", HELLO), (INFER, TEXT)):
        assert (await house.client.post(path, json=body, headers=headers)).status_code == 200
    assert [request.tenant for request in house.service.requests] == [tenant] * 2


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer key-c"},
        {"authorization": "Basic key-a"},
        {"authorization": "key-a"},
        {"authorization": "Bearer "},
        {"x-api-key": "key-a2"},
        {"x-api-key": "a"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/predict"),
        ("POST", INFER),
        ("GET", "/metrics"),
        ("GET", "/v1/answers/7"),
        ("GET", "/v2"),
        ("GET", "/"),
    ],
)
async def test_without_a_known_key_nobody_comes_in(headers: dict[str, str], method: str, path: str) -> None:
    house = House(api_keys=KEYS)
    response = await house.client.request(method, path, json=HELLO, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "x-api-key" in response.text
    assert not house.service.requests


async def test_health_needs_no_key() -> None:
    house = House(api_keys=KEYS)
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/newswire/ready"):
        assert (await house.client.get(path)).status_code == 200


async def test_an_answer_is_given_to_its_own_tenant_only() -> None:
    house = House(api_keys=KEYS)
    house.answers.put("a", fakes.make_answer("7"))
    assert (await house.client.get("/v1/answers/7", headers={"x-api-key": "key-a"})).status_code == 200
    assert (await house.client.get("/v1/answers/7", headers={"x-api-key": "key-b"})).status_code == 404


@pytest.mark.parametrize("origin", ["http://evil.example", "http://door", "null"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/predict"), ("POST", INFER), ("GET", "/v1/answers/7"), ("GET", "/metrics")]
)
async def test_a_web_page_needs_a_key(origin: str, method: str, path: str) -> None:
    headers = {"origin": origin, "content-type": "text/plain"}
    house = House()
    house.answers.put("public", fakes.make_answer("7"))
    body = json.dumps(TEXT if path == INFER else HELLO).encode() if method == "POST" else None
    response = await house.client.request(method, path, content=body, headers=headers)
    assert response.status_code == 403
    assert "API keys" in response.text
    assert not house.service.requests
    assert (await house.client.get("/healthz", headers=headers)).status_code == 200
    keyed = House(api_keys=KEYS)
    keyed.answers.put("a", fakes.make_answer("7"))
    response = await keyed.client.request(method, path, content=body, headers={**headers, "x-api-key": "key-a"})
    assert response.status_code == 200


async def test_a_body_needs_no_content_type(house: House) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}  # what `curl -d` says
    for headers in (form, {}):
        response = await house.client.post("/v1/predict", content=json.dumps(HELLO).encode(), headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", ".", "-a", "a\n", "a?b", "a%2fb", "١"])
def test_a_name_that_cannot_stand_in_a_url_is_a_setting_to_change(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a URL") as caught:
        front_door(fakes.served(fakes.FakeService(), name=name), answers=None, metrics=Metrics())
    assert "letter or a digit" in caught.value.remedy


@pytest.mark.parametrize("name", ["a", "7", "news-wire_2.1", "A..b"])
async def test_a_name_that_can_stand_in_a_url_is_served(name: str) -> None:
    app = front_door(fakes.served(fakes.FakeService(), name=name), answers=None, metrics=Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
        assert (await client.post(f"/v2/models/{name}/infer", json=TEXT)).status_code == 200


@pytest.mark.parametrize("keys", [{"": "a"}, {"key": ""}])
def test_empty_keys_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="empty"):
        House(api_keys=keys)


# What goes wrong


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("mode", "No.", "Do so."), 400, "invalid_request"),
        (InputError("No.", "Do so."), 400, "invalid_request"),
        (CloudUnreachableError("No.", "Do so."), 503, "cloud_unavailable"),
        (CloudTimeoutError("No.", "Do so."), 504, "cloud_timeout"),
        (OutboxFullError("No.", "Do so."), 503, "outbox_full"),
        (StoreError("No.", "Do so."), 503, "store_unavailable"),
    ],
)
async def test_an_error_raised_on_purpose_keeps_its_words(error: Exception, status: int, code: str) -> None:
    house = House()
    house.service.error = error
    response = await house.client.post("/v1/predict", json=HELLO)
    assert response.status_code == status
    detail = error_of(response)
    assert (detail.code, detail.message, detail.remedy) == (code, "No.", "Do so.")
    assert detail.field == ("mode" if isinstance(error, RequestError) else "")
    assert ("retry-after" in response.headers) == (status == 503)
    assert house.counted(f'edgewise_request_errors_total{{code="{code}"}} 1.0')


@pytest.mark.parametrize(("path", "body"), [("/v1/predict", HELLO), (INFER, TEXT)])
async def test_what_nobody_expected_is_logged_without_payload(
    house: House, caplog: pytest.LogCaptureFixture, path: str, body: dict
) -> None:
    house.service.error = RuntimeError("cannot digest 'a secret text'")
    response = await house.client.post(path, json=body)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("edgewise.wire", logging.ERROR)
    incident = response.text.partition("incident ")[2].partition(")")[0]
    assert len(incident) == 16
    assert incident in caplog.text
    assert "RuntimeError" in caplog.text
    assert "fake_service.py" in caplog.text
    assert "secret" not in caplog.text


async def test_a_failing_page_is_answered_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise RuntimeError("sec" + "ret")  # in two parts, for the log shows source lines

    house = House(ready=broken)
    response = await house.client.get("/readyz")
    assert response.status_code == 500
    assert error_of(response).code == "internal"
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text + response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/predict/", 404, "not_found"),
        ("GET", "/v1/answers/", 404, "not_found"),
    ],
)
async def test_wrong_paths_and_methods_are_told_in_json(
    house: House, method: str, path: str, status: int, code: str
) -> None:
    response = await house.client.request(method, path)
    assert response.status_code == status
    assert error_of(response).code == code
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/v1/predict", INFER])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused(path: str, announced: bool) -> None:
    house = House(limits=Limits(max_body_bytes=1000))
    pulled = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal pulled
        for _ in range(50):
            pulled += 1
            yield b"x" * 100

    response = await house.client.post(path, content=b"x" * 1001 if announced else chunks())
    assert response.status_code == 413
    assert "1000 bytes" in response.text
    assert pulled <= 11


async def test_a_body_at_the_limit_is_read() -> None:
    body = json.dumps(HELLO).encode()
    house = House(limits=Limits(max_body_bytes=len(body)))
    assert (await house.client.post("/v1/predict", content=body)).status_code == 200


async def test_a_compressed_body_is_refused_by_name(house: House) -> None:
    response = await house.client.post("/v1/predict", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert error_of(response).code == "unsupported_encoding"


async def test_limits_reach_the_codecs() -> None:
    house = House(limits=Limits(max_items=1, max_budget_ms=10))
    assert (await house.client.post("/v1/predict", json={**HELLO, "budget_ms": 11})).status_code == 400
    two = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]}
    assert (await house.client.post(INFER, json=two)).status_code == 400
    assert (await house.client.post(INFER, json={**TEXT, "parameters": {"budget_ms": 11}})).status_code == 400


async def test_one_request_too_many_is_told_to_come_back() -> None:
    house = House(limits=Limits(max_concurrency=1))
    house.service.hold = asyncio.Event()
    first = asyncio.create_task(house.client.post("/v1/predict", json=HELLO))
    await house.service.entered.wait()
    assert "edgewise_requests_in_flight 1" in (await house.client.get("/metrics")).text
    second = await house.client.post("/v1/predict", json=HELLO)
    assert second.status_code == 429
    assert second.headers["retry-after"] == "1"
    assert error_of(second).code == "too_many_requests"
    house.service.hold.set()
    assert (await first).status_code == 200
    assert (await house.client.post("/v1/predict", json=HELLO)).status_code == 200


@given(st.text(st.characters()))
def test_a_header_is_one_line_of_printable_ascii(value: str) -> None:
    name, sent = header(b"x-edgewise-model-digest", value)
    assert name == b"x-edgewise-model-digest"
    assert all(0x20 <= byte <= 0x7E for byte in sent)


@given(st.binary(max_size=200), st.sampled_from(["/v1/predict", INFER]))
async def test_no_body_is_ever_the_services_fault(body: bytes, path: str) -> None:
    house = House()
    response = await house.client.post(path, content=body)
    assert response.status_code in (200, 400)


# Connections, driven message by message


class Wire:
    """One ASGI connection in the hands of a test."""

    def __init__(self, path: str = "/v1/predict", method: str = "POST") -> None:
        self.scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        self.incoming: asyncio.Queue = asyncio.Queue()
        self.sent: list[dict] = []

    def body(self, data: bytes, *, more: bool = False) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    def start(self, app: Callable) -> asyncio.Task:
        return asyncio.create_task(app(self.scope, self.incoming.get, self.send))


async def test_bodies_that_come_slowly_keep_nobody_else_out() -> None:
    house = House(limits=Limits(max_concurrency=1))
    slow = [Wire() for _ in range(5)]
    serving = []
    for wire in slow:
        wire.body(b'{"inputs":', more=True)
        serving.append(wire.start(house.app))
    await until(lambda: all(wire.incoming.empty() for wire in slow))
    assert (await house.client.post("/v1/predict", json=HELLO)).status_code == 200
    for wire, served in zip(slow, serving, strict=True):
        wire.body(b'"x"}')
        await served
        assert wire.sent[0]["status"] == 200


@pytest.mark.parametrize("path", ["/v1/predict", INFER])
async def test_a_body_that_does_not_come_is_given_up(path: str) -> None:
    house = House(limits=Limits(body_timeout_s=0.01, max_body_bytes=20, max_buffered_bytes=20))
    for _ in range(3):  # what a late body took is given back
        wire = Wire(path)
        wire.body(b'{"inputs":', more=True)
        await wire.start(house.app)
        assert wire.sent[0]["status"] == 408
        assert (b"connection", b"close") in wire.sent[0]["headers"]
        error = json.loads(wire.sent[1]["body"])["error"]
        assert "0.01 s" in (error if path == INFER else error["message"])
    assert not house.service.requests
    assert house.counted('edgewise_request_errors_total{code="request_timeout"} 3.0')


async def test_bodies_in_memory_have_a_limit_together() -> None:
    body = json.dumps(HELLO).encode()
    house = House(limits=Limits(max_body_bytes=len(body), max_buffered_bytes=2 * len(body)))
    house.service.hold = asyncio.Event()
    answered, reading = Wire(), Wire()
    answered.body(body)
    reading.body(body[:-1], more=True)
    serving = [wire.start(house.app) for wire in (answered, reading)]
    await house.service.entered.wait()
    await until(reading.incoming.empty)
    refused = await house.client.post("/v1/predict", content=body)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    reading.leave()
    await serving[1]
    third = Wire()
    third.body(body)
    serving.append(third.start(house.app))
    house.service.hold.set()
    await serving[0]
    await serving[2]
    assert (answered.sent[0]["status"], third.sent[0]["status"]) == (200, 200)


async def test_one_largest_body_always_has_room() -> None:
    body = json.dumps(HELLO).encode()
    house = House(limits=Limits(max_body_bytes=len(body), max_buffered_bytes=1))
    assert (await house.client.post("/v1/predict", content=body)).status_code == 200


@pytest.mark.parametrize(("path", "body"), [("/v1/predict", HELLO), (INFER, TEXT)])
async def test_a_client_that_leaves_cancels_its_work(house: House, path: str, body: dict) -> None:
    house.service.hold = asyncio.Event()
    wire = Wire(path)
    wire.body(json.dumps(body).encode())
    serving = wire.start(house.app)
    await house.service.entered.wait()
    wire.leave()
    await serving
    assert house.service.cancelled == [house.service.requests[0].id]
    assert wire.sent == []
    assert house.counted('edgewise_request_errors_total{code="client_gone"} 1.0')
    assert "edgewise_requests_in_flight 0" in (await house.client.get("/metrics")).text


async def test_a_client_that_leaves_in_the_middle_of_its_body_asks_nothing(house: House) -> None:
    wire = Wire()
    wire.body(b'{"inputs":', more=True)
    wire.leave()
    await wire.start(house.app)
    assert house.service.requests == []
    assert wire.sent == []


async def test_a_client_that_leaves_a_long_poll_stops_waiting(house: House) -> None:
    house.answers.put("public", fakes.make_answer("7", status=Status.PROVISIONAL))
    wire = Wire("/v1/answers/7", "GET")
    wire.scope["query_string"] = b"wait_ms=60000"
    serving = wire.start(house.app)
    await until(lambda: len(house.answers._waiters) == 1)
    wire.leave()
    await serving
    assert not len(house.answers._waiters)
    assert house.counted('edgewise_request_errors_total{code="client_gone"} 1.0')


async def test_a_body_may_come_in_pieces(house: House) -> None:
    wire = Wire()
    for piece in (b'{"inp', b"", b'uts":"hello"}'):
        wire.body(piece, more=True)
    wire.body(b"")
    await wire.start(house.app)
    assert wire.sent[0]["status"] == 200


async def test_the_servers_own_cancellation_goes_on_after_a_reply(house: House) -> None:
    house.service.hold = asyncio.Event()
    wire = Wire()
    wire.body(json.dumps(HELLO).encode())
    serving = wire.start(house.app)
    await house.service.entered.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert wire.sent[0]["status"] == 503
    assert b"shutting_down" in wire.sent[1]["body"]
    assert house.service.cancelled == ["new"]


async def test_a_websocket_elsewhere_is_declined(house: House) -> None:
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    await house.app({"type": "websocket", "path": "/", "headers": []}, None, send)
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]
    scope = {"type": "websocket", "path": "/", "headers": [], "extensions": {"websocket.http.response": {}}}
    sent.clear()
    await house.app(scope, None, send)
    assert sent[0]["status"] == 404
    assert native.decode_error(sent[1]["body"]).code == "not_found"
    assert house.counted('edgewise_request_errors_total{code="not_found"} 2.0')


# Life


async def live(app: Callable, *, stop: bool = True) -> list[str]:
    """Types of the lifespan messages that the application sends."""
    incoming: asyncio.Queue = asyncio.Queue()
    sent: list[str] = []

    async def send(message: dict) -> None:
        sent.append(message["type"])

    incoming.put_nowait({"type": "lifespan.startup"})
    if stop:
        incoming.put_nowait({"type": "lifespan.shutdown"})
    await app({"type": "lifespan"}, incoming.get, send)
    return sent


async def test_the_lifespan_is_entered_and_left() -> None:
    steps = []

    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        steps.append("in")
        yield
        steps.append("out")

    assert await live(House(lifespan=life).app) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert steps == ["in", "out"]
    assert await live(House().app) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("at_start", [True, False])
async def test_a_failing_lifespan_is_reported_and_raised(at_start: bool) -> None:
    @contextlib.asynccontextmanager
    async def life() -> AsyncIterator[None]:
        if at_start:
            raise InputError("No model.")
        yield
        raise InputError("No model.")

    with pytest.raises(InputError, match="No model"):
        await live(House(lifespan=life).app)
