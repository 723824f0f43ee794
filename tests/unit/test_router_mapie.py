"""Beside MAPIE's Learn Then Test on the same items, risks and thresholds: never less local, at the same level."""

import warnings

import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController, BinaryRisk, control_fwer
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy.stats import binom

from edgewise.router.certificate import certify, certify_selective

DELTA = 0.05
LOST = BinaryRisk(
    risk_occurrence=lambda disagree, local: (disagree == 1) & (local == 1),
    risk_condition=lambda disagree, local: np.ones_like(local, dtype=bool),
    higher_is_better=False,
)
"""Answered locally and differently from the cloud, over all requests: what `certify` bounds."""

LOCAL = BinaryRisk(
    risk_occurrence=lambda disagree, local: local == 1,
    risk_condition=lambda disagree, local: np.ones_like(local, dtype=bool),
    higher_is_better=True,
)
"""The share answered locally: the more, the better."""


def items(seed, n=1000):
    generator = np.random.default_rng(seed)
    scores = generator.random(n)
    return scores, generator.random(n) < 0.3 * np.exp(-4 * scores)


@pytest.mark.parametrize("method", ["fixed_sequence", "bonferroni", "bonferroni_holm"])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_agreement_answers_at_least_as_much_locally(method, alpha):
    for seed in range(5):
        scores, disagree = items(seed)
        controller = BinaryClassificationController(
            predict_function=lambda column: np.column_stack([1 - column[:, 0], column[:, 0]]),
            risk=LOST,
            target_level=alpha,
            confidence_level=1 - DELTA,
            best_predict_param_choice=LOCAL,
            list_predict_params=np.linspace(0, 0.99, 100),
            fwer_method=method,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller.calibrate(scores[:, np.newaxis], disagree.astype(int))
        theirs = controller.best_predict_param
        assert theirs is not None
        ours = certify(scores, disagree, alpha=alpha, delta=DELTA)
        assert ours.local_share >= (scores >= theirs).mean()
        lost = ((scores > ours.threshold) & disagree).sum()
        assert binom.cdf(lost, len(scores), alpha) <= DELTA, "more local, and still by the exact test"


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1])
def test_selective_risk_stops_where_their_fixed_sequence_stops(alpha):
    """Their p-values for a binary risk among the local items, tested in our order by their procedure."""
    grid = np.linspace(0.7, 0, 71)
    stopped = []
    for seed in range(20):
        scores, wrong = items(seed)
        above = [scores > threshold for threshold in grid]
        p_values = compute_hoeffding_bentkus_p_value(
            np.array([wrong[local].mean() for local in above]), np.array([local.sum() for local in above]), alpha, True
        )[:, 0]
        rejected = control_fwer(p_values, DELTA, fwer_method="fixed_sequence")
        theirs = grid[rejected[-1]] if len(rejected) else np.inf
        ours = certify_selective(scores, wrong, alpha=alpha, delta=DELTA, grid=grid).threshold
        # They round a count of wrong items up where it is a rounding error above a whole number: never more local.
        assert ours <= theirs
        stopped.append(ours == theirs)
    assert np.mean(stopped) > 0.5
