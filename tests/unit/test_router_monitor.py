"""The e-process: fair under the promise, quick when it is broken, exact wherever it is interrupted."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import CertificateError, ConfigError
from edgewise.router.monitor import AuditMonitor, MonitorState

levels = st.floats(1e-4, 0.9)
streams = st.lists(st.booleans(), max_size=60)


def fed(verdicts, alpha=0.01, delta=0.05):
    monitor = AuditMonitor(alpha, delta)
    for verdict in verdicts:
        monitor.update(verdict)
    return monitor


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_level_outside_the_unit_interval_is_refused(value):
    with pytest.raises(ConfigError, match="alpha is"):
        AuditMonitor(value, 0.05)
    with pytest.raises(ConfigError, match="delta is"):
        AuditMonitor(0.01, value)


@pytest.mark.parametrize("verdict", [0.5, 7, -1, None, "yes", math.nan, [True]])
def test_what_is_no_verdict_is_refused_and_changes_nothing(verdict):
    monitor = fed([True, False])
    before = monitor.state
    with pytest.raises(CertificateError, match="verdict of an audit is"):
        monitor.update(verdict)
    assert monitor.state == before


def test_verdicts_may_be_numpy_s_or_numbers():
    assert fed([np.True_, np.int64(0), 1]).state == fed([True, False, True]).state


def test_without_a_verdict_nothing_is_shown():
    monitor = AuditMonitor(0.01, 0.05)
    assert (monitor.e_value, monitor.alarm, monitor.state) == (1.0, False, MonitorState())


@given(levels, streams)
def test_no_risk_within_the_promise_makes_the_bet_worth_having(alpha, past):
    """A supermartingale: after any past, the next E is at most E on average, at alpha and at every smaller risk."""
    before = fed(past, alpha)
    after = {}
    for verdict in (False, True):
        after[verdict] = AuditMonitor.resumed(alpha, 0.05, before.state)
        after[verdict].update(verdict)
    for risk in (0.0, alpha / 2, alpha):
        mean = risk * after[True].e_value + (1 - risk) * after[False].e_value
        assert mean <= before.e_value * (1 + 1e-9)


@given(levels, streams)
def test_at_the_promised_risk_the_bet_is_fair(alpha, past):
    """Nothing is given away: at exactly alpha the mean of the next E is E, up to rounding."""
    before = fed(past, alpha)
    after = [AuditMonitor.resumed(alpha, 0.05, before.state) for _ in range(2)]
    after[0].update(True)
    after[1].update(False)
    assert alpha * after[0].e_value + (1 - alpha) * after[1].e_value == pytest.approx(before.e_value, rel=1e-9)


def test_every_path_of_ten_verdicts_together_has_the_mean_one():
    """By brute force over all 1024 paths: E(10) has mean 1 at alpha, so Ville's inequality applies to it."""
    alpha, total = 0.3, 0.0
    for path in range(1024):
        verdicts = [bool(path >> bit & 1) for bit in range(10)]
        chance = math.prod(alpha if verdict else 1 - alpha for verdict in verdicts)
        total += chance * fed(verdicts, alpha).e_value
    assert total == pytest.approx(1.0, abs=1e-12)


@given(levels, levels, streams, st.integers(0, 60))
def test_an_interrupted_monitor_goes_on_as_if_nothing_had_been(alpha, delta, verdicts, at):
    whole, monitor = fed(verdicts, alpha, delta), fed(verdicts[:at], alpha, delta)
    data = msgspec.msgpack.encode(monitor.state)
    resumed = AuditMonitor.resumed(alpha, delta, msgspec.msgpack.decode(data, type=MonitorState))
    for verdict in verdicts[at:]:
        resumed.update(verdict)
    assert resumed.state == whole.state
    assert (resumed.e_value, resumed.alarm) == (whole.e_value, whole.alarm)


def test_an_alarm_stays():
    monitor = fed([True] * 5)
    assert monitor.alarm
    assert monitor.e_value >= 1 / 0.05
    for _ in range(5000):
        monitor.update(False)
    assert monitor.e_value < 1
    assert monitor.alarm


def test_the_alarm_comes_exactly_when_e_reaches_its_limit():
    monitor, generator = AuditMonitor(0.01, 0.05), random.Random(0)
    largest = 1.0
    while not monitor.alarm:
        assert largest < 1 / 0.05
        monitor.update(generator.random() < 0.03)
        largest = max(largest, monitor.e_value)
    assert largest >= 1 / 0.05


def test_evidence_beyond_every_float_is_the_largest_one():
    monitor = fed([True] * 2000)
    assert monitor.e_value == pytest.approx(1.7976931348623157e308)
    assert math.isfinite(monitor.state.log_staked)


def test_ten_million_good_audits_leave_a_monitor_that_still_alarms():
    state = MonitorState(audits=10_000_000, log_staked=-16.0, recent_audits=300.0)
    monitor = AuditMonitor.resumed(0.01, 0.05, state)
    for _ in range(1000):
        monitor.update(False)
    assert 0 < monitor.e_value < 1
    audits = 0
    while not monitor.alarm:
        monitor.update(audits % 10 == 0)
        audits += 1
    assert audits < 500


@pytest.mark.parametrize(("alpha", "verdict"), [(1e-9, True), (1 - 1e-9, False), (0.5, True), (0.5, False)])
def test_extreme_promises_stay_finite(alpha, verdict):
    monitor = fed([verdict, not verdict] * 50, alpha)
    assert 0 < monitor.e_value < math.inf


@pytest.mark.parametrize("alpha", [0.005, 0.01, 0.05])
def test_three_times_the_risk_is_found_soon(alpha):
    """The median of 60 runs; the target at alpha = 1 % is 330 audits."""
    generator = np.random.default_rng(7)
    found = []
    for _ in range(60):
        monitor, audits = AuditMonitor(alpha, 0.05), 0
        while not monitor.alarm:
            monitor.update(bool(generator.random() < 3 * alpha))
            audits += 1
        found.append(audits)
    assert np.median(found) <= 3.3 / alpha
