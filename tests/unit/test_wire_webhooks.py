"""Webhooks: the message and its signature, the schedule of retries, and the sender over a network of our own."""

import asyncio
import base64
import contextlib
import importlib.util
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import httpx
import msgspec
import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from edgewise.config import parse_config
from edgewise.contracts import Answer, Hook, HookQueue, Reason, Status
from edgewise.errors import ConfigError, StoreError
from edgewise.telemetry import Metrics
from edgewise.wire import native, webhook_sender, webhooks
from edgewise.wire.webhook_sender import WebhookSender
from edgewise.wire.webhooks import Fate, Target, fate_of, pause_s, signing_key
from edgewise.wiring.webhooks import webhooks_of


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def target(name: str = "crm", **changes: object) -> Target:
    fields = {
        "name": name,
        "url": f"https://{name}.test/hook",
        "key": KEY,
        "tenants": frozenset({"acme"}),
        "timeout_s": 5.0,
        "give_up_after_s": 1000.0,
    }
    return Target(**{**fields, **changes})


def hook(request_id: str = "7", **changes: object) -> Hook:
    fields = {
        "position": 1,
        "target": "crm",
        "tenant": "acme",
        "answer": fakes.make_answer(request_id),
        "created_s": 1_700_000_000.25,
    }
    return Hook(**{**fields, **changes})


class FakeClock:
    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s


class MemoryQueue:
    """A `HookQueue` in memory; `broken` makes its writes fail."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._due: dict[int, float] = {}
        self.hooks: dict[int, Hook] = {}
        self.broken = False
        self._last = 0

    def put(self, target: str, tenant: str, answer: Answer) -> None:
        known = {(hook.target, hook.tenant, hook.answer.id) for hook in self.hooks.values()}
        if (target, tenant, answer.id) in known:
            return
        self._last += 1
        self.hooks[self._last] = Hook(
            position=self._last, target=target, tenant=tenant, answer=answer, created_s=self._clock.now_s
        )
        self._due[self._last] = self._clock.now_s

    def due(self, now_s: float, limit: int) -> list[Hook]:
        return [hook for position, hook in self.hooks.items() if self._due[position] <= now_s][:limit]

    def retry(self, position: int, due_s: float) -> None:
        self._check()
        self.hooks[position] = msgspec.structs.replace(self.hooks[position], attempts=self.hooks[position].attempts + 1)
        self._due[position] = due_s

    def done(self, position: int) -> None:
        self._check()
        del self.hooks[position]

    def __len__(self) -> int:
        return len(self.hooks)

    def _check(self) -> None:
        if self.broken:
            raise StoreError("The disk is full.")


def reply(status: int, headers: dict[str, str] | None = None) -> httpx.Response:
    """A response whose body has not been read yet, as one from a network."""

    async def body() -> AsyncIterator[bytes]:
        yield b"{}"

    return httpx.Response(status, headers=headers, content=body())


class Receiver:
    """A network of receivers that answer as told and remember what they got."""

    def __init__(self) -> None:
        self.seen: list[httpx.Request] = []
        self.answers: dict[str, Callable[[], httpx.Response]] = {}
        self.hold: asyncio.Event | None = None
        self.at_once = self.most_at_once = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold is not None:
                await self.hold.wait()
            return self.answers.get(request.url.host, lambda: reply(200))()
        finally:
            self.at_once -= 1

    def ids(self, host: str = "crm.test") -> list[str]:
        """The requests whose answers a host was sent, in order."""
        return [json.loads(request.content)["data"]["id"] for request in self.seen if request.url.host == host]


class House:
    """A sender with everything around it in reach."""

    def __init__(self, *targets: Target, **options: object) -> None:
        self.clock = FakeClock()
        self.queue = MemoryQueue(self.clock)
        self.metrics = Metrics()
        self.receiver = Receiver()
        self.sender = WebhookSender(
            self.queue,
            targets or (target(),),
            clock=self.clock,
            uniform=lambda: 0.0,
            metrics=self.metrics,
            transport=httpx.MockTransport(self.receiver),
            **options,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.sender.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def count(self, fate: Fate) -> float:
        return self.metrics.counter(*webhook_sender.telemetry.WEBHOOKS).value(fate.value)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(webhook_sender, "_LOOK_EVERY_S", 0.001)
    return House()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what is awaited sets no event
            await asyncio.sleep(0.0005)


# The message


def test_the_standard_library_of_webhooks_accepts_the_signature() -> None:
    now_s = datetime.now(UTC).timestamp()
    body = webhooks.message_body(hook())
    sent = webhooks.headers(target(), hook(), body, now_s)
    assert standardwebhooks.Webhook(SECRET).verify(body, sent) == json.loads(body)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(body + b" ", sent)


@given(st.binary(min_size=24, max_size=64), st.text("abcdef0123456789_", min_size=1), st.integers(0, 2**33), st.text())
def test_the_signature_is_that_of_the_oracle(key: bytes, message: str, sent_s: int, body: str) -> None:
    when = datetime.fromtimestamp(sent_s, UTC)
    expected = standardwebhooks.Webhook(key).sign(message, when, body)
    assert webhooks.signature(key, message, sent_s, body.encode()) == expected


def test_a_message_tells_what_it_is_and_carries_the_native_answer() -> None:
    body = json.loads(webhooks.message_body(hook()))
    assert body["type"] == "answer.revised"
    assert body["timestamp"] == "2023-11-14T22:13:20.250+00:00"
    assert native.decode_answer(json.dumps(body["data"]).encode()) == fakes.make_answer("7")
    refused = fakes.make_answer("7", status=Status.PROVISIONAL, reason=Reason.CLOUD_REFUSED)
    assert json.loads(webhooks.message_body(hook(answer=refused)))["type"] == "answer.abandoned"


def test_the_id_of_a_message_is_the_same_at_every_attempt_and_of_no_other_message() -> None:
    first = webhooks.message_id(hook())
    assert webhooks.message_id(hook(attempts=3, position=9)) == first
    others = [hook("8"), hook(tenant="other"), hook(target="erp")]
    assert len({first, *map(webhooks.message_id, others)}) == 4
    assert "." not in first


# The secret and the address


def test_a_secret_is_read_and_not_shown() -> None:
    assert signing_key(SECRET) == KEY
    assert "key" not in repr(target())


@pytest.mark.parametrize("bad", ["", KEY.hex(), "whsec_", "whsec_c2hvcnQ=", "whsec_%%%%", "whsec_" + "A" * 100])
def test_what_is_no_secret_is_refused_without_repeating_it(bad: str) -> None:
    with pytest.raises(ConfigError) as caught:
        signing_key(bad)
    assert len(bad) < 8 or bad not in str(caught.value)
    assert "whsec_" in caught.value.remedy


@pytest.mark.parametrize("good", ["https://a.test/x?y=1", "http://127.0.0.1:80", "http://[::1]:8080/hook"])
def test_an_address_of_http_is_taken(good: str) -> None:
    assert webhooks.checked_address(good, "crm") == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "a.test",
        "ftp://a.test",
        "file:///etc/passwd",
        "https://",
        "https://me:secret@a.test",
        "https://a.test/#x",
        "https://a.test:port",
        "https://[::1",
        "https://a.test/\r\nx: y",
        "https://a b.test",
    ],
)
def test_what_is_no_address_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match=r"webhooks\.crm\.url"):
        webhooks.checked_address(bad, "crm")


# The schedule


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_grow_to_an_hour_and_are_at_least_half_of_their_length(failures: int, drawn: float) -> None:
    pause = pause_s(failures, lambda: drawn)
    longest = min(3600.0, 5.0 * 2 ** min(failures - 1, 20))
    assert longest / 2 <= pause < longest or pause == pytest.approx(longest)


def test_the_first_pauses_are_those_documented() -> None:
    assert [pause_s(failures, lambda: 0.0) for failures in (1, 2, 3, 11, 12)] == [2.5, 5.0, 10.0, 1800.0, 1800.0]


@pytest.mark.parametrize(
    ("status", "age_s", "fate"),
    [
        (200, 0, Fate.DELIVERED),
        (204, 99, Fate.DELIVERED),
        (410, 0, Fate.GONE),
        (302, 0, Fate.RETRIED),
        (401, 0, Fate.RETRIED),
        (500, 9.9, Fate.RETRIED),
        (None, 0, Fate.RETRIED),
        (None, 10, Fate.EXPIRED),
        (404, 10, Fate.EXPIRED),
    ],
)
def test_what_becomes_of_a_message(status: int | None, age_s: float, fate: Fate) -> None:
    assert fate_of(status, age_s=age_s, give_up_after_s=10) is fate


# The sender


def test_the_double_is_a_queue() -> None:
    queue: HookQueue = MemoryQueue(FakeClock())
    assert len(queue) == 0


async def test_an_owed_answer_arrives_signed_once_and_leaves_the_queue(house: House) -> None:
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        house.sender.owe("nobody", fakes.make_answer("8"))
        await until(lambda: house.count(Fate.DELIVERED) == 1)
    (request,) = house.receiver.seen
    assert str(request.url) == "https://crm.test/hook"
    assert request.headers["webhook-id"].startswith("msg_")
    assert request.headers["webhook-timestamp"] == "1700000000"
    body = request.content
    assert request.headers["webhook-signature"] == webhooks.signature(
        KEY, request.headers["webhook-id"], 1_700_000_000, body
    )
    assert json.loads(body)["data"]["id"] == "7"
    assert len(house.queue) == 0


async def test_a_failed_delivery_comes_again_under_the_same_id(house: House) -> None:
    house.receiver.answers["crm.test"] = lambda: reply(500)
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: house.count(Fate.RETRIED) == 1)
        house.clock.now_s += 2.4  # the first pause is not over
        await asyncio.sleep(0.01)
        assert len(house.receiver.seen) == 1
        house.clock.now_s += 0.2
        await until(lambda: house.count(Fate.RETRIED) == 2)
        del house.receiver.answers["crm.test"]
        house.clock.now_s += 5.0
        await until(lambda: house.count(Fate.DELIVERED) == 1)
    assert len({request.headers["webhook-id"] for request in house.receiver.seen}) == 1
    assert len({request.content for request in house.receiver.seen}) == 1
    stamps = [int(request.headers["webhook-timestamp"]) for request in house.receiver.seen]
    assert stamps == sorted(set(stamps))


async def test_what_waits_at_the_start_is_delivered(house: House) -> None:
    for index in range(20):
        house.queue.put("crm", "acme", fakes.make_answer(f"{index}"))
    async with house.running():
        await until(lambda: house.count(Fate.DELIVERED) == 20)
    assert sorted(house.receiver.ids(), key=int) == [f"{index}" for index in range(20)]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(house: House, status: int) -> None:
    house.receiver.answers["crm.test"] = lambda: reply(status, {"location": "http://inside.test/"})
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: house.count(Fate.RETRIED) == 1)
    assert {request.url.host for request in house.receiver.seen} == {"crm.test"}


async def test_a_target_that_is_gone_is_not_asked_again(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.receiver.answers["crm.test"] = lambda: reply(410)
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7", output="secret output"))
        await until(lambda: house.count(Fate.GONE) == 1)
    assert len(house.queue) == 0
    assert "answer 7 is given up" in caplog.text
    assert "secret output" not in caplog.text


async def test_what_is_too_old_is_given_up_with_a_line_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.receiver.answers["crm.test"] = lambda: reply(500)
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: house.count(Fate.RETRIED) == 1)
        house.clock.now_s += 1001
        await until(lambda: house.count(Fate.EXPIRED) == 1)
    assert len(house.queue) == 0
    assert [record.levelno for record in caplog.records if "given up" in record.message] == [logging.ERROR]


async def test_a_target_that_left_the_configuration_keeps_nothing(house: House) -> None:
    house.queue.put("former", "acme", fakes.make_answer("7"))
    async with house.running():
        await until(lambda: house.count(Fate.UNKNOWN) == 1)
    assert len(house.queue) == 0
    assert house.receiver.seen == []


async def test_no_more_deliveries_at_once_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sender, "_LOOK_EVERY_S", 0.001)
    house = House(max_concurrency=3)
    house.receiver.hold = asyncio.Event()
    async with house.running():
        for index in range(10):
            house.sender.owe("acme", fakes.make_answer(f"{index}"))
        await until(lambda: house.receiver.at_once == 3)
        await asyncio.sleep(0.01)
        house.receiver.hold.set()
        await until(lambda: house.count(Fate.DELIVERED) == 10)
    assert house.receiver.most_at_once == 3
    assert len(house.receiver.seen) == 10


async def test_a_target_that_is_away_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sender, "_LOOK_EVERY_S", 0.001)
    house = House(target("dead"), target("crm"), max_concurrency=2)

    def refuse() -> httpx.Response:
        raise httpx.ConnectError("refused")

    house.receiver.answers["dead.test"] = refuse
    async with house.running():
        for index in range(30):
            house.queue.put("dead", "acme", fakes.make_answer(f"{index}"))
        house.sender.owe("acme", fakes.make_answer("last"))
        await until(lambda: house.count(Fate.DELIVERED) == 1)
        # Two were under way when it was found out; the rest waits without being tried.
        assert len(house.receiver.ids("dead.test")) <= 2
        del house.receiver.answers["dead.test"]
        house.clock.now_s += 5
        await until(lambda: house.count(Fate.DELIVERED) == 32)
    assert len(house.queue) == 0


async def test_a_target_may_ask_to_be_left_alone(house: House) -> None:
    house.receiver.answers["crm.test"] = lambda: reply(503, {"retry-after": "60"})
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: house.count(Fate.RETRIED) == 1)
        house.clock.now_s += 59
        await asyncio.sleep(0.01)
        assert len(house.receiver.seen) == 1
        house.clock.now_s += 2
        await until(lambda: len(house.receiver.seen) == 2)


@pytest.mark.parametrize("value", ["soon", "-1", "1e9", "٣", "9" * 400, "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_an_odd_wish_to_be_left_alone_is_bounded(value: str) -> None:
    response = httpx.Response(503, headers={"retry-after": value.encode("utf-8")})
    assert 0 <= webhook_sender._retry_after_s(response) <= 3600


async def test_a_target_that_never_answers_is_given_its_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(target(timeout_s=0.01))
    house.receiver.hold = asyncio.Event()
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: house.count(Fate.RETRIED) == 1)
    assert house.receiver.at_once == 0


async def test_an_endless_response_is_not_read(house: House) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"x" * 4096

    house.receiver.answers["crm.test"] = lambda: httpx.Response(200, content=endless())
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: house.count(Fate.DELIVERED) == 1)
    assert given <= 6


async def test_a_queue_that_cannot_be_written_is_no_reason_to_hammer_the_target(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.running():
        house.queue.broken = True
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: "cannot be written" in caplog.text)
        await asyncio.sleep(0.02)
        assert len(house.receiver.seen) == 1
        house.queue.broken = False
        house.clock.now_s += 10
        await until(lambda: len(house.queue) == 0)
    assert house.receiver.ids() == ["7", "7"]  # at least once, under one id
    assert len({request.headers["webhook-id"] for request in house.receiver.seen}) == 1


async def test_what_is_under_way_when_the_process_ends_stays_owed(house: House) -> None:
    house.receiver.hold = asyncio.Event()
    async with house.running():
        house.sender.owe("acme", fakes.make_answer("7"))
        await until(lambda: house.receiver.at_once == 1)
    assert house.receiver.at_once == 0
    assert len(house.queue) == 1
    house.receiver.hold = None
    async with house.running():
        await until(lambda: len(house.queue) == 0)


# From settings


def settings(**changes: object) -> dict[str, object]:
    return {"webhooks": {"crm": {"url": "https://a.test/x", "secret_env": "HOOK_SECRET", **changes}}}


def test_settings_make_a_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    queue = MemoryQueue(FakeClock())
    sender = webhooks_of(parse_config(settings(tenants=["acme"])), queue, Metrics())
    sender.owe("acme", fakes.make_answer("7"))
    sender.owe("public", fakes.make_answer("8"))
    assert [(owed.target, owed.tenant, owed.answer.id) for owed in queue.hooks.values()] == [("crm", "acme", "7")]


def test_without_webhooks_there_is_no_sender() -> None:
    assert webhooks_of(parse_config({}), MemoryQueue(FakeClock()), Metrics()) is None


def test_a_webhook_gets_the_answers_of_those_without_keys_unless_told_otherwise() -> None:
    assert parse_config(settings()).webhooks["crm"].tenants == ("public",)


@pytest.mark.parametrize(
    ("changes", "secret", "problem"),
    [
        ({}, "", "HOOK_SECRET is not set"),
        ({}, "plain", "does not begin with"),
        ({"tenants": []}, SECRET, "tenants is empty"),
        ({"url": "gopher://x"}, SECRET, "no address"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], secret: str, problem: str
) -> None:
    monkeypatch.setenv("HOOK_SECRET", secret)
    with pytest.raises(ConfigError, match=problem) as caught:
        webhooks_of(parse_config(settings(**changes)), MemoryQueue(FakeClock()), Metrics())
    assert caught.value.remedy
    assert not secret or secret == "plain" or secret not in str(caught.value)


@pytest.mark.parametrize("name", ["timeout_s", "give_up_after_s"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_times_are_above_zero(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"webhooks\.crm\.{name}"):
        parse_config(settings(**{name: value}))
