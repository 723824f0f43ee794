"""What a checkpoint folder says of itself, and what makes it unusable."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgewise.edge.pooling import Pooling
from edgewise.errors import CheckpointError
from edgewise.quantize.checkpoint import inspect_checkpoint

TEXT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "max_position_embeddings": 512,
    "id2label": {"0": "neg", "1": "pos", "2": "mid"},
}
IMAGE = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "num_channels": 3,
    "image_size": 32,
    "id2label": {"0": "cat", "1": "dog"},
}
VIT = {
    "do_resize": True,
    "size": {"height": 32, "width": 48},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 0.5,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


def make(tmp_path, config, *, weights=True, tokenizer=None, processor=None):
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        save_file({"w": np.zeros(7, np.float32)}, folder / "model.safetensors")
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    else:
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer or {}))
    return folder


def refused(folder, match, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        inspect_checkpoint(folder, **options)
    assert caught.value.remedy


def test_a_distilled_image_model_is_an_image_classifier(tmp_path):
    distilled = {**IMAGE, "architectures": ["DeiTForImageClassificationWithTeacher"]}
    assert inspect_checkpoint(make(tmp_path, distilled, processor=VIT)).task == "image-classification"


def test_a_text_checkpoint_tells_task_labels_size_and_length(tmp_path):
    folder = make(tmp_path, TEXT, tokenizer={"model_max_length": 256})
    found = inspect_checkpoint(folder)
    assert (found.task, found.labels, found.max_length) == ("text-classification", ("neg", "pos", "mid"), 256)
    assert found.size_bytes == (folder / "model.safetensors").stat().st_size
    assert found.image is None
    assert found.name == "my-model"


@pytest.mark.parametrize(
    ("config", "tokenizer", "asked", "expected"),
    [
        ({}, {"model_max_length": 10**30}, None, 512),
        ({}, {"model_max_length": 128}, 64, 64),
        ({}, {"model_max_length": 128}, 300, 128),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, None, 512),
        ({"max_position_embeddings": None}, {}, None, 512),
        ({"max_position_embeddings": -1}, {"model_max_length": 77.0}, None, 77),
    ],
)
def test_the_length_limit_is_the_smallest_of_all(tmp_path, config, tokenizer, asked, expected):
    folder = make(tmp_path, {**TEXT, **config}, tokenizer=tokenizer)
    assert inspect_checkpoint(folder, max_length=asked).max_length == expected


def test_two_default_labels_stand_in_for_a_missing_id2label(tmp_path):
    config = {key: value for key, value in TEXT.items() if key != "id2label"}
    assert inspect_checkpoint(make(tmp_path, config)).labels == ("LABEL_0", "LABEL_1")


def test_an_image_checkpoint_tells_its_preprocessing(tmp_path):
    image = inspect_checkpoint(make(tmp_path, IMAGE, processor=VIT)).image
    assert (image.height, image.width, image.channels, image.resample) == (32, 48, 3, "bicubic")
    assert (image.rescale, image.mean, image.std) == (0.5, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_switched_off_steps_leave_the_pixels_alone(tmp_path):
    processor = {**VIT, "do_rescale": False, "do_normalize": False, "do_resize": False}
    image = inspect_checkpoint(make(tmp_path, {**IMAGE, "num_channels": 1}, processor=processor)).image
    assert (image.height, image.width, image.channels) == (32, 32, 1)
    assert (image.rescale, image.mean, image.std) == (1.0, (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"size": {"shortest_edge": 224}}, "shortest_edge"),
        ({"do_center_crop": True, "crop_size": {"height": 16, "width": 16}}, "crops 32 x 48"),
        ({"resample": 1}, "lanczos"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_preprocessing_that_a_bundle_cannot_do_is_named(tmp_path, change, match):
    refused(make(tmp_path, IMAGE, processor={**VIT, **change}), match)


def test_a_crop_to_the_same_size_is_no_crop(tmp_path):
    processor = {**VIT, "do_center_crop": True, "crop_size": {"height": 32, "width": 48}}
    assert inspect_checkpoint(make(tmp_path, IMAGE, processor=processor)).image.height == 32


def test_an_image_checkpoint_without_preprocessing_is_refused(tmp_path):
    refused(make(tmp_path, IMAGE), "has no preprocessor_config.json")


def test_a_folder_without_weights_is_refused(tmp_path):
    refused(make(tmp_path, TEXT, weights=False), "has no weights")


def test_weights_of_another_framework_are_named(tmp_path):
    folder = make(tmp_path, TEXT, weights=False)
    (folder / "tf_model.h5").write_bytes(b"x")
    refused(folder, r"tf_model\.h5 cannot be used")


def test_a_weight_file_that_is_cut_short_is_refused(tmp_path):
    folder = make(tmp_path, TEXT)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    refused(folder, f"has {len(whole) - 1} bytes instead of {len(whole)}")
    (folder / "model.safetensors").write_bytes(whole[:4])
    refused(folder, "cut short")


def test_a_missing_shard_is_named(tmp_path):
    folder = make(tmp_path, TEXT, weights=False)
    save_file({"a": np.zeros(2, np.float32)}, folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    refused(folder, r"lacks two\.safetensors of 2")
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert inspect_checkpoint(folder).weights == (folder / "one.safetensors",)


@pytest.mark.parametrize(
    "architecture", ["BertForQuestionAnswering", "T5ForConditionalGeneration", "GPT2LMHeadModel", "CLIPModel"]
)
def test_an_unsupported_architecture_is_named_with_the_supported_tasks(tmp_path, architecture):
    folder = make(tmp_path, {**TEXT, "architectures": [architecture]})
    with pytest.raises(CheckpointError, match=architecture) as caught:
        inspect_checkpoint(folder)
    assert "text-classification" in caught.value.remedy
    assert "image-classification" in caught.value.remedy


def test_an_encoder_and_a_decoder_in_one_is_no_encoder(tmp_path):
    refused(make(tmp_path, {**TEXT, "architectures": ["T5Model"], "is_encoder_decoder": True}), "T5Model")


def test_another_task_than_expected_is_refused(tmp_path):
    folder = make(tmp_path, TEXT)
    refused(folder, "does text-classification, not image-classification", task="image-classification")
    refused(folder, "'summarization' is not supported", task="summarization")
    assert inspect_checkpoint(folder, task="text-classification").task == "text-classification"


def test_a_tagger_tells_its_labels_and_a_language_model_has_none(tmp_path):
    tagger = inspect_checkpoint(make(tmp_path, {**TEXT, "architectures": ["BertForTokenClassification"]}))
    assert (tagger.task, tagger.labels, tagger.pooling) == ("token-classification", ("neg", "pos", "mid"), None)
    (tmp_path / "lm").mkdir()
    decoder = inspect_checkpoint(make(tmp_path / "lm", {**TEXT, "architectures": ["LlamaForCausalLM"]}))
    assert (decoder.task, decoder.labels, decoder.max_length) == ("text-generation", (), 512)


MODULES = ("Transformer", "Pooling", "Normalize")


def sentence_encoder(tmp_path, *, kinds=MODULES, pooling=None, settings=None, architecture="BertModel"):
    """A folder as sentence-transformers writes it."""
    folder = make(tmp_path, {**TEXT, "architectures": [architecture]})
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], start=1))]
    rows = [
        {"idx": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings or {"max_seq_length": 128}))
    return folder


def test_a_sentence_encoder_tells_its_pooling_and_its_own_limit(tmp_path):
    found = inspect_checkpoint(sentence_encoder(tmp_path))
    assert (found.task, found.labels, found.max_length) == ("feature-extraction", (), 128)
    assert found.pooling == Pooling("mean", normalize=True)


@pytest.mark.parametrize(
    ("pooling", "kinds", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, MODULES[:2], Pooling("cls", False)),
        ({"pooling_mode_max_tokens": True}, MODULES, Pooling("max", True)),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, MODULES[:2], Pooling("mean_sqrt_len", False)),
        ({"pooling_mode": ["cls"]}, MODULES, Pooling("cls", True)),
    ],
)
def test_poolings_are_read_in_both_forms(tmp_path, pooling, kinds, expected):
    assert inspect_checkpoint(sentence_encoder(tmp_path, pooling=pooling, kinds=kinds)).pooling == expected


def test_a_plain_encoder_is_pooled_by_assumption_and_says_so(tmp_path):
    found = inspect_checkpoint(make(tmp_path, {**TEXT, "architectures": ["MPNetModel"]}))
    assert (found.pooling.mode, found.pooling.normalize) == ("mean", True)
    assert "assumed" in str(found.pooling)


def test_an_encoder_saved_with_another_head_is_one_where_its_folder_says_so(tmp_path):
    assert inspect_checkpoint(sentence_encoder(tmp_path, architecture="BertForMaskedLM")).task == "feature-extraction"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kinds": ("Transformer", "Pooling", "Dense")}, "module Dense"),
        ({"kinds": ("Transformer", "Normalize", "Pooling")}, "Transformer → Normalize → Pooling"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, r"mean \+ cls"),
        ({"pooling": {"pooling_mode_lasttoken": True}}, "lasttoken"),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "weightedmean"),
        ({"pooling": {"word_embedding_dimension": 3}}, "pooling none"),
        ({"settings": {"do_lower_case": True}}, "do_lower_case"),
    ],
)
def test_what_a_graph_would_not_do_to_a_text_is_refused_by_name(tmp_path, options, match):
    refused(sentence_encoder(tmp_path, **options), match)


def test_a_prompt_before_every_text_is_refused(tmp_path):
    folder = sentence_encoder(tmp_path)
    (folder / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    refused(folder, "the prompt 'query'")


def test_a_broken_list_of_modules_is_refused(tmp_path):
    folder = sentence_encoder(tmp_path)
    for text, match in (("{}", "no JSON list"), ("[", "cannot be read"), ("[]", "has the module")):
        (folder / "modules.json").write_text(text)
        refused(folder, match)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_heads_that_do_not_give_one_label_are_refused(tmp_path, problem):
    refused(make(tmp_path, {**TEXT, "problem_type": problem}), problem.replace("_", " "))


def test_a_single_label_is_a_regression(tmp_path):
    refused(make(tmp_path, {**TEXT, "id2label": {"0": "score"}}), "regression")


def test_a_repeated_label_is_refused(tmp_path):
    refused(make(tmp_path, {**TEXT, "id2label": {"0": "a", "1": "a"}}), "'a' occurs twice")


def test_a_text_checkpoint_needs_a_tokenizer(tmp_path):
    folder = make(tmp_path, TEXT)
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer")


def test_what_is_no_checkpoint_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "no checkpoint at")
    refused(tmp_path, r"has no config\.json")
    (tmp_path / "config.json").write_text("[")
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "config.json", "is a file")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# x", ("apache-2.0",)),
        ("README.md", "---\nlicense:\n- mit\n- cc-by-4.0\ntags: [a]\n---\n", ("mit", "cc-by-4.0")),
        ("README.md", "license: not front matter", ()),
        ("LICENSE", "Apache License\nVersion 2.0", ("apache-2.0",)),
        ("LICENSE.txt", "Our own words", ("see LICENSE.txt",)),
    ],
)
def test_the_licence_is_read_from_card_or_file(tmp_path, name, text, expected):
    folder = make(tmp_path, TEXT)
    (folder / name).write_text(text)
    assert inspect_checkpoint(folder).licences == expected


def test_the_digest_follows_the_content(tmp_path):
    found = inspect_checkpoint(make(tmp_path, TEXT))
    before = found.digest()
    assert found.digest() == before
    (found.path / "tokenizer.json").write_text("{ }")
    assert found.digest() != before
