"""Bounds on accuracy, on selective risk and by group: against scipy, by brute force, and against their own promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from edgewise.errors import CertificateError, ConfigError, TooFewItemsError
from edgewise.router.certificate import (
    certify,
    certify_accuracy,
    certify_groups,
    certify_selective,
    group_items_needed,
    items_needed,
    threshold_grid,
)

SCORES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf]), st.floats(0, 1))
GRID = [-math.inf, 0.0, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9]


def lowest_before_a_failure(grid, holds):
    """The last threshold, from the top, before the first that does not hold."""
    kept = math.inf
    for threshold in sorted(set(grid), reverse=True):
        if not holds(threshold):
            return kept
        kept = threshold
    return kept


def local(scores, threshold):
    return np.array([score > threshold for score in scores])


# Selective risk


@given(items=st.lists(st.tuples(SCORES, st.booleans()), min_size=14, max_size=120))
def test_selective_threshold_equals_brute_force_by_scipy(items):
    scores, wrong = map(np.array, zip(*items, strict=True))
    bound = certify_selective(scores, wrong, alpha=0.2, delta=0.05, grid=GRID)

    def holds(threshold):
        above = local(scores, threshold)
        return binom.cdf(wrong[above].sum(), above.sum(), 0.2) <= 0.05

    assert bound.threshold == lowest_before_a_failure(GRID, holds)
    assert bound.local_share == local(scores, bound.threshold).mean()
    assert bound.k == (local(scores, bound.threshold) & wrong).sum()


@given(items=st.lists(st.tuples(SCORES, st.booleans()), min_size=60, max_size=100), data=st.data())
@settings(max_examples=40)
def test_selective_risk_is_monotone_in_alpha_delta_and_errors_and_blind_to_order(items, data):
    scores, wrong = map(np.array, zip(*items, strict=True))
    bound = certify_selective(scores, wrong, alpha=0.2, delta=0.05, grid=GRID)
    assert certify_selective(scores, wrong, alpha=0.3, delta=0.05, grid=GRID).threshold <= bound.threshold
    assert certify_selective(scores, wrong, alpha=0.2, delta=0.1, grid=GRID).threshold <= bound.threshold
    worse = wrong | np.array(data.draw(st.lists(st.booleans(), min_size=len(wrong), max_size=len(wrong))))
    assert certify_selective(scores, worse, alpha=0.2, delta=0.05, grid=GRID).threshold >= bound.threshold
    order = data.draw(st.permutations(range(len(scores))))
    assert certify_selective(scores[order], wrong[order], alpha=0.2, delta=0.05, grid=GRID[::-1]) == bound


def test_no_threshold_is_skipped_for_having_too_few_items_above_it():
    scores, right = np.linspace(0, 1, 400), np.zeros(400, bool)
    assert certify_selective(scores, right, alpha=0.05, delta=0.05, grid=[0.99, 0.5]).threshold == math.inf
    finite = certify_selective(scores, right, alpha=0.05, delta=0.05, grid=[0.5, 0.2])
    assert certify_selective(scores, right, alpha=0.05, delta=0.05, grid=[math.inf, 0.5, 0.2]) == finite
    assert certify_selective(scores, right, alpha=0.05, delta=0.05, grid=[math.inf]).threshold == math.inf
    assert certify_selective(scores, right, alpha=0.05, delta=0.05, grid=[0.5]).threshold == 0.5


# Accuracy


@given(items=st.lists(st.tuples(SCORES, st.booleans(), st.booleans()), min_size=59, max_size=100))
@settings(max_examples=50)
def test_accuracy_threshold_equals_brute_force_betting(items):
    """One item after the other, in the order of the seed; the stake is Kelly's for the most losses it can bear."""
    scores, edge, cloud = map(np.array, zip(*items, strict=True))
    n, alpha, delta = len(items), 0.05, 0.05
    bound = certify_accuracy(scores, edge, cloud, alpha=alpha, delta=delta, grid=GRID)

    def log_capital(k, stake):
        return k * math.log(max(1 - stake * (1 - alpha), 1e-300)) + (n - k) * math.log1p(stake * alpha)

    def kelly(k):
        return (alpha - k / n) / (alpha * (1 - alpha))

    k = max([k for k in range(math.ceil(n * alpha)) if log_capital(k, kelly(k)) >= -math.log(delta)], default=0)
    losses = cloud.astype(int) - edge
    order = np.random.default_rng(0).permutation(n)

    def holds(threshold):
        capital, most = 1.0, 0.0
        for score, loss in zip(scores[order], losses[order], strict=True):
            capital *= 1 + kelly(k) * (alpha - (loss if score > threshold else 0))
            most = max(most, capital)
        return most >= (1 - 1e-9) / delta

    assert bound.threshold == lowest_before_a_failure(GRID, holds)
    assert bound.k == (local(scores, bound.threshold) & (losses > 0)).sum()


@given(alpha=st.floats(0.005, 0.5), delta=st.floats(0.005, 0.5), extra=st.integers(0, 50))
def test_the_smallest_n_that_certifies_accuracy_is_the_exact_test_s(alpha, delta, extra):
    needed = items_needed(alpha, delta)
    right = np.ones(needed + extra, bool)
    assert certify_accuracy(right, right, right, alpha=alpha, delta=delta, grid=[-math.inf]).local_share == 1.0
    with pytest.raises(TooFewItemsError, match=f"{needed} are needed"):
        certify_accuracy(
            right[: needed - 1], right[: needed - 1], right[: needed - 1], alpha=alpha, delta=delta, grid=[0]
        )


def test_an_edge_that_wins_where_it_loses_is_certified_where_agreement_is_not():
    scores = np.linspace(0, 1, 1000)
    edge, cloud = np.arange(1000) % 10 != 0, np.arange(1000) % 10 != 5
    assert certify(scores, edge != cloud, alpha=0.05, delta=0.05).local_share < 0.5
    assert certify_accuracy(scores, edge, cloud, alpha=0.05, delta=0.05, grid=[0.9, 0.5, -math.inf]).local_share == 1.0


def test_accuracy_is_decided_in_an_order_that_the_seed_draws():
    scores = np.linspace(0, 1, 600)
    edge, cloud = scores > 0.03, np.ones(600, bool)
    found = {
        certify_accuracy(scores, edge, cloud, alpha=0.05, delta=0.05, grid=np.linspace(0, 0.1, 50), seed=seed).threshold
        for seed in range(3)
    }
    assert all(threshold < 0.03 for threshold in found)
    again = certify_accuracy(scores, edge, cloud, alpha=0.05, delta=0.05, grid=np.linspace(0, 0.1, 50))
    assert again.threshold in found


# All targets on a grid


def accuracy(scores, wrong, **more):
    return certify_accuracy(scores, ~np.asarray(wrong, bool), np.ones(len(wrong), bool), **more)


on_a_grid = pytest.mark.parametrize("certified", [accuracy, certify_selective])


@on_a_grid
def test_items_without_a_score_are_never_local_and_count_in_n(certified):
    scores = np.concatenate([np.full(300, np.nan), np.ones(100)])
    bound = certified(scores, np.isnan(scores), alpha=0.05, delta=0.05, grid=[-math.inf])
    assert (bound.n, bound.k, bound.local_share) == (400, 0, 0.25)


@on_a_grid
def test_nothing_certifies_where_all_are_wrong(certified):
    bound = certified(np.linspace(0, 1, 400), np.ones(400, bool), alpha=0.05, delta=0.05, grid=[0.5, -math.inf])
    assert (bound.threshold, bound.local_share, bound.k) == (math.inf, 0.0, 0)
    assert bound.local_share_interval == (0.0, 0.0)


@on_a_grid
@pytest.mark.parametrize("grid", [[], [0.1, math.nan], [[0.1]], 0.1])
def test_a_grid_without_thresholds_is_refused(certified, grid):
    with pytest.raises(CertificateError, match="grid"):
        certified(np.ones(400), np.zeros(400, bool), alpha=0.05, delta=0.05, grid=grid)


@on_a_grid
@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_alpha_and_delta_are_checked(certified, value):
    for name in ("alpha", "delta"):
        with pytest.raises(ConfigError, match=name):
            certified(np.ones(9), np.zeros(9, bool), grid=[0], **{"alpha": 0.5, "delta": 0.5, name: value})


def test_vectors_that_do_not_fit_are_named():
    with pytest.raises(CertificateError, match="cloud_correct has shape"):
        certify_accuracy([1.0] * 9, [1] * 9, [1] * 8, alpha=0.5, delta=0.5, grid=[0])
    with pytest.raises(CertificateError, match="edge_correct holds values other"):
        certify_accuracy([1.0] * 9, [2] * 9, [1] * 9, alpha=0.5, delta=0.5, grid=[0])
    with pytest.raises(CertificateError, match="wrong has shape"):
        certify_selective([1.0] * 9, [1], alpha=0.5, delta=0.5, grid=[0])


def pool(size=20_000):
    """Scores with ties, and right or wrong of edge and cloud: the edge sometimes wins."""
    generator = np.random.default_rng(11)
    scores = np.round(generator.random(size), 2)
    lost, drawn = 0.3 * np.exp(-5 * scores), generator.random(size)
    return scores, drawn >= lost, (drawn < lost) | (drawn >= 1.3 * lost)


@pytest.mark.parametrize("target", ["accuracy", "selective"])
def test_the_promise_holds_over_many_calibration_sets(target):
    """The risk on the whole pool exceeds alpha in at most delta of the sets drawn from it with replacement."""
    scores, edge, cloud = pool()
    alpha, delta, sets, n = 0.05, 0.1, 300, 300
    losses = cloud.astype(int) - edge if target == "accuracy" else (~edge).astype(int)
    generator = np.random.default_rng(3)
    tuning = generator.integers(0, len(scores), 1000)
    grid = threshold_grid(scores[tuning], losses[tuning], target=target, n=n, alpha=alpha, delta=delta, size=50)
    violations, shares = 0, []
    for _ in range(sets):
        drawn = generator.integers(0, len(scores), n)
        if target == "accuracy":
            bound = certify_accuracy(scores[drawn], edge[drawn], cloud[drawn], alpha=alpha, delta=delta, grid=grid)
            risk = losses[scores > bound.threshold].sum() / len(scores)
        else:
            bound = certify_selective(scores[drawn], ~edge[drawn], alpha=alpha, delta=delta, grid=grid)
            above = scores > bound.threshold
            risk = losses[above].mean() if above.any() else 0.0
        violations += bool(risk > alpha)
        shares.append(bound.local_share)
    assert violations <= binom.ppf(0.999, sets, delta)
    assert np.mean(shares) > 0.5, "a bound that answers nothing locally keeps any promise"


# The grid


def test_the_grid_goes_down_the_quantiles_to_everything():
    scores = np.concatenate([np.linspace(0, 1, 501), [np.nan, np.inf]])
    grid = threshold_grid(scores, np.zeros(503), target="accuracy", n=500, alpha=0.05, delta=0.05, size=10)
    assert len(grid) == 11
    assert grid[-1] == -math.inf
    assert (np.diff(grid) < 0).all()
    assert set(grid[:-1]) <= set(scores)


def test_the_selective_grid_begins_where_enough_local_items_are_expected():
    scores = np.random.default_rng(0).random(1000)
    grid = threshold_grid(scores, scores < 0.1, target="selective", n=400, alpha=0.05, delta=0.05)
    assert 0.1 <= grid[0] <= 0.5
    bound = certify_selective(scores[:400], scores[:400] < 0.1, alpha=0.05, delta=0.05, grid=grid)
    assert bound.local_share > 0.8


def test_a_grid_of_constant_scores_is_two_thresholds():
    grid = threshold_grid(np.ones(50), np.zeros(50), target="accuracy", n=400, alpha=0.05, delta=0.05)
    assert grid.tolist() == [1.0, -math.inf]


def test_no_grid_without_scores_or_for_agreement():
    with pytest.raises(CertificateError, match="No tuning item"):
        threshold_grid([math.nan], [0], target="accuracy", n=400, alpha=0.05, delta=0.05)
    with pytest.raises(ConfigError, match="'accuracy' and 'selective'"):
        threshold_grid([1.0], [0], target="agreement", n=400, alpha=0.05, delta=0.05)


# Groups


def test_each_group_is_certified_at_its_share_of_delta():
    generator = np.random.default_rng(2)
    scores, groups = generator.random(2000), np.where(np.arange(2000) % 2, "ship", "grain")
    disagree = generator.random(2000) < np.where(groups == "ship", 0.02, 0.2) * (1 - scores)
    bounds = certify_groups(scores, disagree, groups, names=["grain", "ship"], alpha=0.02, delta=0.1)
    for name, bound in bounds.items():
        members = groups == name
        assert bound == certify(scores[members], disagree[members], alpha=0.02, delta=0.05)
    assert list(bounds) == ["grain", "ship"]
    assert bounds["ship"].local_share > bounds["grain"].local_share


def test_a_group_with_too_few_items_is_refused_and_its_n_is_told():
    groups = ["a"] * 500 + ["b"] * 20
    bounds = certify_groups(np.ones(520), np.zeros(520), groups, names=["a", "b", "c"], alpha=0.01, delta=0.05)
    assert group_items_needed(0.01, 0.05, 3) == items_needed(0.01, 0.05 / 3) == 408
    assert bounds["a"].local_share == 1.0
    assert [(bounds[name].threshold, bounds[name].local_share, bounds[name].n) for name in "bc"] == [
        (math.inf, 0.0, 20),
        (math.inf, 0.0, 0),
    ]


def test_the_price_is_named_where_every_group_is_too_small():
    with pytest.raises(
        TooFewItemsError, match=r"250 items in the largest of 2 groups, each at delta/2.*368 are needed"
    ):
        certify_groups(np.ones(500), np.zeros(500), ["a", "b"] * 250, names=["a", "b"], alpha=0.01, delta=0.05)


@pytest.mark.parametrize(
    ("groups", "names", "problem"),
    [
        (["a", "x"] * 200, ["a"], "'x', which is not among the names"),
        (["a"] * 400, [], "at least one group"),
        (["a"] * 400, ["a", "a"], "only once"),
        (["a"] * 399, ["a"], "groups has shape"),
    ],
)
def test_groups_that_were_not_named_are_refused(groups, names, problem):
    with pytest.raises(CertificateError, match=problem):
        certify_groups(np.ones(400), np.zeros(400), groups, names=names, alpha=0.01, delta=0.05)


# The share's interval


@given(n=st.integers(300, 3000), seed=st.integers(0, 9))
@settings(max_examples=30)
def test_the_interval_holds_the_share(n, seed):
    generator = np.random.default_rng(seed)
    bound = certify(generator.random(n), generator.random(n) < 0.1, alpha=0.05, delta=0.05)
    low, high = bound.local_share_interval
    assert 0 <= low <= bound.local_share <= high <= 1
    assert high - low <= 2 * math.sqrt(math.log(40) / (2 * n)) + 1e-12


def test_the_interval_covers_the_true_share_of_a_threshold_chosen_on_the_same_items():
    """Scores are uniform, so that the true share above a threshold is 1 minus it."""
    generator = np.random.default_rng(4)
    outside = 0
    for _ in range(300):
        scores = generator.random(300)
        bound = certify(scores, generator.random(300) < 0.3 * (1 - scores), alpha=0.05, delta=0.05)
        low, high = bound.local_share_interval
        outside += not low <= 1 - min(max(bound.threshold, 0.0), 1.0) <= high
    assert outside <= binom.ppf(0.999, 300, 0.05)


@pytest.mark.parametrize("scores", [["high", "low"] * 200, [[1.0], [1.0, 2.0]], [1 + 2j] * 400, [None] * 400])
@pytest.mark.parametrize("certified", [certify, certify_selective])
def test_scores_that_are_no_numbers_are_refused(certified, scores):
    grid = {} if certified is certify else {"grid": [0.5]}
    with pytest.raises(CertificateError):
        certified(scores, [False] * len(scores), alpha=0.05, delta=0.05, **grid)


@pytest.mark.parametrize("value", ["0.01", None, math.nan, [0.01], 0, 1.0])
def test_a_bound_that_is_no_probability_is_refused(value):
    scores, right = np.linspace(0, 1, 400), np.ones(400, bool)
    with pytest.raises(ConfigError, match="alpha is"):
        certify(scores, ~right, alpha=value, delta=0.05)
    with pytest.raises(ConfigError, match="delta is"):
        certify_accuracy(scores, right, right, alpha=0.05, delta=value, grid=[0.5])


@pytest.mark.parametrize("bad", [{"losses": [math.nan] * 40}, {"n": 0}, {"size": 0}, {"losses": ["lost"] * 40}])
def test_a_grid_of_nonsense_is_refused(bad):
    asked = {"losses": [0.0] * 40, "n": 400, "size": 10, **bad}
    with pytest.raises(CertificateError):
        threshold_grid(np.linspace(0, 1, 40), target="selective", alpha=0.05, delta=0.05, **asked)
