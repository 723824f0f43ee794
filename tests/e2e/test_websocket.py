"""`WS /v1/stream` and server-sent events over real sockets, with a real client."""

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from edgewise.contracts import Answered, Done, Event, Reason, Request, Revised, Status
from edgewise.store import SqliteStore
from edgewise.telemetry import Metrics
from edgewise.wire import sockets
from edgewise.wire.door import front_door
from edgewise.wire.serve import BackgroundServer
from edgewise.wire.stream import MAX_MESSAGE_BYTES, StreamLimits


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parents[1] / "unit" / "fake_service.py")


class ThreadedService:
    """Answers at once, holds ("hold"), answers provisionally and revises ("late"), or leaves it pending ("pending").

    What happens in the server's thread is told to the test's thread.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self._gates: dict[str, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def events(self, request: Request) -> AsyncIterator[Event]:
        self._loop = asyncio.get_running_loop()
        gate = self._gates.setdefault(request.id, asyncio.Event())
        self.entered.set()
        try:
            if request.inputs == "hold":
                await gate.wait()
            if request.inputs in ("late", "pending"):
                yield Answered(stopgap(request.id))
            if request.inputs == "late":
                await gate.wait()
                yield Revised(fakes.make_answer(request.id, "acq"))
            elif request.inputs == "large":
                yield Answered(fakes.make_answer(request.id, "x" * 1_000_000))
            elif request.inputs != "pending":
                yield Answered(fakes.make_answer(request.id))
            yield Done(request.id, pending=request.inputs == "pending")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def release(self, request_id: str) -> None:
        self._loop.call_soon_threadsafe(self._gates[request_id].set)


def stopgap(request_id: str):
    return fakes.make_answer(request_id, status=Status.PROVISIONAL, reason=Reason.BREAKER_OPEN)


@pytest.fixture
def service() -> ThreadedService:
    return ThreadedService()


@pytest.fixture
def store() -> Iterator[SqliteStore]:
    with SqliteStore(":memory:") as opened:
        yield opened


def door(service: ThreadedService, **options: object):
    return front_door(fakes.served(service), **{"answers": None, "metrics": Metrics(), **options})


@pytest.fixture
def server(service: ThreadedService, store: SqliteStore) -> Iterator[BackgroundServer]:
    with BackgroundServer(door(service, answers=store.answers)) as running:
        yield running


def opened(server: BackgroundServer, **options: object) -> ClientConnection:
    return connect(f"ws://{server.host}:{server.port}/v1/stream", **options)


def say(client: ClientConnection, **message: object) -> None:
    client.send(json.dumps(message))


def hear(client: ClientConnection) -> dict:
    return json.loads(client.recv(timeout=30))


# WebSocket


def test_many_requests_in_flight_on_one_connection(server: BackgroundServer, service: ThreadedService) -> None:
    with opened(server) as client:
        say(client, type="predict", inputs="hold", id="slow")
        assert service.entered.wait(30)
        for index in range(50):
            say(client, type="predict", inputs="x", id=f"{index}", budget_ms=1000)
        ended = {}
        while len(ended) < 50:
            message = hear(client)
            ended.setdefault(message["id"], []).append(message["type"]) if message["type"] == "answer" else None
        assert set(ended) == {f"{index}" for index in range(50)}
        service.release("slow")
        answered = [hear(client) for _ in range(2)]
        while answered[-1]["id"] != "slow" or answered[-1]["type"] != "done":
            answered.append(hear(client))
        (slow,) = [message for message in answered if message["id"] == "slow" and message["type"] == "answer"]
        assert (slow["output"], slow["status"], slow["source"]) == ("earn", "final", "edge")


def test_a_provisional_answer_is_revised_on_the_same_connection(
    server: BackgroundServer, service: ThreadedService
) -> None:
    with opened(server) as client:
        say(client, type="predict", inputs="late", id="7")
        assert (first := hear(client))["status"] == "provisional"
        service.release("7")
        second, last = hear(client), hear(client)
    assert (first["id"], second["id"], last) == ("7", "7", {"type": "done", "id": "7", "pending": False})
    assert (second["type"], second["output"], second["status"]) == ("revise", "acq", "final")


def test_an_update_from_the_outbox_comes_to_the_open_connection(server: BackgroundServer, store: SqliteStore) -> None:
    store.answers.put("public", stopgap("7"))
    with opened(server) as client:
        say(client, type="predict", inputs="pending", id="7")
        assert hear(client)["type"] == "answer"
        store.answers.put("public", fakes.make_answer("7", "acq"))
        assert [hear(client)["type"] for _ in range(2)] == ["revise", "done"]


def test_a_cancelled_request_is_cancelled_in_the_service(server: BackgroundServer, service: ThreadedService) -> None:
    with opened(server) as client:
        say(client, type="predict", inputs="hold", id="7")
        assert service.entered.wait(30)
        say(client, type="cancel", id="7")
        assert service.cancelled.wait(30)
        assert hear(client)["error"]["code"] == "cancelled"
        say(client, type="predict", inputs="x", id="8")
        assert hear(client)["id"] == "8"


def test_a_client_that_disconnects_cancels_its_work(server: BackgroundServer, service: ThreadedService) -> None:
    with opened(server) as client:
        say(client, type="predict", inputs="hold", id="7")
        assert service.entered.wait(30)
        client.socket.shutdown(socket.SHUT_RDWR)  # without a word
        assert service.cancelled.wait(30)


def test_garbage_is_answered_and_the_connection_stays(server: BackgroundServer) -> None:
    with opened(server) as client:
        client.send("garbage")
        error = hear(client)["error"]
        assert (error["code"], bool(error["remedy"])) == ("invalid_request", True)
        say(client, type="predict", inputs="x", mode="wish", id="7")
        assert (message := hear(client))["error"]["field"] == "mode"
        assert message["id"] == "7"
        say(client, type="predict", inputs="x", id="8")
        assert hear(client)["type"] == "answer"


def closing_code(client: ClientConnection) -> int:
    """The code that the server closes with, once it does."""
    with contextlib.suppress(ConnectionClosed):  # which no error is for codes that mean no harm
        for _ in client:
            pass
    return client.close_code


def test_what_goes_on_being_garbage_is_closed(server: BackgroundServer) -> None:
    with opened(server) as client:
        for _ in range(11):
            client.send("{")
        assert closing_code(client) == 1008


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x00\x01", 1003),
        ("x" * (MAX_MESSAGE_BYTES + 1), 1009),
        (["x" * 1024] * 1100, 1009),  # in fragments
    ],
    ids=["binary", "too large", "too large in pieces"],
)
def test_frames_that_cannot_be_taken_close(server: BackgroundServer, frame: object, code: int) -> None:
    with opened(server) as client:
        with contextlib.suppress(ConnectionClosed):  # in the middle of the pieces
            client.send(frame)
        assert closing_code(client) == code
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_text_that_is_not_utf_8_closes(server: BackgroundServer) -> None:
    with opened(server) as client:
        client.protocol.send_text(b"\xff\xfe")
        client.socket.sendall(b"".join(client.protocol.data_to_send()))
        assert closing_code(client) == 1007


def test_without_a_key_no_connection_opens(service: ThreadedService) -> None:
    with BackgroundServer(door(service, api_keys={"secret": "acme"})) as server:
        with pytest.raises(InvalidStatus) as caught, opened(server):
            pass
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body)["error"]["code"] == "unauthenticated"
        with opened(server, additional_headers={"authorization": "Bearer secret"}) as client:
            say(client, type="predict", inputs="x", id="7")
            assert hear(client)["type"] == "answer"


def test_a_web_page_opens_no_connection(server: BackgroundServer) -> None:
    with pytest.raises(InvalidStatus) as caught, opened(server, origin="https://evil.test"):
        pass
    assert caught.value.response.status_code == 403


def test_the_end_of_service_lets_answers_out(service: ThreadedService) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        with BackgroundServer(door(service)) as server:
            client = stack.enter_context(opened(server))
            say(client, type="predict", inputs="hold", id="7")
            assert service.entered.wait(30)

            def go_on() -> None:
                until_no_more_is_taken(client)
                service.release("7")

            going = pool.submit(go_on)
        going.result(30)
        assert [hear(client)["type"] for _ in range(2)] == ["answer", "done"]
        assert closing_code(client) == 1001


def until_no_more_is_taken(client: ClientConnection) -> None:
    """Return once the server tells a request that service ends."""
    index = 0
    while True:
        index += 1
        say(client, type="predict", inputs="x", id=f"probe-{index}")
        while (message := hear(client))["type"] == "answer":
            pass
        if message["type"] == "error":
            assert message["error"]["code"] == "shutting_down"
            return
        time.sleep(0.01)


def test_what_does_not_end_in_time_is_cancelled(service: ThreadedService) -> None:
    with contextlib.ExitStack() as stack:
        with BackgroundServer(door(service), drain_s=0.1) as server:
            client = stack.enter_context(opened(server))
            say(client, type="predict", inputs="hold", id="7")
            assert service.entered.wait(30)
        assert service.cancelled.is_set()
        assert closing_code(client) == 1001


def test_a_client_that_does_not_read_is_dropped_with_its_work(
    service: ThreadedService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = door(service)
    app._sockets.limits = StreamLimits(max_message_bytes=10_000, send_timeout_s=0.2)
    monkeypatch.setattr(sockets, "_CLOSE_S", 0.2)
    with contextlib.ExitStack() as stack:
        with BackgroundServer(app, drain_s=5) as server:
            client = stack.enter_context(opened(server, max_size=None, max_queue=1, close_timeout=0))
            say(client, type="predict", inputs="hold", id="held")
            assert service.entered.wait(30)
            for index in range(40):
                say(client, type="predict", inputs="large", id=f"{index}")
            assert service.cancelled.wait(30)
        # What it has not read would keep the connection, and the server with it, until the last moment.
        assert "graceful shutdown exceeded" not in caplog.text


# Server-sent events


def read_events(response: httpx.Response) -> Iterator[tuple[str, str, dict]]:
    """Name, id and data of each event as it comes."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], fields["id"], json.loads(fields["data"])
            fields = {}


SSE = {"accept": "text/event-stream"}


def test_a_request_is_answered_as_events(server: BackgroundServer, service: ThreadedService) -> None:
    body = {"inputs": "late", "id": "7"}
    with httpx.stream("POST", f"{server.url}/v1/predict", json=body, headers=SSE, timeout=30) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-edgewise-status"] == "provisional"
        events = read_events(response)
        assert next(events)[:2] == ("answer", "7/answer")
        service.release("7")
        assert [(name, event_id) for name, event_id, _ in events] == [("revise", "7/revise"), ("done", "7/done")]


def test_a_client_of_events_that_hangs_up_cancels_its_work(server: BackgroundServer, service: ThreadedService) -> None:
    body = json.dumps({"inputs": "hold"}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(head.encode() + body)
        assert service.entered.wait(30)
    assert service.cancelled.wait(30)


def test_an_error_before_the_first_event_is_one_of_http(server: BackgroundServer) -> None:
    response = httpx.post(f"{server.url}/v1/predict", json={"inputs": "x", "mode": "wish"}, headers=SSE)
    assert (response.status_code, response.json()["error"]["field"]) == (400, "mode")


def test_a_kept_answer_and_its_update_are_events(server: BackgroundServer, store: SqliteStore) -> None:
    store.answers.put("public", stopgap("7"))
    url = f"{server.url}/v1/answers/7/events"
    with httpx.stream("GET", url, headers={"last-event-id": "garbage\xff".encode("latin-1")}, timeout=30) as response:
        events = read_events(response)
        assert next(events)[2]["status"] == "provisional"
        store.answers.put("public", fakes.make_answer("7", "acq"))
        assert [(name, data.get("output")) for name, _, data in events] == [("revise", "acq"), ("done", None)]
    with httpx.stream("GET", url, timeout=30) as response:
        assert [name for name, _, _ in read_events(response)] == ["answer", "done"]
    assert httpx.get(url, headers={"last-event-id": "7/done"}).status_code == 204
    response = httpx.get(f"{server.url}/v1/answers/8/events")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_an_update_that_does_not_come_leaves_the_stream_pending(server: BackgroundServer, store: SqliteStore) -> None:
    store.answers.put("public", stopgap("7"))
    with httpx.stream("GET", f"{server.url}/v1/answers/7/events?wait_ms=10", timeout=30) as response:
        events = list(read_events(response))
    assert [(name, event_id) for name, event_id, _ in events] == [("answer", "7/answer"), ("done", "7/pending")]


def test_streams_end_when_service_ends(service: ThreadedService, store: SqliteStore) -> None:
    store.answers.put("public", stopgap("7"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with BackgroundServer(door(service, answers=store.answers)) as server:
            waiting = threading.Event()

            def follow() -> list[str]:
                names = []
                with httpx.stream("GET", f"{server.url}/v1/answers/7/events", timeout=30) as response:
                    for _, event_id, _ in read_events(response):
                        names.append(event_id)
                        waiting.set()
                return names

            following = pool.submit(follow)
            assert waiting.wait(30)
        assert following.result(30) == ["7/answer", "7/pending"]


def test_a_text_that_is_none_ends_the_connection_and_nothing_is_logged(server: BackgroundServer, caplog) -> None:
    for frames in ([b"\xff\xfe"], [b"\xe2", b"\x82"]):
        with opened(server) as client:
            client.send(iter(frames) if len(frames) > 1 else frames[0], text=True)
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=30)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1007, "a text frame is not UTF-8")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_refused_handshake_is_no_error_of_the_servers(server: BackgroundServer, caplog) -> None:
    with pytest.raises(InvalidStatus):
        connect(f"ws://{server.host}:{server.port}/elsewhere")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
