"""The promise in force, from the flow's answers: its life, its audits, its policies, and what they leave behind."""

import asyncio
import importlib.util
import logging
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.contracts import (
    Action,
    Answered,
    Bound,
    CloudReply,
    DataPolicy,
    Done,
    Groups,
    Mode,
    Reason,
    Reference,
    Request,
    Source,
    Status,
)
from edgewise.errors import CertificateError, ConfigError, StoreError
from edgewise.router import Plugs, Router, RouterSettings
from edgewise.router import certificate as certificates
from edgewise.router.complexity import ATTRIBUTE_BUCKETS, LEXICAL, WORD_BUCKETS, Complexity
from edgewise.router.fitted import Fitted
from edgewise.router.neighbours import Neighbours
from edgewise.router.policies import PolicySettings
from edgewise.router.stages import GuardSettings, OnAlarm
from edgewise.telemetry import Metrics

_SPEC = importlib.util.spec_from_file_location("promise_fakes", Path(__file__).parent / "test_router_hybrid.py")
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fakes
_SPEC.loader.exec_module(fakes)
CONFIDENT, DOUBTFUL = fakes.CONFIDENT, fakes.DOUBTFUL

DAY_S = 86_400.0
CREATED, EXPIRES = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
CREATED_S = 1_767_225_600.0


class Time:
    """A wall clock that can be set and a monotonic one that cannot."""

    def __init__(self, wall=CREATED_S + DAY_S):
        self.wall, self.steady = wall, 0.0

    def time(self):
        return self.wall

    def monotonic(self):
        return self.steady


class Scripted(fakes.ScriptedEdge):
    """An edge whose embedding is told by the text's third number, where it has one."""

    def _one(self, item):
        numbers = item.split()
        prediction = super()._one(" ".join(numbers[:2]))
        if len(numbers) < 3:
            return prediction
        embedding = np.array([float(numbers[2]), 1.0], dtype=np.float32)
        return msgspec.structs.replace(prediction, embedding=embedding)


def certificate(threshold=0.5, **fields):
    bound = Bound(threshold=threshold, local_share=0.5, n=300, k=0, alpha=0.1, delta=0.05)
    return certificates.issue(
        bound, model_digest=Scripted.digest, signal="margin", data_digest="data", reference=fakes.CERTIFIED,
        created=CREATED, runtime="1", isa="any", **fields,
    )  # fmt: skip


def router(
    cloud, *, made=None, fitted=None, edge=None, policy=None, guard=None, audit_share=1.0, mode=Mode.GUARDED, **plugs
):
    settings = RouterSettings(
        mode=mode, cool_down_s=0.01, audit_share=audit_share, policy=policy or PolicySettings(),
        guard=guard or GuardSettings(),
    )  # fmt: skip
    return Router(
        edge or Scripted(), cloud, made or certificate(), fitted=fitted, settings=settings,
        plugs=Plugs(**{"clock": Time(), "uniform": lambda: 0.0, **plugs}),
    )  # fmt: skip


# Life.


@pytest.mark.parametrize("wall", [CREATED_S - 3 * DAY_S, CREATED_S + 40 * DAY_S])
async def test_an_expired_certificate_or_a_wrong_clock_escalates_everything_until_the_clock_is_right(wall, caplog):
    clock, cache, metrics = Time(), fakes.DictCache(), Metrics()
    flow = router(fakes.ScriptedCloud(), made=certificate(expires=EXPIRES), clock=clock, cache=cache, metrics=metrics)
    assert (await flow.answer(Request(inputs=CONFIDENT))).decision.certificate_id == flow.certificate.id
    clock.wall = wall
    with caplog.at_level(logging.WARNING, "edgewise.router"):
        answers = [await flow.answer(Request(inputs=CONFIDENT)) for _ in range(3)]
        assert flow.certificate is None
        assert b"edgewise_certificate_valid 0" in metrics.render()
        clock.wall = CREATED_S + DAY_S
        again = await flow.answer(Request(inputs=CONFIDENT))
    assert {answer.output for answer in answers} == {"b"}, "the cache repeats no answer that was covered before"
    assert {answer.decision.certificate_id for answer in answers} == {None}
    assert answers[0].decision.reason is Reason.CERTIFICATE_EXPIRED
    assert again.decision.certificate_id == flow.certificate.id
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING], "loudly, and once"


async def test_nobody_is_audited_while_there_is_no_promise_to_test():
    store, clock = fakes.DictStore(), Time(CREATED_S + 40 * DAY_S)
    flow = router(fakes.ScriptedCloud(), made=certificate(expires=EXPIRES), clock=clock, audits=store)
    assert (await flow.answer(Request(inputs=CONFIDENT))).source is Source.CLOUD
    assert store.audits == []


# Audits.


def alarmed(cloud, store, **options):
    """A router whose audits show that the promise is broken: the cloud says "b" to whatever the edge is sure of."""
    return router(cloud, audits=store, cache=fakes.DictCache(), **options)


async def until_stage(flow, state):
    for number in range(200):
        await flow.answer(Request(inputs=CONFIDENT, id=f"{state}{number}"))
        await asyncio.sleep(0)
        if flow.report()["state"] == state:
            return
    raise AssertionError(flow.report())


async def test_an_alarm_ends_the_promise_and_fresh_audits_earn_another():
    cloud, store = fakes.ScriptedCloud("b"), fakes.DictStore()
    flow = alarmed(cloud, store, guard=GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY, recertify_items=60))
    first = flow.certificate.id
    await until_stage(flow, "audit_alarm")
    answer = await flow.answer(Request(inputs=CONFIDENT))
    assert (answer.source, answer.decision.reason) == (Source.CLOUD, Reason.AUDIT_ALARM)
    assert flow.certificate is None
    cloud.output = "a"
    await until_stage(flow, "certified")
    answer = await flow.answer(Request(inputs=CONFIDENT))
    assert (answer.output, answer.decision.reason) == ("a", Reason.CONFIDENT)
    assert answer.decision.certificate_id == flow.certificate.id != first
    assert flow.certificate.recertification >= 1


async def test_a_raised_threshold_answers_what_is_above_it_uncertified():
    class Split(fakes.ScriptedCloud):
        """Differs from the edge on what it is a little sure of, and agrees on what it is quite sure of."""

        async def predict(self, request, *, timeout_s):
            return CloudReply("b" if request.inputs == "0.8 0.2" else "a", self.reference)

    cloud, store = Split(), fakes.DictStore()
    flow = alarmed(cloud, store, guard=GuardSettings(recertify_items=10_000))
    sure = "0.99 0.01"
    for number in range(300):
        await flow.answer(Request(inputs="0.8 0.2" if number % 5 == 0 else sure, id=str(number)))
        await asyncio.sleep(0)
        if flow.report()["state"] != "certified":
            break
    assert flow.report()["state"] == "threshold_raised"
    assert flow.certificate is None
    answer = await flow.answer(Request(inputs=sure))
    assert (answer.source, answer.status, answer.decision.reason, answer.decision.certificate_id) == (
        Source.EDGE, Status.FINAL, Reason.THRESHOLD_RAISED, None,
    )  # fmt: skip
    assert (await flow.answer(Request(inputs="0.8 0.2"))).source is Source.CLOUD


async def test_what_was_local_before_the_alarm_is_not_repeated_from_the_cache_after_it():
    cloud, store = fakes.ScriptedCloud("b"), fakes.DictStore()
    drawn = iter([0.9])
    flow = alarmed(
        cloud, store, guard=GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY, recertify_share=0.0),
        uniform=lambda: next(drawn, 0.0),
    )  # fmt: skip
    kept = await flow.answer(Request(inputs=CONFIDENT))
    assert kept.source is Source.EDGE
    await until_stage(flow, "audit_alarm")
    assert (await flow.answer(Request(inputs=CONFIDENT))).output == "b"


async def test_a_speculative_gateway_learns_from_the_late_answers_too():
    cloud, store = fakes.ScriptedCloud("b"), fakes.DictStore()
    flow = alarmed(
        cloud, store, mode=Mode.SPECULATIVE, guard=GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY, recertify_items=60)
    )
    await until_stage(flow, "audit_alarm")
    answer = await flow.answer(Request(inputs=CONFIDENT))
    assert answer.status is Status.PROVISIONAL
    await store.settled()
    assert store.found[-1].differs is True
    cloud.output = "a"
    await until_stage(flow, "certified")


async def test_a_drawn_escalation_keeps_the_score_and_whether_the_cloud_differs():
    store = fakes.DictStore()
    flow = router(fakes.ScriptedCloud("b"), audits=store)
    await flow.answer(Request(inputs=DOUBTFUL))
    (found,) = store.found
    assert (found.violation, found.differs) == (False, True)
    assert found.score == pytest.approx(0.2, abs=1e-6)


async def test_a_void_promise_is_audited_no_more():
    cloud, store = fakes.ScriptedCloud(reference=Reference("cloud", "sha256:newer")), fakes.DictStore()
    flow = router(cloud, audits=store)
    await flow.answer(Request(inputs=DOUBTFUL))
    assert store.found[0].differs is None, "another cloud says nothing of the certified one"
    await flow.answer(Request(inputs=CONFIDENT))
    assert len(store.audits) == 1
    assert flow.report()["state"] == "certificate_void"


async def test_the_report_and_the_metrics_tell_the_stage_and_the_evidence():
    cloud, store, metrics = fakes.ScriptedCloud("b"), fakes.DictStore(), Metrics()
    flow = alarmed(cloud, store, metrics=metrics, guard=GuardSettings(on_alarm=OnAlarm.CLOUD_ONLY))
    assert b'edgewise_audit_stage{stage="certified"} 1' in metrics.render()
    await until_stage(flow, "audit_alarm")
    text = metrics.render().decode()
    assert 'edgewise_audit_stage{stage="cloud_only"} 1' in text
    assert 'edgewise_audit_stage{stage="certified"} 0' in text
    report = flow.report()
    assert (report["policy"], report["audits"]["stage"], report["audits"]["threshold"]) == (
        "certified_threshold", "cloud_only", "inf",
    )  # fmt: skip
    assert msgspec.json.encode(report)


# Groups, vetoes, complexity, drift.


async def test_groups_by_attribute_do_not_share_the_cache():
    bounds = {name: certificate(threshold).bound for name, threshold in (("wide", 0.5), ("strict", 0.95))}
    flow = router(
        fakes.ScriptedCloud(), made=certificate(groups=Groups(by="desk", bounds=bounds)), cache=fakes.DictCache()
    )
    wide, strict, unknown = (Request(inputs=CONFIDENT, attributes={"desk": desk}) for desk in ("wide", "strict", "new"))
    assert (await flow.answer(wide)).output == "a"
    assert [(await flow.answer(request)).output for request in (strict, unknown)] == ["b", "b"]
    assert (await flow.answer(wide)).source is Source.CACHE


async def test_a_neighbour_far_away_vetoes():
    near = Neighbours(np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32), k=1, cut=0.5)
    fitted = Fitted(neighbours=near)
    flow = router(fakes.ScriptedCloud(), made=certificate(fitted_digest="sha256:f"), fitted=fitted)
    assert (await flow.answer(Request(inputs="0.9 0.1 9"))).source is Source.EDGE
    answer = await flow.answer(Request(inputs="0.9 0.1 -9"))
    assert (answer.source, answer.decision.reason) == (Source.CLOUD, Reason.OUT_OF_DISTRIBUTION)


def long_is_hopeless():
    """Calls texts of more than about ten words too complex."""
    weights = np.zeros(len(LEXICAL))
    weights[LEXICAL.index("log_words")] = 10.0
    return Complexity(
        words=np.zeros(WORD_BUCKETS), rarity=np.ones(WORD_BUCKETS), lexical=weights, intercept=-20.0, cut=0.9,
        attributes=(), attribute_weights=np.zeros(ATTRIBUTE_BUCKETS),
    )  # fmt: skip


HOPELESS = "0.9 0.1 " + " ".join(["1"] * 60)


async def test_what_is_too_complex_skips_the_edge_model_and_counts_as_kept():
    edge, store = Scripted(), fakes.DictStore()
    fitted = Fitted(complexity=long_is_hopeless())
    flow = router(
        fakes.ScriptedCloud(), made=certificate(fitted_digest="sha256:f"), fitted=fitted, edge=edge, audits=store
    )
    answer = await flow.answer(Request(inputs=HOPELESS))
    assert (answer.source, answer.decision.reason, edge.calls) == (Source.CLOUD, Reason.TOO_COMPLEX, 0)
    assert answer.decision.certificate_id is None
    (found,) = store.found
    assert (found.violation, found.score) == (False, -np.inf)
    assert (await flow.answer(Request(inputs=CONFIDENT))).source is Source.EDGE
    asked = await flow.answer(Request(inputs=HOPELESS, mode=Mode.EDGE_ONLY))
    assert asked.source is Source.EDGE, "who asks for the edge gets it"


async def test_what_is_too_complex_still_gets_a_provisional_answer_when_the_cloud_is_away():
    cloud = fakes.ScriptedCloud()
    cloud.down = True
    fitted = Fitted(complexity=long_is_hopeless())
    flow = router(cloud, made=certificate(fitted_digest="sha256:f"), fitted=fitted)
    answer = await flow.answer(Request(inputs=HOPELESS))
    assert (answer.status, answer.output, answer.decision.reason) == (Status.PROVISIONAL, "a", Reason.CLOUD_FAILED)


async def test_fits_that_are_missing_are_refused():
    with pytest.raises(CertificateError, match="needs the fits sha256:f"):
        router(fakes.ScriptedCloud(), made=certificate(fitted_digest="sha256:f"))


async def test_drift_is_told_once_and_changes_no_decision(caplog):
    metrics = Metrics()
    deciles = tuple(np.linspace(0.1, 0.9, 9).tolist())
    flow = router(fakes.ScriptedCloud(), made=certificate(score_deciles=deciles), audit_share=0.0, metrics=metrics)
    with caplog.at_level(logging.WARNING, "edgewise.router"):
        answers = [await flow.answer(Request(inputs=CONFIDENT)) for _ in range(1200)]
    assert {answer.decision.reason for answer in answers} == {Reason.CONFIDENT}
    assert len(caplog.records) == 1
    assert "population stability index" in caplog.text
    assert flow.report()["score_drift"] > 1
    assert b'edgewise_scores_total{kind="scored"} 1200' in metrics.render()


# Policies.


BUDGETED = PolicySettings(use="budgeted", calls_per_day=1)


async def test_a_saved_answer_is_provisional_and_nothing_follows():
    cloud, store, cache = fakes.ScriptedCloud(), fakes.DictStore(), fakes.DictCache()
    metrics = Metrics()
    store.days["2026-01-02"] = 1.0
    flow = router(
        cloud,
        policy=BUDGETED,
        spending=store,
        outbox=store,
        answers=store,
        cache=cache,
        metrics=metrics,
        audit_share=0.0,
    )
    events = [event async for event in flow.events(Request(inputs=DOUBTFUL, id="s"))]
    assert [type(event) for event in events] == [Answered, Done]
    answer = events[0].answer
    assert (answer.status, answer.source, answer.decision.action) == (
        Status.PROVISIONAL, Source.EDGE, Action.PROVISIONAL,
    )  # fmt: skip
    assert (answer.decision.reason, answer.decision.certificate_id) == (Reason.SAVED, None)
    assert events[1] == Done("s", pending=False)
    assert (cloud.calls, store.owed, cache) == (0, {}, {})
    assert store.stored == {("public", "s"): answer}, "a client may poll for it too"
    assert b"edgewise_policy_spent_today 1" in metrics.render()
    assert (await flow.answer(Request(inputs=CONFIDENT))).decision.certificate_id == flow.certificate.id


async def test_a_saved_answer_that_is_drawn_lost_nothing():
    store = fakes.DictStore()
    store.days["2026-01-02"] = 1.0
    flow = router(fakes.ScriptedCloud(), policy=BUDGETED, spending=store, audits=store)
    await flow.answer(Request(inputs=DOUBTFUL))
    assert store.audits == [(False, False)]


async def test_a_drawn_request_whose_spending_cannot_be_kept_is_settled_all_the_same():
    class FullDisk(fakes.DictStore):
        def spend(self, day, amount):
            raise StoreError("The disk is full.")

    store, clock = FullDisk(), Time()
    plenty = PolicySettings(use="budgeted", calls_per_day=1000)
    flow = router(fakes.ScriptedCloud(), policy=plenty, spending=store, audits=store, clock=clock)
    clock.steady += 3600
    with pytest.raises(StoreError):
        await flow.answer(Request(inputs=DOUBTFUL))
    assert len(store.audits) == 1
    assert None not in store.audits, "an open draw would hold up every verdict behind it"


async def test_too_complex_is_within_the_allowance_too():
    cloud, store = fakes.ScriptedCloud(), fakes.DictStore()
    store.days["2026-01-02"] = 1.0
    fitted = Fitted(complexity=long_is_hopeless())
    flow = router(
        cloud,
        made=certificate(fitted_digest="sha256:f"),
        fitted=fitted,
        policy=BUDGETED,
        spending=store,
        audit_share=0.0,
    )
    answer = await flow.answer(Request(inputs=HOPELESS))
    assert (answer.decision.reason, answer.status, cloud.calls) == (Reason.SAVED, Status.PROVISIONAL, 0)


async def test_a_random_share_is_uncertified_and_not_audited():
    store, edge = fakes.DictStore(), Scripted()
    numbers = iter([0.1, 0.9])
    flow = router(
        fakes.ScriptedCloud(), edge=edge, audits=store, policy=PolicySettings(use="random", local_share=0.5),
        uniform=lambda: next(numbers),
    )  # fmt: skip
    local, escalated = [await flow.answer(Request(inputs=CONFIDENT)) for _ in range(2)]
    assert (local.source, escalated.source, edge.calls) == (Source.EDGE, Source.CLOUD, 1)
    assert {a.decision.reason for a in (local, escalated)} == {Reason.RANDOM}
    assert {a.decision.certificate_id for a in (local, escalated)} == {None}
    assert store.audits == []
    assert flow.certificate is None


@pytest.mark.parametrize(
    "policy", [PolicySettings(), BUDGETED, PolicySettings(use="random", local_share=0.0)], ids=lambda policy: policy.use
)
@pytest.mark.parametrize("mode", [Mode.GUARDED, Mode.SPECULATIVE, Mode.EDGE_ONLY])
async def test_no_policy_sends_what_must_stay(policy, mode):
    cloud, store, cache = fakes.ScriptedCloud(), fakes.DictStore(), fakes.DictCache()
    flow = router(
        cloud,
        policy=policy,
        spending=store,
        audits=store,
        outbox=store,
        answers=store,
        cache=cache,
        made=certificate(2.0),
    )
    answer = await flow.answer(Request(inputs=DOUBTFUL, mode=mode, data_policy=DataPolicy.LOCAL_ONLY))
    assert (answer.status, answer.decision.reason) == (Status.FINAL, Reason.LOCAL_ONLY)
    assert (cloud.calls, store.owed, store.stored, store.audits, store.days, cache) == (0, {}, {}, [], {}, {})


async def test_an_unknown_policy_or_a_missing_setting_is_refused():
    with pytest.raises(ConfigError, match="There is no policy"):
        router(fakes.ScriptedCloud(), policy=PolicySettings(use="cheapest"))
    with pytest.raises(ConfigError, match="nowhere to keep"):
        router(fakes.ScriptedCloud(), policy=BUDGETED)
