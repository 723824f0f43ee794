"""What people see: tables and sentences as rich renderables, and the progress display. Prints nothing itself."""

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
