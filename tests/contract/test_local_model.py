"""What every `LocalModel` must do, whatever it is made of. A new implementation joins by one entry below."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgewise.contracts import LocalModel
from edgewise.edge import EdgeModel
from edgewise.errors import InputError


@pytest.fixture(params=["text bundle", "image bundle"])
def case(request, tiny_models):
    """A model, items it reads, and items it must refuse."""
    if request.param == "text bundle":
        model = EdgeModel.load(request.getfixturevalue("tiny_text_bundle"))
        return model, list(tiny_models.TEXTS), [b"\x89PNG", np.zeros((8, 8), dtype=np.uint8), ""]
    model = EdgeModel.load(request.getfixturevalue("tiny_image_bundle"))
    return model, [np.full((8, 8), v, dtype=np.uint8) for v in (5, 120, 250)], ["a text", b"no image", np.zeros(3)]


def test_implements_the_protocol(case):
    assert isinstance(case[0], LocalModel)


def test_digest_labels_and_task_describe_it(case):
    model, _, _ = case
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", model.digest)
    assert len(set(model.labels)) == len(model.labels) >= 2
    assert model.task in ("text-classification", "image-classification")


def test_one_prediction_an_item_in_order(case):
    model, items, _ = case
    forwards, backwards = model.predict(items), model.predict(items[::-1])
    assert len(forwards) == len(items)
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert one.output == other.output
        np.testing.assert_array_equal(one.logits, other.logits)


def test_output_is_the_label_of_the_largest_logit(case):
    model, items, _ = case
    for prediction in model.predict(items):
        assert prediction.logits.shape == (len(model.labels),)
        assert prediction.logits.dtype == np.float32
        assert prediction.output == model.labels[int(prediction.logits.argmax())]


def test_items_do_not_influence_each_other(case):
    model, items, _ = case
    for item, together in zip(items, model.predict(items), strict=True):
        np.testing.assert_array_equal(model.predict([item])[0].logits, together.logits)


def test_nothing_in_nothing_out(case):
    assert case[0].predict([]) == []


def test_an_item_it_cannot_read_is_an_input_error(case):
    model, items, unreadable = case
    for item in unreadable:
        with pytest.raises(InputError):
            model.predict([items[0], item])
    assert len(model.predict(items)) == len(items), "an error must not spoil the model"


def test_what_it_returned_does_not_change_later(case):
    model, items, _ = case
    (first,) = model.predict(items[:1])
    kept = first.logits.copy()
    model.predict(items[1:])
    np.testing.assert_array_equal(first.logits, kept)
