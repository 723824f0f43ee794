"""The rules of speculative sampling: whatever is drafted, what comes out is the target's."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from edgewise.cloud.acceptance import (
    Costs,
    Drawn,
    Verdict,
    accept_greedy,
    accept_sampled,
    best_k,
    break_even_rtt_ms,
    draw,
    target_distribution,
    tokens_per_round,
)
from edgewise.dialogue import Sampling
from edgewise.edge import choice

DRAWS = 100_000


@st.composite
def distributions(draw_, size):
    """Over `size` ids, some of them 0."""
    weights = draw_(st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0, 3.0]), min_size=size, max_size=size))
    weights[draw_(st.integers(0, size - 1))] += 0.5
    return np.array(weights) / sum(weights)


def sparse(q):
    ids = np.flatnonzero(q)
    return Drawn(ids, q[ids])


def test_a_greedy_draft_stands_until_it_differs():
    assert accept_greedy([4, 5, 6], [4, 5, 6, 7]) == Verdict(3, 7)
    assert accept_greedy([4, 9, 6], [4, 5, 6, 7]) == Verdict(1, 5)
    assert accept_greedy([9], [4, 5]) == Verdict(0, 4)
    assert accept_greedy([], [4]) == Verdict(0, 4)


@given(st.data())
def test_greedy_writes_what_the_target_writes(data):
    target = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=8))
    draft = data.draw(st.lists(st.integers(0, 3), min_size=len(target) - 1, max_size=len(target) - 1))
    accepted, token = accept_greedy(draft, target)
    assert [*draft[:accepted], token] == target[: accepted + 1]


def redrawn(p, q, token):
    """The exact distribution of what follows a rejection of `token`: where in [0, 1) each id is drawn."""
    rest = np.maximum(p - q, 0)
    borders = np.concatenate([[0.0], np.cumsum(rest / rest.sum())])
    middles = (borders[1:] + borders[:-1]) / 2
    for expected in np.flatnonzero(rest > 1e-9):  # less is rounding
        verdict = accept_sampled([token], [sparse(q)], lambda _: p, [1 - 1e-15, middles[expected]])
        assert verdict == Verdict(0, expected)
    return np.diff(borders)


@given(st.data())
def test_the_first_token_is_distributed_as_the_targets(data):
    """Enumerated: every draft, accepted or not, and every draw after a rejection."""
    size = data.draw(st.integers(2, 6))
    p, q = data.draw(distributions(size)), data.draw(distributions(size))
    found = np.zeros(size)
    for token in map(int, np.flatnonzero(q)):
        kept = min(1.0, p[token] / q[token])
        found[token] += q[token] * kept
        assert accept_sampled([token], [sparse(q)], lambda _: p, [kept * 0.999999, 0.5]).accepted == (kept > 0)
        if kept < 0.999999:
            assert accept_sampled([token], [sparse(q)], lambda _: p, [kept * 1.000001, 0.5]).accepted == 0
            found += q[token] * (1 - kept) * redrawn(p, q, token)
    np.testing.assert_allclose(found, p, atol=1e-5)


@given(st.data())
def test_the_residual_is_what_the_proof_needs(data):
    """Appendix A.1: min(p, q) + (1 - sum min(p, q)) * norm(max(p - q, 0)) is p."""
    size = data.draw(st.integers(2, 6))
    p, q = data.draw(distributions(size)), data.draw(distributions(size))
    both = np.minimum(p, q)
    rest = np.maximum(p - q, 0)
    if rest.sum() > 0:
        np.testing.assert_allclose(both + (1 - both.sum()) * rest / rest.sum(), p, atol=1e-12)


def chi_square(counts, p):
    expected = p * counts.sum()
    live = expected > 0
    assert counts[~live].sum() == 0
    return float(((counts[live] - expected[live]) ** 2 / expected[live]).sum()), int(live.sum()) - 1


def threshold(freedom):
    """The chi-square value that a right sampler passes but once in a million (Wilson & Hilferty 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.7534 * math.sqrt(2 / (9 * freedom))) ** 3


def test_pairs_of_tokens_are_distributed_as_the_targets():
    """Two drafted tokens and what follows: the first two of the answer, over 1e5 draws, against p exactly."""
    rng = np.random.default_rng(0)
    size, k = 4, 2
    p = rng.dirichlet(np.ones(size), size=(size + 1,))  # by the token before; the last row begins
    q = rng.dirichlet(np.full(size, 0.7), size=(size + 1,))
    counts = np.zeros((size, size))
    uniforms = rng.random((DRAWS, 2 * k + 3))
    cumulated = [np.cumsum(row) for row in q]
    sparse_q = [sparse(row) for row in q]
    for row in uniforms.tolist():
        first = min(int(np.searchsorted(cumulated[-1], row[0], side="right")), size - 1)
        second = min(int(np.searchsorted(cumulated[first], row[1], side="right")), size - 1)
        places = [size, first, second]
        accepted, token = accept_sampled(
            [first, second], [sparse_q[size], sparse_q[first]], lambda at, places=places: p[places[at]], row[2:5]
        )
        answer = [*[first, second][:accepted], token]
        if len(answer) == 1:  # the next round's first token is drawn from p alone: a round that drafts nothing
            answer.append(accept_sampled([], [], lambda _, row=p[token]: row, row[5:6]).token)
        counts[answer[0], answer[1]] += 1
    expected = p[size][:, None] * p[:size]
    found, freedom = chi_square(counts.ravel(), expected.ravel())
    assert found < threshold(freedom)
    assert 0.5 * np.abs(counts / DRAWS - expected).sum() < 0.01


def test_a_draft_that_was_not_drawn_is_one_of_certainty():
    p = np.array([0.25, 0.75])
    kept = [accept_sampled([0], [None], lambda _: p, [u, 0.1]) for u in (0.2, 0.3)]
    assert kept == [Verdict(1, 0), Verdict(0, 1)]


def test_probabilities_count_relative_to_their_sum():
    q = Drawn(np.array([0, 1]), np.array([2.0, 2.0]))
    p = np.array([0.25, 0.75])
    assert accept_sampled([0], [q], lambda _: p, [0.49, 0.9]).accepted == 1
    assert accept_sampled([0], [q], lambda _: p, [0.51, 0.0]) == Verdict(0, 1)


@given(st.floats(0, 1, exclude_max=True), st.lists(st.sampled_from([0.0, 1e-300, 0.1, 1.0]), min_size=1, max_size=6))
def test_nothing_of_no_weight_is_drawn(uniform, weights):
    if any(weights):
        assert weights[draw(np.array(weights), uniform)] > 0


def test_the_target_is_asked_no_further_than_needed():
    asked = []

    def target(at):
        asked.append(at)
        return np.array([1.0, 0.0])

    assert accept_sampled([1, 0, 0], [None] * 3, target, [0.5] * 4) == Verdict(0, 0)
    assert asked == [0]


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), list(itertools.product((0.5, 1.0, 1.7), (0.1, 0.9, 1.0), (0, 1, 5)))
)
@pytest.mark.parametrize("size", [7, 700])
def test_the_distribution_is_that_of_transformers(temperature, top_p, top_k, size):
    torch = pytest.importorskip("torch")
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(size).normal(0, 2, size).astype(np.float32)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    theirs = torch.softmax(warpers(None, torch.tensor(logits[None]).double()), -1)[0].numpy()
    ours = target_distribution(logits, Sampling(temperature=temperature, top_p=top_p, top_k=top_k))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-40, 1e-6])
def test_next_to_no_temperature_only_the_likeliest_is_drawn(temperature):
    logits = np.array([1.0, 30.0, -7.0, 29.0, -np.inf], np.float32)
    for more in ({}, {"top_p": 0.9}, {"top_k": 2}):
        found = target_distribution(logits, Sampling(temperature=temperature, **more))
        assert found.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


TIED = st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.0, 1.0, 1.5]), min_size=2, max_size=12).filter(
    lambda logits: max(logits) > -np.inf
)


@pytest.mark.filterwarnings("error")
@given(TIED, st.sampled_from([1e-46, 1e-40, 0.7, 1.0, 2.0]), st.sampled_from([0.3, 0.5, 0.9, 1.0]), st.integers(0, 4))
def test_ties_are_drawn_as_the_plain_engine_draws_them(logits, temperature, top_p, top_k):
    logits, sampling = np.array(logits, np.float32), Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    steps = (np.arange(400) + 0.5) / 400
    plain = np.bincount([choice.draw(logits, sampling, at) for at in steps], minlength=logits.size) / steps.size
    np.testing.assert_allclose(target_distribution(logits, sampling), plain, atol=1 / steps.size)


@pytest.mark.parametrize(
    ("logits", "rules", "expected"),
    [
        ([1, 0, 0, 0], {"temperature": 1.0, "top_k": 2}, [0.7311, 0.2689, 0, 0]),
        ([1, 1, 0, 0], {"temperature": 1e-46}, [1, 0, 0, 0]),
        ([0, 0, 0, 0], {"temperature": 1.0, "top_p": 0.5}, [0.5, 0.5, 0, 0]),
    ],
)
def test_of_equally_likely_tokens_the_smaller_ids_stay(logits, rules, expected):
    found = target_distribution(np.array(logits, np.float32), Sampling(**rules))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_flat_distribution_has_a_nucleus_too():
    found = target_distribution(np.zeros(1000, np.float32), Sampling(temperature=1.0, top_p=0.9))
    assert np.count_nonzero(found) in (900, 901)
    np.testing.assert_allclose(found.sum(), 1.0)


@given(st.floats(0, 1), st.integers(0, 12))
def test_tokens_a_round_are_what_counting_gives(acceptance, k):
    # Exactly n of k accepted: n + 1 tokens.
    exact = sum((n + 1) * acceptance**n * (1 - acceptance) for n in range(k)) + (k + 1) * acceptance**k
    assert tokens_per_round(acceptance, k) == pytest.approx(exact)


COSTS = Costs(draft_ms=10, verify_ms=60, verify_token_ms=2, rtt_ms=0)


@pytest.mark.parametrize("tokens", [40.0, math.inf])
def test_at_break_even_both_are_as_fast(tokens):
    rtt = break_even_rtt_ms(0.8, 4, COSTS, 60, tokens=tokens)
    assert rtt > 0
    there = Costs(10, 60, 2, rtt)
    assert there.token_ms(0.8, 4) == pytest.approx(60 + rtt / tokens)


def test_a_network_of_no_length_cannot_mend_a_bad_draft():
    assert break_even_rtt_ms(0.1, 4, COSTS, 60) < 0
    assert break_even_rtt_ms(0.9, 8, COSTS, 60, tokens=5) == math.inf


@given(st.floats(0, 0.99), st.floats(0, 300))
def test_no_other_k_is_faster(acceptance, rtt):
    costs = Costs(10, 60, 2, rtt)
    best = best_k(acceptance, costs, 16)
    assert costs.token_ms(acceptance, best) <= min(costs.token_ms(acceptance, k) for k in range(1, 17))


def test_a_longer_way_wants_a_longer_draft():
    near, far = (best_k(0.8, Costs(10, 60, 2, rtt), 16) for rtt in (0, 200))
    assert near < far
