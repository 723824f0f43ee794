"""Identical requests in flight: the work is done once, and each keeps its own deadline, decision and id."""

import asyncio
import importlib.util
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.contracts import Mode, Reason, Request, Source, Status
from edgewise.errors import CloudUnreachableError, RequestError
from edgewise.router import RouterSettings
from edgewise.router.singleflight import SingleFlight

_SPEC = importlib.util.spec_from_file_location("sharing_fakes", Path(__file__).parent / "test_router_hybrid.py")
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fakes
_SPEC.loader.exec_module(fakes)
CONFIDENT, DOUBTFUL, router = fakes.CONFIDENT, fakes.DOUBTFUL, fakes.router
ONCE = RouterSettings(cool_down_s=3600, failures_to_open=1000)


def asked(flow, **fields):
    return asyncio.ensure_future(flow.answer(Request(**{"inputs": DOUBTFUL, **fields})))


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


# The work of one kind


async def test_work_is_started_once_and_its_end_forgotten():
    flights, loop = SingleFlight(), asyncio.get_running_loop()
    futures = [loop.create_future(), loop.create_future()]
    starts = iter(futures)
    shares = [flights.join(b"k", lambda: next(starts)) for _ in range(3)]
    assert {id(share.future) for share in shares} == {id(futures[0])}
    futures[0].set_result(7)
    assert [await share.result() for share in shares] == [7, 7, 7]
    await turns(1)
    assert len(flights) == 0
    assert flights.join(b"k", lambda: next(starts)).future is futures[1]


async def test_only_the_last_one_to_leave_cancels():
    flights, loop = SingleFlight(), asyncio.get_running_loop()
    first, second = flights.join(b"k", loop.create_future), flights.join(b"k", loop.create_future)
    first.leave()
    first.leave()
    assert not second.future.cancelled()
    second.leave()
    assert second.future.cancelled()
    assert flights.join(b"k", loop.create_future).future is not second.future, "nobody joins what is being cancelled"


async def test_who_is_cancelled_takes_nothing_from_the_others():
    flights, loop = SingleFlight(), asyncio.get_running_loop()
    one, other = flights.join(b"k", loop.create_future), flights.join(b"k", loop.create_future)
    waiting = asyncio.ensure_future(one.result())
    await turns(2)
    waiting.cancel()
    await asyncio.wait([waiting])
    one.leave()
    other.future.set_result("here")
    assert await other.result() == "here"


async def test_without_a_key_nothing_is_shared():
    flights, loop = SingleFlight(), asyncio.get_running_loop()
    assert flights.join(None, loop.create_future).future is not flights.join(None, loop.create_future).future
    assert len(flights) == 0


# Requests


async def test_identical_requests_ask_model_and_cloud_once_and_each_is_answered_in_its_own_name():
    edge, cloud = fakes.ScriptedEdge(), fakes.ScriptedCloud()
    cloud.release.clear()
    flow = router(cloud, edge=edge)
    waiting = [asked(flow, id=str(number)) for number in range(5)]
    await cloud.asked.wait()
    cloud.release.set()
    answers = await asyncio.gather(*waiting)
    assert [answer.id for answer in answers] == list("01234")
    assert {(answer.output, answer.source) for answer in answers} == {("b", Source.CLOUD)}
    assert (edge.calls, cloud.calls) == (1, 1)


async def test_each_keeps_its_own_deadline_and_the_impatient_get_the_update_of_the_shared_call():
    cloud, store = fakes.ScriptedCloud(), fakes.DictStore()
    cloud.release.clear()
    flow = router(cloud, outbox=store, answers=store)
    patient, impatient = asked(flow, id="patient"), asked(flow, id="impatient", budget_ms=1)
    provisional = await impatient
    assert (provisional.id, provisional.decision.reason) == ("impatient", Reason.BUDGET_SPENT)
    patient.cancel()
    await asyncio.wait([patient])
    assert cloud.cancelled == 0, "somebody is owed its answer"
    cloud.release.set()
    final = await store.wait_final("public", "impatient", timeout_s=10)
    assert (final.output, cloud.calls) == ("b", 1)


async def test_the_last_caller_that_leaves_ends_the_call():
    cloud = fakes.ScriptedCloud()
    cloud.release.clear()
    flow = router(cloud)
    one, other = asked(flow), asked(flow)
    await cloud.asked.wait()
    await turns()
    one.cancel()
    await turns()
    assert (cloud.calls, cloud.cancelled) == (1, 0)
    other.cancel()
    await turns()
    assert cloud.cancelled == 1


async def test_a_failure_is_shared_and_not_remembered():
    cloud = fakes.ScriptedCloud()
    flow = router(cloud, settings=ONCE, cache=fakes.DictCache())
    fails = CloudUnreachableError("down")

    async def failing(request, *, timeout_s):
        await cloud.release.wait()
        raise fails

    cloud.predict, usual = failing, cloud.predict
    answers = await asyncio.gather(asked(flow), asked(flow))
    assert {answer.decision.reason for answer in answers} == {Reason.CLOUD_FAILED}
    cloud.predict = usual
    assert (await asked(flow)).source is Source.CLOUD
    await flow.aclose()


async def test_an_unreadable_item_is_refused_to_each():
    edge = fakes.ScriptedEdge()
    flow = router(fakes.ScriptedCloud(), edge=edge)
    found = await asyncio.gather(*(asked(flow, inputs="unreadable") for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [RequestError] * 3
    assert edge.calls == 1


async def test_audited_requests_share_nothing():
    cloud, edge, store = fakes.ScriptedCloud(), fakes.ScriptedEdge(), fakes.DictStore()
    flow = router(cloud, edge=edge, audits=store, uniform=lambda: 0.0)
    await asyncio.gather(asked(flow), asked(flow))
    assert (edge.calls, cloud.calls) == (2, 2)


@pytest.mark.parametrize("other", [{"tenant": "other"}, {"mode": Mode.CLOUD_ONLY}, {"inputs": "0.55 0.45"}])
async def test_what_is_not_identical_is_not_shared(other):
    cloud = fakes.ScriptedCloud()
    flow = router(cloud)
    await asyncio.gather(asked(flow), asked(flow, **other))
    assert cloud.calls == 2


# At random


class FallibleCloud(fakes.ScriptedCloud):
    """A cloud that waits to be let go and then answers, or fails."""

    fails = False

    async def predict(self, request, *, timeout_s):
        reply = await super().predict(request, timeout_s=timeout_s)
        if self.fails:
            raise RuntimeError("broken")
        return reply


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.booleans(), st.booleans())
@settings(max_examples=25)
def test_whatever_happens_work_is_done_once_nobody_hangs_and_nothing_is_left(seed, callers, fails, audited):
    asyncio.run(happens(random.Random(seed), callers, fails, audited))


async def happens(dice, callers, fails, audited):
    edge, cloud, store = fakes.ScriptedEdge(), FallibleCloud(), fakes.DictStore()
    cloud.fails = fails
    cloud.release.clear()
    flow = router(
        cloud, edge=edge, settings=ONCE, outbox=store, answers=store, audits=store, cache=fakes.DictCache(),
        uniform=lambda: 0.0 if audited and dice.random() < 0.3 else 0.9,
    )  # fmt: skip
    before = asyncio.all_tasks()
    budgets = {str(number): dice.choice([None, None, 0.0, 1.0, 60_000.0]) for number in range(callers)}
    mode = dice.choice([Mode.GUARDED, Mode.SPECULATIVE, Mode.CLOUD_ONLY])
    waiting = {name: asked(flow, id=name, budget_ms=budget, mode=mode) for name, budget in budgets.items()}
    for name in dice.sample(sorted(waiting), k=dice.randint(0, callers)):
        await turns(dice.randint(0, 12))
        waiting[name].cancel()
    await turns(dice.randint(0, 12))
    cloud.release.set()
    async with asyncio.timeout(10):
        found = dict(zip(waiting, await asyncio.gather(*waiting.values(), return_exceptions=True), strict=True))
    drawn = len(store.audits)
    if mode is not Mode.CLOUD_ONLY:  # there each needs the edge at a moment of its own, its deadline
        assert edge.calls <= 1 + drawn
    assert cloud.calls <= 1 + drawn
    outcomes = Counter(type(answer).__name__ for answer in found.values())
    assert set(outcomes) <= {"Answer", "CancelledError"}
    for name, answer in found.items():
        if not isinstance(answer, asyncio.CancelledError):
            assert answer.id == name
            assert answer.output == ("b" if answer.status is Status.FINAL else "a")
    async with asyncio.timeout(10):
        await store.settled()
    await flow.aclose()
    await turns()
    assert len(flow._flow._predictions) == len(flow._flow._calls) == 0
    assert asyncio.all_tasks() == before
