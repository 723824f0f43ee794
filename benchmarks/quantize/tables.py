"""Shows what a benchmark found: tables for people, one JSON file for machines. Computes nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Goal, Spread, plain
from rich.console import Console
from rich.table import Table

from edgewise.errors import EdgewiseError
from edgewise.files import write_atomically

CONSOLE = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; every column but the first is flushed right."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def show_goals(goals: Sequence[Goal]) -> None:
    """Print what was met and what was missed."""
    show_table("Targets", ("target", "found", ""), [(g.what, g.found, "met" if g.met else "MISSED") for g in goals])


def show_machine(machine: Mapping[str, Any]) -> None:
    """Print where it was measured, and a warning where that was busy."""
    CONSOLE.print(
        f"{machine['processor']} ({machine['isa']}), {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, onnxruntime {machine['onnxruntime']}, {machine['date']}"
    )
    if machine["load_average"][0] > 0.5:
        CONSOLE.print(f"Beware: the load average was {machine['load_average'][0]:.1f} at the start.")


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write every figure."""
    write_atomically(path, (json.dumps(plain(result), indent=1) + "\n").encode())
    CONSOLE.print(f"every figure: {path}")


def mega(size_bytes: float) -> str:
    """Megabytes, of a million bytes."""
    return f"{size_bytes / 1e6:.1f}"


def shown(value: Spread, digits: int = 2) -> str:
    """A median with its smallest and largest."""
    return f"{value.median:.{digits}f} ({value.low:.{digits}f}-{value.high:.{digits}f})"


def percent(share: float | None, digits: int = 2) -> str:
    """A share in percent."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def parser(description: str | None, out: Path, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options that every benchmark has, and with `rounds` those of one that measures time."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=out, help="JSON with every figure (default: %(default)s)")
    made.add_argument("--work", type=Path, help="folder for everything built (default: benchmarks/.work)")
    if rounds is None:
        return made
    made.add_argument("--rounds", type=int, default=rounds, help="rounds of fresh processes (default: %(default)s)")
    made.add_argument("--fresh", action="store_true", help="measure anew what was measured before")
    return made


def run(command: Callable[[], int]) -> int:
    """Run a benchmark's command line: a known error is one sentence, Ctrl-C is quiet."""
    try:
        return command()
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
