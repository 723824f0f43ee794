"""What audits make of a certificate: alarm, raised threshold, cloud only, recertification; the same after a restart."""

import logging
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.contracts import AuditVerdict, Bound, Groups, Reference
from edgewise.errors import ConfigError, StoreError
from edgewise.router.certificate import certify, check_model, issue, items_needed
from edgewise.router.guard import Guard
from edgewise.router.recertification import delta_of, raised_threshold
from edgewise.router.stages import GuardSettings, OnAlarm, Stage
from edgewise.store import SqliteStore

ALPHA, DELTA, ITEMS = 0.05, 0.1, 100
BOUND = Bound(threshold=0.5, local_share=0.6, n=500, k=16, alpha=ALPHA, delta=DELTA)
SETTINGS = GuardSettings(recertify_items=ITEMS)


def certificate(**more):
    identity = {
        "model_digest": "sha256:m",
        "signal": "margin",
        "data_digest": "sha256:d",
        "reference": Reference("news", "sha256:c"),
        "created": "2026-01-01T00:00:00Z",
        "runtime": "1.0",
        "isa": "x86-64-v3",
    }
    return issue(BOUND, **(identity | more))


CERTIFICATE = certificate()


def kept(score=0.9):
    return AuditVerdict(violation=False, score=score, differs=False)


def violated(score=0.7):
    return AuditVerdict(violation=True, score=score, differs=True)


def escalated(score=0.1, differs=False):
    return AuditVerdict(violation=False, score=score, differs=differs)


MISSING = AuditVerdict(violation=True, missing=True)


class SetClock:
    def __init__(self):
        self.now = 1_767_225_600.0 + 86_400  # the second of January 2026

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
def log():
    with SqliteStore(":memory:") as store:
        yield store.audits


def guard_of(log, given=CERTIFICATE, settings=SETTINGS):
    return Guard(given, log, settings, SetClock())


def feed(guard, log, verdicts):
    """Audit requests one after the other; returns after how many the stage changed, or None."""
    for count, verdict in enumerate(verdicts, 1):
        log.verdict(log.drawn("r", guard.epoch), verdict)
        if guard.settled():
            return count
    return None


def broken(scores=(0.55, 0.6, 0.65)):
    """A promise that is broken: every fourth audited request is a violation, after a little past."""
    return [kept()] * 60 + [violated(scores[index % len(scores)]) if index % 4 == 0 else kept() for index in range(400)]


def fresh(count=ITEMS, differing_at=(0.2,)):
    """Audits after an alarm: scores spread over (0, 1), and edge and cloud differ at the given ones."""
    scores = [(index + 0.5) / count for index in range(count - len(differing_at))]
    return [escalated(score) for score in scores] + [escalated(score, True) for score in differing_at]


def in_stage(stage, log, **more):
    """A guard that audits brought to a stage."""
    guard = guard_of(log, **more)
    assert feed(guard, log, broken()) is not None
    if stage is Stage.CLOUD_ONLY and guard.stage is Stage.RAISED:
        assert feed(guard, log, [violated(0.95)] * 50) is not None
    assert guard.stage is stage
    return guard


def test_a_certificate_is_in_force_from_the_start(log):
    guard = guard_of(log)
    assert (guard.stage, guard.certificate, guard.threshold) == (Stage.CERTIFIED, CERTIFICATE, 0.5)
    assert (guard.epoch, guard.share, guard.settled()) == (CERTIFICATE.id, None, False)
    report = guard.describe()
    assert (report.e_value, report.alarm, report.drawn, report.items_needed) == (1.0, False, 0, 0)


def test_a_promise_that_is_kept_stays(log):
    guard = guard_of(log)
    assert feed(guard, log, [*[kept()] * 300, violated(), *[escalated()] * 100]) is None
    report = guard.describe()
    assert (report.stage, report.drawn, report.violations, report.missing) == (Stage.CERTIFIED, 401, 1, 0)
    assert 0 < report.e_value < 1


def test_an_alarm_raises_the_threshold_and_takes_the_certificate_away(log, caplog):
    guard = in_stage(Stage.RAISED, log)
    assert guard.certificate is None
    assert guard.threshold == 0.65  # above every violation of the latest audits that can certify
    assert (guard.epoch, guard.share) == (f"{CERTIFICATE.id}#1", 1.0)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    for words in ("does not keep its promise", "5 % were promised", "e-value", "from 0.5 to 0.65", "100 fresh"):
        assert words in record.getMessage()
    report = guard.describe()
    assert (report.alarm, report.certificate_id, report.attempt, report.items_needed) == (True, None, 1, ITEMS)
    assert report.last_alarm == record.getMessage()
    assert guard_of(log).describe().last_alarm == record.getMessage(), "a restart still knows why"


@pytest.mark.parametrize(
    ("verdicts", "why"),
    [
        ([violated()] * 30, "too few audits to certify anything"),
        ([*[kept()] * 60, *[MISSING] * 30], "no score to raise the threshold above"),
    ],
)
def test_where_no_threshold_can_be_found_everything_goes_to_the_cloud(log, verdicts, why):
    guard = guard_of(log)
    feed(guard, log, verdicts)
    assert (guard.stage, guard.threshold, guard.certificate) == (Stage.CLOUD_ONLY, math.inf, None), why
    assert guard.describe().e_value is None


def test_a_second_alarm_leaves_nothing_local(log):
    guard = in_stage(Stage.CLOUD_ONLY, log)
    assert (guard.threshold, guard.epoch, guard.describe().attempt) == (math.inf, f"{CERTIFICATE.id}#2", 2)


def test_cloud_only_at_the_first_alarm_where_that_is_wanted(log):
    guard = in_stage(Stage.CLOUD_ONLY, log, settings=replace(SETTINGS, on_alarm=OnAlarm.CLOUD_ONLY))
    assert guard.epoch == f"{CERTIFICATE.id}#1"


def test_a_warning_changes_nothing_and_is_said_once(log, caplog):
    guard = guard_of(log, settings=replace(SETTINGS, on_alarm=OnAlarm.WARN))
    assert feed(guard, log, broken()) is None
    assert (guard.stage, guard.certificate, guard.describe().alarm) == (Stage.CERTIFIED, CERTIFICATE, True)
    assert ["Nothing is changed" in record.getMessage() for record in caplog.records] == [True]


def test_a_certificate_by_groups_ends_in_the_cloud(log):
    groups = Groups(by="label", bounds={"a": BOUND, "b": BOUND})
    guard = in_stage(Stage.CLOUD_ONLY, log, given=certificate(groups=groups))
    assert (guard.share, guard.describe().items_needed) == (0.0, 0)
    assert feed(guard, log, fresh() * 3) is None


@pytest.mark.parametrize("target", ["accuracy", "selective"])
def test_a_promise_that_audits_cannot_see_is_counted_and_never_doubted(log, target):
    guard = guard_of(log, given=certificate(target=target))
    assert feed(guard, log, [violated()] * 50) is None
    report = guard.describe()
    assert (report.stage, report.violations, report.e_value, report.alarm) == (Stage.CERTIFIED, 50, None, False)


def test_fresh_audits_certify_again(log, caplog):
    given = certificate(expires="2026-03-02T00:00:00Z", fitted_digest="sha256:f", judge="number")
    guard = in_stage(Stage.CLOUD_ONLY, log, given=given)
    caplog.clear()
    sample = fresh()
    assert feed(guard, log, sample) == ITEMS
    earned = guard.certificate
    scores, differs = [verdict.score for verdict in sample], [verdict.differs for verdict in sample]
    assert earned.bound == certify(scores, differs, alpha=ALPHA, delta=delta_of(2, DELTA))
    assert earned.bound.delta == pytest.approx(6 * DELTA / (math.pi**2 * 4))
    assert (earned.recertification, earned.created, earned.expires) == (
        2,
        "2026-01-02T00:00:00Z",
        "2026-03-03T00:00:00Z",
    )
    assert (earned.signal, earned.reference, earned.fitted_digest) == ("margin", CERTIFICATE.reference, "sha256:f")
    assert earned.judge == "number"
    assert (len(earned.score_deciles), earned.out_of_distribution_share) == (9, 0.0)
    check_model(earned, "sha256:m", "sha256:f")
    assert (guard.stage, guard.threshold, guard.share) == (Stage.CERTIFIED, earned.bound.threshold, None)
    report = guard.describe()
    assert (report.e_value, report.alarm, report.certificate_id, report.items_needed) == (1.0, False, earned.id, 0)
    assert "earned from 100 fresh audits" in caplog.text


def test_a_certificate_whose_birth_names_no_zone_is_followed_by_one_of_the_same_life(log):
    given = certificate(created="2026-01-01T00:00:00", expires="2026-03-02T00:00:00Z")
    guard = in_stage(Stage.CLOUD_ONLY, log, given=given)
    feed(guard, log, fresh())
    assert (guard.certificate.created, guard.certificate.expires) == ("2026-01-02T00:00:00Z", "2026-03-03T00:00:00Z")


def test_the_raised_threshold_may_be_certified_too(log):
    guard = in_stage(Stage.RAISED, log)
    assert feed(guard, log, fresh()) == ITEMS
    assert guard.certificate.recertification == 1


def test_the_next_alarm_under_an_earned_certificate_begins_again(log):
    guard = in_stage(Stage.RAISED, log)
    feed(guard, log, fresh())
    earned = guard.certificate
    assert feed(guard, log, broken()) is not None
    assert (guard.stage, guard.describe().attempt) == (Stage.RAISED, 2)
    assert feed(guard, log, fresh(differing_at=(0.3,))) == ITEMS
    assert guard.certificate.recertification == 2
    assert guard.certificate != earned


def test_a_sample_that_certifies_nothing_is_followed_by_a_fresh_one(log, caplog):
    guard = in_stage(Stage.CLOUD_ONLY, log)
    assert feed(guard, log, fresh(differing_at=[1.0] * 50)) == ITEMS
    assert (guard.stage, guard.certificate, guard.describe().attempt) == (Stage.CLOUD_ONLY, None, 3)
    assert "Recertification 2" in caplog.text
    assert feed(guard, log, fresh()) == ITEMS
    assert guard.certificate.recertification == 3


@pytest.mark.parametrize(
    ("unhelpful", "why"),
    [
        (MISSING, "without a verdict"),
        (AuditVerdict(violation=False), "the edge was not asked"),
        (AuditVerdict(violation=False, score=None, differs=True), "no score, and another answer"),
    ],
)
def test_what_is_not_known_counts_against_the_promise(log, unhelpful, why):
    guard = in_stage(Stage.CLOUD_ONLY, log)
    assert feed(guard, log, [*fresh(ITEMS - 10), *[unhelpful] * 10]) == ITEMS
    assert guard.certificate is None, why


def test_a_reply_that_never_came_counts_as_different_at_its_score(log):
    guard = in_stage(Stage.CLOUD_ONLY, log)
    assert feed(guard, log, [*fresh(ITEMS - 10, ()), *[escalated(0.5, None)] * 10]) == ITEMS
    assert guard.threshold == 0.5


def test_requests_that_are_never_local_certify_no_threshold(log):
    guard = in_stage(Stage.CLOUD_ONLY, log)
    assert feed(guard, log, [escalated(-math.inf, None)] * (ITEMS - 1) + [MISSING]) == ITEMS
    assert guard.certificate is None


def test_the_first_audits_certify_and_an_open_one_among_them_is_waited_for(log):
    guard = in_stage(Stage.CLOUD_ONLY, log)
    waiting = log.drawn("r", guard.epoch)
    assert feed(guard, log, fresh(ITEMS + 20)) is None
    log.verdict(waiting, escalated(0.9))
    assert guard.settled()
    assert guard.certificate.bound.n == ITEMS


def test_verdicts_of_an_earlier_epoch_change_nothing(log):
    guard = guard_of(log)
    late = [log.drawn("r", guard.epoch) for _ in range(200)]
    for position in late[:100]:
        log.verdict(position, violated())
    assert guard.settled()
    before = guard.describe()
    for position in late[100:]:
        log.verdict(position, violated())
    assert not guard.settled()
    assert guard.describe() == before


def test_the_size_of_a_sample_is_fixed_before_its_first_draw(log):
    guard = in_stage(Stage.CLOUD_ONLY, log)
    feed(guard, log, fresh()[:10])
    restarted = guard_of(log, settings=replace(SETTINGS, recertify_items=40))
    assert restarted.describe().items_needed == ITEMS - 10
    assert feed(restarted, log, fresh()[10:]) == ITEMS - 10


def test_a_sample_is_large_enough_to_certify_something(log):
    guard = in_stage(Stage.RAISED, log, settings=replace(SETTINGS, recertify_items=1))
    assert guard.describe().items_needed == items_needed(ALPHA, delta_of(1, DELTA))


def test_without_a_share_nothing_is_certified_again(log):
    guard = in_stage(Stage.RAISED, log, settings=replace(SETTINGS, recertify_share=0.0))
    assert (guard.share, guard.describe().items_needed) == (None, 0)
    assert feed(guard, log, [violated(0.95)] * 50) is not None
    assert (guard.stage, guard.share) == (Stage.CLOUD_ONLY, 0.0)


def test_another_certificate_starts_fresh(log):
    in_stage(Stage.CLOUD_ONLY, log)
    guard = guard_of(log, given=certificate(data_digest="sha256:new"))
    assert (guard.stage, guard.describe().drawn, guard.describe().attempt) == (Stage.CERTIFIED, 0, 0)


def test_an_alarm_that_a_dead_process_left_is_raised_at_the_start(log):
    epoch = CERTIFICATE.id
    for verdict in broken():
        log.verdict(log.drawn("r", epoch), verdict)
    assert guard_of(log).stage is Stage.RAISED


def test_a_full_disk_does_not_keep_a_broken_promise_in_force(log, monkeypatch):
    def full(key, value):
        raise StoreError("the disk is full", "Free some room.")

    guard = guard_of(log)
    monkeypatch.setattr(log, "remember", full)
    with pytest.raises(StoreError):
        feed(guard, log, broken())
    assert (guard.stage, guard.certificate) == (Stage.RAISED, None)
    monkeypatch.undo()
    assert guard_of(log).stage is Stage.RAISED  # found again from the verdicts


def test_a_standing_is_written_once(log, monkeypatch):
    written = []
    monkeypatch.setattr(log, "remember", lambda key, value: written.append(key))
    guard = in_stage(Stage.CLOUD_ONLY, log, settings=replace(SETTINGS, on_alarm=OnAlarm.CLOUD_ONLY))
    feed(guard, log, [escalated()] * 5)
    assert len(written) == 1


def random_audits(seed):
    """Good times and bad ones, with all kinds of verdicts."""
    generator = random.Random(seed)
    for _ in range(4):
        risk, differs = generator.choice([0.0, 0.04, 0.4]), generator.choice([0.0, 0.02, 0.6])
        for _ in range(120):
            score = generator.random()
            violation = generator.random() < risk
            missing = violation and generator.random() < 0.1
            yield AuditVerdict(
                violation=violation,
                missing=missing,
                score=None if missing else score,
                differs=None if missing else violation or generator.random() < differs,
            )


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), restarts=st.sets(st.integers(0, 479), max_size=6))
def test_a_restart_anywhere_changes_nothing(seed, restarts):
    reports = []
    for stops in (set(), restarts):
        with SqliteStore(":memory:") as store:
            guard, seen = guard_of(store.audits), []
            for index, verdict in enumerate(random_audits(seed)):
                if index in stops:
                    guard = guard_of(store.audits)
                feed(guard, store.audits, [verdict])
                seen.append((guard.describe(), guard.certificate, guard.share))
            reports.append(seen)
    assert reports[0] == reports[1]


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(40)))
def test_the_order_in_which_verdicts_arrive_changes_nothing(seed, order):
    verdicts = list(random_audits(seed))[:40]
    reports = []
    for arrival in (range(40), order):
        with SqliteStore(":memory:") as store:
            guard = guard_of(store.audits, settings=replace(SETTINGS, on_alarm=OnAlarm.WARN))
            positions = [store.audits.drawn("r", guard.epoch) for _ in verdicts]
            for index in arrival:
                store.audits.verdict(positions[index], verdicts[index])
                guard.settled()
            reports.append(guard.describe())
    assert reports[0] == reports[1]


@pytest.mark.parametrize("key", ["standing", "monitor"])
def test_what_cannot_be_read_back_is_said(log, key):
    if key == "standing":
        log.remember(f"guard:{CERTIFICATE.id}", b"\xc1")
    else:
        log.verdict(log.drawn("r", CERTIFICATE.id), kept())
        log.advance(CERTIFICATE.id, lambda state, verdicts: b"\xc1")
    with pytest.raises(StoreError, match="cannot be read"):
        guard_of(log)


@pytest.mark.parametrize(
    "setting",
    [{"recertify_share": -0.1}, {"recertify_share": 1.1}, {"recertify_share": math.nan}, {"recertify_items": 0}],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        GuardSettings(**setting)


def test_all_recertifications_together_spend_no_more_than_delta():
    assert delta_of(0, DELTA) == DELTA
    spent = math.fsum(delta_of(attempt, DELTA) for attempt in range(1, 100_000))
    assert 0.9999 * DELTA < spent <= DELTA


@given(st.lists(st.tuples(st.booleans(), st.floats(0.5, 1, exclude_min=True)), max_size=150))
def test_a_raised_threshold_is_above_the_one_it_replaces(audits):
    verdicts = [violated(score) if violation else escalated(score) for violation, score in audits]
    raised = raised_threshold(verdicts, alpha=ALPHA, delta=DELTA)
    assert raised > 0.5
    latest = audits[-items_needed(ALPHA, DELTA) :]
    assert math.isinf(raised) or not any(violation and score > raised for violation, score in latest)
