"""The figures that choose a signal, against brute force and scikit-learn."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from edgewise.contracts import Prediction
from edgewise.errors import CertificateError, ConfigError
from edgewise.router.combination import fit_combination
from edgewise.router.fitted import Fitted
from edgewise.router.neighbours import fit_neighbours
from edgewise.router.ranking import aurc, auroc, local_share, resampled_aurc, resamples
from edgewise.router.selection import SignalFigures, choose, compare_signals
from edgewise.router.signals import score_of

scored = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, math.nan]), st.booleans()), min_size=1, max_size=6)


def split(items):
    scores, losses = zip(*items, strict=True)
    return np.array(scores), np.array(losses)


@settings(max_examples=50, deadline=None)
@given(scored)
def test_aurc_is_the_mean_over_all_orders_of_the_ties(items):
    ranked = [-math.inf if math.isnan(score) else score for score, _ in items]
    areas = []
    for order in permutations(range(len(items))):
        if all(ranked[a] >= ranked[b] for a, b in pairwise(order)):
            lost = np.cumsum([items[at][1] for at in order])
            areas.append(np.mean(lost / np.arange(1, len(items) + 1)))
    assert aurc(*split(items)) == pytest.approx(np.mean(areas))


@given(scored)
def test_auroc_is_scikit_learn_s_with_nan_below_all(items):
    scores, losses = split(items)
    if losses.all() or not losses.any():
        assert auroc(scores, losses) is None
    else:
        assert auroc(scores, losses) == pytest.approx(roc_auc_score(~losses, np.nan_to_num(scores, nan=-1.0)))


@given(scored, st.sampled_from([0.1, 0.2, 0.5]))
def test_the_local_share_is_the_best_of_all_thresholds(items, alpha):
    scores, losses = split(items)
    best = 0.0
    for threshold in [-math.inf, *(score for score in scores if not math.isnan(score))]:
        local = scores > threshold
        if (losses & local).sum() <= alpha * len(items):
            best = max(best, local.mean())
    assert local_share(scores, losses, alpha) == pytest.approx(best)


def test_an_order_that_knows_beats_chance_and_its_own_reverse():
    scores, losses = np.arange(100.0), np.arange(100) < 20
    assert aurc(np.zeros(100), losses) == pytest.approx(0.2)
    assert aurc(scores, losses) < 0.2 < aurc(-scores, losses)
    assert local_share(scores, losses, 0.05) == 0.85


few_scores = st.sampled_from([0.0, 0.5, 1.0, math.nan])


@given(st.lists(st.tuples(few_scores, st.booleans()), min_size=1, max_size=12), st.integers(0, 1000))
def test_the_aurc_of_a_bootstrap_sample_is_that_of_its_items(items, seed):
    scores, losses = split(items)
    drawn = np.random.default_rng(seed).integers(0, len(items), size=(5, len(items)))
    counts = np.stack([np.bincount(row, minlength=len(items)) for row in drawn])
    expected = [aurc(scores[row], losses[row]) for row in drawn]
    np.testing.assert_allclose(resampled_aurc(scores, losses, counts), expected, atol=1e-12)


def test_bootstrap_samples_are_drawn_with_replacement_and_the_same_every_time():
    counts = resamples(50, 400, 1)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.05)
    assert (counts == resamples(50, 400, 1)).all()
    assert (counts != resamples(50, 400, 2)).any()


# comparison


def items(n=400, seed=0):
    """A class that is wrong half of the time, and one logit common to all that energy is fooled by."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (n, 6)).astype(np.float32)
    logits[np.arange(n), rng.integers(0, 6, n)] += rng.exponential(3, n).astype(np.float32)
    ordered = np.sort(logits, axis=1)
    risk = np.where(logits.argmax(axis=1) == 0, 0.5, np.exp(-(ordered[:, -1] - ordered[:, -2])))
    logits += rng.normal(0, 5, (n, 1)).astype(np.float32)
    predictions = [
        Prediction(output="a", logits=row, embedding=rng.normal(size=4).astype(np.float32)) for row in logits
    ]
    return predictions, rng.random(n) < risk


def test_the_best_signal_comes_first_and_the_table_is_the_same_every_time():
    predictions, wrong = items()
    fitted = Fitted(combination=fit_combination(predictions, wrong))
    rows = compare_signals(predictions, wrong, alpha=0.05, fitted=fitted)
    assert [row.aurc for row in rows] == sorted(row.aurc for row in rows)
    assert rows[0].signal == "combined"
    names = [row.signal for row in rows]
    assert names.index("margin") < names.index("energy")
    assert {"margin", "max_probability", "entropy", "energy", "max_logit", "pnorm"} <= set(names)
    assert rows == compare_signals(predictions, wrong, alpha=0.05, fitted=fitted)
    assert all(row.auroc is not None and 0 <= row.local_share <= 1 for row in rows)


def test_a_lead_is_counted_in_standard_errors_over_bootstrap_samples():
    predictions, wrong = items()
    found = {row.signal: row for row in compare_signals(predictions, wrong, alpha=0.05)}
    margins, energies = (
        np.array([score_of(prediction, name) for prediction in predictions]) for name in ("margin", "energy")
    )
    rng, differences = np.random.default_rng(9), []
    for _ in range(400):
        drawn = rng.integers(0, len(wrong), len(wrong))
        differences.append(aurc(margins[drawn], wrong[drawn]) - aurc(energies[drawn], wrong[drawn]))
    expected = (aurc(margins, wrong) - aurc(energies, wrong)) / np.std(differences)
    assert found["energy"].better_by == pytest.approx(expected, rel=0.15)
    assert found["margin"].better_by == 0
    rows = compare_signals(predictions, wrong, alpha=0.05, names=["margin", "energy"], default="energy")
    assert {row.signal: row.better_by for row in rows} == pytest.approx(
        {"margin": -found["energy"].better_by, "energy": 0}
    )


def test_signals_of_one_order_and_items_without_loss_part_nothing():
    predictions, wrong = items(60)
    two_classes = [Prediction(output="a", logits=prediction.logits[:2]) for prediction in predictions]
    for row in compare_signals(two_classes, wrong, alpha=0.05, names=["margin", "max_probability", "entropy"]):
        assert row.better_by == 0
    assert all(row.better_by == 0 for row in compare_signals(predictions, np.zeros(60, bool), alpha=0.05))


def figures(signal, area, better_by):
    return SignalFigures(signal, area, better_by, 0.9, 0.5)


@pytest.mark.parametrize(
    ("rows", "default", "taken"),
    [
        ([("entropy", 0.01, 1.9), ("margin", 0.02, 0.0)], "margin", "margin"),
        ([("entropy", 0.01, 2.1), ("margin", 0.02, 0.0)], "margin", "entropy"),
        ([("combined", 0.01, 1.5), ("entropy", 0.015, 2.5), ("margin", 0.02, 0.0)], "margin", "entropy"),
        ([("combined", 0.01, 2.2), ("entropy", 0.015, 2.5), ("margin", 0.02, 0.0)], "margin", "combined"),
        ([("margin", 0.01, 0.5), ("entropy", 0.02, 0.0)], "entropy", "entropy"),
        ([("energy", 0.01, 0.5), ("entropy", 0.02, 0.1)], "margin", "energy"),
    ],
)
def test_another_signal_than_the_default_is_taken_only_where_it_is_clearly_better(rows, default, taken):
    assert choose([figures(*row) for row in rows], default).signal == taken


def test_a_fitted_option_is_named_and_better_than_the_default():
    predictions, wrong = items()
    found = {row.signal: row for row in compare_signals(predictions, wrong, alpha=0.05)}
    tuned = {name: row for name, row in found.items() if ":" in name}
    assert tuned
    for name, row in tuned.items():
        assert row.aurc < found[name.partition(":")[0]].aurc
        assert compare_signals(predictions, wrong, alpha=0.05, names=[name])[0].aurc == pytest.approx(row.aurc)


def test_a_combination_is_judged_on_items_that_it_did_not_see():
    predictions, _ = items()
    chance = np.random.default_rng(5).random(400) < 0.3
    fitted = Fitted(combination=fit_combination(predictions, chance))
    (row,) = compare_signals(predictions, chance, alpha=0.05, fitted=fitted, names=["combined"])
    assert abs(row.auroc - 0.5) < 0.1  # in its own eyes it would be far better
    seen = auroc(np.array([fitted.combination.score(prediction) for prediction in predictions]), chance)
    assert seen > row.auroc


def test_a_vetoed_item_has_no_score_and_costs_local_share():
    predictions, _ = items()
    embeddings = np.stack([prediction.embedding for prediction in predictions])
    fitted = Fitted(fit_neighbours(embeddings, quantile=0.8))
    (row,) = compare_signals(predictions, np.zeros(400, bool), alpha=0.05, fitted=fitted, names=["margin"])
    assert row.local_share == pytest.approx(0.8, abs=0.01)
    assert row.auroc is None


def test_signals_of_a_generator_are_compared_among_themselves():
    rng = np.random.default_rng(0)
    predictions = [
        Prediction(output="x", token_logprobs=-rng.exponential(1, 9), margin=float(rng.random())) for _ in range(60)
    ]
    rows = compare_signals(predictions, rng.random(60) < 0.3, alpha=0.1)
    assert {row.signal for row in rows} == {"mean_logprob", "low_logprob", "first_margin"}
    assert {row.signal: row.better_by for row in rows}["mean_logprob"] == 0


def test_what_cannot_be_compared_is_refused():
    predictions, wrong = items(30)
    with pytest.raises(CertificateError, match="30 predictions go with 29"):
        compare_signals(predictions, wrong[1:], alpha=0.05)
    with pytest.raises(CertificateError, match="0 predictions"):
        compare_signals([], [], alpha=0.05)
    with pytest.raises(ConfigError, match="gut"):
        compare_signals(predictions, wrong, alpha=0.05, names=["gut"])
    with pytest.raises(ConfigError, match="was not"):
        compare_signals(predictions, wrong, alpha=0.05, names=["combined"])
