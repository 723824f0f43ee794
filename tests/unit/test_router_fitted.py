"""What is fitted on the tuning part: isotonic and logistic regression against scikit-learn, neighbours, the file."""

import io
import math
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from edgewise.contracts import Prediction
from edgewise.errors import CertificateError
from edgewise.router import fitted as files
from edgewise.router.combination import (
    CLASSIFIER_FEATURES,
    FOLDS,
    RIDGES,
    ClassifierCombination,
    classifier_features,
    cross_fitted,
    fit_combination,
)
from edgewise.router.complexity_fit import fit_complexity
from edgewise.router.fitted import Fitted, decode, digest, encode
from edgewise.router.isotonic import fit_isotonic, pool_adjacent_violators
from edgewise.router.logistic import fit_logistic
from edgewise.router.neighbours import Neighbours, Outcomes, embeddings_of, fit_neighbours, kept_rows
from edgewise.router.ranking import aurc, auroc
from edgewise.router.signals import SIGNALS, score_of

points = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), st.floats(0.5, 4)), min_size=1, max_size=30)


@given(points)
def test_pooling_is_scikit_learn_s_isotonic_regression(found):
    _, values, weights = (np.array(column) for column in zip(*found, strict=True))
    means, sizes = pool_adjacent_violators(values, weights)
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), values, sample_weight=weights)
    np.testing.assert_allclose(np.repeat(means, sizes), expected, atol=1e-9)
    assert (np.diff(means) > 0).all()


@given(points)
def test_an_isotonic_curve_never_falls_and_is_finite(found):
    at, values, _ = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    curve = fit_isotonic(at, values)
    assert (np.diff(curve(np.linspace(-1, 10, 50))) >= 0).all()
    assert np.isfinite(curve(at)).all()
    assert np.isnan(curve(np.array([np.nan]))).all()


def test_logistic_regression_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(300, 4))
    target = rng.random(300) < 1 / (1 + np.exp(-(columns @ [1.0, -2.0, 0.5, 0.0])))
    groups = rng.integers(0, 6, 300)
    found = fit_logistic(columns, target, groups, 6, ridge=2.0)
    # An own column a group, and an intercept whose penalty is ridge 0.01: a constant of sqrt(2 / 0.01).
    whole = np.column_stack([columns, np.eye(6)[groups], np.full(300, math.sqrt(2.0 / 0.01))])
    reference = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=1000).fit(whole, target).coef_[0]
    np.testing.assert_allclose(found.weights, reference[:4], atol=1e-4)
    np.testing.assert_allclose(found.effects, reference[4:10], atol=1e-4)
    assert found.intercept == pytest.approx(reference[10] * math.sqrt(200.0), abs=1e-3)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_logistic_regression_ends_where_nothing_separates(all_of_them):
    found = fit_logistic(np.zeros((50, 1)), np.full(50, all_of_them), np.zeros(50, np.intp), 1, ridge=1.0)
    assert np.isfinite([found.intercept, *found.weights, *found.effects]).all()
    assert (found.intercept > 0) == all_of_them


# combination


def classified(n=400, classes=5, *, seed=0, width=8):
    """Predictions whose class 0 is wrong half of the time, whatever the logits say; the others when they are close."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (n, classes)).astype(np.float32)
    chosen = rng.integers(0, classes, n)
    logits[np.arange(n), chosen] += rng.exponential(3, n).astype(np.float32)
    embeddings = rng.normal(0, 1, (n, width)).astype(np.float32)
    predictions = [
        Prediction(output=str(row.argmax()), logits=row, embedding=vector)
        for row, vector in zip(logits, embeddings, strict=True)
    ]
    sure = SIGNALS["margin"](logits)
    wrong = rng.random(n) < np.where(logits.argmax(axis=1) == 0, 0.5, 0.4 * (1 - sure))
    return predictions, wrong


def test_features_are_the_signals_of_their_names():
    logits = np.random.default_rng(0).normal(0, 4, (20, 7)).astype(np.float32)
    features = dict(zip(CLASSIFIER_FEATURES, classifier_features(logits).T, strict=True))
    ordered = np.sort(logits, axis=1)
    np.testing.assert_allclose(features.pop("gap"), ordered[:, -1] - ordered[:, -2], atol=1e-6)
    for name, values in features.items():
        np.testing.assert_allclose(values, SIGNALS[name](logits), atol=1e-9, err_msg=name)


def test_one_class_and_ruled_out_classes_have_features():
    assert np.isfinite(classifier_features(np.array([[3.0]], np.float32))).all()
    assert np.isfinite(classifier_features(np.array([[1.0, 0.0, -1e30]], np.float32))).all()
    assert np.isnan(classifier_features(np.array([[np.nan, 0.0]], np.float32))).any()


def test_the_combination_learns_what_no_single_signal_shows():
    combination = fit_combination(*classified())
    predictions, wrong = classified(seed=1)
    combined = np.array([combination.score(prediction) for prediction in predictions])
    margins = np.array([score_of(prediction, "margin") for prediction in predictions])
    assert auroc(combined, wrong) > auroc(margins, wrong) + 0.02
    assert combination.effects[0] < min(combination.effects[1:])


def neighbours_of(predictions, wrong, *, seed=0):
    """The neighbours with outcomes, the reference's answers as good as random where the edge is wrong."""
    strange = np.random.default_rng(seed).integers(-1, 5, len(wrong))
    answers = np.where(wrong, strange, [int(prediction.output) for prediction in predictions])
    return fit_neighbours(embeddings_of(predictions), Outcomes(answers.astype(np.int32), wrong))


def test_the_combination_reads_what_lies_around_where_it_was_fitted_with_outcomes():
    predictions, wrong = classified()
    neighbours = neighbours_of(predictions, wrong)
    combination = fit_combination(predictions, wrong, neighbours=neighbours)
    assert combination.reads_neighbours
    assert len(combination.weights) == len(CLASSIFIER_FEATURES) + 3
    assert math.isnan(combination.score(predictions[0]))
    fitted = Fitted(neighbours, combination=combination)
    around = neighbours.around(predictions[0].embedding, int(predictions[0].output))
    assert score_of(predictions[0], "combined", fitted) == combination.score(predictions[0], around)
    plain = fit_combination(predictions, wrong, neighbours=fit_neighbours(embeddings_of(predictions)))
    assert not plain.reads_neighbours
    assert plain.weights.tolist() == fit_combination(predictions, wrong).weights.tolist()


def test_what_lies_around_tells_of_mistakes_that_the_logits_hide():
    """The edge is wrong in half of the directions, however sure it is."""

    def drawn(seed):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(400, 3)).astype(np.float32)
        logits = rng.normal(0, 2, (400, 5)).astype(np.float32)
        predictions = [
            Prediction(output=str(row.argmax()), logits=row, embedding=vector)
            for row, vector in zip(logits, vectors, strict=True)
        ]
        return predictions, rng.random(400) < np.where(vectors[:, 0] > 0, 0.6, 0.05)

    predictions, wrong = drawn(0)
    neighbours = neighbours_of(predictions, wrong).without_veto()
    fitted = Fitted(neighbours, combination=fit_combination(predictions, wrong, neighbours=neighbours))
    others, truth = drawn(1)
    combined = np.array([score_of(prediction, "combined", fitted) for prediction in others])
    margins = np.array([score_of(prediction, "margin") for prediction in others])
    assert auroc(combined, truth) > auroc(margins, truth) + 0.2


@pytest.mark.parametrize("reads", [True, False])
def test_cross_fitting_is_a_fit_to_the_other_folds_item_by_item(reads):
    predictions, wrong = classified(150)
    neighbours = neighbours_of(predictions, wrong) if reads else None
    tried = []
    for ridge in RIDGES:
        scores = np.empty(150)
        for fold in range(FOLDS):
            others = [at for at in range(150) if at % FOLDS != fold]
            known = [predictions[at] for at in others]
            found = fit_combination(known, wrong[others], neighbours=neighbours, ridge=ridge)
            for at in range(fold, 150, FOLDS):
                around = neighbours and neighbours.around_left_out(
                    predictions[at].embedding, int(predictions[at].output)
                )
                scores[at] = found.score(predictions[at], around)
        tried.append(scores)
    expected = min(tried, key=lambda scores: aurc(scores, wrong))
    np.testing.assert_allclose(cross_fitted(predictions, wrong, neighbours=neighbours), expected, atol=1e-9)


def test_a_combination_scores_no_other_model_and_no_nan():
    combination = fit_combination(*classified())
    assert math.isnan(combination.score(Prediction(output="a", logits=np.zeros(6, np.float32))))
    assert math.isnan(combination.score(Prediction(output="a")))
    assert math.isnan(combination.score(Prediction(output="a", logits=np.full(5, np.nan, np.float32))))


def generated(n=300, *, seed=0):
    """Texts whose tokens are the likelier the longer they are, right by what is left."""
    rng = np.random.default_rng(seed)
    predictions, wrong = [], []
    for _ in range(n):
        tokens, doubt = int(rng.integers(2, 60)), rng.exponential(0.5)
        logprobs = -rng.exponential(doubt + 2.0 / np.log(tokens + 1), tokens)
        margin = float(np.clip(rng.normal(0.8 - 0.4 * doubt, 0.1), 0, 1))
        predictions.append(Prediction(output="x", token_logprobs=logprobs.astype(np.float32), margin=margin))
        wrong.append(rng.random() < 1 / (1 + np.exp(3 - 4 * doubt)))
    return predictions, np.array(wrong)


def test_the_combination_of_a_generator_beats_its_mean_probability():
    combination = fit_combination(*generated())
    predictions, wrong = generated(seed=1)
    combined = np.array([combination.score(prediction) for prediction in predictions])
    mean = np.array([score_of(prediction, "mean_logprob") for prediction in predictions])
    assert auroc(combined, wrong) > auroc(mean, wrong)
    assert len(np.unique(combined)) > 0.9 * len(combined)  # the line between the steps leaves few ties
    assert math.isnan(combination.score(Prediction(output="", token_logprobs=np.array([], np.float32), margin=0.5)))
    assert math.isnan(combination.score(Prediction(output="x", token_logprobs=np.array([-1.0]))))


@pytest.mark.parametrize("predictions", [classified(19)[0], generated(19)[0], [Prediction(output=(1.0,))] * 30])
def test_too_few_items_with_a_score_are_refused(predictions):
    with pytest.raises(CertificateError, match="20 are needed"):
        fit_combination(predictions, np.zeros(len(predictions), bool))


def test_losses_of_other_items_are_refused():
    with pytest.raises(CertificateError, match="400 predictions go with 1"):
        fit_combination(classified()[0], [True])


# neighbours


def test_distances_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    rows, query = rng.normal(size=(40, 6)), rng.normal(size=6)
    neighbours = fit_neighbours(rows, k=3)
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines)
    assert neighbours.distance(query) == pytest.approx(1 - cosines[order[2]], abs=1e-6)
    assert [row for row, _ in neighbours.nearest(query, 5)] == order[:5].tolist()
    assert neighbours.nearest(query, 1)[0][1] == pytest.approx(1 - cosines[order[0]], abs=1e-6)


def around_by_brute_force(rows, answers, wrong, k, query, predicted):
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    nearest = sorted(range(len(rows)), key=lambda row: -cosines[row])[:k]
    weights = [max(cosines[row], 0) ** 4 for row in nearest]
    vote = sum(weight for weight, row in zip(weights, nearest, strict=True) if answers[row] == predicted)
    errors = sum(weight for weight, row in zip(weights, nearest, strict=True) if wrong[row])
    total = sum(weights) or 1.0
    return 1 - cosines[nearest[-1]], vote / total, errors / total


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(-1, 3))
def test_what_lies_around_is_that_of_brute_force(seed, k, predicted):
    rng = np.random.default_rng(seed)
    rows, query = rng.normal(size=(15, 4)), rng.normal(size=4)
    answers, wrong = rng.integers(-1, 4, 15).astype(np.int32), rng.random(15) < 0.4
    neighbours = fit_neighbours(rows, Outcomes(answers, wrong), k=k)
    expected = around_by_brute_force(rows, answers, wrong, k, query, predicted)
    assert neighbours.around(query, predicted) == pytest.approx(expected, abs=1e-5)
    assert neighbours.around(query, predicted).distance == pytest.approx(neighbours.distance(query), abs=1e-6)
    # A row of its own stands as if it were not there, one that was never kept as it is.
    others = np.arange(15) != 6
    expected = around_by_brute_force(rows[others], answers[others], wrong[others], k, rows[6], predicted)
    assert neighbours.around_left_out(rows[6], predicted) == pytest.approx(expected, abs=1e-5)
    assert neighbours.distance_left_out(rows[6]) == pytest.approx(expected[0], abs=1e-5)
    assert neighbours.around_left_out(query, predicted) == neighbours.around(query, predicted)


def test_nobody_votes_where_all_stand_at_right_angles_and_nothing_lies_around_nowhere():
    neighbours = Neighbours(np.eye(3, dtype=np.float32)[:2], 1, 0.5, Outcomes(np.zeros(2, np.int32), np.ones(2, bool)))
    assert neighbours.around(np.array([0.0, 0.0, 1.0]), 0) == (1.0, 0.0, 0.0)
    for vector in (np.zeros(3), np.ones(2), np.full(3, np.nan)):
        assert all(math.isnan(value) for value in neighbours.around(vector, 0))
        assert all(math.isnan(value) for value in neighbours.around_left_out(vector, 0))
    bare = Neighbours(neighbours.embeddings, 1, 0.5).around(np.array([1.0, 0.0, 0.0]), 0)
    assert bare.distance == 0.0
    assert math.isnan(bare.vote)


def test_without_a_veto_nothing_is_foreign_and_the_features_stay():
    rows = np.random.default_rng(0).normal(size=(30, 3))
    neighbours = fit_neighbours(rows, Outcomes(np.zeros(30, np.int32), np.zeros(30, bool)))
    free = neighbours.without_veto()
    assert (neighbours.vetoes, free.vetoes) == (True, False)
    assert neighbours.is_foreign(np.zeros(3))
    assert not free.is_foreign(np.zeros(3))
    assert free.around(rows[0], 0) == neighbours.around(rows[0], 0)


def test_the_cut_leaves_the_stated_share_of_the_tuning_part_inside():
    rows = np.random.default_rng(1).normal(size=(500, 8))
    neighbours = fit_neighbours(rows, k=5, quantile=0.95)
    outside = sum(neighbours.distance_left_out(row) > neighbours.cut + 1e-6 for row in rows)
    assert outside == 24  # the cut is a distance of the sample, 24 of 500 lie above it
    assert neighbours.is_foreign(np.zeros(8))


def test_more_embeddings_than_are_kept_are_thinned_evenly():
    assert kept_rows(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert kept_rows(9, 3).tolist() == [0, 4, 8]
    rows, numbers = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60, dtype=np.int32)
    found = fit_neighbours(rows, Outcomes(numbers, numbers % 2 == 0), most=20)
    assert len(found.embeddings) == 20
    assert found.outcomes.answers.tolist() == kept_rows(60, 20).tolist()
    assert found.outcomes.wrong.tolist() == (kept_rows(60, 20) % 2 == 0).tolist()


@pytest.mark.parametrize("rows", [np.ones((1, 3)), np.zeros((5, 3)), np.full((5, 3), np.nan), np.ones(3)])
def test_embeddings_that_have_no_direction_are_refused(rows):
    with pytest.raises(CertificateError):
        fit_neighbours(rows)


def test_embeddings_are_taken_from_items_in_distribution_that_all_have_one():
    vector = np.ones(2, np.float32)
    inside, outside, bare = (
        Prediction(output="a", embedding=vector),
        Prediction(output="a", embedding=vector, out_of_distribution=True),
        Prediction(output="a"),
    )
    assert embeddings_of([inside, outside]).shape == (1, 2)
    assert embeddings_of([inside, bare]) is None
    assert embeddings_of([]) is None


# the file

TEXTS = [f"item {number} asks about the {'law' if number % 3 else 'weather'}?" for number in range(60)]


@pytest.fixture(scope="module")
def whole():
    predictions, wrong = classified()
    neighbours = neighbours_of(predictions, wrong)
    complexity = fit_complexity(
        TEXTS,
        [number % 3 == 0 for number in range(60)],
        attributes=[{"subject": "law"}] * 60,
        names=("subject",),
        ridges=(1.0,),
    )
    return Fitted(neighbours, complexity, fit_combination(predictions, wrong, neighbours=neighbours))


def test_what_was_written_is_read_and_decides_the_same(whole):
    data = encode(whole)
    back = decode(data)
    assert encode(back) == data
    for prediction in classified(20, seed=3)[0]:
        assert score_of(prediction, "combined", back) == pytest.approx(
            score_of(prediction, "combined", whole), nan_ok=True, abs=0
        )
    assert back.complexity.score(TEXTS[0], {"subject": "law"}) == whole.complexity.score(TEXTS[0], {"subject": "law"})
    assert back.complexity.cut == whole.complexity.cut


def test_a_generator_s_combination_and_nothing_at_all_are_read_back():
    predictions, wrong = generated(50)
    combination = fit_combination(predictions, wrong)
    back = decode(encode(Fitted(combination=combination)))
    assert [back.combination.score(p) for p in predictions] == [combination.score(p) for p in predictions]
    nothing = decode(encode(Fitted()))
    assert (nothing.neighbours, nothing.complexity, nothing.combination) == (None, None, None)


def test_the_same_values_give_the_same_bytes_at_any_time(whole, monkeypatch):
    before = encode(whole)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert encode(whole) == before
    assert digest(before).startswith("sha256:")
    assert digest(before) != digest(encode(Fitted()))


def test_the_file_is_an_npz_without_pickles(whole):
    with np.load(io.BytesIO(encode(whole)), allow_pickle=False) as archive:
        assert set(archive.files) >= {"version", "neighbours.embeddings", "complexity.words", "classifier.weights"}


def changed(fitted, **arrays):
    """The file with some arrays replaced, or left out where None is given; dots in names are spelled '__'."""
    with np.load(io.BytesIO(encode(fitted))) as archive:
        found = dict(archive)
    for name, array in arrays.items():
        found[name.replace("__", ".")] = array
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in found.items() if array is not None})
    return stream.getvalue()


@pytest.mark.parametrize(
    "arrays",
    [
        {"version": np.array(2)},
        {"version": None},
        {"version": np.array("one")},
        {"neighbours__k": np.array(0)},
        {"neighbours__k": np.array(400)},
        {"neighbours__cut": np.array(np.nan)},
        {"neighbours__embeddings": np.ones((400, 8), np.float32)},
        {"neighbours__embeddings": np.ones((400, 8))},
        {"neighbours__embeddings": np.full((400, 8), np.nan, np.float32)},
        {"neighbours__answers": None},
        {"neighbours__answers": np.zeros(400)},
        {"neighbours__answers": np.zeros(399, np.int32)},
        {"neighbours__wrong": None},
        {"neighbours__wrong": np.full(400, 2, np.int8)},
        {"complexity__words": np.zeros(5)},
        {"complexity__attributes": np.array([1.0])},
        {"classifier__weights": np.zeros(3)},
        {"classifier__weights": np.zeros(8)},
        {"classifier__effects": None},
        {"generator__length": np.zeros(2)},
        {"surprise": np.zeros(2)},
    ],
    ids=str,
)
def test_a_damaged_file_is_refused_with_what_to_do(whole, arrays):
    with pytest.raises(CertificateError) as caught:
        decode(changed(whole, **arrays))
    assert caught.value.remedy


@given(st.data())
def test_no_bytes_do_more_than_be_refused(data):
    good = encode(Fitted(combination=ClassifierCombination(np.arange(7.0), 0.0, np.zeros(3))))
    at, value = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    bad = data.draw(st.sampled_from([good[:at], good[:at] + bytes([value]) + good[at + 1 :], bytes([value]) * at]))
    try:
        found = decode(bad)
    except CertificateError as error:
        found = error
    assert isinstance(found, Fitted) or found.remedy


def test_a_header_that_promises_more_than_there_is_takes_no_memory():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
        archive.writestr("version.npy", header.getvalue())
    with pytest.raises(CertificateError, match="damaged"):
        decode(stream.getvalue())


def test_compressed_and_oversized_files_are_refused(whole, monkeypatch):
    stream = io.BytesIO()
    np.savez_compressed(stream, version=np.array(1))
    with pytest.raises(CertificateError, match="compressed"):
        decode(stream.getvalue())
    monkeypatch.setattr(files, "LARGEST_BYTES", 100)
    with pytest.raises(CertificateError, match="100 are allowed"):
        decode(encode(whole))


def test_a_pickle_inside_is_never_loaded():
    stream = io.BytesIO()
    np.savez(stream, version=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CertificateError, match="damaged"):
        decode(stream.getvalue())


def test_neighbours_of_the_file_are_those_of_memory():
    rows = np.eye(3, dtype=np.float32)
    back = decode(encode(Fitted(Neighbours(rows, 2, 0.5)))).neighbours
    assert (back.k, back.cut) == (2, 0.5)
    assert np.array_equal(back.embeddings, rows)
    assert back.outcomes is None


def test_outcomes_and_an_endless_cut_are_read_back():
    outcomes = Outcomes(np.array([2, -1, 0], np.int32), np.array([True, False, False]))
    back = decode(encode(Fitted(Neighbours(np.eye(3, dtype=np.float32), 2, math.inf, outcomes)))).neighbours
    assert back.cut == math.inf
    assert back.outcomes.answers.tolist() == [2, -1, 0]
    assert back.outcomes.wrong.tolist() == [True, False, False]


def crafted(header, body=b""):
    """A file with one array of this header."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("version.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body)
    return stream.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (((((, }\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 9999999999,), }\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1 2), }\n",
        b"{'descr': '<f3', 'fortran_order': False, 'shape': (), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n",
        b"{'descr': '<U1', 'fortran_order': False, 'shape': (2,), }\n",
    ],
)
def test_a_crafted_header_is_refused(header):
    with pytest.raises(CertificateError, match="damaged"):
        decode(crafted(header, b"\xff" * 8))


@pytest.mark.parametrize("version", [math.inf, -3.0, 0.5, 2.0])
def test_another_format_is_refused(version):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n"
    with pytest.raises(CertificateError, match="format"):
        decode(crafted(header, np.float64(version).tobytes()))
