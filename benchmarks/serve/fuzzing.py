"""What a soak sends: valid, broken and hostile requests over every protocol, from a seed. Pure: no socket, no clock.

A valid request has to be answered with 200; whatever else a server may say no to, it says so in a 4xx with a body.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WORDS = ("wheat", "corn", "harvest", "vessel", "port", "cargo", "tariff", "deficit", "export", "the", "rose", "today")
LATER = "{LATER}"
"""Stands for the id of an earlier provisional answer, where there is one."""

OIP_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Shot:
    """One thing to send.

    Attributes:
        kind: What it is, for the table.
        how: "http" over a kept connection, "raw" bytes on a connection of their own, or "socket", a WebSocket.
        valid: Whether it has to be answered with 200.
        method: Of "http".
        path: Of "http" and "socket".
        headers: Of "http".
        body: Of "http"; of "raw" all that is sent.
        messages: Of "socket".
    """

    kind: str
    how: Literal["http", "raw", "socket"] = "http"
    valid: bool = False
    method: str = "POST"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    messages: tuple[str | bytes, ...] = ()

    def encoded(self, host: str) -> bytes:
        """The request's bytes."""
        if self.how == "raw":
            return self.body
        headers = {"host": host, **self.headers, "content-length": str(len(self.body))}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Fuzzer:
    """Draws shots for a door.

    Args:
        seed: Where everything comes from.
        classifier: Name of a text classifier behind the door.
        embedder: Name of an embedder behind it, or None.
        gateway: Whether requests may name modes and be answered provisionally.
    """

    def __init__(self, seed: int, *, classifier: str, embedder: str | None, gateway: bool) -> None:
        self._random = random.Random(seed)
        self._classifier = classifier
        self._embedder = embedder
        self._gateway = gateway
        self._serial = 0
        mixed: list[tuple[int, Callable[[], Shot]]] = [
            (30, self._predict),
            (14, self._broken_predict),
            (8, self._infer),
            (6, self._infer_binary),
            (8, self._broken_infer),
            (6, self._embed),
            (6, self._answer),
            (4, self._events),
            (8, self._page),
            (6, self._garbage),
            (4, self._stream),
        ]
        self._weights = [weight for weight, _ in mixed]
        self._kinds = [kind for _, kind in mixed]

    def shots(self, count: int) -> Iterator[Shot]:
        """That many, one after the other."""
        for _ in range(count):
            (kind,) = self._random.choices(self._kinds, self._weights)
            yield kind()

    def _text(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(1, 12)))

    def _fields(self) -> dict[str, Any]:
        """A valid native request."""
        fields: dict[str, Any] = {"inputs": self._text(), "budget_ms": self._random.choice([5, 20, 200, 5000])}
        if self._random.random() < 0.3:
            self._serial += 1
            fields["id"] = f"soak-{self._serial}-{self._random.randrange(10**9)}"
        if self._gateway:
            fields["mode"] = self._random.choice(["guarded", "speculative", "edge_only", "cloud_only"])
            # Who wants only the cloud cannot forbid it too.
            local = fields["mode"] != "cloud_only" and self._random.random() < 0.3
            fields["data_policy"] = "local_only" if local else "any"
        else:
            fields["budget_ms"] = 60_000
        if self._random.random() < 0.2:
            fields["attributes"] = {"slice": self._random.choice("abc")}
        return fields

    def _predict(self) -> Shot:
        return Shot("predict", valid=True, path="/v1/predict", body=json.dumps(self._fields()).encode())

    def _broken_predict(self) -> Shot:
        return Shot("predict, broken", path="/v1/predict", body=self._broken(self._fields()))

    def _broken(self, fields: dict[str, Any]) -> bytes:
        """A request with one thing wrong, or nothing of JSON left."""
        draw = self._random
        odd = draw.choice([None, True, -1, 0, 1e300, -1e300, 2**70, "", "\x00", "x" * 5000, [], {}, [[[]]], {"a": {}}])
        name = draw.choice([*fields, "unknown", "inputs", "budget_ms", "mode"])
        whole = json.dumps({**fields, name: odd}).encode()
        return draw.choice(
            [
                lambda: whole,
                lambda: whole[: draw.randrange(len(whole))],
                lambda: whole.replace(b'"', b"\xff", 1),
                lambda: b"[" * draw.choice([10, 1000, 50_000]),
                lambda: b'{"inputs":' * draw.choice([10, 5000]),
                lambda: draw.randbytes(draw.randrange(400)),
                lambda: whole.replace(b":", b": NaN,", 1),
                lambda: b"",
            ]
        )()

    def _infer_body(self) -> dict[str, Any]:
        texts = [self._text() for _ in range(self._random.randint(1, 4))]
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
        return {"inputs": [tensor], "parameters": {"budget_ms": 60_000}}

    @property
    def _infer_path(self) -> str:
        return f"/v2/models/{self._classifier}/infer"

    def _infer(self) -> Shot:
        return Shot("infer", valid=True, path=self._infer_path, body=json.dumps(self._infer_body()).encode())

    def _infer_binary(self) -> Shot:
        """Tensors as bytes; every third is cut or lies about a length."""
        texts = [self._text().encode() for _ in range(self._random.randint(1, 4))]
        data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        whole = self._random.random() < 0.67
        told = len(data) if whole else self._random.choice([0, len(data) + 1, 2**40, -1])
        size = {"binary_data_size": told}
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "parameters": size}
        head = json.dumps({"inputs": [tensor], "parameters": {"budget_ms": 60_000}}).encode()
        length = len(head) if whole or self._random.random() < 0.5 else self._random.randrange(-5, 10**6)
        kind = "infer, binary" if whole else "infer, binary, broken"
        headers = {OIP_LENGTH: str(length)}
        return Shot(kind, valid=whole, path=self._infer_path, headers=headers, body=head + data)

    def _broken_infer(self) -> Shot:
        body = self._infer_body()
        tensor = body["inputs"][0]
        odd = self._random.choice([None, -1, 2**70, "", "FP32", [], [0], [2**40], [1, 1, 1], [[1]], {"a": 1}, 1.5])
        tensor[self._random.choice([*tensor, "parameters"])] = odd
        name = self._random.choice([self._classifier, self._classifier, "nobody", "..", "%00", "a" * 300])
        return Shot("infer, broken", path=f"/v2/models/{name}/infer", body=self._broken(body))

    def _embed(self) -> Shot:
        if self._embedder is None or self._random.random() < 0.3:
            body = self._broken({"model": self._embedder or self._classifier, "input": self._text()})
            return Shot("embeddings, broken", path="/v1/embeddings", body=body)
        texts = [self._text() for _ in range(self._random.randint(1, 4))]
        form = self._random.choice(["float", "base64"])
        body = json.dumps({"model": self._embedder, "input": texts, "encoding_format": form}).encode()
        return Shot("embeddings", valid=True, path="/v1/embeddings", body=body)

    def _answer(self) -> Shot:
        path = self._random.choice(
            [f"/v1/answers/{LATER}?wait_ms=50", "/v1/answers/nobody", "/v1/answers/%00?wait_ms=x"]
        )
        return Shot("answers", method="GET", path=path)

    def _events(self) -> Shot:
        accept = {"accept": "text/event-stream"}
        if self._random.random() < 0.5:
            body = json.dumps(self._fields()).encode()
            return Shot("events of a request", valid=True, path="/v1/predict", headers=accept, body=body)
        return Shot("events of an answer", method="GET", path=f"/v1/answers/{LATER}/events", headers=accept)

    def _page(self) -> Shot:
        good = (
            "/",
            "/healthz",
            "/readyz",
            "/metrics",
            "/v2",
            "/v1/models",
            "/openapi.json",
            f"/v2/models/{self._classifier}",
        )
        if self._random.random() < 0.6:
            return Shot("pages", valid=True, method="GET", path=self._random.choice(good))
        method = self._random.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
        odd = (
            "/nowhere",
            "/v1/predict/",
            "/v2/models//infer",
            "/../etc/passwd",
            "/%2e%2e",
            "/v1/predict?x=" + "y" * 2000,
        )
        return Shot("pages, wrong", method=method, path=self._random.choice(odd))

    def _garbage(self) -> Shot:
        """What is no HTTP, or a request that two servers would read differently."""
        draw = self._random
        head = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\n"
        return Shot(
            "garbage bytes",
            how="raw",
            body=draw.choice(
                [
                    lambda: draw.randbytes(draw.randrange(1, 2000)),
                    lambda: head + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                    lambda: head + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
                    lambda: head + b"content-length: -1\r\n\r\n",
                    lambda: head + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
                    lambda: head + b"x: " + b"y" * draw.choice([100, 70_000]) + b"\r\n\r\n",
                    lambda: head + b"content-length: 100\r\n\r\n{",
                    lambda: b"GET / HTTP/9.9\r\n\r\n",
                    lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(100),
                ]
            )(),
        )

    def _stream(self) -> Shot:
        messages: list[str | bytes] = []
        for _ in range(self._random.randint(1, 5)):
            fields = {"type": "predict", **self._fields()}
            broken = self._random.random() < 0.4
            body = self._broken(fields) if broken else json.dumps(fields).encode()
            text = self._random.random() < 0.9
            messages.append(body.decode("utf-8", "replace") if text else body)
        return Shot("websocket", how="socket", path="/v1/stream", messages=tuple(messages))
