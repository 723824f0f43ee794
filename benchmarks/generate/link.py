"""A network of a given length between two ports of this machine: bytes arrive in order, half a round trip late.

A delay line, unlike the faults of tests/faults/proxy.py: what is sent meanwhile is on its way too, so that a stream of
tokens arrives late once, and not token by token.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

_CHUNK = 64 << 10
_PATIENCE_S = 20.0


class Link:
    """Forwards a port of this machine to an upstream. Use it as a context manager.

    Args:
        host: Upstream host.
        port: Upstream port.
        rtt_ms: Round trip; connections made from now on have it.
    """

    def __init__(self, host: str, port: int, rtt_ms: float) -> None:
        self._upstream = (host, port)
        self._delay_s = rtt_ms / 2000
        self.port = 0

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Link:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exception: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def _call(self, coroutine) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * self._delay_s)  # the handshake
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        ways = [
            asyncio.create_task(self._carry(reader, up_writer)),
            asyncio.create_task(self._carry(up_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return  # only the end of the link cancels, and asyncio's streams report that as an error
        finally:
            for way in ways:
                way.cancel()
            up_writer.close()
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        on_their_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, chunk = await on_their_way.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not chunk:
                    return
                writer.write(chunk)
                await writer.drain()

        delivering = asyncio.create_task(deliver())
        try:
            with suppress(ConnectionError):
                while chunk := await reader.read(_CHUNK):
                    on_their_way.put_nowait((loop.time() + self._delay_s, chunk))
                on_their_way.put_nowait((loop.time() + self._delay_s, b""))
                await delivering
        finally:
            delivering.cancel()
