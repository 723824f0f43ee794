"""`WS /v1/stream`: messages, and the life of a connection, over a socket of our own."""

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import Answered, DataPolicy, Done, Event, Mode, Reason, Request, Revised, Status, Token
from edgewise.errors import RequestError
from edgewise.wire import native, stream, stream_messages
from edgewise.wire.admission import Gate, Rates
from edgewise.wire.catalog import Catalog
from edgewise.wire.events import Updates
from edgewise.wire.faults import Fault
from edgewise.wire.stream import StreamLimits, Streams
from edgewise.wire.stream_messages import CancelMessage, PredictMessage


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")

STOPGAP = fakes.make_answer("7", status=Status.PROVISIONAL, reason=Reason.BUDGET_SPENT)


class HeldService:
    """Holds each request until its id is released; then answers it as its input says."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.released: dict[str, asyncio.Event] = {}

    async def events(self, request: Request) -> AsyncIterator[Event]:
        self.requests.append(request)
        if request.inputs == "hold":
            await self._held(request.id)
        if request.inputs == "fail":
            raise ValueError("secret input")
        if request.inputs == "late":
            yield Answered(fakes.make_answer(request.id, status=Status.PROVISIONAL, reason=Reason.SPECULATIVE))
            await self._held(request.id)
            yield Revised(fakes.make_answer(request.id, "acq"))
        else:
            yield Answered(fakes.make_answer(request.id))
        yield Done(request.id)

    async def _held(self, request_id: str) -> None:
        try:
            await self.released.setdefault(request_id, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise


class Socket:
    """A WebSocket's client, as an ASGI server shows it to the application."""

    def __init__(self) -> None:
        self._coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._coming.put_nowait({"type": "websocket.connect"})
        self.heard: list[dict[str, Any]] = []
        self.accepted = False
        self.closed: tuple[int, str] | None = None
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        return await self._coming.get()

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        assert self.closed is None, "nothing comes after the close"
        if message["type"] == "websocket.accept":
            self.accepted = True
        elif message["type"] == "websocket.close":
            self.closed = (message["code"], message["reason"])
        else:
            self.heard.append(json.loads(message["text"]))

    def say(self, message: object) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        self._coming.put_nowait({"type": "websocket.receive", "text": text})

    def predict(self, inputs: str, **fields: object) -> None:
        self.say({"type": "predict", "inputs": inputs, **fields})

    def say_bytes(self, data: bytes) -> None:
        self._coming.put_nowait({"type": "websocket.receive", "bytes": data})

    def leave(self) -> None:
        self._coming.put_nowait({"type": "websocket.disconnect", "code": 1006})

    def told(self, request_id: str) -> list[str]:
        return [message["type"] for message in self.heard if message.get("id") == request_id]

    def codes(self) -> list[str]:
        return [message["error"]["code"] for message in self.heard if message["type"] == "error"]


class House:
    """A connection with everything around it in reach."""

    def __init__(self, *, gate: Gate | None = None, **limits: object) -> None:
        self.service = HeldService()
        self.socket = Socket()
        self.gate = gate or Gate(100, 1 << 20, None)
        self.faults: list[Fault] = []
        self.counted: list[str] = []
        self.streams = Streams(
            Catalog(fakes.served(self.service)),
            updates=Updates(None, 1, 1),
            count=lambda served, answer, started_s: self.counted.append(answer.id),
            on_fault=self.faults.append,
            new_id=lambda: "new",
            max_budget_ms=60_000,
            limits=StreamLimits(**{"max_message_bytes": 10_000, **limits}),
        )
        self.scope = {"type": "websocket", "path": "/v1/stream", "headers": []}

    def start(self) -> asyncio.Task[None]:
        work = self.streams.serve(self.scope, self.socket.receive, self.socket.send, "acme", self.gate)
        self.task = asyncio.create_task(work)
        return self.task

    async def __aenter__(self) -> "House":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.task.done():
            self.socket.reads.set()
            self.socket.leave()
        await asyncio.wait_for(self.task, 10)
        assert self.gate.slots.taken == self.gate.room.taken == 0


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what is awaited sets no event
            await asyncio.sleep(0)


# Messages


def test_a_request_has_the_fields_of_http_and_a_trace() -> None:
    body = {"inputs": "x", "id": "7", "budget_ms": 5, "mode": "guarded", "model": "m", "attributes": {"a": "b"}}
    sent = stream_messages.decode_message(json.dumps({"type": "predict", "traceparent": "00-…", **body}).encode())
    assert isinstance(sent, PredictMessage)
    assert sent.traceparent == "00-…"
    over_http, model = native.decode_request(json.dumps(body).encode(), tenant="t", new_id=lambda: "new")
    assert native.request_of(sent, tenant="t", new_id=lambda: "new") == over_http
    assert sent.model == model == "m"


def test_a_cancellation_names_a_request() -> None:
    assert stream_messages.decode_message(b'{"type":"cancel","id":"7"}') == CancelMessage("7")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"", ""),
        (b"null", ""),
        (b"[]", ""),
        (b"{", ""),
        (b'{"inputs":"x"}', "type"),
        (b'{"type":"shout","inputs":"x"}', "type"),
        (b'{"type":3}', "type"),
        (b'{"type":"predict"}', "inputs"),
        (b'{"type":"predict","inputs":"x","more":1}', "more"),
        (b'{"type":"predict","inputs":"x","budget_ms":"soon"}', "budget_ms"),
        (b'{"type":"cancel"}', "id"),
        (b'{"type":"cancel","id":7}', "id"),
        (b"[" * 100_000, ""),
        (b'"\xff"', ""),
    ],
)
def test_what_is_no_message_is_an_error_that_names_the_field(text: bytes, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        stream_messages.decode_message(text)
    assert caught.value.field == field
    assert caught.value.remedy


@given(st.binary() | st.text().map(str.encode))
def test_whatever_comes_is_a_message_or_an_error(data: bytes) -> None:
    try:
        stream_messages.decode_message(data)
    except RequestError:
        assert stream_messages.id_of(data) == "" or stream_messages.id_of(data).isascii()


@pytest.mark.parametrize(
    ("data", "found"),
    [(b'{"id":"7","type":"shout"}', "7"), (b'{"id":"a b"}', ""), (b'{"id":7}', ""), (b"{", ""), (b"[]", "")],
)
def test_the_id_of_a_message_that_cannot_be_used_is_told_back_where_it_is_one(data: bytes, found: str) -> None:
    assert stream_messages.id_of(data) == found


def test_an_answer_is_the_body_of_http_with_its_type() -> None:
    message = json.loads(stream_messages.encode_event(Answered(STOPGAP)))
    assert message.pop("type") == "answer"
    assert message == json.loads(native.encode_answer(STOPGAP))
    assert json.loads(stream_messages.encode_event(Revised(STOPGAP)))["type"] == "revise"
    assert json.loads(stream_messages.encode_event(Done("7", True))) == {"type": "done", "id": "7", "pending": True}
    assert json.loads(stream_messages.encode_event(Token(id="7", text="x"))) == {
        "type": "token",
        "id": "7",
        "text": "x",
    }


def test_an_error_has_the_shape_of_http() -> None:
    fault = Fault(400, "invalid_request", "mode: 'x' is unknown.", field="mode", remedy="Choose one.")
    message = json.loads(stream_messages.encode_fault(fault, "7"))
    assert message == {"type": "error", "id": "7", **json.loads(fault.body("/v1/predict"))}
    assert "id" not in json.loads(stream_messages.encode_fault(fault, ""))


# Requests


async def test_requests_in_flight_are_answered_in_the_order_they_are_ready() -> None:
    async with House() as house:
        house.socket.predict("hold", id="slow")
        house.socket.predict("x", id="quick", budget_ms=50, mode="edge_only", data_policy="local_only")
        await until(lambda: house.socket.told("quick") == ["answer", "done"])
        assert house.socket.told("slow") == []
        house.service.released["slow"].set()
        await until(lambda: house.socket.told("slow") == ["answer", "done"])
    first, second = house.service.requests
    assert (first.id, first.tenant, first.budget_ms) == ("slow", "acme", None)
    assert (second.budget_ms, second.mode, second.data_policy) == (50, Mode.EDGE_ONLY, DataPolicy.LOCAL_ONLY)
    assert second.arrived_s is not None
    assert house.counted == ["quick", "slow"]


async def test_a_provisional_answer_is_revised() -> None:
    async with House() as house:
        house.socket.predict("late", id="7")
        await until(lambda: house.socket.told("7") == ["answer"])
        assert house.gate.slots.taken == 0
        house.service.released["7"].set()
        await until(lambda: house.socket.told("7") == ["answer", "revise", "done"])
    assert house.socket.heard[-1] == {"type": "done", "id": "7", "pending": False}


async def test_a_request_without_an_id_gets_one() -> None:
    async with House() as house:
        house.socket.predict("x")
        await until(lambda: house.socket.told("new") == ["answer", "done"])


async def test_an_id_serves_one_request_at_a_time() -> None:
    async with House() as house:
        house.socket.predict("hold", id="7")
        await until(lambda: len(house.service.requests) == 1)
        house.socket.predict("x", id="7")
        await until(lambda: house.socket.told("7") == ["error"])
        assert house.socket.heard[0]["error"]["field"] == "id"
        house.service.released["7"].set()
        await until(lambda: house.socket.told("7") == ["error", "answer", "done"])
        house.socket.predict("x", id="7")
        await until(lambda: house.socket.told("7")[3:] == ["answer", "done"])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mode": "wish"}, "mode"),
        ({"budget_ms": -1}, "budget_ms"),
        ({"budget_ms": 1e300}, "budget_ms"),
        ({"model": "nobody"}, "model"),
        ({"id": "a b"}, "id"),
    ],
)
async def test_a_request_that_cannot_be_taken_is_an_error_and_the_connection_stays(
    fields: dict[str, object], field: str
) -> None:
    async with House() as house:
        house.socket.predict("x", **{"id": "7", **fields})
        await until(lambda: len(house.socket.heard) == 1)
        assert house.socket.heard[0]["error"]["field"] == field
        house.socket.predict("x", id="8")
        await until(lambda: house.socket.told("8") == ["answer", "done"])


async def test_what_a_service_raises_is_told_without_what_it_says() -> None:
    async with House() as house:
        house.socket.predict("fail", id="7")
        await until(lambda: house.socket.told("7") == ["error"])
    assert house.socket.codes() == ["internal"]
    assert "secret" not in json.dumps(house.socket.heard)
    assert [fault.code for fault in house.faults] == ["internal"]


# Cancelling


async def test_a_cancelled_request_is_cancelled_downstream() -> None:
    async with House() as house:
        house.socket.predict("hold", id="7")
        await until(lambda: "7" in house.service.released)
        house.socket.say({"type": "cancel", "id": "7"})
        await until(lambda: house.socket.told("7") == ["error"])
        assert house.service.cancelled == ["7"]
        assert house.socket.codes() == ["cancelled"]


async def test_a_request_cancelled_before_it_began_leaves_nothing_behind() -> None:
    async with House() as house:
        house.socket.predict("hold", id="7")
        house.socket.say({"type": "cancel", "id": "7"})
        await until(lambda: house.socket.told("7") == ["error"])
        house.socket.predict("x", id="7")
        await until(lambda: house.socket.told("7") == ["error", "answer", "done"])


async def test_after_a_provisional_answer_cancelling_ends_the_wait() -> None:
    async with House() as house:
        house.socket.predict("late", id="7")
        await until(lambda: house.socket.told("7") == ["answer"])
        house.socket.say({"type": "cancel", "id": "7"})
        await until(lambda: house.socket.told("7") == ["answer", "done"])
    assert house.socket.heard[-1]["pending"] is True


async def test_cancelling_what_is_not_in_flight_does_nothing() -> None:
    async with House() as house:
        house.socket.say({"type": "cancel", "id": "7"})
        house.socket.predict("x", id="8")
        await until(lambda: house.socket.told("8") == ["answer", "done"])
    assert house.socket.codes() == []


async def test_a_client_that_leaves_cancels_everything() -> None:
    house = House()
    task = house.start()
    for index in range(3):
        house.socket.predict("hold", id=f"{index}")
    await until(lambda: len(house.service.released) == 3)
    house.socket.leave()
    await asyncio.wait_for(task, 10)
    assert sorted(house.service.cancelled) == ["0", "1", "2"]
    assert house.socket.closed is None
    assert house.gate.slots.taken == house.gate.room.taken == 0


# Limits


async def test_more_requests_in_flight_than_allowed_are_told_to_come_back() -> None:
    async with House(max_in_flight=2) as house:
        for index in range(3):
            house.socket.predict("hold", id=f"{index}")
        await until(lambda: house.socket.told("2") == ["error"])
        assert house.socket.codes() == ["too_many_requests"]
        house.service.released["0"].set()
        await until(lambda: house.socket.told("0") == ["answer", "done"])
        house.socket.predict("x", id="3")
        await until(lambda: house.socket.told("3") == ["answer", "done"])


async def test_requests_that_wait_for_their_update_keep_no_other_out() -> None:
    async with House(max_in_flight=1) as house:
        for index in range(5):
            house.socket.predict("late", id=f"{index}")
            await until(lambda index=index: house.socket.told(f"{index}") == ["answer"])


async def test_all_connections_share_the_places_of_the_door() -> None:
    async with House(gate=Gate(1, 1 << 20, None)) as house:
        with house.gate.slots:
            house.socket.predict("x", id="7")
            await until(lambda: house.socket.told("7") == ["error"])
        assert house.socket.codes() == ["too_many_requests"]
        house.socket.predict("x", id="8")
        await until(lambda: house.socket.told("8") == ["answer", "done"])


async def test_a_tenant_has_its_rate() -> None:
    async with House(gate=Gate(100, 1 << 20, Rates(0.001, 1))) as house:
        house.socket.predict("x", id="1")
        house.socket.predict("x", id="2")
        await until(lambda: house.socket.told("2") == ["error"])
        assert house.socket.codes() == ["rate_limited"]
        await until(lambda: house.socket.told("1") == ["answer", "done"])


@pytest.mark.parametrize(
    "message",
    [
        {"type": "predict", "id": "2", "inputs": {"image": "QUJD"}, "mode": "nonsense"},
        {"type": "predict", "id": "2", "inputs": {"image": "no base64"}},
        {"type": "cancel", "id": "2"},
        {"type": "shout", "id": "2"},
    ],
)
async def test_every_message_counts_against_the_rate_before_it_is_read(
    message: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with House(gate=Gate(100, 1 << 20, Rates(0.001, 2))) as house:
        house.socket.say(message)
        house.socket.predict("x", id="1")
        await until(lambda: house.socket.told("1") == ["answer", "done"])
        before = len(house.socket.heard)
        monkeypatch.setattr(stream, "decode_message", None)
        house.socket.say(message)
        await until(lambda: len(house.socket.heard) > before)
        assert house.socket.heard[-1]["id"] == "2"
        assert house.socket.codes()[-1] == "rate_limited"


async def test_who_waits_for_an_update_holds_no_room() -> None:
    async with House(gate=Gate(100, 200, None)) as house:
        for number in ("1", "2"):
            house.socket.predict("late", id=number, attributes={"a": "x" * 100})
            await until(lambda number=number: house.socket.told(number) == ["answer"])
        assert house.gate.room.taken == 0
        assert not house.service.cancelled


async def test_requests_that_cannot_be_answered_are_bad_messages_too() -> None:
    async with House(max_bad_messages=3) as house:
        for _ in range(4):
            house.socket.predict("x", id="7", mode="nonsense")
            house.socket.say({"type": "cancel", "id": "7"})  # makes up for nothing
        await until(lambda: house.socket.closed is not None)
    assert house.socket.closed[0] == 1008
    assert house.socket.codes() == ["invalid_request"] * 4


async def test_messages_share_the_room_of_bodies() -> None:
    async with House(gate=Gate(100, 200, None)) as house:
        house.socket.predict("hold", id="1", attributes={"a": "x" * 100})
        house.socket.predict("x", id="2", attributes={"a": "x" * 100})
        await until(lambda: house.socket.told("2") == ["error"])
        assert house.socket.codes() == ["too_many_requests"]


# Closing


async def test_garbage_is_an_error_and_repeated_garbage_closes() -> None:
    async with House(max_bad_messages=3) as house:
        house.socket.say('{"type":"shout","id":"7"}')
        await until(lambda: house.socket.told("7") == ["error"])
        for _ in range(2):
            house.socket.say("garbage")
        house.socket.predict("x", id="8")  # a message that can be read makes up for them
        for _ in range(4):
            house.socket.say("garbage")
        await until(lambda: house.socket.closed is not None)
    assert house.socket.closed[0] == 1008
    assert house.socket.codes() == ["invalid_request"] * 7


async def test_binary_messages_close() -> None:
    async with House() as house:
        house.socket.say_bytes(b"\x00")
        await until(lambda: house.socket.closed is not None)
    assert house.socket.closed[0] == 1003


async def test_a_message_that_is_too_large_closes() -> None:
    async with House(max_message_bytes=100) as house:
        house.socket.predict("hold", id="7")
        house.socket.predict("é" * 60)
        await until(lambda: house.socket.closed is not None)
    assert house.socket.closed[0] == 1009
    assert house.service.cancelled == ["7"]


async def test_an_idle_connection_is_closed_and_one_that_waits_is_not() -> None:
    async with House(idle_s=0.02) as house:
        house.socket.predict("hold", id="7")
        await asyncio.sleep(0.05)
        assert house.socket.closed is None
        house.service.released["7"].set()
        await until(lambda: house.socket.closed is not None)
    assert house.socket.told("7") == ["answer", "done"]
    assert house.socket.closed == (1000, "idle")


async def test_a_client_that_does_not_read_is_let_go_with_its_work() -> None:
    house = House(send_timeout_s=0.02)
    task = house.start()
    house.socket.predict("hold", id="7")
    house.socket.predict("hold", id="8")
    await until(lambda: len(house.service.released) == 2)
    house.socket.reads.clear()
    house.service.released["7"].set()
    await asyncio.wait_for(task, 10)
    assert house.service.cancelled == ["8"]


async def test_a_client_that_reads_no_errors_is_let_go_too() -> None:
    house = House(send_timeout_s=0.02, max_bad_messages=1000)
    task = house.start()
    await until(lambda: house.socket.accepted)
    house.socket.reads.clear()
    house.socket.say("garbage")
    await asyncio.wait_for(task, 10)


async def test_the_end_of_service_lets_answers_out_and_takes_no_more() -> None:
    async with House() as house:
        house.socket.predict("hold", id="7")
        house.socket.predict("late", id="8")
        await until(lambda: house.socket.told("8") == ["answer"] and "7" in house.service.released)
        house.gate.drain.begin()
        await until(lambda: house.socket.told("8") == ["answer", "done"])
        assert house.socket.heard[-1]["pending"] is True
        house.socket.predict("x", id="9")
        await until(lambda: house.socket.told("9") == ["error"])
        assert house.socket.codes() == ["shutting_down"]
        assert house.socket.closed is None
        house.service.released["7"].set()
        await until(lambda: house.socket.closed is not None)
    assert house.socket.told("7") == ["answer", "done"]
    assert house.socket.closed[0] == 1001


async def test_what_does_not_end_in_time_is_cancelled_and_the_connection_closed() -> None:
    house = House()
    task = house.start()
    house.socket.predict("hold", id="7")
    await until(lambda: "7" in house.service.released)
    task.cancel()
    await asyncio.wait({task})
    assert house.service.cancelled == ["7"]
    assert house.socket.closed[0] == 1001


async def test_there_is_one_path() -> None:
    house = House()
    house.scope["path"] = "/v1/other"
    with pytest.raises(Fault) as caught:
        await house.start()
    assert caught.value.status == 404
    assert not house.socket.accepted
