"""Asking the cloud: what is asked twice, what is asked again, and what the breaker hears of it."""

import asyncio

import pytest

from edgewise import telemetry
from edgewise.contracts import CloudReply, Reference, Request
from edgewise.errors import (
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
    InputError,
)
from edgewise.router.breaker import Breaker
from edgewise.router.escalation import Escalation
from edgewise.router.instruments import Instruments
from edgewise.telemetry import Metrics

CERTIFIED, SECOND = Reference("cloud", "v1"), Reference("backup", "v1")
ASKED = Request(inputs="x", id="1")


class LoopClock:
    """The event loop's own time: what the loop's timers go by."""

    def monotonic(self):
        return asyncio.get_running_loop().time()

    def time(self):
        return self.monotonic()


class Cloud:
    """Plays a script: one entry a call, a reply, an error, or a future that brings one; the last is repeated."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests, self.timeouts, self.cancelled = [], [], 0
        self.described = CERTIFIED

    async def describe(self, *, timeout_s):
        if isinstance(self.described, Exception):
            raise self.described
        return self.described

    async def predict(self, request, *, timeout_s):
        self.requests.append(request)
        self.timeouts.append(timeout_s)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, asyncio.Future):
            try:
                step = await asyncio.shield(step)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if isinstance(step, Exception):
            raise step
        return step

    async def aclose(self):
        pass


OK = CloudReply("b", CERTIFIED)


def never():
    return asyncio.get_running_loop().create_future()


class House:
    """An escalation with everything around it in sight."""

    def __init__(self, cloud, **options):
        self.metrics = Metrics()
        self.breaker = Breaker(failures_to_open=options.pop("failures_to_open", 3), cool_down_s=3600.0)
        self.references, self.opened = [], []
        self.way = Escalation(
            cloud,
            self.breaker,
            LoopClock(),
            Instruments(self.metrics),
            timeout_s=options.pop("timeout_s", 30.0),
            on_reference=self.references.append,
            on_change=lambda: self.opened.append(True),
            uniform=lambda: 0.0,
            **options,
        )

    def count(self, metric, *labels):
        return self.metrics.counter(*metric).value(*labels)

    async def warm(self, calls=60):
        """Calls that are answered at once: they earn retries and hedges, and make a second's wait unusual."""
        for _ in range(calls):
            assert await self.way.ask(ASKED) == OK
        return self


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the parts under test set no event for this
            await asyncio.sleep(0)


# Time


async def test_a_deadline_shortens_the_call_and_says_nothing_of_the_cloud():
    cloud = Cloud(never())
    house = House(cloud, failures_to_open=1)
    with pytest.raises(CloudTimeoutError):
        await house.way.ask(ASKED, deadline=LoopClock().monotonic() + 0.02)
    assert 0 < cloud.timeouts[0] <= 0.02
    assert not house.way.is_open
    with pytest.raises(CloudTimeoutError, match="no time left"):
        await house.way.ask(ASKED, deadline=LoopClock().monotonic() - 1)
    assert len(cloud.requests) == 1


async def test_the_time_out_counts_as_a_failure():
    house = House(Cloud(never()), failures_to_open=1, timeout_s=0.01)
    with pytest.raises(CloudTimeoutError, match=r"0\.01 s"):
        await house.way.ask(ASKED)
    assert house.way.is_open
    assert house.opened == [True]
    assert house.count(telemetry.CLOUD_CALLS, "late") == 1
    assert house.count(telemetry.BREAKER_OPENINGS) == 1


async def test_a_call_counts_as_failed_when_it_gets_slow_and_its_answer_is_still_taken():
    reply = never()
    house = House(Cloud(reply), failures_to_open=1, slow_s=0.01)
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await until(lambda: house.way.is_open)
    assert not asking.done()
    reply.set_result(OK)
    assert await asking == OK
    assert house.way.is_open, "only a probe closes it"
    assert house.count(telemetry.CLOUD_CALLS, "slow") == 1
    assert house.references == [CERTIFIED]


async def test_a_call_whose_caller_left_is_never_slow():
    house = House(Cloud(never()), failures_to_open=1, slow_s=0.02)
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert not house.way.is_open


async def test_slow_is_what_takes_three_times_as_long_as_half_of_the_calls():
    house = House(Cloud(OK))
    assert house.way.slow_s == 2.0, "before anything is known"
    for seconds in [0.1] * 30 + [9.0] * 20:
        house.way._latencies.observe(seconds)
    assert house.way.slow_s == 2.0, "a cloud that gets slow is not one that always was"
    for _ in range(100):
        house.way._latencies.observe(4.0)
    assert house.way.slow_s == 12.0
    for _ in range(500):
        house.way._latencies.observe(20.0)
    assert house.way.slow_s == 30.0, "never beyond the time-out"


# What the breaker hears


@pytest.mark.parametrize("error", [CloudRefusedError("never"), InputError("not to encode")])
async def test_a_refusal_is_an_answer(error):
    house = House(Cloud(error), failures_to_open=1)
    with pytest.raises(CloudRefusedError):
        await house.way.ask(ASKED)
    assert not house.way.is_open
    assert house.count(telemetry.CLOUD_CALLS, "refused") == 1


@pytest.mark.parametrize("error", [CloudUnreachableError("no"), CloudResponseError("odd"), RuntimeError("a bug")])
async def test_a_failure_is_one(error):
    house = House(Cloud(error), failures_to_open=1)
    with pytest.raises((CloudUnreachableError, CloudResponseError)):
        await house.way.ask(ASKED)
    assert house.way.is_open
    assert house.count(telemetry.CLOUD_CALLS, "failed") == 1


async def test_who_stands_in_is_never_the_reference_and_is_a_success():
    stands_in = CloudReply("b", SECOND, fail_over=True)
    house = House(Cloud(CloudUnreachableError("no"), stands_in), failures_to_open=2)
    with pytest.raises(CloudUnreachableError):
        await house.way.ask(ASKED)
    assert await house.way.ask(ASKED) == stands_in
    assert house.references == []
    assert not house.way.is_open


async def test_where_another_stands_in_the_silence_of_the_first_opens_nothing():
    cloud = Cloud(CloudReply("b", SECOND, fail_over=True))
    cloud.described = CloudUnreachableError("away")
    house = House(cloud, failures_to_open=1)
    await house.way.ask(ASKED)
    assert not await house.way.probe()
    assert not house.way.is_open
    cloud.script = [OK]
    await house.way.ask(ASKED)
    assert [await house.way.probe() for _ in range(2)] == [False, False]
    assert house.way.is_open, "nobody stands in any more"


@pytest.mark.parametrize("trouble", [CloudUnreachableError("away"), RuntimeError("a bug"), TimeoutError()])
async def test_probes_open_and_close_it(trouble):
    cloud = Cloud(OK)
    cloud.described = trouble
    house = House(cloud, failures_to_open=2)
    assert [await house.way.probe(), house.way.is_open] == [False, False]
    assert [await house.way.probe(), house.way.is_open] == [False, True]
    cloud.described = CERTIFIED
    assert [await house.way.probe(), house.way.is_open] == [True, False]
    assert house.references == [CERTIFIED]


async def test_an_owed_request_tries_an_open_breaker_out():
    cloud = Cloud(CloudUnreachableError("no"))
    house = House(cloud, failures_to_open=1)
    with pytest.raises(CloudUnreachableError):
        await house.way.ask(ASKED)
    with pytest.raises(CloudUnreachableError):
        await house.way.try_out(ASKED)
    assert house.way.is_open
    cloud.script = [CloudRefusedError("never")]
    with pytest.raises(CloudRefusedError):
        await house.way.try_out(ASKED)
    assert not house.way.is_open, "a cloud that refuses is well"


async def test_a_trial_that_is_slow_closes_nothing_and_brings_its_answer():
    reply = never()
    house = House(Cloud(CloudUnreachableError("no"), reply), failures_to_open=1, slow_s=0.01)
    with pytest.raises(CloudUnreachableError):
        await house.way.ask(ASKED)
    asking = asyncio.ensure_future(house.way.try_out(ASKED))
    await asyncio.sleep(0.03)
    reply.set_result(OK)
    assert await asking == OK
    assert house.way.is_open


# Second calls


async def test_the_second_call_beside_a_slow_first_wins_and_the_first_is_cancelled():
    cloud = Cloud(OK)
    house = await House(cloud).warm()
    cloud.script = [never(), OK]
    assert await house.way.ask(ASKED) == OK
    assert cloud.cancelled == 1
    assert cloud.requests[-2:] == [ASKED, ASKED], "the same request, under the same id"
    assert house.count(telemetry.CLOUD_HEDGES, "won") == 1
    assert house.count(telemetry.CLOUD_CALLS, "ok") == 61, "one request, however many calls"


async def test_the_first_call_may_win_all_the_same():
    cloud, first = Cloud(OK), never()
    house = await House(cloud).warm()
    cloud.script = [first, never()]
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await until(lambda: len(cloud.requests) == 62)
    first.set_result(OK)
    assert await asking == OK
    assert cloud.cancelled == 1
    assert house.count(telemetry.CLOUD_HEDGES, "lost") == 1


async def test_a_second_call_that_fails_leaves_it_to_the_first_and_two_failures_are_one():
    cloud, first = Cloud(OK), never()
    house = await House(cloud, attempts=1).warm(120)
    cloud.script = [first, CloudResponseError("odd")]
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await until(lambda: len(cloud.requests) == 122)
    first.set_result(OK)
    assert await asking == OK
    first = never()
    cloud.script = [first, CloudResponseError("second")]
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await until(lambda: len(cloud.requests) == 124)
    first.set_exception(CloudResponseError("first"))
    with pytest.raises(CloudResponseError, match="first"):
        await asking
    assert house.count(telemetry.CLOUD_HEDGES, "failed") == 1
    assert house.count(telemetry.CLOUD_CALLS, "failed") == 1


async def test_a_caller_that_leaves_ends_both_calls():
    cloud = Cloud(OK)
    house = await House(cloud).warm()
    cloud.script = [never()]
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await until(lambda: len(cloud.requests) == 62)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert cloud.cancelled == 2


async def test_without_allowance_there_is_no_second_call():
    cloud, first = Cloud(OK), never()
    house = await House(cloud).warm(30)
    cloud.script = [first]
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await until(lambda: house.count(telemetry.CLOUD_HEDGES, "denied"))
    first.set_result(OK)
    assert await asking == OK
    assert len(cloud.requests) == 31


async def test_behind_an_open_breaker_there_is_no_second_call():
    cloud, first = Cloud(OK), never()
    house = await House(cloud, failures_to_open=1).warm()
    house.way._latencies.quantile = lambda share: 0.02
    cloud.script = [first]
    asking = asyncio.ensure_future(house.way.ask(ASKED))
    await until(lambda: len(cloud.requests) == 61)
    for _ in range(60):
        house.breaker.failed(LoopClock().monotonic())
    assert house.way.is_open
    await asyncio.sleep(0.05)
    first.set_result(OK)
    await asking
    assert len(cloud.requests) == 61


# Retries


@pytest.mark.parametrize("error", [CloudUnreachableError("reset"), CloudThrottledError("full", retry_after_s=0.001)])
async def test_what_may_pass_is_asked_again_and_the_breaker_hears_of_the_answer_alone(error):
    cloud = Cloud(OK)
    house = await House(cloud, failures_to_open=1).warm()
    cloud.script = [error, error, OK]
    assert await house.way.ask(ASKED) == OK
    assert not house.way.is_open
    assert house.count(telemetry.CLOUD_RETRIES) == 2
    assert {request.id for request in cloud.requests} == {"1"}


async def test_a_cloud_that_was_never_up_is_not_asked_again():
    cloud = Cloud(CloudUnreachableError("down"))
    house = House(cloud)
    with pytest.raises(CloudUnreachableError):
        await house.way.ask(ASKED)
    assert len(cloud.requests) == 1


async def test_attempts_end_and_the_last_error_is_told():
    cloud = Cloud(OK)
    house = await House(cloud, attempts=2).warm()
    cloud.script = [CloudUnreachableError("first"), CloudUnreachableError("second")]
    with pytest.raises(CloudUnreachableError, match="second"):
        await house.way.ask(ASKED)
    assert house.count(telemetry.CLOUD_CALLS, "failed") == 1


async def test_a_cloud_that_wants_to_be_left_alone_longer_than_there_is_time_is_left_alone():
    cloud = Cloud(OK)
    house = await House(cloud).warm()
    cloud.script = [CloudThrottledError("full", retry_after_s=31.0)]
    with pytest.raises(CloudThrottledError):
        await house.way.ask(ASKED)
    assert len(cloud.requests) == 61


async def test_a_breaker_that_opens_during_the_pause_ends_the_attempts():
    cloud = Cloud(OK)
    house = await House(cloud, slow_s=0.01, failures_to_open=1).warm()
    for _ in range(10):
        house.breaker.failed(LoopClock().monotonic())
    house.breaker.probe_succeeded(LoopClock().monotonic())
    cloud.script = [CloudThrottledError("full", retry_after_s=0.05)]
    with pytest.raises(CloudThrottledError):
        await house.way.ask(ASKED)
    assert len(cloud.requests) == 61
    assert house.way.is_open


async def test_every_call_is_a_span_that_tells_its_attempt(monkeypatch):
    found = []

    class Span:
        def __init__(self, name, kind, attributes):
            self.about = {"name": name, "kind": kind, **attributes}

        def set(self, name, value):
            self.about[name] = value

        def __enter__(self):
            found.append(self.about)
            return self

        def __exit__(self, *_):
            return None

    cloud = Cloud(OK)
    house = await House(cloud).warm()
    monkeypatch.setattr("edgewise.tracing.span", lambda name, *, kind, attributes: Span(name, kind, attributes))
    cloud.script = [CloudUnreachableError("reset"), never(), OK]
    await house.way.ask(ASKED)
    assert [(span["edgewise.attempt"], span["edgewise.hedge"]) for span in found] == [(1, False), (2, False), (2, True)]
    assert {(span["name"], span["kind"]) for span in found} == {("cloud.call", "client")}
    assert found[-1]["edgewise.backend"] == "cloud"
