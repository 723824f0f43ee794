"""The arithmetic of a measurement, against scipy and scikit-learn, by enumeration and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgewise.errors import DataError
from edgewise.quantize.bounds import bound_of, mean_bound, needed_for
from edgewise.quantize.quality import calibration_error, compare
from edgewise.quantize.statistics import drop_bound, items_needed, latency, lower_rate, upper_rate

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


def test_a_classifier_counts_lost_won_and_flipped_items():
    baseline, candidate = ({"logits": np.eye(3)[rows]} for rows in ([0, 1, 2, 0, 1], [0, 2, 2, 1, 2]))
    compared = compare("classifier", candidate, baseline, np.array([0, 1, 2, 1, 0]))
    found = compared.quality
    assert (found.lost, found.won, found.n) == (1, 1, 5)
    assert (found.accuracy, found.baseline_accuracy, found.drop) == (0.6, 0.6, 0.0)
    assert found.flips == pytest.approx(0.6)  # the last item is wrong both times, with another answer
    np.testing.assert_array_equal(compared.worth, [1, 0, 1, 1, 0])
    np.testing.assert_array_equal(compared.baseline_worth, [1, 1, 1, 0, 0])
    assert found.auroc == 0.5  # all margins are the same
    assert found.calibration_error == pytest.approx(abs(0.6 - np.e / (np.e + 2)))


def test_a_tagger_is_worth_the_share_of_right_words():
    tags = np.eye(3) * 3
    truth = [np.array([0, 1]), np.array([2, 2, 2, 2])]
    candidate = {"logits": tags[[0, 0, 2, 2, 2, 1]], "words": np.array([2, 4])}
    baseline = {"logits": tags[[0, 1, 2, 2, 1, 1]], "words": np.array([2, 4])}
    compared = compare("tagger", candidate, baseline, truth)
    np.testing.assert_array_equal(compared.worth, [0.5, 0.75])
    np.testing.assert_array_equal(compared.baseline_worth, [1.0, 0.5])
    found = compared.quality
    assert (found.n, found.lost, found.won, found.flips) == (2, 1, 1, 1.0)
    assert found.drop == pytest.approx(0.125)
    assert found.auroc is None  # no item is wholly right
    assert found.calibration_error == pytest.approx(abs(4 / 6 - np.exp(3) / (np.exp(3) + 2)))


def test_words_that_a_tagger_did_not_reach_are_wrong():
    tags = np.eye(2)
    short = {"logits": tags[[0, 1]], "words": np.array([2])}
    whole = {"logits": tags[[0, 1, 1, 1]], "words": np.array([4])}
    found = compare("tagger", short, whole, [np.array([0, 1, 1, 1])]).quality
    assert (found.accuracy, found.baseline_accuracy, found.flips) == (0.5, 1.0, 1.0)
    with pytest.raises(DataError, match="Item 1 has 3 words by its truth, and 4 were answered"):
        compare("tagger", whole, whole, [np.array([0, 1, 1])])


def test_an_embedder_is_worth_its_cosine_to_the_baseline():
    baseline = {"embedding": np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 0.1]])}
    candidate = {"embedding": np.array([[3.0, 0.0], [1.0, 1.0], [1.0, -0.5]])}
    compared = compare("embedder", candidate, baseline, None)
    np.testing.assert_allclose(compared.worth, [1.0, np.sqrt(0.5), 0.95 / np.sqrt(1.25 * 1.01)])
    found = compared.quality
    assert (found.lost, found.won, found.cosine_min) == (2, 0, pytest.approx(compared.worth[1]))
    assert found.drop == pytest.approx(1 - found.cosine_mean)
    assert found.flips == pytest.approx(1 / 3)  # nearest to the second item is now the first, it was the third


def test_an_embedder_of_other_lengths_and_equal_items_flips_nothing():
    baseline = np.random.default_rng(0).normal(size=(40, 8))[[*range(40), 3, 3]].astype(np.float32)
    scaled = baseline * np.random.default_rng(1).uniform(0.5, 2, (42, 1)).astype(np.float32)
    found = compare("embedder", {"embedding": scaled}, {"embedding": baseline}, None).quality
    assert (found.flips, found.drop, found.lost) == (0.0, 0.0, 0)


def test_a_generator_is_worth_the_tokens_that_it_would_have_said():
    theirs, ours = np.log([[0.5, 0.5], [1.0, 1e-30]]), np.log([[0.25, 0.75], [0.5, 0.5]])
    theirs[1, 1] = -np.inf
    tokens = np.array([2, 1])
    common = {"tokens": tokens, "targets": np.array([4, 7, 6])}
    candidate = {**common, "nll": np.array([1.0, 2.0, 3.0]), "top": np.array([4, 5, 6]), "logprobs": ours}
    baseline = {**common, "nll": np.array([1.0, 1.0, 1.0]), "top": np.array([4, 7, 6]), "logprobs": theirs}
    found = compare("generator", candidate, baseline, None).quality
    assert (found.n, found.accuracy, found.baseline_accuracy, found.lost) == (2, 0.75, 1.0, 1)
    assert (found.nll, found.baseline_nll) == (2.0, 1.0)
    assert found.flips == pytest.approx(1 / 3)
    assert found.kld == pytest.approx((stats.entropy([0.5, 0.5], [0.25, 0.75]) + np.log(2)) / 2)
    assert (found.auroc, found.calibration_error) == (None, None)
    with pytest.raises(DataError, match="tokens are not the baseline's"):
        compare("generator", candidate, {**baseline, "targets": np.array([4, 7, 7])}, None)


def test_the_baseline_beside_itself_loses_nothing():
    rng = np.random.default_rng(0)
    answers = {"logits": rng.normal(size=(12, 3)), "words": np.array([5, 0, 7])}
    truth = [rng.integers(0, 3, count) for count in (5, 0, 7)]
    found = compare("tagger", answers, answers, truth)
    assert (found.quality.drop, found.quality.flips, found.quality.lost, found.quality.won) == (0.0, 0.0, 0, 0)


def test_answers_of_other_items_are_refused():
    two, three = {"logits": np.eye(3)[:2]}, {"logits": np.eye(3)}
    with pytest.raises(DataError, match="the candidate has 2, the baseline has 3, the truth has 3 items"):
        compare("classifier", two, three, np.array([0, 1, 2]))
    with pytest.raises(DataError, match="right answers"):
        compare("tagger", {**two, "words": np.array([2])}, {**two, "words": np.array([2])}, None)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_weighted_gap_of_fifteen_bins(answers):
    confidence = np.array([value for value, _ in answers])
    right = np.array([is_right for _, is_right in answers])
    expected = 0.0
    for number in range(15):
        low = -1.0 if number == 0 else number / 15
        inside = (confidence * 15 > low * 15) & (confidence * 15 <= number + 1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-9)


def test_a_perfectly_calibrated_model_has_no_error_and_a_boaster_has_a_large_one():
    right = np.arange(100) < 70
    assert calibration_error(np.full(100, 0.7), right) == pytest.approx(0.0)
    assert calibration_error(np.ones(100), right) == pytest.approx(0.3)


SHARES = {
    "rare": lambda rng, n: (rng.random(n) < 0.02).astype(float),
    "words": lambda rng, n: (rng.binomial(8, 0.1, n) - rng.binomial(8, 0.05, n)) / 8,
    "wide": lambda rng, n: rng.choice([-1.0, 1.0], n, p=[0.4, 0.6]),
    "sorted": lambda rng, n: np.sort(rng.binomial(8, 0.1, n) / 8),  # as data sorted by class or hardness
}
MEANS = {"rare": 0.02, "words": 0.05, "wide": 0.2, "sorted": 0.1}


@pytest.mark.parametrize("kind", SHARES)
def test_the_bound_by_betting_fails_at_most_as_often_as_promised(kind):
    rng, delta, trials = np.random.default_rng(7), 0.1, 300
    failed = sum(
        mean_bound(SHARES[kind](rng, 80), delta, low=-1, high=1, seed=trial) < MEANS[kind] for trial in range(trials)
    )
    # More than this would be seen of a right bound in one run of a thousand.
    assert failed <= stats.binom.ppf(0.999, trials, delta)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=80), deltas, st.integers(0, 3))
def test_the_bound_by_betting_lies_above_the_mean_and_within_the_range(values, delta, seed):
    found = mean_bound(np.array(values), delta, low=-1.0, high=1.0, seed=seed)
    assert np.mean(values) <= found <= 1.0


def test_more_confidence_and_worse_items_cost_a_larger_bound():
    values = np.random.default_rng(3).binomial(8, 0.1, 300) / 8
    bounds = [mean_bound(values, delta, low=-1, high=1) for delta in (0.2, 0.05, 0.01)]
    assert bounds == sorted(bounds)
    assert mean_bound(np.minimum(values + 0.1, 1), 0.05, low=-1, high=1) > bounds[1]


def test_the_bound_by_betting_closes_in_on_the_mean_and_depends_on_the_seed_alone():
    values = np.random.default_rng(0).binomial(10, 0.1, 20_000) / 10 - 0.1
    bounds = [mean_bound(values[:n], 0.05, low=-1, high=1) for n in (200, 2000, 20_000)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] - values.mean() < 0.003
    assert mean_bound(values[:200], 0.05, low=-1, high=1) == bounds[0]


def test_a_value_out_of_range_is_refused():
    for value in (1.5, np.nan):
        with pytest.raises(ValueError, match="outside"):
            mean_bound(np.array([0.0, value]), 0.05, low=-1, high=1)


def classified(lost, n):
    baseline = {"logits": np.tile([1.0, 0.0], (n, 1))}
    candidate = {"logits": np.where(np.arange(n)[:, None] < lost, [0.0, 1.0], [1.0, 0.0])}
    return compare("classifier", candidate, baseline, np.zeros(n, dtype=np.int64))


def tagged(shares, words=10):
    """Items whose baseline is wholly right and whose candidate has these shares of words right."""
    right = np.concatenate([np.arange(words) < round(share * words) for share in shares])
    answers = {"logits": np.eye(2)[1 - right], "words": np.full(len(shares), words)}
    truth = [np.zeros(words, dtype=np.int64)] * len(shares)
    return compare("tagger", answers, {**answers, "logits": np.tile([1.0, 0.0], (len(right), 1))}, truth)


def test_a_classifier_is_bounded_exactly_and_a_tagger_by_betting():
    assert bound_of(classified(3, 500), 0.05) == drop_bound(3, 0, 500, 0.05)
    shares = np.where(np.arange(500) < 15, 0.8, 1.0)
    found = bound_of(tagged(shares), 0.05, seed=1)
    assert 0.006 < found < drop_bound(15, 0, 500, 0.05)
    assert found == mean_bound(1 - shares, 0.05, low=-1, high=1, seed=1)


def test_an_embedder_is_bounded_in_one_minus_cosine():
    angles = np.linspace(0, 0.2, 300)
    ours = {"embedding": np.stack([np.cos(angles), np.sin(angles)], axis=1)}
    theirs = {"embedding": np.tile([1.0, 0.0], (300, 1))}
    found = bound_of(compare("embedder", ours, theirs, None), 0.05)
    assert (1 - np.cos(angles)).mean() < found < 0.04


def test_about_as_many_items_are_needed_as_then_suffice():
    assert needed_for(classified(1, 500), 0.01, 0.05) == items_needed(0.01, 0.05, lost_rate=0.002)
    shares = np.where(np.arange(200) < 4, 0.8, 1.0)
    needed = needed_for(tagged(shares), 0.01, 0.05)
    assert bound_of(tagged(np.resize(shares, int(needed * 1.5))), 0.05) <= 0.01
    assert bound_of(tagged(np.resize(shares, int(needed * 0.7))), 0.05) > 0.01


def test_no_number_of_items_shows_what_is_not_so():
    assert needed_for(tagged([0.9] * 50), 0.1, 0.05) is None
    assert needed_for(classified(10, 100), 0.1, 0.05) is None


def test_latency_gives_quantiles_in_milliseconds():
    found = latency(np.arange(101.0))
    assert (found.calls, found.mean_ms, found.p50_ms, found.p95_ms) == (101, 50.0, 50.0, 95.0)
