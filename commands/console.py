"""Where the commands print: results to standard output, all else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import msgspec
import typer
from rich.console import Console

TERMINAL = sys.stdout.isatty()
# What goes to a pipe must not be folded at the width of a terminal that is not there.
OUT = Console(highlight=False, markup=False, emoji=False, soft_wrap=not TERMINAL, width=None if TERMINAL else 240)
ERR = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=not sys.stderr.isatty())


def show(view: Any, value: Any, *, as_json: bool) -> None:
    """Print the view for people, or the value as JSON for machines."""
    if as_json:
        raw = value if isinstance(value, bytes) else msgspec.json.format(msgspec.json.encode(value), indent=2)
        sys.stdout.write(raw.decode().rstrip() + "\n")
    else:
        OUT.print(view)


def conclude(view: Any, value: Any, *, as_json: bool, goal_met: bool) -> None:
    """Show a result that may miss its goal.

    Raises:
        typer.Exit: With code 1, where it does.
    """
    show(view, value, as_json=as_json)
    if not goal_met:
        raise typer.Exit(1)


def warn(warnings: Iterable[str]) -> None:
    """Tell an operator, one line each."""
    for warning in warnings:
        ERR.print(f"warning: {warning}")
