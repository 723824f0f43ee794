"""A language model that writes several answers at once: what each says does not depend on the others, or on a draft."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from edgewise.cloud import text_engine
from edgewise.cloud.causal import load_causal
from edgewise.cloud.drafted import Drafter
from edgewise.cloud.rowcache import RowCache
from edgewise.cloud.text_engine import TextEngine
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, Tool
from edgewise.errors import CheckpointError, InputError, PromptTooLongError, RequestError

TEXTS = ("corn rose", "a", "Why is the sky blue, and what did it cost?", "héllo", "gold " * 9, "ships")


@pytest.fixture(scope="module")
def folder(tiny_checkpoints, tmp_path_factory):
    return tiny_checkpoints.causal_checkpoint(tmp_path_factory.mktemp("causal") / "writer")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_causal(folder)


@pytest.fixture
def engine(loaded):
    return TextEngine(*loaded)


def prompt(content, *, tools=(), tool_choice="auto", begun="", role=Role.USER, **sampling):
    return Prompt(
        messages=(Message(role=role, content=content),),
        tools=tools,
        tool_choice=tool_choice,
        begun=begun,
        sampling=Sampling(**{"max_tokens": 24, **sampling}),
    )


def write(engine, prompts):
    """The tokens, texts and ends of several answers, written together; later ones join while others are written."""
    waiting = [(str(number), engine.read(one)) for number, one in enumerate(prompts)]
    pieces, ends = {key: [] for key, _ in waiting}, {}
    while waiting or engine.running:
        if waiting:
            engine.join(*waiting.pop(0))
        for told in engine.step():
            assert told.error is None
            pieces[told.key] += told.pieces
            if told.written is not None:
                ends[told.key] = told.written
    return [(pieces[key], ends[key]) for key in pieces]


def tokens(written):
    return [[piece.token for piece in pieces] for pieces, _ in written]


MIXED = [
    *[prompt(text) for text in TEXTS],
    *[prompt(text, temperature=0.8, top_p=0.9, top_k=40, seed=7, max_tokens=9 + at) for at, text in enumerate(TEXTS)],
]


def test_an_answer_is_the_same_alone_and_among_others(engine):
    together = tokens(write(engine, MIXED))
    assert together == [tokens(write(engine, [one]))[0] for one in MIXED]
    assert len({tuple(found) for found in together}) > len(TEXTS)


def test_greedy_answers_are_those_of_transformers(engine, loaded):
    model, tokenizer, _ = loaded
    for text in TEXTS:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        assert engine.read(prompt(text)).ids == ids
        with torch.inference_mode():
            whole = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
        assert tokens(write(engine, [prompt(text)]))[0] == [token for token in whole if token != 1]


def test_each_token_tells_how_likely_it_was_and_what_else_could_have_stood_there(engine, loaded):
    model = loaded[0]
    reading = engine.read(prompt("corn", top_logprobs=3))
    ((pieces, end),) = write(engine, [prompt("corn", top_logprobs=3)])
    with torch.inference_mode():
        ids = torch.tensor([reading.ids + [piece.token for piece in pieces]])
        scores = model(input_ids=ids).logits[0, len(reading.ids) - 1 :].log_softmax(-1)
    for piece, row in zip(pieces, scores, strict=False):
        assert piece.logprob == pytest.approx(float(row[piece.token]), abs=1e-4)
        assert [choice.logprob for choice in piece.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert piece.top[0].text == piece.text
    first, second = scores[0].exp().topk(2).values.tolist()
    assert pieces[0].margin == pytest.approx(first - second, abs=1e-4)
    assert all(piece.margin is None for piece in pieces[1:])
    assert (end.prompt_tokens, end.completion_tokens) == (len(reading.ids), len(pieces))


def drafted(loaded, draft, seconds):
    model, tokenizer, facts = loaded
    return TextEngine(model, tokenizer, facts, drafter=Drafter.load(draft, tokenizer, facts), seconds=seconds)


class Timer:
    """Says that drafted steps are quick, or that plain ones are."""

    def __init__(self, *, drafts_pay):
        self.now, self.pay = 0.0, drafts_pay

    def __call__(self):
        engine = self.engine
        worth = next(iter(engine._worth.values()), None)
        self.now += 0.01 if worth is not None and worth.drafts is self.pay else 1.0
        return self.now


@pytest.mark.parametrize("drafts_pay", [True, False])
def test_a_draft_changes_no_answer(engine, loaded, folder, tiny_checkpoints, tmp_path, drafts_pay):
    plain = write(engine, MIXED)
    for name, draft in (("itself", folder), ("another", tiny_checkpoints.causal_checkpoint(tmp_path / "d", seed=5))):
        timer = Timer(drafts_pay=drafts_pay)
        timer.engine = with_draft = drafted(loaded, draft, timer)
        for _ in range(2):
            found = write(with_draft, MIXED)
            assert tokens(found) == tokens(plain)
            assert [end for _, end in found] == [end for _, end in plain]
            assert ["".join(p.text for p in pieces) for pieces, _ in found] == [
                "".join(p.text for p in pieces) for pieces, _ in plain
            ]
        stats = with_draft.stats
        assert stats.guessed > 0
        if name == "itself":
            assert stats.accepted > 0
        if name == "itself" and drafts_pay:
            assert stats.tokens > 1.3 * stats.passes


def test_a_draft_that_agrees_saves_passes_of_its_target(loaded, folder):
    timer = Timer(drafts_pay=True)
    timer.engine = engine = drafted(loaded, folder, timer)
    write(engine, [prompt("corn", max_tokens=100)])
    assert engine.stats.drafts
    before = (engine.stats.passes, engine.stats.tokens)
    write(engine, [prompt("gold rose", max_tokens=100)])
    assert engine.stats.tokens - before[1] > 3.5 * (engine.stats.passes - before[0])


def test_a_draft_with_another_tokenizer_is_refused(loaded, tiny_checkpoints, tmp_path):
    other = tiny_checkpoints.causal_checkpoint(tmp_path / "other", extra=("ab",))
    with pytest.raises(CheckpointError, match="another tokenizer"):
        Drafter.load(other, loaded[1], loaded[2])


def test_a_long_prompt_is_read_in_pieces_while_others_write(engine, monkeypatch):
    monkeypatch.setattr(text_engine, "SHARED_CHUNK", 8)
    alone = tokens(write(engine, [prompt("x" * 150)]))[0]
    engine.join("short", engine.read(prompt("a", max_tokens=40)))
    engine.step()
    engine.join("long", engine.read(prompt("x" * 150)))
    order, found = [], []
    while engine.running:
        for told in engine.step():
            order += [told.key] * len(told.pieces)
            found += [piece.token for piece in told.pieces] if told.key == "long" else []
    assert order.index("long") >= 15
    assert found == alone


def test_who_leaves_is_out_of_the_next_step_and_disturbs_nobody(engine):
    alone = [tokens(write(engine, [one]))[0] for one in MIXED[:3]]
    for number, one in enumerate(MIXED[:3]):
        engine.join(str(number), engine.read(one))
    found = {"0": [], "1": [], "2": []}
    for step in range(40):
        if step == 6:
            engine.leave("1")
            engine.leave("nobody")
        for told in engine.step():
            assert step < 6 or told.key != "1"
            found[told.key] += [piece.token for piece in told.pieces]
    assert engine.running == 0
    assert [found["0"], found["2"]] == [alone[0], alone[2]]
    assert found["1"] == alone[1][: len(found["1"])]
    assert 0 < len(found["1"]) <= 6


def test_answers_end_at_their_limits(loaded):
    model, tokenizer, facts = loaded
    engine = TextEngine(model, tokenizer, replace(facts, ends=frozenset()))
    ((pieces, end),) = write(engine, [prompt("a", max_tokens=5)])
    assert (len(pieces), end.finish, end.completion_tokens) == (5, Finish.LENGTH, 5)
    ((pieces, end),) = write(engine, [prompt("x" * 200, max_tokens=None)])
    assert end.finish is Finish.LENGTH
    assert end.prompt_tokens + end.completion_tokens == engine.context
    text = "".join(piece.text for piece in pieces)
    word = text[3:5]
    ((pieces, end),) = write(engine, [prompt("x" * 200, max_tokens=None, stop=(word,))])
    assert "".join(piece.text for piece in pieces) == text[: text.index(word)]
    assert end.finish is Finish.STOP


def test_what_an_answer_begins_with_is_continued(engine):
    ((pieces, _),) = write(engine, [prompt("corn")])
    texts = [piece.text for piece in pieces]
    assert len(texts) > 8
    begun = "".join(texts[:8])
    if "\N{REPLACEMENT CHARACTER}" not in begun and engine.read(prompt("corn", begun=begun)).ids[-8:] == [
        piece.token for piece in pieces[:8]
    ]:
        ((rest, _),) = write(engine, [prompt("corn", begun=begun)])
        assert [piece.token for piece in rest][:16] == [piece.token for piece in pieces[8:]][:16]
    assert engine.read(prompt("corn", begun="It")).ids[-2:] == engine.read(Prompt(text="It")).ids


def test_json_by_a_schema_is_json(engine):
    schema = json.dumps({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
                         "additionalProperties": False})  # fmt: skip
    for temperature in (0, 1):
        ((pieces, end),) = write(engine, [prompt("corn", schema=schema, temperature=temperature, max_tokens=60)])
        assert json.loads("".join(piece.text for piece in pieces))["n"] in (1, 2)
        assert end.finish is Finish.STOP
    assert all(math.isfinite(piece.logprob) for piece in pieces)


def test_a_call_that_has_to_be_made_is_made(engine):
    parameters = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"],
                  "additionalProperties": False}  # fmt: skip
    tools = (Tool(name="find", parameters=json.dumps(parameters)),)
    for choice in ("find", "required"):
        asked = prompt("corn", tools=tools, tool_choice=choice, max_tokens=200)
        ((pieces, end),) = write(engine, [asked])
        assert "".join(piece.text for piece in pieces) == ""
        assert end.finish is Finish.TOOL_CALLS
        assert [call.name for call in end.tool_calls] == ["find"]
        assert json.loads(end.tool_calls[0].arguments) == {"n": 1}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (prompt("a", max_tokens=0), "max_tokens"),
        (prompt("a", temperature=-1), "temperature"),
        (prompt("a", top_p=0), "top_p"),
        (prompt("a", tool_choice="fly"), "tool_choice"),
        (prompt("a", schema="{"), "schema"),
        (Prompt(), "messages"),
        (Prompt(text=""), "prompt"),
        (Prompt(text="a", tools=(Tool(name="t"),)), "tools"),
        (prompt("a", tools=(Tool(name="t"),), tool_choice="t", begun="b"), "tool_choice"),
        (
            Prompt(messages=tuple(Message(role=role, content="a") for role in (Role.USER, Role.SYSTEM))),
            "messages: .*a system message comes first",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_by_the_name_of_its_field(engine, asked, told):
    with pytest.raises(InputError, match=told):
        engine.read(asked)


def test_a_prompt_longer_than_the_context_names_both_numbers(engine):
    with pytest.raises(PromptTooLongError, match=r"has 304 tokens or more, and writer reads 256 with its answer"):
        engine.read(prompt("x" * 300))


@pytest.fixture
def toolless(loaded):
    """An engine whose chat template has no place for tools."""
    model, tokenizer, facts = loaded
    template = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    yield TextEngine(model, tokenizer, facts)
    tokenizer.chat_template = template


def test_tools_are_refused_where_the_template_would_drop_them(toolless):
    with pytest.raises(RequestError, match="no place for tools"):
        toolless.read(prompt("a", tools=(Tool(name="t"),)))


def test_tools_that_nobody_is_told_of_need_no_place_in_the_template(toolless):
    tools = (Tool(name="t", parameters='{"type": "object", "additionalProperties": false}'),)
    assert toolless.read(prompt("a", tools=tools, tool_choice="none")).ids == toolless.read(prompt("a")).ids
    for choice in ("required", "t"):
        ((_, end),) = write(toolless, [prompt("a", tools=tools, tool_choice=choice, max_tokens=100)])
        assert [call.name for call in end.tool_calls] == ["t"]


def test_a_model_that_says_nothing_but_nan_fails_that_answer_alone(engine, monkeypatch):
    monkeypatch.setattr(engine, "_logits", lambda rows, guesses: [[torch.full((263,), math.nan).numpy()]] * len(rows))
    engine.join("a", engine.read(prompt("a")))
    engine.step()
    (told,) = engine.step()
    assert "no numbers" in str(told.error)
    assert engine.running == 0


class Panic(BaseException):
    """As a library of Rust raises it."""


@pytest.mark.parametrize("failure", [ValueError("the secret"), Panic("the secret")])
@pytest.mark.parametrize("part", ["chooser.choose", "transcript.push", "transcript.close"])
def test_what_one_answer_fails_over_ends_no_other(engine, monkeypatch, caplog, failure, part):
    def fail(*args, **more):
        raise failure

    ((alone, _),) = write(engine, [prompt("corn")])
    engine.join("bad", engine.read(prompt("a", max_tokens=3)))
    engine.join("good", engine.read(prompt("corn")))
    owner, method = part.split(".")
    monkeypatch.setattr(getattr(engine._waiting[0], owner), method, fail)
    found, errors = [], {}
    while engine.running:
        for told in engine.step():
            found += told.pieces if told.key == "good" else []
            if told.error is not None:
                errors[told.key] = (told.error, told.written)
    assert [piece.token for piece in found] == [piece.token for piece in alone]
    ((error, written),) = [errors.pop("bad")]
    assert not errors
    assert written is None
    assert "The engine failed over this answer" in str(error)
    assert type(failure).__name__ in caplog.text
    assert "secret" not in caplog.text


def blocks(engine):
    """Tokens that the memory of each layer is made for."""
    return {
        held.shape[0] * held.shape[2] for layer in engine._cache._cache.layers for held in (layer.keys, layer.values)
    }


@pytest.fixture(scope="module")
def long_loaded(tiny_checkpoints, tmp_path_factory):
    """A model that reads 1,024 tokens, and answers that end at their limit."""
    folder = tiny_checkpoints.causal_checkpoint(tmp_path_factory.mktemp("long") / "writer")
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace(": 256", ": 1024"))
    model, tokenizer, facts = load_causal(folder)
    return model, tokenizer, replace(facts, ends=frozenset())


def test_a_long_prompt_does_not_make_the_others_take_its_memory(long_loaded):
    engine = TextEngine(*long_loaded, max_tokens=2048)
    for number in range(8):
        engine.join(f"s{number}", engine.read(Prompt(text="corn", sampling=Sampling(max_tokens=20 + number))))
    engine.join("long", engine.read(Prompt(text="x" * 800, sampling=Sampling(max_tokens=4))))
    engine.join("last", engine.read(Prompt(text="gold", sampling=Sampling(max_tokens=200))))
    ended, most = [], 0
    while engine.running:
        ended += [told.key for told in engine.step() if told.written is not None]
        most = max([most, *blocks(engine)])
        if ended[-1:] == ["long"]:
            assert engine.running == 1
            engine.step()
            assert blocks(engine) == {256}  # what the long one took is given back though somebody writes
            break
    assert most == 2048
    assert set(ended) == {f"s{number}" for number in range(8)} | {"long"}


def test_answers_that_outgrow_their_memory_wait_and_say_the_same(long_loaded):
    asked = [
        Prompt(text=text, sampling=Sampling(max_tokens=300, temperature=heat, seed=3))
        for text, heat in (("corn", 0), ("gold rose", 1), ("ship", 0), ("x" * 240, 1))
    ]
    alone = [tokens(write(TextEngine(*long_loaded), [one]))[0] for one in asked]
    engine = TextEngine(*long_loaded, max_tokens=1024)
    set_back, found, order = 0, {str(number): [] for number in range(4)}, []
    for number, one in enumerate(asked):
        engine.join(str(number), engine.read(one))
    while engine.running:
        writing = len(engine._rows)
        for told in engine.step():
            found[told.key] += [piece.token for piece in told.pieces]
            order += [told.key] if told.written is not None else []
        set_back += len(engine._rows) < writing and not order
        assert max(blocks(engine), default=0) <= 1024
    assert set_back
    assert order[0] == "0"  # who came first is never set back
    assert list(found.values()) == alone


def test_an_answer_that_is_alone_may_fill_the_context(long_loaded):
    engine = TextEngine(*long_loaded, max_tokens=1)
    ((one, _), (other, _)) = write(engine, [Prompt(text="x" * 600, sampling=Sampling(max_tokens=40))] * 2)
    assert len(one) == 40
    assert one == other


def test_who_leaves_while_waiting_for_memory_is_gone(long_loaded):
    engine = TextEngine(*long_loaded, max_tokens=1)
    for key in "ab":
        engine.join(key, engine.read(Prompt(text="x" * 30, sampling=Sampling(max_tokens=5))))
    engine.step()
    engine.leave("b")
    assert engine.running == 1
    engine.join("c", engine.read(Prompt(text="y", sampling=Sampling(max_tokens=5))))
    assert engine.clear() == ["a", "c"]
    assert engine.running == 0


def test_drafts_follow_answers_that_are_set_back(long_loaded):
    model, tokenizer, facts = long_loaded
    asked = [Prompt(text=text, sampling=Sampling(max_tokens=280)) for text in ("corn", "gold rose", "ship")]
    plain = tokens(write(TextEngine(*long_loaded), asked))
    timer = Timer(drafts_pay=True)
    timer.engine = engine = TextEngine(
        *long_loaded,
        max_tokens=768,
        drafter=Drafter(model, context=facts.context, vocabulary=len(tokenizer)),
        seconds=timer,
    )
    assert tokens(write(engine, asked)) == plain
    assert engine.stats.accepted > 0


@pytest.mark.parametrize("behind", [[], [6, 7, 8]])
def test_numbers_of_a_row_that_is_gone_reach_no_later_one(loaded, monkeypatch, behind):
    model = loaded[0]
    embeddings = model.get_input_embeddings().weight
    long, short, poison = [*range(20, 60)], [30, 31, 32, 33, 34], 99
    cache = RowCache(model)
    with torch.inference_mode():
        alone = model(torch.tensor([short])).logits[0, -1]
    monkeypatch.setattr(embeddings, "data", embeddings.data.clone())
    embeddings.data[poison] = math.inf
    cache.forward(0, [long[:-1]], [0])
    assert cache.forward(1, [[*range(20, 35), poison]], [0], last_only=True).isnan().all()
    if behind:
        cache.forward(2, [behind], [0])
    rows = 3 if behind else 2
    cache.remove(1, rows)
    cache.forward(rows - 1, [short[:-1]], [0])
    tokens, lengths = [long[-1:], behind[-1:], short[-1:]], [len(long) - 1, len(behind) - 1, len(short) - 1]
    if not behind:
        del tokens[1], lengths[1]
    found = cache.forward(0, tokens, lengths)
    assert torch.allclose(found[-1, 0], alone, atol=1e-4)
    assert found.isfinite().all()


def test_a_model_that_computes_otherwise_in_a_batch_is_not_served(loaded, monkeypatch):
    monkeypatch.setattr("edgewise.cloud.rowcache._mask", lambda where, length: None)
    with pytest.raises(CheckpointError, match="several answers at once"):
        TextEngine(*loaded)


def longrope(tiny_checkpoints, folder, original):
    """A language model whose positions have other frequencies from a number of tokens on."""
    torch.manual_seed(0)
    tiny_checkpoints.chat_tokenizer(folder)
    config = Phi3Config(
        vocab_size=263, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        max_position_embeddings=256, original_max_position_embeddings=original,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_context_ends_where_positions_would_get_other_frequencies(tiny_checkpoints, tmp_path):
    engine = TextEngine(*load_causal(longrope(tiny_checkpoints, tmp_path / "phi", 64)))
    assert engine.context == 64
    long, short = prompt("x" * 40, max_tokens=None), prompt("corn")
    together = tokens(write(engine, [long, short]))
    assert together == [tokens(write(engine, [one]))[0] for one in (long, short)]
    with pytest.raises(PromptTooLongError, match="reads 64"):
        engine.read(prompt("x" * 64))


def test_frequencies_that_grow_with_the_text_end_a_context_too(tiny_checkpoints, tmp_path):
    scaling = {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    folder = tiny_checkpoints.causal_checkpoint(tmp_path / "writer", **scaling)
    assert load_causal(folder)[2].context == 256


def test_a_model_whose_short_texts_hang_on_a_long_one_is_not_served(tiny_checkpoints, tmp_path):
    model, tokenizer, facts = load_causal(longrope(tiny_checkpoints, tmp_path / "phi", 64))
    with pytest.raises(CheckpointError, match="several answers at once: its logits differ"):
        TextEngine(model, tokenizer, replace(facts, context=256))


def test_the_version_names_the_tokenizer_too(folder, loaded, tiny_checkpoints, tmp_path):
    again = tiny_checkpoints.causal_checkpoint(tmp_path / "again")
    assert load_causal(again)[2].version == loaded[2].version
    config = again / "tokenizer_config.json"
    config.write_text(config.read_text().replace("256", "200"))
    assert load_causal(again)[2].version != loaded[2].version
    assert load_causal(again)[2].context == 200


def test_a_classifier_writes_no_text(tiny_checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="writes no text"):
        load_causal(tiny_checkpoints.text_checkpoint(tmp_path / "bert"))
