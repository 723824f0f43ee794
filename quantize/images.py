"""Translates an image processor's settings (`preprocessor_config.json`) into those of a bundle.

Owns which settings are supported: resizing to a fixed size or a shortest edge, cropping the centre, rescaling,
normalising, one or three channels in either order. Refuses every other by name and value, since a silently different
picture costs accuracy that nobody finds again. What a class does by default is written in `image_processors.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgewise.bundle import FixedSize, ImagePreprocessing, ShortestEdge
from edgewise.errors import CheckpointError
from edgewise.quantize.image_processors import PROCESSOR_OF_MODEL, PROCESSORS, Processor, Target, short_name

Filter: TypeAlias = Literal["nearest", "bilinear", "bicubic"]

NAME = "preprocessor_config.json"
_FILTERS: Mapping[int, Filter] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_FILTER_NAMES = {1: "lanczos", 4: "box", 5: "hamming"}
_SUPPORTED = (
    "Supported: resizing to a fixed size, or of the shortest edge before a centre crop, with nearest, bilinear or "
    "bicubic; rescaling, normalising, blue-green-red order."
)
# These change no picture: the first is about segmentation maps, and colours follow the model's channels.
_KNOWN_STEPS = frozenset(
    {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order"}
    | {"do_reduce_labels", "do_convert_rgb"}
)
_UNKNOWN_SWITCHES = ("use_square_size", "size_divisor", "pad_size")
# transformers 4.57, image_processing_convnext.py: from this size on, ConvNext resizes to a square and crops nothing.
_CONVNEXT_WITHOUT_CROP = 384
_MAX_PIXELS_OF_A_SIDE = 1 << 20


@dataclass(frozen=True)
class _Settings:
    """The content of a file, with the class it is for.

    Attributes:
        values: The JSON object.
        name: The class's short name.
        processor: Its defaults.
        where: The file's name, for messages.
    """

    values: Mapping[str, Any]
    name: str
    processor: Processor
    where: str

    def get(self, name: str, default: Any) -> Any:
        """A setting; null means the default, as in the constructors of transformers."""
        value = self.values.get(name)
        return default if value is None else value

    def step(self, name: str, default: bool) -> bool:
        """Whether a step is done; null means it is not."""
        return bool(self.values.get(name, default))

    def refused(self, name: str, why: str, remedy: str = _SUPPORTED) -> CheckpointError:
        """The error for a setting, which names its value."""
        value = json.dumps(self.values[name]) if name in self.values else "left out"
        return CheckpointError(f"{self.where} has {name} {value}: {why}.", remedy)


def read_preprocessing(folder: Path, config: Mapping[str, Any]) -> ImagePreprocessing:
    """Preprocessing of an image checkpoint.

    Args:
        folder: The checkpoint.
        config: Its config.json; gives the number of channels, and the family where the processor's class is not named.

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
    return translate(
        settings,
        channels=_channels(path, config),
        image_size=config.get("image_size"),
        where=str(path),
        model_type=str(config.get("model_type", "")),
    )


def translate(
    settings: Mapping[str, Any], *, channels: Literal[1, 3], image_size: Any, where: str, model_type: str = "vit"
) -> ImagePreprocessing:
    """Settings of an image processor as a bundle holds them.

    Args:
        settings: The content of `preprocessor_config.json`.
        channels: Channels that the model takes.
        image_size: Pixels that the model takes, as in its config; used where the processor does not resize.
        where: The file's name, for messages.
        model_type: The model's family, used where the settings name no class.

    Raises:
        CheckpointError: A setting that a bundle cannot hold.
    """
    asked = _known(settings, model_type, where)
    _refuse_other_steps(asked)
    height, width, crop_from = _geometry(asked, image_size)
    mean, std = _normalisation(asked, channels)
    return ImagePreprocessing(
        height=height,
        width=width,
        channels=channels,
        bgr=_flips(asked) and channels == 3,
        rescale=_factor(asked),
        mean=mean,
        std=std,
        resample=_filter(asked),
        crop_from=crop_from,
    )


def _channels(path: Path, config: Mapping[str, Any]) -> Literal[1, 3]:
    channels = config.get("num_channels", 3)
    if channels == 1:
        return 1
    if channels == 3:
        return 3
    raise CheckpointError(f"The model of {path.parent} takes {channels} channels.", "Supported: 1 (grey) or 3 (RGB).")


def _known(settings: Mapping[str, Any], model_type: str, where: str) -> _Settings:
    named = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    name = short_name(str(named)) if named else PROCESSOR_OF_MODEL.get(model_type, "")
    if name not in PROCESSORS:
        raise CheckpointError(
            f"{where} is for {named}, which is not supported."
            if named
            else f"{where} names no image_processor_type, and none is known for the model type {model_type!r}.",
            f"Supported: {', '.join(f'{known}ImageProcessor' for known in PROCESSORS)}.",
        )
    return _Settings(settings, name, PROCESSORS[name], where)


def _refuse_other_steps(asked: _Settings) -> None:
    others = [name for name in asked.values if name.startswith("do_") and name not in _KNOWN_STEPS]
    for name in (*others, *_UNKNOWN_SWITCHES):
        if asked.values.get(name):
            raise asked.refused(name, "a bundle cannot do this")


def _geometry(asked: _Settings, image_size: Any) -> tuple[int, int, Target | None]:
    """Height and width of the tensor, and what it is cropped from."""
    if not asked.step("do_resize", True):
        return _unresized(asked, image_size)
    size = _size(asked)
    if asked.processor.enlarges == "convnext":
        return _convnext_geometry(asked, size)
    target = _enlarged(asked, size)
    if asked.processor.crop is not None and asked.step("do_center_crop", asked.processor.crops):
        crop = _square_or_fixed(asked, "crop_size", asked.get("crop_size", asked.processor.crop))
        return crop.height, crop.width, None if crop == target else target
    if isinstance(target, ShortestEdge):
        raise asked.refused("size", "it keeps the proportions and nothing is cropped, so no two tensors are alike")
    _refuse_ignored_crop(asked, target)
    return target.height, target.width, None


def _unresized(asked: _Settings, image_size: Any) -> tuple[int, int, None]:
    if asked.processor.crop is not None and asked.step("do_center_crop", asked.processor.crops):
        raise asked.refused("do_resize", "a bundle crops only what it has resized", "Set it to true, or do not crop.")
    if image_size is None:
        raise asked.refused("do_resize", "the model names no image_size that all its pictures have", "Set it to true.")
    size = _square_or_fixed(asked, "do_resize", image_size)
    return size.height, size.width, None


def _convnext_geometry(asked: _Settings, size: Target) -> tuple[int, int, Target | None]:
    if not isinstance(size, ShortestEdge):
        raise asked.refused("size", "this class takes a shortest_edge", 'Give {"shortest_edge": pixels}.')
    _refuse_ignored_crop(asked, FixedSize(size.edge, size.edge))
    if size.edge >= _CONVNEXT_WITHOUT_CROP:
        return size.edge, size.edge, None
    return size.edge, size.edge, ShortestEdge(int(size.edge / _crop_pct(asked)))


def _enlarged(asked: _Settings, size: Target) -> Target:
    """The size before the crop, in the arithmetic of the class."""
    if asked.processor.enlarges == "levit":
        return ShortestEdge(int((256 / 224) * size.edge)) if isinstance(size, ShortestEdge) else size
    # PoolFormer alone takes a null for "as it is".
    if asked.processor.enlarges != "poolformer" or asked.values.get("crop_pct", 0.9) is None:
        return size
    part = _crop_pct(asked)
    if isinstance(size, ShortestEdge):
        return ShortestEdge(int(size.edge / part))
    if size.height == size.width:
        return ShortestEdge(int(size.height / part))
    return FixedSize(int(size.height / part), int(size.width / part))


def _crop_pct(asked: _Settings) -> float:
    part = asked.get("crop_pct", asked.processor.crop_pct)
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0.01 <= part <= 1:
        raise asked.refused("crop_pct", "it is no share of the picture", "Give a number such as 0.875.")
    return float(part)


def _refuse_ignored_crop(asked: _Settings, size: FixedSize) -> None:
    """A crop that this class leaves out in its slow form, and may do in its fast one."""
    if not asked.values.get("do_center_crop") or asked.processor.crop is not None:
        return
    crop = asked.get("crop_size", size)
    if crop == size or _square_or_fixed(asked, "crop_size", crop) == size:
        return
    raise CheckpointError(
        f"{asked.where} crops {size.height} x {size.width} pixels to {json.dumps(crop)}, which {asked.name}"
        "ImageProcessor does in its fast form only.",
        'Set "do_center_crop" to false, or name a class that crops, such as DeiTImageProcessor.',
    )


def _size(asked: _Settings) -> Target:
    default = asked.processor.size
    value = asked.values.get("size")
    if value is None:
        return default
    if isinstance(default, FixedSize):
        return _square_or_fixed(asked, "size", value)
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        value = value["shortest_edge"]
    return ShortestEdge(value) if _is_side(value) else _square_or_fixed(asked, "size", value)


def _square_or_fixed(asked: _Settings, name: str, value: Any) -> FixedSize:
    """A bare number as a square, a pair or an object as height and width."""
    sides = [value, value] if _is_side(value) else value
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        sides = [value["height"], value["width"]]
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_side, sides)):
        return FixedSize(*sides)
    raise asked.refused(name, f"{json.dumps(value)} is no height and width for {asked.name}ImageProcessor")


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_PIXELS_OF_A_SIDE


def _flips(asked: _Settings) -> bool:
    flips = asked.step("do_flip_channel_order", asked.processor.flips)
    if flips and not asked.processor.flips:
        raise asked.refused("do_flip_channel_order", f"{asked.name}ImageProcessor does not do this")
    return flips


def _factor(asked: _Settings) -> float:
    if not asked.step("do_rescale", True):
        return 1.0
    factor = asked.get("rescale_factor", 1 / 255)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor == 0:
        raise asked.refused("rescale_factor", "it must be a number other than 0", "Give 1/255 = 0.00392156862745098.")
    return float(factor)


def _normalisation(asked: _Settings, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a bundle, into which EfficientNet's two peculiarities are folded.

    With `rescale_offset` it subtracts 1 after rescaling, and with `include_top` (the default) it divides by image_std
    once more: ((x - 1) - mean) / std / std = (x - (mean + 1)) / std².
    """
    processor = asked.processor
    normalizes = asked.step("do_normalize", processor.normalizes)
    if normalizes and not processor.normalizes:
        raise asked.refused("do_normalize", f"{asked.name}ImageProcessor does not do this")
    again = processor.divides_twice and asked.step("include_top", True)
    offset = _offset(asked)
    mean = _per_channel(asked, "image_mean", channels, processor.mean) if normalizes else (0.0,) * channels
    divisor = _per_channel(asked, "image_std", channels, processor.std) if normalizes or again else (1.0,) * channels
    if 0.0 in divisor:
        raise asked.refused("image_std", "nothing can be divided by 0", "Give the deviation of each channel.")
    power = 2 if normalizes and again else 1
    return tuple(value + offset for value in mean), tuple(value**power for value in divisor)


def _offset(asked: _Settings) -> float:
    wanted = next((name for name in ("rescale_offset", "offset") if asked.values.get(name)), None)
    if wanted is None or not asked.step("do_rescale", True):
        return 0.0
    if wanted == "offset" or not asked.processor.divides_twice:
        raise asked.refused(wanted, f"{asked.name}ImageProcessor does not do this")
    return 1.0


def _per_channel(asked: _Settings, name: str, channels: int, default: tuple[float, ...]) -> tuple[float, ...]:
    value = asked.get(name, list(default))
    numbers = [value] * channels if _is_number(value) else value
    if not isinstance(numbers, list | tuple) or len(numbers) != channels or not all(map(_is_number, numbers)):
        raise asked.refused(name, f"the model takes {channels} channels", "Give one number a channel.")
    return tuple(float(number) for number in numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _filter(asked: _Settings) -> Filter:
    number = asked.values.get("resample", asked.processor.resample)
    # Left out, it is the class's own; a null reaches `resize` of transformers, which takes it for bilinear.
    number = 2 if number is None else number
    if isinstance(number, bool) or not isinstance(number, int) or number not in _FILTERS:
        names = [name for known, name in _FILTER_NAMES.items() if known == number]
        raise asked.refused("resample", f"a bundle has no filter {names[0]}" if names else "no such filter is known")
    return _FILTERS[number]
