"""The cache key tells apart whatever may be answered differently, and nothing else."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from edgewise.contracts import DataPolicy, Mode, Reference, Request
from edgewise.router.cachekey import cache_key

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
        "attributes": st.dictionaries(texts, texts, max_size=2),
        "scope": st.none() | texts,
        "model_digest": texts,
        "reference": st.none() | st.builds(Reference, texts, texts),
    }
)
_REQUEST_FIELDS = ("tenant", "data_policy", "task", "mode", "inputs", "attributes")


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
        ["tenant", "task", "mode", "data_policy", "inputs", "attributes", "scope", "model_digest", "reference"]
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
        "attributes": {},
        "data_policy": DataPolicy.ANY,
        "mode": None,
        "scope": None,
        "reference": None,
    }
    one = {**identity, "tenant": first + second, "task": third, "model_digest": ""}
    other = {**identity, "tenant": first, "task": second + third, "model_digest": ""}
    assert (key_of(one) == key_of(other)) == (second == "")


@given(identities)
def test_what_cannot_change_the_answer_is_not_in_the_key(identity: dict[str, object]) -> None:
    assert key_of(identity) == key_of(identity, id="2", budget_ms=5.0, session="s", profile="p")


def test_a_view_has_the_key_of_its_copy() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    identity = {
        "tenant": "t",
        "data_policy": DataPolicy.ANY,
        "task": "",
        "mode": None,
        "scope": None,
        "model_digest": "",
        "attributes": {},
        "reference": None,
    }
    assert key_of({**identity, "inputs": pixels.T}) == key_of({**identity, "inputs": pixels.T.copy()})


def test_labels_have_no_order_and_do_not_run_into_each_other() -> None:
    identity = {
        "tenant": "t",
        "data_policy": DataPolicy.ANY,
        "task": "",
        "mode": None,
        "inputs": "x",
        "scope": None,
        "model_digest": "",
        "reference": None,
    }
    labels = [{"a": "b", "c": "d"}, {"c": "d", "a": "b"}, {"ab": "", "cd": ""}, {"a": "bcd"}, {"a": "d", "c": "b"}, {}]
    keys = [key_of({**identity, "attributes": some}) for some in labels]
    assert keys[0] == keys[1]
    assert len(set(keys)) == len(labels) - 1
