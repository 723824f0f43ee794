"""Which backend answers where others fail, keep silent or refuse."""

import asyncio

import pytest

from edgewise.cloud.clients import FailOverClient
from edgewise.contracts import CloudClient, CloudReply, Reference, Request
from edgewise.errors import (
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    InputError,
)

REQUEST = Request(id="r1", inputs="corn")
SILENT = object()


class Backend:
    """Answers, fails or keeps silent as it is told, and records what it was asked."""

    def __init__(self, name: str) -> None:
        self.reference = Reference(name, "1")
        self.does: object = None
        self.given: list[float] = []
        self.cancelled = self.closed = False
        self.described, self.asked = asyncio.Event(), asyncio.Event()
        self.release = asyncio.Event()

    async def describe(self, *, timeout_s: float) -> Reference:
        self.described.set()
        if isinstance(self.does, Exception):
            raise self.does
        return self.reference

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        self.given.append(timeout_s)
        self.asked.set()
        if self.does is SILENT:
            try:
                await asyncio.wait_for(self.release.wait(), timeout_s)
            except TimeoutError as error:
                raise CloudTimeoutError("late") from error
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if isinstance(self.does, Exception):
            raise self.does
        return CloudReply(self.reference.name, self.reference)

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def first():
    return Backend("first")


@pytest.fixture
def second():
    return Backend("second")


def over(*backends: Backend, **settings) -> FailOverClient:
    return FailOverClient({backend.reference.name: backend for backend in backends}, **settings)


async def test_the_primary_answers_and_nobody_else_is_asked(first, second):
    client = over(first, second)
    assert isinstance(client, CloudClient)
    assert await client.predict(REQUEST, timeout_s=5) == CloudReply("first", first.reference)
    assert second.given == []
    assert await client.describe(timeout_s=5) == first.reference
    await client.aclose()
    assert first.closed
    assert second.closed


@pytest.mark.parametrize("error", [CloudUnreachableError("gone"), CloudResponseError("500"), ValueError("a bug")])
async def test_the_next_one_answers_where_the_primary_fails_and_says_so(first, second, error):
    first.does = error
    reply = await over(first, second).predict(REQUEST, timeout_s=5)
    assert reply == CloudReply("second", second.reference, fail_over=True)


@pytest.mark.parametrize("error", [CloudRefusedError("too long"), InputError("no text")])
async def test_the_primarys_refusal_of_an_item_is_the_last_word(first, second, error):
    first.does = error
    for _ in range(5):
        with pytest.raises(type(error)):
            await over(first, second, failures_to_open=1).predict(REQUEST, timeout_s=5)
    assert second.given == []


@pytest.mark.parametrize("error", [CloudRefusedError("too long"), InputError("no text")])
async def test_another_models_refusal_says_nothing_of_the_reference(first, second, error):
    first.does, second.does = CloudUnreachableError("gone"), error
    with pytest.raises(CloudUnreachableError):
        await over(first, second).predict(REQUEST, timeout_s=5)


async def test_a_silent_primary_is_passed_by_and_cancelled_once_another_answered(first, second):
    first.does = SILENT
    reply = await over(first, second, after_s=0.01).predict(REQUEST, timeout_s=5)
    assert reply.fail_over
    assert first.cancelled


async def test_a_primary_that_answers_late_still_is_the_reference(first, second):
    first.does = second.does = SILENT
    call = asyncio.create_task(over(first, second, after_s=0.01).predict(REQUEST, timeout_s=20))
    await second.asked.wait()
    first.release.set()
    assert await call == CloudReply("first", first.reference)
    assert second.cancelled


async def test_each_is_given_what_is_left_of_the_time(first, second):
    first.does = CloudUnreachableError("gone")
    await over(first, second).predict(REQUEST, timeout_s=5)
    assert 0 < second.given[0] <= first.given[0] <= 5


async def test_a_short_time_is_shared(first, second):
    first.does = SILENT
    reply = await over(first, second, after_s=60).predict(REQUEST, timeout_s=0.2)
    assert reply.output == "second"


async def test_nobody_answers_is_the_primarys_error(first, second):
    first.does, second.does = CloudResponseError("the first"), CloudResponseError("the second")
    with pytest.raises(CloudResponseError, match="the first"):
        await over(first, second).predict(REQUEST, timeout_s=5)


async def test_cancelling_cancels_every_call(first, second):
    first.does = second.does = SILENT
    call = asyncio.create_task(over(first, second, after_s=0.01).predict(REQUEST, timeout_s=20))
    await second.asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert first.cancelled
    assert second.cancelled


async def test_a_backend_known_not_to_answer_is_skipped_until_it_describes_itself(first, second):
    client = over(first, second, failures_to_open=2, cool_down_s=0.001)
    first.does = CloudUnreachableError("gone")
    for _ in range(2):
        assert (await client.predict(REQUEST, timeout_s=5)).fail_over
    assert len(first.given) == 2
    await asyncio.wait_for(first.described.wait(), 20)
    assert (await client.predict(REQUEST, timeout_s=5)).fail_over
    assert len(first.given) == 2, "no request waits on it"
    first.does = None
    first.described.clear()
    await asyncio.wait_for(first.described.wait(), 20)
    await asyncio.sleep(0)
    assert not (await client.predict(REQUEST, timeout_s=5)).fail_over
    await client.aclose()


async def test_the_routers_own_probe_brings_it_back_too(first, second):
    client = over(first, second, failures_to_open=1, cool_down_s=600)
    first.does = CloudUnreachableError("gone")
    await client.predict(REQUEST, timeout_s=5)
    first.does = None
    await client.describe(timeout_s=5)
    assert not (await client.predict(REQUEST, timeout_s=5)).fail_over
    await client.aclose()


async def test_silence_counts_as_failure_and_a_caller_in_a_hurry_does_not(first, second):
    first.does = SILENT
    client = over(first, second, after_s=0.05, failures_to_open=1, cool_down_s=600)
    await client.predict(REQUEST, timeout_s=0.04)  # the caller had no more time
    await client.predict(REQUEST, timeout_s=5)
    assert len(first.given) == 2
    await client.predict(REQUEST, timeout_s=5)
    assert len(first.given) == 2
    await client.aclose()


async def test_all_known_not_to_answer_is_told_at_once(first, second):
    client = over(first, second, failures_to_open=1, cool_down_s=600)
    first.does = second.does = CloudUnreachableError("gone")
    with pytest.raises(CloudError):
        await client.predict(REQUEST, timeout_s=5)
    with pytest.raises(CloudUnreachableError, match="first, second"):
        await client.predict(REQUEST, timeout_s=5)
    assert len(first.given) == len(second.given) == 1
    await client.aclose()


def test_one_backend_is_no_fail_over(first):
    with pytest.raises(ConfigError):
        over(first)
