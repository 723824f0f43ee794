"""Progress for callers that want none."""

from __future__ import annotations


class NoProgress:
    """Implements `contracts.Progress` and says nothing."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Ignored."""

    def advance(self, steps: int = 1) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""
