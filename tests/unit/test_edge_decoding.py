"""Tokens back to text: half characters wait, and bytes that are no character end no stream."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgewise.edge.decoding import TextStream

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = Tokenizer(models.BPE({letter: index for index, letter in enumerate(LETTERS)}, []))
BYTES.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES.decoder = decoders.ByteLevel()

# Words, and bytes for what is none: the kind of Llama 2, Mistral and TinyLlama.
NAMES = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "▁a", "b", "▁the", "é", "."]
FALLBACK = Tokenizer(models.BPE({name: index for index, name in enumerate(NAMES)}, [], byte_fallback=True))
FALLBACK.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
FALLBACK.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def told(tokenizer, ids, before=()):
    stream = TextStream(tokenizer, before)
    return [stream.step(token) for token in ids]


def ids(*names):
    return [NAMES.index(name) for name in names]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}")))
def test_text_is_told_as_soon_as_its_characters_are_complete(text):
    found = told(BYTES, BYTES.encode(text).ids)
    assert "".join(found) == text
    ends = set(itertools.accumulate(len(letter.encode()) for letter in text))
    assert all(bool(piece) == (at in ends) for at, piece in enumerate(found, start=1))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["<0x41>", "<0xE2>", "b"], "A\N{REPLACEMENT CHARACTER}b"),
        (["<0x41>", "<0xE2>", "▁the", "▁a"], "A\N{REPLACEMENT CHARACTER} the a"),
        (["▁a", "<0x0A>", "<0xC3>", "b", "<0xC3>", "<0xA9>"], "a\n\N{REPLACEMENT CHARACTER}bé"),
        (["<0xE2>", "<0x82>", "<0xAC>", "b"], "€b"),
    ],
)
def test_bytes_that_are_no_character_become_the_replacement_character(names, text):
    assert "".join(told(FALLBACK, ids(*names))) == text


@given(st.lists(st.sampled_from(ids("<0xE2>", "<0x82>", "<0xAC>", "<0x41>", "<0x0A>", "▁a", "b", "▁", "<0xC3>"))))
def test_no_sequence_of_tokens_ends_a_stream(sequence):
    found = "".join(told(FALLBACK, [*sequence, *ids("b")]))
    assert found.endswith("b")
    if "\N{REPLACEMENT CHARACTER}" not in FALLBACK.decode(sequence):
        assert found == FALLBACK.decode([*sequence, *ids("b")])


def test_a_continued_text_keeps_the_blank_before_its_first_word():
    assert told(FALLBACK, ids("▁the", "▁a"), before=ids("▁a")) == [" the", " a"]
    assert told(FALLBACK, ids("▁the", "▁a")) == ["the", " a"]


def test_what_is_continued_behind_half_a_character_is_not_told_again():
    assert told(FALLBACK, ids("b", "▁a"), before=ids("▁the", "<0xE2>")) == ["b", " a"]


@given(st.lists(st.integers(0, len(LETTERS) - 1), max_size=12))
def test_a_token_is_said_to_have_the_text_that_it_has_where_it_is_chosen(sequence):
    first, second = TextStream(BYTES), TextStream(BYTES)
    for token in sequence:
        (_, texts), text = first.choose(token, range(0, len(LETTERS), 16)), second.step(token)
        assert token % 16 or texts[token // 16] == text
        assert all(not said.endswith("\N{REPLACEMENT CHARACTER}") for said in texts if said != text)


def test_likely_tokens_have_the_texts_of_their_place():
    stream = TextStream(FALLBACK)
    assert stream.choose(*ids("▁a"), ids("▁the", "b", "<0xE2>")) == ("a", ["the", "b", ""])
    assert stream.choose(*ids("<0xE2>"), ids("▁the", "<0xE2>")) == ("", [" the", ""])
    assert stream.choose(*ids("<0x82>"), ids("<0x82>")) == ("", [""])
    assert stream.choose(*ids("<0xAC>"), ids("<0x82>", "<0xAC>")) == ("€", ["₂", "€"])
    assert stream.choose(*ids("b"), ids("▁the", "b")) == ("b", [" the", "b"])
    assert TextStream(FALLBACK, ids("▁a")).choose(*ids("b"), ids("▁the")) == ("b", [" the"])
