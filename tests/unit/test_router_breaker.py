"""The breaker opens on a run of failures and closes on one success, by the clock it is given."""

from hypothesis import given
from hypothesis import strategies as st

from edgewise.router.breaker import Breaker


@given(outcomes=st.lists(st.booleans(), max_size=30), limit=st.integers(1, 5))
def test_open_iff_the_last_failures_reach_the_limit(outcomes, limit):
    breaker = Breaker(failures_to_open=limit, cool_down_s=1.0)
    run = 0
    for succeeded in outcomes:
        if succeeded:
            breaker.succeeded()
            run = 0
        else:
            breaker.failed(0.0)
            run += 1
        assert breaker.is_open == (run >= limit)


def test_a_failed_probe_puts_the_next_one_off():
    breaker = Breaker(failures_to_open=1, cool_down_s=5.0)
    breaker.failed(10.0)
    assert breaker.seconds_to_probe(12.0) == 3.0
    assert breaker.seconds_to_probe(16.0) == 0.0
    breaker.failed(16.0)
    assert breaker.seconds_to_probe(16.0) == 5.0


def test_a_closed_breaker_wants_no_probe():
    assert Breaker().seconds_to_probe(0.0) == 0.0
