"""Checkpoints through torch, on tiny random ones that transformers itself writes."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewise.cloud.checkpoint import Checkpoint
from edgewise.cloud.engine import load_engine as load_any
from edgewise.cloud.torch_engine import TorchModel
from edgewise.errors import CheckpointError, InputError

pytestmark = pytest.mark.slow


def load_engine(folder, **more):
    return load_any(folder, engine="torch", **more)


TEXTS = [
    "corn",
    "the price of gold rose",
    "ship " * 20,
    "gold fell",
    "a b c d e f g",
    "corn rose to the ship",
    "z " * 9,
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tiny_checkpoints) -> Path:
    return tiny_checkpoints.text_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-bert")


@pytest.fixture
def copy(bert, tmp_path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "copy"))


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta"])
def test_a_batch_answers_as_its_items_do_alone(family, tmp_path, tiny_checkpoints):
    engine = load_engine(tiny_checkpoints.text_checkpoint(tmp_path / family, family), threads=1)
    together = engine.predict(TEXTS)
    alone = [engine.predict([text])[0] for text in TEXTS]
    assert [p.output for p in together] == [p.output for p in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logits.dtype == np.float32
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-5)
    assert len({p.logits.tobytes() for p in alone}) == len(TEXTS)


def test_logits_are_those_of_the_model_itself(bert, tiny_checkpoints):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    encoded = AutoTokenizer.from_pretrained(bert)(TEXTS[1], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**encoded).logits[0].numpy()
    got = load_engine(bert, threads=1).predict([TEXTS[1]])[0]
    np.testing.assert_allclose(got.logits, expected, rtol=0, atol=1e-6)
    assert got.output == tiny_checkpoints.LABELS[int(expected.argmax())]


def test_half_precision_weights_are_computed_in_float32(bert, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    half = Path(shutil.copytree(bert, tmp_path / "half"))
    AutoModelForSequenceClassification.from_pretrained(bert, dtype=torch.bfloat16).save_pretrained(half)
    logits = load_engine(half, threads=1).predict(["corn"])[0].logits
    rounded = torch.from_numpy(logits).to(torch.bfloat16).to(torch.float32).numpy()
    assert not np.array_equal(logits, rounded)


def test_a_text_beyond_the_positions_is_cut(tmp_path, tiny_checkpoints):
    # RoBERTa's positions start behind its padding index: 40 embeddings reach 39 tokens.
    folder = tiny_checkpoints.text_checkpoint(tmp_path / "roberta", "Roberta")
    tiny_checkpoints.tokenizer(folder, max_length=10**9)
    engine = load_engine(folder, threads=1)
    long, longer = engine.predict(["corn " * 100, "corn " * 37])
    assert np.allclose(long.logits, longer.logits, atol=1e-5)


def test_the_info_says_what_it_serves(bert):
    info = load_engine(bert, threads=1).info
    assert (info.name, info.task, info.input, info.role) == ("tiny-bert", "text-classification", "text", "cloud")
    assert info.labels == ("corn", "gold", "ship")
    assert info.version.startswith("sha256:")
    assert len(info.version) == 71
    assert load_engine(bert, threads=1, name="news").info.name == "news"


def test_a_task_that_is_not_the_models_is_refused(bert):
    with pytest.raises(CheckpointError, match="not for image-classification"):
        load_engine(bert, threads=1, task="image-classification")


def test_torch_weights_files_are_read_too(bert, tmp_path, tiny_checkpoints):
    folder = tiny_checkpoints.text_checkpoint(tmp_path / "torchbin", safe_serialization=False)
    assert (folder / "pytorch_model.bin").is_file()
    expected = load_engine(bert, threads=1).predict(["gold"])[0].logits
    np.testing.assert_allclose(load_engine(folder, threads=1).predict(["gold"])[0].logits, expected, atol=1e-6)


@pytest.mark.parametrize("item", [b"png", np.zeros((8, 8), np.uint8), "\ud800"])
def test_what_is_no_text_is_refused(bert, item):
    with pytest.raises(InputError):
        load_engine(bert, threads=1).predict(["corn", item])


@pytest.mark.parametrize(("mode", "normalize"), [("mean", True), ("cls", False), ("max", True)])
def test_an_encoder_pools_as_the_quantizers_reference_does(tmp_path, mode, normalize, tiny_checkpoints):
    from edgewise.edge.pooling import read_pooling
    from edgewise.quantize.items import Item
    from edgewise.quantize.reference import Reference

    folder = tiny_checkpoints.sentence_encoder(tmp_path / "encoder", mode, normalize)
    engine = load_engine(folder, threads=1)
    assert (engine.info.task, engine.info.labels, engine.info.input) == ("feature-extraction", (), "text")
    reference = Reference.load(str(folder), "feature-extraction", 12, read_pooling(folder))
    for text, got in zip(TEXTS, engine.predict(TEXTS), strict=True):
        expected = reference.answer(Item(text=text))
        np.testing.assert_allclose(got.embedding, expected, rtol=0, atol=1e-5)
        assert got.output == tuple(got.embedding.tolist())
        assert got.logits is None


def test_an_encoder_that_names_no_pooling_takes_the_mean_at_length_one(tmp_path, tiny_checkpoints):
    engine = load_engine(tiny_checkpoints.text_checkpoint(tmp_path / "base", head="Model"), threads=1)
    (prediction,) = engine.predict(["corn rose"])
    assert np.linalg.norm(prediction.embedding) == pytest.approx(1, abs=1e-6)


def test_an_encoders_pooling_is_part_of_its_version(tmp_path, tiny_checkpoints):
    versions = {
        Checkpoint.open(tiny_checkpoints.sentence_encoder(tmp_path / f"{mode}{normalize}", mode, normalize)).version
        for mode in ("mean", "cls")
        for normalize in (True, False)
    }
    assert len(versions) == 4


def test_a_head_named_but_not_trained_is_refused(tmp_path, tiny_checkpoints):
    folder = tiny_checkpoints.text_checkpoint(tmp_path / "base", head="Model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(CheckpointError, match="classifier"):
        load_engine(folder, threads=1)


@pytest.mark.parametrize("name", ["nowhere", "bert-base-uncased"])
def test_a_folder_that_is_not_there_never_reaches_transformers(tmp_path, monkeypatch, name):
    import transformers

    def reached(*_, **__):
        raise AssertionError("transformers looks for a missing folder in a hub, for minutes")

    for family in ("AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, family), "from_pretrained", reached)
    monkeypatch.chdir(tmp_path)
    for load in (load_engine, lambda folder: TorchModel.load(Checkpoint.open(folder))):
        with pytest.raises(CheckpointError, match=name):
            load(Path(name))


@pytest.mark.parametrize("damage", ["cut weights", "wrong shape", "no tokenizer", "broken tokenizer", "unknown model"])
def test_a_damaged_folder_is_refused_with_its_path(copy, damage):
    config = json.loads((copy / "config.json").read_text())
    if damage == "cut weights":
        (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-64])
    elif damage == "wrong shape":
        (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    elif damage == "no tokenizer":
        for file in copy.glob("*token*"):
            file.unlink()
    elif damage == "broken tokenizer":
        (copy / "tokenizer.json").write_text("{")
    else:
        (copy / "config.json").write_text(json.dumps(config | {"model_type": "xyzzy"}))
    with pytest.raises(CheckpointError, match="copy") as caught:
        load_engine(copy, threads=1)
    assert caught.value.remedy


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_kind_and_size_answer_alone_as_together(channels, tmp_path, tiny_checkpoints):
    from PIL import Image

    engine = load_engine(tiny_checkpoints.vit_checkpoint(tmp_path / "tiny-vit", channels), threads=1)
    assert (engine.info.task, engine.info.input) == ("image-classification", "image")
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (13, 11, 3), dtype=np.uint8)).save(file, format="PNG")
    items = [
        grey,
        grey[:, :, np.newaxis],
        grey.astype(np.float32) + 0.25,
        random.random((9, 5), dtype=np.float32) * 255,
        random.integers(0, 256, (20, 7, 3), dtype=np.uint8),
        file.getvalue(),
    ]
    together = engine.predict(items)
    for item, one in zip(items, together, strict=True):
        other = engine.predict([item])[0]
        assert one.output == other.output
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(together[0].logits, together[1].logits)
    # A quarter of a grey level is neither rounded away nor taken for another scale.
    assert 0 < np.abs(together[0].logits - together[2].logits).max() < 0.1


def test_an_images_pixels_and_its_file_answer_alike(tmp_path, tiny_checkpoints):
    from PIL import Image

    engine = load_engine(tiny_checkpoints.vit_checkpoint(tmp_path / "vit", 3), threads=1)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    raw, encoded = engine.predict([pixels, file.getvalue()])
    np.testing.assert_allclose(raw.logits, encoded.logits, atol=1e-6)


@pytest.mark.parametrize(
    "item", ["text", b"no image", np.zeros((8, 8, 2), np.uint8), np.zeros(8, np.uint8), np.full((8, 8), np.nan)]
)
def test_what_is_no_image_is_refused(tmp_path, item, tiny_checkpoints):
    engine = load_engine(tiny_checkpoints.vit_checkpoint(tmp_path / "vit", 3), threads=1)
    with pytest.raises(InputError):
        engine.predict([item])


# Small models of families that crop, each with the processor that its checkpoints carry.
FAMILIES = {
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
               "ConvNext", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
                 "ConvNext", {"size": {"shortest_edge": 32}}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.1, "image_size": 32},
                     "MobileNetV2", {"size": {"shortest_edge": 37}, "crop_size": 32}),
    "deit": ("DeiT", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                      "image_size": 28, "patch_size": 7},
             "DeiT", {"size": 32, "crop_size": 28}),
    "swin": ("Swin", {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
                      "window_size": 4},
             "ViT", {"size": 16, "resample": 3}),
    "unresized": ("ViT", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                          "image_size": 32, "patch_size": 8},
                  "ViT", {"do_resize": False, "resample": 3, "size": 20}),
    "mobilevit": ("MobileViT", {"image_size": 32, "hidden_sizes": [16, 20, 24], "num_attention_heads": 2,
                                "neck_hidden_sizes": [4, 8, 8, 16, 20, 24, 32]},
                  "MobileViT", {"size": 36, "crop_size": 32}),
    "efficientnet": ("EfficientNet", {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1,
                                      "hidden_dim": 128},
                     "EfficientNet", {"size": 32}),
    "levit": ("Levit", {"image_size": 32, "hidden_sizes": [16, 16, 16], "num_attention_heads": [2, 2, 2],
                        "depths": [1, 1, 1], "key_dim": [4, 4, 4], "drop_path_rate": 0},
              "Levit", {"size": 28, "crop_size": 32}),
}  # fmt: skip


def family_checkpoint(folder: Path, name: str, tiny_checkpoints) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    family, config, processor, settings = FAMILIES[name]
    labels = {"id2label": tiny_checkpoints.LABELS, "label2id": {v: k for k, v in tiny_checkpoints.LABELS.items()}}
    model = getattr(transformers, f"{family}ForImageClassification")(
        getattr(transformers, f"{family}Config")(**config, **labels)
    )
    _let_signals_through(model)
    model.eval().save_pretrained(folder)
    getattr(transformers, f"{processor}ImageProcessor")(**settings).save_pretrained(folder)
    return folder


def _let_signals_through(model) -> None:
    """Fresh weights of 0.02 let a deep network forget its picture, and then any two preprocessings would agree."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)


def photos() -> list:
    """Files of several modes and shapes, and raw pixels."""
    from PIL import Image

    random = np.random.default_rng(3)
    items = []
    for mode, size in [("RGB", (61, 40)), ("L", (33, 70)), ("RGBA", (32, 32)), ("P", (5, 9)), ("CMYK", (90, 31))]:
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stream = io.BytesIO()
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)
        picture.save(stream, format="JPEG" if mode == "CMYK" else "PNG")
        items.append(stream.getvalue())
    return [*items, random.integers(0, 256, (40, 50, 3), dtype=np.uint8), random.integers(0, 256, (32, 32))]


@pytest.mark.filterwarnings("ignore")  # the tracer warns of each branch in a model's code
@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_and_its_bundle_answer_alike(name, tmp_path, tiny_checkpoints):
    from optimum.exporters.onnx import onnx_export_from_model
    from transformers import AutoModelForImageClassification

    from edgewise.quantize.pack import pack_onnx

    folder = family_checkpoint(tmp_path / name, name, tiny_checkpoints)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    onnx_export_from_model(
        model, tmp_path / "onnx", task="image-classification", do_validation=False, no_post_process=True
    )
    pack_onnx(
        tmp_path / "onnx" / "model.onnx",
        tmp_path / "bundle",
        labels=list(tiny_checkpoints.LABELS.values()),
        preprocessor=folder,
    )
    cloud = load_engine(folder, threads=1).predict(photos())
    edge = load_any(tmp_path / "bundle", threads=1).predict(photos())
    logits = np.stack([one.logits for one in cloud])
    scale = logits.std()
    assert np.ptp(logits, axis=0).max() > 1e-3 * scale > 0, "these pictures must differ for the model"
    np.testing.assert_allclose(np.stack([one.logits for one in edge]), logits, rtol=0, atol=1e-4 * scale)
    assert [one.output for one in edge] == [one.output for one in cloud]


LOADS_QUIETLY_OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    print("network", args); sys.exit(9)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from pathlib import Path
from edgewise.cloud.engine import load_engine
for folder in sys.argv[2:]:
    engine = load_engine(Path(folder), threads=1, engine=sys.argv[1] if folder == sys.argv[-1] else "torch")
import numpy as np
engine.predict([np.random.default_rng(0).random((8, 8), dtype=np.float32)])
"""


def test_loading_and_answering_prints_nothing_and_reaches_no_network(bert, tmp_path, tiny_checkpoints):
    vit = tiny_checkpoints.vit_checkpoint(tmp_path / "vit", 3)
    sharded = tmp_path / "sharded"
    from transformers import AutoModelForSequenceClassification

    shutil.copytree(bert, sharded, ignore=shutil.ignore_patterns("model.safetensors"))
    AutoModelForSequenceClassification.from_pretrained(bert).save_pretrained(sharded, max_shard_size="4KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    done = subprocess.run(
        [sys.executable, "-c", LOADS_QUIETLY_OFFLINE, "onnx", bert, sharded, vit],
        capture_output=True,
        text=True,
        timeout=120,
        env={key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
