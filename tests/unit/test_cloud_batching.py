"""The pure rules of batching: lengths, groups, and who is next."""

import functools
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.cloud.batching import PATIENCE_S, Pending, due_s, enough, in_a_hurry, length_of, share, take_batch
from edgewise.cloud.costs import Costs
from edgewise.cloud.grouping import MAX_WASTE, group_by_length, group_by_shape
from edgewise.contracts import Request

LENGTHS = st.lists(st.integers(1, 512), max_size=80)


@given(LENGTHS, st.integers(1, 32), st.floats(0, 2))
def test_groups_hold_each_item_once_and_waste_little(lengths, max_group, max_waste):
    groups = group_by_length(lengths, max_group=max_group, max_waste=max_waste)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[position] for position in group]
        assert 1 <= len(group) <= max_group
        assert max(sizes) * len(sizes) <= sum(sizes) * (1 + max_waste)


@given(LENGTHS)
def test_without_waste_only_equal_lengths_share_a_group(lengths):
    groups = group_by_length(lengths, max_group=512, max_waste=0)
    assert len(groups) == len(set(lengths))


def test_alike_items_are_one_group():
    assert group_by_length([10] * 32) == [list(range(32))]
    assert len(group_by_length([10] * 33)) == 2


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=40), st.integers(1, 5))
def test_only_one_shape_is_stacked(shapes, max_group):
    groups = group_by_shape(shapes, max_group=max_group)
    assert sorted(position for group in groups for position in group) == list(range(len(shapes)))
    assert all(len({shapes[position] for position in group}) == 1 <= len(group) <= max_group for group in groups)


NOW = 2.0
LEARNED = functools.reduce(
    lambda costs, load: costs.observed(load, 10, 0.1 + 0.001 * load * 10, NOW), (1, 8, 3, 16, 2) * 20, Costs()
)
"""An engine that takes 100 ms a batch and 1 ms a unit of padded length."""


class Never:
    """A future without a loop."""

    def __init__(self, over=False):
        self.over = over

    def done(self):
        return self.over


def pending(number, *, arrived_s=NOW, deadline_s=math.inf, wanted_s=math.inf, length=10, gone=False):
    wanted_s = min(wanted_s, deadline_s)
    return Pending(Request(id=str(number), inputs=""), arrived_s, wanted_s, deadline_s, length, Never(), Never(gone))


ITEMS = st.lists(
    st.builds(
        dict,
        arrived_s=st.floats(0, NOW),
        deadline_s=st.one_of(st.just(math.inf), st.floats(NOW - 1, NOW + 3)),
        wanted_s=st.one_of(st.just(math.inf), st.floats(NOW - 1, NOW + 3)),
        length=st.integers(1, 200),
        gone=st.booleans(),
    ),
    max_size=40,
)
COSTS = st.sampled_from([Costs(), LEARNED])


@given(ITEMS, st.integers(1, 16), COSTS)
def test_every_waiting_item_goes_to_exactly_one_place(drawn, cap, costs):
    items = [pending(number, **one) for number, one in enumerate(drawn)]
    batch, spent, waiting = take_batch(items, NOW, cap, costs)
    assert sorted(int(item.request.id) for item in (*batch, *spent, *waiting)) == [
        number for number, one in enumerate(drawn) if not one["gone"]
    ]
    assert len(batch) <= cap
    assert batch or not waiting


@given(ITEMS, st.integers(1, 16), COSTS)
def test_the_most_urgent_is_always_next(drawn, cap, costs):
    items = [pending(number, **one) for number, one in enumerate(drawn)]
    batch, _, waiting = take_batch(items, NOW, cap, costs)
    assert all(due_s(batch[0], NOW, costs) <= due_s(item, NOW, costs) for item in (*batch, *waiting))


@given(ITEMS, st.integers(1, 16), COSTS)
def test_a_batch_wastes_little_and_is_done_in_time_for_all_in_it(drawn, cap, costs):
    items = [pending(number, **one) for number, one in enumerate(drawn)]
    batch, spent, _ = take_batch(items, NOW, cap, costs)
    lengths = [item.length for item in batch]
    if len(batch) > 1:
        assert len(batch) * max(lengths) <= sum(lengths) * (1 + MAX_WASTE)
        assert all(NOW + costs.upper(len(batch), max(lengths)) <= item.deadline_s for item in batch)
    for item in batch:
        assert item.deadline_s > NOW
    for item in spent:
        assert item.deadline_s <= NOW + costs.lower(1, item.length, NOW)


@given(ITEMS, st.integers(1, 16))
def test_nobody_without_a_budget_is_ever_told_that_it_is_spent(drawn, cap):
    items = [pending(number, **one) for number, one in enumerate(drawn)]
    assert all(item.deadline_s < math.inf for item in take_batch(items, NOW, cap, LEARNED).spent)


def test_a_batch_closes_early_for_the_tightest_budget():
    patient = [pending(number) for number in range(8)]
    assert len(take_batch(patient, NOW, 16, LEARNED).batch) == 8
    # A lone item takes 110 ms, two take 120 ms, eight 180 ms.
    tight = pending(8, deadline_s=NOW + 0.15)
    batch = take_batch([*patient, tight], NOW, 16, LEARNED).batch
    assert batch[0] is tight
    assert 1 < len(batch) < 8


def test_a_batch_closes_for_a_budget_whose_caller_waits_longer():
    patient = [pending(number) for number in range(8)]
    tight = pending(8, wanted_s=NOW + 0.15, deadline_s=NOW + 10)
    batch = take_batch([*patient, tight], NOW, 16, LEARNED).batch
    assert batch[0] is tight
    assert 1 < len(batch) < 8


def test_a_budget_that_is_lost_is_computed_while_somebody_waits_and_hurries_nobody():
    lost, fresh = pending(0, wanted_s=NOW + 0.05, deadline_s=NOW + 10), pending(1, deadline_s=NOW + 0.15)
    batch, spent, waiting = take_batch([lost, fresh], NOW, 1, LEARNED)
    assert (batch, spent, waiting) == ([fresh], [], [lost])
    assert len(take_batch([lost, *(pending(number) for number in range(1, 8))], NOW, 16, LEARNED).batch) == 8


def test_what_cannot_be_met_any_more_is_told_at_once():
    late, patient = pending(0, deadline_s=NOW + 0.05), pending(1)
    assert take_batch([late, patient], NOW, 16, LEARNED) == ([patient], [late], [])
    # Of an engine that nobody knows yet it can be met.
    assert take_batch([late, patient], NOW, 1, Costs()) == ([late], [], [patient])


def test_what_an_engine_once_took_is_believed_less_and_less():
    late = [pending(0, deadline_s=NOW + 60.05)]
    assert take_batch(late, NOW + 60, 16, LEARNED).batch == late


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 100)), min_size=1, max_size=40), st.integers(1, 4))
def test_nobody_starves(arrivals, cap):
    """No batch is made for one that came `PATIENCE_S` after somebody who still waits, under any arrivals."""
    tick_s, waiting, told, batches = 0.5, [], {}, []
    first = pending("first", arrived_s=0.0, length=1)
    for tick in range(len(arrivals) + 400):
        now_s = tick * tick_s
        count, length = arrivals[tick] if tick < len(arrivals) else (0, 1)
        ends = (math.inf, now_s + 0.4)
        come = [pending(f"{tick}.{i}", arrived_s=now_s, deadline_s=ends[i % 2], length=length) for i in range(count)]
        batch, spent, waiting = take_batch([*waiting, *come, *([first] if tick == 0 else [])], now_s, cap, Costs())
        for item in (*batch, *spent):
            assert told.setdefault(item.request.id, tick) == tick
        batches += [batch] if batch else []
        if not waiting and tick >= len(arrivals):
            break
    assert not waiting
    before = itertools.takewhile(lambda batch: first not in batch, batches)
    assert all(batch[0].arrived_s < first.arrived_s + PATIENCE_S for batch in before)


@given(st.integers(1, 100), st.integers(1, 8), st.integers(1, 32))
def test_free_slots_share_what_waits(waiting, free, cap):
    assert 1 <= share(waiting, free, cap) <= cap
    assert share(waiting, free, cap) * free >= min(waiting, cap)


def test_a_wait_is_for_those_who_have_the_time():
    assert not in_a_hurry([pending(0)], NOW, 0.002, LEARNED)
    assert not in_a_hurry([pending(0, deadline_s=NOW + 9)], NOW, 0.002, LEARNED)
    assert in_a_hurry([pending(0), pending(1, deadline_s=NOW + 0.11)], NOW, 0.002, LEARNED)


def test_lengths_tell_texts_apart_and_no_images():
    assert length_of("a" * 100) > length_of("a" * 50) > length_of("")
    assert length_of("a" * 10_000) == length_of("a" * 20_000)
    assert length_of(b"png") == length_of(b"another image") == 1


@given(
    st.floats(0, 0.5), st.floats(1e-5, 0.01), st.lists(st.tuples(st.integers(1, 16), st.integers(1, 100)), min_size=1)
)
def test_costs_learn_what_an_engine_takes(fixed, slope, shapes):
    costs = Costs()
    for items, longest in shapes * 40:
        costs = costs.observed(items, longest, fixed + slope * items * longest, NOW)
    if len({items * longest for items, longest in shapes}) > 1:
        for items, longest in shapes:
            assert costs.expected(items, longest) == pytest.approx(fixed + slope * items * longest, rel=0.05, abs=1e-3)
    assert 0 <= costs.lower(4, 50, NOW) <= costs.expected(4, 50) <= costs.upper(4, 50)


def test_a_stall_is_not_taken_for_a_slow_engine():
    stalled = LEARNED.observed(1, 10, 60.0, NOW)
    assert stalled.expected(1, 10) < 2 * LEARNED.expected(1, 10)


@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 32))
def test_a_full_batch_and_a_lone_caller_never_wait(count, last, cap):
    assert enough(cap, last, cap)
    assert enough(count, 0, cap)
    assert enough(count, 1, cap)
    assert enough(count, last, cap) == (count >= min(max(last, 1), cap))


@given(
    st.integers(1, 8), st.integers(1, 200), st.lists(st.floats(0.9, 1.1), min_size=1, max_size=40), st.integers(1, 2048)
)
def test_nobody_is_refused_over_a_cost_that_was_never_seen(items, length, noise, longer):
    """An engine whose batches cost the same whatever is in them, seen with batches of one shape only."""
    costs = Costs()
    for factor in noise:
        costs = costs.observed(items, length, 0.01 * factor, NOW)
    assert costs.lower(1, longer, NOW) <= 0.011
