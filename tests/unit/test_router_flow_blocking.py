"""The blocking face: the local path in the caller's own thread, several callers at once, what waits on one loop."""

import asyncio
import importlib.util
import random
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgewise import tracing
from edgewise.contracts import CloudReply, Mode, Reason, Reference, Request, Source, Status
from edgewise.errors import RequestError
from edgewise.router import RouterSettings
from edgewise.router.policies import PolicySettings
from edgewise.store import MemoryCache, SqliteStore
from edgewise.telemetry import Metrics

_SPEC = importlib.util.spec_from_file_location("blocking_fakes", Path(__file__).parent / "test_router_hybrid.py")
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fakes
_SPEC.loader.exec_module(fakes)
CONFIDENT, DOUBTFUL, router = fakes.CONFIDENT, fakes.DOUBTFUL, fakes.router


class PlainCloud:
    """A cloud made without an event loop; it hangs where it is told to."""

    def __init__(self, output="b", reference=fakes.CERTIFIED):
        self.output, self.reference, self.hangs, self.calls = output, reference, False, 0
        self.threads = set()

    async def describe(self, *, timeout_s):
        return self.reference

    async def predict(self, request, *, timeout_s):
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        if self.hangs:
            await asyncio.Event().wait()
        return CloudReply(self.output, self.reference)

    async def aclose(self):
        pass


class NamingEdge(fakes.ScriptedEdge):
    """An edge model that notes which threads it is called in."""

    def __init__(self):
        super().__init__()
        self.threads = set()

    def predict(self, inputs):
        self.threads.add(threading.current_thread().name)
        return super().predict(inputs)


def test_a_local_answer_is_computed_in_the_caller_s_thread_and_starts_no_other():
    edge = NamingEdge()
    flow = router(PlainCloud(), edge=edge)
    before = set(threading.enumerate())
    answer = flow.answer_blocking(Request(inputs=CONFIDENT))
    assert (answer.source, answer.status) == (Source.EDGE, Status.FINAL)
    assert edge.threads == {threading.current_thread().name}
    assert set(threading.enumerate()) == before
    flow.close()
    with pytest.raises(RuntimeError, match="closed"):
        flow.answer_blocking(Request(inputs=CONFIDENT))


def test_only_what_waits_goes_to_the_loop():
    edge, cloud = NamingEdge(), PlainCloud()
    flow = router(cloud, edge=edge, settings=RouterSettings(cool_down_s=3600))
    try:
        assert flow.answer_blocking(Request(inputs=DOUBTFUL)).source is Source.CLOUD
        assert edge.threads == {threading.current_thread().name}
        assert cloud.threads == {"edgewise-router"}
        cloud.hangs = True
        late = flow.answer_blocking(Request(inputs=DOUBTFUL, budget_ms=5))
        assert (late.status, late.decision.reason) == (Status.PROVISIONAL, Reason.BUDGET_SPENT)
    finally:
        flow.close()


def test_refusals_are_raised_in_the_caller_s_thread():
    flow = router(PlainCloud())
    with pytest.raises(RequestError, match="unreadable"):
        flow.answer_blocking(Request(inputs="unreadable"))
    flow.close()


def test_a_shared_cache_is_asked_on_the_loop():
    filled = threading.Event()

    class Shared:
        def __init__(self):
            self.kept = {}

        async def get(self, key):
            return self.kept.get(key)

        async def put(self, key, answer):
            self.kept[key] = answer
            filled.set()

        async def aclose(self):
            pass

    flow = router(PlainCloud(), shared_cache=Shared(), clock=fakes.Steps())
    try:
        assert flow.answer_blocking(Request(inputs=CONFIDENT)).source is Source.EDGE
        assert filled.wait(10)
        assert flow.answer_blocking(Request(inputs=CONFIDENT)).source is Source.CACHE
    finally:
        flow.close()


def at_once_from(threads, work):
    """Run `work(number)` in several threads that start together; returns what each returned."""
    barrier = threading.Barrier(threads)

    def run(number):
        barrier.wait(10)
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def test_several_threads_lose_no_draw_no_verdict_and_no_count():
    with SqliteStore(":memory:") as store:
        metrics, dice, lock = Metrics(), random.Random(5), threading.Lock()

        def uniform():
            with lock:
                return dice.random()

        cloud = PlainCloud("a")
        flow = router(
            cloud, audits=store.audits, outbox=store.outbox, answers=store.answers, metrics=metrics, uniform=uniform,
            cache=MemoryCache(1 << 20, 3600.0, fakes.Steps()), settings=RouterSettings(audit_share=0.25),
        )  # fmt: skip
        texts = [CONFIDENT, DOUBTFUL, "0.95 0.05", "0.55 0.45"]

        def work(number):
            order = random.Random(number).choices(texts, k=40)
            return Counter(str(flow.answer_blocking(Request(inputs=text)).source) for text in order)

        sources = sum(at_once_from(6, work), Counter())
        flow.close()
        assert sum(sources.values()) == 240
        totals = store.audits.totals(flow.newest_certificate.id)
        assert (totals.open, totals.violations, totals.missing) == (0, 0, 0)
        coins = random.Random(5)
        assert totals.drawn == sum(coins.random() < 0.25 for _ in range(240))
        assert f'edgewise_audits_total{{outcome="kept"}} {totals.drawn}'.encode() in metrics.render()


def test_several_threads_spend_no_more_than_the_allowance():
    store, cloud = fakes.DictStore(), PlainCloud()
    settings = RouterSettings(policy=PolicySettings(use="budgeted", calls_per_day=7), cool_down_s=3600)
    flow = router(cloud, settings=settings, spending=store, clock=fakes.Steps())
    reasons = at_once_from(4, lambda number: [
        flow.answer_blocking(Request(inputs=f"0.6 0.{3 + number}{at}")).decision.reason for at in range(20)
    ])  # fmt: skip
    flow.close()
    escalated = sum(reason is not Reason.SAVED for found in reasons for reason in found)
    assert escalated == cloud.calls == sum(store.days.values()) <= 7


def test_a_certificate_that_is_voided_meanwhile_covers_nothing_in_any_thread():
    cloud = PlainCloud(reference=Reference("cloud", "sha256:newer"))
    flow = router(cloud, cache=fakes.DictCache())
    barrier = threading.Event()

    def work(number):
        if number == 0:
            flow.answer_blocking(Request(inputs=DOUBTFUL))
            barrier.set()
        else:
            assert barrier.wait(10)
        return [flow.answer_blocking(Request(inputs=CONFIDENT)) for _ in range(5)]

    answers = [answer for found in at_once_from(4, work) for answer in found]
    flow.close()
    assert {answer.decision.certificate_id for answer in answers} == {None}
    assert {answer.output for answer in answers} == {"b"}


def test_two_faces_on_one_router_are_told_apart():
    flow = router(PlainCloud())
    assert flow.answer_blocking(Request(inputs=DOUBTFUL)).source is Source.CLOUD
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(flow.answer(Request(inputs=DOUBTFUL)))
    flow.close()


@pytest.mark.parametrize("face", ["answer", "respond", "events", "blocking"])
def test_every_face_records_the_same_span(face, monkeypatch):
    spans = []

    class Recorded(tracing.Span):
        def __init__(self, name):
            self.name, self.attributes = name, {}
            spans.append(self)

        def set(self, name, value):
            self.attributes[name] = value

    monkeypatch.setattr(tracing, "on", lambda: True)
    monkeypatch.setattr(tracing, "span", lambda name, **more: Recorded(name))
    flow = router(PlainCloud())
    request = Request(inputs=CONFIDENT, mode=Mode.GUARDED)

    async def ask():
        if face == "answer":
            await flow.answer(request)
        elif face == "respond":
            await flow.respond(request)
        else:
            _ = [event async for event in flow.events(request)]
        await flow.aclose()

    if face == "blocking":
        flow.answer_blocking(request)
        flow.close()
    else:
        asyncio.run(ask())
    assert [span.name for span in spans] == ["route", "edge.predict"]
    assert spans[0].attributes == {
        "edgewise.reason": "confident",
        "edgewise.action": "local",
        "edgewise.policy": "certified_threshold",
        "edgewise.source": "edge",
        "edgewise.status": "final",
    }
