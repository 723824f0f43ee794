"""From tokens back to text: stop texts, calls of tools, and halves of both, however the text falls into tokens."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgewise.cloud.prompts import Reading
from edgewise.cloud.tokens import Choice
from edgewise.cloud.transcript import Transcript
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, Tool, Written

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = Tokenizer(models.BPE({letter: index for index, letter in enumerate(LETTERS)}, []))
BYTES.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES.decoder = decoders.ByteLevel()


def transcript(stop=(), tools=()):
    prompt = Prompt(
        messages=(Message(role=Role.USER, content="?"),),
        tools=tuple(Tool(name=name) for name in tools),
        sampling=Sampling(stop=tuple(stop)),
    )
    numbers = itertools.count()
    return Transcript(BYTES, Reading(prompt, [1, 2, 3], 99), lambda: f"call_{next(numbers)}")


def written(text, **more):
    """What is told of a text, token by token, and how it ended."""
    found, told = transcript(**more), []
    for token in BYTES.encode(text).ids:
        told += found.push(Choice(token, -0.5))
        if found.is_over:
            break
    if not found.is_over:
        told += found.close()
    return "".join(piece.text for piece in told), found.written(Finish.STOP)


def test_a_text_without_marks_is_told_token_by_token():
    text = "héllo wörld 🙂"
    found = transcript()
    pieces = [found.push(Choice(token, -0.5)) for token in BYTES.encode(text).ids]
    assert all(len(told) == 1 for told in pieces)
    assert "".join(told[0].text for told in pieces) == text
    assert found.written(Finish.LENGTH).completion_tokens == len(text.encode())
    assert found.written(Finish.LENGTH).finish is Finish.LENGTH


@pytest.mark.parametrize(
    ("text", "stop", "told"),
    [
        ("one two three", ("two",), "one "),
        ("one tw", ("two",), "one tw"),
        ("aab", ("ab",), "a"),
        ("aaab", ("aab", "b"), "a"),
        ("x\n\ny", ("\n\n",), "x"),
        ("two", ("two",), ""),
    ],
)
def test_nothing_of_a_stop_text_is_told(text, stop, told):
    assert written(text, stop=stop)[0] == told


@given(st.text("abX<tol_c>", max_size=40), st.lists(st.text("abX<", min_size=1, max_size=3), max_size=3))
def test_what_is_told_is_what_stands_before_the_first_stop_text_that_is_complete(text, stop):
    ends = [at + len(word) for word in stop if (at := text.find(word)) >= 0]
    first = [at for word in stop if (at := text.find(word)) >= 0 and at + len(word) == min(ends)]
    assert written(text, stop=tuple(stop))[0] == (text[: min(first)] if ends else text)


def test_calls_are_taken_out_of_the_text():
    text = (
        'I look.<tool_call>\n{"name": "find", "arguments": {"q": "é"}}\n</tool_call>\n'
        '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    )
    told, how = written(text, tools=("find", "add"))
    assert told == "I look."
    assert how.finish is Finish.TOOL_CALLS
    assert [(call.id, call.name, call.arguments) for call in how.tool_calls] == [
        ("call_0", "find", '{"q": "é"}'),
        ("call_1", "add", "{}"),
    ]


def test_a_call_that_cannot_be_read_keeps_its_text_and_one_that_is_cut_off_too():
    told, how = written("<tool_call>find!</tool_call> done", tools=("find",))
    assert told == "done"
    assert [(call.name, call.arguments) for call in how.tool_calls] == [("", "find!")]
    assert [call.arguments for call in written('<tool_call>{"na', tools=("find",))[1].tool_calls] == ['{"na']


def test_without_tools_the_same_text_is_only_text():
    text = '<tool_call>{"name": "find"}</tool_call>'
    assert written(text) == (text, Written(
        finish=Finish.STOP, prompt_tokens=3, completion_tokens=len(text)
    ))  # fmt: skip


def test_the_half_of_a_mark_at_the_end_is_text():
    assert written("a <tool_", tools=("find",))[0] == "a <tool_"


def words(prompt):
    """A transcript of a tokenizer whose words bring their blank, which it drops where a text begins: Llama, Gemma."""
    tokenizer = Tokenizer(models.WordLevel({"[END]": 0, "▁the": 1, "▁cat": 2, "s": 3}, unk_token="s"))
    tokenizer.add_special_tokens(["[END]"])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return Transcript(tokenizer, Reading(prompt, [2], 99), str)


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        (Prompt(messages=(Message(role=Role.USER, content="?"),)), "the"),
        (Prompt(text="cat"), " the"),
        (Prompt(messages=(Message(role=Role.USER, content="?"),), begun="cat"), " the"),
    ],
)
def test_what_else_could_have_stood_there_has_the_text_that_it_would_have_had(prompt, first):
    found = words(prompt)
    (one,) = found.push(Choice(1, -0.5, None, [(1, -0.5), (2, -1.0), (0, -2.0)]))
    (two,) = found.push(Choice(3, -0.5, None, [(1, -0.25), (3, -0.5)]))
    assert (one.text, two.text) == (first, "s")
    assert [choice.text for choice in one.top] == [first, first.replace("the", "cat"), "[END]"]
    assert [choice.text for choice in two.top] == [" the", "s"]
    assert [choice.logprob for choice in one.top] == [-0.5, -1.0, -2.0]
