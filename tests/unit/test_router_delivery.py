"""What is owed: bounded, settled in order, told to webhooks before it is forgotten, whatever goes wrong on the way."""

import asyncio
import time
from collections import Counter

import msgspec
import pytest

from edgewise import telemetry
from edgewise.contracts import (
    Action,
    Answer,
    CloudReply,
    Decision,
    Mode,
    Reason,
    Reference,
    Request,
    Source,
    Status,
)
from edgewise.errors import (
    CloudGivenUpError,
    CloudRefusedError,
    CloudThrottledError,
    CloudUnreachableError,
    OutboxFullError,
    RequestError,
    StoreError,
)
from edgewise.router.background import Background
from edgewise.router.breaker import Breaker
from edgewise.router.delivery import Deliveries
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments
from edgewise.store import SqliteStore
from edgewise.store.sqlite import StoreLimits
from edgewise.telemetry import Metrics

CERTIFIED = Reference("cloud", "v1")


class SetClock:
    """Wall-clock time that is set, monotonic time that runs, and may be set ahead."""

    def __init__(self):
        self.now, self.ahead = 1000.0, 0.0

    def monotonic(self):
        return time.monotonic() + self.ahead

    def time(self):
        return self.now


class Cloud:
    """Answers with the input; holds calls while it is held, and fails while it is down."""

    def __init__(self):
        self.down, self.asked, self.under_way, self.most = False, [], {}, 0
        self.free = asyncio.Event()
        self.free.set()
        self.fail_over, self.turns = False, 1
        self.poison = self.unwritable = None

    async def describe(self, *, timeout_s):
        if self.down:
            raise CloudUnreachableError("down")
        return CERTIFIED

    async def predict(self, request, *, timeout_s):
        self.asked.append(request.id)
        if self.down or request.id == self.poison:
            raise CloudUnreachableError("down")
        assert request.session is None or request.session not in self.under_way.values()
        self.under_way[request.id] = request.session
        self.most = max(self.most, len(self.under_way))
        try:
            await self.free.wait()
            for _ in range(self.turns):
                await asyncio.sleep(0)
        finally:
            del self.under_way[request.id]
        output = "\ud800" if request.id == self.unwritable else f"cloud: {request.inputs}"
        return CloudReply(output, CERTIFIED, fail_over=self.fail_over)

    async def aclose(self):
        pass


def asked(name, **fields):
    return Request(inputs=f"item {name}", id=str(name), **fields)


def provisional(name):
    return Answer(
        id=str(name),
        output="edge",
        status=Status.PROVISIONAL,
        source=Source.EDGE,
        decision=Decision(action=Action.ESCALATE, reason=Reason.BREAKER_OPEN, policy="p"),
        timings_ms={"total": 1.0},
        model_digest="d",
    )


class House:
    """Deliveries with a real store behind and a scripted cloud before them."""

    def __init__(self, cloud, path=":memory:", *, limits=None, clock=None, breaker=None, **options):
        self.cloud, self.clock = cloud, clock or SetClock()
        self.store = SqliteStore(path, limits=limits, clock=self.clock)
        self.metrics, self.told, self.finals = Metrics(), [], []
        instruments = Instruments(self.metrics)
        self.breaker = breaker or Breaker(failures_to_open=1, cool_down_s=0.001, max_cool_down_s=0.001)
        self.way = Escalation(
            cloud,
            self.breaker,
            self.clock,
            instruments,
            timeout_s=30.0,
            attempts=1,
            hedge_share=0.0,
            slow_s=options.pop("slow_s", None),
            on_reference=lambda reference: None,
            on_change=lambda: self.deliveries.tend(),
        )
        self.background = Background()
        self.deliveries = Deliveries(
            self.way,
            self.store.outbox,
            self.store.answers,
            self.background,
            instruments,
            clock=self.clock,
            retry_s=options.pop("retry_s", 0.0005),
            on_final=lambda request, answer, reference: self.finals.append(request.id),
            hooks=options.pop("hooks", self.tell),
            **options,
        )

    def tell(self, tenant, answer):
        assert self.store.answers.get(tenant, answer.id) == answer, "stored before it is told"
        assert self.store.outbox.request(tenant, answer.id) is not None, "told before it is forgotten"
        self.told.append((answer.id, answer.status, answer.decision.reason))

    def owe(self, name, **fields):
        return self.deliveries.owe(asked(name, **fields), provisional(name), None)

    def events(self, event):
        return self.metrics.counter(*telemetry.PROVISIONAL).value(event)

    def answer(self, name):
        return self.store.answers.get("public", str(name))

    async def settled(self):
        await until(lambda: len(self.store.outbox) == 0)

    async def close(self):
        await self.background.close()
        self.store.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the parts under test set no event for this
            await asyncio.sleep(0)


@pytest.fixture
async def house():
    made = []

    def build(*arguments, **options):
        made.append(House(*arguments, **options))
        return made[-1]

    yield build
    for one in made:
        await one.close()


# In order, side by side


async def test_a_session_is_answered_in_order_and_others_side_by_side(house):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud)
    one.breaker.failed(time.monotonic())
    for number in range(60):
        one.owe(number, session=("a", "b", None)[number % 3])
    cloud.down = False
    await one.settled()
    for session in (0, 1):
        assert [name for name in one.finals if int(name) % 3 == session] == [str(n) for n in range(session, 60, 3)]
    assert one.answer(7).output == "cloud: item 7"
    assert one.answer(7).status is Status.FINAL
    assert Counter(name for name, *_ in one.told) == Counter(str(number) for number in range(60))
    assert one.events("corrected") == 60


async def test_a_cloud_that_came_back_is_asked_one_at_a_time_then_more_and_never_too_many(house):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud, at_once=8)
    one.breaker.failed(time.monotonic())
    for number in range(200):
        one.owe(number)
    cloud.free.clear()
    cloud.down = False
    await until(lambda: cloud.under_way)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert cloud.most == 1
    cloud.turns = 100  # longer than it takes to store an answer
    cloud.free.set()
    await one.settled()
    assert cloud.most == 8


async def test_thousands_are_delivered_once_each(house):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud)
    one.breaker.failed(time.monotonic())
    for number in range(2000):
        one.owe(number, session=f"s{number % 50}")
    cloud.asked.clear()
    cloud.down = False
    await one.settled()
    assert sorted(one.finals, key=int) == [str(number) for number in range(2000)]
    # At most the probe of the moment at which it came back was in vain.
    assert 2000 <= len(cloud.asked) <= 2002


async def test_one_that_never_can_be_answered_holds_up_its_own_session_alone(house):
    cloud = Cloud()
    cloud.poison = "1"
    one = house(cloud)
    for number in range(6):
        one.owe(number, session="s" if number in (1, 3) else None)
    await until(lambda: len(one.store.outbox) == 2)
    assert [owed.id for owed in one.store.outbox.debts()] == ["1", "3"]
    cloud.poison = None
    await one.settled()
    assert one.finals.index("1") < one.finals.index("3")


async def test_an_answer_that_cannot_be_kept_is_asked_for_less_and_less_often(house, caplog):
    cloud = Cloud()
    cloud.unwritable = "1"
    one = house(cloud)
    for number in range(200):
        one.owe(number)
    await until(lambda: len(one.store.outbox) == 1)
    assert cloud.asked.count("1") < 20
    assert "Request 1 is still owed its final answer: " in caplog.text
    cloud.unwritable = None
    await one.settled()


async def test_what_an_earlier_process_owed_is_delivered_in_its_order(house, tmp_path):
    with SqliteStore(tmp_path / "s.db") as store:
        for number in range(10):
            store.outbox.put(asked(number, session="s"))
    one = house(Cloud(), tmp_path / "s.db", clock=time)
    one.deliveries.tend()
    await one.settled()
    assert one.finals == [str(number) for number in range(10)]


# At least once


async def test_hooks_that_fail_keep_the_debt_and_are_told_again(house):
    troubles = [StoreError("the disk is full"), None]
    cloud, told = Cloud(), []

    def tell(tenant, answer):
        told.append(answer.status)
        if (trouble := troubles.pop(0)) is not None:
            raise trouble

    one = house(cloud, hooks=tell)
    one.owe(1)
    await one.settled()
    assert told == [Status.FINAL] * 2
    assert cloud.asked == ["1"], "what is stored is not asked for again"


async def test_an_answer_that_was_stored_before_its_process_died_is_told_and_forgotten(house, tmp_path):
    with SqliteStore(tmp_path / "s.db") as store:
        store.outbox.put(asked(1))
        final = Answer(
            id="1",
            output="b",
            status=Status.FINAL,
            source=Source.CLOUD,
            decision=provisional(1).decision,
            timings_ms={"total": 1.0},
            model_digest="v1",
        )
        store.answers.put("public", final)
    one = house(Cloud(), tmp_path / "s.db", clock=time)
    one.deliveries.tend()
    await one.settled()
    assert one.cloud.asked == []
    assert one.told == [("1", Status.FINAL, Reason.BREAKER_OPEN)]


async def test_who_stands_in_is_named_in_the_late_answer(house):
    cloud = Cloud()
    cloud.fail_over = True
    one = house(cloud)
    one.owe(1)
    await one.settled()
    assert one.answer(1).decision.reason is Reason.FAIL_OVER


async def test_a_call_that_goes_on_brings_the_answer_itself(house):
    cloud = Cloud()
    cloud.free.clear()
    one = house(cloud)
    call = one.background.start(one.way.ask(asked(1)))
    await until(lambda: cloud.under_way)
    update = one.deliveries.owe(asked(1), provisional(1), call).update
    one.deliveries.tend()
    cloud.free.set()
    assert (await update).output == "cloud: item 1"
    assert cloud.asked == ["1"]


async def test_a_shared_call_that_was_given_up_leaves_the_debt(house):
    one = house(Cloud())
    call = asyncio.get_running_loop().create_future()
    update = one.deliveries.owe(asked(1), provisional(1), call).update
    await asyncio.sleep(0)
    call.cancel()
    assert await update is None
    await one.settled()
    assert one.answer(1).status is Status.FINAL


async def test_a_call_that_is_given_up_twice_ends_without_an_answer(house):
    one = house(Cloud())
    one.deliveries._outbox = None
    one.way.ask = _given_up
    call = asyncio.get_running_loop().create_future()
    call.set_exception(CloudGivenUpError("it is back"))
    assert await one.deliveries._late(asked(1), provisional(1), call) is None


async def _given_up(request):
    raise CloudGivenUpError("it is back again")


async def test_what_is_owed_is_brought_as_soon_as_anybody_finds_the_cloud_back(house):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud, breaker=Breaker(failures_to_open=1, cool_down_s=3600.0), clock=time)
    one.breaker.failed(time.monotonic())
    one.owe(1)
    await asyncio.sleep(0)
    assert cloud.asked == []
    cloud.down = False
    assert await one.way.probe(), "somebody else than the caretaker, who sleeps for an hour"
    await one.settled()


async def test_the_watch_leaves_a_cloud_alone_for_as_long_as_the_breaker_says(house, monkeypatch):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud, breaker=Breaker(failures_to_open=1, cool_down_s=3600.0), clock=time)
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        if seconds > 1:
            raise asyncio.CancelledError

    monkeypatch.setattr("edgewise.router.escalation.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await one.way.watch(asyncio.Event(), every_s=0.5, retry_s=0.25)
    monkeypatch.undo()
    assert slept == [0.25, pytest.approx(3600.0, abs=60)]


async def test_the_end_of_one_waiter_does_not_end_a_shared_call(house):
    one = house(Cloud())
    call = asyncio.get_running_loop().create_future()
    update = one.deliveries.owe(asked(1), provisional(1), call).update
    await asyncio.sleep(0)
    update.cancel()
    await asyncio.gather(update, return_exceptions=True)
    assert not call.cancelled()


# Bounds


async def test_what_is_owed_for_too_long_is_settled_and_told(house):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud, max_age_s=60.0)
    one.breaker.failed(time.monotonic())
    one.owe(1, session="s")
    one.clock.now += 61.0
    one.owe(2, session="s")
    await until(lambda: one.told)
    assert one.told == [("1", Status.PROVISIONAL, Reason.EXPIRED)]
    assert one.answer(1).output == "edge"
    assert await one.store.answers.wait_final("public", "1", timeout_s=60) == one.answer(1), "polls hear of it"
    assert [owed.id for owed in one.store.outbox.debts()] == ["2"]
    assert one.events("expired") == 1
    cloud.down = False
    await one.settled()
    assert one.answer(2).status is Status.FINAL, "its session goes on"


async def test_a_full_outbox_refuses_and_keeps_nothing_of_it(house):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud, limits=StoreLimits(max_pending=2))
    one.breaker.failed(time.monotonic())
    for number in (1, 2):
        one.owe(number)
    with pytest.raises(OutboxFullError, match="2 requests"):
        one.owe(3)
    assert one.answer(3) is None
    assert one.events("sent") == 2
    one.clock.now += 8 * 24 * 3600.0
    one.owe(3)
    assert [owed.id for owed in one.store.outbox.debts()] == ["3"], "what is too old makes room whatever the policy"


async def test_a_full_outbox_may_drop_the_oldest_which_is_settled_and_told(house):
    cloud = Cloud()
    cloud.down = True
    one = house(cloud, limits=StoreLimits(max_pending=3, max_bytes=2000), drop_oldest=True)
    one.breaker.failed(time.monotonic())
    for number in range(5):
        one.owe(number)
    assert one.told == [(str(number), Status.PROVISIONAL, Reason.EXPIRED) for number in (0, 1)]
    big = Request(inputs="x" * 1500, id="big")
    one.deliveries.owe(big, provisional("big"), None)
    assert "big" in [owed.id for owed in one.store.outbox.debts()]
    assert one.store.outbox.size_bytes <= 2000
    before = one.store.outbox.debts()
    with pytest.raises(OutboxFullError, match="2000 may wait"):
        one.deliveries.owe(Request(inputs="x" * 3000, id="huge"), provisional("huge"), None)
    assert one.store.outbox.debts() == before, "nothing is dropped for what never fits"
    assert one.events("dropped") == len(one.told)
    cloud.down = False
    await one.settled()


async def test_a_disk_that_is_full_owes_nothing_and_works_again_later(house, tmp_path):
    one = house(Cloud(), tmp_path / "s.db")
    put, one.store.answers.put = one.store.answers.put, _full
    one.breaker.failed(time.monotonic())
    with pytest.raises(StoreError, match="full"):
        one.owe(1)
    assert one.store.outbox.debts() == [], "who hears of an error is owed nothing, and its id is free"
    one.store.answers.put = put
    one.owe(1)
    await one.settled()
    assert one.answer(1).status is Status.FINAL


async def test_a_disk_that_is_full_when_the_answer_comes_keeps_the_debt(house):
    one = house(Cloud())
    one.breaker.failed(time.monotonic())
    one.owe(1)
    put, one.store.answers.put = one.store.answers.put, _full
    await until(lambda: one.cloud.asked)
    await asyncio.sleep(0.005)
    assert len(one.store.outbox) == 1
    one.store.answers.put = put
    await one.settled()
    assert one.answer(1).status is Status.FINAL


def _full(tenant, answer, *, item=None):
    raise StoreError("the disk is full")


async def test_an_id_is_owed_once_and_whoever_asks_again_is_given_what_is_kept(house):
    cloud = Cloud()
    one = house(cloud, breaker=Breaker(failures_to_open=1, cool_down_s=3600.0))
    one.breaker.failed(time.monotonic())
    first = one.owe(1)
    assert (first.answer, first.is_open) == (provisional(1), True)
    other_words = msgspec.structs.replace(provisional(1), output="computed anew")
    assert one.deliveries.owe(asked(1, mode=Mode.SPECULATIVE), other_words, None) == first
    one.owe(1, tenant="another")
    assert (len(one.store.outbox), one.events("sent")) == (2, 2)
    one.breaker.probe_succeeded(time.monotonic())
    one.deliveries.tend()
    await one.settled()
    assert sorted(one.finals) == ["1", "1"], "one a tenant"
    again = one.owe(1)
    assert (again.answer, again.update, again.is_open) == (one.answer(1), None, False)
    assert again.answer.status is Status.FINAL
    assert len(one.store.outbox) == 0


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("other", [{"inputs": "another item"}, {"task": "another"}])
async def test_an_id_of_another_item_is_refused(house, settled, other):
    one = house(Cloud(), breaker=Breaker(failures_to_open=1, cool_down_s=3600.0))
    one.breaker.failed(time.monotonic())
    one.owe(1)
    if settled:
        one.breaker.probe_succeeded(time.monotonic())
        one.deliveries.tend()
        await one.settled()
    kept = one.answer(1)
    request = msgspec.structs.replace(asked(1), **other)
    for put in (
        lambda: one.deliveries.owe(request, provisional(1), None),
        lambda: one.deliveries.keep(request, provisional(1)),
    ):
        with pytest.raises(RequestError, match="another item"):
            put()
    assert one.answer(1) == kept


async def test_what_an_earlier_version_owed_is_known_by_its_request(house, tmp_path):
    with SqliteStore(tmp_path / "s.db") as store:
        for number in (1, 2):
            store.outbox.put(asked(number))
        store.answers.put("public", provisional(1))
        store.answers.put("public", provisional(3))
    breaker = Breaker(failures_to_open=1, cool_down_s=3600.0)
    breaker.failed(time.monotonic())
    one = house(Cloud(), tmp_path / "s.db", clock=time, breaker=breaker)
    for number in (1, 2):
        assert one.owe(number).answer == provisional(number)
        assert one.answer(number) == provisional(number), "can be picked up"
    assert (len(one.store.outbox), one.events("sent")) == (2, 0)
    with pytest.raises(RequestError):
        one.owe(3)  # nothing tells what it answered
    with pytest.raises(RequestError):
        one.deliveries.owe(msgspec.structs.replace(asked(2), inputs="other"), provisional(2), None)


async def test_what_lapsed_is_owed_anew_where_it_is_asked_again(house):
    one = house(Cloud(), breaker=Breaker(failures_to_open=1, cool_down_s=3600.0), max_age_s=60.0)
    one.breaker.failed(time.monotonic())
    one.owe(1)
    one.clock.now += 61.0
    one.owe(2)
    await until(lambda: one.told)
    assert one.answer(1).decision.reason is Reason.EXPIRED
    assert one.owe(1).answer == one.answer(1) == provisional(1)
    assert sorted(owed.id for owed in one.store.outbox.debts()) == ["1", "2"]


async def test_an_answer_that_saves_a_call_is_kept_once(house):
    one = house(Cloud())
    saved = msgspec.structs.replace(provisional(1), output="first")
    assert one.deliveries.keep(asked(1), saved) == saved
    assert one.deliveries.keep(asked(1), provisional(1)) == saved


@pytest.mark.parametrize("refused", [False, True])
async def test_what_was_dropped_while_its_call_was_under_way_is_settled_once(house, refused):
    one = house(Cloud(), limits=StoreLimits(max_pending=1), drop_oldest=True)
    call = asyncio.get_running_loop().create_future()
    update = one.deliveries.owe(asked(1), provisional(1), call).update
    await asyncio.sleep(0)
    one.owe(2)
    expired = one.answer(1)
    assert expired.decision.reason is Reason.EXPIRED
    if refused:
        call.set_exception(CloudRefusedError("never"))
    else:
        call.set_result(CloudReply("late", CERTIFIED))
    assert await update == expired
    await one.settled()
    assert one.answer(1) == expired
    assert [told for told in one.told if told[0] == "1"] == [("1", Status.PROVISIONAL, Reason.EXPIRED)]
    assert one.finals == ["2"]


async def test_what_is_too_old_is_not_given_up_while_its_call_is_under_way(house):
    one = house(Cloud(), max_age_s=60.0)
    call = asyncio.get_running_loop().create_future()
    update = one.deliveries.owe(asked(1), provisional(1), call).update
    one.clock.now += 61.0
    one.owe(2)
    await until(lambda: one.finals == ["2"])
    call.set_result(CloudReply("late", CERTIFIED))
    assert (await update).status is Status.FINAL
    assert [told[:2] for told in one.told] == [("2", Status.FINAL), ("1", Status.FINAL)]


# Calls that hang


async def test_a_call_given_up_is_asked_for_again_at_once_and_settled_once(house):
    one = house(Cloud(), retry_s=3600.0)
    call = asyncio.get_running_loop().create_future()
    update = one.deliveries.owe(asked(1), provisional(1), call).update
    await asyncio.sleep(0)
    call.set_exception(CloudGivenUpError("hung"))
    assert await update is None
    await one.settled()
    assert (one.finals, one.cloud.asked) == (["1"], ["1"])


async def test_calls_that_hung_since_before_the_cloud_went_away_are_asked_again_when_it_is_back_in_order(house):
    """The time-out is beyond the test's patience: nothing here is settled by it."""
    cloud = Cloud()
    one = house(cloud, breaker=Breaker(failures_to_open=6, cool_down_s=0.001), retry_s=0.0005, slow_s=0.02)
    cloud.free.clear()
    for number in range(6):
        request = asked(number, session="s" if number < 3 else None)
        hung = one.background.start(one.way.ask(msgspec.structs.replace(request, session=None)))
        one.deliveries.owe(request, provisional(number), hung)
    await until(lambda: one.breaker.is_open)
    for number in range(6, 20):
        one.owe(number)
    first_asked = list(cloud.asked)
    cloud.free = asyncio.Event()  # who hangs, hangs for ever; who is asked from now on is answered
    cloud.free.set()
    await one.settled()
    assert sorted(one.finals, key=int) == [str(number) for number in range(20)]
    assert [name for name in one.finals if int(name) < 3] == ["0", "1", "2"]
    assert Counter(cloud.asked[len(first_asked) :]).keys() >= {str(number) for number in range(20)}


async def test_nothing_is_asked_for_as_long_as_the_cloud_wants_none(house):
    one = house(Cloud(), breaker=Breaker(failures_to_open=9, cool_down_s=0.001))
    call = asyncio.get_running_loop().create_future()
    update = one.deliveries.owe(asked(1), provisional(1), call).update
    call.set_exception(CloudThrottledError("busy", retry_after_s=30.0))
    assert await update is None
    one.owe(2)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert one.cloud.asked == []
    one.clock.ahead = 31.0
    one.deliveries.tend()
    await one.settled()
    assert sorted(one.finals) == ["1", "2"]


async def test_what_is_owed_in_this_process_alone_is_asked_for_again_too(house):
    one = house(Cloud(), hooks=None)
    deliveries = one.deliveries
    deliveries._outbox = None
    call = asyncio.get_running_loop().create_future()
    update = deliveries.owe(asked(1), provisional(1), call).update
    await asyncio.sleep(0)
    call.set_exception(CloudGivenUpError("hung"))
    assert (await update).output == "cloud: item 1"


async def test_one_answer_that_cannot_be_read_holds_up_no_other(house, tmp_path):
    path = tmp_path / "s.db"
    with SqliteStore(path) as store:
        for number in range(3):
            store.outbox.put(asked(number))
        with store._database.transaction() as connection:
            connection.execute("UPDATE outbox SET request = x'00' WHERE id = '0'")
    one = house(Cloud(), path, clock=time)
    one.deliveries.tend()
    await until(lambda: len(one.store.outbox) == 1)
    assert sorted(one.finals) == ["1", "2"]
