"""Translates an image processor's settings (`preprocessor_config.json`) into those of a bundle.

Owns which settings are supported: resizing to a fixed height and width, rescaling, normalising, one or three channels.
Refuses every other by name, since a silently different picture costs accuracy that nobody finds again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgewise.bundle import ImagePreprocessing
from edgewise.errors import CheckpointError

Filter: TypeAlias = Literal["nearest", "bilinear", "bicubic"]

NAME = "preprocessor_config.json"
_FILTERS: Mapping[int, Filter] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_FILTER_NAMES = {1: "lanczos", 4: "box", 5: "hamming"}
_SUPPORTED = (
    "Supported: resizing to a fixed height and width with nearest, bilinear or bicubic, rescaling, normalising."
)


def read_preprocessing(folder: Path, config: Mapping[str, Any]) -> ImagePreprocessing:
    """Preprocessing of an image checkpoint.

    Args:
        folder: The checkpoint.
        config: Its config.json; gives the number of channels.

    Raises:
        CheckpointError: The file is missing, or asks for something that a bundle cannot do.
    """
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(
            f"The checkpoint {folder} has no {NAME}.",
            "Save the image processor too: processor.save_pretrained(folder).",
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}.", "Save the image processor again.") from e
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no JSON object.", "Save the image processor again.")
    return translate(settings, channels=_channels(path, config), image_size=config.get("image_size"), where=str(path))


def translate(
    settings: Mapping[str, Any], *, channels: Literal[1, 3], image_size: Any, where: str
) -> ImagePreprocessing:
    """Settings of an image processor as a bundle holds them.

    Args:
        settings: The content of `preprocessor_config.json`.
        channels: Channels that the model takes.
        image_size: Pixels that the model takes, as in its config; used where the processor does not resize.
        where: The file's name, for messages.

    Raises:
        CheckpointError: A setting that a bundle cannot hold.
    """
    _refuse(settings, where)
    height, width = _size(settings, image_size, where)
    _check_crop(settings, height, width, where)
    rescale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    normalize = settings.get("do_normalize", True)
    return ImagePreprocessing(
        height=height,
        width=width,
        channels=channels,
        rescale=rescale,
        mean=_per_channel(settings, "image_mean", channels, where) if normalize else (0.0,) * channels,
        std=_per_channel(settings, "image_std", channels, where) if normalize else (1.0,) * channels,
        resample=_filter(settings, where),
    )


def _channels(path: Path, config: Mapping[str, Any]) -> Literal[1, 3]:
    channels = config.get("num_channels", 3)
    if channels == 1:
        return 1
    if channels == 3:
        return 3
    raise CheckpointError(f"The model of {path.parent} takes {channels} channels.", "Supported: 1 (grey) or 3 (RGB).")


def _refuse(settings: Mapping[str, Any], where: str) -> None:
    for name in ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order", "do_reduce_labels"):
        if settings.get(name):
            raise CheckpointError(f"{where} asks for {name}, which a bundle cannot do.", _SUPPORTED)
    if settings.get("offset") or settings.get("rescale_offset"):
        raise CheckpointError(f"{where} asks for an offset in rescaling, which a bundle cannot do.", _SUPPORTED)


def _size(settings: Mapping[str, Any], image_size: Any, where: str) -> tuple[int, int]:
    size = settings.get("size", image_size) if settings.get("do_resize", True) else image_size
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    raise CheckpointError(
        f"{where} resizes to {json.dumps(size)}, which keeps the aspect ratio or is unknown; a bundle resizes to "
        "a fixed height and width.",
        f'{_SUPPORTED} Set "size" to {{"height": …, "width": …}} and "do_center_crop" to false if the model allows it.',
    )


def _check_crop(settings: Mapping[str, Any], height: int, width: int, where: str) -> None:
    if not settings.get("do_center_crop"):
        return
    crop = settings.get("crop_size", (height, width))
    sides = (crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else crop
    if sides not in (height, (height, width), [height, width]):
        raise CheckpointError(
            f"{where} crops {height} x {width} pixels to {json.dumps(crop)}, which a bundle cannot do.", _SUPPORTED
        )


def _per_channel(settings: Mapping[str, Any], name: str, channels: int, where: str) -> tuple[float, ...]:
    values = settings.get(name)
    numbers = [values] * channels if isinstance(values, int | float) else values
    if not isinstance(numbers, list) or len(numbers) != channels:
        raise CheckpointError(
            f"{where} has {name} {json.dumps(values)} for {channels} channels.", "Give one number a channel."
        )
    return tuple(float(value) for value in numbers)


def _filter(settings: Mapping[str, Any], where: str) -> Filter:
    number = settings.get("resample", 2)
    if number not in _FILTERS:
        name = _FILTER_NAMES.get(number, repr(number))
        raise CheckpointError(f"{where} resizes with the filter {name}, which a bundle cannot do.", _SUPPORTED)
    return _FILTERS[number]
