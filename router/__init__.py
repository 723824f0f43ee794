"""The certified router: which requests are answered at the edge, and on whose word.

Owns the decision and the one flow that carries it out. Models, clouds, stores and protocols belong to other rooms.
"""

from edgewise.router.certificate import certify, certify_accuracy, certify_groups, certify_selective, threshold_grid
from edgewise.router.hybrid import Router
from edgewise.router.monitor import AuditMonitor
from edgewise.router.settings import Plugs, RouterSettings
from edgewise.router.signals import SIGNALS

__all__ = [
    "SIGNALS",
    "AuditMonitor",
    "Plugs",
    "Router",
    "RouterSettings",
    "certify",
    "certify_accuracy",
    "certify_groups",
    "certify_selective",
    "threshold_grid",
]
