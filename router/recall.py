"""Answers of earlier, equal requests. Owns what may be kept and under which key; the bytes are the cache's."""

from __future__ import annotations

import msgspec

from edgewise.contracts import (
    Answer,
    DataPolicy,
    Mode,
    Reason,
    Reference,
    Request,
    ResponseCache,
    Source,
)
from edgewise.router.cachekey import cache_key


class Recall:
    """The exact cache as the flow sees it.

    Args:
        cache: Where answers are kept; None keeps none.
        model_digest: The edge bundle.
    """

    def __init__(self, cache: ResponseCache | None, model_digest: str) -> None:
        self._cache = cache
        self._model_digest = model_digest

    def find(self, request: Request, mode: Mode, scope: str, reference: Reference | None) -> Answer | None:
        """The answer to an equal request of the same scope and cloud, in this request's name."""
        if self._cache is None or not _may_be_kept(request):
            return None
        found = self._cache.get(self._key(request, mode, scope, reference))
        if found is None:
            return None
        decision = msgspec.structs.replace(found.decision, reason=Reason.CACHE_HIT)
        return msgspec.structs.replace(found, id=request.id, source=Source.CACHE, decision=decision)

    def keep(self, request: Request, mode: Mode, scope: str, reference: Reference | None, final: Answer) -> None:
        """Keep a final answer; `reference` is the cloud that gave it, or the one in force where the edge did."""
        if self._cache is not None and _may_be_kept(request):
            self._cache.put(self._key(request, mode, scope, reference), final)

    def _key(self, request: Request, mode: Mode, scope: str, reference: Reference | None) -> bytes:
        return cache_key(
            msgspec.structs.replace(request, mode=mode),
            scope=scope,
            model_digest=self._model_digest,
            reference=reference,
        )


def _may_be_kept(request: Request) -> bool:
    return request.data_policy is not DataPolicy.LOCAL_ONLY
