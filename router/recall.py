"""Answers of earlier, equal requests. Owns what may be kept and under which key; the bytes are the caches'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from edgewise.contracts import (
    Answer,
    DataPolicy,
    Mode,
    Reason,
    Reference,
    Request,
    ResponseCache,
    SharedCache,
    Source,
)
from edgewise.dialogue import Prompt
from edgewise.router.cachekey import cache_key
from edgewise.router.turn import Turn

_SHARED_PART = 0.1
_SHARED_MOST_S = 0.05
"""A shared cache is asked for a tenth of what is left of the budget, and never longer than this."""


class Recall:
    """The exact caches as the flow sees them: one of this process, and one that several processes share.

    Args:
        cache: Answers of this process; None keeps none.
        shared: Answers of several processes; None asks none.
        model_digest: The edge bundle.
        scope: What a local answer to a request rests on now.
        reference: The cloud in force until another one answers.
        beside: Runs what fills the shared cache beside the flow.
    """

    def __init__(
        self,
        cache: ResponseCache | None,
        shared: SharedCache | None,
        *,
        model_digest: str,
        scope: Callable[[Request], str],
        reference: Reference | None,
        beside: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._cache = cache
        self._shared = shared
        self._model_digest = model_digest
        self._scope = scope
        self._beside = beside
        self._is_empty = cache is None and shared is None
        self.reference = reference

    def key_of(self, turn: Turn) -> bytes:
        """The key of everything that the answer depends on, as it was when first asked for."""
        if turn.key is None:
            turn.key = self._key(turn.request, turn.mode, self.reference)
        return turn.key

    def renew_key(self, turn: Turn) -> None:
        """What a local answer rests on is that of its decision: it may have changed before, and may change after."""
        if turn.key is not None or (not self._is_empty and _may_be_kept(turn.request)):
            turn.key = self._key(turn.request, turn.mode, self.reference)

    def find(self, turn: Turn) -> Answer | None:
        """The answer to an equal request, in this one's name, where this process kept it."""
        if self._cache is None or not _may_be_kept(turn.request):
            return None
        found = self._cache.get(self.key_of(turn))
        return None if found is None else turn.by_cache(found)

    def asks_shared(self, request: Request) -> bool:
        """Whether another process may have kept the answer."""
        return self._shared is not None and _may_be_kept(request)

    async def find_shared(self, turn: Turn) -> Answer | None:
        """The answer to an equal request where another process kept it; from then on this one does too."""
        left_s = turn.left_s
        if self._shared is None or left_s <= 0:
            return None
        key = self.key_of(turn)
        try:
            async with asyncio.timeout(min(_SHARED_PART * left_s, _SHARED_MOST_S)):
                found = await self._shared.get(key)
        except TimeoutError:
            return None
        if found is None:
            return None
        if self._cache is not None:
            self._cache.put(key, found)
        return turn.by_cache(found)

    def keep_local(self, turn: Turn, final: Answer, *, share: bool) -> None:
        """Keep a final edge answer.

        Args:
            turn: Its request.
            final: The answer.
            share: Whether other processes shall know of it too.
        """
        if not self._is_empty and _may_be_kept(turn.request):
            self._put(self.key_of(turn), final, share=share)

    def keep_cloud(self, request: Request, mode: Mode, final: Answer, reference: Reference) -> None:
        """Keep the cloud's answer under the cloud that gave it; what another backend said in its place is not kept."""
        if self._is_empty or not _may_be_kept(request) or final.decision.reason is Reason.FAIL_OVER:
            return
        self._put(self._key(request, mode, reference), final, share=True)

    async def aclose(self) -> None:
        """Close the connections of the shared cache."""
        if self._shared is not None:
            await self._shared.aclose()

    def _key(self, request: Request, mode: Mode, reference: Reference | None) -> bytes:
        return cache_key(
            request, mode=mode, scope=self._scope(request), model_digest=self._model_digest, reference=reference
        )

    def _put(self, key: bytes, final: Answer, *, share: bool) -> None:
        found = _as_found(final)
        if self._cache is not None:
            self._cache.put(key, found)
        if share and self._shared is not None:
            self._beside(self._shared.put(key, found))


def _as_found(final: Answer) -> Answer:
    """The answer as whoever finds it will give it, so that finding costs the least."""
    decision = msgspec.structs.replace(final.decision, reason=Reason.CACHE_HIT)
    return msgspec.structs.replace(final, source=Source.CACHE, decision=decision)


def _may_be_kept(request: Request) -> bool:
    if request.data_policy is DataPolicy.LOCAL_ONLY:
        return False
    item = request.inputs
    if not isinstance(item, Prompt):
        return True
    return item.sampling.is_greedy and not (item.sampling.logprobs or item.sampling.top_logprobs)
