"""Draws: private, on record before the answer, settled once, and missing unless the certified cloud has spoken."""

import logging
import math

import pytest

from edgewise.contracts import (
    Action,
    Answer,
    AuditTotals,
    AuditVerdict,
    CloudReply,
    Decision,
    Reason,
    Reference,
    Request,
    Source,
    Status,
)
from edgewise.errors import CloudRefusedError, CloudTimeoutError
from edgewise.router.audit import Auditor
from edgewise.router.instruments import Instruments
from edgewise.store import SqliteStore
from edgewise.telemetry import Metrics

CERTIFIED = Reference("news", "sha256:c")
REQUEST = Request(id="1", inputs="x")
LOCAL = Answer(
    id="1",
    output="a",
    status=Status.FINAL,
    source=Source.EDGE,
    decision=Decision(action=Action.LOCAL, reason=Reason.CONFIDENT, policy="p"),
    timings_ms={"total": 1.0},
    model_digest="d",
)


class ScriptedCloud:
    """Stands in for the escalation: says one thing, or raises it."""

    def __init__(self, says):
        self.says = says
        self.asked = []

    async def ask(self, request):
        self.asked.append(request)
        if isinstance(self.says, BaseException):
            raise self.says
        return self.says


@pytest.fixture
def log():
    with SqliteStore(":memory:") as store:
        yield store.audits


@pytest.fixture
def metrics():
    return Metrics()


def auditor(log, metrics, share=1.0, uniform=lambda: 0.5, **more):
    return Auditor(log, share, uniform, Instruments(metrics), **more)


def drawn(log, metrics, **more):
    draw = auditor(log, metrics, **more).draw("1", "c", CERTIFIED)
    assert draw is not None
    return draw


@pytest.mark.parametrize(
    ("usual", "of_this_one", "is_drawn"),
    [(0.5, None, False), (0.500001, None, True), (0.0, 1.0, True), (1.0, 0.0, False), (1.0, 0.5, False)],
)
def test_a_request_is_drawn_where_the_coin_falls_under_the_share(log, metrics, usual, of_this_one, is_drawn):
    draw = auditor(log, metrics, usual).draw("1", "c", CERTIFIED, of_this_one)
    assert (draw is not None) == is_drawn
    assert log.totals("c") == AuditTotals(drawn=is_drawn, open=is_drawn)


@pytest.mark.parametrize(
    ("score", "differs", "kept"),
    [
        (0.25, True, 0.25),
        (0.25, None, 0.25),
        (None, None, None),
        (math.nan, None, -math.inf),
        (-math.inf, True, -math.inf),
    ],
)
def test_an_escalated_request_lost_nothing(log, metrics, score, differs, kept):
    drawn(log, metrics).escalated(score, differs)
    assert log.verdicts("c", 9) == [AuditVerdict(violation=False, score=kept, differs=differs)]


@pytest.mark.parametrize(("output", "violation"), [("a", False), ("b", True)])
async def test_a_local_answer_is_compared_with_the_certified_cloud(log, metrics, output, violation):
    cloud = ScriptedCloud(CloudReply(output, CERTIFIED))
    await drawn(log, metrics).judge(cloud, REQUEST, LOCAL, 0.75)
    assert cloud.asked == [REQUEST]
    assert log.verdicts("c", 9) == [AuditVerdict(violation=violation, score=0.75, differs=violation)]


@pytest.mark.parametrize(
    "says",
    [CloudReply("a", Reference("news", "sha256:other")), CloudTimeoutError("late"), CloudRefusedError("never")],
)
async def test_without_the_certified_cloud_there_is_no_verdict(log, metrics, says, caplog):
    with caplog.at_level(logging.CRITICAL):
        await drawn(log, metrics).judge(ScriptedCloud(says), REQUEST, LOCAL, 0.75)
    assert log.verdicts("c", 9) == [AuditVerdict(violation=True, missing=True, score=0.75)]


async def test_what_nobody_expected_is_missing_and_raised(log, metrics):
    with pytest.raises(ZeroDivisionError):
        await drawn(log, metrics).judge(ScriptedCloud(ZeroDivisionError()), REQUEST, LOCAL, None)
    assert log.verdicts("c", 9) == [AuditVerdict(violation=True, missing=True)]


def test_a_draw_is_settled_once(log, metrics):
    draw = drawn(log, metrics)
    draw.escalated(0.5, False)
    draw.missed()
    draw.escalated(0.1, True)
    assert log.verdicts("c", 9) == [AuditVerdict(violation=False, score=0.5, differs=False)]
    assert log.totals("c") == AuditTotals(drawn=1)


async def test_verdicts_are_counted_by_outcome(log, metrics):
    drawn(log, metrics).escalated()
    drawn(log, metrics).missed(0.5)
    await drawn(log, metrics).judge(ScriptedCloud(CloudReply("b", CERTIFIED)), REQUEST, LOCAL, 0.5)
    text = metrics.render().decode()
    for outcome in ("kept", "missing", "violated"):
        assert f'edgewise_audits_total{{outcome="{outcome}"}} 1' in text


def test_who_waits_for_verdicts_is_told_when_one_is_on_record(log, metrics):
    seen = []
    draw = drawn(log, metrics, on_verdict=lambda: seen.append(log.totals("c")))
    assert seen == []
    draw.escalated()
    draw.missed()
    assert seen == [AuditTotals(drawn=1)]
