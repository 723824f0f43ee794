"""Signals: ordered as their definitions say, the same for one item as for many, and named strictly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.special import logsumexp
from scipy.stats import entropy

from edgewise.contracts import Prediction
from edgewise.errors import ConfigError
from edgewise.router.combination import ClassifierCombination
from edgewise.router.fitted import Fitted
from edgewise.router.neighbours import Neighbours, Outcomes
from edgewise.router.signals import (
    GENERATOR_SIGNALS,
    SIGNALS,
    check_signal,
    is_foreign,
    score_of,
    scorer,
    signal_named,
    softmax,
)

logits = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-50, 50, width=32))
SPELLED = [*SIGNALS, "margin:temperature=1.7", "entropy:temperature=0.5", "energy:temperature=2", "pnorm:p=3"]
BLIND_TO_A_SHIFT = ["margin", "max_probability", "entropy", "pnorm"]


@given(rows=logits)
def test_probabilities_sum_to_one(rows):
    np.testing.assert_allclose(softmax(rows).sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize("name", SPELLED)
@given(rows=logits)
def test_a_signal_is_finite_and_one_score_an_item(name, rows):
    scores = signal_named(name)(rows)
    assert scores.shape == (len(rows),)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", SPELLED)
@given(rows=arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 200)), elements=st.floats(-9, 9, width=32)))
def test_a_row_scores_exactly_the_same_alone_and_among_others(name, rows):
    signal = signal_named(name)
    together = signal(np.asfortranarray(rows))
    assert together.tolist() == [score_of(Prediction(output="a", logits=row), name) for row in rows]
    assert signal(rows[np.newaxis]).tolist() == [together.tolist()]


@pytest.mark.parametrize("name", BLIND_TO_A_SHIFT)
@given(rows=logits, shift=st.floats(-10, 10))
def test_what_is_made_of_differences_is_blind_to_a_common_shift(name, rows, shift):
    # A float32 row that differs by rounding alone has no direction to speak of for the norm.
    rows[:, 0] += 1.0
    np.testing.assert_allclose(SIGNALS[name](rows), SIGNALS[name](rows + np.float32(shift)), atol=1e-3)


@pytest.mark.parametrize("name", SPELLED)
def test_a_clear_winner_scores_above_a_tie(name):
    clear, tie = signal_named(name)(np.array([[9.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=np.float32))
    assert clear > tie


def test_margin_is_the_gap_between_the_two_largest_probabilities():
    row = np.log(np.array([[0.5, 0.3, 0.2]], dtype=np.float32))
    assert SIGNALS["margin"](row)[0] == pytest.approx(0.2, abs=1e-6)
    assert SIGNALS["margin"](row[:, :1])[0] == 1.0


@given(rows=logits, temperature=st.sampled_from([0.5, 1.0, 3.0]))
def test_energy_and_entropy_are_those_of_scipy(rows, temperature):
    exact = rows.astype(np.float64) / temperature
    np.testing.assert_allclose(
        signal_named(f"energy:temperature={temperature}")(rows), temperature * logsumexp(exact, axis=1), atol=1e-9
    )
    np.testing.assert_allclose(
        signal_named(f"entropy:temperature={temperature}")(rows),
        -entropy(np.exp(exact - logsumexp(exact, axis=1, keepdims=True)), axis=1),
        atol=1e-6,
    )


@given(rows=logits, p=st.sampled_from([1.0, 2.0, 5.0]))
def test_pnorm_is_the_largest_centred_logit_over_the_norm(rows, p):
    rows[:, 0] += 60.0
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, ord=p, axis=1)
    expected = np.where(norms > 0, centred.max(axis=1) / np.where(norms > 0, norms, 1.0), 0.0)
    np.testing.assert_allclose(signal_named(f"pnorm:p={p}")(rows), expected, atol=1e-9)


def test_a_high_power_of_large_logits_does_not_overflow():
    assert signal_named("pnorm:p=100")(np.array([[3e38, -3e38, 0.0]], dtype=np.float32)) == pytest.approx(2**-0.01)


@pytest.mark.parametrize("name", SPELLED)
def test_a_nan_logit_gives_a_nan_score(name):
    assert np.isnan(signal_named(name)(np.array([[np.nan, 1.0, 0.0]], dtype=np.float32))).all()


@pytest.mark.parametrize("name", SPELLED)
def test_a_class_that_is_ruled_out_leaves_a_number(name):
    if not name.startswith("pnorm"):
        assert np.isfinite(signal_named(name)(np.array([[2.0, 1.0, -np.inf]], dtype=np.float32))).all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gut feeling", "Choose one of: .*entropy.*margin"),
        ("", "no signal ''"),
        ("margin:", "no option ''"),
        ("margin:p=3", "Choose from: temperature"),
        ("max_logit:temperature=2", "It has none"),
        ("combined:p=3", "It has none"),
        ("margin:temperature=0", "0.01 to 100"),
        ("margin:temperature=nan", "0.01 to 100"),
        ("margin:temperature=warm", "'warm'"),
        ("margin:temperature", "''"),
        ("pnorm:p=0.5", "1 to 100"),
        ("pnorm:p=2:p=3", "twice"),
    ],
)
def test_a_signal_that_does_not_exist_is_refused_with_the_choices(text, told):
    for use in (signal_named, check_signal, lambda text: score_of(Prediction(output=(1.0,)), text)):
        with pytest.raises(ConfigError, match=told):
            use(text)


LOGITS = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))


def test_a_margin_that_the_graph_computed_is_taken_for_the_plain_margin_and_for_nothing_else():
    prediction = Prediction(output="a", logits=LOGITS, margin=0.25)
    assert score_of(prediction, "margin") == 0.25
    assert score_of(prediction, "margin:temperature=1") == pytest.approx(0.2)
    assert score_of(prediction, "max_probability") == pytest.approx(0.5)


@pytest.mark.parametrize("name", [*SPELLED, *GENERATOR_SIGNALS])
@pytest.mark.parametrize(
    "prediction",
    [
        Prediction(output="a", logits=LOGITS, token_logprobs=-LOGITS, margin=0.9, out_of_distribution=True),
        Prediction(output=(0.6, 0.8)),
    ],
)
def test_out_of_distribution_or_without_its_numbers_there_is_no_score(name, prediction):
    assert np.isnan(score_of(prediction, name))


def test_the_signals_of_a_generated_text_read_its_tokens():
    text = Prediction(output="a b", token_logprobs=np.array([-0.1, -0.2, -3.0], np.float32), margin=0.4)
    assert score_of(text, "mean_logprob") == pytest.approx(-1.1)
    assert score_of(text, "low_logprob") == pytest.approx(np.quantile([-0.1, -0.2, -3.0], 0.1))
    assert score_of(text, "first_margin") == 0.4
    nothing = Prediction(output="", token_logprobs=np.array([], np.float32))
    assert all(math.isnan(score_of(nothing, name)) for name in GENERATOR_SIGNALS)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=40))
def test_the_low_quantile_is_numpy_s(values):
    text = Prediction(output="a", token_logprobs=np.array(values))
    assert score_of(text, "low_logprob") == pytest.approx(np.quantile(values, 0.1), abs=1e-9)
    broken = Prediction(output="a", token_logprobs=np.array([*values, np.nan]))
    assert math.isnan(score_of(broken, "low_logprob"))


ROWS = np.eye(3, dtype=np.float32)
VETO = Fitted(neighbours=Neighbours(ROWS, 1, 0.5))


@pytest.mark.parametrize("name", ["margin", "entropy", "combined"])
def test_a_distant_embedding_has_no_score_and_a_near_one_keeps_its_own(name):
    near, far = (
        Prediction(output="a", logits=LOGITS, embedding=np.array(vector, np.float32))
        for vector in ([5.0, 0.1, 0.0], [-1.0, -1.0, -1.0])
    )
    combination = ClassifierCombination(np.arange(7.0), 0.0, np.zeros(3))
    fitted = Fitted(VETO.neighbours, combination=combination)
    assert score_of(near, name, fitted) == score_of(near, name, Fitted(combination=combination))
    assert math.isnan(score_of(far, name, fitted))
    assert (is_foreign(near, fitted), is_foreign(far, fitted), is_foreign(far)) == (False, True, False)


@pytest.mark.parametrize("vector", [[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0], [1.0, 0.0]])
def test_an_embedding_of_no_direction_is_foreign(vector):
    prediction = Prediction(output="a", logits=LOGITS, embedding=np.array(vector, np.float32))
    assert is_foreign(prediction, VETO)
    assert math.isnan(score_of(prediction, "margin", VETO))


def test_without_a_veto_a_plain_signal_never_looks_at_the_neighbours():
    prediction = Prediction(output="a", logits=LOGITS, embedding=np.array([-1.0, -1.0, -1.0], np.float32))
    unreadable = Fitted(Neighbours(None, 1, math.inf))
    assert score_of(prediction, "margin", unreadable) == score_of(prediction, "margin")
    assert not is_foreign(prediction, unreadable)
    plain = ClassifierCombination(np.arange(7.0), 0.0, np.zeros(3))
    fitted = Fitted(unreadable.neighbours, combination=plain)
    assert score_of(prediction, "combined", fitted) == plain.score(prediction)


def test_a_combination_that_reads_neighbours_has_no_score_without_them():
    outcomes = Outcomes(np.zeros(3, np.int32), np.zeros(3, bool))
    combination = ClassifierCombination(np.arange(10.0), 0.0, np.zeros(3))
    prediction = Prediction(output="a", logits=LOGITS, embedding=np.array([5.0, 0.1, 0.0], np.float32))
    found = {
        "whole": score_of(prediction, "combined", Fitted(Neighbours(ROWS, 1, math.inf, outcomes), None, combination)),
        "no outcomes": score_of(prediction, "combined", Fitted(Neighbours(ROWS, 1, math.inf), None, combination)),
        "no neighbours": score_of(prediction, "combined", Fitted(None, None, combination)),
        "no embedding": score_of(
            Prediction(output="a", logits=LOGITS),
            "combined",
            Fitted(Neighbours(ROWS, 1, math.inf, outcomes), None, combination),
        ),
    }
    assert [name for name, score in found.items() if not math.isnan(score)] == ["whole"]


@pytest.mark.parametrize("fitted", [None, VETO])
def test_the_combined_signal_has_to_be_fitted(fitted):
    with pytest.raises(ConfigError, match="was not"):
        score_of(Prediction(output="a", logits=LOGITS), "combined", fitted)


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=5) | st.none(),
    st.none() | st.floats(0, 1),
    st.booleans(),
    st.sampled_from(["margin", "margin:temperature=1.5", "entropy", "max_logit", "first_margin"]),
)
def test_a_scorer_gives_the_very_score(logits, margin_of_graph, foreign, name):
    prediction = Prediction(
        output="a",
        logits=None if logits is None else np.array(logits, dtype=np.float32),
        margin=margin_of_graph,
        out_of_distribution=foreign,
    )
    with np.errstate(all="ignore"):
        expected, found = score_of(prediction, name), scorer(name)(prediction)
    assert np.array_equal(found, expected, equal_nan=True)
