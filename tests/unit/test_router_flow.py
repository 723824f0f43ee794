"""What comes at once and what has to be waited for, and what becomes of a budget, a caller that leaves, a stand-in."""

import asyncio
import importlib.util
import inspect
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from edgewise.contracts import (
    Action,
    Answer,
    CloudReply,
    DataPolicy,
    Mode,
    Reason,
    Reference,
    Request,
    Source,
    Status,
)
from edgewise.errors import InputError, RequestError
from edgewise.router import RouterSettings
from edgewise.router.cachekey import cache_key
from edgewise.router.pace import Pace, Recent
from edgewise.router.policies import PolicySettings
from edgewise.router.settings import Profile
from edgewise.telemetry import Metrics

_SPEC = importlib.util.spec_from_file_location("flow_fakes", Path(__file__).parent / "test_router_hybrid.py")
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fakes
_SPEC.loader.exec_module(fakes)
CONFIDENT, DOUBTFUL, router = fakes.CONFIDENT, fakes.DOUBTFUL, fakes.router
STAND_IN = Reference("stand-in", "2")
PATIENT = RouterSettings(cool_down_s=3600)


class Ticking:
    """A clock that goes on by `tick` whenever it is read: what lies between two readings takes so long."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def monotonic(self):
        self.now += self.tick
        return self.now

    def time(self):
        return self.now


class GatedEdge(fakes.ScriptedEdge):
    """An edge model that computes when the gate opens."""

    def __init__(self):
        super().__init__()
        self.started, self.gate = threading.Event(), threading.Event()

    def predict(self, inputs):
        self.started.set()
        assert self.gate.wait(10)
        return super().predict(inputs)


class StandInCloud(fakes.ScriptedCloud):
    """A cloud in whose place another backend answers."""

    async def predict(self, request, *, timeout_s):
        await super().predict(request, timeout_s=timeout_s)
        return CloudReply(self.output, STAND_IN, fail_over=True)


class DictShared:
    """A shared cache in a dictionary, which answers when `release` is set."""

    def __init__(self):
        self.kept, self.asked, self.closed = {}, 0, False
        self.release, self.filled = asyncio.Event(), asyncio.Event()
        self.release.set()

    async def get(self, key):
        self.asked += 1
        await self.release.wait()
        return self.kept.get(key)

    async def put(self, key, answer):
        self.kept[key] = answer
        self.filled.set()

    async def aclose(self):
        self.closed = True


async def answered(found):
    return found if isinstance(found, Answer) else await found


# At once or later


@pytest.mark.parametrize("text", [CONFIDENT, DOUBTFUL])
async def test_a_cache_hit_comes_at_once(text):
    flow = router(fakes.ScriptedCloud(), cache=fakes.DictCache())
    first = flow.respond(Request(inputs=text, id="1"))
    assert inspect.iscoroutine(first)
    again = (await first, flow.respond(Request(inputs=text, id="2")))[1]
    assert isinstance(again, Answer)
    assert (again.id, again.source, again.decision.reason) == ("2", Source.CACHE, Reason.CACHE_HIT)
    assert set(again.timings_ms) == {"total"}


@pytest.mark.parametrize("default_ms", [None, 300.0])
async def test_the_cloud_hears_the_budget_and_from_when_it_runs(default_ms):
    asked = []

    class Cloud(fakes.ScriptedCloud):
        async def predict(self, request, *, timeout_s):
            asked.append(request)
            return await super().predict(request, timeout_s=timeout_s)

    clock = Ticking(1e-4)
    flow = router(Cloud(), clock=clock, settings=RouterSettings(budget_ms=default_ms))
    await answered(flow.respond(Request(inputs=DOUBTFUL, id="1")))
    await answered(flow.respond(Request(inputs=DOUBTFUL + "0", id="2", budget_ms=200.0, arrived_s=clock.monotonic())))
    await answered(flow.respond(Request(inputs=DOUBTFUL + "00", id="3", budget_ms=200.0, patience_ms=400.0)))
    budgets = [request.budget_ms for request in asked]
    assert budgets[0] == (None if default_ms is None else pytest.approx(default_ms))
    assert budgets[1:] == [pytest.approx(200.0), pytest.approx(200.0)], "whatever the patience of a gateway's"
    assert all(request.arrived_s is not None for request in asked[1:])


async def test_a_model_that_is_quicker_than_a_hop_answers_at_once_until_it_is_not():
    clock, cloud, here = Ticking(1e-4), fakes.ScriptedCloud(), set()

    class Edge(fakes.ScriptedEdge):
        def predict(self, inputs):
            here.add(threading.current_thread() is threading.main_thread())
            return super().predict(inputs)

    flow = router(cloud, edge=Edge(), clock=clock)
    async with flow.running():
        (measuring,) = (task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_measure")
        await measuring
        clock.tick = 1e-5
        assert inspect.iscoroutine(first := flow.respond(Request(inputs=CONFIDENT)))
        assert ((await first).source, here) == (Source.EDGE, {False})
        at_once = flow.respond(Request(inputs=CONFIDENT))
        assert isinstance(at_once, Answer)
        assert (at_once.source, at_once.status, here) == (Source.EDGE, Status.FINAL, {True, False})
        assert inspect.iscoroutine(escalated := flow.respond(Request(inputs=DOUBTFUL)))
        assert (await escalated).source is Source.CLOUD
        clock.tick = 1e-3
        slow = [flow.respond(Request(inputs=CONFIDENT)) for _ in range(2)]
        assert all(isinstance(found, Answer) for found in slow), "that it is slow is seen by then"
        assert inspect.iscoroutine(back := flow.respond(Request(inputs=CONFIDENT)))
        assert (await back).source is Source.EDGE


async def test_slow_items_that_cannot_be_read_go_to_the_pool_as_well():
    clock, here = Ticking(1e-4), []

    class Edge(fakes.ScriptedEdge):
        def predict(self, inputs):
            here.append(threading.current_thread() is threading.main_thread())
            if inputs == ["bad"]:
                raise InputError("It cannot be read.")
            return super().predict(inputs)

    flow = router(fakes.ScriptedCloud(), edge=Edge(), clock=clock)
    async with flow.running():
        (measuring,) = (task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_measure")
        await measuring
        clock.tick = 1e-5
        await answered(flow.respond(Request(inputs=CONFIDENT)))
        clock.tick = 1e-2
        here.clear()
        for _ in range(3):
            with pytest.raises(RequestError, match="cannot be read"):
                await answered(flow.respond(Request(inputs="bad")))
    assert here == [True, False, False]


async def test_what_a_hop_costs_is_measured_once_however_many_ask():
    flow = router(fakes.ScriptedCloud())
    asked = [asyncio.ensure_future(flow.answer(Request(inputs=CONFIDENT, id=str(n)))) for n in range(20)]
    await asyncio.gather(*asked)
    measuring = [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_measure"]
    assert len(measuring) == 1
    await flow.aclose()


def test_nothing_runs_here_before_hop_and_model_were_measured():
    pace = Pace()
    pace.took_in_pool(0.0, 1)
    assert not pace.is_quick, "what a hop costs is not known"
    pace.hop_takes(1e-4)
    pace.took_in_pool(1.0, 1)
    assert not pace.is_quick
    pace.took_in_pool(1e-5, 1)
    assert pace.is_quick, "the first one was cold"


def test_a_model_that_was_too_slow_is_tried_again_after_a_while():
    pace = Pace()
    pace.hop_takes(1e-4)
    pace.took_in_pool(1e-5, 1)
    for patience in (16, 32, 64, 128, 256, 512, 1024, 1024):
        for _ in range(5):
            assert pace.is_quick
            pace.took_here(1.5e-4)
        for _ in range(patience):
            assert not pace.is_quick
            pace.took_in_pool(1e-5, 1)
    for seconds in 8 * (1e-5,) + 5 * (2.5e-4,):
        pace.took_here(seconds)
    for _ in range(16):
        assert not pace.is_quick
        pace.took_in_pool(1e-5, 1)
    assert pace.is_quick, "after a quick window its slowness is news again"


def test_slow_predictions_that_are_not_most_of_a_window_are_forgiven():
    pace = Pace()
    pace.hop_takes(1e-4)
    pace.took_in_pool(1e-5, 1)
    for _ in range(5):
        for seconds in (*4 * (4e-4,), *4 * (1e-5,)):
            pace.took_here(seconds)
    assert pace.is_quick
    for seconds in 8 * (1.9e-4,):
        pace.took_here(seconds)
    assert pace.is_quick, "the machine has a slow moment, and a hop would take longer too"
    for seconds in 5 * (2e-4,):
        pace.took_here(seconds)
    assert not pace.is_quick


def test_one_prediction_that_is_very_slow_ends_it_at_once():
    pace = Pace()
    pace.hop_takes(1e-4)
    pace.took_in_pool(1e-5, 1)
    pace.took_here(1e-5)
    pace.took_here(3e-3)
    assert not pace.is_quick


def test_what_is_much_larger_than_what_was_fast_is_not_run_here():
    pace = Pace()
    pace.hop_takes(1e-4)
    pace.took_in_pool(1e-5, 100)
    assert pace.is_quick_for(200)
    assert not pace.is_quick_for(201)
    pace.took_in_pool(1.0, 1000)
    assert not pace.is_quick_for(201), "larger, and slow"
    pace.took_in_pool(1e-5, 200)
    assert pace.is_quick_for(400), "larger, and fast"


def test_a_model_has_to_be_quicker_than_a_hop_to_stay():
    pace = Pace()
    pace.hop_takes(1e-4)
    pace.took_in_pool(1e-5, 1)
    for seconds in 5 * (1e-4,):
        pace.took_here(seconds)
    assert not pace.is_quick


def test_what_is_set_aside_is_the_longest_of_late():
    recent = Recent(0.5)
    assert recent.seconds == 0.5
    for seconds, expected in [(2.0, 2.0), (1.0, 1.9), (1.0, 1.805), (3.0, 3.0)]:
        recent.took(seconds)
        assert recent.seconds == pytest.approx(expected)


async def test_a_request_that_cannot_be_answered_is_refused_at_once_where_that_is_known():
    flow = router(fakes.ScriptedCloud())
    with pytest.raises(RequestError, match="profile"):
        flow.respond(Request(inputs=CONFIDENT, profile="none"))
    await flow.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        flow.respond(Request(inputs=CONFIDENT))


# Draws


async def test_one_coin_is_tossed_a_request_whatever_becomes_of_it():
    tossed = []

    def uniform():
        tossed.append(None)
        return 0.9

    clock = Ticking(1e-4)
    store = fakes.DictStore()
    flow = router(fakes.ScriptedCloud(), audits=store, uniform=uniform, cache=fakes.DictCache(), clock=clock)
    async with flow.running():
        clock.tick = 1e-6
        for count, text in enumerate([CONFIDENT, CONFIDENT, "0.95 0.05", DOUBTFUL, DOUBTFUL, "0.99 0.01"], start=1):
            await answered(flow.respond(Request(inputs=text)))
            assert len(tossed) == count


async def test_work_that_was_never_begun_leaves_no_open_draw():
    store = fakes.DictStore()
    flow = router(fakes.ScriptedCloud("a"), audits=store, uniform=lambda: 0.0)
    flow.respond(Request(inputs=CONFIDENT)).close()
    doomed = asyncio.ensure_future(flow.respond(Request(inputs=CONFIDENT)))
    doomed.cancel()
    await asyncio.wait([doomed])
    assert store.audits == []
    await flow.respond(Request(inputs=CONFIDENT))
    assert await store.settled() == [(False, False)]
    await flow.aclose()


# Budgets


async def test_a_budget_is_missed_whatever_patience_there_is():
    cloud, clock, metrics = fakes.ScriptedCloud(), fakes.Steps(), Metrics()
    flow = router(cloud, clock=clock, metrics=metrics)
    clock.now = 10.0
    request = Request(inputs=DOUBTFUL, budget_ms=100.0, patience_ms=3000.0, arrived_s=9.5)
    assert (await flow.answer(request)).status is Status.FINAL
    assert b'edgewise_budget_missed_total{profile="none"} 1' in metrics.render()
    await flow.aclose()


async def test_the_budget_runs_from_the_arrival():
    cloud, clock, metrics = fakes.ScriptedCloud(), fakes.Steps(), Metrics()
    cloud.release.clear()
    settings = RouterSettings(cool_down_s=3600, profiles={"fast": Profile(50.0)})
    flow = router(cloud, clock=clock, metrics=metrics, settings=settings)
    clock.now = 10.0
    answer = await flow.answer(Request(inputs=DOUBTFUL, profile="fast", arrived_s=9.9))
    assert (answer.decision.reason, answer.timings_ms["total"]) == (Reason.BUDGET_SPENT, pytest.approx(100.0))
    assert b'edgewise_budget_missed_total{profile="fast"} 1' in metrics.render()
    from_the_future = await flow.answer(Request(inputs=CONFIDENT, profile="fast", arrived_s=99.0))
    assert from_the_future.timings_ms["total"] == 0.0
    assert b'edgewise_budget_missed_total{profile="fast"} 1' in metrics.render()
    await flow.aclose()


@pytest.mark.parametrize("seen_before", [False, True])
async def test_what_was_escalated_unseen_has_its_edge_answer_when_time_is_up(seen_before):
    cloud, edge = fakes.ScriptedCloud(), fakes.ScriptedEdge()
    flow = router(cloud, edge=edge, settings=PATIENT)
    if seen_before:
        await flow.answer(Request(inputs=CONFIDENT))
    edge.calls = 0
    cloud.release.clear()
    answer = await flow.answer(Request(inputs=CONFIDENT, mode=Mode.CLOUD_ONLY, budget_ms=20))
    assert (answer.output, answer.status, answer.decision.reason) == ("a", Status.PROVISIONAL, Reason.BUDGET_SPENT)
    assert edge.calls == 1
    await flow.aclose()


async def test_a_prediction_that_the_cloud_made_needless_is_dropped():
    cloud, edge = fakes.ScriptedCloud(), GatedEdge()
    flow = router(cloud, edge=edge, settings=RouterSettings(cool_down_s=3600, inference_threads=1))
    stuck = asyncio.ensure_future(flow.answer(Request(inputs=CONFIDENT)))
    await asyncio.to_thread(edge.started.wait, 10)
    cloud.release.clear()
    waiting = asyncio.ensure_future(flow.answer(Request(inputs=DOUBTFUL, mode=Mode.CLOUD_ONLY, budget_ms=60_000)))
    await cloud.asked.wait()
    cloud.release.set()
    assert (await waiting).source is Source.CLOUD
    edge.gate.set()
    assert (await stuck).source is Source.EDGE
    await flow.aclose()
    assert edge.calls == 1


# Callers that leave


async def test_a_cancelled_caller_takes_its_prediction_out_of_the_queue():
    edge = GatedEdge()
    flow = router(fakes.ScriptedCloud(), edge=edge, settings=RouterSettings(inference_threads=1))
    stuck = asyncio.ensure_future(flow.answer(Request(inputs=CONFIDENT)))
    await asyncio.to_thread(edge.started.wait, 10)
    queued = asyncio.ensure_future(flow.answer(Request(inputs=DOUBTFUL)))
    for _ in range(5):
        await asyncio.sleep(0)
    queued.cancel()
    await asyncio.wait([queued])
    edge.gate.set()
    await stuck
    await flow.aclose()
    assert edge.calls == 1


# Another backend in the cloud's place


async def test_what_a_stand_in_says_is_final_and_speaks_neither_for_nor_against_the_promise():
    cloud, cache = StandInCloud(), fakes.DictCache()
    flow = router(cloud, cache=cache)
    answer = await flow.answer(Request(inputs=DOUBTFUL))
    assert (answer.status, answer.source, answer.decision.reason) == (Status.FINAL, Source.CLOUD, Reason.FAIL_OVER)
    assert (answer.decision.action, answer.decision.certificate_id) == (Action.ESCALATE, None)
    assert answer.model_digest == STAND_IN.version
    assert flow.certificate is not None, "the certified cloud did not change: it did not answer"
    assert cache == {}
    assert (await flow.answer(Request(inputs=DOUBTFUL))).source is Source.CLOUD


async def test_what_a_stand_in_says_late_is_not_kept_either():
    cloud, store, cache = StandInCloud(), fakes.DictStore(), fakes.DictCache()
    cloud.release.clear()
    flow = router(cloud, cache=cache, outbox=store, answers=store, settings=PATIENT)
    assert (await flow.answer(Request(inputs=DOUBTFUL, id="late", budget_ms=1))).status is Status.PROVISIONAL
    cloud.release.set()
    final = await store.wait_final("public", "late", timeout_s=10)
    assert final.decision.reason is Reason.FAIL_OVER
    assert cache == {}
    await flow.aclose()


async def test_a_stand_in_judges_no_audit():
    store = fakes.DictStore()
    settings = RouterSettings(cool_down_s=0.001, audit_verdict_deadline_s=0.01)
    flow = router(StandInCloud("a"), audits=store, uniform=lambda: 0.0, settings=settings)
    await flow.answer(Request(inputs=CONFIDENT))
    assert await store.settled() == [(True, True)], "its verdict is missing"
    await flow.answer(Request(inputs=DOUBTFUL))
    assert store.found[1].differs is None
    await flow.aclose()


async def test_an_audit_waits_until_the_certified_cloud_answers_again():
    cloud, store = StandInCloud("a"), fakes.DictStore()
    flow = router(cloud, audits=store, uniform=lambda: 0.0, settings=RouterSettings(cool_down_s=0.001))
    await flow.answer(Request(inputs=CONFIDENT))
    await cloud.asked.wait()
    cloud.predict = fakes.ScriptedCloud("a").predict
    assert await store.settled() == [(False, False)]
    await flow.aclose()


# The shared cache


async def test_a_shared_cache_is_asked_after_the_own_one_and_fills_it():
    shared, edge = DictShared(), fakes.ScriptedEdge()
    first = router(fakes.ScriptedCloud(), cache=fakes.DictCache(), shared_cache=shared)
    second = router(fakes.ScriptedCloud(), edge=edge, cache=fakes.DictCache(), shared_cache=shared)
    given = await first.answer(Request(inputs=DOUBTFUL, id="1"))
    await shared.filled.wait()
    found = await second.answer(Request(inputs=DOUBTFUL, id="2"))
    assert (found.id, found.source, found.decision.reason) == ("2", Source.CACHE, Reason.CACHE_HIT)
    assert (found.output, found.decision.action, edge.calls) == (given.output, Action.ESCALATE, 0)
    asked = shared.asked
    assert isinstance(second.respond(Request(inputs=DOUBTFUL)), Answer)
    assert shared.asked == asked
    await first.aclose()
    await second.aclose()
    assert shared.closed


async def test_a_local_answer_is_shared_too():
    shared = DictShared()
    flow = router(fakes.ScriptedCloud(), shared_cache=shared, clock=fakes.Steps())
    await flow.answer(Request(inputs=CONFIDENT))
    await shared.filled.wait()
    assert (await flow.answer(Request(inputs=CONFIDENT))).source is Source.CACHE
    await flow.aclose()


async def test_a_shared_cache_that_hangs_holds_nobody_up():
    shared = DictShared()
    shared.release.clear()
    flow = router(fakes.ScriptedCloud(), shared_cache=shared)
    answer = await flow.answer(Request(inputs=CONFIDENT, budget_ms=1000))
    assert (answer.source, shared.asked) == (Source.EDGE, 1)
    await flow.aclose()


async def test_local_only_requests_touch_no_shared_cache():
    shared = DictShared()
    flow = router(fakes.ScriptedCloud(), shared_cache=shared, clock=fakes.Steps())
    await flow.answer(Request(inputs=CONFIDENT, data_policy=DataPolicy.LOCAL_ONLY))
    await asyncio.sleep(0)
    assert (shared.asked, shared.kept) == (0, {})
    await flow.aclose()


async def test_audited_requests_ask_no_shared_cache_and_leave_only_what_the_cloud_says():
    shared, store = DictShared(), fakes.DictStore()
    flow = router(fakes.ScriptedCloud(), shared_cache=shared, audits=store, uniform=lambda: 0.0)
    await flow.answer(Request(inputs=CONFIDENT))
    await flow.answer(Request(inputs=DOUBTFUL))
    await shared.filled.wait()
    assert (shared.asked, [kept.output for kept in shared.kept.values()]) == (0, ["b"])
    await flow.aclose()


async def test_provisional_answers_are_never_shared():
    cloud, shared = fakes.ScriptedCloud(), DictShared()
    cloud.down = True
    flow = router(cloud, shared_cache=shared, settings=PATIENT)
    assert (await flow.answer(Request(inputs=DOUBTFUL))).status is Status.PROVISIONAL
    await flow.aclose()
    assert shared.kept == {}


# What follows


async def test_who_wants_to_know_of_settled_answers_is_told_before_the_debt_is_forgotten():
    cloud, store, told = fakes.ScriptedCloud(), fakes.DictStore(), []
    cloud.release.clear()

    def hook(tenant, answer):
        told.append((tenant, answer.id, answer.output, store.get(tenant, answer.id).output, len(store)))

    flow = router(cloud, outbox=store, answers=store, hooks=hook, settings=PATIENT)
    await flow.answer(Request(inputs=DOUBTFUL, id="h", tenant="shop", budget_ms=1))
    cloud.release.set()
    await store.wait_final("shop", "h", timeout_s=10)
    assert told == [("shop", "h", "b", "b", 1)]
    await flow.aclose()


async def test_a_saved_answer_does_not_take_the_place_of_one_that_is_kept_under_its_id():
    store = fakes.DictStore()
    settings = RouterSettings(policy=PolicySettings(use="budgeted", calls_per_day=1))
    store.days["1970-01-01"] = 1.0
    flow = router(fakes.ScriptedCloud(), settings=settings, spending=store, answers=store, clock=fakes.Steps())
    saved = await flow.answer(Request(inputs=DOUBTFUL, id="s"))
    assert (saved.decision.reason, store.get("public", "s")) == (Reason.SAVED, saved)
    with pytest.raises(RequestError, match="/v1/answers/s"):
        await flow.answer(Request(inputs="0.55 0.45", id="s"))
    assert store.get("public", "s") == saved
    await flow.aclose()


async def test_answers_from_a_cache_keep_what_was_decided():
    cache = fakes.DictCache()
    flow = router(fakes.ScriptedCloud(), cache=cache)
    first = await flow.answer(Request(inputs=CONFIDENT))
    again = await flow.answer(Request(inputs=CONFIDENT))
    assert again.decision == msgspec.structs.replace(first.decision, reason=Reason.CACHE_HIT)
    assert again.model_digest == first.model_digest


async def test_an_answer_whose_audit_is_not_on_record_is_kept_under_what_it_was_decided_by(monkeypatch):
    cache, scope = fakes.DictCache(), ["decided"]
    flow = router(fakes.ScriptedCloud(), audits=fakes.DictStore(), cache=cache, uniform=lambda: 0.0)
    monkeypatch.setattr(flow._verdicts, "draw", lambda request: None)
    monkeypatch.setattr(flow._recall, "_scope", lambda request: scope[0])
    decide = flow._flow._decide

    async def decide_then_change(turn):
        decided = await decide(turn)
        scope[0] = "changed"
        return decided

    monkeypatch.setattr(flow._flow, "_decide", decide_then_change)
    request = Request(inputs=CONFIDENT)
    answer = await flow.answer(request)
    assert answer.source is Source.EDGE
    mode, reference = flow._settings.promise(request)[0], fakes.CERTIFIED
    key = cache_key(request, mode=mode, scope="decided", model_digest=answer.model_digest, reference=reference)
    assert list(cache) == [key]
