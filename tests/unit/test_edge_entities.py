"""Words, their first tokens, and what their labels amount to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.edge.entities import Words, entities

LABELS = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "S-A", "E-A", "PLAIN", "x-y"])


def told(text, labels):
    return [(found.text, found.label) for found in entities(text, Words.of(text), labels.split())]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O O O", []),
        ("B-A I-A O", [("a b", "A")]),
        ("B-A B-A O", [("a", "A"), ("b", "A")]),
        ("I-A I-A B-A", [("a b", "A"), ("c", "A")]),
        ("B-A I-B I-B", [("a", "A"), ("b c", "B")]),
        ("I-A O I-A", [("a", "A"), ("c", "A")]),
        ("B-A L-A U-A", [("a b", "A"), ("c", "A")]),
        ("PLAIN PLAIN O", [("a b", "PLAIN")]),
        ("x-y x-y z-y", [("a b", "x-y"), ("c", "z-y")]),
        ("B- B- -A", [("a b", "B-"), ("c", "-A")]),
    ],
)
def test_labels_amount_to_entities(labels, expected):
    assert told("a b c", labels) == expected


@given(words=st.lists(st.tuples(st.text("ab\u00a0é", min_size=1, max_size=4), LABELS), max_size=8))
def test_every_labelled_word_is_in_exactly_one_entity(words):
    text = " ".join(word for word, _ in words)
    spans = Words.of(text)
    assert [text[start:end] for start, end in spans.spans] == [word for word, _ in words]
    found = entities(text, spans, [label for _, label in words])
    for (start, end), (_, label) in zip(spans.spans, words, strict=True):
        covering = [entity for entity in found if entity.start <= start and end <= entity.end]
        assert len(covering) == (label != "O")
    assert all(text[entity.start : entity.end] == entity.text for entity in found)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([(0, 0), (0, 2), (3, 5), (6, 8), (0, 0)], [(0, 1), (1, 2), (2, 3)]),
        ([(0, 1), (1, 2), (3, 4), (4, 5), (6, 8)], [(0, 0), (1, 2), (2, 4)]),
        ([(0, 2), (2, 5), (5, 8)], [(0, 0), (1, 1), (2, 2)]),
        ([(0, 5), (6, 8)], [(0, 0), (2, 1)]),
        ([(0, 2)], [(0, 0)]),
        ([(6, 8)], [(2, 0)]),
        ([], []),
    ],
    ids=["special tokens", "pieces", "leading blanks", "one token over two words", "cut off", "dropped", "none"],
)
def test_the_first_token_of_each_word(tokens, expected):
    assert list(Words.of("ab cd ef").first_tokens(tokens)) == expected
