"""What a model of each kind should answer, read off labelled items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.contracts import Example
from edgewise.errors import DataError
from edgewise.quantize.items import truth_of

TAGS = ("O", "B-PER", "I-PER")
DATA = Path("tagged.jsonl")


def test_a_classifier_has_one_index_an_item():
    found = truth_of("classifier", [Example("a", "I-PER"), Example("b", "O")], TAGS, DATA)
    np.testing.assert_array_equal(found, [2, 0])


def test_a_tagger_has_one_index_a_word():
    examples = [Example("Alice Smith left", "B-PER I-PER O"), Example("no\u00a0break", "O")]
    assert [indices.tolist() for indices in truth_of("tagger", examples, TAGS, DATA)] == [[1, 2, 0], [0]]


@pytest.mark.parametrize("kind", ["embedder", "generator"])
def test_without_labels_there_is_no_truth(kind):
    assert truth_of(kind, [Example("a", "whatever"), Example("b")], (), DATA) is None


@pytest.mark.parametrize(
    ("examples", "match"),
    [
        ([Example("a b", "O O"), Example("a b", "O")], r"Item 2 of tagged\.jsonl has 2 words and 1 labels"),
        ([Example("a", "O"), Example("a b", "O ORG"), Example("a", "LOC")], r"Item 2 .* 'ORG' \(and 1 other labels\)"),
        ([Example("a", "O"), Example("a")], "1 of 2 items of .* have no label"),
    ],
)
def test_labels_that_do_not_fit_the_words_are_refused(examples, match):
    with pytest.raises(DataError, match=match) as caught:
        truth_of("tagger", examples, TAGS, DATA)
    assert caught.value.remedy
