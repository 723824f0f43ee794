"""Draws: private, on record before the answer, settled once, and missing unless the certified cloud has spoken."""

import logging
import math

import pytest

from edgewise.contracts import AuditTotals, AuditVerdict, CloudReply, Reference
from edgewise.errors import StoreError
from edgewise.router.audit import Auditor
from edgewise.router.instruments import Instruments
from edgewise.store import SqliteStore
from edgewise.telemetry import Metrics

CERTIFIED = Reference("news", "sha256:c")


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
    return auditor(log, metrics, **more).draw("1", "c", CERTIFIED)


@pytest.mark.parametrize(
    ("usual", "of_this_one", "is_drawn"),
    [(0.5, None, False), (0.500001, None, True), (0.0, 1.0, True), (1.0, 0.0, False), (1.0, 0.5, False)],
)
def test_a_request_is_drawn_where_the_coin_falls_under_the_share(log, metrics, usual, of_this_one, is_drawn):
    assert auditor(log, metrics, usual).draws(of_this_one) == is_drawn
    assert log.totals("c") == AuditTotals(), "the coin alone leaves no record"


def test_a_draw_is_on_record_before_its_verdict(log, metrics):
    drawn(log, metrics)
    assert log.totals("c") == AuditTotals(drawn=1, open=1)


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
    await drawn(log, metrics).compared("a", 0.75, CloudReply(output, CERTIFIED))
    assert log.verdicts("c", 9) == [AuditVerdict(violation=violation, score=0.75, differs=violation)]


async def test_another_version_cannot_judge(log, metrics):
    await drawn(log, metrics).compared("a", 0.75, CloudReply("a", Reference("news", "sha256:other")))
    assert log.verdicts("c", 9) == [AuditVerdict(violation=True, missing=True, score=0.75)]


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
    await drawn(log, metrics).compared("a", 0.5, CloudReply("b", CERTIFIED))
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


def test_a_verdict_that_the_store_does_not_take_is_written_before_the_next(log, metrics, monkeypatch, caplog):
    def full(position, verdict):
        raise StoreError("The disk is full.", "Free some room.")

    seen = []
    audits = auditor(log, metrics, on_verdict=lambda: seen.append(log.totals("c").open))
    first, second = audits.draw("1", "c", CERTIFIED), audits.draw("2", "c", CERTIFIED)
    with monkeypatch.context() as disk, caplog.at_level(logging.ERROR, "edgewise.router"):
        disk.setattr(log, "verdict", full)
        first.escalated(0.1)
        audits.catch_up()
        first.missed()
    assert (log.totals("c").open, audits.open, seen) == (2, 2, [])
    assert len(caplog.records) == 1, "said once"
    second.escalated(0.2)
    assert log.verdicts("c", 9) == [AuditVerdict(violation=False, score=score) for score in (0.1, 0.2)]
    assert (audits.open, seen) == (0, [0])


def test_verdicts_that_could_not_be_weighed_are_weighed_later(log, metrics):
    trouble = [StoreError("The disk is full.", "Free some room.")]
    weighed = []

    def weigh():
        if trouble:
            raise trouble.pop()
        weighed.append(log.totals("c"))

    audits = auditor(log, metrics, on_verdict=weigh)
    audits.draw("1", "c", CERTIFIED).escalated()
    assert weighed == []
    audits.catch_up()
    audits.catch_up()
    assert weighed == [AuditTotals(drawn=1)], "once"
