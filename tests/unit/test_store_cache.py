import hashlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgewise.contracts import Action, Answer, DataPolicy, Decision, Mode, Reason, Request, Source, Status
from edgewise.store import MemoryCache, cache_key


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


texts = st.text(max_size=8)
items = (
    texts
    | st.binary(max_size=8)
    | st.builds(
        lambda data, shape: np.frombuffer(data, np.uint8).reshape(shape),
        st.binary(min_size=4, max_size=4),
        st.sampled_from([(4,), (2, 2), (1, 4)]),
    )
)
identities = st.fixed_dictionaries(
    {
        "tenant": texts,
        "data_policy": st.sampled_from(DataPolicy),
        "task": texts,
        "mode": st.none() | st.sampled_from(Mode),
        "inputs": items,
        "certificate_id": st.none() | texts,
        "model_digest": texts,
        "cloud_version": st.none() | texts,
    }
)
_REQUEST_FIELDS = ("tenant", "data_policy", "task", "mode", "inputs")


def key_of(identity: dict[str, object], **others: object) -> bytes:
    request = Request(**{"id": "1", **others}, **{name: identity[name] for name in _REQUEST_FIELDS})
    rest = {name: value for name, value in identity.items() if name not in _REQUEST_FIELDS}
    return cache_key(request, **rest)


def plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    return type(value).__name__, value


@given(identities, identities)
def test_keys_are_equal_iff_all_fields_are(one: dict[str, object], other: dict[str, object]) -> None:
    same = all(plain(one[name]) == plain(other[name]) for name in one)
    assert (key_of(one) == key_of(other)) == same


@given(
    identities,
    identities,
    st.sampled_from(
        ["tenant", "task", "mode", "data_policy", "inputs", "certificate_id", "model_digest", "cloud_version"]
    ),
)
def test_a_change_in_any_one_field_changes_the_key(
    one: dict[str, object], other: dict[str, object], field: str
) -> None:
    assume(plain(one[field]) != plain(other[field]))
    assert key_of(one) != key_of({**one, field: other[field]})


@given(texts, texts, texts)
def test_fields_do_not_run_into_each_other(first: str, second: str, third: str) -> None:
    identity = {
        "inputs": "x",
        "data_policy": DataPolicy.ANY,
        "mode": None,
        "certificate_id": None,
        "cloud_version": None,
    }
    one = {**identity, "tenant": first + second, "task": third, "model_digest": ""}
    other = {**identity, "tenant": first, "task": second + third, "model_digest": ""}
    assert (key_of(one) == key_of(other)) == (second == "")


@given(identities)
def test_what_cannot_change_the_answer_is_not_in_the_key(identity: dict[str, object]) -> None:
    assert key_of(identity) == key_of(identity, id="2", budget_ms=5.0, session="s", profile="p", attributes={"a": "b"})


def test_a_view_has_the_key_of_its_copy() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    identity = {
        "tenant": "t",
        "data_policy": DataPolicy.ANY,
        "task": "",
        "mode": None,
        "certificate_id": None,
        "model_digest": "",
        "cloud_version": None,
    }
    assert key_of({**identity, "inputs": pixels.T}) == key_of({**identity, "inputs": pixels.T.copy()})


def test_the_key_is_a_keyed_digest() -> None:
    request = Request(id="1", inputs="x")
    names = {"certificate_id": "c", "model_digest": "d", "cloud_version": "v"}
    plain_key = cache_key(request, **names)
    assert len(plain_key) == hashlib.blake2b(digest_size=32).digest_size
    assert cache_key(request, **names, secret=b"k") != plain_key
