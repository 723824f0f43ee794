"""An edge model's draft on its way to whoever asked: as it is written, watched, up to a token or to its end.

Owns the telling. What a draft is worth, and who goes on where it is not, is the flow's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgewise.contracts import Prediction
from edgewise.dialogue import Piece
from edgewise.router.telling import Telling
from edgewise.router.toolcheck import ToolCheck, without_calls
from edgewise.router.watch import Watch
from edgewise.router.writing import Draft


async def tell(telling: Telling, draft: Draft, *, watch: Watch | None = None, until: int | None = None) -> bool:
    """Tell the draft as it is written; whether its confidence collapsed, after which no more is told.

    Args:
        telling: Who hears it.
        draft: The draft.
        watch: Watches it.
        until: Tokens after which to stop; None goes on to the end.

    Raises:
        InputError: The prompt cannot be answered.
        RuntimeError: The router is closed, or a library broke down.
    """
    last = math.inf if until is None else until
    sign = draft.sign(last)
    collapsed = False

    def hear(pieces: Sequence[Piece]) -> None:
        nonlocal collapsed
        if collapsed:
            return
        pieces = pieces[: None if until is None else until - telling.passed]
        if watch is not None:
            seen = [watch.saw(piece.logprob) for piece in pieces]
            collapsed = any(seen)
            pieces = pieces[: seen.index(True) + 1] if collapsed else pieces
        telling.pieces(pieces)
        if collapsed and not sign.done():
            sign.set_result(None)

    draft.follow(hear, telling.passed)
    try:
        await sign
    finally:
        draft.unfollow()
    if not collapsed:
        draft.check()
    return collapsed


async def whole(telling: Telling, draft: Draft, tools: ToolCheck) -> Prediction:
    """The edge's whole text, told as it is written; calls that nobody may make are left out."""
    await tell(telling, draft)
    prediction = draft.prediction()
    if not tools.is_valid(prediction.written):
        prediction = without_calls(prediction)
    telling.turn.edge_ms = 1000 * (telling.turn.clock.monotonic() - telling.turn.started)
    return prediction


async def written_out(draft: Draft) -> Prediction | None:
    """The edge's text once it is over; None where it fails, or nobody let it end."""
    try:
        await draft.reach()
        return draft.prediction() if draft.is_whole else None
    finally:
        draft.stop()


async def is_told(telling: Telling, draft: Draft) -> bool:
    """Whether all of a text was told for good: then nothing is left to take back, or to go on with."""
    if not telling.has_spoken or telling.turn.request.revisable:
        return False
    await draft.reach(telling.passed + 1)
    return draft.is_whole and len(draft.items) == telling.passed
