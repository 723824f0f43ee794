"""The pure rules of texts: how much a score reads, what takes a certificate away, when confidence has collapsed."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import Action, Bound, CloudReply, Decision, Groups, Prediction, Reason, Reference, Request
from edgewise.dialogue import Finish, Message, Piece, Prompt, Role, Sampling, Tool, ToolCall, Written
from edgewise.errors import ConfigError, InputError, MissingExtraError
from edgewise.router import certificate as certificates
from edgewise.router.agreeing import Agreement
from edgewise.router.gate import Gate, as_asked, continued, gate_of, prediction_of, uncovered, withdrawn
from edgewise.router.signals import score_of, tokens_read
from edgewise.router.toolcheck import MAX_ARGUMENTS, ToolCheck, without_calls
from edgewise.router.watch import Watch

BOUND = Bound(threshold=-1.0, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05)
LOCAL = Decision(action=Action.LOCAL, reason=Reason.CONFIDENT, policy="p", score=-0.1, certificate_id="c")
HI = Prompt(messages=(Message(role=Role.USER, content="hi"),))
REFERENCE = Reference("cloud", "1")


def certificate(signal, groups=None):
    return certificates.issue(
        BOUND,
        model_digest="m",
        signal=signal,
        data_digest="d",
        reference=REFERENCE,
        created="2026-01-01T00:00:00Z",
        runtime="1",
        isa="any",
        groups=groups,
    )


@pytest.mark.parametrize(
    ("signal", "tokens"),
    [
        ("mean_logprob:first=16", 16),
        ("low_logprob:first=3", 3),
        ("first_margin", 1),
        ("first_margin:first=4", 4),
        ("mean_logprob", None),
        ("combined", None),
    ],
)
def test_a_gate_needs_what_its_signal_reads(signal, tokens):
    assert tokens_read(signal) == tokens
    assert gate_of(certificate(signal), 50.0) == (tokens, 50.0)


def test_a_gate_without_a_certificate_reads_some_tokens_and_one_by_label_the_label():
    assert gate_of(None).tokens == 16
    by_label = Groups(by="label", bounds={"A": BOUND})
    assert gate_of(certificate("mean_logprob:first=2", by_label)).tokens is None
    assert gate_of(certificate("mean_logprob:first=2", Groups(by="subject", bounds={"A": BOUND}))).tokens == 2


@pytest.mark.parametrize("option", ["first=0", "first=2.5", "first=nan", "first=", "first=5000", "last=2"])
def test_no_count_is_refused(option):
    with pytest.raises(ConfigError):
        tokens_read(f"mean_logprob:{option}")


numbers = st.lists(st.floats(-20, 0), max_size=30)


@given(
    logprobs=numbers, first=st.integers(1, 20), name=st.sampled_from(["mean_logprob", "low_logprob", "first_margin"])
)
def test_the_first_tokens_score_as_the_whole_text_does(logprobs, first, name):
    pieces = [Piece("a", 1, logprob, None if place else 0.5) for place, logprob in enumerate(logprobs)]
    signal = f"{name}:first={first}"
    whole, beginning = score_of(prediction_of(pieces), signal), score_of(prediction_of(pieces[:first]), signal)
    assert whole == beginning or (math.isnan(whole) and math.isnan(beginning) and not pieces)
    if pieces and name == "mean_logprob":
        assert whole == pytest.approx(np.mean(logprobs[:first]))


def test_only_greedy_answers_keep_their_certificate():
    drawn = Prompt(messages=HI.messages, sampling=Sampling(temperature=1.0))
    assert as_asked(LOCAL, HI, Gate(16)) is LOCAL
    sampled = as_asked(LOCAL, drawn, Gate(16))
    assert (sampled.reason, sampled.certificate_id, sampled.score) == (Reason.SAMPLED, None, -0.1)
    escalated = withdrawn(LOCAL, Reason.CONFIDENCE_COLLAPSED)
    assert (escalated.action, escalated.certificate_id, escalated.score) == (Action.ESCALATE, None, -0.1)
    assert as_asked(escalated, drawn, Gate(16)) is escalated


CALLABLE = Prompt(messages=HI.messages, tools=(Tool(name="weather"),))


@pytest.mark.parametrize(
    "changes",
    [
        {"begun": "The answer is"},
        {"sampling": Sampling(schema="{}")},
        {"sampling": Sampling(max_tokens=15)},
        {"tool_choice": "required"},
        {"tool_choice": "weather"},
    ],
)
def test_what_is_asked_in_another_way_than_certified_has_no_certificate(changes):
    prompt = msgspec.structs.replace(CALLABLE, **changes)
    found = as_asked(LOCAL, prompt, Gate(16))
    assert (found.action, found.reason, found.certificate_id) == (Action.LOCAL, Reason.UNLIKE_CERTIFIED, None)
    assert (found.score, found.threshold) == (LOCAL.score, LOCAL.threshold)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, 16),
        ({"tool_choice": "none"}, 16),
        ({"tools": (), "tool_choice": "required"}, 16),
        ({"sampling": Sampling(max_tokens=16)}, 16),
        ({"sampling": Sampling(max_tokens=1)}, 1),
        ({"sampling": Sampling(max_tokens=1)}, None),
        ({"sampling": Sampling(stop=("x",), top_logprobs=2)}, 16),
    ],
)
def test_what_items_may_be_asked_with_keeps_its_certificate(changes, tokens):
    prompt = msgspec.structs.replace(CALLABLE, **changes)
    assert uncovered(prompt, Gate(tokens)) is None
    assert as_asked(LOCAL, prompt, Gate(tokens)) is LOCAL


def test_what_goes_on_begins_with_what_was_told():
    prompt = Prompt(messages=HI.messages, begun="It ", sampling=Sampling(max_tokens=10, stop=("x",)))
    rest = continued(prompt, "is so", 3)
    assert (rest.begun, rest.sampling.max_tokens, rest.sampling.stop) == ("It is so", 7, ("x",))
    assert continued(prompt, "all", 10) is None
    assert continued(prompt, "more than all", 11) is None
    assert continued(HI, "a", 9).sampling.max_tokens is None


@given(logprobs=st.lists(st.floats(-8, 0), max_size=40), window=st.integers(1, 6))
def test_confidence_collapses_where_a_window_lies_below_the_floor(logprobs, window):
    watch = Watch(window, -2.0)
    said = [watch.saw(logprob) for logprob in logprobs]
    means = [np.mean(logprobs[end - window : end]) for end in range(window, len(logprobs) + 1)]
    clear = [mean for mean in means if abs(mean + 2.0) > 1e-9]
    if len(clear) == len(means):
        assert any(said) == any(mean < -2.0 for mean in means)
    assert said == sorted(said), "once said it stays said"


def test_a_probability_that_is_none_is_no_confidence():
    watch = Watch(2, -2.0)
    assert [watch.saw(value) for value in (-0.1, math.nan, -0.1)] == [False, True, True]


def written(*calls: ToolCall, finish=Finish.TOOL_CALLS) -> Written:
    return Written(finish=finish, prompt_tokens=1, completion_tokens=2, tool_calls=calls)


def call(name="add", arguments='{"n": 1}') -> ToolCall:
    return ToolCall(id="1", name=name, arguments=arguments)


ADD = Tool(name="add", parameters='{"type": "object", "properties": {"n": {"type": "integer"}}}')


def test_calls_are_held_against_what_was_offered():
    check = ToolCheck(Prompt(messages=HI.messages, tools=(ADD,)))
    assert check.is_needed
    assert check.is_valid(None)
    assert check.is_valid(written(call(), call(arguments="{}")))
    unreadable = ("[1]", "[" * 100_000, '{"n": "\ud83d"}')
    for wrong in (call("sub"), call(arguments='{"n": "1"}'), *(call(arguments=text) for text in unreadable)):
        assert not check.is_valid(written(call(), wrong))


def test_tools_that_may_not_be_called_are_not_offered():
    check = ToolCheck(Prompt(messages=HI.messages, tools=(ADD,), tool_choice="none"))
    assert not check.is_needed
    assert not check.is_valid(written(call()))
    assert check.is_valid(None)
    named = ToolCheck(Prompt(messages=HI.messages, tools=(ADD, Tool(name="sub")), tool_choice="sub"))
    assert named.is_valid(written(call("sub", "{}")))
    assert not named.is_valid(written(call()))


def test_a_pattern_takes_linear_time():
    tool = Tool(name="add", parameters='{"properties": {"n": {"pattern": "^(a+)+$"}}}')
    check = ToolCheck(Prompt(messages=HI.messages, tools=(tool,)))
    assert not check.is_valid(written(call(arguments='{"n": "%s!"}' % ("a" * 5000))))


def test_a_schema_that_doubles_itself_is_refused_whatever_is_called():
    doubled = {f"n{i}": {"allOf": [{"$ref": f"#/$defs/n{i - 1}"}] * 2} for i in range(1, 40)}
    schema = msgspec.json.encode({"$defs": {"n0": {}, **doubled}, "$ref": "#/$defs/n39"}).decode()
    with pytest.raises(InputError, match=r"'t' are no JSON Schema: .*10,000 subschemas"):
        ToolCheck(Prompt(messages=HI.messages, tools=(Tool(name="t", parameters=schema),)))


def test_a_call_that_takes_too_long_to_check_is_not_valid():
    both = {"allOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}
    schema = msgspec.json.encode({"$defs": {"n": {"properties": {"a": both}}}, "$ref": "#/$defs/n"}).decode()
    check = ToolCheck(Prompt(messages=HI.messages, tools=(Tool(name="add", parameters=schema),)))
    assert check.is_valid(written(call(arguments='{"a":' * 10 + "1" + "}" * 10)))
    assert not check.is_valid(written(call(arguments='{"a":' * 40 + "1" + "}" * 40)))
    assert not check.is_valid(written(call(arguments='{"b": "%s"}' % ("x" * MAX_ARGUMENTS))))


@pytest.mark.parametrize("schema", ["", "{", "3", "[" * 100_000, '{"type": "nothing"}', '{"pattern": "("}'])
def test_a_schema_that_is_none_is_bad_input(schema):
    with pytest.raises(InputError, match="JSON Schema"):
        ToolCheck(Prompt(messages=HI.messages, tools=(Tool(name="t", parameters=schema),)))


def test_without_the_library_tools_are_not_offered(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jsonschema_rs", None)
    with pytest.raises(MissingExtraError, match="edgewise\\[generate\\]"):
        ToolCheck(Prompt(messages=HI.messages, tools=(Tool(name="missing"),)))
    assert not ToolCheck(HI).is_needed


def test_refused_calls_are_taken_out():
    plain = Prediction(output="a", written=written(finish=Finish.LENGTH))
    assert without_calls(plain) is plain
    assert without_calls(Prediction(output="a")) == Prediction(output="a")
    refused = Prediction(output="a", written=written(call()))
    assert without_calls(refused) == Prediction(output="a", written=written(finish=Finish.STOP))
    cut = without_calls(Prediction(output="a ", written=written(call("", '{"na'), finish=Finish.LENGTH)))
    assert (cut.output, cut.written) == ('a {"na', written(finish=Finish.LENGTH)), "what is no call stays text"


def test_calls_agree_however_their_arguments_are_spelled_and_texts_by_their_judge():
    same = Agreement()
    assert same("", written(call()), CloudReply("text", REFERENCE, written=written(call(arguments='{"n":1}'))))
    assert not same("", written(call()), CloudReply("", REFERENCE))
    assert not same("", written(call(arguments="{")), CloudReply("", REFERENCE, written=written(call())))
    assert same("a", None, CloudReply("a", REFERENCE))
    judged = Agreement(lambda edge, cloud: edge.lower() == cloud)
    assert judged("A", None, CloudReply("a", REFERENCE))
    assert not judged("a", None, CloudReply("A", REFERENCE))
    assert judged((1.0,), None, CloudReply((1.0,), REFERENCE)), "vectors are the same or not"


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ('{"a":1,"b":[2]}', '{ "b": [2.0], "a": 1e0 }', True),
        ('{"a":true}', '{"a":1}', False),
        ('{"a":[false]}', '{"a":[0]}', False),
        ('{"a":null}', '{"a":false}', False),
        ('{"a":"1"}', '{"a":1}', False),
        ('{"a":9007199254740993.0}', '{"a":9007199254740993}', False),
        ('{"a":1e400}', '{"a":null}', False),
        ("[" * 9000, "[" * 9000, True),
    ],
)
def test_what_is_another_value_to_a_tool_is_another_call(one, other, agree):
    reply = CloudReply("", REFERENCE, written=written(call(arguments=other)))
    assert Agreement()("", written(call(arguments=one)), reply) is agree


def test_a_late_gate_has_no_score():
    late = gate_of(None, 5.0).late("certified_threshold")
    assert (late.action, late.reason, late.score) == (Action.ESCALATE, Reason.GATE_LATE, None)
    assert Request(inputs=HI).inputs is HI
    assert prediction_of([]).margin is None
    assert isinstance(prediction_of([]), Prediction)
