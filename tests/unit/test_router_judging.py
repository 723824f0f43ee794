"""Audits when things go wrong: whatever fails, a kept promise is not called broken, and a broken one not kept."""

import asyncio
import importlib.util
import logging
import random
import sys
import threading
from pathlib import Path

import pytest

from edgewise.contracts import AuditVerdict, Reason, Reference, Request, Source, Status
from edgewise.errors import CloudRefusedError, InputError, RequestError, StoreError
from edgewise.router import Plugs, Router, RouterSettings, verdicts
from edgewise.router.fitted import Fitted
from edgewise.router.policies import PolicySettings
from edgewise.router.stages import GuardSettings, OnAlarm
from edgewise.store import SqliteStore

_SPEC = importlib.util.spec_from_file_location("judging_promises", Path(__file__).parent / "test_router_promise.py")
promises = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = promises
_SPEC.loader.exec_module(promises)
fakes = promises.fakes
CONFIDENT, DOUBTFUL = promises.CONFIDENT, promises.DOUBTFUL
TO_THE_CLOUD = GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY, recertify_items=60)


def full(*args):
    raise StoreError("The disk is full.", "Free some room.")


def flow_of(cloud, audits, *, deadline_s=60.0, edge=None, failures_to_open=3, **plugs):
    settings = RouterSettings(
        cool_down_s=0.001, audit_share=1.0, audit_verdict_deadline_s=deadline_s, failures_to_open=failures_to_open,
        guard=TO_THE_CLOUD,
    )  # fmt: skip
    return Router(
        edge or promises.Scripted(), cloud, promises.certificate(), settings=settings,
        plugs=Plugs(**{"clock": promises.Time(), "uniform": lambda: 0.0, "audits": audits, **plugs}),
    )  # fmt: skip


@pytest.fixture
def log():
    with SqliteStore(":memory:") as store:
        yield store.audits


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the parts under test set no event for this
            await asyncio.sleep(0)


async def ask(flow, count, inputs=CONFIDENT):
    answers = []
    for _ in range(count):
        answers.append(await flow.answer(Request(inputs=inputs)))
        await asyncio.sleep(0)
    return answers


# A store that fails.


async def test_a_draw_that_cannot_be_put_on_record_is_none_and_costs_no_answer(log, monkeypatch, caplog):
    flow = flow_of(fakes.ScriptedCloud("a"), log)
    epoch = promises.certificate().id
    with monkeypatch.context() as disk:
        disk.setattr(log, "drawn", full)
        answers = await ask(flow, 3)
    assert [answer.status for answer in answers] == ["final"] * 3
    assert "cannot be put on record" in caplog.text
    assert log.totals(epoch).drawn == 0
    await ask(flow, 2)
    assert log.totals(epoch).drawn == 2
    await flow.aclose()


async def test_a_broken_promise_ends_although_that_cannot_be_written_and_is_written_later(log, monkeypatch):
    flow = flow_of(fakes.ScriptedCloud("b"), log)
    certified = flow.certificate.id
    with monkeypatch.context() as disk:
        disk.setattr(log, "remember", full)
        await ask(flow, 60)
        report = flow.report()
        answers = await ask(flow, 20)
    assert (report["state"], report["certificate_id"]) == ("audit_alarm", None)
    assert {(answer.source, answer.decision.certificate_id) for answer in answers} == {(Source.CLOUD, None)}
    assert log.recall(f"guard:{certified}") is None
    await ask(flow, 1)
    assert log.recall(f"guard:{certified}") is not None
    again = flow_of(fakes.ScriptedCloud("b"), log)
    assert again.report()["audits"]["attempt"] == flow.report()["audits"]["attempt"]


async def test_what_could_not_be_written_is_written_once_also_where_no_verdict_follows(log, monkeypatch):
    flow = promises.router(
        fakes.ScriptedCloud("b"), audits=log, guard=GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY, recertify_share=0.0)
    )
    with monkeypatch.context() as disk:
        disk.setattr(log, "remember", full)
        await ask(flow, 60)
    written = []
    monkeypatch.setattr(log, "remember", lambda key, value: written.append(key))
    await ask(flow, 3)
    assert written == [f"guard:{flow.newest_certificate.id}"]


async def test_one_verdict_that_cannot_be_written_does_not_blind_the_audit(log, monkeypatch):
    failing = [True]
    verdict = log.verdict
    monkeypatch.setattr(log, "verdict", lambda *args: full() if failing and failing.pop() else verdict(*args))
    flow = flow_of(fakes.ScriptedCloud("b"), log)
    await ask(flow, 60)
    assert flow.report()["state"] == "audit_alarm"
    assert log.totals(flow.newest_certificate.id).open == 0


async def test_a_verdict_that_cannot_be_written_costs_nobody_the_clouds_answer(log, monkeypatch):
    flow = flow_of(fakes.ScriptedCloud(), log)
    with monkeypatch.context() as disk:
        disk.setattr(log, "verdict", full)
        answer = await flow.answer(Request(inputs=DOUBTFUL))
        assert (answer.source, answer.status, answer.output) == (Source.CLOUD, Status.FINAL, "b")
    await flow.aclose()
    assert log.totals(flow.newest_certificate.id).open == 0, "written at the end"


# A cloud that is away.


class Hanging(fakes.ScriptedCloud):
    """Agrees with the edge, but fails for a while."""

    def __init__(self):
        super().__init__("a")


async def test_a_cloud_that_is_away_for_a_while_breaks_no_promise(log):
    cloud = Hanging()
    flow = flow_of(cloud, log)
    cloud.release.clear()
    await ask(flow, 50)
    await cloud.asked.wait()
    cloud.down = True  # what hangs ends, and what waits behind it finds nobody
    cloud.release.set()
    await until(lambda: cloud.probed.is_set())
    cloud.down = False
    await until(lambda: log.totals(flow.certificate.id).open == 0)
    totals = log.totals(flow.certificate.id)
    assert (totals.drawn, totals.violations) == (50, 0)
    assert flow.report()["state"] == "certified"
    await flow.aclose()


async def test_the_cloud_is_asked_for_a_few_verdicts_at_a_time_and_too_many_open_draws_stop_the_drawing(
    log, monkeypatch
):
    monkeypatch.setattr(verdicts, "_MOST_OPEN", 20)
    cloud = Hanging()
    cloud.release.clear()
    flow = flow_of(cloud, log)
    await ask(flow, 50)
    assert cloud.calls == 8
    assert log.totals(flow.certificate.id).open == 20
    cloud.release.set()
    await until(lambda: log.totals(flow.certificate.id).open == 0)
    await ask(flow, 5)
    assert log.totals(flow.certificate.id).drawn == 25
    await flow.aclose()


async def test_a_cloud_that_stays_away_leaves_verdicts_missing_and_the_alarm_says_so(log, caplog):
    cloud = Hanging()
    cloud.down = True
    flow = flow_of(cloud, log, deadline_s=0.005, failures_to_open=10_000)
    certified = flow.certificate.id
    with caplog.at_level(logging.ERROR, "edgewise.router"):
        await ask(flow, 60)
        await until(lambda: flow.report()["state"] != "certified")
    assert log.totals(certified).missing == log.totals(certified).violations > 0
    assert "0 were answered locally and differently" in caplog.text
    assert "see why the cloud gave no verdicts" in caplog.text
    await flow.aclose()


async def test_a_refused_audit_is_missing_at_once(log):
    class Refusing(fakes.ScriptedCloud):
        async def predict(self, request, *, timeout_s):
            self.calls += 1
            raise CloudRefusedError("too large")

    cloud = Refusing()
    flow = flow_of(cloud, log)
    await ask(flow, 1)
    await until(lambda: log.totals(flow.certificate.id).missing == 1)
    assert cloud.calls == 1
    await flow.aclose()


async def test_nothing_is_drawn_behind_an_open_breaker(log):
    cloud = Hanging()
    cloud.down = True
    flow = flow_of(cloud, log, failures_to_open=1)
    await ask(flow, 1)
    await until(lambda: cloud.calls == 1)
    drawn = log.totals(flow.certificate.id).drawn
    await asyncio.gather(*(flow.answer(Request(inputs=CONFIDENT)) for _ in range(5)))
    assert log.totals(flow.certificate.id).drawn == drawn == 1
    await flow.aclose()


async def test_what_still_waits_at_the_end_is_missing_and_holds_nobody_up(log):
    cloud = Hanging()
    cloud.down = True
    flow = flow_of(cloud, log, failures_to_open=1)
    await ask(flow, 1)
    await until(lambda: cloud.calls == 1)
    async with asyncio.timeout(4):
        await flow.aclose()
    assert log.totals(flow.newest_certificate.id).missing == 1


# Requests that end early.


class GatedEdge(promises.Scripted):
    """Computes only when the gate opens."""

    def __init__(self):
        super().__init__()
        self.started, self.gate = threading.Event(), threading.Event()

    def _one(self, item):
        self.started.set()
        assert self.gate.wait(10)
        if item == "unreadable":
            raise InputError("The item is unreadable.", "Send another.")
        return super()._one(item)


@pytest.mark.parametrize(
    ("inputs", "says", "kept"),
    [(CONFIDENT, "a", True), (CONFIDENT, "b", False), (DOUBTFUL, "b", True), ("unreadable", "b", True)],
)
async def test_who_hangs_up_chooses_no_verdict(log, inputs, says, kept):
    edge = GatedEdge()
    flow = flow_of(fakes.ScriptedCloud(says), log, edge=edge)
    asking = asyncio.ensure_future(flow.answer(Request(inputs=inputs)))
    await asyncio.to_thread(edge.started.wait, 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    edge.gate.set()
    await until(lambda: log.totals(flow.newest_certificate.id).open == 0)
    totals = log.totals(flow.newest_certificate.id)
    assert (totals.drawn, totals.violations, totals.missing) == (1, not kept, 0)
    await flow.aclose()


async def test_unreadable_requests_break_no_promise(log):
    flow = flow_of(fakes.ScriptedCloud(), log)
    for _ in range(60):
        with pytest.raises(RequestError):
            await flow.answer(Request(inputs="unreadable"))
    assert flow.report()["state"] == "certified"
    assert log.totals(flow.certificate.id).violations == 0


# Budgets, the cache, scopes.


def alarmed_budget(log, *, share, **more):
    """A gateway with ten calls a day, whose promise is broken."""
    store, cloud = fakes.DictStore(), fakes.ScriptedCloud()
    settings = RouterSettings(
        audit_share=share, policy=PolicySettings(use="budgeted", calls_per_day=10), guard=TO_THE_CLOUD
    )
    epoch = more.get("made", promises.certificate()).id
    for _ in range(40):
        log.verdict(log.drawn("r", epoch), violated())
    return cloud, Router(
        promises.Scripted(), cloud, more.pop("made", promises.certificate()), settings=settings,
        plugs=Plugs(
            clock=promises.Time(), uniform=random.Random(1).random, audits=log, spending=store,
        ), **more,
    )  # fmt: skip


def violated():
    return AuditVerdict(violation=True, score=0.9, differs=True)


async def test_after_an_alarm_a_budget_is_exceeded_by_audits_no_more_than_before_it(log):
    cloud, flow = alarmed_budget(log, share=0.01)
    assert flow.report()["state"] == "audit_alarm"
    await ask(flow, 1000)
    await flow.aclose()
    assert 0 < cloud.calls <= 10 + 20


async def test_what_a_budget_saves_unseen_was_never_to_be_answered_here(log):
    fitted = Fitted(complexity=promises.long_is_hopeless())
    made = promises.certificate(fitted_digest="sha256:f")
    cloud, flow = alarmed_budget(log, share=1.0, made=made, fitted=fitted)
    answers = await ask(flow, 3, promises.HOPELESS)
    assert {answer.decision.reason for answer in answers} == {Reason.SAVED}
    await flow.aclose()
    assert [found.score for found in log.verdicts(f"{made.id}#1", 9)] == [-float("inf")] * 3
    assert cloud.calls == 0


async def test_a_drawn_request_takes_nothing_from_the_cache_and_leaves_only_the_cloud_s_answer(log):
    numbers = iter([0.0, 0.9, 0.0])
    cloud = fakes.ScriptedCloud()
    flow = promises.router(cloud, audits=log, cache=fakes.DictCache(), audit_share=0.5, uniform=lambda: next(numbers))
    drawn, usual, again = await ask(flow, 3, DOUBTFUL)
    assert [answer.source for answer in (drawn, usual, again)] == [Source.CLOUD, Source.CACHE, Source.CLOUD]
    numbers = iter([0.0, 0.9, 0.9])
    local = await ask(flow, 3, CONFIDENT)
    assert [answer.source for answer in local] == [Source.EDGE, Source.EDGE, Source.CACHE]
    await flow.aclose()


async def test_what_is_decided_just_before_the_promise_ends_is_not_repeated_after_it(log, monkeypatch):
    numbers = iter([0.0, 0.9])
    cloud = fakes.ScriptedCloud()
    flow = promises.router(cloud, audits=log, cache=fakes.DictCache(), audit_share=0.5, uniform=lambda: next(numbers))
    decide = flow._judgement.decide

    def decide_and_void(*args):
        decision = decide(*args)
        asyncio.get_running_loop().call_soon(flow._check_reference, Reference("other", "2"))
        return decision

    with monkeypatch.context() as last_moment:
        last_moment.setattr(flow._judgement, "decide", decide_and_void)
        before = await flow.answer(Request(inputs=CONFIDENT))
    after = await flow.answer(Request(inputs=CONFIDENT))
    assert (before.source, before.decision.reason) == (Source.EDGE, "confident")
    assert (after.source, after.decision.certificate_id) == (Source.CLOUD, None)
    await flow.aclose()


async def test_no_attribute_is_another_scope_than_an_empty_one():
    bound = promises.certificate().bound
    flow = promises.router(
        fakes.ScriptedCloud(), made=promises.certificate(groups=promises.Groups(by="shop", bounds={"": bound})),
        cache=fakes.DictCache(),
    )  # fmt: skip
    named = await flow.answer(Request(inputs=CONFIDENT, attributes={"shop": ""}))
    unnamed = await flow.answer(Request(inputs=CONFIDENT))
    assert (named.source, unnamed.source) == (Source.EDGE, Source.CLOUD)


async def test_an_expired_original_gives_way_to_the_certificate_that_audits_earned_also_in_a_later_stage(log):
    clock, cloud = promises.Time(), fakes.ScriptedCloud("b")
    flow = promises.router(
        cloud, made=promises.certificate(expires=promises.EXPIRES), audits=log, guard=TO_THE_CLOUD, clock=clock
    )
    await ask(flow, 60)
    assert flow.report()["state"] == "audit_alarm"
    cloud.output = "a"
    clock.wall += 20 * promises.DAY_S
    await promises.until_stage(flow, "certified")
    earned = flow.certificate
    clock.wall += 15 * promises.DAY_S  # the original has expired
    flow = promises.router(
        cloud, made=promises.certificate(expires=promises.EXPIRES), audits=log, guard=TO_THE_CLOUD, clock=clock
    )
    assert flow.certificate == flow.newest_certificate == earned
    cloud.output = "b"
    await promises.until_stage(flow, "audit_alarm")
    answer = await flow.answer(Request(inputs=CONFIDENT))
    assert answer.decision.reason is Reason.AUDIT_ALARM, "not expired: audits may earn another"
    again = promises.router(
        cloud, made=promises.certificate(expires=promises.EXPIRES), audits=log, guard=TO_THE_CLOUD, clock=clock
    )
    assert (again.report()["state"], again.newest_certificate) == ("audit_alarm", earned)
    await flow.aclose()
