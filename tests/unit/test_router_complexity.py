"""Complexity: what a text tells before any model runs, within bounded work."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import CertificateError, ConfigError
from edgewise.router.complexity import LEXICAL, MOST_WORDS, Complexity, cut_for_precision, features_of
from edgewise.router.complexity_fit import fit_complexity

EASY = ("play", "stop", "open", "close", "call")
HARD = ("prove", "derive", "integral", "theorem", "lemma")
SHARED = ("the", "a", "this", "that", "now", "please")


def texts(n=300, seed=0):
    """Texts of hard words are wrong nine times of ten, those of easy words once."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < 0.4
    made = [" ".join([*rng.choice(SHARED, 4), *rng.choice(HARD if is_hard else EASY, 2)]) for is_hard in hard]
    return made, rng.random(n) < np.where(hard, 0.95, 0.05)


@pytest.fixture(scope="module")
def fitted():
    return fit_complexity(*texts())


def test_hard_texts_score_above_easy_ones_and_beyond_the_cut(fitted):
    assert fitted.score("please prove that theorem") > 0.6 > 0.3 > fitted.score("please play that now")
    assert fitted.is_too_complex("prove this lemma derive the integral now")
    assert not fitted.is_too_complex("open the call please now")


def test_what_lies_above_the_cut_is_wrong_as_often_as_stated(fitted):
    made, wrong = texts(2000, seed=1)
    above = np.array([fitted.is_too_complex(text) for text in made])
    assert above.mean() > 0.3
    assert wrong[above].mean() > 0.8


def test_where_nothing_can_be_told_nothing_is_too_complex():
    made, _ = texts()
    blind = fit_complexity(made, np.random.default_rng(3).random(300) < 0.3)
    assert blind.cut == math.inf
    assert not blind.is_too_complex("prove this theorem")


def test_an_attribute_counts_where_it_was_named():
    rng = np.random.default_rng(0)
    law = rng.random(300) < 0.5
    attributes = [{"subject": "law" if is_law else "art", "user": str(at)} for at, is_law in enumerate(law)]
    found = fit_complexity(["the same words"] * 300, law, attributes=attributes, names=("subject",))
    score = {subject: found.score("the same words", {"subject": subject}) for subject in ("law", "art")}
    assert score["law"] > 0.9 > 0.1 > score["art"]
    assert score["art"] < found.score("the same words") < score["law"]
    assert found.score("the same words", {"user": "7"}) == found.score("the same words")


def test_only_texts_can_be_too_complex(fitted):
    always = Complexity(fitted.words, fitted.rarity, fitted.lexical, 50.0, 0.5, (), fitted.attribute_weights)
    assert always.is_too_complex("x")
    assert not always.is_too_complex(b"x")
    assert not always.is_too_complex(np.zeros((2, 2)))


@given(st.text(max_size=300))
def test_every_text_has_a_probability(text):
    weights = np.linspace(-1, 1, 4096)
    found = Complexity(weights, np.ones(4096), np.full(len(LEXICAL), 0.1), -1.0, 0.5, (), np.zeros(1024))
    assert 0.0 <= found.score(text) <= 1.0
    assert found.score(text) == found.score(text)


@pytest.mark.parametrize("text", ["", " \n", "\ud800 lone", "ﬁ ß İ", "?" * 10_000])
def test_odd_texts_have_a_probability(fitted, text):
    assert 0.0 <= fitted.score(text) <= 1.0


def test_the_work_is_bounded_by_the_first_words():
    long = "word " * 100_000
    assert features_of(long) == features_of(long[: 16 * MOST_WORDS])
    assert len(features_of(long).buckets) == 2 * MOST_WORDS - 1


def test_a_pair_of_words_is_more_than_its_words():
    assert set(features_of("dog bites man").buckets) != set(features_of("man bites dog").buckets)


scored = st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.6, 0.9]), st.booleans()), min_size=1, max_size=12)


@given(scored, st.sampled_from([0.5, 0.8, 1.0]))
def test_the_cut_is_the_lowest_that_keeps_the_precision(items, precision):
    scores, wrong = (np.array(column) for column in zip(*items, strict=True))
    cut = cut_for_precision(scores, wrong, precision, least=2)
    good = [
        candidate
        for candidate in (-math.inf, 0.1, 0.4, 0.6)
        if (above := scores > candidate).sum() >= 2 and wrong[above].sum() >= precision * above.sum()
    ]
    if not good:
        assert cut == math.inf
    else:
        assert (scores > cut).tolist() == (scores > min(good)).tolist()


@pytest.mark.parametrize("precision", [0.0, -1.0, 1.1, math.nan])
def test_a_precision_outside_its_range_is_refused(precision):
    with pytest.raises(ConfigError, match="precision"):
        fit_complexity(*texts(), precision=precision)


def test_too_few_texts_and_losses_of_others_are_refused():
    made, wrong = texts()
    with pytest.raises(CertificateError, match="50 are needed"):
        fit_complexity(made[:49], wrong[:49])
    with pytest.raises(CertificateError, match="300 texts go with 299"):
        fit_complexity(made, wrong[1:])
    with pytest.raises(CertificateError, match="300 texts"):
        fit_complexity(made, wrong, attributes=[{}], names=("subject",))
