"""Every recipe over a graph of texts and a graph of convolutions, and what the ones with calibration refuse."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import CheckpointError, DataError
from edgewise.quantize import graph
from edgewise.quantize.build import BuildJob, build_here
from edgewise.quantize.calibration import FeedsJob, feeds_here, read_feeds, write_feeds
from edgewise.quantize.items import Item
from edgewise.quantize.recipes import DEFAULT_RECIPES, RECIPES, Aids, Choice, gptq, nbits, parse_choices
from edgewise.quantize.recipes.blocks import gather8, grid, restored, round_to_nearest
from edgewise.quantize.recipes.mixed import keep_high
from edgewise.quantize.sensitivity import SensitivityJob, sensitivity_here
from edgewise.quantize.transforms import TRANSFORMS

ROWS, WIDTH, CLASSES = 200, 64, 5
FLOAT = TensorProto.FLOAT


def tensor(name, *shape, scale=0.3):
    values = np.random.default_rng(len(name) + sum(shape)).normal(0, scale, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def model(nodes, weights, given, shape, opset=17):
    logits = helper.make_tensor_value_info("logits", FLOAT, shape)
    made = helper.make_graph(nodes, "g", [given], [logits], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def text_model(table_width=WIDTH):
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
        tensor("table", ROWS, table_width),
        tensor("first", 80, table_width),
        tensor("bias", 80),
        tensor("shared", 80, 80),
        tensor("head", 80, CLASSES),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    feeds = [{"input_ids": np.random.default_rng(at).integers(0, ROWS, (1, 3 + at))} for at in range(8)]
    return model(nodes, weights, ids, ["batch", CLASSES]), feeds


def conv_model():
    """Two convolutions around a pooling, a sum of both ways, and an average."""
    nodes = [
        helper.make_node("Conv", ["pixel_values", "k1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "k2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "p1"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"]),
    ]
    weights = [
        tensor("k1", 16, 3, 3, 3),
        tensor("b1", 16),
        tensor("k2", 16, 16, 3, 3, scale=0.1),
        tensor("b2", 16),
        tensor("head", 16, CLASSES),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", FLOAT, ["batch", 3, 16, 16])
    draws = (np.random.default_rng(at) for at in range(8))
    feeds = [{"pixel_values": draw.normal(size=(1, 3, 16, 16)).astype(np.float32)} for draw in draws]
    return model(nodes, weights, pixels, ["batch", CLASSES]), feeds


GRAPHS = {"text": text_model, "conv": conv_model}


def ready(folder: Path, made, feeds, *, measured=True):
    """The exported and the prepared graph, and everything a recipe may need."""
    source, prepared = folder / "model.onnx", folder / "prepared.onnx"
    onnx.save(made, source)
    graph.prepare_here(graph.PrepareJob(str(source), str(prepared)))
    write_feeds(feeds, folder / "feeds.npz")
    aids = Aids(calibration=str(folder / "feeds.npz"), sensitivity=str(folder / "sensitivity.json"))
    job = SensitivityJob(
        source=str(prepared), calibration=aids.calibration, out=aids.sensitivity, precisions=("int4", "int8")
    )
    if measured:
        sensitivity_here(job)
    return source, prepared, aids


def build(folder, made, feeds, text):
    (choice,) = parse_choices(RECIPES, [text])
    source, prepared, aids = ready(folder, made, feeds, measured="sensitivity" in choice.needs)
    out = folder / "out.onnx"
    read = prepared if choice.recipe.prepared else source
    job = BuildJob(choice.recipe.name, choice.plain_options(), str(read), str(out), 0, aids, choice.transforms)
    return source, out, build_here(job)


def run(path, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def cosine(source, out, feeds):
    exact = np.concatenate([run(source, feed).ravel() for feed in feeds])
    found = np.concatenate([run(out, feed).ravel() for feed in feeds])
    return exact @ found / np.linalg.norm(exact) / np.linalg.norm(found)


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


VARIANTS = [
    *RECIPES,
    "int4_matmul:method=hqq",
    "int4_matmul:method=k_quant:block_size=16",
    "int4_matmul:method=gptq:block_size=64",
    "int4_matmul:method=gptq:symmetric=true",
    "int8_matmul:method=k_quant:accuracy_level=0",
    "int8_matmul:symmetric=true:block_size=128",
    "int8_static:method=percentile:percentile=99.9",
    "int8_static:method=entropy:per_channel=false:embedding=false",
    "mixed:low=int8:high=fp32:share=0.6:embedding=8",
    "mixed:share=0:embedding=32",
    "mixed:share=1",
]


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("text", VARIANTS)
def test_every_recipe_stays_close_and_says_what_it_did_or_does_not_apply(tmp_path, kind, text):
    made, feeds = GRAPHS[kind]()
    source, out, outcome = build(tmp_path, made, feeds, text)
    if outcome.inapplicable:
        assert not out.exists()
        assert kind == "conv"
        return
    onnx.checker.check_model(str(out))
    assert cosine(source, out, feeds) > 0.97
    assert outcome.facts
    assert outcome.skipped == ()
    assert not list(tmp_path.glob("out.*.*"))


@pytest.mark.parametrize("text", ["int8_static", "fp16"])
def test_a_network_of_convolutions_gets_smaller(tmp_path, text):
    made, feeds = conv_model()
    source, out, outcome = build(tmp_path, made, feeds, text)
    assert out.stat().st_size < source.stat().st_size
    if text == "int8_static":
        assert outcome.facts[0] == "2 of 2 convolution kernels in int8"
        kernels = [t for t in onnx.load(out).graph.initializer if len(t.dims) == 4]
        assert {t.data_type for t in kernels} == {TensorProto.INT8}


def test_convolutions_and_what_lies_between_run_in_8_bits(tmp_path):
    made, feeds = conv_model()
    _, out, _ = build(tmp_path, made, feeds, "int8_static")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    run_as = operators(tmp_path / "run.onnx")
    assert run_as.count("QLinearConv") == 2
    assert {"Conv", "Relu", "Add"}.isdisjoint(run_as)


def test_8_bit_embedding_rows_come_back_close(tmp_path):
    made, feeds = text_model(table_width=40)  # a width that no block size divides
    onnx.save(made, tmp_path / "in.onnx")
    onnx.save(gather8(made), tmp_path / "out.onnx")
    assert "GatherBlockQuantized" in operators(tmp_path / "out.onnx")
    assert cosine(tmp_path / "in.onnx", tmp_path / "out.onnx", feeds) > 0.9999


def test_a_weight_inside_a_branch_is_stated(tmp_path):
    made, feeds = branch_model(matrix_inside=True)
    _, _, outcome = build(tmp_path, made, feeds, "int8_dynamic")
    assert outcome.skipped == ("inner",)


# GPTQ


def correlated(rows, width):
    draw = np.random.default_rng(3)
    return (draw.normal(size=(rows, 8)) @ draw.normal(size=(8, width)) + 0.1 * draw.normal(size=(rows, width))).astype(
        np.float32
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [64, 50])
def test_gptq_gives_other_codes_than_rounding_and_a_smaller_error_of_the_products(width, symmetric):
    weight = np.random.default_rng(1).normal(0, 0.3, (24, width)).astype(np.float32)
    inputs = correlated(400, width)
    plain = restored(round_to_nearest(weight, 4, 32, symmetric=symmetric), 4, width)
    blocks = gptq.solve(weight, (inputs.T @ inputs).astype(np.float64), 4, 32, symmetric=symmetric)
    solved = restored(blocks, 4, width)
    assert not np.array_equal(plain, solved)
    error, least = (np.linalg.norm(inputs @ (weight - other).T) for other in (plain, solved))
    assert least < 0.6 * error


def test_gptq_without_correlation_is_rounding():
    """With a diagonal Hessian no column can make up for another: nothing but rounding is left."""
    weight = np.random.default_rng(1).normal(0, 0.3, (8, 32)).astype(np.float32)
    solved = gptq.solve(weight, np.eye(32), 4, 32, symmetric=False)
    np.testing.assert_array_equal(solved.codes, round_to_nearest(weight, 4, 32, symmetric=False).codes)


def test_gptq_drops_the_weights_of_an_input_that_is_always_zero():
    weight = np.random.default_rng(1).normal(0, 0.3, (8, 32)).astype(np.float32)
    inputs = correlated(100, 32)
    inputs[:, 5] = 0
    solved = restored(gptq.solve(weight, (inputs.T @ inputs).astype(float), 4, 32, symmetric=False), 4, 32)
    assert not solved[:, 5].any()


def test_gptq_changes_every_matrix_of_a_graph(tmp_path):
    made, feeds = text_model()
    codes = {}
    for method in ("rtn", "gptq"):
        folder = tmp_path / method
        folder.mkdir()
        _, out, _ = build(folder, made, feeds, f"int4_matmul:method={method}")
        codes[method] = {t.name: t.raw_data for t in onnx.load(out).graph.initializer if len(t.dims) == 3}
    assert len(codes["gptq"]) == 2
    assert all(codes["gptq"][name] != codes["rtn"][name] for name in codes["gptq"])


# What calibration data must show


def branch_model(*, matrix_inside=False):
    """An If by the sign of a sum, then a matrix."""
    outer = helper.make_tensor_value_info("chosen", FLOAT, ["batch", WIDTH])
    inside = helper.make_node("MatMul", ["features", "inner"], ["chosen"])
    same = helper.make_node("Identity", ["features"], ["chosen"])
    yes = helper.make_graph([inside if matrix_inside else same], "yes", [], [outer])
    no = helper.make_graph([helper.make_node("Neg", ["features"], ["chosen"])], "no", [], [outer])
    nodes = [
        helper.make_node("ReduceSum", ["features"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["picked"], "branch", then_branch=yes, else_branch=no),
        helper.make_node("MatMul", ["picked", "head"], ["logits"]),
    ]
    weights = [tensor("head", WIDTH, WIDTH), numpy_helper.from_array(np.array(0, np.float32), "zero")]
    weights += [tensor("inner", WIDTH, WIDTH)] if matrix_inside else []
    given = helper.make_tensor_value_info("features", FLOAT, ["batch", WIDTH])
    draw = np.random.default_rng(0).normal(size=(6, 1, WIDTH)).astype(np.float32)
    return model(nodes, weights, given, ["batch", WIDTH]), [{"features": np.abs(row)} for row in draw]


def empty_model():
    """A matrix behind rows that are picked by their index, of which there may be none."""
    nodes = [
        helper.make_node("Gather", ["features", "picked"], ["some"]),
        helper.make_node("MatMul", ["some", "square"], ["inner"]),
        helper.make_node("ReduceSum", ["inner"], ["logits"], keepdims=0),
    ]
    picked = numpy_helper.from_array(np.array([], np.int64), "picked")
    given = helper.make_tensor_value_info("features", FLOAT, ["batch", WIDTH])
    made = model(nodes, [tensor("square", WIDTH, WIDTH), picked], given, [])
    return made, [{"features": np.ones((2, WIDTH), np.float32)}]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_that_the_data_never_takes_is_named(tmp_path, sign):
    made, feeds = branch_model()
    side = "else" if sign > 0 else "then"
    feeds = [{"features": sign * feed["features"]} for feed in feeds]
    with pytest.raises(DataError, match=f"never takes the {side} branch of 'branch'.*'picked'"):
        build(tmp_path, made, feeds, "int8_static")
    assert not list(tmp_path.glob("out*"))


def test_data_that_takes_both_branches_will_do(tmp_path):
    made, feeds = branch_model()
    both = [*feeds, *({"features": -feed["features"]} for feed in feeds)]
    source, out, _ = build(tmp_path, made, both, "int8_static")
    assert cosine(source, out, both) > 0.99


@pytest.mark.parametrize("text", ["int8_static", "int4_matmul:method=gptq"])
def test_a_value_that_the_data_never_reaches_is_named(tmp_path, text):
    with pytest.raises(DataError, match=r"never reaches.*'some'"):
        build(tmp_path, *empty_model(), text)


@pytest.mark.parametrize(
    ("value", "match"), [(0.0, "'features' is 0 throughout"), (np.nan, "'features' is not finite")]
)
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_range_that_means_nothing_is_refused(tmp_path, value, match, method):
    made, feeds = branch_model()
    del made.graph.node[:3]
    made.graph.node[0].input[0] = "features"
    constant = [{"features": np.full_like(feed["features"], value)} for feed in feeds]
    with pytest.raises(DataError, match=match):
        build(tmp_path, made, constant, f"int8_static:method={method}")


def test_a_recipe_without_the_calibration_data_it_needs_says_so(tmp_path):
    made, _ = text_model()
    onnx.save(made, tmp_path / "in.onnx")
    for name in ("int8_static", "mixed"):
        options = msgspec.to_builtins(RECIPES[name].options())
        with pytest.raises(DataError, match="needs"):
            build_here(BuildJob(name, options, str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), 0))


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    made, _ = text_model()
    broken = numpy_helper.to_array(made.graph.initializer[3]).copy()
    broken[0, 0] = np.nan
    made.graph.initializer[3].CopyFrom(numpy_helper.from_array(broken, "shared"))
    onnx.save(made, tmp_path / "in.onnx")
    with pytest.raises(CheckpointError, match="'shared' holds 1 values that are not finite"):
        graph.prepare_here(graph.PrepareJob(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")))
    assert not (tmp_path / "out.onnx").exists()


def test_a_weight_beyond_half_floats_is_named(tmp_path):
    made, feeds = text_model()
    large = numpy_helper.to_array(made.graph.initializer[3]) * 1e6
    made.graph.initializer[3].CopyFrom(numpy_helper.from_array(large, "shared"))
    with pytest.raises(CheckpointError, match=r"'shared' holds .* the largest float16 is 65504"):
        build(tmp_path, made, feeds, "fp16")


# Calibration data


def test_feeds_are_what_the_edge_runtime_encodes(tmp_path, tiny_text_bundle, tiny_models):
    from edgewise.edge import EdgeModel

    items = tuple(Item(text=text) for text in tiny_models.TEXTS)
    done = feeds_here(FeedsJob(str(tiny_text_bundle), items, str(tmp_path / "feeds.npz"), count=2))
    feeds = read_feeds(tmp_path / "feeds.npz")
    assert done.items == len(feeds) == 2
    expected = EdgeModel.load(tiny_text_bundle).feeds(tiny_models.TEXTS[0])
    assert {name: value.tolist() for name, value in feeds[0].items()} == {
        name: value.tolist() for name, value in expected.items()
    }


def test_no_items_are_no_calibration_data(tmp_path):
    with pytest.raises(DataError, match="no item"):
        write_feeds([], tmp_path / "feeds.npz")
    with pytest.raises(DataError, match="needs calibration data"):
        read_feeds(tmp_path / "feeds.npz")


# Rules


@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([16, 32, 64]), st.sampled_from([4, 8]), st.booleans())
def test_no_value_is_further_from_its_code_than_half_a_step(rows, width, size, bits, symmetric):
    weight = np.random.default_rng(rows * width).normal(size=(rows, width)).astype(np.float32)
    blocks = round_to_nearest(weight, bits, size, symmetric=symmetric)
    steps = np.repeat(blocks.scales, size, axis=1)[:, :width]
    # A zero that is rounded to a code may cost the extremes another half.
    assert np.all(np.abs(restored(blocks, bits, width) - weight) <= 1.01 * steps)
    assert np.all(grid(blocks.scales, bits, symmetric=symmetric)[0] > 0)


@given(st.dictionaries(st.text("abc", min_size=1), st.tuples(st.floats(0, 1), st.integers(1, 100))), st.floats(0, 1))
def test_what_stays_high_fits_into_its_share(weights, share):
    distances = {name: distance for name, (distance, _) in weights.items()}
    sizes = {name: size for name, (_, size) in weights.items()}
    kept = keep_high(distances, sizes, share)
    assert sum(sizes[name] for name in kept) <= share * sum(sizes.values())
    assert [distances[name] for name in kept] == sorted((distances[name] for name in kept), reverse=True)
    assert share < 1 or set(kept) == set(sizes)


def options_of(recipe):
    drawn = {
        field.name: st.floats(51, 100)
        if field.name == "percentile"
        else st.floats(0, 1)
        if field.name == "share"
        else st.from_type(field.type)
        for field in msgspec.structs.fields(recipe.options)
    }

    def make(values):
        try:
            return recipe.options(**values)
        except ValueError:  # two options that exclude each other
            return recipe.options()

    return st.fixed_dictionaries(drawn).map(make)


@st.composite
def choices(draw):
    recipe = RECIPES[draw(st.sampled_from(sorted(RECIPES)))]
    return Choice.of(recipe, draw(options_of(recipe)), draw(st.lists(st.sampled_from(sorted(TRANSFORMS)), unique=True)))


@given(choices())
def test_a_choice_is_spelled_as_it_is_read(choice):
    assert parse_choices(RECIPES, [choice.spelling()]) == (choice,)


def test_an_id_names_transforms_and_options():
    (choice,) = parse_choices(RECIPES, ["margin+trim+int8_embed4:block_size=64"])
    assert choice.id == "trim+margin+int8_embed4.block_size-64"
    assert choice.spelling() == "trim+margin+int8_embed4:block_size=64"
    assert choice.needs == {"tokenizer", "items"}


def test_what_a_choice_needs_depends_on_its_options():
    first, second, third = parse_choices(RECIPES, ["int4_matmul", "int4_matmul:method=gptq", "fuse+mixed"])
    assert (first.needs, second.needs, third.needs) == (set(), {"calibration"}, {"sensitivity", "calibration"})
    assert not any(choice.needs for choice in parse_choices(RECIPES, DEFAULT_RECIPES))
    assert nbits.needs("gptq") == {"calibration"}


def test_a_sensitivity_that_is_no_number_names_the_weight(tmp_path):
    made, feeds = branch_model()
    del made.graph.node[:3]
    made.graph.node[0].input[0] = "features"
    unknown = [{"features": np.full_like(feed["features"], np.nan)} for feed in feeds]
    with pytest.raises(DataError, match="alone is rounded to int4"):
        ready(tmp_path, made, unknown)
