"""Signals: bounded, shift-invariant, and ordered as their definitions say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgewise.contracts import Prediction
from edgewise.errors import ConfigError
from edgewise.router.signals import SIGNALS, score_of, signal_named, softmax

logits = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-50, 50, width=32))


@given(rows=logits)
def test_probabilities_sum_to_one(rows):
    np.testing.assert_allclose(softmax(rows).sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize("name", SIGNALS)
@given(rows=logits, shift=st.floats(-10, 10))
def test_a_signal_is_finite_one_score_an_item_and_blind_to_a_common_shift(name, rows, shift):
    scores = SIGNALS[name](rows)
    assert scores.shape == (len(rows),)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, SIGNALS[name](rows + np.float32(shift)), atol=1e-3)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_clear_winner_scores_above_a_tie(name):
    clear, tie = SIGNALS[name](np.array([[9.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=np.float32))
    assert clear > tie


def test_margin_is_the_gap_between_the_two_largest_probabilities():
    row = np.log(np.array([[0.5, 0.3, 0.2]], dtype=np.float32))
    assert SIGNALS["margin"](row)[0] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_nan_logit_gives_a_nan_score(name):
    assert np.isnan(SIGNALS[name](np.array([[np.nan, 1.0, 0.0]], dtype=np.float32))).all()


def test_an_unknown_signal_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="margin"):
        signal_named("gut feeling")


LOGITS = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_prediction_scores_as_the_signal_scores_its_logits(name):
    assert score_of(Prediction(output="a", logits=LOGITS), name) == SIGNALS[name](LOGITS[np.newaxis])[0]


def test_a_margin_that_the_graph_computed_is_taken_for_the_margin_and_for_nothing_else():
    prediction = Prediction(output="a", logits=LOGITS, margin=0.25)
    assert score_of(prediction, "margin") == 0.25
    assert score_of(prediction, "max_probability") == pytest.approx(0.5)


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(
    "prediction",
    [
        Prediction(output="a", logits=LOGITS, margin=0.9, out_of_distribution=True),
        Prediction(output=(0.6, 0.8)),
    ],
)
def test_out_of_distribution_or_without_logits_there_is_no_score(name, prediction):
    assert np.isnan(score_of(prediction, name))


def test_an_unknown_signal_is_refused_even_where_there_is_no_score():
    with pytest.raises(ConfigError, match="margin"):
        score_of(Prediction(output=(1.0,)), "gut feeling")
