"""The drift hint: quiet where live scores are like the certifying ones, loud where they are not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.router.drift import ScoreDrift

TENTHS = tuple(np.arange(1, 10) / 10)


def fed(scores, deciles=TENTHS, share=0.0, window=1000):
    drift = ScoreDrift(deciles, share, window)
    for score in scores:
        drift.update(float(score))
    return drift


def test_the_same_distribution_gives_no_hint():
    drift = fed(np.random.default_rng(0).random(5000))
    assert drift.index < 0.05
    assert not drift.hint


def test_another_distribution_gives_a_hint_once_the_window_is_full_and_loses_it_again():
    generator = np.random.default_rng(1)
    drift = fed(generator.random(999) ** 3)
    assert drift.index > 0.25
    assert not drift.hint
    drift.update(0.01)
    assert drift.hint
    for score in generator.random(1000):
        drift.update(score)
    assert not drift.hint


def test_the_index_is_the_population_stability_index():
    shares = np.array([0.3, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05])
    scores = np.repeat(np.arange(10) / 10 + 0.05, (shares * 1000).astype(int))
    expected = ((shares - 0.1) * np.log(shares / 0.1)).sum()
    assert fed(scores).index == pytest.approx(expected)


@pytest.mark.parametrize(("live", "hint"), [(0.05, False), (0.06, False), (0.10, True)])
def test_far_more_items_without_a_score_give_a_hint(live, hint):
    scores = np.random.default_rng(3).random(2000)
    scores[np.arange(2000) % round(1 / live) == 0] = math.nan
    assert fed(scores, share=0.05).hint is hint


def test_a_few_items_without_a_score_are_no_hint_where_the_certifying_ones_had_none():
    scores = np.random.default_rng(4).random(1000)
    scores[:3] = math.nan
    assert not fed(scores).hint
    scores[:30] = math.nan
    assert fed(scores).hint


def test_saturated_scores_are_compared_as_far_as_their_ties_allow():
    generator = np.random.default_rng(5)
    deciles = (0.18, 0.36, 0.54, 0.72, 0.9, 1.0, 1.0, 1.0, 1.0)
    like = np.minimum(1.8 * generator.random(3000), 1.0)
    assert not fed(like, deciles).hint
    assert fed(generator.random(1000) * 0.5, deciles).hint
    assert not fed(np.ones(1000), (1.0,) * 9).hint


def test_a_certificate_that_tells_no_deciles_gives_no_hint():
    drift = fed([math.nan] * 1000, deciles=())
    assert (drift.index, drift.hint) == (0.0, False)


@given(st.lists(st.one_of(st.floats(allow_nan=True), st.just(math.nan)), max_size=60), st.floats(0, 1))
def test_any_scores_give_a_finite_index_of_the_last_window(scores, share):
    drift = fed(scores, share=share, window=20)
    assert math.isfinite(drift.index)
    assert drift.index >= -1e-12 or len(scores) < 20
    assert drift.index == pytest.approx(fed(scores[-20:], share=share, window=20).index)


def test_nothing_seen_is_no_drift():
    assert fed([]).index == 0.0
