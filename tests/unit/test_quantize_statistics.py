"""The arithmetic of a measurement, against scipy and by enumeration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgewise.quantize.statistics import drop_bound, items_needed, latency, lower_rate, quality, upper_rate

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
deltas = st.floats(1e-4, 0.5)


@given(counts, deltas)
def test_upper_rate_is_clopper_and_pearson_s(count_n, delta):
    count, n = count_n
    expected = 1.0 if count == n else stats.beta.ppf(1 - delta, count + 1, n - count)
    assert upper_rate(count, n, delta) == pytest.approx(expected, rel=1e-6)


@given(counts, deltas)
def test_lower_rate_is_clopper_and_pearson_s(count_n, delta):
    count, n = count_n
    expected = 0.0 if count == 0 else stats.beta.ppf(delta, count, n - count + 1)
    assert lower_rate(count, n, delta) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("lost_rate", "won_rate"), [(0.0, 0.0), (0.02, 0.0), (0.1, 0.1), (0.3, 0.05), (0.5, 0.5)])
def test_the_bound_fails_at_most_as_often_as_promised(lost_rate, won_rate):
    n, delta, failed = 40, 0.1, 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            if drop_bound(lost, won, n, delta) < lost_rate - won_rate:
                rates = [lost_rate, won_rate, 1 - lost_rate - won_rate]
                failed += stats.multinomial.pmf([lost, won, n - lost - won], n, rates)
    assert failed <= delta


@given(st.integers(0, 50), st.integers(0, 50), st.integers(100, 2000), deltas)
def test_the_bound_lies_above_the_estimate_and_falls_with_items_won(lost, won, n, delta):
    bound = drop_bound(lost, won, n, delta)
    assert bound > (lost - won) / n
    assert drop_bound(lost, won + 1, n, delta) <= bound <= drop_bound(lost + 1, won, n, delta)


def test_items_needed_is_the_smallest_number_that_can_pass():
    needed = items_needed(0.01, 0.05)
    assert needed == 321
    assert drop_bound(0, 0, needed, 0.05) <= 0.01 < drop_bound(0, 0, needed - 1, 0.05)


def test_items_needed_grows_with_the_rate_and_ends_at_the_allowed_drop():
    assert items_needed(0.01, 0.05, lost_rate=0.005) > items_needed(0.01, 0.05, lost_rate=0.002) > 321
    assert items_needed(0.01, 0.05, lost_rate=0.01) is None
    assert items_needed(0.01, 0.05, lost_rate=0.02, won_rate=0.005) is None


def test_quality_counts_lost_won_and_flipped_items():
    baseline = np.eye(3)[[0, 1, 2, 0, 1]]
    candidate = np.eye(3)[[0, 2, 2, 1, 2]]
    truth = np.array([0, 1, 2, 1, 0])
    found = quality(candidate, baseline, truth)
    assert (found.lost, found.won, found.n) == (1, 1, 5)
    assert (found.accuracy, found.baseline_accuracy, found.drop) == (0.6, 0.6, 0.0)
    assert found.flips == pytest.approx(0.6)  # the last item is wrong both times, with another answer


def test_latency_gives_quantiles_in_milliseconds():
    found = latency(np.arange(101.0))
    assert (found.calls, found.mean_ms, found.p50_ms, found.p95_ms) == (101, 50.0, 50.0, 95.0)
