"""The bytes of `/v1/verify`: strict to clients, suspicious of servers."""

import json

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgewise.dialogue import Message, Role
from edgewise.errors import CloudResponseError, RequestError
from edgewise.wire.verify import (
    CONTEXT_FULL,
    MAX_DRAFT,
    MAX_DRAWN,
    OTHER_TOKENIZER,
    SESSION_LOST,
    DraftProbabilities,
    VerifyPrompt,
    VerifyReference,
    VerifyReply,
    VerifyRequest,
    context_full,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    error_code,
    other_tokenizer,
    session_lost,
    tokenizer_digest,
)

BODY = {"session": "s1", "tokenizer": "sha256:1", "tokens": [1, 2]}
IDS = st.integers(0, (1 << 31) - 1)


def request(**changes):
    return decode_request(json.dumps({**BODY, **changes}).encode())


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"position": -1}, "Send a whole number >= 0."),
        ({"draft": [1] * (MAX_DRAFT + 1)}, f"Send a list of length <= {MAX_DRAFT}."),
        ({"draft_probs": [{"ids": [1]}]}, "Known fields: ids, probs."),
    ],
)
def test_the_remedy_speaks_of_the_field_at_fault(changes, remedy):
    with pytest.raises(RequestError) as refused:
        request(**changes)
    assert refused.value.remedy == remedy


@given(
    st.lists(IDS, max_size=4), st.lists(IDS, max_size=4, unique=True), st.floats(0, 2), st.none() | st.integers(0, 9)
)
def test_a_request_survives_its_bytes(tokens, draft, temperature, seed):
    drawn = tuple(DraftProbabilities((token,), (1.0,)) for token in draft)
    asked = VerifyRequest(
        session="s",
        tokenizer="t",
        tokens=tuple(tokens),
        draft=tuple(draft),
        draft_probs=drawn,
        position=7,
        temperature=temperature,
        seed=seed,
    )
    assert decode_request(encode_request(asked)) == asked


def test_what_is_left_out_has_the_documented_default():
    asked = request()
    assert (asked.position, asked.draft, asked.draft_probs, asked.model, asked.seed) == (0, (), None, None, None)
    assert asked.is_greedy
    assert request(temperature=1, top_k=1).is_greedy
    assert not request(temperature=0.5).is_greedy


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("session", {"session": ""}),
        ("session", {"session": "a b"}),
        ("session", {"session": 7}),
        ("tokens[1]", {"tokens": [1, -1]}),
        ("tokens[0]", {"tokens": ["1"]}),
        ("tokens", {"tokens": None}),
        ("position", {"position": -1}),
        ("draft", {"draft": list(range(MAX_DRAFT + 1))}),
        ("draft[0]", {"draft": [1 << 31]}),
        ("temperature", {"temperature": -0.1}),
        ("top_p", {"top_p": 0}),
        ("top_p", {"top_p": 1.1}),
        ("top_k", {"top_k": -1}),
        ("seed", {"seed": 1 << 63}),
        ("k", {"k": 4}),
        ("draft_probs", {"draft": [1, 2], "draft_probs": [{"ids": [1], "probs": [1]}]}),
        ("draft_probs[0]", {"draft": [1], "draft_probs": [{"ids": [1, 2], "probs": [1]}]}),
        ("draft_probs[0]", {"draft": [1], "draft_probs": [{"ids": [1, 1], "probs": [0.5, 0.5]}]}),
        ("draft_probs[0]", {"draft": [1], "draft_probs": [{"ids": [2], "probs": [1]}]}),
        ("draft_probs[0]", {"draft": [1], "draft_probs": [{"ids": [1, 2], "probs": [1, 0]}]}),
        ("draft_probs[0]", {"draft": [1], "draft_probs": [{"ids": [1], "probs": [0.9]}]}),
        ("draft_probs[0].ids", {"draft": [1], "draft_probs": [{"ids": list(range(MAX_DRAWN + 1)), "probs": [1]}]}),
    ],
)
def test_bad_input_names_its_field(field, changes):
    with pytest.raises(RequestError) as caught:
        request(**changes)
    assert caught.value.field == field
    assert caught.value.remedy


@given(st.binary(max_size=60))
def test_whatever_the_bytes_are(body):
    with pytest.raises(RequestError):
        decode_request(body)


REPLY = VerifyReply(
    accepted=1,
    token=5,
    logprobs=[-0.5, -1.0],
    ended=False,
    position=4,
    reference=VerifyReference("m", "v"),
    compute_ms=3.0,
)


def test_a_reply_survives_its_bytes():
    assert decode_reply(encode_reply(REPLY), drafted=1) == REPLY


@pytest.mark.parametrize(
    "changes",
    [
        {"accepted": 2},
        {"accepted": -1},
        {"logprobs": [-1.0]},
        {"token": -1},
        {"position": 0},
        {"logprobs": [-1, 1e999]},
    ],
)
def test_an_impossible_reply_is_none(changes):
    body = encode_reply(msgspec.structs.replace(REPLY, **changes))
    with pytest.raises(CloudResponseError):
        decode_reply(body, drafted=1)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000])
def test_no_reply_is_no_reply(body):
    with pytest.raises(CloudResponseError):
        decode_reply(body, drafted=1)
    assert error_code(body) == ""


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (session_lost("s"), SESSION_LOST),
        (other_tokenizer("sha256:1", "sha256:2"), OTHER_TOKENIZER),
        (context_full(97, 96), CONTEXT_FULL),
    ],
)
def test_a_conflict_tells_its_code(fault, code):
    assert (fault.status, fault.code) == (409, code)
    assert error_code(fault.body("/v1/verify")) == code
    assert fault.remedy


def tokenizer(vocabulary=("a", "b", "ab"), added=("<s>",)):
    made = Tokenizer(models.BPE(vocab={text: at for at, text in enumerate(vocabulary)}, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([AddedToken(text, special=True) for text in added])
    return made


def test_a_tokenizer_is_named_by_what_it_does():
    digest = tokenizer_digest(tokenizer().to_str())
    padded = tokenizer()
    padded.enable_padding()
    padded.enable_truncation(8)
    assert tokenizer_digest(padded.to_str(pretty=True).encode()) == digest
    told = json.loads(tokenizer().to_str())
    told["model"]["merges"] = ["a b"]  # as older versions wrote them
    assert tokenizer_digest(json.dumps(told)) == digest
    spoken = tokenizer()
    spoken.decoder = decoders.ByteLevel()
    plain = json.loads(tokenizer().to_str())
    plain["added_tokens"][0]["special"] = False  # so its text is told
    others = {
        tokenizer_digest(tokenizer(("b", "a", "ab")).to_str()),
        tokenizer_digest(tokenizer(added=("</s>",)).to_str()),
        tokenizer_digest(spoken.to_str()),
        tokenizer_digest(json.dumps(plain)),
    }
    assert len(others | {digest}) == 5


@pytest.mark.parametrize("changes", [{"position": 3, "tokens": []}, {"tokens": [1]}])
def test_a_prompt_begins_a_session(changes):
    with pytest.raises(RequestError, match="begins the session anew") as refused:
        request(prompt={"text": "a"}, **changes)
    assert refused.value.field in changes


def test_a_prompt_survives_its_bytes():
    said = (Message(role=Role.USER, content="a"), Message(role=Role.ASSISTANT, content="b"))
    asked = VerifyRequest(session="s", tokenizer="t", prompt=VerifyPrompt(messages=said, begun="c"))
    assert decode_request(encode_request(asked)) == asked
