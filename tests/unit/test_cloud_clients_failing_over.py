"""Which backend's stream counts where others fail, keep silent or refuse."""

import asyncio

import pytest

from edgewise.cloud.clients import FailOverClient
from edgewise.contracts import CloudReply, Reference, Request, StreamingCloudClient, Token
from edgewise.errors import CloudRefusedError, CloudResponseError, CloudUnreachableError

REQUEST = Request(id="r1", inputs="corn")
SILENT = object()


class Backend:
    """Streams its name letter by letter, fails or keeps silent at a piece, and tells whether it was given up."""

    def __init__(self, name: str, *, at: int = 0, does: object = None) -> None:
        self.reference = Reference(name, "1")
        self.name, self.at, self.does = name, at, does
        self.asked = asyncio.Event()
        self.ended = asyncio.Event()
        self.told = 0

    async def describe(self, *, timeout_s: float) -> Reference:
        return self.reference

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        raise AssertionError("a backend that streams is asked for its stream")

    async def stream(self, request: Request, *, timeout_s: float):
        self.asked.set()
        try:
            for at, letter in enumerate(self.name):
                await self.trouble(at)
                self.told += 1
                yield Token(id=request.id, text=letter)
            await self.trouble(len(self.name))
            yield CloudReply(self.name, self.reference)
        finally:
            self.ended.set()

    async def trouble(self, at: int) -> None:
        if at != self.at or self.does is None:
            return
        if isinstance(self.does, Exception):
            raise self.does
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        pass


class Whole(Backend):
    """A backend that streams nothing."""

    stream = None

    async def predict(self, request: Request, *, timeout_s: float) -> CloudReply:
        return CloudReply(self.name, self.reference)


def over(*backends: Backend, **settings) -> FailOverClient:
    return FailOverClient({backend.name: backend for backend in backends}, **settings)


async def read(client: FailOverClient) -> tuple[str, CloudReply]:
    *tokens, reply = [piece async for piece in client.stream(REQUEST, timeout_s=5)]
    return "".join(token.text for token in tokens), reply


async def test_the_primarys_stream_is_passed_on():
    first, second = Backend("ab"), Backend("cd")
    client = over(first, second)
    assert isinstance(client, StreamingCloudClient)
    assert await read(client) == ("ab", CloudReply("ab", first.reference))
    assert not second.asked.is_set()


async def test_the_next_one_streams_where_the_primary_fails_at_once_and_says_so():
    first, second = Backend("ab", does=CloudUnreachableError("gone")), Backend("cd")
    assert await read(over(first, second)) == ("cd", CloudReply("cd", second.reference, fail_over=True))


async def test_a_silent_primary_is_given_up_once_another_begins():
    first, second = Backend("ab", does=SILENT), Backend("cd")
    text, reply = await read(over(first, second, after_s=0.01))
    assert (text, reply.fail_over) == ("cd", True)
    assert first.ended.is_set()


async def test_a_stream_that_has_begun_is_gone_on_with_by_nobody_else():
    first, second = Backend("ab", at=1, does=CloudResponseError("cut")), Backend("cd")
    client = over(first, second, failures_to_open=2)
    for _ in range(2):
        assert not second.asked.is_set()
        pieces = client.stream(REQUEST, timeout_s=5)
        assert (await anext(pieces)).text == "a"
        with pytest.raises(CloudResponseError, match="cut"):
            await anext(pieces)
    # And it counts against the primary, however well it begins.
    assert (await read(client))[1].fail_over
    await client.aclose()


@pytest.mark.parametrize("at", [0, 1])
async def test_the_primarys_refusal_is_the_last_word(at):
    first, second = Backend("ab", at=at, does=CloudRefusedError("too long")), Backend("cd")
    client = over(first, second, failures_to_open=1)
    for _ in range(3):
        with pytest.raises(CloudRefusedError):
            await read(client)
    assert not second.asked.is_set()


async def test_a_backend_that_streams_nothing_answers_whole():
    first, second = Backend("ab", does=CloudUnreachableError("gone")), Whole("cd")
    assert await read(over(first, second)) == ("", CloudReply("cd", second.reference, fail_over=True))


async def test_a_stream_without_a_piece_is_a_failure():
    class Empty(Backend):
        async def stream(self, request: Request, *, timeout_s: float):
            for piece in ():
                yield piece

    assert (await read(over(Empty("ab"), Backend("cd"))))[0] == "cd"


async def test_closing_the_stream_closes_the_backends():
    first, second = Backend("ab", at=1, does=SILENT), Backend("cd")
    pieces = over(first, second).stream(REQUEST, timeout_s=5)
    assert (await anext(pieces)).text == "a"
    await pieces.aclose()
    assert first.ended.is_set()


async def test_giving_up_before_the_first_piece_gives_every_backend_up():
    first, second = Backend("ab", does=SILENT), Backend("cd", does=SILENT)
    pieces = over(first, second, after_s=0.01).stream(REQUEST, timeout_s=5)
    waiting = asyncio.create_task(anext(pieces))
    await second.asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert first.ended.is_set()
    assert second.ended.is_set()


async def test_of_two_that_begin_at_once_one_is_let_go():
    gate = asyncio.Event()

    class Gated(Backend):
        async def trouble(self, at: int) -> None:
            await gate.wait()

    first, second = Gated("ab"), Gated("cd")
    client = over(first, second, after_s=0.01)
    reading = asyncio.create_task(read(client))
    await second.asked.wait()
    gate.set()
    assert await reading == ("ab", CloudReply("ab", first.reference))
    assert second.ended.is_set()
    assert second.told <= 1
