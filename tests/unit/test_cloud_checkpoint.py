"""What is read of a checkpoint folder before any model is loaded."""

import json
from pathlib import Path

import pytest

from edgewise.cloud.checkpoint import Checkpoint
from edgewise.errors import CheckpointError

CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"1": "b", "0": "a", "2": "c"},
    "model_type": "bert",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "news"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "model.safetensors").write_bytes(bytes(range(200)))
    (made / "tokenizer.json").write_text("{}")
    return made


def config(folder: Path, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_task_and_labels_are_read_in_the_order_of_the_logits(folder):
    found = Checkpoint.open(folder)
    assert (found.task, found.labels, found.safetensors) == ("text-classification", ("a", "b", "c"), True)
    for architecture in ("ViTForImageClassification", "DeiTForImageClassificationWithTeacher"):
        config(folder, architectures=[architecture])
        assert Checkpoint.open(folder).task == "image-classification"


def test_a_bare_encoder_is_read_with_its_pooling(folder):
    config(folder, architectures=["BertModel"])
    found = Checkpoint.open(folder)
    assert (found.task, found.labels, str(found.pooling)[:12]) == ("feature-extraction", (), "mean pooling")
    config(folder, architectures=["BertForMaskedLM"])
    (folder / "modules.json").write_text('[{"type": "x.Transformer"}, {"type": "x.Dense"}]')
    with pytest.raises(CheckpointError, match="Dense"):
        Checkpoint.open(folder)


def test_the_names_transformers_leaves_out_are_its_two_defaults(folder):
    config(folder, id2label=None)
    assert Checkpoint.open(folder).labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_one_byte_more_is_another_version(folder, name):
    before = Checkpoint.open(folder).version
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert Checkpoint.open(folder).version != before


def test_one_flipped_bit_of_the_weights_is_another_version(folder):
    before = Checkpoint.open(folder).version
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert Checkpoint.open(folder).version != before


@pytest.mark.parametrize("name", ["vocab.txt", "preprocessor_config.json", "spiece.model", "special_tokens_map.json"])
def test_whatever_may_change_an_answer_counts(folder, name):
    before = Checkpoint.open(folder).version
    (folder / name).write_text("x")
    assert Checkpoint.open(folder).version != before


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "training_args.bin", ".gitattributes", "optimizer.pt", "pytorch_model.bin"]
)
def test_whatever_cannot_change_an_answer_does_not(folder, name):
    before = Checkpoint.open(folder).version
    (folder / name).write_text("x")
    assert Checkpoint.open(folder).version == before


def test_the_version_speaks_of_content_not_of_the_folder(folder, tmp_path):
    before = Checkpoint.open(folder).version
    assert Checkpoint.open(folder.rename(tmp_path / "elsewhere")).version == before


def test_torch_weights_are_taken_where_there_are_no_safetensors(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert not Checkpoint.open(folder).safetensors


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["T5Model"], "is_encoder_decoder": True}, "T5Model"),
        ({"architectures": None}, "none"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"problem_type": "multi_label_classification"}, "multi_label"),
        ({"problem_type": "regression"}, "regression"),
        ({"id2label": {"0": "a"}}, "1 label"),
        ({"id2label": {"0": "a", "2": "b"}}, "0, 1, 2"),
        ({"id2label": {"0": "a", "1": "a"}}, "name each once"),
        ({"id2label": {"zero": "a", "one": "b"}}, "zero"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_value(folder, changes, problem):
    config(folder, **changes)
    with pytest.raises(CheckpointError, match=problem) as caught:
        Checkpoint.open(folder)
    assert caught.value.remedy


def test_a_language_model_of_another_class_is_told_what_is_served(folder):
    config(folder, architectures=["GPT2LMHeadModel"])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert "*ForCausalLM" in caught.value.remedy
    assert "classification head" not in caught.value.remedy


@pytest.mark.parametrize("text", [b"", b"[]", b'{"a": ', b"\xff\xfe"])
def test_a_broken_config_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    with pytest.raises(CheckpointError, match="no weights"):
        Checkpoint.open(folder)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)
