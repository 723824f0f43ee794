"""Progress for callers that want none."""

from __future__ import annotations


class NullProgress:
    """Implements `contracts.Progress` and says nothing."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Says nothing."""

    def advance(self, steps: int = 1) -> None:
        """Says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""
