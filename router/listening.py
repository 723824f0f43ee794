"""Hearing an answer of the cloud as it is written. Owns what a stream must be like, and when it has begun.

What the breaker and the clocks make of it is `escalation`'s.
"""

from __future__ import annotations

from collections.abc import Callable

from edgewise.contracts import Clock, CloudReply, Request, StreamingCloudClient, Token
from edgewise.errors import CloudResponseError


class Listener:
    """Hears one answer.

    Args:
        on_token: Told of each piece, in order; together they are the answer.
        on_first: Told once that there is an answer, at its first piece, with the seconds that it took to come.
        clock: Time.
    """

    def __init__(self, on_token: Callable[[Token], None], on_first: Callable[[float], None], clock: Clock) -> None:
        self._on_token = on_token
        self._on_first = on_first
        self._clock = clock
        self._asked = clock.monotonic()
        self._texts: list[str] = []

    @property
    def has_begun(self) -> bool:
        """Whether some of it was told already, so that nothing else may be."""
        return bool(self._texts)

    async def hear(self, cloud: StreamingCloudClient, request: Request, *, timeout_s: float) -> CloudReply:
        """The whole answer; its pieces were told by then.

        Raises:
            CloudRefusedError: It will refuse this very request every time.
            CloudError: It broke off, took too long, or its pieces are not its answer.
        """
        self._asked = self._clock.monotonic()
        items = cloud.stream(request, timeout_s=timeout_s)
        try:
            async for item in items:
                if isinstance(item, CloudReply):
                    return self._whole(item)
                self._tell(item)
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()
        raise CloudResponseError("The cloud's stream ended without its answer.")

    def _tell(self, token: Token) -> None:
        if not self._texts:
            self._on_first(self._clock.monotonic() - self._asked)
        self._texts.append(token.text)
        self._on_token(token)

    def _whole(self, reply: CloudReply) -> CloudReply:
        told = "".join(self._texts)
        if not isinstance(reply.output, str) or not reply.output.startswith(told):
            raise CloudResponseError("The pieces of the cloud's stream are not its answer.")
        if len(reply.output) > len(told):
            self._tell(Token(id="", text=reply.output[len(told) :]))
        return reply


def unheard(_: Token) -> None:
    """For whoever wants the whole answer alone."""
