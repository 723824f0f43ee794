"""A certified gateway before a real cloud service, over sockets: gate, speculation and watch as clients hear them."""

import asyncio
import json
from contextlib import ExitStack
from itertools import count, pairwise

import httpx
import numpy as np
import pytest
from websockets.sync.client import connect

from edgewise.config import Config, parse_config
from edgewise.contracts import Bound
from edgewise.dialogue import Message, Prompt, Role, Sampling
from edgewise.edge import EdgeGenerator, probe
from edgewise.jobs.answerers import runtime_of
from edgewise.router import certificate as certificates
from edgewise.wire.serve import BackgroundServer
from edgewise.wiring.backends import cloud_of
from edgewise.wiring.cloud import CloudModel, CloudSettings, build_cloud
from edgewise.wiring.gateway import build_gateway

pytestmark = pytest.mark.slow

SURE, DOUBTFUL = "a", "Z"
"""What the alphabet goes on with, and what it does not."""

TOKENS = 16
NUMBERS = count()
FLOOR_WINDOW = 2


@pytest.fixture(scope="module")
def service(tiny_checkpoints, tmp_path_factory):
    folder = tiny_checkpoints.causal_checkpoint(tmp_path_factory.mktemp("causal") / "writer")
    with BackgroundServer(
        build_cloud(CloudSettings((CloudModel("writer", folder),), threads=1), Config()).app
    ) as found:
        yield found.url


@pytest.fixture(scope="module")
def gateway_of(service, tiny_generator_bundle, tmp_path_factory):
    """A gateway's URL, of a signal, a threshold and settings of texts."""
    with ExitStack() as held:

        def started(signal: str, threshold: float, **text: object) -> str:
            path = tmp_path_factory.mktemp("certified") / "certificate.json"
            tables = {
                "edge": {"bundle": str(tiny_generator_bundle), "certificate": str(path), "budget_ms": 60_000},
                "cloud": {"backends": {"main": {"url": service, "kind": "openai", "model": "writer"}}},
                "cache": {"max_bytes": 0},
                "audit": {"share": 0.0},
                "text": text,
            }
            config = parse_config(tables)
            with EdgeGenerator.load(tiny_generator_bundle) as model:
                issued = certificates.issue(
                    Bound(threshold=threshold, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05),
                    model_digest=model.digest, signal=signal, data_digest="none", reference=reference(config),
                    created="2026-01-01T00:00:00Z", runtime=runtime_of(model.bundle), isa=probe().isa,
                )  # fmt: skip
            path.write_bytes(certificates.encode(issued))
            gateway = build_gateway(config, held)
            return held.enter_context(BackgroundServer(gateway.app)).url

        yield started


def reference(config: Config):
    async def described():
        cloud = cloud_of(config)
        try:
            return await cloud.describe(timeout_s=30)
        finally:
            await cloud.aclose()

    return asyncio.run(described())


def chat(url: str, content: str, model: str = "tiny-generator", **more: object) -> dict:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, **more}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def text_of(reply: dict) -> str:
    return reply["choices"][0]["message"]["content"]


def streamed(url: str, content: str) -> tuple[str, list[dict]]:
    """The text as an OpenAI client puts it together, and the facts of ours that came with it."""
    body = {"model": "tiny-generator", "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS}
    text, facts = "", []
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                facts += [chunk["edgewise"]] if "edgewise" in chunk else []
    return text, facts


def heard(url: str, content: str, **more: object) -> list[dict]:
    """Every word over the WebSocket, to the last."""
    said, name = [{"role": "user", "content": content}], f"w-{next(NUMBERS)}"
    with connect(f"{url.replace('http', 'ws', 1)}/v1/stream") as socket:
        socket.send(json.dumps({"type": "generate", "id": name, "messages": said, "max_tokens": TOKENS, **more}))
        words = []
        while not words or words[-1]["type"] not in ("done", "error"):
            words.append(json.loads(socket.recv(timeout=60)))
        return words


@pytest.fixture(scope="module")
def certified(gateway_of):
    return gateway_of("mean_logprob:first=4", -1.0)


def test_the_gate_answers_here_what_is_sure_and_sends_the_rest_on(certified, service):
    sure, doubtful = chat(certified, SURE), chat(certified, DOUBTFUL)
    assert (sure["edgewise"]["source"], sure["edgewise"]["reason"]) == ("edge", "confident")
    assert text_of(sure) == "bcdefghijklmnopq"
    assert (doubtful["edgewise"]["source"], doubtful["edgewise"]["reason"]) == ("cloud", "below_threshold")
    assert text_of(doubtful) == text_of(chat(service, DOUBTFUL, "writer"))


@pytest.mark.parametrize("content", [SURE, DOUBTFUL])
def test_a_client_of_openai_sees_no_change_of_mind(certified, content):
    text, facts = streamed(certified, content)
    assert text == text_of(chat(certified, content))
    assert {fact["source"] for fact in facts if "source" in fact} <= {"edge" if content == SURE else "cloud"}


def test_speculation_tells_the_edges_text_at_once_and_revises_it(certified, service):
    *tokens, answer, revise, done = heard(certified, DOUBTFUL, mode="speculative")
    assert {token["source"] for token in tokens} == {"edge"}
    assert "".join(token["text"] for token in tokens) == answer["output"]
    assert (answer["type"], answer["status"], answer["reason"]) == ("answer", "provisional", "speculative")
    assert (revise["type"], revise["status"], revise["source"]) == ("revise", "final", "cloud")
    assert revise["output"] == text_of(chat(service, DOUBTFUL, "writer")) != answer["output"]
    assert (done["type"], done["pending"]) == ("done", False)
    *tokens, answer, done = heard(certified, SURE, mode="speculative")
    assert (answer["status"], answer["reason"], done["type"]) == ("final", "confident", "done")


@pytest.fixture(scope="module")
def collapsing(tiny_generator_bundle):
    """A prompt whose answer begins better than it goes on; scores of its first token and of its worst window."""
    best = ("", 0.0, 0.0)
    with EdgeGenerator.load(tiny_generator_bundle) as model:
        for content in map(chr, range(33, 127)):
            said = (Message(role=Role.USER, content=content),)
            pieces = list(model.write(Prompt(messages=said, sampling=Sampling(max_tokens=TOKENS))))
            scores = [piece.logprob for piece in pieces]
            windows = [float(np.mean(pair)) for pair in pairwise(scores[: TOKENS // 2])]
            first_texts = [piece.text for piece in pieces[:3]]
            if all(first_texts) and windows and scores[0] - min(windows) > best[1] - best[2]:
                best = (content, scores[0], min(windows))
    return best


@pytest.fixture(scope="module")
def watched(gateway_of, collapsing):
    _, first, worst = collapsing
    assert first - worst > 0.1
    between = (first + worst) / 2
    return gateway_of("mean_logprob:first=1", between, watch_floor=between, watch_window=FLOOR_WINDOW)


def test_a_text_that_collapses_is_gone_on_with_by_the_cloud(watched, collapsing):
    """Over HTTP, where what was told cannot be taken back."""
    text, facts = streamed(watched, collapsing[0])
    reasons = {fact.get("reason") for fact in facts}
    assert "confidence_collapsed" in reasons
    *tokens, answer, revise, _ = heard(watched, collapsing[0])
    begun = tokens[0]["text"]
    assert begun
    assert text.startswith(begun), "what was told stays told"
    assert text not in (answer["output"], revise["output"])


def test_a_text_that_collapses_is_replaced_where_it_can_be_taken_back(watched, collapsing, service):
    words = heard(watched, collapsing[0])
    tokens = [word for word in words if word["type"] == "token"]
    answer = next(word for word in words if word["type"] == "answer")
    revise = next(word for word in words if word["type"] == "revise")
    assert {token["source"] for token in tokens} == {"edge"}
    assert (answer["status"], revise["status"]) == ("provisional", "final")
    assert revise["output"] == text_of(chat(service, collapsing[0], "writer"))
