"""Bets against a mean: fair where the mean is what they bet against, and as good as their book says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgewise.router.betting import mean_ruled_out, net_loss_growth, rules_out, shuffled
from edgewise.router.certificate import allowed_disagreements, items_needed

alphas = st.floats(0.002, 0.5)
deltas = st.floats(0.002, 0.5)


@given(alpha=alphas, delta=deltas, extra=st.integers(0, 3000), won=st.floats(0, 0.4))
def test_the_capital_is_not_expected_to_grow_where_the_mean_is_alpha(alpha, delta, extra, won):
    """The one fact that validity hangs on: E[factor] = 1 at a mean of alpha, whatever the shares of -1, 0 and 1."""
    kept, lost, gained = np.exp(net_loss_growth(items_needed(alpha, delta) + extra, alpha, delta))
    won = min(won, (1 - alpha) / 2)
    expected = (1 - alpha - 2 * won) * kept + (alpha + won) * lost + won * gained
    assert expected == pytest.approx(1.0, rel=1e-9)
    assert min(kept, lost, gained) >= 0


@given(alpha=alphas, delta=deltas)
def test_the_smallest_n_suffices_where_nothing_is_lost_and_one_less_does_not(alpha, delta):
    n = items_needed(alpha, delta)
    kept = net_loss_growth(n, alpha, delta)[0]
    assert rules_out(np.full(n, kept), delta)
    assert n == 1 or not rules_out(np.full(n - 1, kept), delta * (1 - 1e-9))


@pytest.mark.parametrize(("alpha", "n", "lost"), [(0.01, 299, 0), (0.01, 1000, 3), (0.01, 2000, 10), (0.05, 2000, 77)])
def test_losses_that_are_borne_in_any_order(alpha, n, lost):
    """Chernoff's count, a little below the exact test's 0, 4, 12 and 83: the price of letting wins count."""
    growth = net_loss_growth(n, alpha, 0.05)
    worst_first = (np.arange(n) < lost).astype(int)
    assert rules_out(growth[worst_first], 0.05)
    assert not rules_out(growth[(np.arange(n) < lost + 1).astype(int)], 0.05)
    assert lost <= allowed_disagreements(n, alpha, 0.05)


def test_a_win_pays_for_more_than_half_a_loss():
    growth = net_loss_growth(1000, 0.02, 0.05)
    assert growth[0] > 0
    assert growth[2] > -growth[1] / 2 > 0
    losses = np.concatenate([np.ones(10, int), -np.ones(10, int), np.zeros(980, int)])
    assert rules_out(growth[shuffled(losses, 0)], 0.05)
    assert not rules_out(growth[shuffled(np.abs(losses), 0)], 0.05)


@pytest.mark.parametrize("won", [0.0, 0.05])
def test_a_true_mean_of_alpha_is_ruled_out_at_most_delta_of_the_time(won):
    alpha, delta, n, sets = 0.05, 0.1, 400, 1500
    generator = np.random.default_rng(8)
    drawn = generator.random((sets, n))
    losses = np.where(drawn < alpha + won, 1, np.where(drawn < alpha + 2 * won, -1, 0))
    ruled_out = sum(rules_out(row, delta) for row in net_loss_growth(n, alpha, delta)[losses])
    assert 0 < ruled_out <= binom.ppf(0.999, sets, delta)


def test_plug_in_bets_rule_out_a_true_mean_at_most_delta_of_the_time():
    generator = np.random.default_rng(9)
    values = (generator.random((1000, 200)) < 0.1).astype(float)
    ruled_out = sum(mean_ruled_out(row, 0.1, 0.1) for row in values)
    assert 0 < ruled_out <= binom.ppf(0.999, 1000, 0.1)


def test_the_order_is_drawn_and_drawn_again_the_same():
    values = np.arange(100)
    assert shuffled(values, 1).tolist() == shuffled(values, 1).tolist() != shuffled(values, 2).tolist()
    assert sorted(shuffled(values, 1)) == values.tolist()


def test_a_lost_whole_stake_stays_lost():
    growth = net_loss_growth(299, 0.01, 0.05)
    assert growth[1] == -math.inf
    assert not rules_out(np.array([growth[1], *[growth[0]] * 10_000]), 0.05)
