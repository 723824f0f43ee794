"""What every `LocalModel` must do, whatever it is made of. A new implementation joins by one entry below."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from edgewise.bundle import KINDS
from edgewise.contracts import LocalModel
from edgewise.edge import EdgeModel
from edgewise.errors import InputError

NO_TEXTS = [b"\x89PNG", np.zeros((8, 8), dtype=np.uint8), ""]
NO_IMAGES = ["a text", b"no image", np.zeros(3)]
IMAGES = [np.full((8, 8), value, dtype=np.uint8) for value in (5, 120, 250)]


@pytest.fixture(params=["text", "image", "tagger", "embedder"])
def case(request, tiny_models):
    """A model, items it reads, and items it must refuse."""
    model = EdgeModel.load(request.getfixturevalue(f"tiny_{request.param}_bundle"))
    if request.param == "image":
        return model, IMAGES, NO_IMAGES
    return model, list(tiny_models.TAGGED if request.param == "tagger" else tiny_models.TEXTS), NO_TEXTS


def numbers(prediction):
    """What stands behind the output."""
    return prediction.embedding if prediction.logits is None else prediction.logits


def test_implements_the_protocol(case):
    assert isinstance(case[0], LocalModel)


def test_digest_labels_and_task_describe_it(case):
    model, _, _ = case
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", model.digest)
    assert len(set(model.labels)) == len(model.labels)
    assert (KINDS[model.task] == "embedder") == (not model.labels)


def test_one_prediction_an_item_in_order(case):
    model, items, _ = case
    forwards, backwards = model.predict(items), model.predict(items[::-1])
    assert len(forwards) == len(items)
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert one.output == other.output
        np.testing.assert_array_equal(numbers(one), numbers(other))


def test_the_output_is_what_the_kind_promises(case):
    model, items, _ = case
    for prediction in model.predict(items):
        assert numbers(prediction).dtype == np.float32
        if model.labels:
            assert prediction.logits.shape == (len(model.labels),)
        KEEPS[KINDS[model.task]](model, prediction)


def keeps_to_a_label(model, prediction):
    assert prediction.output == model.labels[int(prediction.logits.argmax())]


def keeps_to_entities(model, prediction):
    for entity in json.loads(prediction.output):
        assert list(entity) == ["start", "end", "label", "text"]
        assert any(label.endswith(entity["label"]) for label in model.labels)


def keeps_to_a_vector(model, prediction):
    assert prediction.logits is None
    assert prediction.output == tuple(prediction.embedding.tolist())


KEEPS = {"classifier": keeps_to_a_label, "tagger": keeps_to_entities, "embedder": keeps_to_a_vector}


def test_items_do_not_influence_each_other(case):
    model, items, _ = case
    for item, together in zip(items, model.predict(items), strict=True):
        np.testing.assert_array_equal(numbers(model.predict([item])[0]), numbers(together))


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
    kept = numbers(first).copy()
    model.predict(items[1:])
    np.testing.assert_array_equal(numbers(first), kept)


def test_its_golden_items_hold(case):
    case[0].check_golden()
