"""The edge runtime: a bundle in, answers out, without torch.

Owns session, preprocessing, the model and the look at the device. Decides nothing about routing.

    from edgewise.edge import EdgeModel

    model = EdgeModel.load("bundle")
    model.predict(["grain exports rose"])[0].output
"""

from typing import TYPE_CHECKING, Any

from edgewise.dialogue import Piece
from edgewise.edge.device import Device, classify, parse_cpu_flags, probe
from edgewise.edge.golden import golden_items
from edgewise.edge.image import decode, encode_png
from edgewise.edge.model import EdgeModel

if TYPE_CHECKING:
    from edgewise.edge.generator import EdgeGenerator, TokenScores

__all__ = [
    "Device",
    "EdgeGenerator",
    "EdgeModel",
    "Piece",
    "TokenScores",
    "classify",
    "decode",
    "encode_png",
    "golden_items",
    "parse_cpu_flags",
    "probe",
]


def __getattr__(name: str) -> Any:
    """What writes text is loaded where text is written: a classifier's gateway starts without it."""
    if name in ("EdgeGenerator", "TokenScores"):
        from edgewise.edge import generator

        return getattr(generator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
