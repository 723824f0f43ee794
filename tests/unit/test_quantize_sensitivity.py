"""Sensitivity: what each matrix's rounding does to the answers, measured one matrix at a time."""

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import DataError
from edgewise.quantize.calibration import write_feeds
from edgewise.quantize.sensitivity import (
    SensitivityJob,
    divergence,
    read_distances,
    relative_square,
    rounded,
    sensitivity_here,
)

WIDTH = 64


@pytest.fixture
def measured(tmp_path):
    """Two matrices of which the first decides: the second's part of the answer is a thousandth."""
    draw = np.random.default_rng(0)
    weights = {name: draw.normal(0, 0.5, (WIDTH, WIDTH)).astype(np.float32) for name in ("loud", "quiet")}
    nodes = [
        helper.make_node("MatMul", ["features", "loud"], ["first"], "m1"),
        helper.make_node("MatMul", ["features", "quiet"], ["second"], "m2"),
        helper.make_node("Mul", ["second", "little"], ["small"], "s"),
        helper.make_node("Add", ["first", "small"], ["logits"], "a"),
    ]
    constants = {**weights, "little": np.array(1e-3, np.float32)}
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "g",
        [value("features", TensorProto.FLOAT, ["batch", WIDTH])],
        [value("logits", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "in.onnx")
    feeds = [{"features": draw.normal(size=(1, WIDTH)).astype(np.float32)} for _ in range(6)]
    write_feeds(feeds, tmp_path / "feeds.npz")
    job = SensitivityJob(
        source=str(tmp_path / "in.onnx"),
        calibration=str(tmp_path / "feeds.npz"),
        out=str(tmp_path / "out.json"),
        precisions=("int4", "int8"),
    )
    assert sensitivity_here(job).weights == 2
    return tmp_path, feeds


def test_the_matrix_that_decides_comes_first_and_fewer_bits_move_more(measured):
    folder, _ = measured
    found = msgspec.json.decode((folder / "out.json").read_bytes())
    assert list(found["int4"]) == list(found["int8"]) == ["loud", "quiet"]
    assert found["int4"]["loud"] > 100 * found["int4"]["quiet"]
    assert found["int4"]["loud"] > 10 * found["int8"]["loud"] > 0


def test_a_distance_is_that_of_a_graph_with_this_one_matrix_rounded(measured):
    folder, feeds = measured
    made = onnx.load(folder / "in.onnx")
    exact = answers(made, feeds)
    tensor = next(tensor for tensor in made.graph.initializer if tensor.name == "loud")
    tensor.CopyFrom(numpy_helper.from_array(rounded(numpy_helper.to_array(tensor), "int4", 32), "loud"))
    expected = np.mean([divergence(one, other) for one, other in zip(exact, answers(made, feeds), strict=True)])
    found = read_distances(str(folder / "out.json"), "int4", ["loud"])
    assert found["loud"] == pytest.approx(expected, rel=1e-3)


def answers(made, feeds):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0].astype(np.float64) for feed in feeds]


def test_distances_that_are_not_there_are_refused(measured):
    path = str(measured[0] / "out.json")
    with pytest.raises(DataError, match="know no weight 'other'"):
        read_distances(path, "int4", ["other"])
    (measured[0] / "out.json").write_bytes(b'{"int8": {}}')
    with pytest.raises(DataError, match=r"at int4.*int8"):
        read_distances(path, "int4", [])
    with pytest.raises(DataError, match="needs measured sensitivities"):
        read_distances("", "int4", [])


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_divergence_is_none_only_of_equal_answers(first, second):
    one, other = np.array([first]), np.array([second])
    assert divergence(one, one) == pytest.approx(0, abs=1e-12)
    assert divergence(one, other) >= -1e-12
    # Softmax forgets what is added to every logit.
    assert divergence(one, other + 3.0) == pytest.approx(divergence(one, other), abs=1e-9)


def test_the_other_distance_is_a_share_of_the_answer():
    assert relative_square(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(1 / 25)
