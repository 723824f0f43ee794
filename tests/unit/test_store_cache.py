import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.contracts import Action, Answer, Decision, Reason, Source, Status
from edgewise.store import MemoryCache


class SetClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def answer(request_id: str, size: int = 1) -> Answer:
    return Answer(
        id=request_id,
        output="x" * size,
        status=Status.FINAL,
        source=Source.EDGE,
        decision=Decision(action=Action.LOCAL, reason=Reason.CONFIDENT, policy="p"),
        timings_ms={"total": 1.0},
        model_digest="d",
    )


def test_the_least_recently_used_goes_first() -> None:
    cache = MemoryCache(3000, 60, SetClock())
    for name in ("a", "b", "c"):
        cache.put(name.encode(), answer(name))
    assert cache.get(b"a") is not None
    cache.put(b"d", answer("d", 600))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.get(b"d") is not None


def test_an_answer_is_forgotten_after_its_time_and_its_room_is_free() -> None:
    clock = SetClock()
    cache = MemoryCache(10_000, 60, clock)
    cache.put(b"a", answer("a"))
    clock.now = 59.9
    assert cache.get(b"a") is not None
    clock.now = 60.0
    assert cache.get(b"a") is None
    assert cache.size_bytes == 0


def test_what_is_too_large_is_not_kept_and_pushes_nothing_out() -> None:
    cache = MemoryCache(3000, 60, SetClock())
    cache.put(b"a", answer("a"))
    cache.put(b"b", answer("b", 5000))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


@pytest.mark.parametrize(("max_bytes", "ttl_s"), [(0, 1.0), (1, 0.0), (-1, 1.0), (1, float("nan"))])
def test_a_cache_of_nothing_is_refused(max_bytes: int, ttl_s: float) -> None:
    with pytest.raises(ValueError, match="keeps nothing"):
        MemoryCache(max_bytes, ttl_s, SetClock())


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(1, 2000)), max_size=30))
def test_the_bound_holds_and_the_newest_is_kept(puts: list[tuple[bytes, int]]) -> None:
    cache = MemoryCache(4000, 60, SetClock())
    for key, size in puts:
        cache.put(key, answer("1", size))
        assert 0 < cache.size_bytes <= 4000
        assert cache.get(key) == answer("1", size)
