"""Language models: what a built graph is said to be, the tokenizer's round trip, agreement with the checkpoint."""

import json
import shutil

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.errors import CheckpointError, ConfigError
from edgewise.quantize.generation import GENERATION_RECIPES, agreement, builder, embedding, graph, tokenizer
from edgewise.quantize.generation.checkpoint import require_plain
from edgewise.quantize.recipes import BASELINE, parse_choices
from edgewise.quantize.technique import Aids

VOCABULARY, WIDTH = 64, 32
BLOCKS = {"block_size": "32"}


def quantized(name, bits, rows, inputs, output, table):
    attributes = {"bits": bits, "block_size": 32, "accuracy_level": 4, "N": rows, "K": WIDTH}
    return helper.make_node(
        "MatMulNBits", [inputs, table, f"{table}_scales"], [output], name=name, domain="com.microsoft", **attributes
    )


def write_built(path, *, bits=8, head_bits=8, reads="head_Q8", embedding_bits=8, named=8, float_matrix=False):
    """A graph in the builder's manner: embedding, one matrix, head; the embedding reads the head's table."""
    sizes = {f"head_Q{head_bits}": (VOCABULARY, head_bits), f"inner_Q{bits}": (WIDTH, bits)}
    weights = [
        numpy_helper.from_array(np.zeros((rows, 1, WIDTH * size // 8), np.uint8), name)
        for name, (rows, size) in sizes.items()
    ]
    weights += [
        numpy_helper.from_array(np.zeros((rows, 1), np.float32), f"{n}_scales") for n, (rows, _) in sizes.items()
    ]
    weights.append(numpy_helper.from_array(np.zeros((WIDTH, WIDTH), np.float32), "plain"))
    shape = numpy_helper.from_array(np.array([VOCABULARY, WIDTH * named // 8], np.int64), "shape")
    inner = (
        helper.make_node("MatMul", ["x", "plain"], ["y"], name="inner")
        if float_matrix
        else quantized("inner", bits, WIDTH, "x", "y", f"inner_Q{bits}")
    )
    nodes = [
        helper.make_node("Constant", [], ["shape_out"], name="constant", value=shape),
        helper.make_node("Reshape", [reads, "shape_out"], ["rows"], name="reshape"),
        helper.make_node(
            "GatherBlockQuantized",
            ["rows", "input_ids", f"head_Q{head_bits}_scales"],
            ["x"],
            name="embedding",
            domain="com.microsoft",
            bits=embedding_bits,
            block_size=32,
            gather_axis=0,
            quantize_axis=1,
        ),
        inner,
        quantized("head", head_bits, VOCABULARY, "y", "logits", f"head_Q{head_bits}"),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", VOCABULARY])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, weights)), path)
    return path


def test_facts_are_read_off_the_graph(tmp_path):
    built = graph.read(write_built(tmp_path / "model.onnx"))
    assert built.facts() == (
        "1 of 1 matrices (100% of their weights) in 8 bits in blocks of 32, accuracy level 4",
        "head in 8 bits",
        "embedding in 8 bits, one table with the head",
    )
    assert built.above(8) == ()
    assert built.above(4) == ("inner", "head", "embedding")


def test_what_stayed_float_is_named(tmp_path):
    built = graph.read(write_built(tmp_path / "model.onnx", float_matrix=True))
    assert built.above(8) == ("inner",)
    assert "float32" in built.facts()[0]


def test_what_is_done_to_each_logit_is_not_the_head(tmp_path):
    """Soft-capping as Gemma 2 has it, and a mask whose first inputs are constants."""
    path = write_built(tmp_path / "model.onnx", reads="head_Q4", embedding_bits=4, named=4)
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "raw"
    cap = numpy_helper.from_array(np.float32(30.0), "cap")
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["cap"], value=cap),
            helper.make_node("Where", ["mask", "cap", "raw"], ["masked"]),
            helper.make_node("Div", ["masked", "cap"], ["small"]),
            helper.make_node("Tanh", ["small"], ["bent"]),
            helper.make_node("Mul", ["bent", "cap"], ["logits"]),
        ]
    )
    onnx.save(model, path)
    assert graph.mend_shared_table(path)
    assert graph.read(path).facts()[1:] == ("head in 8 bits", "embedding in 8 bits, one table with the head")


def test_a_table_that_was_never_written_is_mended(tmp_path):
    path = write_built(tmp_path / "model.onnx", reads="head_Q4", embedding_bits=4, named=4)
    with pytest.raises(CheckpointError, match="head_Q4"):
        graph.read(path)
    assert graph.mend_shared_table(path)
    assert graph.read(path).embedding_bits == 8
    model = onnx.load(path)
    constant = next(node for node in model.graph.node if node.name == "constant")
    assert numpy_helper.to_array(constant.attribute[0].t).tolist() == [VOCABULARY, WIDTH]
    assert not graph.mend_shared_table(path)


def test_a_table_that_is_read_in_other_bits_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="8 bits table as 4 bits"):
        graph.read(write_built(tmp_path / "model.onnx", embedding_bits=4, named=4))


def write_embedding(path, table):
    """A graph that looks its tokens up in a float32 table beside it, and does nothing else."""
    node = helper.make_node("Gather", ["table", "input_ids"], ["x"], name="embedding")
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])]
    outputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", table.shape[1]])]
    built = helper.make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(table, "table")])
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(built, opset_imports=domains, ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    return path


@pytest.mark.parametrize(("bits", "block_size", "width"), [(4, 32, 64), (8, 32, 64), (4, 128, 96), (8, 128, 96)])
def test_an_embedding_of_its_own_is_put_into_blocks(tmp_path, monkeypatch, bits, block_size, width):
    import onnxruntime

    monkeypatch.setattr(embedding, "_ROWS", 7)  # not a divisor of the rows
    table = np.random.default_rng(0).normal(size=(40, width)).astype(np.float32)
    path = write_embedding(tmp_path / "model.onnx", table)
    assert embedding.quantize_embedding(path, bits, block_size)
    assert not embedding.quantize_embedding(path, bits, block_size)
    model = onnx.load(path, load_external_data=False)
    assert [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT] == [
        "table_scales"
    ]
    (found,) = onnxruntime.InferenceSession(path).run(None, {"input_ids": np.arange(40)[None]})
    step = float(np.ptp(table, axis=1).max()) / (2**bits - 1)
    assert 0 < np.abs(found[0] - table).max() <= step


def test_an_embedding_that_cannot_be_put_into_blocks_stays(tmp_path):
    odd = write_embedding(tmp_path / "odd.onnx", np.ones((4, 33), np.float32))
    assert not embedding.quantize_embedding(odd, 4, 32)
    half = write_embedding(tmp_path / "half.onnx", np.ones((4, 32), np.float16))
    assert not embedding.quantize_embedding(half, 4, 32)


def test_a_graph_without_a_head(tmp_path):
    path = write_built(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "something"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="no head"):
        graph.read(path)


@pytest.mark.parametrize(
    ("order", "bits", "head", "fine"),
    [
        (builder.Order("int8", BLOCKS, bits=8), 8, 8, True),
        (builder.Order("int8", BLOCKS, bits=8), 4, 8, False),
        (builder.Order("int4", BLOCKS, bits=4), 4, 4, True),
        (builder.Order("int4", BLOCKS, bits=8, lowest=4), 4, 8, True),
        (builder.Order("int4", BLOCKS, bits=8, lowest=4), 4, 4, False),
    ],
)
def test_fewer_bits_than_ordered_are_refused(monkeypatch, tmp_path, order, bits, head, fine):
    def call(source, out, order):
        write_built(
            out / "model.onnx", bits=bits, head_bits=head, reads=f"head_Q{head}", embedding_bits=head, named=head
        )

    monkeypatch.setattr(builder, "_call", call)
    monkeypatch.setattr(builder, "require_round_trip", lambda source, out: None)
    if fine:
        assert builder.build(tmp_path, tmp_path, order).skipped == ()
    else:
        with pytest.raises(CheckpointError, match="bits"):
            builder.build(tmp_path, tmp_path, order)


@pytest.mark.parametrize(("recipe", "remedy"), [("fp32", "config.json"), ("int4", "block size")])
def test_what_the_builder_stumbles_over_is_told_with_a_remedy_that_may_help(tmp_path, monkeypatch, recipe, remedy):
    from onnxruntime_genai.models import builder as genai

    def stumble(*given, **options):
        raise KeyError("multi_cache")

    monkeypatch.setattr(genai, "create_model", stumble)
    monkeypatch.setattr(genai, "check_extra_options", lambda *given: None)
    made = GENERATION_RECIPES[recipe]
    with pytest.raises(CheckpointError, match="KeyError: 'multi_cache'") as caught:
        made.apply(tmp_path, tmp_path / "out", made.options(), seed=0, aids=Aids())
    assert remedy in caught.value.remedy


class Spelled:
    """A tokenizer of code points that may be told to go wrong on one text."""

    def __init__(self, wrong="", ids=(), back=None):
        self.wrong, self.ids, self.back = wrong, ids, back

    def encode(self, text):
        return list(self.ids) if self.wrong and text == self.wrong and self.ids else [ord(letter) for letter in text]

    def decode(self, ids):
        text = "".join(chr(token) for token in ids)
        return self.back if self.back is not None and text == self.wrong else text


def test_the_round_trip_names_the_first_text_that_differs():
    texts = tokenizer.HARD_TEXTS
    assert tokenizer.first_fault(Spelled(), Spelled(), texts) is None
    fault = tokenizer.first_fault(Spelled(), Spelled("a\nb", [97, -1, 98]), texts)
    assert fault == ("a\nb", "becomes [97, -1, 98] instead of [97, 10, 98]")
    lost = tokenizer.first_fault(Spelled("\n\n\n", back=""), Spelled("\n\n\n", back=""), texts)
    assert lost == ("\n\n\n", "comes back from the checkpoint as ''")
    kept = tokenizer.first_fault(Spelled(), Spelled(" ", back=""), texts)
    assert kept == (" ", "comes back from the packed file as ''")


def test_special_tokens_are_compared_alone_and_inside_a_text():
    assert tokenizer.first_special_fault(Spelled(), Spelled(), ["<s>"]) is None
    fault = tokenizer.first_special_fault(Spelled(), Spelled("a<s>\nb", [1]), ["<s>"])
    assert fault is not None
    assert fault.text == "a<s>\nb"


def test_hard_texts_hold_what_tokenizers_stumble_over():
    whole = "".join(tokenizer.HARD_TEXTS)
    for piece in ("\n", "\t", "\r\n", "  ", "0123456789", "日本", "👩‍👩‍👧‍👦", "\u200b", "é"):
        assert piece in whole
    assert len(set(tokenizer.HARD_TEXTS)) == len(tokenizer.HARD_TEXTS)


@pytest.fixture
def saved(tiny_generator, tmp_path):
    """A checkpoint folder as far as its tokenizer goes."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tiny_generator.tokenizer(), bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.slow
def test_the_packed_tokenizer_is_held_to_the_checkpoints(saved, tmp_path):
    folder = tmp_path / "built"
    shutil.copytree(saved, folder)
    tokenizer.require_round_trip(saved, folder)
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match="does not survive packing"):
        tokenizer.require_round_trip(saved, folder)
    # Where both lose the same, ids agree and texts do not come back.
    shutil.copy(folder / "tokenizer.json", saved / "tokenizer.json")
    with pytest.raises(CheckpointError, match="comes back"):
        tokenizer.require_round_trip(saved, folder)
    (saved / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        tokenizer.require_round_trip(saved, folder)


def rows(*values):
    return [np.array([[value, 2.0]], np.float32) for value in values]


def test_agreement_tells_the_largest_difference():
    found = agreement.require_agreement(rows(1.0, 10.0), rows(1.0005, 10.002), "M")
    assert found.texts == 2
    assert found.difference == pytest.approx(0.0005, rel=1e-2)
    assert found.allowed == pytest.approx(0.002)


@pytest.mark.parametrize("value", [1.01, float("nan"), float("inf")])
def test_a_graph_that_differs_is_refused(value):
    with pytest.raises(CheckpointError, match="text 2 of 2"):
        agreement.require_agreement(rows(1.0, 1.0), rows(1.0, value), "M")


def test_a_checkpoint_that_answers_with_nan_and_texts_without_tokens():
    with pytest.raises(CheckpointError, match="NaN"):
        agreement.require_agreement(rows(float("nan")), rows(1.0), "M")
    with pytest.raises(CheckpointError, match="No text"):
        agreement.require_agreement([], [], "M")


def test_the_registry_spells_and_checks_as_the_other_does():
    assert next(iter(GENERATION_RECIPES)) == BASELINE
    assert list(GENERATION_RECIPES) == ["fp32", "int8", "int4", "mixed"]
    choices = parse_choices(GENERATION_RECIPES, ["int4:block_size=64:method=k_quant", "mixed"])
    assert [choice.id for choice in choices] == ["int4.block_size-64.method-k_quant", "mixed"]
    for text in ("int5", "int4:block_size=7", "int8:method=k_quant", "fp32:block_size=32"):
        with pytest.raises(ConfigError):
            parse_choices(GENERATION_RECIPES, [text])
    for recipe in GENERATION_RECIPES.values():
        assert msgspec.to_builtins(recipe.options()) is not None


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"auto_map": {"AutoModel": "m.M"}}, "code of its own"),
    ],
)
def test_checkpoints_that_would_be_read_otherwise_than_meant(tmp_path, config, match):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=match):
        require_plain(tmp_path)
