"""Whether the calls of tools that a model writes are ones that were offered. Pure.

Owns the check alone: names, JSON, and the tool's own schema, within the bounds of `edgewise.schemas`, whoever wrote
the schema and the call. How a model writes a call is its reader's.
"""

from __future__ import annotations

import msgspec

from edgewise.contracts import Prediction
from edgewise.dialogue import AUTO, NO_TOOL, REQUIRED, Finish, Prompt, Tool, Written
from edgewise.errors import InputError
from edgewise.schemas import checker_of

MAX_ARGUMENTS = 64 * 1024
"""Characters of a call's arguments; a longer call is not valid."""


class ToolCheck:
    """What may be called. It holds schemas as texts: what checks by them is large, and waits for a whole answer.

    Args:
        prompt: Offers the tools, and says whether one has to be called.

    Raises:
        InputError: A tool's schema is none, or too large once its references are followed.
        MissingExtraError: jsonschema_rs is not installed.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._choice = prompt.tool_choice
        offered = () if prompt.tool_choice == NO_TOOL else prompt.tools
        self._schemas = {tool.name: _read(tool) for tool in offered}

    @property
    def is_needed(self) -> bool:
        """Whether an answer may hold calls at all."""
        return bool(self._schemas)

    def is_valid(self, written: Written | None) -> bool:
        """Whether all calls are of tools on offer, with arguments as these have them, and one is there that must be."""
        calls = () if written is None else written.tool_calls
        if not calls:
            return not self._schemas or self._choice == AUTO
        if self._choice not in (AUTO, REQUIRED, *{call.name for call in calls}):
            return False
        return all(self._fits(call.name, call.arguments) for call in calls)

    def _fits(self, name: str, arguments: str) -> bool:
        schema = self._schemas.get(name)
        if schema is None or len(arguments) > MAX_ARGUMENTS:
            return False
        try:
            given = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return False
        return isinstance(given, dict) and checker_of(schema).takes(given)


def without_calls(prediction: Prediction) -> Prediction:
    """The same without its calls: one that was refused is handed to nobody, and what is none stays text."""
    written = prediction.written
    if written is None or not written.tool_calls:
        return prediction
    finish = Finish.STOP if written.finish is Finish.TOOL_CALLS else written.finish
    unread = "".join(call.arguments for call in written.tool_calls if not call.name)
    kept = msgspec.structs.replace(written, tool_calls=(), finish=finish)
    return msgspec.structs.replace(prediction, output=f"{prediction.output}{unread}", written=kept)


def _read(tool: Tool) -> str:
    """The schema of a tool, which is one."""
    try:
        checker_of(tool.parameters)
    except (ValueError, RecursionError) as e:
        line = str(e).splitlines()[0] if str(e) else "it is nested too deeply"
        raise InputError(
            f"The parameters of the tool {tool.name!r} are no JSON Schema: {line}.", "Correct that schema."
        ) from e
    return tool.parameters
