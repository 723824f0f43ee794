"""uvicorn's WebSocket protocol, with an end of service that lets answers out, and an end for clients that do not read.

Owns what happens below the application; messages and close codes are `stream`'s.
"""

from __future__ import annotations

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

PING_EVERY_S = 20.0
PING_TIMEOUT_S = 20.0
"""A client that does not answer a ping in that time is gone."""

_LINGER_S = 1.0
"""Seconds to read on behind a message that cannot be taken."""

_CLOSE_S = 10.0
"""Seconds that bytes already written get to leave after the application has ended the connection."""


_NO_UTF8 = 1007  # RFC 6455, section 7.4.1

_MESSAGE = b"This is no WebSocket handshake."
_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


class StreamProtocol(WebSocketsSansIOProtocol):
    """One WebSocket."""

    def shutdown(self) -> None:
        """Service ends: an open connection is closed by the application, which the end of service was told to.

        uvicorn would close it with 1012 at once, in the middle of its answers.
        """
        if not self.handshake_complete or self.close_sent:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Take what has come; a handshake that cannot be read is refused with what its parser says of it.

        uvicorn would say nothing, and keep the connection.
        """
        if self.handshake_complete and self.close_sent and self.conn.handshake_exc is not None:
            return  # it was refused, and is closed once that has been sent
        super().data_received(data)
        if self.handshake_initiated or self.conn.handshake_exc is None:
            return
        self.handshake_complete = self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()) or _REFUSAL)
        self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Hand a message to the application; a text that is none ends the connection, and nobody's log hears of it."""
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(b"".join(self.frames)):
            self.frames = []
            self.conn.send_close(_NO_UTF8, "a text frame is not UTF-8")
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    async def send(self, message: ASGISendEvent) -> None:
        """As ASGI has it; a handshake that the application refused is complete with that."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

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


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
