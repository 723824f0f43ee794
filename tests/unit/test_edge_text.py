"""Texts become the tensors that the graph declares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.bundle import TensorSpec
from edgewise.edge.text import TextEncoder, beginnings, first_ids, ids_of, unknown_id, unknown_share
from edgewise.errors import BundleError, InputError

ALL = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def encoder_of(tiny_models):
    def build(names=ALL[:2], dtype="int64", tokenizer=None, max_length=8, **options):
        specs = [TensorSpec(name, dtype, ("batch", "tokens")) for name in names]
        content = tokenizer or tiny_models.tokenizer_json()
        return TextEncoder(content, specs, max_length=max_length, **options)

    return build


def test_feeds_what_the_graph_declares_and_nothing_else(encoder_of, tiny_models):
    words = tiny_models.vocabulary()
    for names in (ALL[:1], ALL[:2], ALL):
        assert list(encoder_of(names).encode("wheat rose")) == list(names)
    tensors = encoder_of(ALL).encode("Wheat unknown rose")
    assert tensors["input_ids"].tolist() == [[words["wheat"], words["[UNK]"], words["rose"]]]
    assert tensors["attention_mask"].tolist() == [[1, 1, 1]]
    assert tensors["token_type_ids"].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_types_as_declared(encoder_of, dtype):
    assert {value.dtype.name for value in encoder_of(ALL, dtype).encode("wheat").values()} == {dtype}


def test_long_text_is_truncated(encoder_of):
    assert encoder_of(max_length=4).encode("wheat " * 100)["input_ids"].shape == (1, 4)


WORDS = st.lists(st.sampled_from(["wheat", "rose", " ", "\n", "xyz" * 30, "\t\t", "\u4e2d\u6587" * 9]), max_size=400)


@given(words=WORDS, max_length=st.integers(1, 4))
def test_the_beginning_of_a_long_text_tells_what_is_kept_of_it(words, max_length, encoder_of, tiny_models):
    from tokenizers import Tokenizer

    text = " ".join(["rose", *words])
    tokenizer = Tokenizer.from_buffer(tiny_models.tokenizer_json())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    kept = tokenizer.encode(text).ids[:max_length]
    assert encoder_of(max_length=max_length).encode(text)["input_ids"].tolist() == [kept]


def test_of_a_long_text_no_more_is_tokenized_than_is_kept():
    assert list(beginnings("wheat " * 10, 1)) == ["wheat " * 10]
    first, *longer = beginnings("wheat " * 100_000, 2)
    assert first == ("wheat " * 22)[:125], "between two words"
    assert [len(longer[0]), len(longer[-1])] == [509, 600_000]
    assert next(beginnings("x" * 1000, 1)) == "x" * 64, "there is nothing between words"


@given(words=st.integers(1, 40), max_length=st.integers(1, 20), multiple=st.integers(1, 9))
def test_padding(words, max_length, multiple, encoder_of):
    tensors = encoder_of(max_length=max_length, pad_multiple=multiple).encode("wheat " * words)
    used = min(words, max_length)
    length = tensors["input_ids"].shape[1]
    assert used <= length <= max_length
    assert length % multiple == 0 or length == max_length
    assert length - used < multiple
    assert tensors["attention_mask"].tolist() == [[1] * used + [0] * (length - used)]
    assert not tensors["input_ids"][0, used:].any(), "the padding token of the tiny vocabulary has id 0"


def test_padding_and_truncation_of_the_file_are_overruled(encoder_of, tiny_models):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(tiny_models.tokenizer_json())
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(2)
    content = tokenizer.to_str().encode()
    assert encoder_of(tokenizer=content).encode("wheat corn crop rose")["input_ids"].shape == (1, 4)


def test_padding_token_of_the_file_is_used(encoder_of):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"wheat": 0, "[PAD]": 7, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = encoder_of(tokenizer=tokenizer.to_str().encode(), pad_multiple=4)
    assert encoder.encode("wheat")["input_ids"].tolist() == [[0, 7, 7, 7]]


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (b"bytes", "bytes"),
        (None, "NoneType"),
        (3, "int"),
        (np.zeros((2, 2)), r"array of shape \(2, 2\)"),
        (["a"], "list"),
    ],
)
def test_other_types_are_named(encoder_of, item, named):
    with pytest.raises(InputError, match=rf"takes a text \(str\), given .*{named}"):
        encoder_of().encode(item)


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_text_without_a_token(encoder_of, text):
    with pytest.raises(InputError, match="no token"):
        encoder_of().encode(text)


def test_broken_unicode(encoder_of):
    with pytest.raises(InputError, match="cannot be tokenized"):
        encoder_of().encode("wheat \ud800")


@given(st.text(max_size=50))
def test_any_text_is_encoded_or_refused(encoder_of, text):
    try:
        tensors = encoder_of().encode(text)
    except InputError:
        return
    assert 1 <= tensors["input_ids"].shape[1] <= 8


def test_length_without_room_for_a_word(encoder_of, tiny_models):
    """The library would then silently not truncate."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_buffer(tiny_models.tokenizer_json())
    special = [("the", tiny_models.vocabulary()["the"]), ("a", tiny_models.vocabulary()["a"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="the $A a", special_tokens=special)
    content = tokenizer.to_str().encode()
    assert encoder_of(max_length=3, tokenizer=content).encode("wheat crop")["input_ids"].shape == (1, 3)
    with pytest.raises(BundleError, match="2 leaves no room beside 2 special tokens"):
        encoder_of(max_length=2, tokenizer=content)


def test_graph_with_an_input_that_a_text_does_not_feed(encoder_of):
    with pytest.raises(BundleError, match="'position_ids'"):
        encoder_of(("input_ids", "position_ids"))


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"not json"])
def test_broken_tokenizer(encoder_of, content):
    with pytest.raises(BundleError, match="tokenizer"):
        encoder_of(tokenizer=content)


def special_at_both_ends(tiny_models):
    """The tiny tokenizer with [PAD] in the places of [CLS] and [SEP]."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_buffer(tiny_models.tokenizer_json())
    tokenizer.post_processor = processors.TemplateProcessing(single="[PAD] $A [PAD]", special_tokens=[("[PAD]", 0)])
    return tokenizer.to_str().encode()


class TestUnknownShare:
    @pytest.mark.parametrize(
        ("limit", "foreign"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False), (None, False)]
    )
    def test_more_than_the_limit_is_out_of_distribution(self, encoder_of, limit, foreign):
        encoder = encoder_of(max_unknown_share=limit)
        assert encoder.read("wheat zebra corn quagga").out_of_distribution is foreign
        assert not encoder.read("wheat corn").out_of_distribution

    def test_special_tokens_and_what_is_cut_off_do_not_count(self, encoder_of, tiny_models):
        encoder = encoder_of(tokenizer=special_at_both_ends(tiny_models), max_length=4, max_unknown_share=0.49)
        assert encoder.read("zebra wheat").out_of_distribution, "1 of 2, not of 4"
        assert not encoder.read("wheat corn zebra zebra zebra").out_of_distribution
        assert not encoder.read("").out_of_distribution, "only special tokens are left"

    @given(words=st.lists(st.sampled_from(["wheat", "zebra"]), min_size=1, max_size=8))
    def test_the_share_is_counted(self, words, tiny_models):
        from tokenizers import Tokenizer

        content = tiny_models.tokenizer_json()
        encoding = Tokenizer.from_buffer(content).encode(" ".join(words))
        assert unknown_share(encoding, unknown_id(content)) == words.count("zebra") / len(words)

    def test_the_unknown_token_is_the_tokenizers_own(self):
        from tokenizers import Tokenizer, models

        unigram = models.Unigram([("a", -1.0), ("?", 0.0)], unk_id=1)
        assert unknown_id(Tokenizer(unigram).to_str().encode()) == 1
        named = models.WordLevel({"a": 0, "<unk>": 5}, unk_token="<unk>")
        assert unknown_id(Tokenizer(named).to_str().encode()) == 5
        assert unknown_id(Tokenizer(models.BPE()).to_str().encode()) is None

    def test_a_limit_without_an_unknown_token_is_a_contradiction(self, encoder_of):
        from tokenizers import Tokenizer, models

        content = Tokenizer(models.BPE()).to_str().encode()
        with pytest.raises(BundleError, match="its tokenizer has none"):
            encoder_of(tokenizer=content, max_unknown_share=0.5)


def test_each_token_is_told_by_its_characters(encoder_of, tiny_models):
    encoder = encoder_of(tokenizer=special_at_both_ends(tiny_models))
    assert list(encoder.read("wheat  rose").spans) == [(0, 0), (0, 5), (7, 11), (0, 0)]


@pytest.mark.parametrize("words", [0, 3, 8, 9, 100, 5000])
def test_a_prompt_is_tokenized_as_far_as_it_is_of_use(words, tiny_models):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(tiny_models.tokenizer_json())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text = "wheat rose " * words
    whole, first = ids_of(tokenizer, text, special=False), first_ids(tokenizer, text, 16, special=False)
    assert whole == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(whole) == 2 * words
    assert first == whole[: len(first)]
    assert len(first) == len(whole) if len(whole) <= 16 else 16 < len(first) <= 32
