"""Answers to prompts: sampling, ends, sessions that keep what was computed, interrupts, JSON by a schema, tools."""

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from edgewise.contracts import LocalGenerator, Writing
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, Tool, ToolCall
from edgewise.edge import EdgeGenerator
from edgewise.edge.genai import CHUNK, TokenSequence
from edgewise.edge.writing import EdgeWriting, Task
from edgewise.errors import BundleError, InputError, MissingExtraError, PromptTooLongError


@pytest.fixture(scope="module")
def bundle(tiny_generator, tmp_path_factory):
    return tiny_generator.pack(tmp_path_factory.mktemp("remembers"), remembers=True)


@pytest.fixture
def model(bundle):
    """Every answer depends on all that stands before it."""
    with EdgeGenerator.load(bundle, slots=2) as model:
        yield model


@pytest.fixture(scope="module")
def alphabet(tiny_generator_bundle):
    """Answers with the letters that follow."""
    with EdgeGenerator.load(tiny_generator_bundle, slots=2) as model:
        yield model


def chat(*texts, role=Role.USER, **fields):
    sampling = Sampling(**{"max_tokens": 5, **fields.pop("sampling", {})})
    roles = [role if number % 2 == 0 else Role.ASSISTANT for number in range(len(texts))]
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=True))
    return Prompt(messages=messages, sampling=sampling, **fields)


def text(string, **fields):
    sampling = Sampling(**{"max_tokens": 5, **fields.pop("sampling", {})})
    return Prompt(text=string, sampling=sampling, **fields)


def told(pieces):
    return "".join(piece.text for piece in pieces)


def answer(model, prompt, **whose):
    writing = model.write(prompt, **whose)
    return told(writing), writing.written


def expected(tiny_generator, prompt, count):
    """Greedy tokens by the table, with their log-probabilities."""
    ids, found = tiny_generator.ids_of(prompt), []
    for _ in range(count):
        logits = tiny_generator.remembered_logits(ids)[-1].astype(np.float64)
        token = int(logits.argmax())
        found.append((token, logits[token] - np.logaddexp.reduce(logits)))
        ids.append(token)
    return found


def test_a_generator_is_what_the_contract_says(model):
    assert isinstance(model, LocalGenerator)
    assert model.task == "text-generation"
    writing: Writing = model.write(text("a"))
    assert iter(writing) is writing


def test_an_answer_continues_what_the_template_makes_of_the_messages(alphabet):
    assert answer(alphabet, chat("xyz a"))[0] == "bcdef"
    found, written = answer(alphabet, chat("a", "b", "once m"))
    assert found == "nopqr"
    assert (written.finish, written.prompt_tokens, written.completion_tokens) == (Finish.LENGTH, 16, 5)


def test_what_was_begun_is_continued(alphabet):
    assert answer(alphabet, chat("whatever", begun="so g"))[0] == "hijkl"
    assert answer(alphabet, text("what", begun="ever g"))[0] == "hijkl"


def test_ends(alphabet):
    assert answer(alphabet, text("x"))[1].finish is Finish.STOP
    found, written = answer(alphabet, text("a", sampling={"stop": ("de",)}))
    assert (found, written.finish) == ("bc", Finish.STOP)
    assert answer(alphabet, text("a", sampling={"max_tokens": 1}))[1].completion_tokens == 1
    assert answer(alphabet, text("z"))[1] == answer(alphabet, text("z"))[1]
    assert answer(alphabet, text("z"))[1].completion_tokens == 0


def test_the_whole_context_is_used_and_no_more(alphabet):
    for max_tokens in (None, 10**12):
        found, written = answer(alphabet, text("b" * 500 + "a", sampling={"max_tokens": max_tokens}))
        assert written.finish is Finish.LENGTH
        assert written.completion_tokens == alphabet.max_length - 501 == len(found)


def test_pieces_tell_the_probability_under_the_model_and_its_rivals(model, tiny_generator):
    prompt = text("once", sampling={"temperature": 1.5, "seed": 3, "top_logprobs": 3, "max_tokens": 4})
    pieces = list(model.write(prompt))
    ids = tiny_generator.ids_of("once") + [piece.token for piece in pieces]
    logits = tiny_generator.remembered_logits(ids[:-1])[-len(pieces) :].astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    for piece, row in zip(pieces, logprobs, strict=True):
        assert piece.logprob == pytest.approx(row[piece.token], abs=1e-4)
        assert [choice.logprob for choice in piece.top] == pytest.approx(sorted(row, reverse=True)[:3], abs=1e-4)
    assert pieces[0].top[0].text == tiny_generator.tokenizer().decode([int(logprobs[0].argmax())])
    likeliest = sorted(np.exp(logprobs[0]), reverse=True)
    own = np.exp(logprobs[0][pieces[0].token])
    other = likeliest[1] if own == likeliest[0] else likeliest[0]
    assert pieces[0].margin == pytest.approx(own - other, abs=1e-4)


def test_the_same_seed_draws_the_same(model):
    def drawn(seed):
        return answer(model, text("a", sampling={"temperature": 2.0, "seed": seed, "max_tokens": 20}))[0]

    assert drawn(5) == drawn(5)
    assert drawn(-1) == drawn((1 << 64) - 1)
    assert len({drawn(seed) for seed in range(8)}) > 4
    assert len({drawn(None) for _ in range(4)}) > 1
    assert answer(model, text("a", sampling={"temperature": 2.0, "top_k": 1}))[0] == answer(model, text("a"))[0]


# What is kept


def test_a_turn_goes_on_where_the_session_was(model, tiny_generator):
    first, written = answer(model, text("tell me"), tenant="t", session="s")
    assert written.cached_tokens == 0
    longer = f"tell me{first} and"
    pieces = model.write(text(longer), tenant="t", session="s")
    found = [(piece.token, pytest.approx(piece.logprob, abs=1e-4)) for piece in pieces]
    assert found == expected(tiny_generator, longer, 5)
    # The last token of the first answer was told and never computed.
    assert pieces.written.cached_tokens == len("tell me") + 5 - 1


def test_a_turn_that_says_something_else_goes_back(model, tiny_generator):
    for prompt, cached in (("once upon a time", 0), ("once upon a day", 12), ("once", 3), ("once", 3), ("other", 1)):
        pieces = model.write(text(prompt), tenant="t", session="s")
        found = [(piece.token, pytest.approx(piece.logprob, abs=1e-4)) for piece in pieces]
        assert found == expected(tiny_generator, prompt, 5)
        assert pieces.written.cached_tokens == cached


@pytest.mark.parametrize("other", [{"tenant": "b", "session": "s"}, {"tenant": "a", "session": "r"}, {}])
def test_a_session_is_seen_by_nobody_else(model, other):
    for slots in (2, 1):
        model.keep(slots)
        answer(model, text("a secret"), tenant="a", session="s")
        assert answer(model, text("a secret"), **other)[1].cached_tokens == 0
        assert answer(model, text("a secret"), **other)[1].cached_tokens == (7 if other else 0)


def test_tenant_and_session_are_two_names(model):
    answer(model, text("a secret"), tenant="ab", session="c")
    assert answer(model, text("a secret"), tenant="a", session="bc")[1].cached_tokens == 0


def test_the_least_recently_used_session_goes(model):
    def cached(session):
        return answer(model, text("once upon"), session=session)[1].cached_tokens > 0

    assert not any(cached(session) for session in "ab")
    assert cached("a")
    assert not cached("c")
    assert cached("a")
    assert not cached("b")
    assert not cached("c")


def test_turns_without_a_session_leave_nothing_and_take_no_session_its_slot(model):
    for session in "ab":
        answer(model, text("once upon"), session=session)
    for _ in range(3):
        assert answer(model, text("once upon"))[1].cached_tokens == 0
    assert all(answer(model, text("once upon"), session=session)[1].cached_tokens for session in "ab")


def test_a_session_in_use_is_not_shared(model, tiny_generator):
    first = model.write(text("once upon"), session="s")
    pieces = [next(first)]
    others = [model.write(text("once again"), session="s") for _ in range(3)]
    others_told = [[next(writing)] for writing in others]
    for writing, found in zip(others, others_told, strict=True):
        found += writing
        assert [piece.token for piece in found] == [t for t, _ in expected(tiny_generator, "once again", 5)]
    pieces += first
    assert [piece.token for piece in pieces] == [token for token, _ in expected(tiny_generator, "once upon", 5)]


def test_a_conversation_longer_than_a_slot_is_answered_all_the_same(bundle, tiny_generator):
    with EdgeGenerator.load(bundle, slots=1, slot_tokens=16) as model:
        prompt, count = "once upon a", 40
        for _ in range(2):
            pieces = list(model.write(text(prompt, sampling={"max_tokens": count}), session="s"))
            assert [piece.token for piece in pieces] == [t for t, _ in expected(tiny_generator, prompt, count)]
        long = "once upon a time " * 20
        found = list(model.write(text(long), session="s"))
        assert [piece.token for piece in found] == [token for token, _ in expected(tiny_generator, long, 5)]
        answer(model, text("short"), session="s")
        assert answer(model, text("short"), session="s")[1].cached_tokens == 4


def test_whoever_stops_waits_for_no_text_to_be_computed_once_more(model, monkeypatch):
    appended, append = [], TokenSequence.append

    def counted(sequence, ids):
        appended.append(len(ids))
        if len(ids) > 1 and writing.written.completion_tokens:
            writing.stop()  # as a client that leaves while the slot grows
        append(sequence, ids)

    monkeypatch.setattr(TokenSequence, "append", counted)
    model.keep(1, 300)
    writing = model.write(text("a", sampling={"max_tokens": 400, "temperature": 1.0, "seed": 1}), session="s")
    list(writing)
    assert writing.written.finish is Finish.INTERRUPTED
    assert writing.written.completion_tokens == 300
    assert appended[-2:] == [1, CHUNK]


def test_a_runtime_that_cannot_go_back_computes_the_turn_anew(model, monkeypatch, tiny_generator):
    def fail(sequence, count):
        raise BundleError("it cannot", "No remedy.")

    answer(model, text("once upon a time"), session="s")
    monkeypatch.setattr(TokenSequence, "rewind", fail)
    for prompt in ("once upon a day", "once", "once"):
        pieces = model.write(text(prompt), session="s")
        assert [piece.token for piece in pieces] == [token for token, _ in expected(tiny_generator, prompt, 5)]
        assert pieces.written.cached_tokens == 0


def test_what_was_computed_before_a_close_is_kept(model):
    writing = model.write(text("once upon", sampling={"max_tokens": 20}), session="s")
    for _ in range(3):
        next(writing)
    writing.close()
    assert writing.written.finish is Finish.INTERRUPTED
    assert writing.written.completion_tokens == 3
    writing.close()
    assert list(writing) == []
    assert answer(model, text("once upon"), session="s")[1].cached_tokens == 8


def test_a_writing_that_is_dropped_gives_its_slot_back_at_once(model):
    model.keep(1)
    gc.disable()
    try:
        writing = model.write(text("once upon", sampling={"max_tokens": 20}), session="s")
        next(writing)
        del writing
        assert answer(model, text("once upon"), session="s")[1].cached_tokens == 8
    finally:
        gc.enable()


def test_a_prompt_that_others_begin_like_is_computed_beforehand(bundle):
    system = Message(role=Role.SYSTEM, content="be kind")
    asked = Prompt(messages=(system, Message(role=Role.USER, content="hi")), sampling=Sampling(max_tokens=3))
    rude = Message(role=Role.SYSTEM, content="be rude")
    other = Prompt(messages=(rude, *asked.messages[1:]), sampling=Sampling(max_tokens=3))
    ready = len("s:be kind;u:")
    with EdgeGenerator.load(bundle, slots=1, prefill=[Prompt(messages=(system,))]) as model:
        for _ in range(3):
            assert answer(model, asked)[1].cached_tokens == ready
        assert answer(model, other)[1].cached_tokens == 0
        assert answer(model, asked)[1].cached_tokens == ready
        assert answer(model, asked, session="s")[1].cached_tokens == ready
        model._slots._refilling.join()
        assert answer(model, asked, session="s")[1].cached_tokens == ready + 1
        assert answer(model, asked, session="t")[1].cached_tokens == ready
        model._slots._refilling.join()
        assert answer(model, asked)[1].cached_tokens == ready


def test_a_text_may_be_computed_beforehand_and_one_too_long_is_not(bundle):
    with EdgeGenerator.load(bundle, slots=0, slot_tokens=20, prefill=[Prompt(text="once upon")]) as model:
        assert answer(model, text("once upon a"))[1].cached_tokens == 9
        assert answer(model, text("once upon a"), session="s")[1].cached_tokens == 9
        assert answer(model, text("once upon a"), session="s")[1].cached_tokens == 9
        model.keep(0, 20, [Prompt(text="once upon a time there was")])
        assert answer(model, text("once upon a time there was a"))[1].cached_tokens == 0


def test_threads_write_at_once(model, tiny_generator):
    wanted = {prompt: [token for token, _ in expected(tiny_generator, prompt, 8)] for prompt in ("a", "once", "zebra")}

    def work(number):
        prompt = list(wanted)[number % 3]
        whose = {"tenant": f"t{number % 2}", "session": f"s{number % 5}"} if number % 7 else {}
        pieces = list(model.write(text(prompt, sampling={"max_tokens": 8}), **whose))
        return [piece.token for piece in pieces] == wanted[prompt]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(120)))


# Interrupts


def test_another_thread_ends_an_answer_before_the_next_token(alphabet):
    writing = alphabet.write(text("a", sampling={"max_tokens": 400}))
    pieces = [next(writing), next(writing)]
    thread = threading.Thread(target=writing.stop)
    thread.start()
    thread.join()
    assert list(writing) == []
    assert told(pieces) == "bc"
    assert writing.written.finish is Finish.INTERRUPTED
    writing.stop()


def test_an_answer_that_was_stopped_before_it_began_computes_nothing(alphabet):
    writing = alphabet.write(text("a"))
    writing.stop()
    assert list(writing) == []
    assert (writing.written.finish, writing.written.prompt_tokens) == (Finish.INTERRUPTED, 1)


def test_what_is_known_halfway(alphabet):
    writing = alphabet.write(text("a"))
    next(writing)
    assert writing.written.finish is Finish.INTERRUPTED
    assert writing.written.completion_tokens == 1


def test_answers_that_are_being_written_end_although_the_model_is_closed(bundle):
    model = EdgeGenerator.load(bundle, slot_tokens=8)
    writing = model.write(text("once", sampling={"max_tokens": 20}), session="s")
    next(writing)
    unbegun = model.write(text("once", sampling={"max_tokens": 20}), session="s")
    model.close()
    assert len(list(writing)) == 19
    assert len(list(unbegun)) == 20
    with pytest.raises(InputError, match="closed"):
        model.write(text("a"))
    model.close()


# JSON by a schema, and tools

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 9}, "nice": {"type": "boolean"}},
    "required": ["age", "nice"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_json_by_a_schema_is_json_by_the_schema(model, temperature):
    for seed in range(5):
        sampling = {"schema": json.dumps(PERSON), "max_tokens": 60, "temperature": temperature, "seed": seed}
        found, written = answer(model, text("x", sampling=sampling))
        assert written.finish is Finish.STOP
        jsonschema.validate(json.loads(found), PERSON)


def test_no_schema_in_particular_means_an_object(model):
    found, written = answer(model, text("x", sampling={"schema": "{}", "max_tokens": 1, "temperature": 1.0}))
    assert found == "{"
    assert written.finish is Finish.LENGTH


def test_json_goes_on_with_what_was_begun(model):
    begun = '{"age": 7, "ni'
    found, _ = answer(model, text("x", begun=begun, sampling={"schema": json.dumps(PERSON), "max_tokens": 60}))
    assert json.loads(begun + found)["age"] == 7
    with pytest.raises(InputError, match="begun"):
        model.write(text("x", begun="[", sampling={"schema": json.dumps(PERSON)}))


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "no json",
        "[]",
        "7",
        '{"type": "strin"}',
        '{"properties": 5}',
        '{"type": "string", "pattern": "("}',
        "[" * 99999,
        '{"not": {"type": "string"}}',
        '{"$ref": "#/nowhere"}',
        '{"enum": 5}',
    ],
)
def test_what_is_no_schema(model, schema):
    with pytest.raises(InputError, match="schema"):
        model.write(text("x", sampling={"schema": schema}))


def test_without_llguidance_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match="generate"):
        model.write(text("x", sampling={"schema": "{}"}))


TIMER = Tool(name="set_timer", description="Sets a timer.", parameters=json.dumps(PERSON))
LIGHT = Tool(
    name="light",
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        }
    ),
)


@pytest.mark.parametrize("choice", ["required", "light", "set_timer"])
def test_a_tool_that_must_be_called_is_called(model, choice):
    prompt = text("x", tools=(TIMER, LIGHT), tool_choice=choice, sampling={"max_tokens": 200})
    found, written = answer(model, prompt)
    (call,) = written.tool_calls
    assert found == ""
    assert written.finish is Finish.TOOL_CALLS
    assert choice in ("required", call.name)
    jsonschema.validate(
        json.loads(call.arguments), json.loads({"light": LIGHT, "set_timer": TIMER}[call.name].parameters)
    )
    assert answer(model, prompt)[1].tool_calls == (call,)
    assert call.id.startswith("call_")


def test_a_schema_beside_tools_allows_either(model):
    sampling = {"schema": json.dumps(PERSON), "max_tokens": 200}
    found, written = answer(model, text("x", tools=(LIGHT,), sampling=sampling))
    assert bool(found) != bool(written.tool_calls)
    assert written.finish is (Finish.STOP if found else Finish.TOOL_CALLS)
    begun = "<tool_call>"
    with pytest.raises(InputError, match="begun"):
        model.write(text("x", tools=(LIGHT,), tool_choice="none", begun=begun, sampling=sampling))


# What cannot be asked


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        (Prompt(), "messages"),
        (Prompt(text="a", messages=(Message(role=Role.USER, content="a"),)), "messages"),
        (text(""), "no token"),
        (text("\ud800"), "tokenized"),
        (chat("\udfff"), "tokenized"),
        (text("a", begun="\udfff"), "tokenized"),
        (chat("a", "b", "c", "d", role=Role.SYSTEM), "the system speaks first"),
        (text("a", sampling={"max_tokens": 0}), "max_tokens"),
        (text("a", sampling={"max_tokens": -7}), "max_tokens"),
        (text("a", sampling={"temperature": -1.0}), "temperature"),
        (text("a", sampling={"temperature": float("nan")}), "temperature"),
        (text("a", sampling={"temperature": float("inf")}), "temperature"),
        (text("a", sampling={"top_p": 0.0}), "top_p"),
        (text("a", sampling={"top_p": 1.1}), "top_p"),
        (text("a", sampling={"top_k": -1}), "top_k"),
        (text("a", sampling={"seed": 1 << 64}), "seed"),
        (text("a", sampling={"top_logprobs": 21}), "top_logprobs"),
        (text("a", sampling={"stop": ("",)}), "stop"),
        (text("a", sampling={"stop": tuple("abcdefghijklmnopq")}), "stop"),
        (text("a", sampling={"stop": ("a",), "schema": "{}"}), "stop"),
        (text("a", tools=(LIGHT, LIGHT)), "tools"),
        (text("a", tools=(Tool(name=""),)), "tools"),
        (text("a", tools=(Tool(name="f", parameters="[]"),)), "tools"),
        (text("a", tools=(Tool(name="f", parameters="{"),)), "tools"),
        (text("a", tools=(Tool(name="f", parameters='{"type": 7}'),), tool_choice="f"), "schema"),
        (text("a", tools=(LIGHT,), tool_choice="stove"), "stove"),
        (text("a", tool_choice="required"), "tool_choice"),
        (
            chat("a", tools=(LIGHT,), tool_choice="required", begun="<tool_call>"),
            "tool_choice: an answer that has begun",
        ),
    ],
)
def test_what_cannot_be_asked(model, prompt, word):
    with pytest.raises(InputError, match=word):
        model.write(prompt)


def test_a_prompt_that_leaves_no_room_names_both_numbers(model):
    for prompt, count in ((text("a" * 512), 512), (chat("a" * 600), 602)):
        with pytest.raises(PromptTooLongError, match=rf"{count} tokens.* 512 "):
            model.write(prompt)
    assert answer(model, text("a" * 511))[1].finish in (Finish.LENGTH, Finish.STOP)


@pytest.mark.parametrize("fields", [{"slots": -1}, {"slot_tokens": 1}, {"slot_tokens": 513}])
def test_slots_that_make_no_sense(bundle, fields):
    with pytest.raises(InputError, match="slot"):
        EdgeGenerator.load(bundle, **fields)


def test_a_tool_call_that_came_back_is_part_of_the_conversation(alphabet):
    call = ToolCall(id="call_1", name="light", arguments="not json")
    asked = Message(role=Role.ASSISTANT, tool_calls=(call,))
    result = Message(role=Role.TOOL, content="it is a", tool_call_id="call_1")
    prompt = Prompt(messages=(asked, result), sampling=Sampling(max_tokens=2))
    assert answer(alphabet, prompt)[0] == "bc"


HARD = st.text(st.characters(exclude_categories=("Cs",)), max_size=30) | st.sampled_from(
    [
        "👩‍👩‍👧‍👦",
        "e\u0301é",
        "\u202eabc\u202c",
        "\x00\x7f\ufeff",
        "नमस्ते",
        "\r\n\t\v",
        "𝔘𝔫𝔦",
        "﷽" * 3,
        "ﬁ Å Ω",
        "\U0010ffff",
    ]
)


@given(HARD, HARD)
@settings(max_examples=60)
def test_hard_text_goes_through_template_and_tokenizer_unchanged(alphabet, first, second):
    prompt = chat(first, second, "a")
    ids = alphabet.prompt_ids(prompt)
    assert alphabet.detokenize(ids) == f"u:{first};a:{second};u:a"
    assert answer(alphabet, prompt)[0] == "bcdef"


class Scripted:
    """A slot in which the model writes the same token again and again."""

    def __init__(self, token, size):
        self.row = np.zeros(size, np.float32)
        self.row[token] = 9

    def begin(self, ids, limit):
        return 0

    def ahead(self, ids):
        return [ids]

    def extend(self, ids):
        pass

    def logits(self):
        return self.row


@pytest.mark.parametrize(("continues", "blank"), [(True, " "), (False, "")])
def test_a_blank_before_the_first_word_belongs_to_a_text_that_is_continued(continues, blank):
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "▁the": 1}, unk_token="<s>"))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    task = Task(np.zeros(1, np.int32), 3, (), Sampling(top_logprobs=1), continues=continues)
    pieces = list(EdgeWriting(task, lambda: nullcontext(Scripted(1, 2)), tokenizer))
    assert [piece.text for piece in pieces] == [f"{blank}the", " the"]
    assert [piece.top[0].text for piece in pieces] == [f"{blank}the", " the"]


def test_an_answer_to_messages_begins_by_itself():
    assert not chat("a").is_continued
    assert chat("a", begun="b").is_continued
    assert text("a").is_continued
