"""The shared cache against a real Redis: what it keeps and refuses to believe, and that it costs nothing while away."""

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edgewise.contracts import Action, Answer, Decision, Reason, SharedCache, Source, Status
from edgewise.errors import ConfigError, MissingExtraError
from edgewise.store.records import encode_answer
from edgewise.store.redis import RedisCache

PROGRAM = shutil.which("redis-server")

KEY, OTHER = b"k" * 32, b"o" * 32
STORED = b"edgewise:answer:" + KEY


def answer(request_id: str = "1", status: Status = Status.FINAL, output: str | tuple[float, ...] = "a") -> Answer:
    return Answer(
        id=request_id,
        output=output,
        status=status,
        source=Source.EDGE,
        decision=Decision(action=Action.LOCAL, reason=Reason.CONFIDENT, policy="certified", threshold=float("-inf")),
        timings_ms={"total": 1.25},
        model_digest="sha256:1",
    )


class SetClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Server:
    """A redis-server on a Unix socket of its own."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/redis.sock"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        assert PROGRAM is not None
        options = ["--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen([PROGRAM, *options, *more], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self.answers():
            assert self.process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)

    def answers(self) -> bool:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            try:
                client.connect(f"{self.folder}/redis.sock")
                client.sendall(b"PING\r\n")
                return client.recv(5) in (b"+PONG", b"-NOAU")
            except OSError:
                return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if PROGRAM is None:
        pytest.skip("the program redis-server is not installed")
    found = Server(tmp_path_factory.mktemp("r"))
    found.start()
    yield found
    found.stop()


@pytest.fixture
async def cache(server: Server) -> AsyncIterator[RedisCache]:
    opened = RedisCache(server.url, 60.0, timeout_s=5.0, clock=time)
    yield opened
    await opened.aclose()


async def test_gives_back_what_was_put_also_to_another_process(server: Server, cache: SharedCache) -> None:
    kept = {KEY: answer("1", output="tëxt"), OTHER: answer("2", output=(0.5, -1.0))}
    for key, one in kept.items():
        await cache.put(key, one)
    other = RedisCache(server.url, 60.0, timeout_s=5.0, clock=time)
    assert [await other.get(key) for key in (KEY, OTHER, b"n" * 32)] == [kept[KEY], kept[OTHER], None]
    await other.aclose()


async def test_an_answer_is_forgotten_after_its_time(server: Server) -> None:
    short = RedisCache(server.url, 0.05, timeout_s=5.0, clock=time)
    await short.put(KEY, answer())
    assert 0 < await short._redis.pttl(STORED) <= 50
    async with asyncio.timeout(10):
        while await short.get(KEY) is not None:  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.005)
    await short.aclose()


async def test_a_provisional_answer_is_refused_and_not_believed(cache: RedisCache) -> None:
    provisional = answer(status=Status.PROVISIONAL)
    with pytest.raises(ValueError, match="only final"):
        await cache.put(KEY, provisional)
    await cache._redis.set(STORED, b"\x01" + KEY + encode_answer(provisional))
    assert await cache.get(KEY) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x01",
        b"\x02" + KEY + encode_answer(answer()),
        b"\x01" + OTHER + encode_answer(answer()),
        b"\x01" + KEY + encode_answer(answer())[:-1],
        b"\x01" + KEY + b"\x80\x04\x95pickle",
        b"\x01" + KEY + encode_answer(answer()) + b"x" * (1 << 20),
    ],
    ids=["nothing", "only a version", "another version", "of another key", "cut", "foreign", "too large"],
)
async def test_what_is_no_answer_of_ours_is_a_miss(cache: RedisCache, value: bytes) -> None:
    await cache._redis.set(STORED, value)
    assert await cache.get(KEY) is None
    await cache.put(KEY, answer("new"))
    assert await cache.get(KEY) == answer("new")


async def test_a_key_of_another_type_is_a_miss(cache: RedisCache) -> None:
    await cache._redis.lpush(STORED, b"x")
    assert await cache.get(KEY) is None


async def test_what_is_too_large_is_not_kept(cache: RedisCache) -> None:
    await cache.put(KEY, answer(output="x" * (1 << 20)))
    assert await cache.get(KEY) is None


async def test_readers_that_give_up_leave_no_reply_to_the_next(cache: RedisCache) -> None:
    keys = [bytes([number]) * 32 for number in range(20)]
    for key in keys:
        await cache.put(key, answer(key.hex()))
    for _ in range(20):
        readers = [asyncio.ensure_future(cache.get(key)) for key in keys]
        await asyncio.sleep(0)
        for reader in readers[::2]:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for key in keys:
            assert await cache.get(key) == answer(key.hex())


async def test_a_cache_that_dies_is_empty_and_one_that_is_back_is_asked_again(server: Server) -> None:
    clock = SetClock()
    cache = RedisCache(server.url, 60.0, timeout_s=5.0, clock=clock)
    await cache.put(KEY, answer())
    server.stop()
    for _ in range(3):
        assert not cache.is_away
        assert await cache.get(KEY) is None
    assert cache.is_away
    await cache.put(KEY, answer())
    clock.now += 0.9
    assert await cache.get(KEY) is None
    assert cache._looking is None, "not even asked before its time"
    clock.now += 0.2
    assert await cache.get(KEY) is None
    await cache._looking
    assert cache.is_away
    server.start()
    clock.now += 2.1
    assert await cache.get(KEY) is None, "whether it is back is asked beside the requests"
    await cache._looking
    assert not cache.is_away
    await cache.put(KEY, answer())
    assert await cache.get(KEY) == answer()
    await cache.aclose()


@pytest.fixture
async def black_hole() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """The URL of a server that accepts and never answers, and the connections it has."""
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", held
    server.close()


async def test_a_cache_that_never_answers_costs_its_time_out_a_few_times_and_then_nothing(black_hole) -> None:
    url, held = black_hole
    cache = RedisCache(url, 60.0, timeout_s=0.02, clock=SetClock())
    for _ in range(3):
        assert not cache.is_away
        assert await cache.get(KEY) is None
    connections = len(held)
    assert await cache.get(KEY) is None
    await cache.put(KEY, answer())
    assert cache.is_away
    assert len(held) == connections
    await cache.aclose()


async def test_readers_with_less_patience_find_it_out_too(black_hole) -> None:
    cache = RedisCache(black_hole[0], 60.0, timeout_s=0.02, clock=SetClock())
    async with asyncio.timeout(10):
        while not cache.is_away:
            reader = asyncio.ensure_future(cache.get(KEY))
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.sleep(0.001)
    await cache.aclose()


async def test_a_wrong_password_is_an_empty_cache_that_tells_no_secret(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    server.start("--requirepass", "right")
    cache = RedisCache(server.url.replace("unix://", "unix://:hunter2@"), 60.0, timeout_s=5.0, clock=SetClock())
    for _ in range(4):
        assert await cache.get(KEY) is None
    assert cache.is_away
    assert "hunter2" not in caplog.text
    assert "away" in caplog.text
    await cache.aclose()
    right = RedisCache(server.url.replace("unix://", "unix://:right@"), 60.0, timeout_s=5.0, clock=time)
    await right.put(KEY, answer())
    assert await right.get(KEY) == answer()
    await right.aclose()


@pytest.mark.parametrize("url", ["http://host", "nonsense", "redis://:hunter2@host:port", "redis://:hunter2@[::1"])
def test_a_url_that_cannot_be_used_is_a_setting_at_fault_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="URL of the shared cache") as error:
        RedisCache(url, 60.0, timeout_s=1.0, clock=time)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(("ttl_s", "timeout_s"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_a_cache_of_nothing_is_refused(ttl_s: float, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="keeps nothing"):
        RedisCache("redis://localhost", ttl_s, timeout_s=timeout_s, clock=time)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingExtraError, match=r"edgewise\[redis\]"):
        RedisCache("redis://localhost", 60.0, timeout_s=1.0, clock=time)
