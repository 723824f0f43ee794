"""Packing a language model: what travels, in which form, and what is refused."""

import json
import shutil

import numpy as np
import onnx
import pytest

from edgewise.bundle import Bundle, GoldenItem, Target, pack_generator, read_config
from edgewise.errors import EdgewiseError, InputError, OutputExistsError


@pytest.fixture
def folder(tiny_generator, tmp_path):
    return tiny_generator.write_folder(tmp_path / "built")


def refused(source, tmp_path, match, error=InputError):
    with pytest.raises(error, match=match):
        pack_generator(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def change_config(folder, change):
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_what_a_bundle_of_a_language_model_holds(tiny_generator_bundle, tiny_generator):
    bundle = Bundle.open(tiny_generator_bundle)
    core = bundle.core
    assert (core.kind, core.task, core.labels, core.signal) == ("generator", "text-generation", (), "mean_logprob")
    assert [weight.name for weight in core.weights] == ["table"]
    assert core.weights[0].blob.size == tiny_generator.table().nbytes
    assert np.array_equal(
        np.frombuffer(bundle.read(core.weights[0].blob), np.float32).reshape(tiny_generator.table().shape),
        tiny_generator.table(),
    )
    assert [file.name for file in core.preprocessing.files] == [
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert len(bundle.golden()) == 2


def test_no_path_and_no_session_option_travels(tiny_generator_bundle, tiny_generator):
    bundle = Bundle.open(tiny_generator_bundle)
    files = {file.name: bundle.read(file.blob) for file in bundle.core.preprocessing.files}
    assert "name_or_path" not in json.loads(files["tokenizer_config.json"])
    config = json.loads(files["genai_config.json"])
    assert config["model"]["decoder"]["filename"] == "model.onnx"
    assert config["model"]["decoder"]["session_options"] == {}
    assert json.loads(files["tokenizer.json"]) == json.loads(tiny_generator.tokenizer().to_str())


def test_the_same_inputs_give_the_same_bytes(tiny_generator, tmp_path):
    first = pack_generator(tiny_generator.source(tiny_generator.write_folder(tmp_path / "a")), tmp_path / "one")
    again = tiny_generator.write_folder(tmp_path / "elsewhere" / "b")
    change_config(again, lambda config: config["model"]["decoder"].update(filename="another.onnx"))
    assert pack_generator(tiny_generator.source(again), tmp_path / "two") == first
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="/tmp/evil.so"),
            "custom_ops_library",
        ),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(provider_options=[{"cuda": {}}]),
            "provider_options",
        ),
        (lambda c: c["model"]["decoder"].update(filename="../../etc/passwd"), "filename"),
        (lambda c: c["model"]["decoder"]["inputs"].update(input_ids="/etc/passwd"), "inputs"),
        # The runtime hands these names to C's printf.
        (lambda c: c["model"]["decoder"]["inputs"].update(past_key_names="past_key_values.%n.key"), "past_key_names"),
        (lambda c: c["model"]["decoder"]["outputs"].update(present_key_names="present.%d.%s"), "present_key_names"),
        (lambda c: c["model"]["decoder"]["outputs"].update(present_key_names="present.key"), "present_key_names"),
        (lambda c: c["model"]["decoder"]["inputs"].update(input_ids="%s"), "input_ids"),
        (lambda c: c["model"]["decoder"]["inputs"].update(another="name"), "another"),
        (lambda c: c["model"].update(type="llama%n"), "type"),
        (lambda c: c["model"].update(vocab_size=2**31 - 1), "vocab_size"),
        (lambda c: c["model"]["decoder"].update(num_hidden_layers=2**31 - 1), "num_hidden_layers"),
        (lambda c: c["model"].update(vision={"filename": "vision.onnx"}), "vision"),
        (lambda c: c["search"].update(top_k="many"), "search"),
        (lambda c: c.pop("model"), "model"),
    ],
)
def test_settings_that_name_files_or_libraries_are_refused(tiny_generator, folder, tmp_path, change, match):
    change_config(folder, change)
    refused(tiny_generator.source(folder), tmp_path, match)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_configuration_that_is_none(data):
    with pytest.raises(InputError, match="genai_config"):
        read_config(data)


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file(tiny_generator, folder, tmp_path, name):
    (folder / name).unlink()
    refused(tiny_generator.source(folder), tmp_path, name)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_a_tokenizer_file_that_is_no_object(tiny_generator, folder, tmp_path, content):
    (folder / "tokenizer_config.json").write_text(content)
    refused(tiny_generator.source(folder), tmp_path, "tokenizer_config.json")


def test_a_missing_or_foreign_graph(tiny_generator, folder, tmp_path):
    (folder / "model.onnx").write_bytes(b"no protobuf \xff")
    refused(tiny_generator.source(folder), tmp_path, "ONNX")
    (folder / "model.onnx").unlink()
    refused(tiny_generator.source(folder), tmp_path, "no ONNX file")


def test_a_graph_of_another_opset(tiny_generator, folder, tmp_path):
    refused(tiny_generator.source(folder, target=Target(("x",), "1.20", 20)), tmp_path, "opset")


@pytest.mark.parametrize("length", [0, 1, 513])
def test_a_length_that_the_model_does_not_have(tiny_generator, folder, tmp_path, length):
    refused(tiny_generator.source(folder, max_length=length), tmp_path, "max_length")


@pytest.mark.parametrize("logprobs", [(), (float("nan"),), (float("-inf"),)])
def test_golden_items_without_numbers(tiny_generator, folder, tmp_path, logprobs):
    golden = (GoldenItem("a", "b", 0.0, logprobs),)
    refused(tiny_generator.source(folder, golden=golden), tmp_path, "golden")


def test_weights_that_are_cut_off_missing_or_no_numbers(tiny_generator, folder, tmp_path):
    weights = folder / "model.onnx.data"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(tiny_generator.source(folder), tmp_path, "bytes", EdgewiseError)
    weights.write_bytes(np.full(len(whole) // 4, np.nan, np.float32).tobytes())
    refused(tiny_generator.source(folder), tmp_path, "NaN", EdgewiseError)
    weights.unlink()
    refused(tiny_generator.source(folder), tmp_path, "cannot be read", EdgewiseError)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", ""])
def test_weights_elsewhere_are_never_read(tiny_generator, folder, tmp_path, location):
    (tmp_path / "secret").write_bytes(b"\0" * (1 << 20))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, folder / "model.onnx")
    refused(tiny_generator.source(folder), tmp_path, "beside the graph|not a readable", EdgewiseError)


def test_a_link_in_place_of_weights_is_not_followed(tiny_generator, folder, tmp_path):
    shutil.move(folder / "model.onnx.data", tmp_path / "elsewhere")
    (folder / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    refused(tiny_generator.source(folder), tmp_path, "beside the graph", EdgewiseError)


def test_weights_inside_the_graph_are_taken_out_too(tiny_generator, folder, tmp_path):
    first = pack_generator(tiny_generator.source(folder), tmp_path / "outside")
    onnx.save_model(tiny_generator.graph(), folder / "model.onnx")
    (folder / "model.onnx.data").unlink()
    assert pack_generator(tiny_generator.source(folder), tmp_path / "inside") == first


def test_taken_output_is_refused(tiny_generator, folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        pack_generator(tiny_generator.source(folder), tmp_path / "out")
