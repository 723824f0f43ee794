"""The scan for external data finds what onnx itself finds, and survives any bytes."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from edgewise.bundle.graph import external_locations


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], raw_data=b"\0\0\0\0")
    set_external_data(tensor, location, offset=0, length=4)
    tensor.ClearField("raw_data")
    return tensor


def nested_model() -> onnx.ModelProto:
    """External tensors at every place that ONNX allows: a to j."""
    inner = helper.make_graph([], "inner", [], [], [external("in-subgraph", "a")])
    sparse = onnx.SparseTensorProto(values=external("values", "b"), indices=external("indices", "c"), dims=[1])
    node = onnx.NodeProto(op_type="Any")
    node.attribute.add(name="t", type=onnx.AttributeProto.TENSOR).t.CopyFrom(external("t", "d"))
    node.attribute.add(name="ts", type=onnx.AttributeProto.TENSORS).tensors.append(external("ts", "e"))
    node.attribute.add(name="g", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
    gs = helper.make_graph([], "gs", [], [], [external("in-graphs", "f")])
    node.attribute.add(name="gs", type=onnx.AttributeProto.GRAPHS).graphs.append(gs)
    node.attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.CopyFrom(sparse)
    node.attribute.add(name="ss").sparse_tensors.append(
        onnx.SparseTensorProto(values=external("v", "g"), indices=external("i", "g"))
    )
    graph = helper.make_graph([node], "outer", [], [], [external("w", "h")])
    graph.sparse_initializer.append(onnx.SparseTensorProto(values=external("sv", "i")))
    function_node = onnx.NodeProto(op_type="Any")
    function_node.attribute.add(name="t").t.CopyFrom(external("f", "j"))
    model = helper.make_model(graph)
    model.functions.append(onnx.FunctionProto(name="f", domain="x", node=[function_node]))
    default = onnx.AttributeProto(name="d")
    default.t.CopyFrom(external("default", "k"))
    model.functions[0].attribute_proto.append(default)
    training = model.training_info.add()
    training.algorithm.initializer.append(external("train", "l"))
    training.initialization.initializer.append(external("init", "m"))
    return model


def test_finds_every_place():
    assert external_locations(nested_model().SerializeToString()) == set("abcdefghijklm")


def test_every_message_of_onnx_that_can_hold_a_tensor_is_followed():
    """Should a newer onnx put tensors into new places, this fails and the table must grow."""
    from edgewise.bundle.graph import _PATHS

    short = {"StringStringEntry": "Entry", "SparseTensor": "Sparse", "TrainingInfo": "Training"}
    names = {"Model", "Graph", "Node", "Attribute", "Tensor", "SparseTensor", "Function", "TrainingInfo"}
    expected: dict[str, dict[int, str]] = {}
    for name in names:
        for field in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name[f"{name}Proto"].fields:
            kind = field.message_type.name.removesuffix("Proto") if field.message_type else ""
            if kind in names or (name, field.name) == ("Tensor", "external_data"):
                expected.setdefault(short.get(name, name), {})[field.number] = short.get(kind, kind)
    assert expected == _PATHS


def test_a_model_without_external_data_has_none(tiny_models):
    assert external_locations(tiny_models.text_model().SerializeToString()) == set()
    assert external_locations(b"") == set()


def test_a_repeated_location_counts_every_time():
    model = onnx.ModelProto()
    tensor = model.graph.initializer.add()
    for location in ("harmless", "../../x"):
        tensor.external_data.add(key="location", value=location)
    assert external_locations(model.SerializeToString()) == {"harmless", "../../x"}


def test_a_graph_written_in_two_parts_is_seen_whole():
    """Protobuf merges a message field that occurs twice; both halves must be looked at."""
    halves = []
    for location in ("one", "two"):
        model = onnx.ModelProto()
        model.graph.initializer.append(external("w", location))
        halves.append(model.SerializeToString())
    joined = b"".join(halves)
    assert len(onnx.ModelProto.FromString(joined).graph.initializer) == 2
    assert external_locations(joined) == {"one", "two"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x3a\x05ab", "longer than its message"),
        (b"\x80", "middle of a number"),
        (b"\xff" * 11, "middle of a number"),
        (b"\x09\x00", "middle of a field"),
        (b"\x0b", "wire type 3"),
        # A tag of 35 bits: C++ protobuf may cut it to 32 and see field 7, the graph.
        (b"\xba\x80\x80\x80\x10\x00", "out of range"),
    ],
)
def test_malformed_bytes_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        external_locations(data)


def test_a_graph_nested_without_end_is_refused():
    model = onnx.ModelProto()
    graph = model.graph
    for _ in range(60):
        graph = graph.node.add().attribute.add().g
    with pytest.raises(ValueError, match="nest deeper"):
        external_locations(model.SerializeToString())


@given(st.binary(max_size=200))
def test_any_bytes_give_names_or_a_value_error(data):
    try:
        found = external_locations(data)
    except ValueError:
        return
    assert all(isinstance(name, str) for name in found)


@given(data=st.data())
def test_what_onnx_can_still_read_after_a_changed_byte_shows_the_same_locations(data):
    """The scan may see more than protobuf, never less."""
    content = bytearray(nested_model().SerializeToString())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = onnx.ModelProto.FromString(bytes(content))
    except Exception:  # protobuf refuses it, so the runtime will
        return
    try:
        seen = external_locations(bytes(content))
    except ValueError:
        return
    assert set(locations_by_onnx(model)) <= seen


def locations_by_onnx(message):
    if message.DESCRIPTOR.name == "TensorProto":
        values = [entry.value for entry in message.external_data if entry.key == "location"]
        # Python's protobuf gives bytes where a string is not UTF-8.
        yield from (value.decode(errors="replace") if isinstance(value, bytes) else value for value in values)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                yield from locations_by_onnx(child)
