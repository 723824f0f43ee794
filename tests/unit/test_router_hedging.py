"""The rules of asking twice: when a call is usual, slow or worth another one. Time and randomness are passed in."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import (
    CloudCredentialsError,
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
)
from edgewise.router.hedging import Hedging, TokenBucket
from edgewise.router.latency import LatencyWindow
from edgewise.router.retry import Retry

# Latencies


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=40), share=st.floats(0, 1))
def test_a_quantile_is_the_nearest_rank_of_the_latest_values(values, share):
    window = LatencyWindow(size=16)
    for value in values:
        window.observe(value)
    latest = sorted(values[-16:])
    assert len(window) == len(latest)
    assert window.quantile(share) == latest[max(0, math.ceil(share * len(latest)) - 1)]


def test_nothing_observed_has_no_quantile():
    assert LatencyWindow().quantile(0.5) is None


# Hedging


@given(
    share=st.floats(0.001, 1),
    most=st.floats(1, 20),
    events=st.lists(st.sampled_from(["earn", "take"]), max_size=300),
)
def test_never_more_is_spent_than_the_share_that_was_earned(share, most, events):
    bucket = TokenBucket(share, most)
    earned = spent = 0
    for event in events:
        if event == "earn":
            bucket.earn()
            earned += 1
        else:
            spent += bucket.take()
        assert spent <= share * earned + 1e-6


def test_a_fiftieth_is_one_after_fifty():
    bucket = TokenBucket(0.02)
    for _ in range(50):
        assert not bucket.take()
        bucket.earn()
    assert bucket.take()
    assert not bucket.take()


def test_a_burst_is_bounded():
    bucket = TokenBucket(0.5, most=3)
    for _ in range(1000):
        bucket.earn()
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]


def test_a_second_call_is_due_after_the_95th_percentile_of_enough_calls():
    latencies = LatencyWindow()
    hedging = Hedging(latencies, share=0.02)
    for number in range(100):
        assert hedging.begin() == (None if number < 20 else latencies.quantile(0.95))
        latencies.observe(float(number))
    assert hedging.begin() == 94.0


def test_no_share_no_second_call():
    latencies = LatencyWindow()
    for _ in range(100):
        latencies.observe(1.0)
    hedging = Hedging(latencies, share=0.0)
    assert hedging.begin() is None
    assert not hedging.allowed()


@given(calls=st.integers(0, 2000))
def test_at_most_two_in_a_hundred_calls_are_made_twice(calls):
    hedging = Hedging(LatencyWindow(), share=0.02)
    second = 0
    for _ in range(calls):
        hedging.begin()
        second += hedging.allowed()
    assert second <= 0.02 * calls


# Retry


def earned(attempts, uniform=lambda: 0.5, answers=50):
    retry = Retry(attempts, uniform)
    for _ in range(answers):
        retry.answered()
    return retry


@pytest.mark.parametrize(
    "error",
    [
        CloudTimeoutError("late"),
        CloudResponseError("an error of its own"),
        CloudRefusedError("never"),
        CloudCredentialsError("expired"),
    ],
)
def test_what_another_moment_does_not_mend_is_not_retried(error):
    assert earned(5).pause(error, 1, 60.0) is None


@pytest.mark.parametrize("error", [CloudUnreachableError("reset"), CloudThrottledError("too much")])
def test_attempts_are_bounded(error):
    retry = earned(3)
    assert [retry.pause(error, made, 60.0) is not None for made in (1, 2, 3, 4)] == [True, True, False, False]
    assert earned(1).pause(error, 1, 60.0) is None


@given(made=st.integers(1, 40), uniform=st.floats(0, 1, exclude_max=True))
def test_a_pause_is_random_over_its_whole_length_which_doubles_to_a_bound(made, uniform):
    pause = earned(100, lambda: uniform).pause(CloudUnreachableError("reset"), made, 60.0)
    assert pause == uniform * min(0.05 * 2 ** (made - 1), 2.0)


@given(wants=st.floats(0, 30), uniform=st.floats(0, 1, exclude_max=True))
def test_a_cloud_that_says_when_is_not_asked_before(wants, uniform):
    pause = earned(3, lambda: uniform).pause(CloudThrottledError("full", retry_after_s=wants), 1, 60.0)
    assert wants <= pause <= wants + 0.05


def test_what_would_come_too_late_is_not_retried_and_costs_nothing():
    retry = earned(3)
    assert retry.pause(CloudThrottledError("full", retry_after_s=5.0), 1, 5.0) is None
    assert retry.pause(CloudUnreachableError("reset"), 1, 0.0) is None
    assert retry.pause(CloudThrottledError("full", retry_after_s=5.0), 1, 6.0) is not None


@given(outcomes=st.lists(st.booleans(), max_size=300))
def test_retries_are_at_most_a_fifth_of_the_answers(outcomes):
    retry = Retry(10, lambda: 0.5)
    answers = retries = 0
    for answered in outcomes:
        if answered:
            retry.answered()
            answers += 1
        else:
            retries += retry.pause(CloudUnreachableError("down"), 1, 60.0) is not None
        assert retries <= 0.2 * answers + 1e-6
