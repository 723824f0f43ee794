"""A small model drafts and a large one verifies over a socket: the text is the large one's, whatever is drafted."""

import asyncio
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import msgspec
import numpy as np
import pytest

from edgewise.cloud.acceptance import target_distribution
from edgewise.cloud.causal import load_causal
from edgewise.cloud.clients.drafting import DraftedCloud
from edgewise.cloud.clients.openai import OpenAIClient
from edgewise.cloud.clients.pacing import REVIEW
from edgewise.cloud.verifier import TorchTarget, Verifier
from edgewise.config import Config
from edgewise.contracts import CloudReply, Reference, Request, Served, ServiceInfo, Source, Token
from edgewise.dialogue import Finish, Message, Prompt, Role, Sampling, Tool, Written
from edgewise.edge import EdgeGenerator
from edgewise.edge.drafting import DraftModel, draft_model
from edgewise.errors import CloudError, CloudRefusedError
from edgewise.telemetry import Metrics
from edgewise.wire.door import front_door
from edgewise.wire.faults import Fault
from edgewise.wire.serve import BackgroundServer
from edgewise.wire.verify import VerifyReference, tokenizer_digest, verify_routes

CONTEXT, LONG_S = 96, 60.0
PROMPTS = ("ab", "the cat sat", "0")
RIGHT, SOMETIMES, WRONG = "always right", "sometimes right", "always wrong"
V1 = VerifyReference("tiny", "sha256:1")


@pytest.fixture(scope="module")
def llama(tiny_generator):
    """A random Llama over the tiny generator's bytes."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tiny_generator.tokenizer().get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.6,
    )
    return LlamaForCausalLM(config).eval()


def logits_of(llama, tokens):
    import torch

    with torch.inference_mode():
        return llama(input_ids=torch.tensor([list(tokens)])).logits[0, -1].numpy()


def plain(llama, ids, count, ends=frozenset()):
    """What the target writes alone, without a cache."""
    tokens = list(ids)
    while len(tokens) - len(ids) < count and not (ends and tokens[-1] in ends):
        tokens.append(int(logits_of(llama, tokens).argmax()))
    return [token for token in tokens[len(ids) :] if token not in ends]


class Guessing:
    """A sequence whose logits are the target's own, bent."""

    def __init__(self, llama, how):
        self.llama, self.how, self.ids = llama, how, []

    def append(self, ids):
        self.ids += ids.tolist()

    def rewind(self, count):
        del self.ids[count:]

    def logits(self):
        logits = logits_of(self.llama, self.ids)
        if self.how == WRONG:
            return -logits
        if self.how == SOMETIMES:
            return logits + np.random.default_rng(sum(self.ids)).normal(0, 1.5, logits.size).astype(np.float32)
        return logits

    def close(self):
        pass


@pytest.fixture
def drafts(llama, tiny_generator):
    """Makes a model that drafts: a bent copy of the target."""
    tokenizer = tiny_generator.tokenizer()

    def make(how, max_length=CONTEXT):
        return DraftModel(
            start=lambda room: Guessing(llama, how),
            read=lambda prompt: tokenizer.encode(prompt.text).ids,
            tokenizer=tokenizer,
            ends=frozenset(),
            max_length=max_length,
        )

    return make


class Plain:
    """Streams what the target writes alone; counts who asked."""

    def __init__(self, llama, tokenizer, wait_s=0.0):
        self.llama, self.tokenizer, self.wait_s, self.asked = llama, tokenizer, wait_s, 0

    async def describe(self, *, timeout_s):
        return Reference("tiny", "as the plain client calls it")

    async def predict(self, request, *, timeout_s):
        raise NotImplementedError

    async def stream(self, request, *, timeout_s):
        self.asked += 1
        ids = self.tokenizer.encode(request.inputs.text).ids
        written = plain(self.llama, ids, request.inputs.sampling.max_tokens)
        for token in written:
            await asyncio.sleep(self.wait_s)
            yield Token(id=request.id, text=self.tokenizer.decode([token]), logprob=-1.0)
        told = Written(finish=Finish.LENGTH, prompt_tokens=len(ids), completion_tokens=len(written))
        yield CloudReply(self.tokenizer.decode(written), await self.describe(timeout_s=1), written=told)

    async def aclose(self):
        pass


def missing(name):
    raise Fault(404, "not_found", "The model is unknown.", field="model", remedy="Ask for another.")


class Cloud:
    """A cloud service that rules on drafts, and nothing else; it can be told to forget."""

    def __init__(self, llama, tokenizer, *, ends=frozenset(), digest=None):
        target = TorchTarget(llama, context=CONTEXT, vocabulary=tokenizer.get_vocab_size(), ends=ends)
        self.make = lambda reference: Verifier(
            target,
            reference=reference,
            tokenizer=digest or tokenizer_digest(tokenizer.to_str()),
            read=lambda prompt: tokenizer.encode(prompt.text).ids,
            clock=time,
        )
        self.verifier = self.make(V1)
        self.bodies = []

    def find(self, name):
        return self

    async def verify(self, tenant, asked):
        self.bodies.append(asked)
        return await self.verifier.verify(tenant, asked)

    def restart(self, reference=V1):
        self.verifier = self.make(reference)


@contextmanager
def serving(cloud=None):
    info = ServiceInfo(name="tiny", version="1", task="text-generation", labels=(), input="text", role="cloud")
    models = {"tiny": Served(info=info, service=None, ready=lambda: None)}
    posts = verify_routes(lambda name: cloud.find(name)) if cloud else {}
    app = front_door(lambda: models, answers=None, metrics=Metrics(), api_keys={"key-1": "tenant"}, posts=posts)
    with BackgroundServer(app) as running:
        yield running.url


@pytest.fixture
def tokenizer(tiny_generator):
    return tiny_generator.tokenizer()


@pytest.fixture
def cloud(llama, tokenizer):
    return Cloud(llama, tokenizer)


@pytest.fixture
def url(cloud):
    with serving(cloud) as found:
        yield found


def asking(text, session=None, **sampling):
    return Request(id="r1", inputs=Prompt(text=text, sampling=Sampling(**sampling)), session=session)


async def asked(client, request):
    """The pieces, and the reply."""
    pieces = [piece async for piece in client.stream(request, timeout_s=LONG_S)]
    assert all(isinstance(piece, Token) for piece in pieces[:-1])
    reply = pieces[-1]
    assert "".join(piece.text for piece in pieces[:-1]) == reply.output
    return pieces[:-1], reply


@pytest.fixture
async def drafting(url, llama, tokenizer, drafts):
    made = []

    def make(how=RIGHT, k=None, model=None, **options):
        options = {"plain": Plain(llama, tokenizer), "drafts": model or drafts(how), "api_key": "key-1", **options}
        made.append(DraftedCloud(url, k=k, **options))
        return made[-1]

    yield make
    for client in made:
        await client.aclose()


@pytest.mark.parametrize("how", [RIGHT, SOMETIMES, WRONG])
@pytest.mark.parametrize("k", [0, 1, 5, None])
async def test_greedy_text_is_the_targets_token_for_token(drafting, cloud, llama, tokenizer, how, k):
    client = drafting(how, k)
    for text in PROMPTS:
        ids = tokenizer.encode(text).ids
        said = plain(llama, ids, 20)
        if k is None:  # whatever is measured on a busy machine: this is about drafts
            client._meter.pace = type(client._meter.pace)()
        pieces, reply = await asked(client, asking(text, max_tokens=20))
        stream = tokenizer.decode([*ids, *said]).removeprefix(tokenizer.decode(ids))
        assert reply.output == stream[: len(reply.output)]
        assert [body.prompt.text for body in cloud.bodies if body.prompt][-1] == text
        assert reply.written == Written(finish=Finish.LENGTH, prompt_tokens=len(ids), completion_tokens=20)
        assert reply.reference == Reference("tiny", "as the plain client calls it")
        rows = [logits_of(llama, [*ids, *said[:at]]) for at in range(20)]
        logprobs = [
            float(row[token] - np.log(np.exp(row.astype(float)).sum())) for row, token in zip(rows, said, strict=True)
        ]
        np.testing.assert_allclose([piece.logprob for piece in pieces], logprobs, atol=1e-4)
        assert {piece.source for piece in pieces} == {Source.CLOUD}
    figures = client.figures
    assert figures.answers == len(PROMPTS)
    assert figures.tokens == 20 * len(PROMPTS)
    if k == 5:
        assert {RIGHT: figures.acceptance == 1, WRONG: figures.acceptance == 0}.get(how, 0 < figures.acceptance < 1)
        assert (figures.tokens_per_round == 4) is (how == RIGHT)


async def test_a_real_edge_bundle_drafts(drafting, llama, tokenizer, tiny_generator_bundle):
    with EdgeGenerator.load(tiny_generator_bundle) as generator:
        client = drafting(k=4, model=draft_model(generator))
        for text in ("abc", "0"):
            _, reply = await asked(client, asking(text, max_tokens=12))
            said = plain(llama, tokenizer.encode(text).ids, 12)
            assert tokenizer.decode(said)[: len(reply.output)] == reply.output
            assert reply.written.completion_tokens == 12
        assert client.figures.drafted > 20


@pytest.mark.parametrize("longer", [0, 20])
async def test_the_target_reads_the_prompt_whatever_the_draft_makes_of_it(drafting, llama, tokenizer, drafts, longer):
    """As where a chat template differs; what the draft reads may even be short enough for it, and the target's not."""
    model = replace(drafts(RIGHT, CONTEXT), read=lambda _: [1, 2])
    text = "the cat sat" + longer * "a"
    if longer:
        model = replace(model, max_length=len(text) - longer // 2)
    client = drafting(k=3, model=model)
    ids = tokenizer.encode(text).ids
    _, reply = await asked(client, asking(text, max_tokens=20))
    said = plain(llama, ids, 20)
    assert tokenizer.decode([*ids, *said]).removeprefix(text).startswith(reply.output)
    assert (reply.written.prompt_tokens, reply.written.completion_tokens) == (len(ids), 20)
    assert (client.figures.acceptance == 1) is not longer


async def test_a_stop_text_and_an_end_end_it_where_plain_writing_would(llama, tokenizer, drafts):
    ids = tokenizer.encode(PROMPTS[1]).ids
    said = plain(llama, ids, 20)
    end = said[9]
    before = said[: said.index(end)]
    cloud = Cloud(llama, tokenizer, ends=frozenset({end}))
    with serving(cloud) as url:
        for how in (RIGHT, WRONG):
            client = DraftedCloud(url, plain=Plain(llama, tokenizer), drafts=drafts(how), api_key="key-1", k=4)
            _, reply = await asked(client, asking(PROMPTS[1], max_tokens=20))
            assert reply.written.finish is Finish.STOP
            assert reply.written.completion_tokens == len(before)
            word = reply.output[2:4]
            _, reply = await asked(client, asking(PROMPTS[1], max_tokens=20, stop=(word,)))
            whole = tokenizer.decode(before)
            assert reply.output == whole[: whole.index(word)]
            assert reply.written.finish is Finish.STOP
            await client.aclose()


async def test_an_answer_ends_where_the_context_does(drafting, llama, tokenizer):
    ids = tokenizer.encode("the cat sat").ids
    _, reply = await asked(drafting(k=6), asking("the cat sat"))
    assert reply.written.finish is Finish.LENGTH
    assert reply.written.prompt_tokens + reply.written.completion_tokens == CONTEXT
    assert tokenizer.decode(plain(llama, ids, CONTEXT - len(ids))).startswith(reply.output)


@pytest.mark.slow
@pytest.mark.parametrize("how", [SOMETIMES, WRONG])
async def test_draws_are_distributed_as_the_targets(drafting, llama, tokenizer, how):
    """Answers of three tokens, of which the second is always drafted: the pair of the first two."""
    rules = {"temperature": 1.1, "top_k": 4, "top_p": 0.95}
    ids = tokenizer.encode("ab").ids
    first = target_distribution(logits_of(llama, ids), Sampling(**rules))
    expected = {
        (one, two): first[one] * p
        for one in map(int, np.flatnonzero(first))
        for two, p in enumerate(target_distribution(logits_of(llama, [*ids, one]), Sampling(**rules)))
        if p
    }
    client, draws = drafting(how, k=1), 500
    counts = dict.fromkeys(expected, 0)
    held = []
    give_back = client._give_back
    client._give_back = lambda request, session: (held.append(session.held), give_back(request, session))
    for _ in range(draws):
        await client.predict(asking("ab", max_tokens=3, **rules), timeout_s=LONG_S)
        counts[tuple(held.pop()[len(ids) : len(ids) + 2])] += 1
    distance = 0.5 * sum(abs(counts[pair] / draws - p) for pair, p in expected.items())
    assert distance < 0.12
    assert client.figures.drafted == draws
    assert 0 <= client.figures.acceptance < 1


async def test_a_fixed_k_and_a_seed_draw_the_same_text_again(drafting):
    texts = [
        (await asked(drafting(SOMETIMES, 3), asking("ab", max_tokens=12, temperature=1.3, seed=seed)))[1].output
        for seed in (1, 2, 1, 2)
    ]
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


async def test_a_session_goes_on_without_being_told_again(drafting, cloud, tokenizer):
    client = drafting(k=3)
    _, first = await asked(client, asking("the cat", session="s", max_tokens=8))
    text = f"the cat{first.output} sat"
    _, second = await asked(client, asking(text, session="s", max_tokens=4))
    assert second.written.cached_tokens > len(tokenizer.encode("the cat").ids)
    assert len({body.session for body in cloud.bodies}) == 1
    assert [body.prompt.text for body in cloud.bodies if not body.position] == ["the cat", text]
    await asked(client, asking(text, session="other", max_tokens=4))
    assert len({body.session for body in cloud.bodies}) == 2


async def test_a_service_that_starts_anew_in_mid_answer_changes_nothing(drafting, cloud, llama, tokenizer):
    client = drafting(SOMETIMES, 2)
    pieces = []
    async for piece in client.stream(asking("the cat sat", max_tokens=20), timeout_s=LONG_S):
        pieces.append(piece)
        if len(pieces) in (3, 11):
            cloud.restart()
    said = plain(llama, tokenizer.encode("the cat sat").ids, 20)
    assert tokenizer.decode(said).startswith(pieces[-1].output)
    assert sum(body.position == 0 for body in cloud.bodies) == 3


async def test_another_model_in_mid_answer_is_an_error(drafting, cloud):
    stream = drafting(WRONG, 2).stream(asking("ab", max_tokens=20), timeout_s=LONG_S)
    await anext(stream)
    cloud.restart(VerifyReference("tiny", "sha256:2"))
    with pytest.raises(CloudError, match="Another model"):
        await anext(stream)


async def test_whoever_stops_reading_stops_the_rounds(drafting, cloud):
    client = drafting(WRONG, 2)
    stream = client.stream(asking("ab", session="s", max_tokens=40), timeout_s=LONG_S)
    await anext(stream)
    await stream.aclose()
    rounds = len(cloud.bodies)
    _, reply = await asked(client, asking("ab", session="s", max_tokens=3))
    assert reply.written.completion_tokens == 3
    assert len(cloud.bodies) == rounds + 3


@pytest.mark.parametrize(
    "request_",
    [
        asking("ab", max_tokens=3, top_logprobs=2),
        asking("ab", max_tokens=3, schema="{}"),
        asking("ab", max_tokens=3, temperature=1.0, seed=1),
        Request(inputs=Prompt(text="ab", tools=(Tool(name="t"),), sampling=Sampling(max_tokens=3))),
        asking("a" * CONTEXT, max_tokens=3),
    ],
)
async def test_what_no_draft_fits_goes_the_plain_way(drafting, cloud, request_):
    client = drafting()
    _, reply = await asked(client, request_)
    assert reply.written.completion_tokens == 3
    assert not cloud.bodies
    assert client.figures.plain_answers == 1


@pytest.mark.parametrize("lacks", ["route", "tokenizer"])
async def test_a_server_that_rules_on_no_drafts_is_asked_plainly(llama, tokenizer, drafts, caplog, lacks):
    cloud = Cloud(llama, tokenizer, digest="sha256:other") if lacks == "tokenizer" else None
    with serving(cloud) as url:
        way = Plain(llama, tokenizer)
        client = DraftedCloud(url, plain=way, drafts=drafts(RIGHT), api_key="key-1")
        for _ in range(3):
            _, reply = await asked(client, asking("ab", max_tokens=3))
        assert reply.written.completion_tokens == 3
        assert way.asked == 3
        assert not client.figures.drafts
        assert len([line for line in caplog.messages if "Nothing is drafted" in line]) == 1
        if cloud:
            assert len(cloud.bodies) == 1
        await client.aclose()


async def test_a_server_that_rules_again_is_drafted_for_again(drafting, cloud, llama, tokenizer, caplog):
    """As one does whose model was unloaded for a moment."""
    way, find = Plain(llama, tokenizer), cloud.find
    client = drafting(RIGHT, k=3, plain=way)
    for _ in range(2):
        cloud.find = missing
        for _ in range(REVIEW):
            await asked(client, asking("ab", max_tokens=2))
            assert not client.figures.drafts or way.asked % REVIEW == 0
        cloud.find = find
        drafted = client.figures.answers
        await asked(client, asking("ab", max_tokens=2))
        assert client.figures.answers == drafted + 1
    assert way.asked == client.figures.plain_answers == 2 * REVIEW
    assert len([line for line in caplog.messages if "Nothing is drafted" in line]) == 2


async def test_where_drafting_is_slower_answers_stream_and_back(drafting, llama, tokenizer):
    """Measured by a clock of its own: no time of this machine decides."""
    now = [0.0]
    way = Plain(llama, tokenizer)
    client = drafting(WRONG, plain=way, seconds=lambda: now.__setitem__(0, now[0] + 0.5) or now[0])
    for _ in range(8):
        await asked(client, asking("ab", max_tokens=6))
    assert client.figures.plain_answers == way.asked == 6  # two of the four trials, and all behind them
    assert client.figures.answers == 2
    assert not client.figures.drafts
    assert client.figures.break_even_rtt_ms < client.figures.rtt_ms


def shown(metrics):
    """Values of the metrics of drafting by their names, without the model's."""
    lines = (line.rpartition(" ") for line in metrics.render().decode().splitlines() if not line.startswith("#"))
    return {name.replace('model="tiny",', "").replace('{model="tiny"}', ""): float(value) for name, _, value in lines}


async def test_figures_stand_among_the_metrics(drafting, llama, tokenizer):
    """By a clock of its own, in which every look takes half a second."""
    now, metrics = [0.0], Metrics()
    client = drafting(SOMETIMES, metrics=metrics, seconds=lambda: now.__setitem__(0, now[0] + 0.5) or now[0])
    assert shown(metrics) == {}
    await asked(client, asking("ab", max_tokens=12))
    first = shown(metrics)
    assert 'edgewise_decode_tokens_per_second{decoding="plain"}' not in first
    assert "edgewise_draft_break_even_seconds" not in first
    for _ in range(3):
        await asked(client, asking("ab", max_tokens=12))
    found, figures = shown(metrics), client.figures
    assert 0 < figures.acceptance < 1
    assert figures.speed_up == pytest.approx(figures.drafted_tokens_per_s / figures.plain_tokens_per_s)
    assert figures.plain_tokens_per_s == pytest.approx(2)  # a look at the clock a token
    expected = {
        "edgewise_target_passes_total": figures.rounds,
        'edgewise_drafted_tokens_total{fate="accepted"}': figures.accepted,
        'edgewise_drafted_tokens_total{fate="refused"}': figures.drafted - figures.accepted,
        'edgewise_draft_answers_total{decoding="drafted"}': 2,
        'edgewise_draft_answers_total{decoding="plain"}': 2,
        "edgewise_drafting": float(figures.drafts),
        "edgewise_draft_acceptance": figures.acceptance,
        "edgewise_draft_tokens_per_round": 24 / figures.rounds,
        'edgewise_decode_tokens_per_second{decoding="drafted"}': figures.drafted_tokens_per_s,
        'edgewise_decode_tokens_per_second{decoding="plain"}': 2,
        "edgewise_draft_round_trip_seconds": figures.rtt_ms / 1000,
        "edgewise_draft_break_even_seconds": figures.break_even_rtt_ms / 1000,
    }
    assert found == pytest.approx(expected)


async def test_interrupted_answers_count_as_far_as_they_went(drafting):
    metrics = Metrics()
    client = drafting(RIGHT, metrics=metrics)
    for ways in ((1, 0), (1, 1)):
        stream = client.stream(asking("ab", max_tokens=12), timeout_s=LONG_S)
        async for _ in stream:
            break
        await stream.aclose()
        figures = client.figures
        assert (figures.answers, figures.plain_answers) == ways  # what was begun one way is followed by the other
    assert figures.tokens_per_round == figures.tokens == 1  # a round, before anybody listened to its second token
    assert shown(metrics)['edgewise_draft_answers_total{decoding="plain"}'] == 1


async def test_refusals_are_told_as_they_are(url):
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": "key-1"}) as http:
        reply = await http.post("/v1/verify", json={"session": "s", "tokenizer": "sha256:x", "tokens": [1]})
        assert reply.status_code == 409
        assert reply.json()["error"]["code"] == "other_tokenizer"
        reply = await http.post("/v1/verify", json={"session": "s", "tokens": [1]})
        assert (reply.status_code, reply.json()["error"]["field"]) == (400, "tokenizer")
        assert (await http.get("/v1/verify")).status_code == 405
        assert "/v1/verify" in (await http.get("/openapi.json")).json()["paths"]
    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.post("/v1/verify", json={})).status_code == 401


async def test_a_prompt_that_the_target_cannot_read_is_refused(url, llama, tokenizer, drafts):
    client = DraftedCloud(
        url, plain=Plain(llama, tokenizer), drafts=drafts(RIGHT, max_length=4 * CONTEXT), api_key="key-1", k=2
    )
    with pytest.raises(CloudRefusedError, match="tokens"):
        await asked(client, asking("a" * (CONTEXT + 5), max_tokens=3))
    await client.aclose()


@pytest.mark.slow
async def test_the_cloud_service_itself_rules_on_drafts(tiny_checkpoints, tmp_path):
    """A checkpoint as it is served: drafted text is its plain stream, under one reference, also after a reload.

    That the model which drafts has no chat template of its own changes nothing.
    """
    from edgewise.wiring import CloudModel, CloudSettings, build_cloud

    folder = tiny_checkpoints.causal_checkpoint(tmp_path / "writer")
    model, tokenizer, _ = load_causal(folder)
    tokenizer = tokenizer.backend_tokenizer
    service = build_cloud(CloudSettings((CloudModel("writer", folder),), allow_load=True), Config())
    drafts = DraftModel(
        start=lambda room: Guessing(model, SOMETIMES),
        read=lambda prompt: tokenizer.encode(prompt.text or prompt.messages[-1].content).ids,
        tokenizer=tokenizer,
        ends=frozenset(),
        max_length=64,
    )
    with BackgroundServer(service.app) as running:
        plain_way = OpenAIClient(running.url, model="writer")
        client = DraftedCloud(running.url, plain=plain_way, drafts=drafts, model="writer", k=4)
        said = (Message(role=Role.SYSTEM, content="corn"), Message(role=Role.USER, content="rose"))
        prompts = (Prompt(text="corn"), Prompt(messages=said), Prompt(messages=said, begun="w"))
        for prompt in prompts:
            for stop in ((), ("t",)):
                how = Sampling(max_tokens=24, stop=stop)
                asked_for = Request(id="r1", inputs=msgspec.structs.replace(prompt, sampling=how))
                _, drafted = await asked(client, asked_for)
                streamed = await plain_way.predict(asked_for, timeout_s=LONG_S)
                assert drafted.output == streamed.output
                assert drafted.written.finish is streamed.written.finish
                assert drafted.written.prompt_tokens == streamed.written.prompt_tokens
                assert drafted.reference == streamed.reference
            async with httpx.AsyncClient(base_url=running.url) as http:
                assert (await http.post("/v2/repository/models/writer/load")).status_code == 200
                unknown = {"session": "s", "tokenizer": "t", "tokens": [1], "model": "other"}
                assert (await http.post("/v1/verify", json=unknown)).status_code == 404
                assert "/v1/verify" in (await http.get("/openapi.json")).json()["paths"]
        assert client.figures.accepted
        await client.aclose()
