"""The progress display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ConsoleProgress:
    """Implements `contracts.Progress` as bars, each stage under the one before."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._current: TaskID | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        """End the stage before and begin a new bar."""
        self._end_stage()
        self._current = self._bars.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the current bar."""
        if self._current is not None:
            self._bars.advance(self._current, steps)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, highlight=False)

    def finish(self) -> None:
        """End the last stage."""
        self._end_stage()

    def _end_stage(self) -> None:
        if self._current is None:
            return
        task = next(task for task in self._bars.tasks if task.id == self._current)
        total = task.total if task.total is not None else max(task.completed, 1)
        self._bars.update(self._current, total=total, completed=total)


@contextmanager
def progress_on(console: Console) -> Iterator[ConsoleProgress]:
    """Show progress on `console` while the block runs; plain silence where it is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        progress = ConsoleProgress(bars)
        yield progress
        progress.finish()
