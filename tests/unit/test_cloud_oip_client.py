"""What OipClient asks, accepts and refuses, over a transport without a network; sockets are the contract suite's."""

import json
import time

import httpx
import numpy as np
import pytest

from edgewise.cloud.clients import CLIENTS
from edgewise.cloud.clients.connections import Network
from edgewise.cloud.clients.oip import OipClient, upstream_id
from edgewise.contracts import CloudClient, CloudReply, DataPolicy, Reference, Request
from edgewise.errors import CloudResponseError, CloudTimeoutError, CloudUnreachableError, ConfigError

KEY = "key-5eb1"
REQUEST = Request(id="r1", inputs="corn rose")
REPLY = {
    "model_name": "news",
    "model_version": "sha256:1",
    "id": "r1",
    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["grain"]}],
}


def status_output(status):
    return {"name": "status", "datatype": "BYTES", "shape": [1], "data": [status]}


class Server(httpx.MockTransport):
    """Answers each path from a table and records what it was asked."""

    def __init__(self, **answers):
        super().__init__(self.handle)
        self.seen = []
        self.answers = {
            "/": {"name": "edgewise", "service": {"name": "news", "role": "cloud"}},
            "/v2/models/news": {"name": "news", "versions": ["sha256:1"]},
            "/v2/models/news/infer": REPLY,
        } | {
            {"root": "/", "model": "/v2/models/news", "infer": "/v2/models/news/infer"}[k]: v
            for k, v in answers.items()
        }

    def handle(self, request):
        self.seen.append(request)
        answer = self.answers.get(request.url.path, httpx.Response(404, json={"error": "no such model"}))
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


def client(server, **more):
    return OipClient("http://cloud.test:8700/", transport=server, **{"model": "news", "api_key": KEY} | more)


def test_it_is_a_cloud_client_by_its_name():
    assert isinstance(CLIENTS["oip"]("http://127.0.0.1:1"), CloudClient)


async def test_it_describes_the_model_it_was_given():
    server = Server()
    assert await client(server).describe(timeout_s=5) == Reference("news", "sha256:1")
    assert [str(seen.url) for seen in server.seen] == ["http://cloud.test:8700/v2/models/news"]
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


async def test_it_asks_for_the_model_once_where_none_was_given():
    server = Server()
    asked = client(server, model=None, api_key=None)
    assert (await asked.predict(REQUEST, timeout_s=5)).output == "grain"
    assert await asked.describe(timeout_s=5) == Reference("news", "sha256:1")
    assert [seen.url.path for seen in server.seen] == ["/", "/v2/models/news/infer", "/v2/models/news"]
    assert "authorization" not in server.seen[0].headers


class Redeployed(Server):
    """Serves one model under a name that changes."""

    name = "news"

    def handle(self, request):
        self.answers = {
            "/": {"service": {"name": self.name}},
            f"/v2/models/{self.name}": {"name": self.name, "versions": ["sha256:2"]},
            f"/v2/models/{self.name}/infer": REPLY | {"model_name": self.name, "model_version": "sha256:2"},
        }
        return super().handle(request)


@pytest.mark.parametrize("how", ["describe", "predict"])
async def test_a_model_deployed_again_under_another_name_is_found_again(how):
    server = Redeployed()
    asked = client(server, model=None)
    await asked.describe(timeout_s=5)
    server.name, server.seen = "news-2", []
    if how == "describe":
        assert await asked.describe(timeout_s=5) == Reference("news-2", "sha256:2")
    else:
        assert (await asked.predict(REQUEST, timeout_s=5)).reference == Reference("news-2", "sha256:2")
    ending = "/infer" if how == "predict" else ""
    paths = [f"/v2/models/news{ending}", "/", f"/v2/models/news-2{ending}"]
    assert [seen.url.path for seen in server.seen] == paths
    await asked.describe(timeout_s=5)
    assert len(server.seen) == 4, "the new name is remembered"


async def test_a_name_that_was_given_is_never_exchanged_for_another():
    server = Redeployed()
    asked = client(server)
    server.name = "news-2"
    with pytest.raises(CloudResponseError, match="status 404"):
        await asked.predict(REQUEST, timeout_s=5)
    assert len(server.seen) == 1


async def test_a_model_that_stays_away_is_looked_up_once_a_call():
    server = Server()
    asked = client(server, model=None)
    await asked.describe(timeout_s=5)
    server.answers["/v2/models/news"] = httpx.Response(404, json={"error": "no such model"})
    server.seen = []
    with pytest.raises(CloudResponseError, match="status 404"):
        await asked.describe(timeout_s=5)
    assert [seen.url.path for seen in server.seen] == ["/v2/models/news", "/", "/v2/models/news"]


async def test_it_sends_the_item_with_what_is_left_of_its_time():
    server = Server()
    request = Request(id="r1", inputs="corn rose", session="s", data_policy=DataPolicy.ANY, budget_ms=9e9)
    reply = await client(server).predict(request, timeout_s=5)
    assert reply == CloudReply("grain", Reference("news", "sha256:1"))
    sent = json.loads(server.seen[0].content)
    assert (sent["id"], sent["inputs"][0]["name"], sent["inputs"][0]["data"]) == (
        upstream_id(request),
        "text",
        ["corn rose"],
    )
    assert 0 < sent["parameters"]["budget_ms"] <= 5000


async def test_it_sends_what_is_left_of_the_budget_and_how_long_it_will_wait():
    server = Server()
    request = Request(inputs="corn rose", budget_ms=1000.0, arrived_s=time.monotonic() - 0.2)
    await client(server).predict(request, timeout_s=5)
    sent = json.loads(server.seen[0].content)["parameters"]
    assert 0 < sent["budget_ms"] <= 800
    assert 800 < sent["patience_ms"] <= 5000


@pytest.mark.parametrize("more", [{"budget_ms": 100.0, "arrived_s": 0.0}, {"budget_ms": 1e6}, {}])
async def test_a_budget_that_is_spent_or_longer_than_the_wait_is_not_sent(more):
    server = Server()
    await client(server).predict(Request(inputs="corn rose", **more), timeout_s=5)
    sent = json.loads(server.seen[0].content)["parameters"]
    assert 0 < sent["budget_ms"] <= 5000
    assert "patience_ms" not in sent


async def test_the_id_sent_is_one_of_ours_which_tenants_and_items_do_not_share():
    pixels = np.arange(4, dtype=np.uint8)
    requests = [
        Request(id="r1", tenant=tenant, inputs=inputs)
        for tenant in ("a", "b", "ar1")
        for inputs in ("corn", "rose", b"corn", "\ud800", pixels, pixels.reshape(2, 2))
    ]
    requests.append(Request(id="r2", tenant="a", inputs="corn"))
    assert len({upstream_id(request) for request in requests}) == len(requests)
    server = Server()
    again = Request(id="r1", tenant="a", inputs="corn", budget_ms=5.0, session="s", arrived_s=1.0)
    for request in (requests[0], again):
        await client(server).predict(request, timeout_s=5)
    ids = [json.loads(seen.content)["id"] for seen in server.seen]
    assert ids == [upstream_id(requests[0])] * 2, "another attempt is the same request"
    assert len(ids[0]) == 32


def test_the_id_sent_is_the_same_in_every_process():
    assert upstream_id(Request(id="r1", tenant="a", inputs="corn")) == "59528aa95306bcb3e5f9ea288ea56f4e"


async def test_a_time_out_longer_than_any_budget_is_sent_as_the_longest_one():
    server = Server()
    await client(server).predict(REQUEST, timeout_s=1e6)
    assert json.loads(server.seen[0].content)["parameters"]["budget_ms"] == 600_000


async def test_pixels_and_files_are_sent_as_images():
    server = Server()
    asked = client(server)
    await asked.predict(Request(id="1", inputs=np.zeros((2, 2), np.uint8)), timeout_s=5)
    await asked.predict(Request(id="2", inputs=b"png"), timeout_s=5)
    paths = [seen.url.path for seen in server.seen]
    assert paths == ["/v2", "/v2/models/news/infer", "/v2/models/news/infer"], "asked once, and answered with 404"
    assert [json.loads(seen.content)["inputs"][0]["name"] for seen in server.seen[1:]] == ["pixels", "image"]


async def test_pixels_are_sent_as_bytes_where_the_server_takes_them():
    server = Server()
    server.answers["/v2"] = {"name": "triton", "extensions": ["classification", "binary_tensor_data"]}
    asked = client(server)
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    assert (await asked.predict(Request(id="1", inputs=pixels), timeout_s=5)).output == "grain"
    sent = server.seen[-1]
    length = int(sent.headers["inference-header-content-length"])
    assert sent.headers["content-type"] == "application/octet-stream"
    assert json.loads(sent.content[:length])["inputs"][0]["parameters"] == {"binary_data_size": 4}
    assert sent.content[length:] == pixels.tobytes()
    await asked.predict(REQUEST, timeout_s=5)
    assert "inference-header-content-length" not in server.seen[-1].headers, "texts stay JSON"


async def test_an_answer_of_bytes_is_read():
    text = json.dumps(
        REPLY
        | {
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}},
            ]
        }
    ).encode()
    length = {"inference-header-content-length": str(len(text))}
    body = text + b"\x05\x00\x00\x00grain"
    server = Server(infer=httpx.Response(200, content=body, headers=length))
    assert (await client(server).predict(REQUEST, timeout_s=5)).output == "grain"
    for value in ("99999", "-1", "x", "9" * 40):
        cut = {"inference-header-content-length": value}
        with pytest.raises(CloudResponseError):
            await client(Server(infer=httpx.Response(200, content=body, headers=cut))).predict(REQUEST, timeout_s=5)


@pytest.mark.parametrize("said", [b"{}", b"[", b'{"extensions": 7}', b"\xff", httpx.Response(500)])
async def test_a_server_that_does_not_say_what_it_speaks_is_sent_json(said):
    server = Server()
    server.answers["/v2"] = said
    await client(server).predict(Request(id="1", inputs=b"png"), timeout_s=5)
    assert json.loads(server.seen[-1].content)["inputs"][0]["name"] == "image"


async def test_names_are_quoted_in_the_path():
    server = Server()
    with pytest.raises(CloudResponseError, match="status 404"):
        await client(server, model="a/../b c").predict(REQUEST, timeout_s=5)
    assert server.seen[0].url.raw_path == b"/v2/models/a%2F..%2Fb%20c/infer"


async def test_the_version_that_answered_is_told_whatever_was_described():
    server = Server(infer=REPLY | {"model_version": "sha256:2"})
    assert (await client(server).predict(REQUEST, timeout_s=5)).reference.version == "sha256:2"


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (REPLY | {"model_version": ""}, "which version"),
        ({k: v for k, v in REPLY.items() if k != "model_version"}, "which version"),
        (REPLY | {"outputs": []}, "'label'"),
        (REPLY | {"outputs": [*REPLY["outputs"], status_output("provisional")]}, "provisionally"),
        (REPLY | {"outputs": [*REPLY["outputs"], status_output("maybe")]}, "maybe"),
        (REPLY | {"outputs": [{"name": "label", "datatype": "FP32", "shape": [1], "data": [1.5]}]}, "no text"),
        (REPLY | {"outputs": [{"name": "label", "datatype": "BYTES", "shape": [2], "data": ["a"]}]}, "elements"),
        (b"<html>hello</html>", "hello"),
        (b"", "infer response"),
        (b"[" * 100_000, "infer response"),
        (b"\xff\xfe\x00", "infer response"),
    ],
)
async def test_what_is_no_final_answer_of_a_named_version_is_refused(reply, problem):
    with pytest.raises(CloudResponseError, match=problem) as caught:
        await client(Server(infer=reply)).predict(REQUEST, timeout_s=5)
    assert "http://cloud.test:8700/v2/models/news/infer" in str(caught.value)
    assert len(str(caught.value)) < 900


async def test_a_final_status_is_accepted():
    server = Server(infer=REPLY | {"outputs": [status_output("final"), *REPLY["outputs"]]})
    assert (await client(server).predict(REQUEST, timeout_s=5)).output == "grain"


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"name": "news", "versions": []}, "none"),
        ({"name": "news", "versions": ["1", "2"]}, "1, 2"),
        (b"{}", "metadata"),
    ],
)
async def test_a_server_that_does_not_say_one_version_cannot_be_a_reference(model, problem):
    with pytest.raises(CloudResponseError, match=problem):
        await client(Server(model=model)).describe(timeout_s=5)


@pytest.mark.parametrize("root", [{"name": "triton"}, {"service": {}}, b"<html>", httpx.Response(404)])
async def test_a_server_that_does_not_say_its_model_needs_it_named(root):
    with pytest.raises(CloudResponseError, match=r"model|404") as caught:
        await client(Server(root=root), model=None).describe(timeout_s=5)
    assert "model" in caught.value.remedy


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "Change"), (401, "key"), (404, "name"), (429, "later"), (503, "later"), (500, "log"), (302, "protocol")],
)
async def test_a_refusal_says_its_status_and_what_the_server_said_but_never_the_key(status, remedy):
    said = f"you sent {KEY} and " + "x" * 1000
    server = Server(infer=httpx.Response(status, json={"error": said}, headers={"location": "http://elsewhere.test"}))
    with pytest.raises(CloudResponseError, match=f"status {status}") as caught:
        await client(server).predict(REQUEST, timeout_s=5)
    assert len(server.seen) == 1
    assert KEY not in str(caught.value)
    assert "you sent ***" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert remedy in caught.value.remedy


async def test_a_reply_of_garbage_does_not_show_the_key():
    with pytest.raises(CloudResponseError) as caught:
        await client(Server(infer=REPLY | {"model_name": KEY, "outputs": []})).predict(REQUEST, timeout_s=5)
    assert KEY not in str(caught.value)


async def test_an_endless_response_is_cut():
    with pytest.raises(CloudResponseError, match="more than"):
        await client(Server(infer=b"x" * (9 << 20))).predict(REQUEST, timeout_s=20)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), CloudUnreachableError),
        (httpx.ConnectTimeout(""), CloudUnreachableError),
        (httpx.ReadError(""), CloudResponseError),
        (httpx.RemoteProtocolError("illegal"), CloudResponseError),
    ],
)
async def test_a_failing_connection_names_the_address_and_the_remedy(error, kind):
    with pytest.raises(kind, match=r"http://cloud\.test:8700") as caught:
        await client(Server(infer=error)).predict(REQUEST, timeout_s=5)
    assert caught.value.remedy
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("timeout_s", [0, -1])
async def test_no_time_is_a_time_out(timeout_s):
    server = Server()
    with pytest.raises(CloudTimeoutError):
        await client(server).predict(REQUEST, timeout_s=timeout_s)
    assert server.seen == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cloud:8700",
        "ftp://cloud",
        "http://",
        "//cloud",
        "http://cloud:99999999",
        "http://cloud:port",
        "http://cloud/?a=b",
        "http://a b/",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_its_value(url):
    with pytest.raises(ConfigError) as caught:
        OipClient(url)
    assert repr(url) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("url", ["http://me:s3cret@cloud", "http://me:s3cret@cloud:port"])
def test_a_password_in_the_address_is_refused_and_not_shown(url):
    with pytest.raises(ConfigError) as caught:
        OipClient(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(key):
    with pytest.raises(ConfigError) as caught:
        OipClient("http://cloud", api_key=key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("name", ["connect_timeout_s", "keep_alive_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_times_of_the_network_must_be_above_zero(name, value):
    with pytest.raises(ConfigError, match=name):
        Network(**{name: value})
