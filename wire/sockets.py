"""uvicorn's WebSocket protocol, with an end of service that lets answers out, and an end for clients that do not read.

Owns what happens below the application; messages and close codes are `stream`'s.
"""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PING_EVERY_S = 20.0
PING_TIMEOUT_S = 20.0
"""A client that does not answer a ping in that time is gone."""

_LINGER_S = 1.0
"""Seconds to read on behind a message that cannot be taken."""

_CLOSE_S = 10.0
"""Seconds that bytes already written get to leave after the application has ended the connection."""


class StreamProtocol(WebSocketsSansIOProtocol):
    """One WebSocket."""

    def shutdown(self) -> None:
        """Service ends: an open connection is closed by the application, which the end of service was told to.

        uvicorn would close it with 1012 at once, in the middle of its answers.
        """
        if not self.handshake_complete or self.close_sent:
            super().shutdown()

    def handle_parser_exception(self) -> None:
        """Tell what was wrong and read on for a moment: a connection closed over unread bytes loses that word."""
        close = self.conn.close_sent
        if close is None or self.close_timer is not None:
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.close)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    async def run_asgi(self) -> None:
        """Run the application; what a client has not read some time later is dropped with its connection."""
        await super().run_asgi()
        if not self.disconnected:
            self.loop.call_later(_CLOSE_S, self.transport.abort)
