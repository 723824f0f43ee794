"""What may be asked of a language model.

Owns the rules that a prompt keeps before anything is computed of it. Whatever is wrong is named by the field's name in
`dialogue.py`, which is that of OpenAI's protocol.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgewise.dialogue import AUTO, MAX_STOPS, MAX_TOP_LOGPROBS, NO_TOOL, REQUIRED, Prompt, Sampling, is_object
from edgewise.errors import InputError


def check(prompt: Prompt) -> None:
    """Refuse what cannot be answered, whatever the model.

    Raises:
        InputError: Something makes no sense.
    """
    if prompt.text is None and not prompt.messages:
        raise InputError("messages: there is none.", "Give one or more, or a text to continue.")
    if prompt.text is not None and prompt.messages:
        raise InputError("messages: there is also a text to continue.", "Give one of them.")
    check_limits(prompt.sampling.max_tokens, prompt.sampling.stop)
    _check_sampling(prompt.sampling)
    _check_tools(prompt)
    if prompt.sampling.schema is not None and prompt.sampling.stop:
        raise InputError("stop: a stop text would cut JSON by a schema short.", "Give no stop, or no schema.")


def check_limits(max_tokens: int | None, stop: Sequence[str]) -> None:
    """Refuse limits that make no sense.

    Raises:
        InputError: They do not.
    """
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens must be 1 or more, not {max_tokens}.", "Give a larger one.")
    if isinstance(stop, str) or not all(isinstance(word, str) and word for word in stop):
        raise InputError(f"stop takes a list of texts, none of them empty; given {stop!r}.", "Give stop=['text'].")
    if len(stop) > MAX_STOPS:
        raise InputError(f"stop takes {MAX_STOPS} texts at most, given {len(stop)}.", "Give fewer.")


def _check_sampling(sampling: Sampling) -> None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InputError(f"temperature must be 0 or more, not {sampling.temperature}.", "Give 0 to 2.")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p must lie in (0, 1], not {sampling.top_p}.", "Give 1 to draw among all tokens.")
    if sampling.top_k < 0:
        raise InputError(f"top_k must be 0 or more, not {sampling.top_k}.", "Give 0 for no limit.")
    if sampling.seed is not None and not -(1 << 63) <= sampling.seed < 1 << 64:
        raise InputError(f"seed must fit 64 bits, not {sampling.seed}.", "Give a smaller one.")
    if not 0 <= sampling.top_logprobs <= MAX_TOP_LOGPROBS:
        problem = f"top_logprobs must be 0 to {MAX_TOP_LOGPROBS}, not {sampling.top_logprobs}."
        raise InputError(problem, "Give fewer.")


def _check_tools(prompt: Prompt) -> None:
    names = [tool.name for tool in prompt.tools]
    if any(not name for name in names) or len(set(names)) < len(names):
        raise InputError(f"tools: each needs a name of its own, given {names}.", "Name them differently.")
    for tool in prompt.tools:
        if not is_object(tool.parameters):
            problem = f"tools: the parameters of {tool.name} are no JSON Schema: {tool.parameters[:100]}."
            raise InputError(problem, 'Give an object such as {"type": "object", "properties": {}}.')
    if prompt.tool_choice in (AUTO, NO_TOOL):
        return
    if prompt.tool_choice != REQUIRED and prompt.tool_choice not in names:
        problem = f"tool_choice: there is no tool {prompt.tool_choice!r} among {names}."
        raise InputError(problem, f"Give one of these names, {AUTO!r}, {NO_TOOL!r} or {REQUIRED!r}.")
    if not names:
        raise InputError("tool_choice: there is no tool that could be called.", "Give tools.")
    if prompt.begun:
        raise InputError("tool_choice: an answer that has begun as text must not call a tool.", f"Give {AUTO!r}.")
