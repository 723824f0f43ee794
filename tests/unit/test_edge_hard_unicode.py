"""Hard text through tokenizers of every family: read, written token by token, and ended by a stop text inside of it."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgewise.dialogue import Piece
from edgewise.edge.decoding import TextStream
from edgewise.edge.stops import until

HARD = [
    "👩‍👩‍👧‍👦 and 👩🏽‍🚀",  # joined by U+200D, with tones of skin
    "🏳️‍🌈🇵🇪🇯🇵",  # a variation selector, and flags of two letters each
    "e\u0301 a\u0308\u0304 Z\u0351\u0323\u0489\u0489",  # marks on marks
    "שָׁלוֹם עוֹלָם \u202eabc\u202c مرحبا",  # from right to left, and a mark that turns it around
    "a\u0000b\u0007\u001b[0m\u007f",
    "\ufffd x\ufffd\ufffd y",  # the replacement character as itself
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱 😀",  # four bytes each
    "한글 ﬃ ½ ① İıßẞ",
    "ﷺ \u00ad\u200b\u2060\ufeff",
    "नमस्ते ไทย ကမ္ဘာ",
    "\r\n\t \u2028\u00a0 end  ",
]
CLUSTERS = st.sampled_from([*HARD, *(letter for text in HARD for letter in text), " ", "the ", "is", "\n"])
TEXTS = st.lists(CLUSTERS, max_size=12).map(lambda parts: "".join([*parts, "."]))
"""They end with a sign: what ends with half a character, or with the replacement character, waits for what comes."""


def byte_level() -> Tokenizer:
    """That of GPT-2, Llama 3, Qwen and SmolLM2: merges end in the middle of characters."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=sorted(letters), show_progress=False)
    built.train_from_iterator(HARD * 4, trainer)
    return built


def fallback() -> Tokenizer:
    """That of Llama 2, Mistral and Gemma: words that begin with a mark, and bytes for letters that it does not know."""
    known = sorted({letter for letter in "".join(HARD) if ord(letter) < 0x600 and letter not in " \n"} | set("▁the is"))
    names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *(n for n in known if n != " ")]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("i", "s")]
    names += ["th", "the", "▁the"]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys([*names, "is"]))}
    built = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    built.normalizer = normalizers.Replace(" ", "▁")
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    built.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>")])
    return built


def unigram() -> Tokenizer:
    """That of T5 and XLM-R, with bytes for what has no piece."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256)), ("▁", -2.0), ("▁the", -3.0)]
    letters = sorted({letter for letter in "".join(HARD) if ord(letter) < 0x250 and letter != " "} | set("theis"))
    built = Tokenizer(models.Unigram([*pieces, *((letter, -5.0) for letter in letters)], 0, byte_fallback=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    built.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never", split=False), decoders.Fuse()]
    )
    return built


def wordpiece() -> Tokenizer:
    """That of BERT: words and their ends. It keeps no blanks as they were, so what it decodes to is what is held to."""
    words = sorted({word for text in HARD for word in text.split()} | {"the", "is"})
    letters = sorted({letter for letter in "".join(HARD) if not letter.isspace()})
    names = dict.fromkeys(["[UNK]", *words, *letters, *(f"##{letter}" for letter in letters), "##is"])
    built = Tokenizer(models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.decoder = decoders.WordPiece(cleanup=False)
    return built


BUILT = {"byte-level": byte_level(), "fallback": fallback(), "unigram": unigram(), "wordpiece": wordpiece()}
EXACT = ("byte-level", "fallback", "unigram")
families = pytest.mark.parametrize("family", list(BUILT))


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[Piece]:
    """The pieces as the generator tells them."""
    stream = TextStream(tokenizer)
    return [Piece(stream.step(token), token, -0.1) for token in ids]


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@families
@given(text=TEXTS)
def test_pieces_are_the_whole(family, text):
    tokenizer = BUILT[family]
    ids = tokenizer.encode(text).ids
    whole = tokenizer.decode(ids)
    assert joined(pieces_of(tokenizer, ids)) == whole
    assert whole == text or family not in EXACT


@families
def test_hard_text_is_split_within_its_characters(family):
    """Or the tests here would show nothing."""
    tokenizer = BUILT[family]
    ids = tokenizer.encode("".join(HARD)).ids
    assert len(ids) > 60
    if family in EXACT:
        told = [piece.text for piece in pieces_of(tokenizer, ids)]
        assert told.count("") > 20, "many tokens complete no character"


@families
@given(text=TEXTS, draw=st.data())
def test_a_stop_text_inside_ends_it_wherever_tokens_are_cut(family, text, draw):
    tokenizer = BUILT[family]
    ids = tokenizer.encode(text).ids
    whole = tokenizer.decode(ids)
    if not whole:
        return
    start = draw.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : start + draw.draw(st.integers(1, 4))]
    assert joined(list(until(pieces_of(tokenizer, ids), [stop]))) == whole[: whole.index(stop)]


@pytest.mark.parametrize("family", EXACT)
@given(before=TEXTS, after=TEXTS)
def test_what_goes_on_from_a_text_is_told_as_in_one(family, before, after):
    tokenizer = BUILT[family]
    first, then = tokenizer.encode(before).ids, tokenizer.encode(after).ids
    stream = TextStream(tokenizer, first)
    assert "".join([stream.step(token) for token in then]) == after


@pytest.mark.parametrize("family", EXACT)
@given(text=TEXTS, cut=st.integers(1, 3))
def test_half_a_character_at_the_end_is_not_told(family, text, cut):
    """An answer that ends at its limit may end in the middle of a character."""
    tokenizer = BUILT[family]
    ids = tokenizer.encode(f"{text}👾").ids[:-cut]
    assert joined(pieces_of(tokenizer, ids)) == text


@families
def test_hard_text_survives_json_and_utf_8(family):
    tokenizer = BUILT[family]
    for text in HARD:
        pieces = pieces_of(tokenizer, tokenizer.encode(text).ids)
        lines = [json.dumps(piece.text, ensure_ascii=False).encode() for piece in pieces]
        assert "".join(json.loads(line.decode()) for line in lines) == joined(pieces)
        assert not any("\ud800" <= letter <= "\udfff" for letter in itertools.chain.from_iterable(joined(pieces)))
