"""The edge runtime: a bundle in, answers out, without torch.

Owns session, preprocessing, the model and the look at the device. Decides nothing about routing.

    from edgewise.edge import EdgeModel

    model = EdgeModel.load("bundle")
    model.predict(["grain exports rose"])[0].output
"""

from edgewise.dialogue import Piece
from edgewise.edge.device import Device, classify, parse_cpu_flags, probe
from edgewise.edge.generator import EdgeGenerator, TokenScores
from edgewise.edge.golden import golden_items
from edgewise.edge.image import decode, encode_png
from edgewise.edge.model import EdgeModel

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
