"""Calls of tools in the middle of a stream."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.dialogue import Piece
from edgewise.edge.toolcalls import ToolCalls, parse


def read(parts):
    calls = ToolCalls(lambda number, raw: f"call_{number}")
    pieces = list(calls.taken_out(Piece(text, number, -0.5) for number, text in enumerate(parts)))
    calls.finish()
    return pieces, calls.found


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


CALL = '<tool_call>\n{"name": "get", "arguments": {"city": "Köln"}}\n</tool_call>'


@given(st.text("ab<tol_c >", max_size=12), st.lists(st.integers(0, 60), max_size=20), st.integers(0, 2))
def test_however_the_text_is_cut_the_calls_are_found_and_nothing_of_them_is_told(before, cuts, count):
    before = before.replace("<tool_call>", "")
    whole = before + "\n".join([CALL] * count)
    edges = [0, *sorted({min(cut, len(whole)) for cut in cuts}), len(whole)]
    pieces, found = read([whole[a:b] for a, b in pairwise(edges)])
    assert text_of(pieces) == before
    assert [(call.id, call.name, json.loads(call.arguments)) for call in found] == [
        (f"call_{number}", "get", {"city": "Köln"}) for number in range(count)
    ]
    assert [piece.token for piece in pieces] == list(range(len(edges) - 1))
    assert all(piece.logprob == -0.5 for piece in pieces)


def test_text_is_held_back_no_longer_than_needed():
    calls = ToolCalls(lambda number, raw: "id")
    stream = calls.taken_out(iter([Piece("a <", 1, 0.0), Piece("b", 2, 0.0), Piece("c", 3, 0.0)]))
    assert [next(stream).text for _ in range(3)] == ["a <", "b", "c"]  # each token keeps its text, and its probability
    assert text_of(read(["a <tool"])[0]) == "a <tool"


def test_blanks_after_a_call_are_none_of_the_text():
    pieces, found = read([CALL, "\n", " \n", "done"])
    assert text_of(pieces) == "done"
    assert len(found) == 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('{"name": "f", "arguments": {}}', [("f", "{}")]),
        ('{"name": "f"}', [("f", "{}")]),
        ('{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', [("f", '{"a": 1}')]),
        (
            '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": [1]}}]',
            [("f", "{}"), ("g", '{"x": [1]}')],
        ),
        ('{"name": "f", "arguments": [1]}', None),
        ('{"name": "f", "arguments": "no json"}', None),
        ('{"name": "f", "arguments": {"a": "half a character: \\ud83d"}}', None),
        ('{"name": 7}', None),
        ('{"name": ""}', None),
        ("[]", None),
        ("", None),
        ("f(1)", None),
        ("[" * 100_000, None),
    ],
)
def test_what_is_read_of_a_call(raw, expected):
    assert parse(raw) == (expected or [("", raw)])


def test_a_call_that_is_not_closed_is_read_as_far_as_it_goes():
    assert read(['<tool_call>{"name": "f", "arguments": {}}'])[1][0].name == "f"
    (broken,) = read(['<tool_call>{"name": "f", "argu</tool'])[1]
    assert (broken.name, broken.arguments) == ("", '<tool_call>{"name": "f", "argu</tool')


def test_a_call_that_cannot_be_read_keeps_its_marks():
    pieces, (broken,) = read(["See ", "<tool_call>", "not json", "</tool", "_call>", " that is it."])
    assert [piece.text for piece in pieces] == ["See ", "", "", "", "", "that is it."]
    assert (broken.name, broken.arguments) == ("", "<tool_call>not json</tool_call>")


def test_text_and_calls_in_one_piece():
    pieces, found = read([f"a {CALL} b {CALL}", "<", "c"])
    assert [piece.text for piece in pieces] == ["a b ", "<", "c"]
    assert [call.id for call in found] == ["call_0", "call_1"]
