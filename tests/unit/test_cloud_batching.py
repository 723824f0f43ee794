"""The pure rules of batching: lengths, groups, and who is next."""

import asyncio
import math
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from edgewise.cloud.batching import Pending, enough, take_batch
from edgewise.cloud.grouping import group_by_length, group_by_shape
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


def waiting(loop, deadlines, given_up):
    items = [Pending(Request(id=str(i), inputs=""), 0.0, at, loop.create_future()) for i, at in enumerate(deadlines)]
    for index in given_up:
        items[index % len(items)].result.cancel()
    return items


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, math.inf]), min_size=1, max_size=40), st.data(), st.integers(1, 16))
def test_a_batch_is_the_oldest_that_anyone_still_waits_for(deadlines, data, cap):
    loop = asyncio.new_event_loop()
    items = waiting(loop, deadlines, data.draw(st.lists(st.integers(0, 39), max_size=10)))
    queue = deque(items)
    batch, spent = take_batch(queue, 2.0, cap)
    loop.close()
    seen = len(items) - len(queue)
    alive = [item for item in items[:seen] if not item.result.done()]
    assert batch == [item for item in alive if item.deadline_s > 2.0]
    assert spent == [item for item in alive if item.deadline_s <= 2.0]
    assert len(batch) == cap or (len(batch) < cap and not queue)


@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 32))
def test_a_full_batch_and_a_lone_caller_never_wait(count, last, cap):
    assert enough(cap, last, cap)
    assert enough(count, 0, cap)
    assert enough(count, 1, cap)
    assert enough(count, last, cap) == (count >= min(max(last, 1), cap))
