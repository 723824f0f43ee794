"""The image processors of transformers 4.57: what each does where `preprocessor_config.json` leaves a setting out.

Owns the defaults and habits of each class, taken from its slow form (`image_processing_<model>.py`); the fast form is
meant to agree with it. Translates nothing: `images.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgewise.bundle import FixedSize, ShortestEdge

Target: TypeAlias = FixedSize | ShortestEdge
Triple: TypeAlias = tuple[float, float, float]

_HALF: Triple = (0.5, 0.5, 0.5)
_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
_NEAREST, _BILINEAR, _BICUBIC = 0, 2, 3


@dataclass(frozen=True)
class Processor:
    """One class of image processors.

    Attributes:
        size: Its default size; a shortest edge also means that a bare number is one, and not a square.
        crop: Pixels of its default square crop; None if the class never crops after resizing.
        resample: Number of its default filter in Pillow.
        mean: Its default mean.
        std: Its default standard deviation.
        crops: Whether it crops unless told otherwise.
        enlarges: How it derives the size before the crop from `size`: "none" takes it as it is; "convnext" divides by
            crop_pct below 384 pixels and cuts out `size`; "poolformer" divides by crop_pct; "levit" takes 256/224.
        crop_pct: Its default crop_pct.
        normalizes: Whether the class knows normalisation.
        flips: Whether it turns red, green, blue into blue, green, red unless told otherwise.
        divides_twice: Whether `include_top` divides by image_std once more, and `rescale_offset` subtracts 1.
    """

    size: Target
    crop: int | None = None
    resample: int = _BILINEAR
    mean: Triple = _HALF
    std: Triple = _HALF
    crops: bool = True
    enlarges: Literal["none", "convnext", "levit", "poolformer"] = "none"
    crop_pct: float | None = None
    normalizes: bool = True
    flips: bool = False
    divides_twice: bool = False


_VIT = Processor(FixedSize(224, 224))
_DEIT = Processor(FixedSize(256, 256), crop=224, resample=_BICUBIC)
_CLIP = Processor(ShortestEdge(224), crop=224, resample=_BICUBIC, mean=_CLIP_MEAN, std=_CLIP_STD)
_MOBILENET = Processor(ShortestEdge(256), crop=224)

PROCESSORS: Mapping[str, Processor] = {
    "Beit": _DEIT,
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "ConvNext": Processor(ShortestEdge(384), enlarges="convnext", crop_pct=224 / 256),
    "DeiT": _DEIT,
    "EfficientFormer": Processor(
        FixedSize(224, 224), crop=224, resample=_BICUBIC, mean=_IMAGENET_MEAN, std=_IMAGENET_STD
    ),
    "EfficientNet": Processor(FixedSize(346, 346), crop=289, crops=False, resample=_NEAREST, divides_twice=True),
    "Levit": Processor(
        ShortestEdge(224), crop=224, resample=_BICUBIC, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, enlarges="levit"
    ),
    "MobileNetV1": _MOBILENET,
    "MobileNetV2": _MOBILENET,
    "MobileViT": Processor(ShortestEdge(224), crop=256, normalizes=False, flips=True),
    "PoolFormer": Processor(
        ShortestEdge(224),
        crop=224,
        resample=_BICUBIC,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        enlarges="poolformer",
        crop_pct=0.9,
    ),
    "Pvt": Processor(FixedSize(224, 224), mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "Segformer": Processor(FixedSize(512, 512), mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "Siglip": Processor(FixedSize(224, 224), resample=_BICUBIC),
    "ViT": _VIT,
    "ViTHybrid": _CLIP,
}
"""By the class's name without ImageProcessor, ImageProcessorFast or FeatureExtractor."""

_MODELS_OF: Mapping[str, str] = {
    "Beit": "beit data2vec-vision",
    "Bit": "bit dinov2 dinov2_with_registers focalnet hiera",
    "CLIP": "clip metaclip_2",
    "ConvNext": "convnext convnextv2 cvt regnet resnet van",
    "DeiT": "deit",
    "EfficientFormer": "efficientformer",
    "EfficientNet": "efficientnet",
    "Levit": "levit",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "MobileViT": "mobilevit mobilevitv2",
    "PoolFormer": "poolformer",
    "Pvt": "pvt pvt_v2",
    "Segformer": "segformer",
    "Siglip": "siglip",
    "ViT": "dinat ijepa nat swiftformer swin swinv2 vit vit_msn",
    "ViTHybrid": "vit_hybrid",
}
PROCESSOR_OF_MODEL: Mapping[str, str] = {
    model_type: name for name, model_types in _MODELS_OF.items() for model_type in model_types.split()
}
"""The processor's name by model_type, for files that name no class."""


def short_name(class_name: str) -> str:
    """The key in `PROCESSORS` of a class's name: "ViTImageProcessorFast" and "ViTFeatureExtractor" both give "ViT"."""
    name = class_name.removesuffix("Fast")
    return name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
