"""The facts of a single answer that every protocol carries as headers."""

from __future__ import annotations

from edgewise.contracts import Answer
from edgewise.wire.http import Header, header


def answer_headers(answer: Answer) -> tuple[Header, ...]:
    """Id, source, reason, status and model digest of an answer, as `x-edgewise-…`."""
    return (
        header(b"x-edgewise-id", answer.id),
        (b"x-edgewise-source", answer.source.encode()),
        (b"x-edgewise-reason", answer.decision.reason.encode()),
        (b"x-edgewise-status", answer.status.encode()),
        header(b"x-edgewise-model-digest", answer.model_digest),
    )
