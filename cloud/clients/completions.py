"""A whole prompt as the body of OpenAI's `/v1/chat/completions` and `/v1/completions`. Pure; `chat` reads the answers.

Owns what of a prompt each kind of server has a word for. vLLM's extensions (`top_k`, `continue_final_message`) are
understood by our own service too; OpenAI's refuses fields that it does not know.

Sampling is written out in full where tokens are drawn: what a request leaves out, vLLM takes from the checkpoint's
`generation_config.json`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgewise.cloud.clients.prompting import json_begun, json_object
from edgewise.dialogue import AUTO, NO_TOOL, REQUIRED, Message, Prompt, Role, Sampling, Tool, ToolCall
from edgewise.errors import CloudRefusedError

VLLM, OPENAI = "vllm", "openai"
DIALECTS: Final = (VLLM, OPENAI)

_OURS = "edgewise"  # what our own service says in its list of models

CHAT, TEXT = "chat/completions", "completions"


def path_of(prompt: Prompt) -> str:
    """Where under /v1 a prompt is answered."""
    return CHAT if prompt.text is None else TEXT


def offers_tools(prompt: Prompt) -> bool:
    """Whether an answer may call a tool."""
    return bool(prompt.tools) and prompt.tool_choice != NO_TOOL


def check_continues_json(prompt: Prompt, server: str | None) -> None:
    """That a server goes on with JSON that is begun, and does not write it anew behind what there is.

    vLLM holds the tokens that it writes to a schema, from the schema's beginning on, and knows nothing of what stands
    before them; no other server is known to do better. A text to continue tells nobody what of it is begun.

    Args:
        prompt: The prompt; it is begun and has a schema.
        server: Whose the model is, in the server's words.

    Raises:
        CloudRefusedError: It does not.
    """
    if prompt.text is not None or server != _OURS:
        raise json_begun()


def encode_prompt(
    prompt: Prompt, model: str, *, dialect: str, max_tokens: int | None, longest_text: int, stream: bool
) -> bytes:
    """The body that asks for an answer to a prompt.

    Args:
        prompt: The prompt.
        model: The model's name there.
        dialect: One of `DIALECTS`.
        max_tokens: Longest answer where the prompt sets none; None leaves it to the model's context.
        longest_text: The same for a text without a template: that protocol takes a missing number for 16.
        stream: Whether the answer is streamed.

    Raises:
        CloudRefusedError: The server has no word for something that the prompt wants, or a schema is no JSON object.
    """
    is_text = prompt.text is not None
    limits = (prompt.sampling.max_tokens, max_tokens, longest_text if is_text else None)
    most = next((limit for limit in limits if limit is not None), None)
    body: dict[str, Any] = {"model": model, "n": 1, "stream": stream}
    body |= _text(prompt) if is_text else _conversation(prompt, dialect)
    body |= _sampling(prompt.sampling, dialect)
    if most is not None:
        body["max_completion_tokens" if dialect == OPENAI and not is_text else "max_tokens"] = most
    if prompt.sampling.schema is not None:
        body["response_format"] = _format(prompt.sampling.schema)
    if stream:
        body |= {"stream_options": {"include_usage": True}, **_logprobs(prompt, dialect)}
    return msgspec.json.encode(body)


def _text(prompt: Prompt) -> dict[str, Any]:
    if prompt.tools:
        raise CloudRefusedError("`tools` are given with a text to continue.", "Send `messages`, or drop the tools.")
    return {"prompt": f"{prompt.text}{prompt.begun}"}


def _conversation(prompt: Prompt, dialect: str) -> dict[str, Any]:
    messages = [_message(message) for message in prompt.messages]
    body: dict[str, Any] = {"messages": messages}
    if prompt.begun:
        if dialect == OPENAI:
            raise CloudRefusedError(
                "This cloud cannot go on with an answer that is begun.",
                f'Ask without `begun`, or a server that continues: dialect = "{VLLM}".',
            )
        messages.append({"role": Role.ASSISTANT, "content": prompt.begun})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if prompt.tools:
        body["tools"] = [_tool(tool) for tool in prompt.tools]
    if prompt.tools or prompt.tool_choice not in (AUTO, NO_TOOL):
        body["tool_choice"] = _choice(prompt.tool_choice)
    return body


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said |= {"content": message.content or None, "tool_calls": [_call(call) for call in message.tool_calls]}
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool(tool: Tool) -> dict[str, Any]:
    about = {"description": tool.description} if tool.description else {}
    schema = json_object(tool.parameters, f"parameters of the tool {tool.name!r}")
    return {"type": "function", "function": {"name": tool.name, **about, "parameters": schema}}


def _choice(choice: str) -> Any:
    return choice if choice in (AUTO, NO_TOOL, REQUIRED) else {"type": "function", "function": {"name": choice}}


def _sampling(sampling: Sampling, dialect: str) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": 0.0 if sampling.is_greedy else sampling.temperature}
    if not sampling.is_greedy:
        body["top_p"] = sampling.top_p
        if dialect == VLLM:
            body["top_k"] = sampling.top_k
        elif sampling.top_k:
            raise CloudRefusedError(f"`top_k` is {sampling.top_k}, and this cloud knows none.", "Drop it; use `top_p`.")
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = sampling.stop
    return body


def _format(schema: str) -> dict[str, Any]:
    parsed = json_object(schema, "schema of the answer")
    if not parsed:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": parsed, "strict": True}}


def _logprobs(prompt: Prompt, dialect: str) -> dict[str, Any]:
    """Always asked for where they cost nothing; some of OpenAI's models refuse a request that wants any."""
    top = prompt.sampling.top_logprobs
    if dialect == OPENAI and not (top or prompt.sampling.logprobs):
        return {}
    return {"logprobs": top} if prompt.text is not None else {"logprobs": True, "top_logprobs": top}
