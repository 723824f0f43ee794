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

from edgewise.contracts import DataPolicy, Mode, Reason, Request, Source, Status
from edgewise.errors import CloudResponseError, InputError, RequestError
from edgewise.wire import oip


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgewise_fake_service", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fakes = _load(Path(__file__).parent / "fake_service.py")
TEXT = fakes.service_info()
IMAGE = fakes.service_info(task="image-classification", input="image")

texts = st.text(st.characters(exclude_categories=["Cs"]))
shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=4)


def decode(body: object, info=TEXT, **limits: object) -> oip.InferCall:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return oip.decode_infer_request(data, info, tenant="t", new_id=lambda: "new", **limits)


def tensor(name: str = "text", shape: list[int] | None = None, datatype: str = "BYTES", **rest: object) -> dict:
    return {"name": name, "shape": [1] if shape is None else shape, "datatype": datatype, **rest}


def text_body(**changes: object) -> dict:
    return {"inputs": [tensor(data=["hello"])], **changes}


# Requests


def test_n_items_are_n_requests() -> None:
    body = text_body(
        id="call",
        inputs=[tensor(shape=[3], data=["a", "b", "c"])],
        parameters={
            "budget_ms": 80,
            "mode": "guarded",
            "profile": "p",
            "data_policy": "local_only",
            "session": "s",
            "priority": 3,
        },
    )
    call = decode(body)
    assert call.id == "call"
    assert call.requests == tuple(
        Request(
            id=f"call-{index}",
            inputs=text,
            tenant="t",
            budget_ms=80.0,
            mode=Mode.GUARDED,
            profile="p",
            data_policy=DataPolicy.LOCAL_ONLY,
            session="s",
        )
        for index, text in enumerate("abc")
    )
    assert call.outputs == ("label", "status", "source", "reason", "score")


@pytest.mark.parametrize("sent", [{}, {"id": ""}])
def test_one_item_without_an_id_gets_a_new_one(sent: dict) -> None:
    call = decode(text_body(**sent))
    assert (call.id, call.requests[0].id) == ("new", "new")


@pytest.mark.parametrize("data", [["a", "b"], [["a"], ["b"]]])
def test_a_column_is_a_list_of_items(data: list) -> None:
    call = decode(text_body(inputs=[tensor(shape=[2, 1], data=data)]))
    assert [request.inputs for request in call.requests] == ["a", "b"]


def test_files_travel_as_base64() -> None:
    call = decode({"inputs": [tensor("image", data=["AAH/"])]}, IMAGE)
    assert call.requests[0].inputs == b"\x00\x01\xff"


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("datatype", "dtype"), [("UINT8", np.uint8), ("FP32", np.float32)])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 1)])
def test_pixels_may_be_flat_or_nested(nested: bool, datatype: str, dtype: type, shape: tuple[int, ...]) -> None:
    array = np.arange(24).reshape(shape)
    data = array.tolist() if nested else array.ravel().tolist()
    call = decode({"inputs": [tensor("pixels", list(shape), datatype, data=data)]}, IMAGE)
    assert len(call.requests) == 2
    for request, expected in zip(call.requests, array, strict=True):
        assert request.inputs.dtype == dtype
        np.testing.assert_array_equal(request.inputs, expected)


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_one_long_text_among_pixels_costs_no_more_than_itself(datatype: str) -> None:
    data = ["x" * 100_000, *["y"] * 2000]
    body = json.dumps({"inputs": [tensor("pixels", [1, 1, 2001], datatype, data=data)]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="not a number"):
            oip.decode_infer_request(body, IMAGE, tenant="t", new_id=lambda: "new")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_requested_outputs_are_honoured_in_their_order() -> None:
    call = decode(text_body(outputs=[{"name": "score"}, {"name": "label"}, {"name": "score"}]))
    assert call.outputs == ("score", "label")
    reply = json.loads(oip.encode_infer_response(TEXT, call, [fakes.make_answer()]).body)
    assert [output["name"] for output in reply["outputs"]] == ["score", "label"]


def image_tensor(**changes: object) -> list[dict]:
    return [{**tensor("pixels", [1, 2, 2], "UINT8", data=[1, 2, 3, 4]), **changes}]


@pytest.mark.parametrize(
    ("info", "body", "field", "words"),
    [
        (TEXT, b"{", "", "not valid JSON"),
        (TEXT, b'{"inputs":[{"name":"\xff"}]}', "", "not UTF-8"),
        (TEXT, b'{"inputs":' + b"[" * 100_000, "inputs[0]", "array"),
        (TEXT, b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":' + b"[" * 100_000, "", "nested"),
        (TEXT, {}, "inputs", "required"),
        (TEXT, {"inputs": []}, "inputs", "'text'"),
        (TEXT, {"inputs": [{"name": "text"}]}, "inputs[0].shape", "required"),
        (TEXT, {"inputs": [tensor("words", data=["x"])]}, "inputs", "'words'"),
        (TEXT, {"inputs": [tensor("image", data=["x"])]}, "inputs", "'text'"),
        (TEXT, {"inputs": [tensor(data=["x"])] * 2}, "inputs", "exactly one"),
        (TEXT, {"inputs": [tensor()]}, "inputs[0].data", "missing"),
        (
            TEXT,
            {"inputs": [tensor(parameters={"binary_data_size": 9})]},
            "inputs[0].parameters.binary_data_size",
            "'text', 9 bytes are announced, and 0 are left",
        ),
        (TEXT, {"inputs": [tensor(datatype="FP32", data=[1.0])]}, "inputs[0].datatype", "BYTES"),
        (TEXT, {"inputs": [tensor(data=[7])]}, "inputs[0].data[0]", "not a string"),
        (TEXT, {"inputs": [tensor(data=[None])]}, "inputs[0].data[0]", "not a string"),
        (TEXT, {"inputs": [tensor(data=[["a"]])]}, "inputs[0].data[0]", "not a string"),
        (TEXT, {"inputs": [tensor(shape=[2], data=["a"])]}, "inputs[0].data", "do not fill"),
        (TEXT, {"inputs": [tensor(shape=[], data=["a"])]}, "inputs[0].shape", "no item"),
        (TEXT, {"inputs": [tensor(shape=[0], data=[])]}, "inputs[0].shape", "no item"),
        (TEXT, {"inputs": [tensor(shape=[-1], data=["a"])]}, "inputs[0].shape", "no item"),
        (TEXT, {"inputs": [tensor(shape=[1.5], data=["a"])]}, "inputs[0].shape[0]", "int"),
        (TEXT, {"inputs": [tensor(shape=[1, 2], data=["a", "b"])]}, "inputs[0].shape", "[N]"),
        (TEXT, {"inputs": [tensor(shape=[5], data=list("abcde"))]}, "inputs[0].shape", "at most 4"),
        (TEXT, {"inputs": [tensor(shape=[10**12], data=["a"])]}, "inputs[0].shape", "at most 4"),
        (TEXT, text_body(id="a b"), "id", "1 to 128"),
        (TEXT, text_body(id=7), "id", "int"),
        (TEXT, text_body(outputs=[{"name": "logits"}]), "outputs[0].name", "label, status, source, reason, score"),
        (TEXT, text_body(parameters={"budget_ms": "80"}), "parameters.budget_ms", "not a number"),
        (TEXT, text_body(parameters={"budget_ms": True}), "parameters.budget_ms", "not a number"),
        (TEXT, text_body(parameters={"budget_ms": 10**400}), "parameters.budget_ms", "range"),
        (TEXT, text_body(parameters={"budget_ms": -(10**400)}), "parameters.budget_ms", "-inf is out of range"),
        (TEXT, text_body(parameters={"budget_ms": 600_000.1}), "parameters.budget_ms", "600000.1 is out of range"),
        (TEXT, text_body(parameters={"budget_ms": -1}), "parameters.budget_ms", "out of range"),
        (
            TEXT,
            text_body(parameters={"budget_ms": 300, "patience_ms": 100}),
            "parameters.patience_ms",
            "budget_ms, 300",
        ),
        (TEXT, text_body(parameters={"mode": "fast"}), "parameters.mode", "guarded"),
        (TEXT, text_body(parameters={"mode": ["guarded"]}), "parameters.mode", "guarded"),
        (TEXT, text_body(parameters={"data_policy": 1}), "parameters.data_policy", "local_only"),
        (TEXT, text_body(parameters={"profile": 1}), "parameters.profile", "1 to 128"),
        (TEXT, text_body(parameters={"session": "a b"}), "parameters.session", "1 to 128"),
        (IMAGE, {"inputs": [tensor(data=["x"])]}, "inputs", "'image' or 'pixels'"),
        (IMAGE, {"inputs": [tensor("image", data=["%"])]}, "inputs[0].data[0]", "base64"),
        (IMAGE, {"inputs": image_tensor(datatype="INT8")}, "inputs[0].datatype", "UINT8 or FP32"),
        (IMAGE, {"inputs": image_tensor(shape=[1, 4])}, "inputs[0].shape", "height"),
        (IMAGE, {"inputs": image_tensor(shape=[1, 2, 3])}, "inputs[0].data", "4 elements"),
        (IMAGE, {"inputs": image_tensor(shape=[1, 10**9, 10**9])}, "inputs[0].data", "4 elements"),
        (IMAGE, {"inputs": image_tensor(data=[[1, 2, 3, 4]])}, "inputs[0].data", "do not fill"),
        (IMAGE, {"inputs": image_tensor(data=[[[1, 2], [3]]])}, "inputs[0].data", "differ"),
        (IMAGE, {"inputs": image_tensor(data=[1, 2, 3, 256])}, "inputs[0].data", "UINT8"),
        (IMAGE, {"inputs": image_tensor(data=[1, 2, 3, -1])}, "inputs[0].data", "UINT8"),
        (IMAGE, {"inputs": image_tensor(data=[1, 2, 3, 1.5])}, "inputs[0].data", "UINT8"),
        (IMAGE, {"inputs": image_tensor(data=[1, 2, 3, "4"])}, "inputs[0].data", "UINT8"),
        (IMAGE, {"inputs": image_tensor(data=[1, 2, 3, None])}, "inputs[0].data", "UINT8"),
        (IMAGE, {"inputs": image_tensor(datatype="FP32", data=[1, 2, 3, 1e300])}, "inputs[0].data", "FP32"),
        (IMAGE, {"inputs": image_tensor(datatype="FP32", data=[1, 2, 3, 10**400])}, "inputs[0].data", "FP32"),
        (IMAGE, {"inputs": image_tensor(data=[1, 2, 3, True])}, "inputs[0].data", "not a number"),
        (IMAGE, {"inputs": image_tensor(data=[[[[1, 2, 3, 4]]]])}, "inputs[0].data", "3 dimensions"),
        (IMAGE, {"inputs": image_tensor(datatype="FP32", data=[1, 2, 3, None])}, "inputs[0].data", "FP32"),
    ],
)
def test_a_bad_request_names_its_field_and_the_remedy(info, body: object, field: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body, info, max_items=4)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 600


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["text", "image", "pixels", "x"]),
        "shape": st.lists(st.integers(-1, 4), max_size=5),
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32", "INT64"]),
    },
    optional={
        "data": st.lists(st.text(max_size=4) | st.integers(0, 300), max_size=5) | anything,
        "parameters": anything,
    },
)
bodies = st.binary() | (
    anything
    | st.fixed_dictionaries(
        {"inputs": st.lists(tensors, max_size=2)},
        optional={"id": anything, "outputs": anything, "parameters": anything},
    )
).map(lambda value: json.dumps(value).encode())


@given(bodies, st.sampled_from([TEXT, IMAGE]))
def test_any_body_is_a_call_or_a_request_error(body: bytes, info) -> None:
    try:
        call = decode(body, info)
    except RequestError:
        return
    assert 0 < len(call.requests) <= oip.DEFAULT_MAX_ITEMS


@given(
    st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True),
    texts
    | st.binary(min_size=1)
    | hnp.arrays(np.uint8, shapes)
    | hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.none() | st.floats(0, 600_000, exclude_min=True),
    st.none() | st.sampled_from(Mode),
    st.sampled_from(DataPolicy),
)
def test_what_the_client_writes_the_server_reads(
    request_id: str, item, budget_ms: float | None, mode: Mode | None, policy: DataPolicy
) -> None:
    sent = Request(id=request_id, inputs=item, mode=Mode.SPECULATIVE, profile="p", session="s", data_policy=policy)
    body = oip.encode_infer_request(sent, budget_ms=budget_ms, mode=mode)
    (read,) = decode(body, TEXT if isinstance(item, str) else IMAGE).requests
    assert (read.id, read.budget_ms, read.mode, read.profile) == (request_id, budget_ms, mode, None)
    assert (read.session, read.data_policy) == ("s", policy)
    assert type(read.inputs) is type(item)
    np.testing.assert_array_equal(read.inputs, item)


def test_pixels_that_no_model_reads_are_not_sent() -> None:
    with pytest.raises(InputError, match="complex"):
        oip.encode_infer_request(Request(id="1", inputs=np.zeros((2, 2), complex)), budget_ms=None)


def test_attributes_travel_as_the_text_of_an_object() -> None:
    sent = Request(id="1", inputs="x", attributes={"country": "nl", "ü": "\n"})
    (read,) = decode(oip.encode_infer_request(sent, budget_ms=None)).requests
    assert read.attributes == sent.attributes


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": "b"}, "not a text"),
        ("{", "not a JSON object"),
        ('{"a":1}', "not a JSON object"),
        ("[" * 5000, "not a JSON"),
    ],
)
def test_attributes_that_are_no_such_text_are_refused(value: object, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        decode(text_body(parameters={"attributes": value}))
    assert caught.value.field == "parameters.attributes"


# Tensors as bytes


def framed(header: object, *chunks: bytes) -> tuple[bytes, bytes]:
    text = json.dumps(header).encode()
    return b"".join((text, *chunks)), str(len(text)).encode()


def binary(chunk: bytes, name: str = "text", shape: list[int] | None = None, datatype: str = "BYTES", **rest: object):
    size = {"binary_data_size": len(chunk), **rest}
    return framed({"inputs": [tensor(name, shape, datatype, parameters=size)]}, chunk)


@given(st.lists(texts, min_size=1, max_size=5))
def test_texts_travel_as_bytes(items: list[str]) -> None:
    chunk = b"".join(len(item.encode()).to_bytes(4, "little") + item.encode() for item in items)
    body, length = binary(chunk, shape=[len(items)])
    assert [request.inputs for request in decode(body, json_length=length).requests] == items


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize(("datatype", "dtype"), [("UINT8", np.uint8), ("FP32", np.float32)])
def test_pixels_travel_as_bytes_wherever_they_stand(padding: int, datatype: str, dtype: type) -> None:
    pixels = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    body, length = binary(pixels.tobytes(), "pixels", [2, 3, 4], datatype, ignored="x" * padding)
    read = decode(body, IMAGE, json_length=length).requests
    np.testing.assert_array_equal(np.stack([request.inputs for request in read]), pixels)
    assert all(request.inputs.dtype == dtype and request.inputs.flags.aligned for request in read)


def test_pixels_as_bytes_are_not_copied() -> None:
    pixels = np.zeros((1, 1000, 1000), np.uint8)
    body, length = binary(pixels.tobytes(), "pixels", [1, 1000, 1000], "UINT8")
    tracemalloc.start()
    try:
        (request,) = decode(body, IMAGE, json_length=length).requests
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert request.inputs.shape == (1000, 1000)


@pytest.mark.parametrize("length", [b"-1", b"x", b"", b"9" * 5000, b"99", b"1.0", "١".encode()])
def test_a_length_of_the_json_that_is_none_is_named(length: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode(text_body(), json_length=length)
    assert caught.value.field == "inference-header-content-length"
    assert len(str(caught.value)) < 300


ELEMENT = b"\x05\0\0\0hello"


@pytest.mark.parametrize(
    ("sent", "info", "words"),
    [
        (binary(ELEMENT, binary_data_size=10), TEXT, "10 bytes are announced, and 9 are left"),
        (binary(ELEMENT, binary_data_size=8), TEXT, "1 bytes follow the last tensor 'text'"),
        (binary(ELEMENT, binary_data_size=-1), TEXT, "not a number of bytes"),
        (binary(ELEMENT, binary_data_size=True), TEXT, "not a number of bytes"),
        (binary(ELEMENT, binary_data_size="9"), TEXT, "not a number of bytes"),
        (binary(ELEMENT[:3]), TEXT, "'text', element 0 ends within its length"),
        (binary(ELEMENT[:-1]), TEXT, "'text', element 0 has 5 bytes, and 4 are left"),
        (binary(b"\xff\xff\xff\xff"), TEXT, "element 0 has 4294967295 bytes"),
        (binary(ELEMENT * 2), TEXT, "9 bytes follow its 1 elements"),
        (binary(ELEMENT, shape=[2]), TEXT, "'text', 1 elements do not fill its shape of 2"),
        (binary(ELEMENT, shape=[5]), TEXT, "at most 4"),
        (binary(ELEMENT, shape=[1, 2]), TEXT, "[N]"),
        (binary(b"\x01\0\0\0\xff"), TEXT, "not UTF-8"),
        (binary(b"\0" * 8, datatype="INT64"), TEXT, "'INT64'"),
        (binary(ELEMENT, "pixels", [1, 3, 3], "INT64"), IMAGE, "'INT64'"),
        (binary(ELEMENT, "pixels", [1, 3, 3], "UINT8"), TEXT, "named 'text'"),
        (binary(ELEMENT[:8], "pixels", [1, 3, 3], "UINT8"), IMAGE, "'pixels', 8 bytes do not fill its shape"),
        (binary(ELEMENT, "pixels", [1, 10**9, 10**9], "FP32"), IMAGE, "do not fill"),
        (binary(ELEMENT, "pixels", [1, 10**4000, 10**4000], "FP32"), IMAGE, "do not fill"),
        (binary(np.float32([np.nan]).tobytes(), "pixels", [1, 1, 1], "FP32"), IMAGE, "finite"),
        (binary(b"\0\0\0\0", "image"), IMAGE, "empty"),
        (framed({"inputs": [tensor(data=["x"], parameters={"binary_data_size": 0})]}), TEXT, "in JSON and in bytes"),
        (framed({"inputs": []}, b"x"), TEXT, "1 bytes follow"),
        (framed(text_body(outputs=[{"name": "label", "parameters": {"binary_data": 1}}])), TEXT, "true or false"),
        (framed(text_body(parameters={"binary_data_output": "yes"})), TEXT, "true or false"),
    ],
)
def test_bytes_that_are_no_tensor_name_it_and_the_remedy(sent: tuple[bytes, bytes], info, words: str) -> None:
    body, length = sent
    with pytest.raises(RequestError) as caught:
        decode(body, info, json_length=length, max_items=4)
    assert words in str(caught.value)
    assert caught.value.field
    assert caught.value.remedy
    assert len(str(caught.value)) < 600


@given(
    texts
    | st.binary(min_size=1)
    | hnp.arrays(np.uint8, shapes)
    | hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_what_the_client_writes_as_bytes_the_server_reads(item) -> None:
    sent = Request(id="1", inputs=item, attributes={"a": "b"})
    body, length = oip.encode_binary_infer_request(sent, budget_ms=7)
    info = TEXT if isinstance(item, str) else IMAGE
    call = decode(body, info, json_length=str(length).encode())
    (read,) = call.requests
    assert (read.id, read.budget_ms, read.attributes, type(read.inputs)) == ("1", 7, {"a": "b"}, type(item))
    np.testing.assert_array_equal(read.inputs, item)
    assert call.binary == set(call.outputs)


@given(
    st.lists(texts.filter(bool) | st.none(), min_size=1, max_size=4),
    st.sets(st.sampled_from(["label", "status", "source", "reason", "score"])),
)
def test_what_the_server_writes_as_bytes_the_client_reads(labels: list[str | None], wanted: set[str]) -> None:
    outputs = [{"name": name, "parameters": {"binary_data": name in wanted}} for name in ("score", "label", "status")]
    call = decode(text_body(inputs=[tensor(shape=[len(labels)], data=["x"] * len(labels))], outputs=outputs))
    answers = [fakes.make_answer(output=label or "", score=0.5 if label else float("nan")) for label in labels]
    body, length = oip.encode_infer_response(TEXT, call, answers)
    read = oip.decode_infer_response(body, length)
    assert (length is None) is not bool(wanted & {"score", "label", "status"})
    assert [tensor.name for tensor in read.outputs] == ["score", "label", "status"]
    assert read.tensor("label").data == [label or "" for label in labels]
    scores = [None if score != score else score for score in read.tensor("score").data]
    assert scores == [0.5 if label else None for label in labels]


@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_vectors_travel_as_bytes_bit_for_bit(vectors) -> None:
    info = fakes.service_info(task="feature-extraction", labels=())
    body = text_body(inputs=[tensor(shape=[2], data=["a", "b"])], parameters={"binary_data_output": True})
    answers = [fakes.make_answer(output=tuple(map(float, row))) for row in vectors]
    sent = oip.encode_infer_response(info, decode(body, info), answers)
    read = oip.decode_infer_response(sent.body, sent.json_bytes)
    assert [read.output(index) for index in range(2)] == [answer.output for answer in answers]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body, length: (body[:-1], length), "cannot be read"),
        (lambda body, length: (body + b"x", length), "follow the last tensor"),
        (lambda body, length: (body, len(body) + 1), "cut"),
        (lambda body, length: (body, -1), "cut"),
        (lambda body, length: (body.replace(b'"FP64"', b'"FP65"'), length), "FP65"),
        (lambda body, length: (body.replace(b'"shape":[1]', b'"shape":[2]'), length), "do not fill"),
    ],
)
def test_a_response_that_is_cut_or_wrong_is_a_cloud_error(change, words: str) -> None:
    call = decode(text_body(parameters={"binary_data_output": True}))
    body, length = oip.encode_infer_response(TEXT, call, [fakes.make_answer()])
    with pytest.raises(CloudResponseError, match=words):
        oip.decode_infer_response(*change(body, length))


@given(bodies, st.binary(max_size=40), st.none() | st.integers(-1, 60), st.sampled_from([TEXT, IMAGE]))
def test_any_frame_is_read_or_refused(text: bytes, chunk: bytes, length: int | None, info) -> None:
    header = None if length is None else str(length).encode()
    with contextlib.suppress(RequestError):
        decode(text + chunk, info, json_length=header)
    with contextlib.suppress(CloudResponseError):
        oip.decode_infer_response(text + chunk, length)


# Responses


def test_a_response_has_the_documented_shape() -> None:
    call = decode(text_body(id="c"))
    assert json.loads(oip.encode_infer_response(TEXT, call, [fakes.make_answer("c")]).body) == {
        "model_name": "newswire",
        "model_version": "sha256:1",
        "id": "c",
        "parameters": {
            "provisional": 0,
            "total_ms": 1.5,
            "model_digest": "sha256:1",
            "policy": "certified",
            "certificate_id": "cert-1",
        },
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["earn"]},
            {"name": "status", "datatype": "BYTES", "shape": [1], "data": ["final"]},
            {"name": "source", "datatype": "BYTES", "shape": [1], "data": ["edge"]},
            {"name": "reason", "datatype": "BYTES", "shape": [1], "data": ["confident"]},
            {"name": "score", "datatype": "FP64", "shape": [1], "data": [0.75]},
        ],
    }


def test_items_that_differ_share_no_fact() -> None:
    call = decode(text_body(inputs=[tensor(shape=[2], data=["a", "b"])]))
    answers = [
        fakes.make_answer("new-0", "acq", score=float("nan")),
        fakes.make_answer(
            "new-1",
            "earn",
            status=Status.PROVISIONAL,
            source=Source.CLOUD,
            reason=Reason.CLOUD_FAILED,
            score=None,
            certificate_id=None,
            model_digest="v2",
        ),
    ]
    reply = json.loads(oip.encode_infer_response(TEXT, call, answers).body)
    assert reply["parameters"] == {"provisional": 1, "total_ms": 1.5, "policy": "certified"}
    assert [output["data"] for output in reply["outputs"]] == [
        ["acq", "earn"],
        ["final", "provisional"],
        ["edge", "cloud"],
        ["confident", "cloud_failed"],
        [None, None],
    ]
    read = oip.decode_infer_response(json.dumps(reply).encode())
    assert [read.output(index) for index in range(2)] == ["acq", "earn"]
    assert [read.status(index) for index in range(2)] == [Status.FINAL, Status.PROVISIONAL]


def test_vectors_go_out_as_one_tensor() -> None:
    info = fakes.service_info(task="feature-extraction", labels=())
    call = decode(text_body(inputs=[tensor(shape=[2], data=["a", "b"])]), info)
    answers = [fakes.make_answer(output=(1.0, 2.0)), fakes.make_answer(output=(3.0, 4.0))]
    body = oip.encode_infer_response(info, call, answers).body
    first = json.loads(body)["outputs"][0]
    assert first == {"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}
    assert oip.decode_infer_response(body).output(1) == (3.0, 4.0)


def reply_of(*outputs: dict) -> bytes:
    return json.dumps({"model_name": "m", "outputs": list(outputs)}).encode()


def test_a_foreign_server_may_say_less_and_nest() -> None:
    reply = oip.decode_infer_response(
        b'{"model_name":"m","more":1,"outputs":[{"name":"label","datatype":"BYTES","shape":[2,1],"data":[["a"],["b"]]}]}'
    )
    assert (reply.model_version, reply.output(1), reply.status(1)) == ("", "b", Status.FINAL)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no infer response"),
        (b"<html>", "no infer response"),
        (b"\xff", "no infer response"),
        (b'{"error":"x"}', "no infer response"),
        (b'{"model_name":"m","outputs":' + b"[" * 100_000, "no infer response"),
        (reply_of({"name": "label", "datatype": "BYTES", "shape": [2], "data": ["a"]}), "1 elements"),
        (reply_of({"name": "logits", "datatype": "FP32", "shape": [1], "data": [1.0]}), "but logits"),
        (reply_of(), "but nothing"),
        (reply_of({"name": "label", "datatype": "BYTES", "shape": [1], "data": [7]}), "no text"),
        (reply_of({"name": "label", "datatype": "BYTES", "shape": [0], "data": []}), "no text"),
        (reply_of({"name": "embedding", "datatype": "FP32", "shape": [1, 1], "data": ["x"]}), "no vector"),
        (reply_of({"name": "embedding", "datatype": "FP32", "shape": [1, 1], "data": [10**400]}), "beyond any float"),
        (reply_of({"name": "embedding", "datatype": "FP32", "shape": [1], "data": [1.0]}), "no vector"),
    ],
)
def test_what_is_no_answer_is_a_cloud_error(body: bytes, words: str) -> None:
    with pytest.raises(CloudResponseError, match=words):
        oip.decode_infer_response(body).output()


def test_an_unknown_status_is_a_cloud_error() -> None:
    body = reply_of({"name": "status", "datatype": "BYTES", "shape": [1], "data": ["maybe"]})
    with pytest.raises(CloudResponseError, match="maybe"):
        oip.decode_infer_response(body).status()


@given(bodies)
def test_any_reply_is_read_or_a_cloud_error(body: bytes) -> None:
    for read in (oip.decode_infer_response, oip.decode_model_metadata):
        try:
            read(body)
        except CloudResponseError:
            continue
    oip.decode_error(body)


# Metadata and errors


def test_model_metadata_reads_back() -> None:
    metadata = oip.decode_model_metadata(oip.encode_model_metadata(IMAGE))
    assert (metadata.name, metadata.versions, metadata.platform) == ("newswire", ["sha256:1"], "edgewise")
    assert [tensor.name for tensor in metadata.inputs] == ["image", "pixels"]
    assert [tensor.name for tensor in metadata.outputs] == ["label", "status", "source", "reason", "score"]
    assert metadata.parameters == {"task": "image-classification", "labels": ["acq", "earn"], "role": "gateway"}


def test_server_metadata_lists_the_extension_that_is_spoken() -> None:
    metadata = json.loads(oip.encode_server_metadata())
    assert metadata["name"] == "edgewise"
    assert metadata["extensions"] == ["binary_tensor_data"]


def test_an_error_reads_back() -> None:
    assert oip.decode_error(oip.encode_error("what and why")) == "what and why"
    assert oip.decode_error(b'{"error":{"code":"x"}}') is None
    assert oip.decode_error(b"[]") is None
