"""Recipes on graphs made by hand: what they promise is read off the graph they write."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import ConfigError
from edgewise.quantize import graph
from edgewise.quantize.build import BuildJob, build_here
from edgewise.quantize.recipes import BASELINE, RECIPES, parse_choices

ROWS, WIDTH, CLASSES = 200, 64, 5
RNG = np.random.default_rng(0)


def weight(name, *shape):
    values = np.random.default_rng(len(name)).normal(0, 0.3, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def text_model():
    """Embedding, mean, a Gemm by a transposed weight, a matrix used twice, a head too small to quantize."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "first", "bias"], ["hidden"], transB=1),
        helper.make_node("Tanh", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "shared"], ["once"]),
        helper.make_node("Tanh", ["once"], ["again"]),
        helper.make_node("MatMul", ["again", "shared"], ["twice"]),
        helper.make_node("MatMul", ["twice", "head"], ["logits"]),
    ]
    weights = [
        weight("table", ROWS, WIDTH),
        weight("first", 80, WIDTH),
        weight("bias", 80),
        weight("shared", 80, 80),
        weight("head", 80, CLASSES),
    ]
    return model(nodes, weights, helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"]))


def conv_model():
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])
    return model(nodes, [weight("kernel", CLASSES, 3, 3, 3)], pixels)


def branching_model():
    """A node of a subgraph reads what an outer node computes, written before that subgraph's If."""
    outer = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["batch", WIDTH])
    same = helper.make_graph([helper.make_node("Identity", ["projected"], ["chosen"])], "yes", [], [outer])
    negated = helper.make_graph([helper.make_node("Neg", ["projected"], ["chosen"])], "no", [], [outer])
    nodes = [
        helper.make_node("MatMul", ["features", "square"], ["projected"]),
        helper.make_node("ReduceSum", ["features"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["picked"], then_branch=same, else_branch=negated),
        helper.make_node("MatMul", ["picked", "head"], ["logits"]),
    ]
    weights = [weight("square", WIDTH, WIDTH), weight("head", WIDTH, WIDTH)]
    weights.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    return model(nodes, weights, helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", WIDTH]), WIDTH)


def model(nodes, weights, given, classes=CLASSES):
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    made = helper.make_graph(nodes, "g", [given], [logits], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def prepare(tmp_path, made):
    source = tmp_path / "model.onnx"
    onnx.save(made, source)
    graph.prepare_here(graph.PrepareJob(str(source), str(tmp_path / "prepared.onnx")))
    return source, tmp_path / "prepared.onnx"


def build(tmp_path, made, text):
    source, prepared = prepare(tmp_path, made)
    (choice,) = parse_choices(RECIPES, [text])
    out = tmp_path / "quantized.onnx"
    read = prepared if choice.recipe.prepared else source
    return source, out, build_here(BuildJob(choice.recipe.name, choice.plain_options(), str(read), str(out), 0))


def run(path, **feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


IDS = RNG.integers(0, ROWS, (3, 9))


def test_preparing_makes_every_linear_layer_a_matmul_and_changes_no_answer(tmp_path):
    source, prepared = prepare(tmp_path, text_model())
    assert "Gemm" not in operators(prepared)
    assert operators(prepared).count("MatMul") == 4
    names = [node.name for node in onnx.load(prepared).graph.node]
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(run(source, input_ids=IDS), run(prepared, input_ids=IDS), atol=1e-6)


def test_preparing_counts_what_is_worth_quantizing(tmp_path):
    source, _ = prepare(tmp_path, text_model())
    found = graph.prepare_here(graph.PrepareJob(str(source), str(tmp_path / "again.onnx")))
    assert found.weights == {"Gather": 1, "MatMul": 3}  # the head's 400 values are too few


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("int8_dynamic", {"MatMulInteger": 3, "MatMul": 1}),
        ("int4_matmul", {"MatMulNBits": 3, "GatherBlockQuantized": 1, "MatMul": 1, "Gather": 0}),
        ("int8_embed4", {"MatMulInteger": 3, "GatherBlockQuantized": 1, "MatMul": 1, "Gather": 0}),
    ],
)
def test_a_recipe_quantizes_what_it_promises_and_stays_close(tmp_path, recipe, expected):
    source, out, outcome = build(tmp_path, text_model(), recipe)
    assert {kind: operators(out).count(kind) for kind in expected} == expected
    assert outcome.skipped == ()
    assert outcome.facts[0].startswith("2 of 2 matrix weights in")
    assert outcome.facts[1].startswith("1 of 1 embedding tables in")
    assert out.stat().st_size < source.stat().st_size / 2
    onnx.checker.check_model(str(out))
    exact, found = run(source, input_ids=IDS).ravel(), run(out, input_ids=IDS).ravel()
    assert exact @ found / np.linalg.norm(exact) / np.linalg.norm(found) > 0.97


@pytest.mark.parametrize("recipe", ["int8_dynamic", "int4_matmul", "int8_embed4"])
def test_a_recipe_gives_the_same_bytes_each_time(tmp_path, recipe):
    first = build(tmp_path, text_model(), recipe)[1].read_bytes()
    made = onnx.load(tmp_path / "model.onnx")
    assert build(tmp_path, made, recipe)[1].read_bytes() == first


def test_options_reach_the_graph(tmp_path):
    _, out, outcome = build(tmp_path, text_model(), "int4_matmul:block_size=64:symmetric=true:embedding=false")
    node = next(node for node in onnx.load(out).graph.node if node.op_type == "MatMulNBits")
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    assert (sizes["block_size"], sizes["bits"], sizes["accuracy_level"]) == (64, 4, 4)
    assert len(node.input) == 3  # no zero points
    assert "Gather" in operators(out)
    assert not any("embedding" in fact for fact in outcome.facts)


def test_a_weight_that_stayed_behind_is_reported(tmp_path):
    _, prepared = prepare(tmp_path, text_model())
    untouched = onnx.load(prepared)
    promised = {"MatMul": "int8", "Gather": "int8"}
    assert graph.skipped(untouched, untouched, ("MatMul", "Gather")) == ("first_transposed", "shared", "table")
    facts = graph.facts(untouched, untouched, promised)
    assert facts[:2] == ("0 of 2 matrix weights in int8", "0 of 1 embedding tables in int8")


def test_the_baseline_is_the_exported_file(tmp_path):
    source, out, _ = build(tmp_path, text_model(), BASELINE)
    assert out.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("recipe", ["int8_dynamic", "int4_matmul", "int8_embed4"])
def test_a_graph_without_matrices_is_none_for_these_recipes(tmp_path, recipe):
    _, out, outcome = build(tmp_path, conv_model(), recipe)
    assert outcome.inapplicable
    assert not out.exists()


def test_a_graph_with_branches_stays_in_order(tmp_path):
    source, out, outcome = build(tmp_path, branching_model(), "int8_dynamic")
    onnx.checker.check_model(str(out))
    assert outcome.skipped == ()
    features = RNG.normal(size=(1, WIDTH)).astype(np.float32)
    for signed in (features, -features):
        exact = run(source, features=signed)
        assert np.abs(run(out, features=signed) - exact).max() < 0.1 * np.abs(exact).max()


def test_a_choice_is_named_after_the_options_that_differ():
    choices = parse_choices(RECIPES, ["int4_matmul", "int4_matmul:block_size=64", " int8_dynamic:per_channel=false "])
    assert [choice.id for choice in choices] == [
        "int4_matmul",
        "int4_matmul.block_size-64",
        "int8_dynamic.per_channel-false",
    ]
    assert choices[1].plain_options() == {
        "block_size": 64,
        "symmetric": False,
        "accuracy_level": 4,
        "embedding": True,
        "method": "rtn",
    }


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["int3"], "no recipe 'int3'.*int8_dynamic"),
        (["int4_matmul:blocks=3"], "no option 'blocks'.*block_size"),
        (["int4_matmul:block_size=33"], "block_size"),
        (["int4_matmul:block_size"], "'block_size' is no option"),
        (["shrink+int8_dynamic"], "no transform 'shrink'.*fuse, trim, embedding, margin"),
        (["trim+trim+int8_dynamic"], "transform 'trim' is named twice"),
        (["trim+fuse+fp16", "fuse+trim+fp16"], "fuse.trim.fp16' is named twice"),
        (["int4_matmul:method=hqq:symmetric=true"], "hqq places the zero itself"),
        (["mixed:low=int8"], "low and high are both int8"),
        (["mixed:share=1.5"], "share"),
        (["int8_dynamic", "int8_dynamic:per_channel=true"], "named twice"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_right_ones(texts, match):
    with pytest.raises(ConfigError, match=match):
        parse_choices(RECIPES, texts)
