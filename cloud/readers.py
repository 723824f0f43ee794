"""From an item to the tensors a torch model takes: tokens or pixels, read one by one, stacked in batches.

Owns reading and padding. Knows nothing of models beyond the limits it is given, and imports torch only when it stacks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import Input
from edgewise.errors import InputError


class Reader(Protocol):
    """Reads the items of one kind of checkpoint."""

    @property
    def kind(self) -> str:
        """What it reads: "text" or "image"."""
        ...

    def read(self, item: Input) -> Any:
        """Read one item.

        Raises:
            InputError: It is of another kind, or broken.
        """
        ...

    def length(self, read: Any) -> int:
        """How long a read item is; items of like length are computed together."""
        ...

    def stack(self, read: Sequence[Any]) -> dict[str, Any]:
        """Stack read items into the model's named tensors, shape (items, …)."""
        ...


@dataclass(frozen=True)
class TextReader:
    """Texts through a checkpoint's own tokenizer, padded on the right under an attention mask.

    Attributes:
        tokenizer: A transformers tokenizer.
        max_length: Tokens kept of a text, special tokens included; None keeps all.
    """

    tokenizer: Any
    max_length: int | None
    kind: str = "text"

    def read(self, item: Input) -> dict[str, list[int]]:
        """Tokenize one text; longer ones are cut at `max_length`.

        Raises:
            InputError: It is not a text, or has no tokens.
        """
        if not isinstance(item, str):
            raise InputError(f"This model reads texts, and got {_kind(item)}.", "Send a text.")
        try:
            encoded = self.tokenizer(
                item, truncation=self.max_length is not None, max_length=self.max_length, return_attention_mask=True
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"The text cannot be tokenized: {error}.", "Send valid Unicode.") from error
        if not encoded["input_ids"]:
            raise InputError("The text has no tokens.", "Send a text that is not empty.")
        return dict(encoded)

    def length(self, read: dict[str, list[int]]) -> int:
        """Tokens of a read text."""
        return len(read["input_ids"])

    def stack(self, read: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """Pad to the longest text of the batch; shape (texts, tokens), int64."""
        import torch

        longest = max(map(self.length, read))
        padding = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": self.tokenizer.pad_token_type_id}
        return {
            name: torch.tensor([row[name] + [padding.get(name, 0)] * (longest - len(row[name])) for row in read])
            for name in read[0]
        }


@dataclass(frozen=True)
class ImageReader:
    """Images through a checkpoint's own image processor, in its Pillow form: torchvision is not needed.

    Raw pixels count on the scale of image files, 0 to 255, whole or not.

    Attributes:
        processor: A transformers image processor.
        channels: Channels the model takes, 1 or 3.
    """

    processor: Any
    channels: int
    kind: str = "image"

    def read(self, item: Input) -> NDArray[np.float32]:
        """Decode, resize and normalize one image.

        Returns:
            Shape (channels, height, width), float32.

        Raises:
            InputError: It is not an image, or a broken one.
        """
        pixels = self._decoded(item)
        # At the right size nothing is resized; the processor would otherwise round a fraction or refuse it.
        fits = pixels.shape[:2] == self._size()
        options = {"do_resize": False} if fits else {}
        try:
            stacked = self.processor(pixels, input_data_format="channels_last", return_tensors="np", **options)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"Pixels of shape {pixels.shape} and type {pixels.dtype} cannot be prepared: {error}.",
                "Send whole numbers of 0 to 255, or an image file.",
            ) from error
        return np.asarray(stacked["pixel_values"][0], dtype=np.float32)

    def length(self, read: NDArray[np.float32]) -> int:
        """Pixels of a read image, so that only images of one size are stacked."""
        return int(read.size)

    def stack(self, read: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
        """Stack images of one size; shape (images, channels, height, width), float32."""
        import torch

        return {"pixel_values": torch.from_numpy(np.stack(read))}

    def _size(self) -> tuple[int, int] | None:
        size = self.processor.size
        if "height" not in size or "width" not in size or getattr(self.processor, "do_center_crop", False):
            return None
        return int(size["height"]), int(size["width"])

    def _decoded(self, item: Input) -> NDArray[Any]:
        if isinstance(item, bytes):
            return _decode_file(item, self.channels)
        if isinstance(item, np.ndarray):
            return _with_channels(item, self.channels)
        raise InputError(f"This model reads images, and got {_kind(item)}.", "Send an image file or raw pixels.")


def _decode_file(data: bytes, channels: int) -> NDArray[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputError(
            f"The image file of {len(data)} bytes cannot be decoded: {error}.", "Send a whole PNG or JPEG file."
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _with_channels(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    shaped = pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
    if shaped.ndim != 3 or shaped.size == 0 or shaped.dtype.kind not in "uif":
        raise InputError(
            f"Pixels of shape {pixels.shape} and type {pixels.dtype} are no image.",
            "Send numbers of shape (height, width) or (height, width, channels).",
        )
    if shaped.shape[2] == 1:
        return np.repeat(shaped, channels, axis=2)
    if shaped.shape[2] != channels:
        raise InputError(
            f"Pixels have {shaped.shape[2]} channels; this model takes {channels}.",
            f"Send 1 or {channels} channels." if channels > 1 else "Send 1 channel.",
        )
    return shaped


def _kind(item: Input) -> str:
    if isinstance(item, str):
        return "a text"
    return "an image file" if isinstance(item, bytes) else "raw pixels"
