"""Clouds that speak each client's protocol over real sockets, as recorded from the real ones, and misbehave when told.

A `Dialect` is how one kind of cloud speaks; a `Server` speaks it. Event streams are framed here, with checksums, and
read by botocore's own parser: https://smithy.io/2.0/aws/amazon-eventstream.html
"""

import contextlib
import json
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote
from zlib import crc32

from edgewise.cloud.clients import CLIENTS, Network

SECRET = "key-5eb1"
VERSION = "sha256:1"
MODEL = "news"
BEDROCK_MODEL = "amazon.nova-lite-v1:0"

AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "never-sent",
    "AWS_SESSION_TOKEN": SECRET,
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


PATIENT = Network(connect_timeout_s=20)
"""A busy machine is slow to connect even to itself."""


@dataclass(frozen=True)
class Asked:
    """One request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """One response: a body, or pieces that are sent one by one."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps(value).encode(), status, {"content-type": "application/json", **named})


@dataclass(frozen=True)
class Dialect:
    """How one kind of cloud speaks.

    Attributes:
        client: Makes the client of a URL.
        reply: A good answer to a request, from a version of the model; None names none.
        says: An error response with a status and a message.
        throttled: Asked too much, wait for seven seconds.
        expired: The credentials have expired.
        refused: This item cannot be taken.
        tells: Stream pieces of a text's words, and of trouble in mid-stream ("fails", "throttled").
        names_version: Whether replies name a version at all.
    """

    client: Callable[..., Any]
    reply: Callable[[Asked, str | None], Reply]
    says: Callable[[int, str], Reply]
    throttled: Reply
    expired: Reply
    refused: Reply
    trouble: dict[str, bytes] = field(default_factory=dict)
    names_version: bool = True

    @property
    def streams(self) -> bool:
        return bool(self.trouble)


def words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text)


# The Open Inference Protocol, as our own service and Triton speak it.


def oip_reply(asked: Asked, version: str | None) -> Reply:
    if asked.method == "GET":
        return as_json({"name": MODEL, "versions": [version] if version else []})
    sent = asked.json
    label = f"label of {sent['inputs'][0]['data'][0]}"
    output = {"name": "label", "datatype": "BYTES", "shape": [1], "data": [label]}
    named = {"model_version": version} if version else {}
    return as_json({"model_name": MODEL, **named, "id": sent["id"], "outputs": [output]})


def oip_says(status: int, message: str) -> Reply:
    return as_json({"error": message}, status)


OIP = Dialect(
    client=lambda url, **more: CLIENTS["oip"](url, **{"model": MODEL, "api_key": SECRET, "network": PATIENT, **more}),
    reply=oip_reply,
    says=oip_says,
    throttled=as_json({"error": f"too many of {SECRET}"}, 429, retry_after="7"),
    expired=oip_says(401, f"unknown key {SECRET}"),
    refused=oip_says(400, "unexpected shape for input 'text'"),
)


# OpenAI's protocol, as vLLM 0.12 speaks it.


def card(name: str = MODEL) -> dict[str, Any]:
    """A model card; `created` and `permission` are new at every request, as vLLM's are."""
    return {
        "id": name,
        "object": "model",
        "created": 1764000000,
        "owned_by": "vllm",
        "root": "/models/news-7b",
        "parent": None,
        "max_model_len": 4096,
        "permission": [{"id": "modelperm-9f2c", "object": "model_permission", "allow_sampling": True}],
    }


def chat_answer(text: str) -> str:
    return f"label of {text}"


def completion(text: str, version: str | None, **more: Any) -> dict[str, Any]:
    named = {"model": MODEL, "system_fingerprint": version} if version else {}
    message = {"role": "assistant", "content": text, "refusal": None, "tool_calls": [], "reasoning_content": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    return {
        "id": "chatcmpl-51",
        "object": "chat.completion",
        "created": 1764000000,
        **named,
        "choices": [choice | more],
        "usage": {"prompt_tokens": 20, "total_tokens": 23, "completion_tokens": 3, "prompt_tokens_details": None},
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    }


def chunk(version: str | None, delta: dict[str, Any] | None, *, ending: str | None = None, **more: Any) -> bytes:
    named = {"model": MODEL, "system_fingerprint": version} if version else {}
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": ending}
    choices = [] if delta is None and ending is None else [choice | more]
    return sse({"id": "chatcmpl-51", "object": "chat.completion.chunk", "created": 1, **named, "choices": choices})


def sse(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chat_pieces(text: str, version: str | None) -> tuple[bytes, ...]:
    begin = chunk(version, {"role": "assistant", "content": ""})
    told = [
        chunk(version, {"content": word}, logprobs={"content": [{"token": word, "logprob": -0.5, "top_logprobs": []}]})
        for word in words(text)
    ]
    named = {"model": MODEL} if version else {}
    usage = sse({"object": "chat.completion.chunk", **named, "choices": [], "usage": {"total_tokens": 9}})
    return (begin, *told, chunk(version, {}, ending="stop"), usage, b"data: [DONE]\n\n")


def openai_reply(asked: Asked, version: str | None) -> Reply:
    if asked.path == "/v1/models":
        return as_json({"object": "list", "data": [card("another"), card()]})
    sent = asked.json
    if asked.path == "/v1/embeddings":
        vector = {"index": 0, "object": "embedding", "embedding": [0.25, -0.5, float(len(sent["input"]))]}
        named = {"model": MODEL} if version else {}
        return as_json({"id": "embd-1", "object": "list", "data": [vector], **named, "usage": {"total_tokens": 3}})
    text = chat_answer(sent["messages"][-1]["content"])
    if sent["stream"]:
        return Reply(headers={"content-type": "text/event-stream"}, pieces=chat_pieces(text, version))
    return as_json(completion(text, version))


def vllm_error(status: int, message: str, kind: str = "InternalServerError") -> Reply:
    return as_json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


OPENAI = Dialect(
    client=lambda url, **more: CLIENTS["openai"](
        url, **{"model": MODEL, "api_key": SECRET, "network": PATIENT, **more}
    ),
    reply=openai_reply,
    says=vllm_error,
    throttled=as_json({"error": {"message": f"too many of {SECRET}", "code": 429}}, 429, retry_after="7"),
    expired=as_json({"error": f"Unauthorized {SECRET}"}, 401),
    refused=vllm_error(
        400,
        "This model's maximum context length is 4096 tokens. However, your request has 5120 input tokens.",
        "BadRequestError",
    ),
    trouble={"fails": sse({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})},
)


# Event streams, as SageMaker and Bedrock frame them.


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message: prelude, its checksum, headers, payload, and the checksum of it all."""
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 12 + len(packed) + len(payload) + 4, len(packed))
    message = prelude + struct.pack("!I", crc32(prelude)) + packed + payload
    return message + struct.pack("!I", crc32(message))


def event(kind: str, payload: bytes, content_type: str = "application/json") -> bytes:
    return frame({":message-type": "event", ":event-type": kind, ":content-type": content_type}, payload)


def exception(kind: str, payload: dict[str, Any]) -> bytes:
    named = {":message-type": "exception", ":exception-type": kind, ":content-type": "application/json"}
    return frame(named, json.dumps(payload).encode())


def streamed(pieces: Iterable[bytes], **headers: str) -> Reply:
    return Reply(headers={"content-type": "application/vnd.amazon.eventstream", **headers}, pieces=tuple(pieces))


def aws_error(status: int, message: str, code: str = "SomeException", **more: Any) -> Reply:
    headers = {"content-type": "application/json", "x-amzn-ErrorType": code, "x-amzn-RequestId": "r-1"}
    body = {"message": message, "__type": code, **more}
    return Reply(json.dumps(body).encode(), status, headers)


def aws_throttled(status: int, message: str) -> Reply:
    said = aws_error(status, message, "ThrottlingException")
    return Reply(said.body, status, {**said.headers, "Retry-After": "7"})


def described_endpoint(version: str | None, **more: Any) -> dict[str, Any]:
    """What DescribeEndpoint answers."""
    images = [{"SpecifiedImage": "tgi:3", "ResolvedImage": "tgi@sha256:77", "ResolutionTime": 1764000000.0}]
    return {
        "EndpointName": MODEL,
        "EndpointArn": f"arn:aws:sagemaker:eu-central-1:123456789012:endpoint/{MODEL}",
        "EndpointConfigName": "news-2026-11-01",
        "EndpointStatus": "InService",
        "CreationTime": 1764000000.0,
        "LastModifiedTime": 1764000000.0,
        "ProductionVariants": [{"VariantName": version or "none", "CurrentWeight": 1.0, "DeployedImages": images}],
        **more,
    }


def tgi_pieces(text: str) -> list[bytes]:
    """text-generation-inference's events, cut where SageMaker happens to cut them."""
    tokens = words(text)
    events = b""
    for index, word in enumerate(tokens):
        last = index == len(tokens) - 1
        told = {"id": index, "text": word, "logprob": -0.5, "special": False}
        whole = {"generated_text": text if last else None, "details": None}
        events += b"data:" + json.dumps({"index": index, "token": told, **whole}).encode() + b"\n\n"
    half = len(events) // 2
    return [event("PayloadPart", part, "application/octet-stream") for part in (events[:half], events[half:])]


def sagemaker_reply(asked: Asked, version: str | None) -> Reply:
    if asked.path == "/":
        assert asked.headers["x-amz-target"] == "SageMaker.DescribeEndpoint"
        return as_json(described_endpoint(version))
    named = {"x-Amzn-Invoked-Production-Variant": version} if version else {}
    text = chat_answer(asked.json["inputs"])
    if asked.path.endswith("/invocations-response-stream"):
        return streamed(tgi_pieces(text), **named)
    assert asked.path == f"/endpoints/{MODEL}/invocations"
    return Reply(json.dumps([{"generated_text": text}]).encode(), 200, {"content-type": "application/json", **named})


SAGEMAKER = Dialect(
    client=lambda url, **more: CLIENTS["sagemaker"](
        url, control_url=url, **{"model": MODEL, "task": "text-generation", "network": PATIENT, **more}
    ),
    reply=sagemaker_reply,
    says=aws_error,
    throttled=aws_throttled(400, f"Rate exceeded for {SECRET}"),
    expired=aws_error(403, f"The security token {SECRET} included in the request is expired", "ExpiredTokenException"),
    refused=aws_error(
        424,
        "Received client error (400) from primary with message 'not an input'",
        "ModelError",
        OriginalStatusCode=400,
        OriginalMessage="not an input",
    ),
    trouble={
        "fails": exception(
            "ModelStreamError", {"Message": "the container died", "ErrorCode": "ModelInvocationTimeExceeded"}
        )
    },
)


def converse(text: str, version: str | None, ending: str = "end_turn") -> dict[str, Any]:
    message = {"role": "assistant", "content": [{"text": text}]}
    usage = {"inputTokens": 20, "outputTokens": 3, "totalTokens": 23}
    return {
        "output": {"message": message},
        "stopReason": ending,
        "usage": usage,
        "metrics": {"latencyMs": 312},
        **routed(version),
    }


def routed(version: str | None) -> dict[str, Any]:
    """Bedrock names no version; where it routed a prompt, it tells the model that it chose."""
    return {} if version in (VERSION, None) else {"trace": {"promptRouter": {"invokedModelId": version}}}


def bedrock_pieces(text: str, version: str | None) -> list[bytes]:
    told: list[tuple[str, dict[str, Any]]] = [("messageStart", {"role": "assistant"})]
    told += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}}) for word in words(text)]
    told += [
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": {"inputTokens": 20}, "metrics": {"latencyMs": 300}, **routed(version)}),
    ]
    return [event(kind, json.dumps(payload).encode()) for kind, payload in told]


def bedrock_reply(asked: Asked, version: str | None) -> Reply:
    if asked.method == "GET":
        assert unquote(asked.path) == f"/foundation-models/{BEDROCK_MODEL}"
        details = {"modelArn": f"arn:aws:bedrock:eu-central-1::foundation-model/{BEDROCK_MODEL}"}
        lifecycle = {"modelLifecycle": {"status": "ACTIVE"}}
        return as_json({"modelDetails": {**details, "modelId": BEDROCK_MODEL, **lifecycle}})
    text = chat_answer(asked.json["messages"][0]["content"][0]["text"])
    if asked.path.endswith("/converse-stream"):
        return streamed(bedrock_pieces(text, version))
    assert unquote(asked.path) == f"/model/{BEDROCK_MODEL}/converse"
    return as_json(converse(text, version))


BEDROCK = Dialect(
    client=lambda url, **more: CLIENTS["bedrock"](
        url, control_url=url, **{"model": BEDROCK_MODEL, "network": PATIENT, **more}
    ),
    reply=bedrock_reply,
    says=aws_error,
    throttled=aws_throttled(429, f"Too many requests of {SECRET}, please wait before trying again."),
    expired=aws_error(403, f"The security token {SECRET} included in the request is expired", "ExpiredTokenException"),
    refused=aws_error(400, "Input is too long for requested model.", "ValidationException"),
    trouble={
        "fails": exception("modelStreamErrorException", {"message": "the model died", "originalStatusCode": 500}),
        "throttled": exception("throttlingException", {"message": "Too many tokens"}),
    },
    names_version=False,
)

DIALECTS = {"oip": OIP, "openai": OPENAI, "sagemaker": SAGEMAKER, "bedrock": BEDROCK}


class Handler(BaseHTTPRequestHandler):
    """Answers as its server is told."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        asked = Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.server.asked.append(asked)
        if self.server.hold:
            self.keep_silent()
            return
        reply = self.server.answer_to(asked)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.pieces:
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.send_pieces(reply.pieces)
        else:
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    def send_pieces(self, pieces: tuple[bytes, ...]) -> None:
        stop = self.server.stop_after
        for piece in pieces if stop is None else pieces[:stop]:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if stop is None or self.server.stop == "end":
            self.wfile.write(b"0\r\n\r\n")
        elif self.server.stop == "hold":
            self.keep_silent()
        else:
            self.close_connection = True

    def keep_silent(self) -> None:
        """Send nothing more on this connection, so that what is read next is its end."""
        self.server.holding.set()
        with contextlib.suppress(ConnectionError):
            assert self.rfile.read(1) == b""
        self.server.gone.set()
        self.close_connection = True

    do_GET = do_POST = answer  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A cloud that can be told to refuse, to babble, to stop in the middle, or to hold its answer.

    Attributes:
        version: Version that it names; None names none.
        always: Answered to everything, where given.
        hold: Whether it keeps silent instead of answering.
        stop_after: Pieces of a stream after which it stops.
        stop: How: "cut" the connection, "end" the body in good order, or "hold" it open.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dialect = dialect
        self.version: str | None = VERSION
        self.always: Reply | None = None
        self.hold = False
        self.stop_after: int | None = None
        self.stop = "cut"
        self.replace_pieces: Callable[[tuple[bytes, ...]], tuple[bytes, ...]] = lambda pieces: pieces
        self.holding, self.gone = threading.Event(), threading.Event()
        self.asked: list[Asked] = []

    def answer_to(self, asked: Asked) -> Reply:
        if self.always is not None:
            return self.always
        reply = self.dialect.reply(asked, self.version)
        pieces = self.replace_pieces(reply.pieces) if reply.pieces else ()
        return Reply(reply.body, reply.status, reply.headers, pieces)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serving(dialect: Dialect):
    """A server of a dialect, until the block ends."""
    with Server(dialect) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
