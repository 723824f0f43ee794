"""The stream of events of one request, and its form as server-sent events."""

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from types import ModuleType

import pytest

from edgewise.contracts import Answered, Done, Event, Reason, Request, Revised, Served, Status, Token
from edgewise.errors import RequestError
from edgewise.store import SqliteStore
from edgewise.wire import events, native
from edgewise.wire.admission import Drain, Gate
from edgewise.wire.event_response import _Sending
from edgewise.wire.events import EventStreams, Updates
from edgewise.wire.faults import Fault
from edgewise.wire.http import ClientGoneError, Headers, Scope


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")

STOPGAP = fakes.make_answer("7", status=Status.PROVISIONAL, reason=Reason.BUDGET_SPENT)
FINAL = fakes.make_answer("7", "acq")


class LateService:
    """Gives a provisional answer, and the final one when it is released; `pending` gives it up instead."""

    def __init__(self, *, pending: bool = False) -> None:
        self.pending = pending
        self.release = asyncio.Event()
        self.ended = asyncio.Event()

    async def events(self, request: Request) -> AsyncIterator[Event]:
        try:
            yield Answered(STOPGAP)
            if not self.pending:
                await self.release.wait()
                yield Revised(FINAL)
            yield Done(request.id, pending=self.pending)
        finally:
            self.ended.set()


def served(service: object) -> Served:
    return Served(info=fakes.service_info(), service=service, ready=lambda: None)


def nothing_counted(served: object, answer: object, started_s: float) -> None:
    return None


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what is awaited sets no event
            await asyncio.sleep(0)


@pytest.fixture
def store():
    with SqliteStore(":memory:") as opened:
        yield opened


# What is told


async def collected(service: object, updates: Updates, drain: Drain | None = None) -> list[Event | None]:
    source = events.asked(served(service), Request(inputs="x", id="7"), updates, nothing_counted)
    return [event async for event in events.told(source, drain or Drain())]


async def test_a_final_answer_is_told_and_done() -> None:
    assert await collected(fakes.FakeService(), Updates(None, 1, 1)) == [Answered(fakes.make_answer("7")), Done("7")]


async def test_the_first_answer_is_counted() -> None:
    counted = []
    source = events.asked(
        served(fakes.FakeService()),
        Request(inputs="x", id="7"),
        Updates(None, 1, 1),
        lambda *told: counted.append(told),
    )
    assert len([event async for event in source]) == 2
    ((_, answer, started_s),) = counted
    assert answer.id == "7"
    assert started_s > 0


async def test_an_update_that_the_service_only_owes_is_waited_for(store: SqliteStore) -> None:
    store.answers.put("public", STOPGAP)
    asking = asyncio.create_task(collected(LateService(pending=True), Updates(store.answers, 30, 1)))
    await until(lambda: bool(len(store.answers._waiters)))
    store.answers.put("public", FINAL)
    assert await asking == [Answered(STOPGAP), Revised(FINAL), Done("7")]


async def test_an_update_that_does_not_come_in_time_stays_pending(store: SqliteStore) -> None:
    store.answers.put("public", STOPGAP)
    told = await collected(LateService(pending=True), Updates(store.answers, 0.01, 1))
    assert told == [Answered(STOPGAP), Done("7", pending=True)]


async def test_an_update_that_will_never_come_is_not_pending(store: SqliteStore) -> None:
    store.answers.put("public", fakes.make_answer("7", status=Status.PROVISIONAL, reason=Reason.CLOUD_REFUSED))
    told = await collected(LateService(pending=True), Updates(store.answers, 30, 1))
    assert told == [Answered(STOPGAP), Done("7")]


async def test_no_more_updates_are_waited_for_than_allowed(store: SqliteStore) -> None:
    store.answers.put("public", STOPGAP)
    updates = Updates(store.answers, 30, 1)
    first = asyncio.create_task(collected(LateService(pending=True), updates))
    await until(lambda: bool(len(store.answers._waiters)))
    assert await collected(LateService(pending=True), updates) == [Answered(STOPGAP), Done("7", pending=True)]
    store.answers.put("public", FINAL)
    assert (await first)[1] == Revised(FINAL)


async def test_the_end_of_service_ends_the_wait_for_an_update_and_not_for_an_answer() -> None:
    drain = Drain()
    service = fakes.FakeService()
    service.hold = asyncio.Event()
    asking = asyncio.create_task(collected(service, Updates(None, 1, 1), drain))
    await service.entered.wait()
    drain.begin()
    service.hold.set()
    assert (await asking)[0] == Answered(fakes.make_answer("7"))
    late, drain = LateService(), Drain()
    asking = asyncio.create_task(collected(late, Updates(None, 1, 1), drain))
    await until(lambda: bool(drain._waiting))
    drain.begin()
    assert await asking == [Answered(STOPGAP), Done("7", pending=True)]
    assert late.ended.is_set()


async def test_silence_is_told_and_breaks_nothing_off() -> None:
    late = LateService()
    source = events.asked(served(late), Request(inputs="x", id="7"), Updates(None, 1, 1), nothing_counted)
    told = []
    async for event in events.told(source, Drain(), pause_s=0.001):
        told.append(event)
        if told.count(None) == 3:
            late.release.set()
    assert [event for event in told if event is not None] == [Answered(STOPGAP), Revised(FINAL), Done("7")]


async def test_what_came_together_is_taken_together_and_an_error_behind_it_by_itself() -> None:
    tokens = [Token(id="7", text=text) for text in "abc"]

    async def source() -> AsyncIterator[Event]:
        for token in tokens:
            yield token
        raise RequestError("prompt", "It broke.")

    feed = events.Feed(source())
    await feed.wait()
    assert feed.take() == tokens[0]
    assert feed.take_all() == tokens[1:]
    with pytest.raises(RequestError, match="It broke"):
        feed.take_all()
    assert feed.take_all() == []
    await feed.aclose()


async def test_closing_before_the_first_answer_cancels_the_work() -> None:
    service = fakes.FakeService()
    service.hold = asyncio.Event()
    source = events.asked(served(service), Request(inputs="x", id="7"), Updates(None, 1, 1), nothing_counted)

    async def read() -> None:
        async with aclosing(events.told(source, Drain())) as telling:
            async for _ in telling:
                pass

    reading = asyncio.create_task(read())
    await service.entered.wait()
    reading.cancel()
    await asyncio.wait({reading})
    assert service.cancelled == ["7"]


async def test_what_the_service_raises_is_raised() -> None:
    service = fakes.FakeService()
    service.error = RequestError("inputs", "inputs: unreadable.")
    with pytest.raises(RequestError, match="unreadable"):
        await collected(service, Updates(None, 1, 1))


# As server-sent events


def read_events(data: bytes) -> list[tuple[str, str, object]]:
    """Name, id and data of each event, as a client reads them (HTML Living Standard, section 9.2.6)."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


@pytest.mark.parametrize(
    ("event", "name", "event_id"),
    [
        (Answered(STOPGAP), "answer", "7/answer"),
        (Revised(FINAL), "revise", "7/revise"),
        (Done("7"), "done", "7/done"),
        (Done("7", pending=True), "done", "7/pending"),
    ],
)
def test_an_event_is_one_block(event: Event, name: str, event_id: str) -> None:
    ((found, found_id, data),) = read_events(events.encode_event(event))
    assert (found, found_id) == (name, event_id)
    if isinstance(event, Done):
        assert data == {"id": "7", "pending": event.pending}
    else:
        assert native.decode_answer(json.dumps(data).encode()) == event.answer


def test_line_ends_in_an_answer_end_no_line_of_the_stream() -> None:
    output = "a\nid: 9\n\nevent: done\r\n\u2028"
    ((_, _, data),) = read_events(events.encode_event(Answered(fakes.make_answer("7", output))))
    assert data["output"] == output


def test_pieces_of_text_are_not_sent_yet() -> None:
    assert events.encode_event(Token(id="7", text="x")) == b""


class Client:
    """The other end of an ASGI application: what it was sent, and when it leaves."""

    def __init__(self, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.scope: Scope = {"type": "http", "headers": headers or []}
        self.headers = Headers(self.scope)
        self.left = asyncio.Event()
        self.started: dict[str, object] = {}
        self.data = b""
        self.ended = False
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> dict[str, object]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, object]) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            assert not self.started, "a response starts once"
            self.started = message
            return
        assert not self.ended, "nothing comes after the end"
        self.data += message["body"]
        self.ended = not message["more_body"]
        if self.ended:
            self.left.set()  # a server's word for a response that is over, too

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in read_events(self.data)]


class Door:
    """What the door gives: a gate, and streams over a service."""

    def __init__(self, service: object, **options: object) -> None:
        self.service = service
        self.gate = Gate(1, 1 << 20, None)
        self.streams = EventStreams(Updates(None, 1, 1), nothing_counted, **options)

    async def predict(self, client: Client) -> None:
        await self.streams.predict(
            served(self.service), Request(inputs="x", id="7"), client.headers, self.gate, client.receive, client.send
        )


async def test_a_stream_has_the_facts_of_its_first_answer_as_headers() -> None:
    door, client = Door(fakes.FakeService()), Client()
    await door.predict(client)
    assert client.started["status"] == 200
    headers = dict(client.started["headers"])
    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-edgewise-status"] == b"final"
    assert client.names == ["answer", "done"]
    assert client.ended


async def test_silence_is_filled_with_comments() -> None:
    late = LateService()
    door, client = Door(late, keep_alive_s=0.001), Client()
    asking = asyncio.create_task(door.predict(client))
    await until(lambda: client.data.count(b": keep-alive\n\n") > 2)
    late.release.set()
    await asking
    assert client.names == ["answer", "revise", "done"]


async def test_a_slot_is_held_until_the_first_answer_only() -> None:
    late = LateService()
    door, client = Door(late), Client()
    asking = asyncio.create_task(door.predict(client))
    await until(lambda: "answer" in client.names)
    assert door.gate.slots.taken == 0
    held = fakes.FakeService()
    held.hold = asyncio.Event()
    door.service = held
    second = asyncio.create_task(door.predict(Client()))
    await held.entered.wait()
    assert door.gate.slots.taken == 1
    with pytest.raises(Fault) as caught:
        await door.predict(Client())
    assert caught.value.status == 429
    late.release.set()
    held.hold.set()
    await asyncio.gather(asking, second)
    assert door.gate.slots.taken == 0


async def test_an_error_before_the_first_answer_is_one_of_http() -> None:
    service = fakes.FakeService()
    service.error = RequestError("inputs", "inputs: unreadable.")
    client = Client()
    with pytest.raises(RequestError):
        await Door(service).predict(client)
    assert not client.started


async def test_an_error_after_it_is_the_last_event() -> None:
    class Broken(LateService):
        async def events(self, request: Request) -> AsyncIterator[Event]:
            yield Answered(STOPGAP)
            raise ValueError("secret input")

    client = Client()
    await Door(Broken()).predict(client)
    assert client.names == ["answer", "error"]
    assert read_events(client.data)[-1][2]["error"]["code"] == "internal"
    assert b"secret" not in client.data
    assert client.ended


async def test_a_client_that_leaves_before_the_first_answer_cancels_its_work() -> None:
    service = fakes.FakeService()
    service.hold = asyncio.Event()
    door, client = Door(service), Client()
    asking = asyncio.create_task(door.predict(client))
    await service.entered.wait()
    client.left.set()
    with pytest.raises(ClientGoneError):
        await asking
    assert service.cancelled == ["7"]
    assert door.gate.slots.taken == 0


async def test_a_client_that_leaves_after_a_provisional_answer_ends_its_stream() -> None:
    late = LateService()
    door, client = Door(late), Client()
    asking = asyncio.create_task(door.predict(client))
    await until(lambda: "answer" in client.names)
    client.left.set()
    with pytest.raises(ClientGoneError):
        await asking
    assert late.ended.is_set()


async def test_a_client_that_does_not_read_is_let_go() -> None:
    late = LateService()
    door, client = Door(late, send_timeout_s=0.01), Client()
    asking = asyncio.create_task(door.predict(client))
    await until(lambda: "answer" in client.names)
    client.reads.clear()
    late.release.set()
    with pytest.raises(ClientGoneError):
        await asking


class Timers:
    """An event loop as far as `_Sending` knows one; time goes by as the test says."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, then: Callable[[], None]) -> object:
        self.due.append((when_s, then))
        return None

    def pass_to(self, now_s: float) -> None:
        while self.due and self.due[0][0] <= now_s:
            self.now_s, then = self.due.pop(0)
            then()
        self.now_s = now_s


@pytest.mark.parametrize("sent_s", [(), (3.0,), (3.0, 9.5), (3.0, 9.5, 11.0, 19.9)])
@pytest.mark.parametrize("begun_s", [0.5, 9.99, 20.0, 27.0])
def test_a_client_that_does_not_read_is_found_when_its_time_is_over(begun_s: float, sent_s: tuple[float, ...]) -> None:
    timers, sending = Timers(), _Sending(10.0)
    sending._loop, sending._task = timers, (task := Cancelled())
    timers.call_at(10.0, sending._look)  # as `begin` does
    for at_s in (at_s for at_s in sent_s if at_s < begun_s):
        timers.pass_to(at_s)
        sending._since_s = at_s
        timers.pass_to(at_s + 0.005)
        sending._since_s = None
    timers.pass_to(begun_s)
    sending._since_s = begun_s
    timers.pass_to(begun_s + 9.999)
    assert not task.cancelled
    timers.pass_to(begun_s + 10.0)
    assert task.cancelled


class Cancelled:
    """A task that is told to stop."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


async def test_a_server_that_cannot_wait_says_so_in_the_stream() -> None:
    late = LateService()
    door, client = Door(late), Client()
    asking = asyncio.create_task(door.predict(client))
    await until(lambda: "answer" in client.names)
    asking.cancel()
    await asyncio.wait({asking})
    assert client.names == ["answer", "error"]
    assert client.ended


async def test_a_kept_answer_is_told_with_its_update(store: SqliteStore) -> None:
    store.answers.put("public", STOPGAP)
    streams = EventStreams(Updates(store.answers, 30, 1), nothing_counted)
    client = Client()
    asking = asyncio.create_task(
        streams.kept(STOPGAP, "public", client.headers, Drain(), 30, client.receive, client.send)
    )
    await until(lambda: bool(len(store.answers._waiters)))
    store.answers.put("public", FINAL)
    await asking
    assert client.names == ["answer", "revise", "done"]


@pytest.mark.parametrize(
    ("seen", "all_of_it"), [(b"7/done", True), (b"7/pending", False), (b"8/done", False), (b"\xff\n", False)]
)
def test_the_last_event_that_a_client_saw_is_harmless(seen: bytes, all_of_it: bool) -> None:
    assert events.has_seen_all(Client([(b"last-event-id", seen)]).headers, "7") is all_of_it
