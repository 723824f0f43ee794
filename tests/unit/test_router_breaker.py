"""The breaker opens where half of the latest calls fail, closes on a probe, and leaves a flapping cloud alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgewise.router.breaker import Breaker


@given(outcomes=st.lists(st.booleans(), max_size=60), limit=st.integers(1, 5))
def test_opens_iff_half_of_the_last_twenty_failed_and_enough_did(outcomes, limit):
    breaker = Breaker(failures_to_open=limit, cool_down_s=1.0)
    seen = []
    for failed in outcomes:
        (breaker.failed if failed else breaker.succeeded)(0.0)
        seen.append(failed)
        failures, looked_at = sum(seen[-20:]), len(seen[-20:])
        assert breaker.is_open == (failed and failures >= limit and failures >= looked_at / 2)
        if breaker.is_open:
            return


def test_one_failure_in_five_never_opens_it_however_they_fall():
    breaker = Breaker(failures_to_open=3)
    for turn in range(400):
        (breaker.failed if turn % 20 < 4 else breaker.succeeded)(turn / 50)
        if turn >= 20:
            assert not breaker.is_open
        elif breaker.is_open:  # the very first calls are all that is known
            breaker.probe_succeeded(turn / 50)


def test_a_cloud_that_dies_under_traffic_is_found_out_within_ten_calls():
    breaker = Breaker(failures_to_open=3)
    for _ in range(1000):
        breaker.succeeded(0.0)
    for turn in range(10):
        assert not breaker.is_open
        breaker.failed(turn / 50)
    assert breaker.is_open


def test_a_gateway_with_little_traffic_goes_by_its_latest_calls_however_old():
    breaker = Breaker(failures_to_open=3)
    for _ in range(20):
        breaker.succeeded(0.0)
    for turn in range(3):
        assert not breaker.is_open
        breaker.failed(3600.0 * (turn + 1))
    assert breaker.is_open


def test_what_was_under_way_when_it_opened_neither_closes_it_nor_puts_the_probe_off():
    breaker = Breaker(failures_to_open=1, cool_down_s=5.0)
    breaker.failed(10.0)
    breaker.succeeded(11.0)
    breaker.failed(14.0)
    assert breaker.is_open
    assert breaker.seconds_to_probe(14.0) == 1.0


def test_a_failed_probe_puts_the_next_one_off():
    breaker = Breaker(failures_to_open=1, cool_down_s=5.0)
    breaker.failed(10.0)
    assert breaker.seconds_to_probe(12.0) == 3.0
    assert breaker.seconds_to_probe(16.0) == 0.0
    breaker.probe_failed(16.0)
    assert breaker.seconds_to_probe(16.0) == 5.0


def test_a_closed_breaker_wants_no_probe():
    assert Breaker().seconds_to_probe(0.0) == 0.0


def test_flapping_makes_the_cool_down_grow_to_its_ceiling_and_a_good_time_undoes_it():
    breaker = Breaker(failures_to_open=1, cool_down_s=5.0, max_cool_down_s=30.0)
    now, cool_downs = 0.0, []
    for _ in range(5):
        breaker.failed(now)
        cool_downs.append(breaker.seconds_to_probe(now))
        now += cool_downs[-1]
        breaker.probe_succeeded(now)
    assert cool_downs == [5.0, 10.0, 20.0, 30.0, 30.0]
    breaker.failed(now + 30.0)
    assert breaker.seconds_to_probe(now + 30.0) == 5.0


def test_the_ceiling_is_never_below_the_cool_down():
    assert Breaker(cool_down_s=300.0, max_cool_down_s=60.0).cool_down_s == 300.0


class Flapping(RuleBasedStateMachine):
    """Any outcomes at any times, in the order of the clock: what must hold whatever happens."""

    @initialize(limit=st.integers(1, 25), cool_down_s=st.floats(0.1, 10), ceiling=st.floats(0.1, 100))
    def build(self, limit, cool_down_s, ceiling):
        self.limit, self.least, self.most = limit, cool_down_s, max(cool_down_s, ceiling)
        self.breaker = Breaker(failures_to_open=limit, cool_down_s=cool_down_s, max_cool_down_s=ceiling)
        self.now, self.failures, self.opened = 0.0, 0, []

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(failed=st.booleans(), times=st.integers(1, 30))
    def calls_end(self, failed, times):
        for _ in range(times):
            was_open = self.breaker.is_open
            due = self.now + self.breaker.seconds_to_probe(self.now)
            (self.breaker.failed if failed else self.breaker.succeeded)(self.now)
            if was_open:
                assert self.breaker.is_open, "only a probe closes"
                assert self.now + self.breaker.seconds_to_probe(self.now) == pytest.approx(due)
                continue
            self.failures += failed
            if self.breaker.is_open:
                assert failed, "only a failure opens"
                assert self.failures >= self.limit, "not before enough of them"
                self.opened.append(self.now)
                self.failures = 0

    @precondition(lambda self: self.breaker.is_open)
    @rule(worked=st.booleans())
    def the_due_probe_ends(self, worked):
        self.now += self.breaker.seconds_to_probe(self.now)
        if worked:
            self.breaker.probe_succeeded(self.now)
            assert not self.breaker.is_open
        else:
            self.breaker.probe_failed(self.now)
            assert self.breaker.is_open

    @invariant()
    def a_probe_is_never_further_off_than_the_ceiling(self):
        assert 0 <= self.breaker.seconds_to_probe(self.now) <= self.most + 1e-9
        assert self.least <= self.breaker.cool_down_s <= self.most

    @invariant()
    def openings_are_a_cool_down_apart(self):
        pairs = zip(self.opened, self.opened[1:], strict=False)
        assert all(later - earlier >= self.least - 1e-9 for earlier, later in pairs)


TestFlapping = Flapping.TestCase
