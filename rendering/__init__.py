"""What people see: tables and sentences as rich renderables, and the progress display. Prints nothing itself.

Its names are imported when they are asked for: the help of a command waits for no table, and a gateway for no bar.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.rendering.bars import ConsoleProgress, progress_on
    from edgewise.rendering.chat import INSTEAD, chat_greeting, chat_help, chat_note, heard_line, printable
    from edgewise.rendering.models import bundle_view, diagnosis_view, predictions_view
    from edgewise.rendering.plan import planned_view
    from edgewise.rendering.quantizing import profile_view, quantized_view, report_view
    from edgewise.rendering.routing import certificate_sentence, certified_view, explained_view, summary_view

__all__ = [
    "INSTEAD",
    "ConsoleProgress",
    "bundle_view",
    "certificate_sentence",
    "certified_view",
    "chat_greeting",
    "chat_help",
    "chat_note",
    "diagnosis_view",
    "explained_view",
    "heard_line",
    "planned_view",
    "predictions_view",
    "printable",
    "profile_view",
    "progress_on",
    "quantized_view",
    "report_view",
    "summary_view",
]

_HOMES = {
    "bars": ("ConsoleProgress", "progress_on"),
    "chat": ("INSTEAD", "chat_greeting", "chat_help", "chat_note", "heard_line", "printable"),
    "models": ("bundle_view", "diagnosis_view", "predictions_view"),
    "plan": ("planned_view",),
    "quantizing": ("profile_view", "quantized_view", "report_view"),
    "routing": ("certificate_sentence", "certified_view", "explained_view", "summary_view"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
