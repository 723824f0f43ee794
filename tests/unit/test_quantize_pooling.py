"""The pooling that is appended to a graph gives what numpy gives, padded or not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.edge.pooling import Pooling, pooled
from edgewise.errors import CheckpointError
from edgewise.quantize.pooling import append_pooling

WIDTH = 8
TABLE = np.random.default_rng(0).normal(0, 1, (16, WIDTH)).astype(np.float32)
POOLINGS = [Pooling(mode, normalize) for mode in ("mean", "cls", "max", "mean_sqrt_len") for normalize in (True, False)]


def encoder(path, *, opset=18, hidden="last_hidden_state", mask="attention_mask", width=WIDTH, heads=("pooler",)):
    """A graph that looks up a row a token; its second output is a head that nothing needs."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", mask)]
    outputs = [helper.make_tensor_value_info(hidden, TensorProto.FLOAT, ["b", "s", width])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", WIDTH]) for name in heads]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], [hidden])]
    nodes += [helper.make_node("Mul", [hidden, "head"], [name]) for name in heads]
    weights = [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(TABLE[0], "head")]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def run(path, rows):
    """Embeddings of rows of ids, padded to the longest."""
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], dtype=np.int64)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return found


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("opset", [13, 18])
def test_the_graph_pools_as_numpy_does(tmp_path, pooling, opset):
    path = encoder(tmp_path / "model.onnx", opset=opset)
    append_pooling(path, pooling)
    onnx.checker.check_model(str(path), full_check=True)
    rows = [[3, 1, 4, 1, 5], [9], [2, 6]]
    expected = [pooled(TABLE[row], pooling) for row in rows]
    np.testing.assert_allclose(run(path, rows), expected, rtol=1e-5, atol=1e-6)
    for row, vector in zip(rows, expected, strict=True):
        np.testing.assert_allclose(run(path, [row])[0], vector, rtol=1e-5, atol=1e-6)


def test_the_embedding_is_the_only_output_and_what_it_does_not_need_is_gone(tmp_path):
    path = encoder(tmp_path / "model.onnx")
    append_pooling(path, Pooling("mean", normalize=True))
    graph = onnx.load(path).graph
    assert [value.name for value in graph.output] == ["embedding"]
    assert [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == ["b", WIDTH]
    assert "head" not in {tensor.name for tensor in graph.initializer}
    assert "pooler" not in {name for node in graph.node for name in node.output}


def test_an_inner_value_of_the_same_name_makes_room(tmp_path):
    path = encoder(tmp_path / "model.onnx", hidden="embedding")
    append_pooling(path, Pooling("cls", normalize=False))
    np.testing.assert_allclose(run(path, [[7, 8]])[0], TABLE[7])


def test_a_vector_of_length_1_has_length_1():
    vector = pooled(TABLE[:3], Pooling("max", normalize=True))
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert np.isfinite(pooled(np.zeros((2, 3), np.float32), Pooling("mean", normalize=True))).all()


def test_what_cannot_be_pooled_is_refused(tmp_path):
    for path in (encoder(tmp_path / "a.onnx", mask="mask"), flat(tmp_path / "b.onnx")):
        with pytest.raises(CheckpointError, match="'last_hidden_state' of the graph cannot be pooled"):
            append_pooling(path, Pooling("mean", normalize=True))


def flat(path):
    """The encoder, with an output of two dimensions."""
    model = onnx.load(encoder(path))
    del model.graph.output[0].type.tensor_type.shape.dim[0]
    onnx.save(model, path)
    return path
