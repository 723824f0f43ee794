import contextlib
import importlib.util
import json
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.contracts import DataPolicy, Mode, Request, Source, Status
from edgewise.errors import CloudResponseError, InputError, RequestError
from edgewise.wire import native
from edgewise.wire.parsing import flat_numbers, pixels_from_nested, shown


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")
texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
pixels = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=4)) | hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=4),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
requests = st.builds(
    Request,
    id=names,
    inputs=texts | st.binary(min_size=1) | pixels,
    tenant=st.just("t"),
    task=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    budget_ms=st.none() | st.floats(0, 600_000, exclude_min=True),
    mode=st.none() | st.sampled_from(Mode),
    profile=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    data_policy=st.sampled_from(DataPolicy),
    session=st.none() | names,
    attributes=st.dictionaries(texts, texts, max_size=3),
)


def decode(body: bytes) -> Request:
    return native.decode_request(body, tenant="t", new_id=lambda: "new")[0]


def same(one: Request, other: Request) -> bool:
    """Whether two requests are equal, arrays by content; structs compare arrays element by element."""
    if isinstance(one.inputs, np.ndarray):
        if one.inputs.dtype != other.inputs.dtype or not np.array_equal(one.inputs, other.inputs):
            return False
    elif one.inputs != other.inputs:
        return False
    fields = [name for name in Request.__struct_fields__ if name != "inputs"]
    return all(getattr(one, name) == getattr(other, name) for name in fields)


@given(requests)
def test_what_a_client_writes_the_server_reads(request: Request) -> None:
    assert same(decode(native.encode_request(request)), request)


def test_the_smallest_request() -> None:
    assert decode(b'{"inputs":"hello"}') == Request(id="new", inputs="hello", tenant="t")


def test_one_long_text_among_pixels_costs_no_more_than_itself() -> None:
    row = ["x" * 100_000, *["y"] * 2000]
    body = json.dumps({"inputs": {"pixels": [row]}}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="not a number"):
            decode(body)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@given(pixels, st.integers(2, 3))
def test_numbers_unfold_as_numpy_would_have_them(array: np.ndarray, max_dimensions: int) -> None:
    if array.ndim > max_dimensions:
        with pytest.raises(RequestError, match="2 dimensions"):
            flat_numbers(array.tolist(), "f", max_dimensions=max_dimensions, remedy="r")
    else:
        numbers, shape = flat_numbers(array.tolist(), "f", max_dimensions=max_dimensions, remedy="r")
        assert (numbers, shape) == (array.ravel().tolist(), list(array.shape))


nested = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=3), st.lists, max_leaves=8
)


@given(st.lists(nested, max_size=3))
def test_whatever_is_nested_is_pixels_or_refused(value: list) -> None:
    with contextlib.suppress(RequestError):
        found = pixels_from_nested(value, "f")
        assert found.dtype in (np.uint8, np.float32)
        np.testing.assert_allclose(found, np.array(value, np.float32))


def test_an_error_shows_a_little_of_anything() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, list(range(10**6)), {"k": deep}, "a\nb"):
        text = shown(value)
        assert 0 < len(text) <= 81
        assert "\n" not in text


def test_pixels_may_be_whole_numbers_or_floats() -> None:
    whole = decode(b'{"inputs":{"pixels":[[0,255],[1,2]]}}').inputs
    assert whole.dtype == np.uint8
    assert whole.tolist() == [[0, 255], [1, 2]]
    assert decode(b'{"inputs":{"pixels":[[0.5,255]]}}').inputs.dtype == np.float32


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"", "", "not valid JSON"),
        (b"{", "", "not valid JSON"),
        (rb'{"inputs":"a\ud800b"}', "", "half of a surrogate pair"),
        (rb'{"inputs":"\uD83D"}', "", "half of a surrogate pair"),
        (rb'{"inputs":"\ud83d\ude00', "", "not valid JSON"),
        (b'{"inputs":"x"} x', "", "not valid JSON"),
        (b'{"inputs":"\xff"}', "", "not UTF-8"),
        (b'{"inputs":{"pixels":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "", "nested too deeply"),
        (b"[1]", "", "array"),
        (b"{}", "inputs", "required"),
        (b'{"inputs":"x","budgetms":3}', "budgetms", "Known fields: inputs, model"),
        (b'{"inputs":"x","budget_ms":"3"}', "budget_ms", "Send a number, or leave it out."),
        (b'{"inputs":"x","task":3}', "task", "Send a text."),
        (b'{"inputs":"x","tenant":"other"}', "tenant", "unknown"),
        (b'{"inputs":7}', "inputs", "int"),
        (b'{"inputs":["x"]}', "inputs", "array"),
        (b'{"inputs":{}}', "inputs", "exactly one"),
        (b'{"inputs":{"image":"aa==","pixels":[[1]]}}', "inputs", "exactly one"),
        (b'{"inputs":{"img":"x"}}', "inputs.img", "unknown"),
        (b'{"inputs":{"image":"a b"}}', "inputs.image", "base64"),
        (b'{"inputs":{"image":""}}', "inputs.image", "empty"),
        (b'{"inputs":{"pixels":[]}}', "inputs.pixels", "shape"),
        (b'{"inputs":{"pixels":[1,2]}}', "inputs.pixels", "shape"),
        (b'{"inputs":{"pixels":[[[[1]]]]}}', "inputs.pixels", "shape"),
        (b'{"inputs":{"pixels":[[1,2],[3]]}}', "inputs.pixels", "differ"),
        (b'{"inputs":{"pixels":[[1,"2"]]}}', "inputs.pixels", "not a number"),
        (b'{"inputs":{"pixels":[[1,null]]}}', "inputs.pixels", "not a number"),
        (b'{"inputs":{"pixels":[[true]]}}', "inputs.pixels", "not a number"),
        (b'{"inputs":{"pixels":[[256]]}}', "inputs.pixels", "0 to 255"),
        (b'{"inputs":{"pixels":[[-1]]}}', "inputs.pixels", "0 to 255"),
        (b'{"inputs":{"pixels":[[1.5e300]]}}', "inputs.pixels", "32-bit"),
        (b'{"inputs":"x","id":""}', "id", "1 to 128"),
        (b'{"inputs":"x","id":"a b"}', "id", "1 to 128"),
        (b'{"inputs":"x","id":"' + b"a" * 129 + b'"}', "id", "1 to 128"),
        ('{"inputs":"x","id":"\u0661"}'.encode(), "id", "1 to 128"),
        (b'{"inputs":"x","id":"a\\n"}', "id", "1 to 128"),
        (b'{"inputs":"x","session":"a/b"}', "session", "1 to 128"),
        (b'{"inputs":"x","budget_ms":0}', "budget_ms", "above 0"),
        (b'{"inputs":"x","budget_ms":-5}', "budget_ms", "-5"),
        (b'{"inputs":"x","budget_ms":600001}', "budget_ms", "600000"),
        (b'{"inputs":"x","budget_ms":1e999}', "budget_ms", "range"),
        (b'{"inputs":"x","budget_ms":"5"}', "budget_ms", "str"),
        (b'{"inputs":"x","budget_ms":true}', "budget_ms", "bool"),
        (b'{"inputs":"x","mode":"fast"}', "mode", "guarded, speculative, edge_only, cloud_only"),
        (b'{"inputs":"x","data_policy":"none"}', "data_policy", "any, local_only"),
        (b'{"inputs":"x","profile":""}', "profile", "1 to 128"),
        (b'{"inputs":"x","task":"' + b"a" * 129 + b'"}', "task", "1 to 128"),
        (b'{"inputs":"x","attributes":{"a":1}}', "attributes[...]", "str"),
        (b'{"inputs":"x","attributes":{"a":"' + b"a" * 257 + b'"}}', "attributes", "256"),
        (json.dumps({"inputs": "x", "attributes": {str(i): "" for i in range(33)}}).encode(), "attributes", "32"),
    ],
)
def test_a_bad_request_names_its_field_and_the_remedy(body: bytes, field: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 600


bodies = (
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    ).map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {},
        optional={
            "inputs": st.text()
            | st.dictionaries(
                st.sampled_from(["image", "pixels", "x"]),
                st.text()
                | st.lists(st.lists(st.integers() | st.floats() | st.none() | st.text(), max_size=3), max_size=3),
            ),
            "id": st.text() | st.integers(),
            "budget_ms": st.floats() | st.integers() | st.booleans(),
            "mode": st.text() | st.sampled_from(Mode),
            "session": st.text(),
            "attributes": st.dictionaries(st.text(), st.text() | st.none(), max_size=3),
        },
    ).map(lambda value: json.dumps(value).encode())
)


@given(bodies)
def test_any_body_is_a_request_or_a_request_error(body: bytes) -> None:
    try:
        request = decode(body)
    except RequestError:
        return
    assert isinstance(request.inputs, str | bytes | np.ndarray)
    assert 0 < len(request.id) <= 128
    assert request.budget_ms is None or 0 < request.budget_ms <= 600_000


def test_pixels_that_no_model_reads_are_not_sent() -> None:
    with pytest.raises(InputError, match="complex"):
        native.encode_request(Request(id="1", inputs=np.zeros((2, 2), complex)))
    with pytest.raises(InputError):
        native.encode_request(Request(id="1", inputs=np.full((2, 2), np.nan, np.float32)))


# Answers


def test_an_answer_has_the_documented_shape() -> None:
    assert json.loads(native.encode_answer(fakes.make_answer("7", source=Source.CLOUD))) == {
        "id": "7",
        "output": "earn",
        "status": "final",
        "source": "cloud",
        "reason": "confident",
        "model_digest": "sha256:1",
        "decision": {
            "action": "local",
            "policy": "certified",
            "score": 0.75,
            "threshold": 0.5,
            "certificate_id": "cert-1",
        },
        "timings_ms": {"total": 1.5},
    }


@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
    st.none() | st.floats(allow_nan=False),
    st.none() | st.floats(allow_nan=False),
    st.sampled_from(Status),
)
def test_an_answer_reads_back(output, score: float | None, threshold: float | None, status: Status) -> None:
    answer = fakes.make_answer("1", output, score=score, threshold=threshold, status=status)
    assert native.decode_answer(native.encode_answer(answer)) == answer


@pytest.mark.parametrize(
    ("value", "sent"), [(float("nan"), None), (float("inf"), "inf"), (float("-inf"), "-inf"), (None, None)]
)
def test_what_json_cannot_say_has_its_own_word(value: float | None, sent: str | None) -> None:
    decision = json.loads(native.encode_answer(fakes.make_answer(score=value, threshold=value)))["decision"]
    assert decision["score"] == decision["threshold"] == sent
    json.dumps(decision, allow_nan=False)


@given(st.binary() | bodies)
def test_any_reply_is_an_answer_or_a_cloud_error(body: bytes) -> None:
    with pytest.raises(CloudResponseError):
        native.decode_answer(body)


# Errors


def test_an_error_leaves_out_what_it_does_not_have() -> None:
    assert json.loads(native.encode_error("c", "m")) == {"error": {"code": "c", "message": "m"}}
    body = native.encode_error("c", "m", field="f", remedy="r")
    assert json.loads(body) == {"error": {"code": "c", "message": "m", "field": "f", "remedy": "r"}}
    assert native.decode_error(body) == native.ErrorDetail("c", "m", "f", "r")


@pytest.mark.parametrize("body", [b"", b"\xff", b"{}", b'{"error":"text"}', b"[" * 100_000])
def test_what_is_no_error_of_ours_is_none(body: bytes) -> None:
    assert native.decode_error(body) is None
