import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.wire.admission import Drain, Gate, Places, Rates, Room
from edgewise.wire.faults import Fault
from edgewise.wire.keys import Hosts


def taken(rates: Rates, tenant: str, now_s: float) -> bool:
    try:
        rates.take(tenant, now_s)
    except Fault:
        return False
    return True


# Rates


def test_a_burst_is_taken_at_once_and_then_the_rate() -> None:
    rates = Rates(2.0, 3)
    assert [taken(rates, "a", 100.0) for _ in range(4)] == [True, True, True, False]
    assert [taken(rates, "a", 100.5) for _ in range(2)] == [True, False]
    assert [taken(rates, "a", 101.4) for _ in range(2)] == [True, False]
    assert [taken(rates, "a", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_one_tenant_takes_nothing_from_another() -> None:
    rates = Rates(1.0, 1)
    assert taken(rates, "a", 0.0)
    assert taken(rates, "b", 0.0)
    assert not taken(rates, "a", 0.0)


@given(
    st.floats(0.01, 1000),
    st.integers(1, 20),
    st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=60),
)
def test_no_tenant_gets_more_than_its_burst_and_its_rate(per_s: float, burst: int, pauses: list[float]) -> None:
    rates = Rates(per_s, burst)
    now_s, times = 0.0, []
    for pause in pauses:
        now_s += pause
        if taken(rates, "a", now_s):
            times.append(now_s)
    assert times, "the first is always taken"
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + (times[last] - times[first]) * per_s + 1e-6


@given(st.floats(0.01, 1000), st.integers(1, 20), st.floats(0, 1e6))
def test_retry_after_is_the_time_at_which_one_more_is_taken(per_s: float, burst: int, start_s: float) -> None:
    rates = Rates(per_s, burst)
    while taken(rates, "a", start_s):
        pass
    with pytest.raises(Fault) as caught:
        rates.take("a", start_s)
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    wait_s = int(caught.value.headers["retry-after"])
    assert 1 <= wait_s <= math.ceil(1 / per_s) + 1
    assert taken(rates, "a", start_s + wait_s)


# Places, room, gate


def test_places_are_given_back_whatever_happens() -> None:
    places = Places(1, "things are held")

    def fail() -> None:
        with places:
            assert places.taken == 1
            with pytest.raises(Fault, match="things are held"):
                places.take()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert places.taken == 0
    places.take()
    places.give()
    places.check()


def test_room_is_a_limit_together() -> None:
    room = Room(10)
    room.take(6)
    with pytest.raises(Fault):
        room.take(5)
    room.take(4)
    room.give(10)
    assert room.taken == 0


def test_a_gate_asks_the_rate_before_the_slots() -> None:
    gate = Gate(1, 10, Rates(1.0, 1))
    gate.slots.take()
    with pytest.raises(Fault) as caught:
        gate.admit("a", 0.0)
    assert caught.value.code == "too_many_requests"
    with pytest.raises(Fault) as caught:
        gate.admit("a", 0.0)
    assert caught.value.code == "rate_limited"


# The end of service


async def test_what_is_done_in_time_is_not_lost() -> None:
    async def work() -> int:
        return 7

    assert await Drain().race(work()) == 7


async def test_the_end_of_service_ends_what_waits_and_lets_nothing_begin() -> None:
    drain, cancelled, begun = Drain(), asyncio.Event(), asyncio.Event()

    async def forever() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return 7

    waiting = asyncio.create_task(drain.race(forever()))
    await begun.wait()
    drain.begin()
    drain.begin()
    assert await waiting is None
    assert cancelled.is_set()
    assert await drain.race(forever()) is None


async def test_a_race_that_is_cancelled_cancels_its_work() -> None:
    drain, cancelled, begun = Drain(), asyncio.Event(), asyncio.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    waiting = asyncio.create_task(drain.race(forever()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(cancelled.wait(), 30)


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await Drain().race(work())


# Names of this server


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8701", "127.0.0.1:1", "[::1]:8701", "[::1]", "api.example.org", None]
)
def test_its_own_names_are_taken(host: str | None) -> None:
    headers = {} if host is None else {b"host": host.encode()}
    Hosts(["localhost", "127.0.0.1", "::1", "API.example.org"]).check(headers)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:8701",
        "",
        "[::2]",
        "[::1",
        "a@localhost",
        "\xff",
    ],
)
def test_another_name_is_refused(host: str) -> None:
    with pytest.raises(Fault) as caught:
        Hosts(["localhost", "127.0.0.1"]).check({b"host": host.encode("latin-1")})
    assert (caught.value.status, caught.value.code, caught.value.field) == (421, "unknown_host", "host")
    assert isinstance(caught.value.body("/v1/predict"), bytes)
