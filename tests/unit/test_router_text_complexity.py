"""Prompts that look too hard before any model has read them go straight to the cloud, and cost the edge nothing."""

import importlib.util
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.contracts import Answered, Mode, Reason, Source, Token
from edgewise.dialogue import Message, Prompt, Role
from edgewise.router import Router, RouterSettings
from edgewise.router.complexity import ATTRIBUTE_BUCKETS, LEXICAL, WORD_BUCKETS, Complexity
from edgewise.router.fitted import Fitted


def _load(name):
    spec = importlib.util.spec_from_file_location(f"complex_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load("text_fakes")
EASY, HARD = fakes.sure(6), fakes.sure(60)


def long_is_hard() -> Complexity:
    """Calls texts of more than about ten words too complex."""
    weights = np.zeros(len(LEXICAL))
    weights[LEXICAL.index("log_words")] = 10.0
    return Complexity(
        words=np.zeros(WORD_BUCKETS), rarity=np.ones(WORD_BUCKETS), lexical=weights, intercept=-30.0, cut=0.9,
        attributes=(), attribute_weights=np.zeros(ATTRIBUTE_BUCKETS),
    )  # fmt: skip


@pytest.fixture
def flow():
    edge, cloud = fakes.FakeGenerator(), fakes.FakeCloud()
    made = msgspec.structs.replace(fakes.certificate(), fitted_digest="sha256:f")
    settings = RouterSettings(cool_down_s=0.01)
    return Router(edge, cloud, made, fitted=Fitted(complexity=long_is_hard()), settings=settings), edge, cloud


async def heard(router, request):
    events = [event async for event in router.events(request)]
    (answer,) = (event.answer for event in events if isinstance(event, Answered))
    return answer, {event.source for event in events if isinstance(event, Token)}


async def test_a_prompt_that_looks_too_hard_is_the_clouds_and_nothing_is_written_here(flow):
    router, edge, cloud = flow
    answer, sources = await heard(router, fakes.ask(HARD))
    assert (answer.source, answer.decision.reason, sources) == (Source.CLOUD, Reason.TOO_COMPLEX, {Source.CLOUD})
    assert (edge.begun, len(cloud.asked)) == ([], 1)
    assert answer.decision.certificate_id is None
    answer, sources = await heard(router, fakes.ask(EASY, request_id="2"))
    assert (answer.source, answer.decision.reason, sources) == (Source.EDGE, Reason.CONFIDENT, {Source.EDGE})
    await router.aclose()


async def test_of_a_conversation_the_last_message_is_looked_at(flow):
    router, _, _ = flow
    for last, reason in ((EASY, Reason.CONFIDENT), (HARD, Reason.TOO_COMPLEX)):
        said = tuple(Message(role=Role.USER, content=text) for text in (EASY, HARD, EASY, last))
        answer, _ = await heard(router, fakes.ask("", request_id=f"{reason}", prompt=Prompt(messages=said)))
        assert answer.decision.reason is reason
    await router.aclose()


async def test_who_asks_for_the_edge_gets_it(flow):
    router, _, cloud = flow
    answer, sources = await heard(router, fakes.ask(HARD, mode=Mode.EDGE_ONLY))
    assert (answer.decision.reason, sources, cloud.asked) == (Reason.EDGE_ONLY, {Source.EDGE}, [])
    await router.aclose()
