"""Images become the tensor that the graph declares; hostile files become errors."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgewise.bundle import FixedSize, ImagePreprocessing, ShortestEdge
from edgewise.edge import decode, encode_png, image
from edgewise.edge.image import ImageEncoder, size_with_shortest_edge, whole_pixels
from edgewise.errors import InputError


def encoder(size=(4, 4), channels=1, **changes):
    fields = {
        "height": size[0],
        "width": size[1],
        "channels": channels,
        "rescale": 1 / 255,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    return ImageEncoder(ImagePreprocessing(**{**fields, **changes}), "pixel_values")


def encoded(item, **options):
    return encoder(**options).encode(item)["pixel_values"]


def as_file(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, format=kind, **options)
    return stream.getvalue()


GREY = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def test_a_file_and_its_pixels_give_the_same_tensor():
    for pixels, channels in ((GREY, 1), (COLOUR, 3), (GREY, 3), (COLOUR, 1)):
        from_file = encoded(as_file(pixels), channels=channels)
        assert from_file.shape == (1, channels, 4, 4)
        assert from_file.dtype == np.float32
        # Pillow rounds grey to whole numbers, the float path does not.
        np.testing.assert_allclose(encoded(pixels, channels=channels), from_file, atol=0.5 / 255 + 1e-6)


def test_normalising_by_hand():
    got = encoded(COLOUR, channels=3, rescale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    for channel, (mean, std) in enumerate([(1, 2), (2, 4), (3, 8)]):
        np.testing.assert_allclose(got[0, channel], (COLOUR[:, :, channel] * 0.5 - mean) / std, rtol=1e-6)


def test_height_and_width_are_not_swapped():
    wide = np.zeros((4, 8), dtype=np.uint8)
    wide[:, 6:] = 255
    got = encoded(wide, size=(4, 8))
    assert got.shape == (1, 1, 4, 8)
    assert got[0, 0, :, 6:].min() == 1.0
    assert encoded(wide, size=(2, 4)).shape == (1, 1, 2, 4)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int64])
def test_resizing_with_the_declared_filter(resample, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(kind)
    expected = Image.fromarray(pixels.astype(np.float32)).resize((4, 4), Image.Resampling[resample.upper()])
    got = encoded(pixels, resample=resample) * 255
    bound = 1.0 if kind == np.uint8 else 1e-3  # 8-bit resizing rounds
    if kind == np.uint8:
        expected = np.clip(expected, 0, 255)
    np.testing.assert_allclose(got[0, 0], expected, atol=bound)


def test_colours_resize_like_grey_does():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.float32)
    got = encoded(pixels, channels=3)
    for channel in range(3):
        np.testing.assert_allclose(got[0, channel], encoded(pixels[:, :, channel])[0, 0], rtol=1e-6)


def test_shape_with_one_channel():
    np.testing.assert_array_equal(encoded(GREY[:, :, np.newaxis]), encoded(GREY))
    np.testing.assert_array_equal(encoded(np.tile(GREY, (2, 2))[:, :, np.newaxis]), encoded(np.tile(GREY, (2, 2))))


def test_floats_keep_their_own_scale():
    digits = np.linspace(0, 16, 16, dtype=np.float64).reshape(4, 4)
    np.testing.assert_allclose(encoded(digits, rescale=1 / 16)[0, 0], digits / 16, rtol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_common_formats(kind):
    flat = np.full((4, 4, 3), 128, dtype=np.uint8)
    np.testing.assert_allclose(encoded(as_file(flat, kind), channels=3), 128 / 255, atol=3 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_colour_modes(mode):
    picture = Image.new("L", (4, 4), 255).convert("RGB").convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    for channels in (1, 3):
        np.testing.assert_allclose(encoded(as_file(picture, kind), channels=channels), 1.0, atol=2 / 255)


def test_orientation_of_a_photo():
    picture = Image.fromarray(np.array([[0, 0], [255, 255]], dtype=np.uint8).repeat(8, 0).repeat(8, 1))
    exif = picture.getexif()
    exif[0x0112] = 3  # taken upside down
    got = encoded(as_file(picture, "PNG", exif=exif), size=(2, 2), resample="nearest")
    assert got[0, 0, 0, 0] > 0.9 > 0.1 > got[0, 0, 1, 0]


def test_the_middle_is_cut_out():
    rows = np.arange(9, dtype=np.uint8)[:, np.newaxis] * 10 + np.arange(7, dtype=np.uint8)
    got = encoded(rows, size=(4, 4), rescale=1.0, crop_from=FixedSize(9, 7))
    # Rows 9 - 4 = 5 leave two above and three below, columns 7 - 4 = 3 leave one left and two right.
    np.testing.assert_array_equal(got[0, 0], rows[2:6, 1:5])


def test_a_small_picture_gets_a_black_border():
    pixels = np.full((3, 6), 255, dtype=np.uint8)
    got = encoded(pixels, size=(6, 4), mean=(0.5,), std=(0.5,), crop_from=FixedSize(3, 6))[0, 0]
    # Three rows are missing: two above, one below. Black is normalised like any other pixel.
    np.testing.assert_allclose(got[2:5], 1.0)
    np.testing.assert_allclose(got[[0, 1, 5]], -1.0)


@pytest.mark.parametrize(
    ("width", "height", "edge", "expected"),
    [
        (640, 480, 256, (341, 256)),
        (480, 640, 256, (256, 341)),
        (100, 100, 33, (33, 33)),
        (1, 1, 7, (7, 7)),
        (3, 1000, 10, (10, 3333)),
        (256, 300, 256, (256, 300)),
    ],
)
def test_the_longer_side_keeps_the_proportions(width, height, edge, expected):
    assert size_with_shortest_edge(width, height, edge) == expected


def test_an_edge_is_resized_before_the_crop():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 47, 3), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(pixels).resize((31, 20), Image.Resampling.BICUBIC))
    got = encoded(
        as_file(pixels), size=(16, 16), channels=3, rescale=1.0, resample="bicubic", crop_from=ShortestEdge(20)
    )
    np.testing.assert_array_equal(got[0].transpose(1, 2, 0), resized[2:18, 7:23])


def test_a_picture_too_elongated_for_its_edge_is_refused():
    with pytest.raises(InputError, match=r"30000 x 1 pixels is too elongated.*the longer one has 7680000,"):
        encoded(np.zeros((1, 30_000), dtype=np.uint8), crop_from=ShortestEdge(256))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64])
def test_a_model_that_crops_takes_whole_numbers_of_any_type(kind):
    options = {"channels": 3, "crop_from": ShortestEdge(6)}
    np.testing.assert_array_equal(encoded(COLOUR.astype(kind), **options), encoded(as_file(COLOUR), **options))


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_a_model_that_crops_refuses_other_numbers(value):
    with pytest.raises(InputError, match=f"whole numbers of 0 to 255; given float64 from .*{value}"):
        encoded(np.full((4, 4), value), crop_from=FixedSize(6, 6))
    with pytest.raises(InputError, match="8-bit pixels"):
        whole_pixels(np.full((4, 4), value))


@pytest.mark.parametrize("item", [COLOUR, COLOUR.astype(np.float32), as_file(COLOUR)], ids=["bytes", "floats", "file"])
def test_blue_comes_first_where_the_model_wants_it(item):
    options = {"channels": 3, "mean": (0.0, 0.1, 0.2), "std": (1.0, 2.0, 4.0)}
    got = encoded(item, bgr=True, **options)[0]
    for channel, (colour, mean, std) in enumerate([(2, 0.0, 1), (1, 0.1, 2), (0, 0.2, 4)]):
        np.testing.assert_allclose(got[channel], (COLOUR[:, :, colour] / 255 - mean) / std, atol=1e-6)


def bomb(width, height):
    """A PNG whose header promises far more pixels than its few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = b""
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 4_001)])
def test_decompression_bomb_is_refused_by_its_header(size):
    with pytest.raises(InputError, match=r"pixels|decompression bomb"):
        encoded(bomb(*size))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"not an image", b"\x89PNG\r\n\x1a\n", bomb(4, 4)[:40]])
def test_damaged_file(data):
    with pytest.raises(InputError, match="cannot be decoded"):
        encoded(data)


def test_truncated_file():
    whole = as_file(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    with pytest.raises(InputError, match="cannot be decoded"):
        encoded(whole[: len(whole) // 2])


@given(data=st.data())
def test_any_damage_gives_an_image_or_an_input_error(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]))
    content = bytearray(as_file(COLOUR, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = encoded(bytes(content), channels=3)
    except InputError:
        return
    assert got.shape == (1, 3, 4, 4)


def test_formats_outside_the_list_are_not_tried():
    with pytest.raises(InputError, match="Known: PNG"):
        encoded(as_file(GREY, "TIFF"))


def test_sixteen_bits_are_refused_rather_than_clipped():
    with pytest.raises(InputError, match="8 bits"):
        encoded(as_file(np.full((4, 4), 40_000, dtype=np.uint16)))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("a text", "takes an image .* given str"),
        (None, "given NoneType"),
        ([[1, 2]], "given list"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((1, 3, 4, 4)), r"shape \(1, 3, 4, 4\)"),
        (np.zeros((3, 4, 4)), r"shape \(3, 4, 4\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.zeros((4, 4), dtype=bool), "type bool"),
        (np.zeros((4, 4), dtype=complex), "type complex"),
        (np.zeros((4, 4), dtype=object), "type object"),
        (np.array([["a"]]), "type <U1"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), np.inf), "NaN"),
    ],
)
def test_what_is_not_an_image_is_named(item, message):
    with pytest.raises(InputError, match=message):
        encoded(item)


def test_too_many_pixels_in_an_array(monkeypatch):
    monkeypatch.setattr(image, "MAX_PIXELS", 15)
    with pytest.raises(InputError, match="more than 15 pixels"):
        encoded(GREY)


def test_golden_images_keep_every_pixel():
    for pixels in (GREY, COLOUR):
        assert np.array_equal(np.asarray(decode(encode_png(pixels).png)), pixels)
    np.testing.assert_array_equal(encoded(encode_png(as_file(COLOUR)).png, channels=3), encoded(COLOUR, channels=3))


@pytest.mark.parametrize("item", ["text", np.zeros((4, 4), dtype=np.float32), np.zeros(4, dtype=np.uint8), b"x"])
def test_golden_images_refuse_what_png_does_not_hold(item):
    with pytest.raises(InputError):
        encode_png(item)
