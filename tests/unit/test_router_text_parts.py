"""What grows while others wait, what is written in threads, and what is heard of a cloud, each on its own."""

import asyncio
import importlib.util
import queue
import random
import sys
import threading
from pathlib import Path

import pytest

from edgewise.contracts import CloudReply, Reason, Request, Token
from edgewise.dialogue import Finish, Piece, Sampling, Written
from edgewise.errors import CloudResponseError
from edgewise.router import RouterSettings
from edgewise.router.cachekey import cache_key
from edgewise.router.growing import Growing
from edgewise.router.instruments import Instruments
from edgewise.router.listening import Listener
from edgewise.router.recall import _may_be_kept
from edgewise.router.settings import TextSettings
from edgewise.router.writing import Writers
from edgewise.telemetry import Metrics

_SPEC = importlib.util.spec_from_file_location("parts_text_fakes", Path(__file__).parent / "text_fakes.py")
fakes = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fakes
_SPEC.loader.exec_module(fakes)


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  a thread ends unseen
            await asyncio.sleep(0.001)


async def test_whoever_waits_is_woken_once_enough_is_there():
    growing, woken = Growing(), []
    waiting = [asyncio.ensure_future(growing.reach(count)) for count in (1, 3, 9)]
    for count, task in zip((1, 3, 9), waiting, strict=True):
        task.add_done_callback(lambda _, count=count: woken.append(count))
    left = growing.sign(2)
    left.cancel()
    await asyncio.sleep(0)
    for item in "abc":
        growing.add(item)
    await asyncio.sleep(0.01)
    assert woken == [1, 3]
    growing.end()
    await waiting[2]
    assert growing.sign(100).done(), "nothing more will come"
    assert not growing._waiting


async def test_a_listener_hears_each_item_once():
    growing, heard = Growing(), []
    growing.add("a", "b")
    growing.follow(heard.extend, 1)
    growing.add("c")
    growing.unfollow()
    growing.add("d")
    growing.follow(heard.extend, 3)
    assert heard == ["b", "c", "d"]


def writers(edge, threads=2):
    return Writers(edge, threads, Clock(), Instruments(Metrics()))


class Dictated:
    """A generator, and what it writes: a token each time that it is told to, until it is told None."""

    def __init__(self):
        self.words = queue.Queue()
        self.written = Written(finish=Finish.STOP, prompt_tokens=1, completion_tokens=0)

    def write(self, prompt, **session):
        return self

    def __iter__(self):
        for number, word in enumerate(iter(self.words.get, None)):
            yield Piece(word, number, -0.1)
            self.words.task_done()

    def stop(self):
        self.words.put(None)

    def close(self):
        pass


async def test_tokens_that_come_fast_are_handed_over_together_unless_somebody_waits_for_them(monkeypatch):
    monkeypatch.setattr("edgewise.router.writing._TOGETHER_S", 60)
    edge, heard = Dictated(), []
    pool = writers(edge)
    draft = pool.begin(fakes.ask("anything"))
    draft.follow(heard.extend)
    try:
        edge.words.put("a")
        await until(lambda: heard)
        for word in "bcd":
            edge.words.put(word)
        await asyncio.to_thread(edge.words.join)
        assert len(draft.items) == 1
        async with asyncio.timeout(10):
            await draft.reach(3)
        assert "".join(piece.text for piece in heard) == "abcd"
        sign = draft.sign(6)
        for word in "ef":
            edge.words.put(word)
        async with asyncio.timeout(10):
            await sign
        edge.words.put("g")
    finally:
        edge.words.put(None)
    async with asyncio.timeout(10):
        await draft.reach()
    assert "".join(piece.text for piece in heard) == "abcdefg"
    pool.close()


async def test_no_token_is_kept_back_for_the_next_one():
    edge, heard = Dictated(), []
    pool = writers(edge)
    draft = pool.begin(fakes.ask("anything"))
    draft.follow(heard.extend)
    try:
        for count in range(1, 30):
            edge.words.put("a")
            if count % 3 == 0:
                await until(lambda count=count: len(heard) == count)
    finally:
        edge.words.put(None)
    async with asyncio.timeout(10):
        await draft.reach()
    assert draft._timer is None
    pool.close()


async def test_pieces_come_in_order_from_many_threads_at_once():
    edge = fakes.FakeGenerator()
    pool = writers(edge, threads=4)
    drafts = [pool.begin(fakes.ask(fakes.sure(200, start=1000 * number))) for number in range(8)]
    for number, draft in enumerate(drafts):
        await draft.reach()
        assert draft.is_whole
        assert draft.prediction().output == fakes.text_of(fakes.sure(200, start=1000 * number))
        assert draft.prediction(3).written is None
    await until(lambda: not pool.running)
    assert edge.closed == 8
    pool.close()


async def test_drafts_that_are_stopped_at_any_moment_leave_nothing_behind():
    edge, uniform = fakes.FakeGenerator(), random.Random(0)
    pool = writers(edge)
    for _ in range(100):
        draft = pool.begin(fakes.ask(fakes.sure(50)))
        if uniform.random() < 0.7:
            await draft.reach(uniform.randrange(1, 50))
        draft.stop()
        draft.stop()
    await until(lambda: not pool.running and edge.closed == len(edge.writings))
    with pytest.raises(RuntimeError, match="closed"):
        draft.check()
    pool.close()
    assert threading.active_count() < 20


class PanicException(BaseException):
    """What a library of Rust raises where it meets a bug of its own: no `Exception`."""


@pytest.mark.parametrize("where", ["refusal", "error"])
async def test_a_panic_in_the_thread_is_heard_and_leaves_its_place_to_others(where):
    edge = fakes.FakeGenerator()
    edge.fail_at = 2
    setattr(edge, where, PanicException("index out of bounds"))
    pool = writers(edge, threads=1)
    draft = pool.begin(fakes.ask(fakes.sure(9)))
    async with asyncio.timeout(10):
        await draft.reach()
    with pytest.raises(RuntimeError, match="PanicException"):
        draft.check()
    assert edge.closed == len(edge.writings)
    edge.refusal = edge.fail_at = None
    other = pool.begin(fakes.ask(fakes.sure(9)))
    await other.reach()
    assert other.is_whole
    await until(lambda: not pool.running)
    pool.close()


class Lingering(fakes.FakeGenerator):
    """Gives back what a stopped text holds only when it may: its last token is computed still."""

    def __init__(self):
        super().__init__()
        self.may_leave = threading.Event()

    def write(self, prompt, **session):
        writing = super().write(prompt, **session)
        close = writing.close

        def close_late():
            if writing.stopped.is_set():
                assert self.may_leave.wait(60)
            close()

        writing.close = close_late
        return writing


async def test_a_turn_waits_for_what_an_interrupted_one_of_its_session_gives_back(monkeypatch):
    monkeypatch.setattr("edgewise.router.writing._LAST_TOKEN_S", 60)
    edge = Lingering()
    edge.hold_at = 2
    pool = writers(edge, threads=4)
    first = pool.begin(fakes.ask(fakes.sure(9), session="s"))
    await first.reach(2)
    first.stop()
    edge.hold_at = None
    following = pool.begin(fakes.ask(fakes.sure(4), session="s"))
    others = [
        pool.begin(fakes.ask(fakes.sure(4), **fields)) for fields in ({"session": "t"}, {"session": "s", "tenant": "b"})
    ]
    for draft in others:
        await draft.reach()
    assert ("public", "s") not in edge.begun[1:]
    assert not following.items
    edge.may_leave.set()
    await following.reach()
    assert following.is_whole
    await until(lambda: not pool.running)
    assert edge.closed == 4
    pool.close()


def test_a_loop_that_is_gone_stops_the_writing():
    edge = fakes.FakeGenerator()
    edge.hold_at = 2
    loop = asyncio.new_event_loop()

    async def begin():
        pool = writers(edge)
        return pool, pool.begin(fakes.ask(fakes.sure(1000)))

    pool, _ = loop.run_until_complete(begin())
    assert edge.held.wait(10)
    loop.close()
    edge.release.set()
    pool._pool.shutdown(wait=True)
    assert edge.writings[0].closed
    assert edge.writings[0].place < 10


async def heard(*items):
    tokens, first = [], []

    class Cloud(fakes.FakeCloud):
        async def stream(self, request, *, timeout_s):
            for item in items:
                yield item

    clock = Clock()
    listener = Listener(tokens.append, first.append, clock)
    return await listener.hear(Cloud(), fakes.ask("a"), timeout_s=1), tokens, first


REFERENCE = fakes.CERTIFIED


async def test_what_is_heard_is_the_answer():
    reply, tokens, first = await heard(Token(id="x", text="ab"), CloudReply("abc", REFERENCE), Token(id="x", text="no"))
    assert (reply.output, "".join(token.text for token in tokens), len(first)) == ("abc", "abc", 1)
    _, tokens, first = await heard(CloudReply("", REFERENCE))
    assert tokens == first == []


@pytest.mark.parametrize(
    "items",
    [
        (),
        (Token(id="x", text="ab"),),
        (Token(id="x", text="ab"), CloudReply("b", REFERENCE)),
        (Token(id="x", text="ab"), CloudReply((1.0,), REFERENCE)),
    ],
)
async def test_what_is_no_answer_is_an_error(items):
    with pytest.raises(CloudResponseError):
        await heard(*items)


async def test_a_text_that_is_owed_is_judged_by_its_first_token_too():
    cloud = fakes.FakeCloud()
    cloud.rest.clear()
    quick = RouterSettings(slow_s=0.5, failures_to_open=1, cool_down_s=3600, text=TextSettings(threads=1))
    flow = fakes.router(cloud=cloud, settings=quick)
    asking = asyncio.ensure_future(flow._cloud.ask(fakes.ask("a:-1")))
    await cloud.called.wait()
    await asyncio.sleep(0.6)
    assert not flow._cloud.is_open
    cloud.rest.set()
    assert (await asking).output == "from the cloud"
    await flow.aclose()


async def test_a_try_out_may_take_as_long_as_any_text_once_it_has_begun(monkeypatch):
    monkeypatch.setattr("edgewise.router.escalation._PROBE_TIMEOUT_S", 0.5)
    cloud = fakes.FakeCloud()
    cloud.rest.clear()
    flow = fakes.router(cloud=cloud, settings=RouterSettings(slow_s=0.02, cool_down_s=3600))
    trying = asyncio.ensure_future(flow._cloud.try_out(fakes.ask("a:-1")))
    await cloud.called.wait()
    await asyncio.sleep(0.6)
    cloud.rest.set()
    assert (await trying).output == "from the cloud"
    await flow.aclose()


def test_only_what_is_repeatable_is_kept_and_every_setting_is_part_of_its_key():
    keys = set()
    for sampling in (Sampling(), Sampling(max_tokens=3), Sampling(stop=("a",)), Sampling(schema="{}")):
        prompt = fakes.prompt_of("a:-1", sampling=sampling)
        assert _may_be_kept(Request(inputs=prompt))
        keys.add(cache_key(fakes.ask("", prompt=prompt), scope=None, model_digest="m", reference=None))
    assert len(keys) == 4
    assert _may_be_kept(Request(inputs="a text"))
    assert not _may_be_kept(Request(inputs=fakes.prompt_of("a:-1", sampling=Sampling(temperature=0.5))))
    assert Reason.SAMPLED == "sampled"
