"""Whether drafts pay: both ways are tried, the faster one is taken, and the other one tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.cloud.worth import MARGIN, REVIEW_STEPS, TRIAL_STEPS, Worth


def ways(worth, steps, plain_rate, drafted_rate):
    """Which way each step goes where both have a steady speed."""
    taken = []
    for _ in range(steps):
        taken.append(worth.drafts)
        rate = drafted_rate if worth.drafts else plain_rate
        worth.observe(4, 4 / rate)
    return taken


def test_both_ways_are_tried_before_one_is_taken():
    worth = Worth()
    assert worth.rate(drafted=False) is None
    assert ways(worth, 2 * TRIAL_STEPS, 10, 20) == [False] * TRIAL_STEPS + [True] * TRIAL_STEPS
    assert worth.drafts
    assert worth.rate(drafted=False) == pytest.approx(10)
    assert worth.rate(drafted=True) == pytest.approx(20)


@given(plain=st.floats(1, 1000), drafted=st.floats(1, 1000))
def test_the_faster_way_is_taken_nearly_always(plain, drafted):
    worth = Worth()
    ways(worth, 2 * TRIAL_STEPS, plain, drafted)
    taken = ways(worth, 4 * REVIEW_STEPS, plain, drafted)
    share = taken.count(True) / len(taken)
    if drafted > plain * MARGIN * 1.001:
        assert share > 0.95
    if drafted < plain * MARGIN * 0.999:
        assert share < 0.05


def test_what_has_become_faster_is_found_at_the_next_trial():
    worth = Worth()
    ways(worth, 2 * TRIAL_STEPS, 10, 5)
    assert not worth.drafts
    ways(worth, REVIEW_STEPS + TRIAL_STEPS, 10, 30)
    assert worth.drafts
    ways(worth, REVIEW_STEPS + TRIAL_STEPS, 10, 5)
    assert not worth.drafts


def test_the_first_step_of_a_trial_is_not_counted():
    worth = Worth()
    worth.observe(1, 1000.0)
    assert worth.rate(drafted=False) is None
    worth.observe(1, 0.5)
    assert worth.rate(drafted=False) == 2.0


@pytest.mark.parametrize(("drafted_rate", "spare_s"), [(20, 0.2), (10, 0.0), (5, -0.4)])
def test_the_time_that_a_drafted_step_has_to_spare_is_what_its_tokens_take_plainly_less_its_own(drafted_rate, spare_s):
    worth = Worth()
    assert worth.break_even_s is None
    ways(worth, TRIAL_STEPS, 10, drafted_rate)
    assert worth.break_even_s is None
    ways(worth, TRIAL_STEPS, 10, drafted_rate)
    assert worth.break_even_s == pytest.approx(spare_s)  # four tokens a step
