"""A bundle sees the very picture that transformers' own image processor gives to the model.

The processors are the slow ones (Pillow and numpy), which is what a checkpoint is loaded with here. Where a setting is
not folded into another one, the tensors are equal to the last bit.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgewise.bundle import ImagePreprocessing, ShortestEdge
from edgewise.cloud.readers import ImageReader
from edgewise.edge import decode
from edgewise.edge.image import ImageEncoder
from edgewise.errors import InputError
from edgewise.quantize.images import NAME, read_preprocessing

pytestmark = pytest.mark.slow

MODEL = {"model_type": "unknown", "num_channels": 3}


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth waves under noise: both slow and fast changes of colour, as in a photograph."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (5 + 3 * i) + i) * np.cos(columns / (7 + 2 * i)) for i in range(3)]
    noise = np.random.default_rng(width * height).normal(0, 20, (height, width, 3))
    pixels = np.clip(np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def as_file(picture: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind)
    return stream.getvalue()


def transparent(width: int, height: int) -> Image.Image:
    picture = photo(width, height, "RGBA")
    picture.putalpha(Image.fromarray(np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)))
    return picture


PICTURES = {
    "landscape": as_file(photo(317, 211)),
    "portrait": as_file(photo(97, 301), "JPEG"),
    "square": as_file(photo(64, 64)),
    "already 224": as_file(photo(224, 224)),
    "tiny": as_file(photo(3, 5)),
    "one pixel": as_file(photo(1, 1)),
    "elongated": as_file(photo(400, 11)),
    "grey": as_file(photo(130, 90, "L")),
    "black and white": as_file(photo(33, 34, "1")),
    "transparent": as_file(transparent(120, 150)),
    "grey and alpha": as_file(photo(60, 81, "LA")),
    "palette": as_file(photo(150, 101).convert("P", palette=Image.Palette.ADAPTIVE, colors=37)),
    "gif": as_file(photo(75, 50), "GIF"),
    "cmyk": as_file(photo(141, 99, "CMYK"), "JPEG"),
}

# The defaults of every class, then sizes that make each rounding rule matter.
EXACT = {
    "ViT": [
        {},
        {"size": {"height": 37, "width": 53}, "resample": 0},
        {"do_rescale": False, "do_normalize": False},
        {"do_rescale": False},
        {"do_normalize": False, "rescale_factor": 1 / 127.5},
        {"image_mean": 0.3, "image_std": [0.1, 0.2, 0.7], "do_convert_rgb": True, "size": {"height": 5, "width": 3}},
    ],
    "DeiT": [{}, {"size": {"height": 61, "width": 47}, "crop_size": {"height": 50, "width": 50}}],
    "Beit": [{}, {"do_center_crop": False}, {"size": {"height": 40, "width": 41}, "crop_size": 38}],
    "EfficientFormer": [{}, {"size": {"height": 33, "width": 44}}],
    "EfficientNet": [
        {"include_top": False},
        {"include_top": False, "do_center_crop": True},
        {"include_top": True, "do_normalize": False},
    ],
    "Bit": [{}, {"size": {"shortest_edge": 51}, "crop_size": {"height": 48, "width": 37}}],
    "CLIP": [{}, {"size": {"height": 70, "width": 60}, "crop_size": 49}, {"size": 40, "crop_size": 41}],
    "ViTHybrid": [{}],
    "ConvNext": [
        {},
        {"size": {"shortest_edge": 224}},
        {"size": {"shortest_edge": 63}, "crop_pct": 0.9},
        {"size": 97, "crop_pct": 1.0},
        {"size": {"shortest_edge": 383}, "resample": 3},
        {"size": {"shortest_edge": 385}},
    ],
    "MobileNetV1": [{}, {"size": {"shortest_edge": 45}, "crop_size": {"height": 39, "width": 40}}],
    "MobileNetV2": [{}, {"size": {"height": 45, "width": 30}, "crop_size": {"height": 39, "width": 40}}],
    "MobileViT": [{}, {"size": {"shortest_edge": 77}, "crop_size": 64}, {"do_flip_channel_order": False}],
    "Levit": [{}, {"size": {"shortest_edge": 31}, "crop_size": 31}, {"size": {"height": 31, "width": 33}}],
    "PoolFormer": [
        {},
        {"size": {"shortest_edge": 65}, "crop_pct": 0.95, "crop_size": 65},
        {"size": {"height": 65, "width": 65}},
        {"size": {"height": 65, "width": 44}, "crop_pct": 0.77},
    ],
    "Pvt": [{}, {"size": {"height": 31, "width": 33}}],
    "Segformer": [{"size": {"height": 64, "width": 96}, "do_reduce_labels": True}],
    "Siglip": [{}, {"size": {"height": 31, "width": 33}, "do_convert_rgb": True}],
}
# Two divisions in one, or a mean moved by one: the last bits of a float32 may differ.
FOLDED = {
    "EfficientNet": [
        {},
        {"size": {"height": 55, "width": 40}, "do_center_crop": True, "crop_size": {"height": 49, "width": 48}},
        {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False},
        {"rescale_offset": True, "rescale_factor": 1 / 127.5, "image_std": [0.4785, 0.4739, 0.4749]},
        {"rescale_offset": True, "do_normalize": False, "include_top": False},
    ],
}


def cases(table):
    return [pytest.param(name, options, id=f"{name}-{n}") for name in table for n, options in enumerate(table[name])]


def processor_of(name, options):
    import transformers

    return getattr(transformers, f"{name}ImageProcessor")(**options)


def tensors(processor, preprocessing, data: bytes):
    """The tensor of transformers and that of a bundle, both of shape (3, height, width)."""
    picture = decode(data).convert("RGB")
    # Named, because transformers takes a picture of 3 rows for one whose channels come first.
    theirs = processor(picture, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    theirs = theirs.astype(np.float32)
    return theirs, ImageEncoder(preprocessing, "pixel_values").encode(data)["pixel_values"][0]


@pytest.mark.parametrize(("name", "options"), cases(EXACT))
def test_tensors_are_those_of_transformers_to_the_last_bit(name, options, tmp_path):
    processor = processor_of(name, options)
    processor.save_pretrained(tmp_path)
    preprocessing = read_preprocessing(tmp_path, MODEL)
    for what, data in PICTURES.items():
        theirs, ours = tensors(processor, preprocessing, data)
        np.testing.assert_array_equal(ours, theirs, err_msg=what)


SIDE = st.integers(1, 60)


@given(width=SIDE, height=SIDE, edge=SIDE, crop=st.tuples(SIDE, SIDE))
def test_any_size_edge_and_crop_round_as_transformers_does(width, height, edge, crop):
    from transformers.image_transforms import center_crop, get_resize_output_image_size, resize

    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    size = get_resize_output_image_size(pixels, edge, default_to_square=False, input_data_format="channels_last")
    resized = resize(pixels, size, resample=3, input_data_format="channels_last")
    theirs = center_crop(resized, crop, input_data_format="channels_last")
    ours = ImageEncoder(
        ImagePreprocessing(
            height=crop[0],
            width=crop[1],
            channels=3,
            rescale=1.0,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            resample="bicubic",
            crop_from=ShortestEdge(edge),
        ),
        "pixel_values",
    )
    np.testing.assert_array_equal(ours.encode(pixels)["pixel_values"][0].transpose(1, 2, 0), theirs)


@pytest.mark.parametrize(("name", "options"), cases(FOLDED))
def test_folded_settings_differ_in_float_rounding_only(name, options, tmp_path):
    processor = processor_of(name, options)
    processor.save_pretrained(tmp_path)
    preprocessing = read_preprocessing(tmp_path, MODEL)
    for what, data in PICTURES.items():
        theirs, ours = tensors(processor, preprocessing, data)
        # Values reach 4, so this is a few units in the last place, and a thousandth of one 8-bit step.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6, err_msg=what)


@pytest.mark.filterwarnings("ignore:The following named arguments are not valid")  # include_top, to all but one
@pytest.mark.parametrize("name", EXACT)
def test_a_file_that_leaves_settings_out_means_what_transformers_takes_it_for(name, tmp_path):
    from transformers import AutoImageProcessor

    (tmp_path / NAME).write_text(json.dumps({"image_processor_type": f"{name}ImageProcessor", "include_top": False}))
    processor = AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    preprocessing = read_preprocessing(tmp_path, MODEL)
    for what in ("portrait", "tiny"):
        theirs, ours = tensors(processor, preprocessing, PICTURES[what])
        np.testing.assert_array_equal(ours, theirs, err_msg=what)


OLD = {
    "google/vit": {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "image_mean": [0.5] * 3},
    "facebook/deit": {
        "feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "do_center_crop": True,
        "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    },
    "microsoft/beit": {
        "feature_extractor_type": "BeitFeatureExtractor", "size": 224, "crop_size": 224, "do_center_crop": False,
        "reduce_labels": False, "resample": 2,
    },
    "microsoft/resnet": {
        "feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3,
    },
    "apple/mobilevit": {
        "feature_extractor_type": "MobileViTFeatureExtractor", "size": 288, "crop_size": 256, "do_center_crop": True,
        "do_flip_channel_order": True, "resample": 2,
    },
    "facebook/levit": {"feature_extractor_type": "LevitFeatureExtractor", "size": 224, "do_center_crop": True},
    "sail/poolformer": {"feature_extractor_type": "PoolFormerFeatureExtractor", "size": 224, "crop_pct": 0.95},
    "saved by the fast form": {
        "image_processor_type": "ViTImageProcessorFast", "size": {"height": 224, "width": 224}, "resample": 2,
        "crop_size": None, "do_center_crop": None, "do_convert_rgb": None, "do_pad": None, "size_divisor": None,
        "data_format": "channels_first", "device": None, "disable_grouping": None, "input_data_format": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_the_spelling_of_older_and_newer_files(name, tmp_path):
    from transformers import AutoImageProcessor

    (tmp_path / NAME).write_text(json.dumps(OLD[name]))
    preprocessing = read_preprocessing(tmp_path, MODEL)
    processor = AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    for what in ("landscape", "portrait", "tiny"):
        theirs, ours = tensors(processor, preprocessing, PICTURES[what])
        np.testing.assert_array_equal(ours, theirs, err_msg=what)


def test_the_class_follows_from_the_model_where_the_file_names_none():
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    from edgewise.quantize.image_processors import PROCESSOR_OF_MODEL

    for model_type, name in PROCESSOR_OF_MODEL.items():
        # transformers names no class for this one; its own checkpoints carry BitImageProcessor.
        expected = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, ("BitImageProcessor",))[0]
        assert f"{name}ImageProcessor" == expected, model_type


def test_processors_that_convert_colours_themselves_give_the_same(tmp_path):
    processor = processor_of("CLIP", {})
    processor.save_pretrained(tmp_path)
    encoder = ImageEncoder(read_preprocessing(tmp_path, MODEL), "pixel_values")
    for what in ("grey", "transparent", "palette", "cmyk"):
        theirs = processor(decode(PICTURES[what]), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(encoder.encode(PICTURES[what])["pixel_values"][0], theirs, err_msg=what)


def test_grey_models(tmp_path):
    processor = processor_of("DeiT", {"image_mean": [0.4], "image_std": [0.2], "size": 40, "crop_size": 33})
    processor.save_pretrained(tmp_path)
    encoder = ImageEncoder(read_preprocessing(tmp_path, {**MODEL, "num_channels": 1}), "pixel_values")
    for what in ("landscape", "grey", "transparent", "tiny"):
        grey = np.asarray(decode(PICTURES[what]).convert("L"))[:, :, np.newaxis]
        theirs = processor(grey, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
        np.testing.assert_array_equal(encoder.encode(PICTURES[what])["pixel_values"][0], theirs, err_msg=what)


RAW = {
    "8 bits": np.asarray(photo(70, 50)),
    "8 bits, grey": np.asarray(photo(50, 70, "L")),
    "8 bits, one channel": np.asarray(photo(50, 70, "L"))[:, :, np.newaxis],
    "whole floats": np.asarray(photo(70, 50)).astype(np.float32),
    "whole floats, grey": np.asarray(photo(50, 70, "L")).astype(np.float64),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "options"), cases(EXACT))
def test_a_cloud_prepares_what_a_bundle_does(name, options, channels, tmp_path):
    statistics = {"image_mean": [0.4] * channels, "image_std": [0.3] * channels}
    processor = processor_of(name, options if name == "MobileViT" else {**statistics, **options})
    if channels == 1 and isinstance(options.get("image_std"), list):
        processor.image_std = options["image_std"][:1]
    processor.save_pretrained(tmp_path)
    encoder = ImageEncoder(read_preprocessing(tmp_path, {**MODEL, "num_channels": channels}), "pixel_values")
    reader = ImageReader(processor, channels)
    for what, item in {**PICTURES, **RAW}.items():
        ours = encoder.encode(item)["pixel_values"][0]
        np.testing.assert_allclose(reader.read([item])[0], ours, rtol=0, atol=2e-6, err_msg=what)


@pytest.mark.parametrize("name", ["DeiT", "ConvNext", "MobileNetV2", "Levit", "PoolFormer"])
def test_a_cloud_and_a_bundle_refuse_the_same(name, tmp_path):
    processor = processor_of(name, {"size": {"shortest_edge": 224}} if name == "ConvNext" else {})
    processor.save_pretrained(tmp_path)
    encoder = ImageEncoder(read_preprocessing(tmp_path, MODEL), "pixel_values")
    reader = ImageReader(processor, 3)
    refused = {"fractions": np.full((8, 8), 0.25), "beyond 8 bits": np.full((8, 8), 256), "negative": -np.ones((8, 8))}
    if name != "DeiT":
        refused["elongated"] = np.zeros((1, 300_000), dtype=np.uint8)
    for item in refused.values():
        for read in (lambda found: reader.read([found]), encoder.encode):
            with pytest.raises(InputError, match=r"whole numbers|elongated"):
                read(item)


@pytest.mark.parametrize("name", ["ViT", "ConvNext", "Pvt"])
def test_fractions_are_kept_where_nothing_is_cropped(name, tmp_path):
    processor = processor_of(name, {})
    processor.save_pretrained(tmp_path)
    encoder = ImageEncoder(read_preprocessing(tmp_path, MODEL), "pixel_values")
    item = np.asarray(photo(70, 50)).astype(np.float32) + 0.25
    ours = encoder.encode(item)["pixel_values"][0]
    np.testing.assert_allclose(ImageReader(processor, 3).read([item])[0], ours, rtol=0, atol=2e-6)
