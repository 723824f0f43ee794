"""vLLM's API over a real socket, in shapes recorded from it: chats, texts, tools, log-probabilities, counts, errors.

Its model is a rule: it answers a text X with "label of X", one token a word, and asks for the weather of the places
that a text beginning with "weather in" names. What is sent to it is checked as vLLM checks it. It runs on the server of
`cloud_stubs`, which obeys and misbehaves as it is told. Shapes are those of vLLM 0.15 and 0.16 (their Python source,
and answers of theirs that were published), where nothing else is said.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

SPEC = importlib.util.spec_from_file_location("edgewise_vllm_cloud_stubs", Path(__file__).parent / "cloud_stubs.py")
stubs = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = stubs  # dataclasses look their module up
SPEC.loader.exec_module(stubs)

CONTEXT = 4096
LOGPROB = -0.5
END = "<|im_end|>"
TOOL_ID = "chatcmpl-tool-9f{:02d}"


class RefusedError(Exception):
    """A request that vLLM answers with an error."""

    def __init__(
        self, message: str, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


def error(status: int, message: str, kind: str = "InternalServerError", param: str | None = None) -> dict[str, Any]:
    """An error of vLLM 0.10.1 and later."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def flat_error(status: int, message: str, kind: str = "BadRequestError") -> dict[str, Any]:
    """An error of vLLM before 0.10.1."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def reply(asked: Any, version: str | None) -> Any:
    """What vLLM answers; a version of None is a server that names no model."""
    if asked.path == "/v1/models":
        return stubs.as_json({"object": "list", "data": [stubs.card("another"), stubs.card()]})
    try:
        answer = Answer(asked.path, asked.json)
    except RefusedError as refused:
        return stubs.as_json(error(refused.status, str(refused), refused.kind, refused.param), refused.status)
    if asked.json.get("stream"):
        return stubs.Reply(headers={"content-type": "text/event-stream; charset=utf-8"}, pieces=answer.pieces(version))
    return stubs.as_json(answer.whole(version))


class Answer:
    """One answer: what is said or called, and how that is written whole and in pieces."""

    def __init__(self, path: str, sent: dict[str, Any]) -> None:
        self.sent = sent
        self.is_chat = path == "/v1/chat/completions"
        if not self.is_chat and path != "/v1/completions":
            raise RefusedError("Not Found", 404, "NotFoundError")
        if sent["model"] != stubs.MODEL:
            raise RefusedError(f"The model `{sent['model']}` does not exist.", 404, "NotFoundError", "model")
        self.check()
        asked, begun = self.asked()
        self.calls = self.called(asked)
        words = [] if self.calls else stubs.words(self.text(asked).removeprefix(begun))
        self.prompt_tokens = len(stubs.words(asked))
        if self.prompt_tokens > CONTEXT:
            raise RefusedError(
                f"This model's maximum context length is {CONTEXT} tokens. However, your request has "
                f"{self.prompt_tokens} input tokens. Please reduce the length of the input messages.",
                param="input_tokens",
            )
        limit = sent.get("max_completion_tokens") or sent.get("max_tokens")
        if not self.is_chat and "max_tokens" not in sent:
            limit = 16
        self.words = words[:limit]
        self.finish = "length" if len(self.words) < len(words) else "stop"
        for stop in sent.get("stop", ()):
            told = "".join(self.words)
            if stop in told:
                self.words, self.finish = stubs.words(told[: told.index(stop)]), "stop"

    def check(self) -> None:
        """What vLLM's validation refuses."""
        sent = self.sent
        if sent.get("stream_options") and not sent.get("stream"):
            raise RefusedError("Stream options can only be defined when `stream=True`.", param="stream_options")
        if sent.get("add_generation_prompt", True) and sent.get("continue_final_message"):
            raise RefusedError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        if sent.get("tools") == []:
            raise RefusedError("`tools` must not be an empty array.", param="tools")
        if self.is_chat and sent.get("top_logprobs") and not sent.get("logprobs"):
            raise RefusedError("when using `top_logprobs`, `logprobs` must be set to true.", param="top_logprobs")
        if sent.get("temperature", 1.0) < 0:
            raise RefusedError(f"temperature must be non-negative, got {sent['temperature']}.", param="temperature")

    def asked(self) -> tuple[str, str]:
        """The text that is answered, and what the answer begins with."""
        if not self.is_chat:
            return self.sent["prompt"], ""
        messages = self.sent["messages"]
        if not self.sent.get("continue_final_message"):
            return messages[-1]["content"], ""
        if messages[-1]["role"] != "assistant":
            raise RefusedError("The final message is not of the assistant.")
        return messages[-2]["content"], messages[-1]["content"]

    def text(self, asked: str) -> str:
        if self.sent.get("response_format"):
            return json.dumps({"label": asked})
        return f"label of {asked}" if self.is_chat else f"and {asked}"

    def called(self, asked: str) -> list[tuple[str, str]]:
        """Names and arguments of the tools that are called."""
        choice = self.sent.get("tool_choice", "auto")
        named = choice["function"]["name"] if isinstance(choice, dict) else None
        tools = {tool["function"]["name"] for tool in self.sent.get("tools", ())}
        if named is not None and named not in tools:
            raise RefusedError("The tool specified in `tool_choice` does not match any of the specified `tools`")
        if not tools or choice == "none" or not asked.startswith("weather in "):
            return []
        places = re.split(r" and ", asked.removeprefix("weather in "))
        return [(named or "get_weather", json.dumps({"city": place})) for place in places]

    @property
    def ending(self) -> str:
        """OpenAI's and vLLM's word where a tool that was named is called is "stop"."""
        auto = not isinstance(self.sent.get("tool_choice"), dict)
        return "tool_calls" if self.calls and auto else self.finish

    @property
    def usage(self) -> dict[str, Any]:
        count = len(self.words) + 9 * len(self.calls)
        total = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens + count}
        return {**total, "completion_tokens": count, "prompt_tokens_details": {"cached_tokens": 1}}

    def whole(self, version: str | None) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": self.ending, "stop_reason": None, "token_ids": None, "logprobs": None}
        if self.is_chat:
            calls = [
                {"id": TOOL_ID.format(at), "type": "function", "function": {"name": name, "arguments": arguments}}
                for at, (name, arguments) in enumerate(self.calls)
            ]
            message = {"role": "assistant", "content": None if calls else "".join(self.words), "refusal": None}
            choice["message"] = {
                **message,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "reasoning": None,
            }
            choice["message"] |= {"tool_calls": calls} if calls else {}
        else:
            choice |= {"text": "".join(self.words), "prompt_logprobs": None}
        kind = "chat.completion" if self.is_chat else "text_completion"
        body = {"id": "chatcmpl-8c16", "object": kind, "created": 1764000000, "choices": [choice], "usage": self.usage}
        return {**body, **named(version, whole=True), "service_tier": None, "kv_transfer_params": None}

    def pieces(self, version: str | None) -> tuple[bytes, ...]:
        """The fingerprint stands in the last chunk alone; an answer that is cut ends in the chunk of its last token."""
        events = []
        if self.is_chat:
            events.append(self.chunk(version, {"role": "assistant", "content": ""}))
        for at, (name, arguments) in enumerate(self.calls):
            events += [self.chunk(version, {"tool_calls": [delta]}) for delta in cut(at, name, arguments)]
        is_cut = self.finish == "length"
        for at, word in enumerate(self.words):
            last = is_cut and at == len(self.words) - 1
            events.append(self.chunk(version, word, word, self.finish if last else None))
        if not is_cut:
            events.append(self.chunk(version, {} if self.calls else "", END, self.ending))
        if self.sent.get("stream_options", {}).get("include_usage"):
            events.append(self.event(version, [], usage=self.usage, **named(version, whole=True)))
        return (*events, b"data: [DONE]\n\n")

    def chunk(
        self, version: str | None, delta: dict[str, Any] | str, token: str | None = None, ending: str | None = None
    ) -> bytes:
        logprobs = None if token is None else self.logprobs(token)
        about = {"index": 0, "logprobs": logprobs, "finish_reason": ending, **({"stop_reason": None} if ending else {})}
        if isinstance(delta, str):
            about |= {"delta": {"content": delta}} if self.is_chat else {"text": delta}
        else:
            about |= {"delta": delta}
        return self.event(version, [about], **named(version))

    def event(self, version: str | None, choices: list[Any], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return stubs.sse({"id": "chatcmpl-8c16", "object": kind, "created": 1764000000, **more, "choices": choices})

    def logprobs(self, token: str) -> dict[str, Any] | None:
        """Of a token and of those beside it; the one that was taken comes first, whatever its rank."""
        others = [(token, LOGPROB), *((f"{token}~{rank}", LOGPROB - rank / 2) for rank in range(1, 9))]
        asked = self.sent.get("logprobs")
        if asked is None or asked is False:
            return None
        if self.is_chat:
            top = [shown(*other) for other in others[: self.sent.get("top_logprobs") or 0]]
            return {"content": [{**shown(token, LOGPROB), "top_logprobs": top}]}
        top = [dict(others[: asked + 1])]
        return {"text_offset": [0], "token_logprobs": [LOGPROB], "tokens": [token], "top_logprobs": top}


def shown(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def named(version: str | None, *, whole: bool = False) -> dict[str, Any]:
    """The model's name in every chunk; its fingerprint, which vLLM tells since April 2026, in the last one alone."""
    if version is None:
        return {}
    return {"model": stubs.MODEL, **({"system_fingerprint": f"vllm-0.15.0-{version}"} if whole else {})}


def deltas(index: int, name: str, arguments: str) -> list[dict[str, Any]]:
    """A call as the hermes parser streams it: its id and name, then its arguments bit by bit under its index."""
    opened = {"id": TOOL_ID.format(index), "type": "function", "index": index, "function": {"name": name}}
    bits = re.findall(r".{1,5}", arguments)
    return [opened, *({"index": index, "function": {"arguments": bit}} for bit in bits)]


def repeating_deltas(index: int, name: str, arguments: str) -> list[dict[str, Any]]:
    """The same as vLLM 0.8 does it: every call under index 0, and ids that are empty after the first piece."""
    first, *others = deltas(index, name, arguments)
    empty = {"id": "", "type": "function", "index": 0}
    told = [{**empty, "function": {"name": None, **other["function"]}} for other in others]
    return [{**first, "index": 0, "function": {"name": name, "arguments": ""}}, *told]


def whole_deltas(index: int, name: str, arguments: str) -> list[dict[str, Any]]:
    """A call in one piece, as parsers stream it that read arguments whole (vLLM 0.10, tool_choice of one tool)."""
    return [
        {
            "id": TOOL_ID.format(index),
            "type": "function",
            "index": index,
            "function": {"name": name, "arguments": arguments},
        }
    ]


def nameless_deltas(index: int, name: str, arguments: str) -> list[dict[str, Any]]:
    """A call without an id, whose name is repeated with every piece: no vLLM, but servers that speak like it."""
    return [
        {"index": index, "function": {"name": name, "arguments": delta["function"].get("arguments")}}
        for delta in deltas(index, name, arguments)
    ]


cut = deltas
"""How calls are streamed."""

VLLM = stubs.Dialect(
    client=stubs.OPENAI.client,
    reply=reply,
    says=lambda status, message: stubs.as_json(error(status, message), status),
    throttled=stubs.OPENAI.throttled,
    expired=stubs.OPENAI.expired,
    refused=stubs.OPENAI.refused,
    trouble={
        "fails": stubs.sse(error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")),
        "fails as before 0.10.1": stubs.sse(flat_error(500, "Background loop has errored.", "InternalServerError")),
        "throttled": stubs.sse(error(429, "Too many requests.", "RateLimitError")),
    },
)


# Bedrock, asked whole prompts: the same rule, in the shapes of botocore's model of Converse.


def bedrock_reply(asked: Any, version: str | None) -> Any:
    """What Converse answers to a prompt, whole and as an event stream."""
    if asked.method == "GET":
        return stubs.bedrock_reply(asked, version)
    sent = asked.json
    turns = sent["messages"]
    begun = turns[-1]["content"][0]["text"] if turns[-1]["role"] == "assistant" else ""
    (block,) = [block for block in turns[-2 if begun else -1]["content"] if "text" in block]
    text = block["text"]
    places = re.split(r" and ", text.removeprefix("weather in ")) if text.startswith("weather in ") else []
    calls = [("get_weather", {"city": place}) for place in places] if "toolConfig" in sent else []
    words = [] if calls else stubs.words(f"label of {text}".removeprefix(begun))
    limit = sent["inferenceConfig"].get("maxTokens")
    ending = "tool_use" if calls else "end_turn"
    if limit is not None and limit < len(words):
        words, ending = words[:limit], "max_tokens"
    usage = {"inputTokens": len(stubs.words(text)), "outputTokens": len(words) + 9 * len(calls), "totalTokens": 9}
    if asked.path.endswith("/converse-stream"):
        return stubs.streamed(_bedrock_events(words, calls, ending, usage, version))
    content = [{"text": "".join(words)}] if words else []
    content += [
        {"toolUse": {"toolUseId": f"tooluse_{at}", "name": name, "input": arguments}}
        for at, (name, arguments) in enumerate(calls)
    ]
    return stubs.as_json(
        {
            **stubs.converse("", version, ending),
            "output": {"message": {"role": "assistant", "content": content}},
            "usage": usage,
        }
    )


def _bedrock_events(words: list[str], calls: list[Any], ending: str, usage: Any, version: str | None) -> list[bytes]:
    told: list[tuple[str, dict[str, Any]]] = [("messageStart", {"role": "assistant"})]
    told += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}}) for word in words]
    for at, (name, arguments) in enumerate(calls):
        used = {"toolUse": {"toolUseId": f"tooluse_{at}", "name": name}}
        told.append(("contentBlockStart", {"contentBlockIndex": at, "start": used}))
        told += [
            ("contentBlockDelta", {"contentBlockIndex": at, "delta": {"toolUse": {"input": bit}}})
            for bit in re.findall(r".{1,5}", json.dumps(arguments))
        ]
        told.append(("contentBlockStop", {"contentBlockIndex": at}))
    told.append(("messageStop", {"stopReason": ending}))
    told.append(("metadata", {"usage": usage, "metrics": {"latencyMs": 300}, **stubs.routed(version)}))
    return [stubs.event(kind, json.dumps(payload).encode()) for kind, payload in told]


BEDROCK = stubs.Dialect(**{**vars(stubs.BEDROCK), "reply": bedrock_reply})

DIALECTS = {"vllm": VLLM, "bedrock": BEDROCK}
