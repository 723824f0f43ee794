"""Which items one forward pass computes together. Pure; knows lengths and shapes only."""

from __future__ import annotations

from collections.abc import Sequence

MAX_GROUP = 32
"""Items of one forward pass; more gain nothing on a processor and cost memory."""

MAX_WASTE = 0.25
"""Padding allowed in a group, as a share of its real length."""


def group_by_length(
    lengths: Sequence[int], *, max_group: int = MAX_GROUP, max_waste: float = MAX_WASTE
) -> list[list[int]]:
    """Group items of like length, so that padding wastes little.

    Args:
        lengths: Length of each item, at least 1.
        max_group: Most items in a group, at least 1.
        max_waste: A group padded to its longest item holds at most this share of padding above its real length.

    Returns:
        Groups of positions, shortest first; each position stands in exactly one group.
    """
    groups: list[list[int]] = []
    real = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        longest = lengths[position]
        real += longest
        size = len(groups[-1]) + 1 if groups else 0
        if groups and size <= max_group and size * longest <= real * (1 + max_waste):
            groups[-1].append(position)
        else:
            groups.append([position])
            real = longest
    return groups


def group_by_shape(shapes: Sequence[tuple[int, ...]], *, max_group: int = MAX_GROUP) -> list[list[int]]:
    """Group items of one shape, which can be stacked without padding.

    Args:
        shapes: Shape of each item.
        max_group: Most items in a group, at least 1.

    Returns:
        Groups of positions; each position stands in exactly one group.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for position, shape in enumerate(shapes):
        alike.setdefault(shape, []).append(position)
    return [group[i : i + max_group] for group in alike.values() for i in range(0, len(group), max_group)]
