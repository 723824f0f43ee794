"""Turns an image into the tensor that a graph declares.

Owns decoding, colour, resizing, cropping and normalising. Loads Pillow only when an image needs decoding, resizing or
cropping. An image file may be a decompression bomb, so its header is checked before a pixel is decoded, and only common
formats are read.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bundle import FixedSize, ImagePreprocessing, Png
from edgewise.contracts import Input
from edgewise.edge.text import describe
from edgewise.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_WIDE_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
# Grey from RGB as ITU-R BT.601 weighs it, which is also what Pillow does.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class ImageEncoder:
    """Encodes one image at a time, batch of one. Safe to share between threads.

    Args:
        preprocessing: Size, crop, channels, rescaling and normalisation.
        name: The graph's input.
    """

    kind = "image"

    def __init__(self, preprocessing: ImagePreprocessing, name: str) -> None:
        self._to = preprocessing
        self._name = name
        self._mean = np.array(preprocessing.mean, dtype=np.float32)
        self._std = np.array(preprocessing.std, dtype=np.float32)

    def encode(self, item: Input) -> dict[str, NDArray[np.generic]]:
        """An array of shape (1, channels, height, width), float32, under the input's name.

        Args:
            item: An encoded file, or pixels of shape (height, width), (height, width, 1) or (height, width, 3) on the
                scale that the model was trained on before rescaling (0 to 255 as a rule). A model that crops takes
                whole numbers of 0 to 255 only.

        Raises:
            InputError: Not an image, too large, or of another shape.
        """
        pixels = self._pixels(item)
        # Rounded to float32 after each step, as transformers does, so that both feed their model the same numbers.
        rescaled = (pixels.astype(np.float64) * self._to.rescale).astype(np.float32)
        scaled = ((rescaled[:, :, ::-1] if self._to.bgr else rescaled) - self._mean) / self._std
        return {self._name: np.ascontiguousarray(scaled.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)}

    def _pixels(self, item: Input) -> NDArray[np.float32]:
        """Float32 pixels, shape (height, width, channels), in the graph's size; colours are red, green, blue."""
        if isinstance(item, bytes):
            return self._from_picture(decode(item))
        if not isinstance(item, np.ndarray):
            raise InputError(
                f"This model takes an image (bytes of a file, or an array of pixels), given {describe(item)}.",
                "Read the file's bytes: Path(name).read_bytes().",
            )
        _check_array(item)
        if self._to.crop_from is not None:
            return self._from_picture(_picture(whole_pixels(item)))
        if item.dtype == np.uint8 and item.shape[:2] != (self._to.height, self._to.width):
            return self._from_picture(_picture(item))
        return self._resize_floats(_recolour(item.astype(np.float32), self._to.channels))

    def _from_picture(self, picture: Image) -> NDArray[np.float32]:
        coloured = picture.convert("RGB" if self._to.channels == 3 else "L")
        size = self._resized_size(*coloured.size)
        resized = coloured if coloured.size == size else coloured.resize(size, self._filter())
        cropped = _crop_centre(resized, self._to.width, self._to.height)
        return np.asarray(cropped, dtype=np.float32).reshape(self._to.height, self._to.width, self._to.channels)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop, of a picture of this width and height."""
        target = self._to.crop_from
        if target is None:
            return self._to.width, self._to.height
        if isinstance(target, FixedSize):
            return target.width, target.height
        return size_with_shortest_edge(width, height, target.edge)

    def _resize_floats(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        if pixels.shape[:2] == (self._to.height, self._to.width):
            return pixels
        from PIL import Image

        size = (self._to.width, self._to.height)
        planes = [Image.fromarray(pixels[:, :, i]).resize(size, self._filter()) for i in range(self._to.channels)]
        return np.stack([np.asarray(plane, dtype=np.float32) for plane in planes], axis=2)

    def _filter(self) -> Any:
        from PIL.Image import Resampling

        return Resampling[self._to.resample.upper()]


def decode(data: bytes) -> Image:
    """Decode an image file, upright as its EXIF orientation says.

    Raises:
        InputError: Not an image of a known format, damaged, larger than 40 million pixels, or deeper than 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_header(picture)
        return ImageOps.exif_transpose(picture)
    except InputError:
        raise
    except Exception as e:  # a hostile file makes Pillow's decoders raise nearly anything
        known = ", ".join(FORMATS)
        reason = "its format is not known" if isinstance(e, UnidentifiedImageError) else _line(e)
        raise InputError(f"The image of {len(data)} bytes cannot be decoded: {reason}.", f"Known: {known}.") from e


def _check_header(picture: Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise InputError(f"The image has {width} x {height} pixels, {MAX_PIXELS} are allowed.", "Send a smaller one.")
    if picture.mode in _WIDE_MODES:
        raise InputError(f"The image has more than 8 bits a channel ({picture.mode}).", "Convert it to 8 bits.")


def encode_png(item: Input) -> Png:
    """An image as a golden input: PNG bytes of the decoded file, or of 8-bit pixels.

    Raises:
        InputError: Not an image, or pixels of another type than uint8, which PNG does not hold exactly.
    """
    if isinstance(item, np.ndarray):
        _check_array(item)
        if item.dtype != np.uint8:
            raise InputError(f"Golden images need 8-bit pixels, given {describe(item)}.", "Give uint8 or a file.")
        picture = _picture(item)
    elif isinstance(item, bytes):
        picture = decode(item)
    else:
        raise InputError(f"A golden image cannot be made of {describe(item)}.", "Give an image.")
    stream = io.BytesIO()
    picture.convert("L" if picture.mode in ("1", "L") else "RGB").save(stream, format="PNG")
    return Png(stream.getvalue())


def size_with_shortest_edge(width: int, height: int, edge: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side becomes `edge` pixels, and whose proportions stay.

    The longer side is rounded down, computed in the order of transformers 4.57 (`get_resize_output_image_size`).

    Raises:
        InputError: The picture is so elongated that the result would exceed 40 million pixels.
    """
    longer = int(edge * max(width, height) / min(width, height))
    if edge * longer > MAX_PIXELS:
        raise InputError(
            f"The image of {width} x {height} pixels is too elongated: its shorter side resized to {edge} pixels, "
            f"the longer one has {longer}, and {MAX_PIXELS} pixels are allowed.",
            "Cut it to its subject first.",
        )
    return (edge, longer) if width <= height else (longer, edge)


def whole_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels as 8 bits, which is what resizing before a crop is defined on.

    Raises:
        InputError: Fractions, or values outside 0 to 255.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.min() < 0 or pixels.max() > 255 or (pixels != np.floor(pixels)).any():
        raise InputError(
            f"This model crops, so its pixels are whole numbers of 0 to 255; given {pixels.dtype} from {pixels.min()} "
            f"to {pixels.max()}.",
            "Send 8-bit pixels, or an image file.",
        )
    return pixels.astype(np.uint8)


def _crop_centre(picture: Image, width: int, height: int) -> Image:
    """The middle of a picture; Pillow fills what lies beyond its borders with zeros."""
    if picture.size == (width, height):
        return picture
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _check_array(pixels: NDArray[Any]) -> None:
    if pixels.dtype.kind not in "uif" or pixels.dtype.itemsize > 8:
        raise InputError(f"Pixels are integers or floats, given {describe(pixels)}.", "Convert the array.")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)) or 0 in pixels.shape:
        raise InputError(
            f"Pixels have shape (height, width), (height, width, 1) or (height, width, 3), given {describe(pixels)}.",
            "Transpose the array, and give one image at a time.",
        )
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise InputError(f"The image has more than {MAX_PIXELS} pixels: {pixels.shape}.", "Send a smaller one.")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError("The pixels hold NaN or infinity.", "Check where the array comes from.")


def _picture(pixels: NDArray[Any]) -> Image:
    from PIL import Image

    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _recolour(pixels: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Shape (height, width) or (height, width, 1 or 3) to (height, width, channels)."""
    planes = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if planes.shape[2] == channels:
        return planes
    if channels == 3:
        return np.repeat(planes, 3, axis=2)
    return (planes @ _LUMA)[:, :, np.newaxis]


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
