"""A cloud that hangs: the breaker hears of it however few texts are asked, and nobody waits for lost calls."""

import asyncio
import importlib.util
import math
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from edgewise.contracts import Answered, CloudReply, Done, Mode, Reason, Request, Source, Status
from edgewise.errors import RequestError
from edgewise.router import RouterSettings

_SPEC = importlib.util.spec_from_file_location("hanging_fakes", Path(__file__).parent / "test_router_hybrid.py")
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fakes
_SPEC.loader.exec_module(fakes)

WINDOW = 20
"""Outcomes that the breaker looks at."""
SETTINGS = RouterSettings(
    slow_s=0.01, cloud_timeout_s=3600.0, cool_down_s=0.005, max_cool_down_s=0.005, failures_to_open=3, hedge_share=0.0
)


class Forgetful(fakes.ScriptedCloud):
    """Calls that come while it hangs are never answered, not even when it is back."""

    def __init__(self):
        super().__init__()
        self.hangs, self.texts, self.closings = False, Counter(), 0

    async def describe(self, *, timeout_s):
        self.closings += 1
        return self.reference

    async def predict(self, request, *, timeout_s):
        self.calls += 1
        self.texts[request.inputs] += 1
        try:
            if self.hangs:
                await asyncio.get_running_loop().create_future()
            return CloudReply(self.output, self.reference)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def doubtful(count):
    """Different texts, none of which the edge is sure of."""
    return [f"{0.5 + number / 1000} 0.5" for number in range(count)]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the parts under test set no event for this
            await asyncio.sleep(0.001)


@pytest.fixture
async def house():
    made = []

    def build(cloud, settings=SETTINGS, **plugs):
        made.append(fakes.router(cloud, settings=settings, **plugs))
        return made[-1]

    yield build
    for flow in made:
        await flow.aclose()


# Requests that share


@pytest.mark.parametrize("count", [1, 5, 40])
async def test_the_breaker_opens_within_a_few_slow_calls_however_few_texts_are_asked(house, count):
    cloud = Forgetful()
    flow = house(cloud, RouterSettings(slow_s=0.02, cloud_timeout_s=3600.0, cool_down_s=3600.0, hedge_share=0.0))
    for text in doubtful(WINDOW):
        assert (await flow.answer(Request(inputs=text))).source is Source.CLOUD
    cloud.hangs, cloud.texts = True, Counter()
    asked = 0
    async with asyncio.timeout(10):
        while not flow._cloud.is_open:
            await asyncio.gather(*(flow.answer(Request(inputs=text, budget_ms=1)) for text in doubtful(count)))
            asked += count
    assert cloud.texts.total() < asked, "they do share while it may still be answered in good time"
    # Half of the window has to be slow, and each text gives one slow call a period.
    assert max(cloud.texts.values()) <= math.ceil(WINDOW / 2 / count) + 1


# When it is back


async def test_who_still_waits_is_answered_by_a_new_call_which_equal_requests_share(house):
    cloud = Forgetful()
    flow = house(cloud, SETTINGS)
    cloud.hangs = True
    texts = [*doubtful(4), doubtful(1)[0]]
    waiting = [asyncio.ensure_future(flow.answer(Request(inputs=text, id=str(n)))) for n, text in enumerate(texts)]
    await until(lambda: cloud.calls >= 4)
    cloud.hangs = False
    answers = await asyncio.gather(*waiting)
    assert [answer.id for answer in answers] == list("01234")
    assert {(answer.status, answer.source) for answer in answers} == {(Status.FINAL, Source.CLOUD)}
    assert set(cloud.texts.values()) == {2}
    assert cloud.cancelled == 4


async def test_what_is_owed_is_asked_again_and_settled_once(house):
    cloud, store, told = Forgetful(), fakes.DictStore(), []
    flow = house(cloud, outbox=store, answers=store, hooks=lambda tenant, answer: told.append(answer.id))
    cloud.hangs = True
    for number, text in enumerate(doubtful(8)):
        await flow.answer(Request(inputs=text, id=str(number), budget_ms=1, session="s" if number < 3 else None))
    await until(lambda: flow._cloud.is_open)
    cloud.hangs = False
    await until(lambda: not store.owed)
    assert sorted(told) == list("01234567")
    assert [name for name in told if name in "012"] == ["0", "1", "2"]
    assert {answer.status for answer in store.stored.values()} == {Status.FINAL}


async def test_a_cloud_that_says_who_it_is_and_answers_nothing_is_asked_anew_by_one_at_a_time(house):
    cloud = Forgetful()
    flow = house(cloud, SETTINGS)
    cloud.hangs = True
    waiting = [asyncio.ensure_future(flow.answer(Request(inputs=text))) for text in doubtful(20)]
    await until(lambda: cloud.closings >= 1 and cloud.cancelled >= 1)
    assert cloud.cancelled < len(waiting)
    cloud.hangs = False
    assert {answer.source for answer in await asyncio.gather(*waiting)} == {Source.CLOUD}


async def test_a_call_that_gets_slow_only_when_the_cloud_is_back_is_given_up_then_and_no_failure(house):
    cloud = Forgetful()
    flow = house(cloud, SETTINGS)
    cloud.hangs = True
    lost = [asyncio.ensure_future(flow.answer(Request(inputs=text))) for text in doubtful(3)]
    await until(lambda: cloud.calls == 3)
    flow._cloud._stated_slow_s = 0.5
    lost.append(asyncio.ensure_future(flow.answer(Request(inputs=doubtful(4)[3]))))
    await until(lambda: cloud.calls == 4)
    flow._cloud._stated_slow_s = 0.01
    await until(lambda: flow._cloud._was_away)
    cloud.hangs = False
    assert {answer.source for answer in await asyncio.gather(*lost)} == {Source.CLOUD}
    assert not any(failed for _, failed in flow._cloud._breaker._outcomes)


async def test_nothing_is_given_up_where_the_cloud_was_never_away(house):
    cloud = Forgetful()
    flow = house(cloud, SETTINGS)
    cloud.hangs = True
    slow = asyncio.ensure_future(flow.answer(Request(inputs=doubtful(1)[0])))
    await until(lambda: flow._cloud._slow)
    cloud.hangs = False
    assert (await flow.answer(Request(inputs=doubtful(2)[1]))).source is Source.CLOUD
    assert cloud.cancelled == 0
    slow.cancel()
    await asyncio.wait([slow])


# The same request again


@pytest.mark.parametrize("mode", [None, Mode.SPECULATIVE, Mode.CLOUD_ONLY])
async def test_a_request_that_comes_again_is_given_what_is_kept_and_owed_once(house, mode):
    cloud, store = Forgetful(), fakes.DictStore()
    flow = house(cloud, RouterSettings(cool_down_s=3600.0, hedge_share=0.0), outbox=store, answers=store)
    cloud.hangs = True
    text, other = doubtful(2)
    first = await flow.answer(Request(inputs=text, id="1", budget_ms=1))
    again = Request(inputs=text, id="1", budget_ms=1, mode=mode)
    assert await fakes.collect(flow, again) == [Answered(first), Done("1", pending=True)]
    assert (len(store.owed), first.decision.reason) == (1, Reason.BUDGET_SPENT)
    with pytest.raises(RequestError, match="another item"):
        await flow.answer(Request(inputs=other, id="1", budget_ms=1))
    assert (await flow.answer(Request(inputs=text, id="1", budget_ms=1, tenant="other"))).id == "1"
    final = msgspec.structs.replace(first, status=Status.FINAL, output="b")
    store.put("public", final)
    assert await fakes.collect(flow, again) == [Answered(final), Done("1")]


async def test_the_call_of_a_repeat_that_is_given_what_is_kept_is_ended(house):
    cloud, store = Forgetful(), fakes.DictStore()
    flow = house(cloud, outbox=store, answers=store)
    cloud.hangs = True
    await flow.answer(Request(inputs=doubtful(1)[0], id="1", budget_ms=1))
    # In another mode it shares nothing with the first.
    await flow.answer(Request(inputs=doubtful(1)[0], id="1", budget_ms=1, mode=Mode.CLOUD_ONLY))
    await until(lambda: cloud.cancelled == 1)
    assert cloud.calls == 2
