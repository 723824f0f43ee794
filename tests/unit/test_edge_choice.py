"""Which token comes next: probabilities, and draws that keep to temperature, top_k and top_p."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgewise.dialogue import Sampling
from edgewise.edge.choice import Odds, draw

LOGITS = arrays.arrays(np.float32, st.integers(2, 30), elements=st.floats(-20, 20, width=32))


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def allowed(logits, sampling):
    """Probabilities after temperature, top_k and top_p, sorted as the definition says."""
    shares = softmax(logits / np.float32(sampling.temperature))
    order = np.argsort(-shares, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        within = shares[order] / shares[order].sum()
        order = order[: int(np.searchsorted(np.cumsum(within), sampling.top_p - 1e-12)) + 1]
    found = np.zeros_like(shares)
    found[order] = shares[order] / shares[order].sum()
    return found


@given(LOGITS)
def test_odds_are_those_of_the_softmax(logits):
    odds, shares = Odds(logits), softmax(logits)
    for token in range(logits.size):
        assert odds.logprob(token) == pytest.approx(np.log(shares[token]), abs=1e-4)
        others = np.delete(shares, token)
        assert odds.margin(token) == pytest.approx(shares[token] - others.max(), abs=1e-5)


@given(LOGITS, st.integers(0, 40))
def test_the_likeliest_come_in_order(logits, count):
    found = Odds(logits).likeliest(count)
    assert (
        found == np.argsort(-logits, kind="stable")[:count].tolist()
        or sorted(logits[found].tolist(), reverse=True) == sorted(logits.tolist(), reverse=True)[: len(found)]
    )
    assert len(found) == min(count, logits.size)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.0, top_k=3),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=0.9, top_k=5, top_p=0.7),
    ],
)
def test_draws_follow_the_distribution(sampling):
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -3.0, 0.2], np.float32)
    steps = (np.arange(20_000) + 0.5) / 20_000
    counts = np.bincount([draw(logits, sampling, random) for random in steps], minlength=logits.size)
    np.testing.assert_allclose(counts / steps.size, allowed(logits, sampling), atol=2e-4)


@given(LOGITS, st.floats(0, 1, exclude_max=True), st.floats(0.01, 1), st.integers(0, 10), st.floats(0.05, 3))
def test_nothing_is_drawn_that_may_not_be(logits, random, top_p, top_k, temperature):
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    logits[0] = -np.inf
    token = draw(logits, sampling, random)
    shares = softmax(logits / np.float32(temperature))
    assert token != 0
    if top_k:
        assert np.count_nonzero(shares > shares[token] * (1 + 1e-5)) < top_k


def test_room_to_work_in_changes_nothing():
    logits, room = np.array([1.0, 3.0, 2.0], np.float32), np.empty(3, np.float32)
    found = Odds(logits, likeliest=1, room=room)
    assert [found.logprob(token) for token in range(3)] == [Odds(logits).logprob(token) for token in range(3)]
    assert found.margin(1) == Odds(logits).margin(1)
    assert found.logprob(1) == Odds(logits).logprob(1)


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_a_small_nucleus_is_the_likeliest_token(logits, random):
    token = draw(logits, Sampling(temperature=1.0, top_p=1e-6), random)
    assert softmax(logits)[token] == pytest.approx(softmax(logits).max())


def test_a_temperature_near_nothing_takes_the_likeliest():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for temperature in (1e-30, 1e-300, 5e-324):
            assert draw(logits, Sampling(temperature=temperature), 0.5) == 1
    assert draw(np.array([np.nan, 1.0], np.float32), Sampling(temperature=1.0), 0.5) in (0, 1)
