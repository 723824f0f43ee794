"""What `edgewise predict` shows of each kind of model."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgewise.errors import InputError
from edgewise.jobs.predict import predict_items


def test_a_classifier_shows_label_and_score(tiny_text_bundle):
    (found,) = predict_items(tiny_text_bundle, ["wheat harvest"])
    assert found.output == "grain"
    assert 0.5 < found.score <= 1
    assert set(msgspec.to_builtins(found)) == {"input", "output", "signal", "score"}


def test_a_tagger_shows_its_entities(tiny_tagger_bundle):
    found, nothing = predict_items(tiny_tagger_bundle, ["the wheat tariff port", "the"])
    assert (found.output, nothing.output) == ("wheat tariff (GRAIN), port (SHIP)", "no entity")
    assert [(entity.start, entity.end) for entity in found.entities] == [(4, 16), (17, 21)]


def test_an_embedder_shows_the_beginning_of_its_vector_and_has_no_score(tiny_embedder_bundle, tiny_models):
    (found,) = predict_items(tiny_embedder_bundle, ["wheat"])
    np.testing.assert_allclose(found.vector, tiny_models.expected_embedding("wheat"), rtol=1e-5, atol=1e-7)
    assert found.output.startswith(f"[{found.vector[0]:.4f}, ")
    assert found.output.endswith(", …] (32 numbers)")
    assert np.isnan(found.score)
    assert msgspec.json.decode(msgspec.json.encode(found))["score"] is None


def test_an_item_that_cannot_be_read_is_named(tiny_tagger_bundle):
    with pytest.raises(InputError, match="no token"):
        predict_items(tiny_tagger_bundle, ["wheat", ""])
