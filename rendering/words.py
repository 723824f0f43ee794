"""Figures in words, and the table of names and values that most views are."""

from __future__ import annotations

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


def megabytes(size: int | None) -> str:
    """Bytes as megabytes."""
    return "not stated" if size is None else f"{size / 1e6:.1f} MB"
