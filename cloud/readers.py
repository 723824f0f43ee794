"""From items to the arrays a checkpoint's model takes: tokens or pixels, read, then stacked in batches.

Owns reading and padding. Knows nothing of models beyond the limits it is given, nor of the runtime that computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.cloud.grouping import group_by_length, group_by_shape
from edgewise.contracts import Input
from edgewise.edge.text import beginnings
from edgewise.errors import InputError


class Reader(Protocol):
    """Reads the items of one kind of checkpoint."""

    @property
    def kind(self) -> str:
        """What it reads: "text" or "image"."""
        ...

    def read(self, items: Sequence[Input]) -> list[Any]:
        """Read items, in order.

        Raises:
            InputError: One is of another kind, or broken.
        """
        ...

    def groups(self, read: Sequence[Any], max_group: int) -> list[list[int]]:
        """Positions of read items to compute together, at most `max_group` at a time; each stands in one group."""
        ...

    def stack(self, read: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """Stack read items into the model's named arrays, shape (items, …)."""
        ...


@dataclass(frozen=True)
class TextReader:
    """Texts through a checkpoint's own tokenizer, padded on the right under an attention mask.

    Attributes:
        tokenizer: A transformers tokenizer.
        max_length: Tokens kept of a text, special tokens included; None keeps all.
        inputs: Names of the model's inputs; what else the tokenizer makes is left out.
    """

    tokenizer: Any
    max_length: int | None
    inputs: frozenset[str]
    kind: str = "text"

    def read(self, items: Sequence[Input]) -> list[dict[str, list[int]]]:
        """Tokenize texts, together; longer ones are cut at `max_length`.

        Raises:
            InputError: One is not a text, or has no tokens.
        """
        if odd := [item for item in items if not isinstance(item, str)]:
            raise InputError(f"This model reads texts, and got {_kind(odd[0])}.", "Send a text.")
        try:
            encoded = self.tokenizer(
                [self._beginning(item) for item in items],
                truncation=self.max_length is not None,
                max_length=self.max_length,
                return_attention_mask=True,
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"The text cannot be tokenized: {error}.", "Send valid Unicode.") from error
        if not all(encoded["input_ids"]):
            raise InputError("The text has no tokens.", "Send a text that is not empty.")
        columns = {name: rows for name, rows in encoded.items() if name in self.inputs}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _beginning(self, text: Any) -> str:
        """As much of a text as has more tokens than are kept of it, or all."""
        if self.max_length is None:
            return str(text)
        for beginning in beginnings(text, self.max_length):
            if len(beginning) == len(text) or len(self.tokenizer.tokenize(beginning)) > self.max_length:
                break
        return beginning

    def groups(self, read: Sequence[dict[str, list[int]]], max_group: int) -> list[list[int]]:
        """Texts of like length, so that padding wastes little."""
        return group_by_length([len(text["input_ids"]) for text in read], max_group=max_group)

    def stack(self, read: Sequence[dict[str, list[int]]]) -> dict[str, NDArray[Any]]:
        """Pad to the longest text of the batch; shape (texts, tokens), int64."""
        longest = max(len(text["input_ids"]) for text in read)
        padding = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": self.tokenizer.pad_token_type_id}
        stacked = {name: np.full((len(read), longest), padding.get(name, 0), dtype=np.int64) for name in read[0]}
        for name, rows in stacked.items():
            for row, text in zip(rows, read, strict=True):
                row[: len(text[name])] = text[name]
        return stacked


@dataclass(frozen=True)
class ImageReader:
    """Images through a checkpoint's own image processor, in its Pillow form: torchvision is not needed.

    Raw pixels are on the scale the model was trained on before rescaling, 0 to 255 as a rule; fractions only where the
    processor resizes to a fixed size or not at all. Where it crops, pixels are whole numbers of 0 to 255.

    Attributes:
        processor: A transformers image processor.
        channels: Channels the model takes, 1 or 3.
        image_size: Height and width that the model takes, where its config names them: a picture that the processor
            leaves as it is gets this size, as in a bundle.
    """

    processor: Any
    channels: int
    image_size: tuple[int, int] | None = None
    kind: str = "image"

    def read(self, items: Sequence[Input]) -> list[NDArray[np.float32]]:
        """Decode, resize, crop and normalize images.

        Returns:
            For each, shape (channels, height, width), float32.

        Raises:
            InputError: One is not an image, or a broken one.
        """
        return [self._read(item) for item in items]

    def _read(self, item: Input) -> NDArray[np.float32]:
        pixels = self._resized(self._decoded(item))
        # At the right size there is nothing to resize; asked to, the processor would round fractions or refuse them.
        options = {"do_resize": False} if pixels.shape[:2] == self._fixed_size() else {}
        try:
            prepared = self.processor(pixels, input_data_format="channels_last", return_tensors="np", **options)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"Pixels of shape {pixels.shape} and type {pixels.dtype} cannot be prepared: {error}.",
                "Send whole numbers of 0 to 255, or an image file.",
            ) from error
        return np.asarray(prepared["pixel_values"][0], dtype=np.float32)

    def groups(self, read: Sequence[NDArray[np.float32]], max_group: int) -> list[list[int]]:
        """Images of one size; some processors keep an image's proportions."""
        return group_by_shape([image.shape for image in read], max_group=max_group)

    def stack(self, read: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        """Stack images of one size; shape (images, channels, height, width), float32."""
        return {"pixel_values": np.stack(read)}

    def _fixed_size(self) -> tuple[int, int] | None:
        """Height and width that every image is resized to; None where it is cropped, or left in its proportions."""
        size = self.processor.size
        crop = getattr(self.processor, "crop_size", None)
        crops = getattr(self.processor, "do_center_crop", False) and crop not in (None, size)
        if not self.processor.do_resize:
            return None if getattr(self.processor, "do_center_crop", False) else self.image_size
        if crops:
            return None
        if getattr(self.processor, "crop_pct", None) is not None:
            # ConvNext and PoolFormer enlarge before they cut, but from 384 on ConvNext takes an edge for a square
            # (transformers 4.57, image_processing_convnext.py and image_processing_poolformer.py).
            edge = size.get("shortest_edge", 0)
            return (edge, edge) if type(self.processor).__name__.startswith("ConvNext") and edge >= 384 else None
        return (int(size["height"]), int(size["width"])) if {"height", "width"} <= set(size) else None

    def _decoded(self, item: Input) -> NDArray[Any]:
        """Pixels of shape (height, width, channels), in the model's colours."""
        if isinstance(item, bytes):
            from edgewise.edge import decode

            return self._from_picture(decode(item))
        if not isinstance(item, np.ndarray):
            raise InputError(f"This model reads images, and got {_kind(item)}.", "Send an image file or raw pixels.")
        return self._from_pixels(_checked_pixels(item))

    def _from_pixels(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """As the edge runtime recolours: 8-bit pixels through Pillow where they are resized, others in floats."""
        from PIL import Image

        from edgewise.edge.image import whole_pixels

        fixed = self._fixed_size()
        if self.processor.do_resize and fixed is None:
            pixels = whole_pixels(pixels)
        if pixels.dtype == np.uint8 and pixels.shape[:2] != fixed:
            return self._from_picture(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
        return _recoloured(pixels, self.channels)

    def _from_picture(self, picture: Any) -> NDArray[Any]:
        from edgewise.edge.image import size_with_shortest_edge

        size = self.processor.size
        edge = size.get("shortest_edge", size.get("height") if hasattr(self.processor, "crop_pct") else None)
        if edge is not None and self._fixed_size() is None:
            # Refuses a picture that would grow beyond all memory.
            size_with_shortest_edge(picture.width, picture.height, edge)
        pixels = np.asarray(picture.convert("L" if self.channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], self.channels)

    def _resized(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Resize as the edge runtime does what the processor does not: floats, and all that it leaves as it is."""
        size = self._fixed_size()
        if size is None or pixels.shape[:2] == size or (pixels.dtype == np.uint8 and self.processor.do_resize):
            return pixels
        from PIL import Image

        # Plane by plane, which for 8 bits is what Pillow does with all of them.
        kind = pixels.dtype if pixels.dtype == np.uint8 else np.dtype(np.float32)
        planes = [
            Image.fromarray(plane).resize(size[::-1], self._filter())
            for plane in np.ascontiguousarray(np.moveaxis(pixels.astype(kind), 2, 0))
        ]
        return np.stack([np.asarray(plane, dtype=kind) for plane in planes], axis=2)

    def _filter(self) -> int:
        """The processor's filter; it takes a null for bilinear (2)."""
        resample = getattr(self.processor, "resample", None)
        return 2 if resample is None else int(resample)


def _checked_pixels(pixels: NDArray[Any]) -> NDArray[Any]:
    """The pixels in three dimensions: (height, width, 1) or (height, width, 3)."""
    shaped = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if shaped.ndim != 3 or shaped.size == 0 or shaped.shape[2] not in (1, 3) or shaped.dtype.kind not in "uif":
        raise InputError(
            f"Pixels of shape {pixels.shape} and type {pixels.dtype} are no image.",
            "Send numbers of shape (height, width), (height, width, 1) or (height, width, 3).",
        )
    if not np.isfinite(shaped).all():
        raise InputError("The pixels hold NaN or infinity.", "Check where the array comes from.")
    return shaped


def _recoloured(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    # Grey as Pillow makes it of a file (ITU-R BT.601).
    return pixels.astype(np.float32) @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)


def _kind(item: Input) -> str:
    if isinstance(item, str):
        return "a text"
    return "an image file" if isinstance(item, bytes) else "raw pixels"
