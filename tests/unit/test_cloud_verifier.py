"""Sessions of drafts at a target: what is kept, what is lost, who waits; and that its text is the target's own."""

import asyncio
import time

import msgspec
import numpy as np
import pytest

from edgewise import telemetry
from edgewise.cloud.verifier import TorchTarget, Verifier, VerifierLimits
from edgewise.errors import CloudUnreachableError, RequestError
from edgewise.telemetry import Metrics
from edgewise.wire.faults import Fault
from edgewise.wire.verify import DraftProbabilities, VerifyPrompt, VerifyReference, VerifyRequest

VOCABULARY, CONTEXT, END = 12, 64, 11
TABLE = np.random.default_rng(0).normal(0, 2, (VOCABULARY, VOCABULARY)).astype(np.float32)
TABLE[:, END] = -30.0
TABLE[9] = 0.0
TABLE[9, END] = 30.0


class TableTarget:
    """What follows a token depends on that token alone; the cache is the tokens that were computed."""

    context, vocabulary, ends = CONTEXT, VOCABULARY, frozenset({END})

    def __init__(self):
        self.passes = []
        self.failing = False
        self.go_on = None

    def begin(self):
        return []

    def forward(self, cache, ids, last):
        if self.go_on is not None:
            self.go_on.wait()
        if self.failing:
            raise RuntimeError("no memory")
        self.passes.append((len(cache), list(ids)))
        cache.extend(ids)
        return TABLE[list(ids)][-last:]

    def crop(self, cache, length):
        del cache[length:]


def read(prompt):
    """A token a letter, "a" being 0, behind a 10 that begins every text."""
    if "?" in (prompt.text or ""):
        raise RequestError("prompt", "prompt: it is a question.", "Send none.")
    return [10, *(ord(letter) - ord("a") for letter in (prompt.text or "") + prompt.begun)]


class SetClock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
def target():
    return TableTarget()


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
async def make(target, clock):
    made = []

    def maker(metrics=None, **limits):
        made.append(
            Verifier(
                target,
                metrics=metrics,
                reference=VerifyReference("tiny", "v1"),
                tokenizer="sha256:t",
                read=read,
                clock=clock,
                limits=VerifierLimits(**limits),
            )
        )
        return made[-1]

    yield maker
    for verifier in made:
        verifier.close()


def asking(**fields):
    return VerifyRequest(**{"session": "s", "tokenizer": "sha256:t", **fields})


def plain(token, count):
    """What the target alone writes."""
    written = []
    while len(written) < count and END not in written:
        token = int(TABLE[token].argmax())
        written.append(token)
    return written


async def test_a_round_keeps_what_the_target_would_have_said(make, target):
    verifier, said = make(), plain(3, 4)
    first = await verifier.verify("a", asking(tokens=(1, 2, 3)))
    assert (first.accepted, first.token, first.position, first.ended) == (0, said[0], 4, False)
    wrong = (said[2] + 1) % END
    second = await verifier.verify("a", asking(position=4, draft=(said[1], wrong, 5)))
    assert (second.accepted, second.token, second.position) == (1, said[2], 6)
    assert target.passes == [(0, [1, 2, 3]), (3, [said[0], said[1], wrong, 5])]
    rows = np.log(np.exp(TABLE.astype(float)) / np.exp(TABLE.astype(float)).sum(1, keepdims=True))
    np.testing.assert_allclose(second.logprobs, [rows[said[0], said[1]], rows[said[1], said[2]]])
    third = await verifier.verify("a", asking(position=6, draft=(said[3],)))
    assert third.accepted == 1
    assert target.passes[-1] == (5, [said[2], said[3]])


async def test_what_becomes_of_drafts_is_counted(make):
    metrics, said = Metrics(), plain(3, 4)
    verifier = make(metrics)
    assert not metrics.render()
    await verifier.verify("a", asking(tokens=(1, 2, 3)))
    await verifier.verify("b", asking(tokens=(1, 2, 3), draft=(said[0], said[1], (said[2] + 1) % END, 5)))
    with pytest.raises(RequestError):
        await verifier.verify("a", asking(position=40, draft=(1,)))
    fates = metrics.counter(*telemetry.VERIFIED_TOKENS)
    assert (fates.value("tiny", "accepted"), fates.value("tiny", "refused")) == (2, 2)
    assert b'edgewise_verify_seconds_count{model="tiny"} 2' in metrics.render()


async def test_a_whole_answer_is_the_targets_whatever_is_drafted(make):
    verifier, rng = make(), np.random.default_rng(1)
    for number in range(20):
        start = int(rng.integers(0, END))
        said = plain(start, 20)
        session, position, tokens, written = f"s{number}", 0, (start,), []
        while len(written) < 20 and END not in written:
            k = int(rng.integers(0, 5))
            right = [*said[len(written) :], *[0] * k][:k]
            draft = tuple(token if rng.random() < 0.7 else int(rng.integers(0, END)) for token in right)
            reply = await verifier.verify("a", asking(session=session, position=position, tokens=tokens, draft=draft))
            written += [*draft[: reply.accepted], reply.token]
            position, tokens = reply.position, ()
        assert written[: len(said)] == said


async def test_an_end_ends_the_answer_also_where_it_was_drafted(make):
    verifier = make()
    reply = await verifier.verify("a", asking(tokens=(9,), draft=(END, 4)))
    assert (reply.accepted, reply.token, reply.ended, reply.position) == (0, END, True, 2)


async def test_a_request_can_be_sent_again(make, target):
    verifier = make()
    await verifier.verify("a", asking(tokens=(1, 2, 3)))
    asked = asking(position=4, draft=tuple(plain(plain(3, 1)[0], 2)))
    first = await verifier.verify("a", asked)
    again = await verifier.verify("a", asked)
    assert msgspec.structs.replace(again, compute_ms=0) == msgspec.structs.replace(first, compute_ms=0)
    # A whole session, told anew, is not computed anew.
    await verifier.verify("a", asking(tokens=(1, 2, 3, 7)))
    assert target.passes[-1] == (3, [7])


async def test_a_prompt_is_read_by_the_target_which_tells_its_ids(make, target):
    verifier = make()
    reply = await verifier.verify("a", asking(prompt=VerifyPrompt(text="bc", begun="d")))
    assert (reply.prompt, reply.token, reply.position) == ((10, 1, 2, 3), plain(3, 1)[0], 5)
    reply = await verifier.verify("a", asking(prompt=VerifyPrompt(text="bcd")))
    assert reply.prompt == (10, 1, 2, 3)
    assert target.passes == [(0, [10, 1, 2, 3]), (3, [3])]  # what was computed of a session is, also of its next prompt
    reply = await verifier.verify("a", asking(position=reply.position, draft=(1,)))
    assert reply.prompt is None


@pytest.mark.parametrize(("text", "field"), [("bc?", "prompt"), ("b" * CONTEXT, "tokens"), ("bz", "tokens")])
async def test_a_prompt_that_is_refused_leaves_the_session_whole(make, target, text, field):
    verifier = make()
    reply = await verifier.verify("a", asking(prompt=VerifyPrompt(text="bc")))
    with pytest.raises(RequestError) as caught:
        await verifier.verify("a", asking(prompt=VerifyPrompt(text=text)))
    assert caught.value.field == field
    assert (await verifier.verify("a", asking(position=reply.position))).position == reply.position + 1
    assert len(target.passes) == 2


async def test_who_is_refused_or_leaves_keeps_no_session_beyond_the_limit(make, target):
    import threading

    verifier = make(sessions=2)
    target.go_on = threading.Event()
    names = "abcdefgh"
    waiting = [asyncio.create_task(verifier.verify("t", asking(session=name, tokens=(1,)))) for name in names]
    await asyncio.sleep(0.01)
    for task in waiting[1:]:
        task.cancel()
    target.go_on.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    for name in names:
        with pytest.raises(RequestError):
            await verifier.verify("t", asking(session=name, prompt=VerifyPrompt(text="?")))
    assert verifier.sessions == 2


async def test_an_edited_turn_takes_the_rest_back(make, target):
    verifier = make()
    await verifier.verify("a", asking(tokens=(1, 2, 3), draft=(plain(3, 1)[0],)))
    reply = await verifier.verify("a", asking(position=2, tokens=(5,)))
    assert (reply.token, reply.position) == (plain(5, 1)[0], 4)
    assert target.passes[-1] == (2, [5])


async def test_sessions_belong_to_tenants(make):
    verifier = make()
    await verifier.verify("a", asking(tokens=(1, 2)))
    with pytest.raises(Fault) as caught:
        await verifier.verify("b", asking(position=2))
    assert (caught.value.status, caught.value.code) == (409, "session_lost")
    assert "position 0" in caught.value.remedy


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("tokens", {}),
        ("tokens", {"tokens": (1, VOCABULARY)}),
        ("draft", {"tokens": (1,), "draft": (VOCABULARY,)}),
        (
            "draft_probs[0].ids",
            {"tokens": (1,), "draft": (1,), "draft_probs": (DraftProbabilities((1, VOCABULARY), (0.5, 0.5)),)},
        ),
        ("tokens", {"tokens": (1,) * CONTEXT}),
        ("draft", {"tokens": (1,) * (CONTEXT - 2), "draft": (1, 1)}),
    ],
)
async def test_bad_input_names_its_field_and_computes_nothing(make, target, field, fields):
    verifier = make()
    with pytest.raises(RequestError) as caught:
        await verifier.verify("a", asking(**fields))
    assert caught.value.field == field
    assert caught.value.remedy
    assert not target.passes
    assert not verifier.sessions


async def test_a_position_beyond_the_session_is_refused(make):
    verifier = make()
    reply = await verifier.verify("a", asking(tokens=(1, 2)))
    with pytest.raises(RequestError, match="beyond the 3 tokens") as caught:
        await verifier.verify("a", asking(position=4))
    assert caught.value.field == "position"
    assert (await verifier.verify("a", asking(position=reply.position))).position == 4


async def test_another_tokenizer_is_refused_with_the_remedy(make):
    with pytest.raises(Fault, match="other_tokenizer") as caught:
        await make().verify("a", asking(tokenizer="sha256:x", tokens=(1,)))
    assert caught.value.status == 409
    assert "sha256:t" in caught.value.remedy


async def test_the_least_recently_used_session_goes(make):
    verifier = make(sessions=2)
    for name in ("a", "b", "a", "c"):
        await verifier.verify("t", asking(session=name, tokens=(1, 2)))
    assert verifier.sessions == 2
    await verifier.verify("t", asking(session="a", position=2))
    with pytest.raises(Fault, match="session_lost"):
        await verifier.verify("t", asking(session="b", position=2))


async def test_sessions_share_a_number_of_tokens(make):
    verifier = make(tokens=20)
    for name in ("a", "b", "c"):
        await verifier.verify("t", asking(session=name, tokens=(1,) * 8))
    assert verifier.sessions == 2
    await verifier.verify("t", asking(session="d", tokens=(1,) * 30))
    assert verifier.sessions == 1


async def test_idle_sessions_are_freed(make, clock):
    verifier = make(idle_s=10)
    await verifier.verify("t", asking(session="a", tokens=(1,)))
    clock.now = 9.0
    await verifier.verify("t", asking(session="b", tokens=(1,)))
    clock.now = 11.0
    await verifier.verify("t", asking(session="b", position=2))
    assert verifier.sessions == 1


async def test_idle_sessions_are_freed_also_where_nobody_asks(target):
    verifier = Verifier(
        target,
        reference=VerifyReference("tiny", "v1"),
        tokenizer="sha256:t",
        read=read,
        clock=time,
        limits=VerifierLimits(idle_s=0.02),
    )
    await verifier.verify("t", asking(tokens=(1,)))
    async with asyncio.timeout(20):
        while verifier.sessions:  # noqa: ASYNC110  a timer of the loop frees them, which tells nobody
            await asyncio.sleep(0.005)
    verifier.close()


async def test_one_too_many_is_told_to_come_back(make, target):
    import threading

    target.go_on = threading.Event()
    verifier = make(waiting=2)
    waiting = [asyncio.create_task(verifier.verify("t", asking(session=name, tokens=(1,)))) for name in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(Fault) as caught:
        await verifier.verify("t", asking(session="c", tokens=(1,)))
    assert caught.value.status == 429
    target.go_on.set()
    assert [reply.position for reply in await asyncio.gather(*waiting)] == [2, 2]


async def test_a_caller_that_leaves_leaves_a_whole_session(make, target):
    import threading

    verifier = make()
    await verifier.verify("t", asking(tokens=(1, 2)))
    target.go_on = threading.Event()
    computing = asyncio.create_task(verifier.verify("t", asking(position=3)))
    queued = asyncio.create_task(verifier.verify("t", asking(position=3, draft=(1, 2, 3))))
    await asyncio.sleep(0.01)
    for task in (computing, queued):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    target.go_on.set()
    said = plain(2, 2)
    reply = await verifier.verify("t", asking(position=3, draft=(said[1],)))
    assert (reply.accepted, reply.position) == (1, 5)
    assert not any(ids[-1] == 3 for _, ids in target.passes)  # nothing was computed for who had left the queue


async def test_a_verifier_that_is_closed_rules_on_what_it_has_and_takes_no_more(make, target):
    import threading

    target.go_on = threading.Event()
    verifier = make()
    waiting = [asyncio.create_task(verifier.verify("t", asking(session=name, tokens=(1,)))) for name in "aab"]
    await asyncio.sleep(0.01)
    verifier.close()
    with pytest.raises(CloudUnreachableError):
        await verifier.verify("t", asking(tokens=(1,)))
    target.go_on.set()
    assert [reply.position for reply in await asyncio.gather(*waiting)] == [2, 2, 2]
    assert not verifier.sessions


async def test_a_failure_costs_the_session_and_nothing_else(make, target):
    verifier = make()
    await verifier.verify("t", asking(tokens=(1, 2)))
    target.failing = True
    with pytest.raises(RuntimeError):
        await verifier.verify("t", asking(position=3))
    target.failing = False
    with pytest.raises(Fault, match="session_lost"):
        await verifier.verify("t", asking(position=3))
    assert (await verifier.verify("t", asking(tokens=(1, 2)))).position == 3


async def test_a_seed_draws_the_same_tokens(make):
    verifier = make()
    replies = [
        await verifier.verify("t", asking(session=f"s{seed}{turn}", tokens=(1, 2), temperature=1.5, seed=seed))
        for turn in range(2)
        for seed in range(12)
    ]
    tokens = [reply.token for reply in replies]
    assert tokens[:12] == tokens[12:]
    assert len(set(tokens)) > 2


async def test_without_a_seed_it_draws_as_the_target_does(make):
    """One drafted token and what follows, many times: pairs against the exact distribution."""
    verifier, rng, temperature, draws = make(), np.random.default_rng(3), 1.3, 4000
    rows = TABLE.astype(np.float64) / temperature
    rows = np.exp(rows - rows.max(1, keepdims=True))
    rows /= rows.sum(1, keepdims=True)
    q = rng.dirichlet(np.ones(4))
    ids = (0, 2, 5, 7)
    counts = np.zeros((VOCABULARY, VOCABULARY))
    for _ in range(draws):
        drafted = int(rng.choice(ids, p=q))
        drawn = (DraftProbabilities(ids, tuple(q.tolist())),)
        reply = await verifier.verify(
            "t", asking(tokens=(4,), draft=(drafted,), draft_probs=drawn, temperature=temperature)
        )
        counts[(drafted if reply.accepted else reply.token), reply.token if reply.accepted else -1] += 1
    # The last column counts answers of one token; what follows an accepted one is drawn from its own row.
    first = counts.sum(axis=1) / draws
    assert 0.5 * np.abs(first - rows[4]).sum() < 0.04
    for token in ids:
        followed = counts[token, :-1]
        if followed.sum() > 400:
            assert 0.5 * np.abs(followed / followed.sum() - rows[token][:-1]).sum() < 0.12


@pytest.fixture(scope="module")
def llama():
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


async def test_a_torch_model_writes_through_drafts_what_it_writes_alone(llama, clock):
    import torch

    prompt = [5, 9, 2]
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(24):
            tokens.append(int(llama(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    said = tokens[len(prompt) :]
    target = TorchTarget(llama, context=CONTEXT, vocabulary=40, ends=frozenset())
    verifier = Verifier(target, reference=VerifyReference("l", "v"), tokenizer="sha256:t", read=read, clock=clock)
    rng = np.random.default_rng(0)
    written, position, given = [], 0, tuple(prompt)
    while len(written) < 20:
        draft = tuple(
            token if rng.random() < 0.8 else int(rng.integers(0, 40)) for token in said[len(written) : len(written) + 4]
        )
        reply = await verifier.verify("t", asking(position=position, tokens=given, draft=draft))
        written += [*draft[: reply.accepted], reply.token]
        position, given = reply.position, ()
    assert written == said[: len(written)]
    verifier.close()
