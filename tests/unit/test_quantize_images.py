"""What an image processor's file becomes in a bundle, and what is refused instead of done differently."""

from __future__ import annotations

import json

import pytest

from edgewise.bundle import FixedSize, ShortestEdge
from edgewise.errors import CheckpointError
from edgewise.quantize.image_processors import PROCESSORS, short_name
from edgewise.quantize.images import NAME, read_preprocessing, translate


def translated(name="ViT", channels=3, image_size=None, **settings):
    named = {"image_processor_type": f"{name}ImageProcessor"} if name else {}
    return translate({**named, **settings}, channels=channels, image_size=image_size, where="the file")


def geometry(name, **settings):
    found = translated(name, **settings)
    return found.height, found.width, found.crop_from


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("ViT", {"size": 32}, (32, 32, None)),
        ("ViT", {"size": [32, 48]}, (32, 48, None)),
        ("ViT", {"size": {"height": 32, "width": 48}}, (32, 48, None)),
        ("DeiT", {}, (224, 224, FixedSize(256, 256))),
        ("DeiT", {"do_center_crop": False}, (256, 256, None)),
        ("DeiT", {"do_center_crop": None}, (256, 256, None)),
        ("DeiT", {"size": 224, "crop_size": 224}, (224, 224, None)),
        ("DeiT", {"size": None, "crop_size": None}, (224, 224, FixedSize(256, 256))),
        ("Beit", {"size": 40, "crop_size": {"height": 50, "width": 30}}, (50, 30, FixedSize(40, 40))),
        ("CLIP", {"size": 336, "crop_size": 336}, (336, 336, ShortestEdge(336))),
        ("Bit", {"size": {"height": 60, "width": 50}}, (224, 224, FixedSize(60, 50))),
        ("MobileNetV2", {}, (224, 224, ShortestEdge(256))),
        ("Levit", {"size": 100, "crop_size": 90}, (90, 90, ShortestEdge(114))),
        ("ConvNext", {"size": 224}, (224, 224, ShortestEdge(256))),
        ("ConvNext", {"size": {"shortest_edge": 383}, "crop_pct": 0.95}, (383, 383, ShortestEdge(403))),
        ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.95}, (384, 384, None)),
        ("PoolFormer", {}, (224, 224, ShortestEdge(248))),
        ("PoolFormer", {"crop_pct": None}, (224, 224, ShortestEdge(224))),
        ("PoolFormer", {"size": {"height": 90, "width": 45}}, (224, 224, FixedSize(100, 50))),
    ],
)
def test_size_and_crop(name, settings, expected):
    assert geometry(name, **settings) == expected


@pytest.mark.parametrize("spelling", ["ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor"])
def test_a_class_has_three_names(spelling):
    assert short_name(spelling) == "ViT"
    assert translated("", image_processor_type=spelling).height == 224
    assert translated("", feature_extractor_type=spelling).height == 224


@pytest.mark.parametrize(("model_type", "edge"), [("resnet", None), ("mobilenet_v1", ShortestEdge(256))])
def test_a_file_without_a_class_is_read_as_that_of_the_model(model_type, edge):
    found = translate({}, channels=3, image_size=None, where="the file", model_type=model_type)
    assert found.crop_from == edge


def test_a_model_without_a_known_processor_is_refused():
    with pytest.raises(CheckpointError, match=r"names no image_processor_type.*'perceiver'"):
        translate({}, channels=3, image_size=None, where="the file", model_type="perceiver")


def test_channels_in_reverse_order():
    assert translated("MobileViT").bgr
    assert not translated("MobileViT", do_flip_channel_order=False).bgr
    assert not translated("MobileViT", channels=1).bgr
    assert (translated("MobileViT").mean, translated("MobileViT").std) == ((0.0,) * 3, (1.0,) * 3)


def test_the_second_division_of_efficientnet_is_folded_into_the_deviation():
    settings = {"image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.25, 2.0]}
    assert translated("EfficientNet", **settings).std == (0.25, 0.0625, 4.0)
    assert translated("EfficientNet", include_top=False, **settings).std == (0.5, 0.25, 2.0)
    plain = translated("EfficientNet", do_normalize=False, **settings)
    assert (plain.mean, plain.std) == ((0.0,) * 3, (0.5, 0.25, 2.0))
    shifted = translated("EfficientNet", rescale_offset=True, **settings)
    assert shifted.mean == (1.5, 1.25, 1.0)
    assert translated("EfficientNet", rescale_offset=True, do_rescale=False, **settings).mean == (0.5, 0.25, 0.0)


def test_one_number_stands_for_every_channel():
    found = translated(image_mean=0.25, image_std=2)
    assert (found.mean, found.std) == ((0.25,) * 3, (2.0,) * 3)


def test_what_changes_no_picture_is_let_through():
    assert translated("Beit", do_reduce_labels=True) == translated("Beit")
    assert translated("CLIP", do_convert_rgb=True) == translated("CLIP")
    nulls = dict.fromkeys(("do_pad", "size_divisor", "pad_size", "crop_size", "do_center_crop", "do_convert_rgb"))
    assert translated("ViT", **nulls) == translated("ViT")


def test_a_processor_that_does_not_resize_takes_the_size_of_the_model():
    found = translated(do_resize=False, image_size=[20, 30])
    assert (found.height, found.width, found.crop_from) == (20, 30, None)


REFUSED = {
    "keeps proportions, no crop": ("CLIP", {"do_center_crop": False, "size": 224}, "has size 224: it keeps"),
    "edge for a class without": ("ViT", {"size": {"shortest_edge": 224}}, r'has size \{"shortest_edge": 224\}'),
    "edge for a fixed class": ("DeiT", {"size": {"shortest_edge": 224}}, "has size"),
    "longest edge": ("CLIP", {"size": {"shortest_edge": 224, "longest_edge": 500}}, "longest_edge"),
    "square for ConvNext": ("ConvNext", {"size": {"height": 224, "width": 224}}, "takes a shortest_edge"),
    "three sides": ("ViT", {"size": [3, 224, 224]}, r"size \[3, 224, 224\]"),
    "no side": ("ViT", {"size": 0}, "has size 0"),
    "half a pixel": ("ViT", {"size": {"height": 1.5, "width": 2}}, "1.5"),
    "true pixels": ("ViT", {"size": True}, "has size true"),
    "giant": ("ViT", {"size": 1 << 30}, "has size 1073741824"),
    "crop by edge": ("CLIP", {"crop_size": {"shortest_edge": 224}}, r"has crop_size \{"),
    "crop that the class leaves out": (
        "ViT",
        {"do_center_crop": True, "crop_size": 200},
        "crops 224 x 224 pixels to 200",
    ),
    "crop that ConvNext leaves out": ("ConvNext", {"do_center_crop": True, "crop_size": 200}, "crops 384 x 384"),
    "crop without resizing": ("DeiT", {"do_resize": False}, "has do_resize false: a bundle crops only"),
    "neither size": ("ConvNext", {"do_resize": False}, "names no image_size"),
    "no part": ("ConvNext", {"size": 224, "crop_pct": 0}, "has crop_pct 0"),
    "more than all": ("PoolFormer", {"crop_pct": 7}, "has crop_pct 7"),
    "lanczos": ("ViT", {"resample": 1}, "has resample 1: a bundle has no filter lanczos"),
    "no filter": ("ViT", {"resample": 77}, "has resample 77: no such filter"),
    "filter by name": ("ViT", {"resample": "bicubic"}, 'has resample "bicubic"'),
    "filter list": ("ViT", {"resample": [3]}, r"has resample \[3\]"),
    "padding": ("ViT", {"do_pad": True}, "has do_pad true"),
    "new step": ("ViT", {"do_sharpen": 2}, "has do_sharpen 2"),
    "divisor": ("ViT", {"size_divisor": 32}, "has size_divisor 32"),
    "square by switch": ("CLIP", {"use_square_size": True}, "has use_square_size true"),
    "flip elsewhere": ("ViT", {"do_flip_channel_order": True}, "has do_flip_channel_order true"),
    "normalising MobileViT": ("MobileViT", {"do_normalize": True}, "has do_normalize true"),
    "offset elsewhere": ("ViT", {"rescale_offset": True}, "has rescale_offset true"),
    "offset of videos": ("EfficientNet", {"offset": True}, "has offset true"),
    "no factor": ("ViT", {"rescale_factor": 0}, "has rescale_factor 0"),
    "factor as text": ("ViT", {"rescale_factor": "1/255"}, 'has rescale_factor "1/255"'),
    "mean of two": ("ViT", {"image_mean": [0.5, 0.5]}, r"has image_mean \[0.5, 0.5\]: the model takes 3"),
    "mean of words": ("ViT", {"image_mean": ["a", "b", "c"]}, "has image_mean"),
    "infinite mean": ("ViT", {"image_mean": [float("inf")] * 3}, "has image_mean"),
    "zero deviation": ("ViT", {"image_std": [0.5, 0.0, 0.5]}, r"has image_std \[0.5, 0.0, 0.5\]: nothing can"),
    "other class": ("Perceiver", {}, "is for PerceiverImageProcessor, which is not supported"),
    "patches": ("Siglip2", {}, "is for Siglip2ImageProcessor"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_bundle_cannot_do_is_refused_with_setting_and_value(what):
    name, settings, message = REFUSED[what]
    with pytest.raises(CheckpointError, match=message) as caught:
        translated(name, **settings)
    assert caught.value.remedy
    assert "the file" in caught.value.problem


def test_grey_models_need_their_own_mean():
    with pytest.raises(CheckpointError, match="has image_mean left out: the model takes 1 channels"):
        translated(channels=1)
    assert translated(channels=1, image_mean=[0.5], image_std=[0.5]).channels == 1


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_class_has_defaults_that_a_bundle_can_hold(name):
    found = translated(name)
    assert found.height > 0
    assert len(found.mean) == len(found.std) == 3


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read"), ("[]", "no JSON object")])
def test_a_broken_file(content, message, tmp_path):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_preprocessing(tmp_path, {})


def test_the_model_says_how_many_channels(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5]}))
    assert read_preprocessing(tmp_path, {"num_channels": 1, "model_type": "vit"}).channels == 1
    with pytest.raises(CheckpointError, match="takes 4 channels"):
        read_preprocessing(tmp_path, {"num_channels": 4})
