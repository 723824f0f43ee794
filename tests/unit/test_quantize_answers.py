"""Named arrays of answers: taken from a model, put back in order, kept in a file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.edge import EdgeModel
from edgewise.errors import DataError
from edgewise.quantize.answers import answers_of, finite, join, load, per_item, save

counts = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def tagged(items: list[int], numbers: list[int]) -> dict[str, np.ndarray]:
    """Answers of a tagger to these items, each row the item's number and the word's place in it."""
    rows = [[number, place] for number, count in zip(numbers, items, strict=True) for place in range(count)]
    return {"logits": np.array(rows, dtype=np.float32).reshape(-1, 2), "words": np.array(items)}


@given(counts, st.integers(1, 5))
def test_ragged_answers_of_rounds_come_back_in_the_order_of_the_data(items, rounds):
    rounds = min(rounds, len(items))
    numbers = list(range(len(items)))
    parts = [tagged(items[start::rounds], numbers[start::rounds]) for start in range(rounds)]
    whole, expected = join(parts, len(items)), tagged(items, numbers)
    assert whole.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(whole[name], expected[name])


@given(st.integers(1, 20), st.integers(1, 5))
def test_answers_of_one_row_an_item_come_back_in_the_order_of_the_data(count, rounds):
    rounds = min(rounds, count)
    logits = np.arange(2 * count).reshape(count, 2)
    parts = [{"logits": logits[start::rounds]} for start in range(rounds)]
    np.testing.assert_array_equal(join(parts, count)["logits"], logits)


def test_a_generators_sample_keeps_the_order_of_the_rounds():
    parts = [
        {"nll": np.array([0.0, 0.1, 2.0]), "tokens": np.array([2, 1]), "logprobs": np.array([[0.0], [0.1]])},
        {"nll": np.array([1.0]), "tokens": np.array([1]), "logprobs": np.array([[1.0]])},
    ]
    whole = join(parts, 3)
    np.testing.assert_array_equal(whole["nll"], [0.0, 0.1, 1.0, 2.0])
    np.testing.assert_array_equal(whole["tokens"], [2, 1, 1])
    np.testing.assert_array_equal(whole["logprobs"], [[0.0], [0.1], [1.0]])


@given(counts)
def test_rows_are_split_by_item(items):
    answers = tagged(items, list(range(len(items))))
    rows = per_item(answers["logits"], answers["words"])
    assert [len(row) for row in rows] == items
    assert all((row[:, 0] == number).all() for number, row in enumerate(rows))


def test_a_classifier_answers_with_a_row_of_logits_an_item(tiny_text_bundle, tiny_models):
    answers = answers_of(EdgeModel.load(tiny_text_bundle), tiny_models.TEXTS)
    expected = [tiny_models.expected_logits(text) for text in tiny_models.TEXTS]
    assert set(answers) == {"logits"}
    np.testing.assert_allclose(answers["logits"], expected, rtol=1e-5)


def test_answers_survive_their_file(tmp_path):
    answers = {
        "nll": np.array([1.5, 2.5], np.float32),
        "tokens": np.array([2]),
        "logprobs": np.zeros((1, 4), np.float16),
    }
    save(tmp_path / "a.npz", answers)
    found = load(tmp_path / "a.npz")
    assert {name: (values.dtype, values.tolist()) for name, values in found.items()} == {
        name: (values.dtype, values.tolist()) for name, values in answers.items()
    }


def test_a_file_that_needs_pickle_or_is_damaged_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", logits=np.array([{}], dtype=object))
    (tmp_path / "short.npz").write_bytes((tmp_path / "objects.npz").read_bytes()[:40])
    (tmp_path / "text.npz").write_text("no arrays")
    for name in ("objects", "short", "text", "absent"):
        with pytest.raises(DataError, match=rf"{name}\.npz cannot be read"):
            load(tmp_path / f"{name}.npz")


def test_nan_and_infinity_are_found_but_an_impossible_token_is_none():
    fine = {"nll": np.array([1.0]), "logprobs": np.array([[0.0, -np.inf]], np.float16)}
    assert finite(fine)
    for bad in (np.nan, np.inf, -np.inf):
        assert not finite({**fine, "nll": np.array([1.0, bad])})
    assert not finite({**fine, "logprobs": np.array([[np.nan, 0.0]])})
    assert not finite({**fine, "logprobs": np.array([[np.inf, 0.0]])})


def test_a_tagger_answers_with_a_row_of_logits_a_word(tiny_tagger_bundle, tiny_models):
    texts = ["wheat harvest rose", "port", "tariff deficit fell today"]
    answers = answers_of(EdgeModel.load(tiny_tagger_bundle), texts)
    assert answers["words"].tolist() == [3, 1, 4]
    expected = np.concatenate([tiny_models.expected_tags(text) for text in texts])
    np.testing.assert_allclose(answers["logits"], expected, rtol=1e-4, atol=1e-5)


def test_an_embedder_answers_with_a_vector_an_item(tiny_embedder_bundle, tiny_models):
    answers = answers_of(EdgeModel.load(tiny_embedder_bundle), tiny_models.TEXTS)
    expected = [tiny_models.expected_embedding(text) for text in tiny_models.TEXTS]
    np.testing.assert_allclose(answers["embedding"], expected, rtol=1e-4, atol=1e-5)
