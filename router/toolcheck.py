"""Whether the calls of tools that a model writes are ones that were offered. Pure.

Owns the check alone: names, JSON, and the tool's own schema by jsonschema_rs (extra "generate"), which is imported
where tools are offered. A schema fetches nothing, and its patterns are matched in linear time, whoever wrote it. How a
model writes a call is its reader's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from edgewise.dialogue import AUTO, NO_TOOL, REQUIRED, Finish, Prompt, Tool, Written
from edgewise.errors import InputError, MissingExtraError

_KEPT = 64


class ToolCheck:
    """What may be called.

    Args:
        prompt: Offers the tools, and says whether one has to be called.

    Raises:
        InputError: A tool's schema is none.
        MissingExtraError: jsonschema_rs is not installed.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._choice = prompt.tool_choice
        offered = () if prompt.tool_choice == NO_TOOL else prompt.tools
        self._schemas = _validators(offered) if offered else {}

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
        if schema is None:
            return False
        try:
            given = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            return False
        return isinstance(given, dict) and bool(schema.is_valid(given))


def without_calls(written: Written | None) -> Written | None:
    """The same without its calls: one that was refused is handed to nobody."""
    if written is None or not written.tool_calls:
        return written
    finish = Finish.STOP if written.finish is Finish.TOOL_CALLS else written.finish
    return msgspec.structs.replace(written, tool_calls=(), finish=finish)


@lru_cache(maxsize=_KEPT)
def _validators(tools: tuple[Tool, ...]) -> Mapping[str, Any]:
    """A validator by tool."""
    try:
        import jsonschema_rs
    except ImportError as e:
        raise MissingExtraError("Checking the calls of tools", "generate") from e
    found = {}
    for tool in tools:
        try:
            schema = msgspec.json.decode(tool.parameters)
            found[tool.name] = jsonschema_rs.validator_for(
                schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
            )
        except (ValueError, RecursionError) as e:  # both libraries' errors are ValueErrors
            line = str(e).splitlines()[0] if str(e) else "it is nested too deeply"
            raise InputError(
                f"The parameters of the tool {tool.name!r} are no JSON Schema: {line}.", "Correct that schema."
            ) from e
    return found
