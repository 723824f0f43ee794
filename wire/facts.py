"""The facts of a single answer that every protocol carries as headers."""

from __future__ import annotations

from functools import lru_cache

from edgewise.contracts import Answer, Reason, Source, Status
from edgewise.wire.http import Header, header

_KINDS = 256


def answer_headers(answer: Answer) -> tuple[Header, ...]:
    """Id, source, reason, status and model digest of an answer, as `x-edgewise-…`."""
    kind = _of_kind(answer.source, answer.decision.reason, answer.status, answer.model_digest)
    return (header(b"x-edgewise-id", answer.id), *kind)


@lru_cache(maxsize=_KINDS)
def _of_kind(source: Source, reason: Reason, status: Status, model_digest: str) -> tuple[Header, ...]:
    """What many answers have in common."""
    return (
        (b"x-edgewise-source", source.encode()),
        (b"x-edgewise-reason", reason.encode()),
        (b"x-edgewise-status", status.encode()),
        header(b"x-edgewise-model-digest", model_digest),
    )
