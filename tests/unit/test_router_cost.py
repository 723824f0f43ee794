"""What an answer costs, by hand, and the cheapest certified threshold against trying all of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import Bound
from edgewise.errors import CertificateError, ConfigError
from edgewise.router.cost import CostModel, Region, cheapest

NEAR = Region(name="near", rtt_ms=20.0, cloud_ms=30.0)


def bound(threshold):
    return Bound(threshold=threshold, local_share=0.5, n=400, k=0, alpha=0.01, delta=0.05)


def test_the_expected_cost_by_hand():
    model = CostModel(
        price_per_call=0.001,
        price_per_1k_tokens=0.01,
        edge_ms=10.0,
        edge_joules=3.6,
        price_per_kwh=0.5,
        price_per_second=0.02,
        regions=(NEAR,),
    )
    cost = model.expected(0.75, tokens=200)
    assert cost.money == pytest.approx(3.6 / 3.6e6 * 0.5 + 0.25 * (0.001 + 0.002))
    assert cost.latency_ms == pytest.approx(10 + 0.25 * 50)
    assert cost.total == pytest.approx(cost.money + 0.02 * cost.latency_ms / 1000)
    assert model.expected(0.75, edge_ms=4.0).latency_ms == pytest.approx(4 + 0.25 * 50)
    alone = model.cloud_only(tokens=200)
    assert (alone.money, alone.latency_ms) == (pytest.approx(0.003), 50.0)


def test_the_nearest_region_is_where_the_answer_is_first_and_of_equals_the_cheapest():
    far = Region(name="far", rtt_ms=5.0, cloud_ms=90.0, price_per_call=0.0)
    dear, cheap = (Region(name=name, rtt_ms=50.0, price_per_call=price) for name, price in (("a", 2.0), ("b", 0.5)))
    assert CostModel(price_per_call=1.0, regions=(far, dear, NEAR, cheap)).nearest() == cheap
    assert CostModel(price_per_call=0.1, regions=(far, dear, NEAR, cheap)).nearest() == NEAR
    assert CostModel(regions=(Region(name="z", rtt_ms=1.0), Region(name="y", rtt_ms=1.0))).nearest().name == "y"


def test_a_region_s_own_price_counts_and_zero_is_a_price():
    free = Region(name="free", rtt_ms=1.0, price_per_call=0.0)
    assert CostModel(price_per_call=1.0, regions=(free,)).expected(0.0).money == 0.0
    assert CostModel(price_per_call=1.0).expected(0.0).money == 1.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "key", ["price_per_call", "price_per_1k_tokens", "edge_ms", "edge_joules", "price_per_kwh", "price_per_second"]
)
def test_figures_that_are_none_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f"cost.{key} is"):
        CostModel(**{key: value})


@pytest.mark.parametrize("key", ["rtt_ms", "price_per_call", "cloud_ms"])
def test_a_region_s_figures_are_refused_by_name(key):
    with pytest.raises(ConfigError, match=f"cost.regions.eu.{key} is -1"):
        Region(**{"name": "eu", "rtt_ms": 1.0, key: -1.0})


prices = st.floats(0, 10)


@given(
    items=st.lists(st.tuples(st.one_of(st.just(math.nan), st.floats(0, 1)), st.integers(0, 5000)), min_size=1),
    certified=st.sampled_from([-math.inf, 0.2, 0.5, math.inf]),
    per_call=prices,
    per_token=prices,
    edge_ms=st.floats(0, 1000),
    second=prices,
)
def test_no_certified_threshold_costs_less_than_the_cheapest(items, certified, per_call, per_token, edge_ms, second):
    scores, tokens = map(np.array, zip(*items, strict=True))
    model = CostModel(
        price_per_call=per_call,
        price_per_1k_tokens=per_token,
        edge_ms=edge_ms,
        price_per_second=second,
        regions=(NEAR,),
    )
    found = cheapest(bound(certified), scores, model, tokens=tokens)
    assert found.threshold in (certified, math.inf)
    for threshold in {certified, math.inf, *(float(score) for score in scores if score >= certified)}:
        local = scores > threshold
        billed = tokens[~local].mean() if not local.all() else 0.0
        assert found.cost.total <= model.expected(local.mean(), tokens=billed).total * (1 + 1e-9) + 1e-12
    assert found.cost.total <= model.cloud_only(tokens=tokens.mean()).total * (1 + 1e-9)


def test_an_edge_that_costs_more_than_it_saves_is_not_asked():
    scores = np.linspace(0, 1, 100)
    slow = CostModel(edge_ms=200.0, price_per_second=1.0, regions=(NEAR,))
    assert cheapest(bound(0.5), scores, slow).threshold == math.inf
    assert cheapest(bound(0.5), scores, slow).cost == slow.cloud_only()
    assert cheapest(bound(0.5), scores, slow, edge_ms=2.0).threshold == 0.5
    assert cheapest(bound(-math.inf), scores, CostModel()).threshold == -math.inf


@pytest.mark.parametrize(
    ("scores", "tokens"), [([], None), ([0.5], [1, 2]), ([0.5], [-1]), ([0.5], [math.nan]), ([[0.5]], None)]
)
def test_items_that_do_not_fit_are_refused(scores, tokens):
    with pytest.raises(CertificateError):
        cheapest(bound(0.5), scores, CostModel(), tokens=tokens)
