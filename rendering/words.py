"""Figures in words, and the table of names and values that most views are."""

from __future__ import annotations

import math

from rich.table import Table


def facts() -> Table:
    """A table of names and values."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def percent(share: float) -> str:
    """A share as per cent."""
    return f"{100 * share:.4g} %"


def threshold(value: float) -> str:
    """A threshold or a score in as few digits as tell it from 1, the largest that a probability can be."""
    for digits in range(6, 17):
        text = f"{value:.{digits}g}"
        if not math.isfinite(value) or abs(float(text) - value) <= abs(1 - value) / 1000:
            return text
    return repr(float(value))


def apart(one: float, other: float) -> tuple[str, str]:
    """Two scores in enough digits that what differs looks different."""
    texts = threshold(one), threshold(other)
    return texts if one == other or texts[0] != texts[1] else (repr(float(one)), repr(float(other)))


def megabytes(size: int | None) -> str:
    """Bytes as megabytes."""
    return "not stated" if size is None else f"{size / 1e6:.1f} MB"
