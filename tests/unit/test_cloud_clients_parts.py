"""The parts that cloud clients share: tensors of other makers, AWS's errors, waiting, remembering, connecting."""

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from edgewise import wiring
from edgewise.cloud.clients import CLIENTS, FailOverClient, Network, Tensors
from edgewise.cloud.clients.aws_errors import translated
from edgewise.cloud.clients.connections import Connections, paced
from edgewise.cloud.clients.http import NotServedError, seconds_to_wait
from edgewise.cloud.clients.lasting import KEEP_S, Lasting
from edgewise.config import BackendSection, backends_in_use, parse_config
from edgewise.contracts import Request
from edgewise.errors import (
    CloudCredentialsError,
    CloudError,
    CloudRefusedError,
    CloudResponseError,
    CloudThrottledError,
    CloudTimeoutError,
    CloudUnreachableError,
    ConfigError,
    MissingExtraError,
)
from edgewise.wiring.backends import cloud_of

# Tensors of a model that is none of ours.


def replied(*outputs):
    return json.dumps({"model_name": "bert", "model_version": "1", "outputs": list(outputs)}).encode()


def logits(*numbers, name="OUTPUT__0", datatype="FP32"):
    return {"name": name, "datatype": datatype, "shape": [1, len(numbers)], "data": list(numbers)}


TRITON = Tensors(input="TEXT", input_shape=(1, 1), output="OUTPUT__0", labels=("grain", "ship", "trade"))


def test_the_largest_number_tells_the_label():
    assert TRITON.cloud_reply(replied(logits(-1.5, 4.0, 2))).output == "ship"


def test_a_request_has_the_models_names_and_shape_and_the_queues_time_out():
    sent = json.loads(TRITON.encoded(Request(id="r1", inputs="corn"), 250.4).body)
    (tensor,) = sent["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"], tensor["data"]) == ("TEXT", [1, 1], "BYTES", ["corn"])
    assert sent["parameters"] == {"timeout": 250_400}


def test_our_own_names_are_sent_as_they_are():
    sent = json.loads(Tensors().encoded(Request(id="r1", inputs="corn"), 250.0).body)
    assert sent["inputs"][0]["name"] == "text"
    assert sent["parameters"]["budget_ms"] == 250


def test_another_order_of_labels_is_another_reference():
    reversed_ = Tensors(output="OUTPUT__0", labels=("trade", "ship", "grain"))
    versions = {tensors.reference("bert", "1").version for tensors in (TRITON, reversed_, Tensors())}
    assert len(versions) == 3


def test_numbers_without_labels_are_a_vector_and_a_text_is_a_text():
    named = Tensors(output="OUTPUT__0")
    assert named.cloud_reply(replied(logits(1, 2.5))).output == (1.0, 2.5)
    text = {"name": "OUTPUT__0", "datatype": "BYTES", "shape": [1, 1], "data": [["ship"]]}
    assert named.cloud_reply(replied(text)).output == "ship"


@pytest.mark.parametrize(
    "output",
    [
        logits(1.0, 2.0),
        logits(),
        logits(1, None, 2),
        logits(1, True, 2),
        logits(1, "2", 3),
        logits(1, 2, 3, name="another"),
        logits(1, 2, 3, datatype="BOOL"),
    ],
)
def test_what_is_no_number_for_each_label_is_no_answer(output):
    with pytest.raises(CloudResponseError):
        TRITON.cloud_reply(replied(output))


@pytest.mark.parametrize(
    "settings", [{"input_shape": (2,)}, {"input_shape": (0,)}, {"labels": ("a",)}, {"labels": ("a", "a")}]
)
def test_tensors_that_tell_no_answer_are_refused(settings):
    with pytest.raises(ConfigError):
        Tensors(**settings)


# AWS's errors.


def of_service(code, status=400, **more):
    error = Exception("botocore says much")
    error.response = {
        "Error": {"Code": code, "Message": more.pop("message", "no")},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"Retry-After": "3"}},
        **more,
    }
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (of_service("ThrottlingException", 429), CloudThrottledError),
        (of_service("throttlingException", 200), CloudThrottledError),
        (of_service("ModelNotReadyException", 429), CloudThrottledError),
        (of_service("ModelTimeoutException", 408), CloudTimeoutError),
        (of_service("ExpiredTokenException", 403), CloudCredentialsError),
        (of_service("AccessDeniedException", 403), CloudCredentialsError),
        (of_service("UnrecognizedClientException", 400), CloudCredentialsError),
        (of_service("ValidationException"), CloudRefusedError),
        (of_service("ValidationException", message="The provided model identifier is invalid."), NotServedError),
        (of_service("ValidationError", message="Endpoint news of account 1 not found."), NotServedError),
        (of_service("ResourceNotFoundException", 404), NotServedError),
        (of_service("ModelError", 424, OriginalStatusCode=400), CloudRefusedError),
        (of_service("ModelError", 424, OriginalStatusCode=500), CloudResponseError),
        (of_service("ModelErrorException", 424), CloudResponseError),
        (of_service("modelStreamErrorException", 200), CloudResponseError),
        (of_service("InternalServerException", 500), CloudResponseError),
        (of_service("", 0), CloudResponseError),
        (KeyError("x"), CloudResponseError),
        (type("NoCredentialsError", (Exception,), {})("none"), CloudCredentialsError),
        (type("NoRegionError", (Exception,), {})("none"), CloudCredentialsError),
        (type("ParamValidationError", (Exception,), {})("too long"), CloudRefusedError),
    ],
)
def test_what_aws_says_is_told_as_what_it_means(error, kind):
    found = translated(error, "AWS", ())
    assert type(found) is kind
    assert found.remedy
    if kind is CloudThrottledError:
        assert found.retry_after_s == 3


def test_a_message_of_aws_never_shows_the_token():
    found = translated(of_service("ExpiredTokenException", 403, message="token s3cret is old"), "AWS", ("s3cret",))
    assert "s3cret" not in str(found)
    assert "***" in str(found)


# Waiting.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT", "date": "Sun, 06 Nov 1994 08:49:07 GMT"}, 30.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT", "date": "Sun, 06 Nov 1994 09:00:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "²"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_what_the_server_says(headers, seconds):
    assert seconds_to_wait(headers) == seconds


async def test_a_slow_reader_is_told_of_the_time_out_and_never_cancelled():
    async def items():
        yield 1
        yield 2

    reader = paced(items(), 0.05, "the cloud")
    assert await anext(reader) == 1
    await asyncio.sleep(0.1)  # would be interrupted by a time-out around the whole
    with pytest.raises(CloudTimeoutError, match="No time is left"):
        await anext(reader)


async def test_items_that_come_in_time_all_come():
    async def items():
        yield 1
        yield 2

    assert [item async for item in paced(items(), 20, "the cloud")] == [1, 2]


# Remembering.


class Source:
    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return f"fact {self.asked}"


async def called() -> str:
    await asyncio.sleep(0)
    return "reply"


async def test_a_fact_is_asked_for_once_and_again_when_it_is_old():
    now = [0.0]
    source = Source()
    fact = Lasting(source, lambda: now[0])
    assert await fact.beside(called) == ("reply", "fact 1")
    assert await fact.get() == "fact 1"
    now[0] = KEEP_S + 1
    assert await fact.beside(called) == ("reply", "fact 2")
    assert await fact.renewed() == "fact 3"
    assert await fact.get() == "fact 3"


async def test_calls_at_the_same_time_ask_once():
    source = Source()
    fact = Lasting(source, lambda: 0.0)
    assert await asyncio.gather(*(fact.beside(called) for _ in range(20))) == [("reply", "fact 1")] * 20
    assert source.asked == 1


async def test_a_fact_that_cannot_be_had_fails_the_call_with_its_own_error():
    source = Source()
    source.error = CloudResponseError("no such model")
    with pytest.raises(CloudResponseError, match="no such model"):
        await Lasting(source, lambda: 0.0).beside(called)


# From settings to clients.


def section(**settings) -> BackendSection:
    return parse_config({"cloud": {"backends": {"a": settings}}}).cloud.backends["a"]


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "oip", "url": "http://triton:8000", "model": "bert"},
        {
            "kind": "oip",
            "url": "http://triton:8000",
            "model": "b",
            "input": "T",
            "input_shape": [1, 1],
            "labels": ["a", "b"],
        },
        {
            "kind": "openai",
            "url": "http://vllm:8000",
            "model": "m",
            "labels": ["a", "b"],
            "seed": 7,
            "keep_alive_s": 60,
        },
        {"kind": "sagemaker", "model": "news", "region": "eu-central-1", "container": "oip", "output": "logits"},
        {"kind": "bedrock", "model": "amazon.nova-lite-v1:0", "instruction": "Sort it.", "labels": ["a", "b"]},
    ],
)
async def test_a_backend_is_one_table(settings):
    client = wiring.connect(section(**settings))
    assert type(client) is CLIENTS[settings["kind"]]
    await client.aclose()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "grpc", "url": "http://a"}, "'grpc'"),
        ({"kind": "oip", "url": "http://a", "instruction": "x"}, "`instruction`"),
        ({"kind": "oip", "url": "http://a", "region": "x", "seed": 3}, "`seed`, `region`"),
        ({"kind": "openai", "url": "http://a", "model": "m", "container": "oip"}, "`container`"),
        ({"kind": "openai", "url": "http://a", "model": "m", "task": "magic"}, "'magic'"),
        ({"kind": "openai", "url": "http://a", "model": "m", "connect_timeout_s": 0}, "connect_timeout_s is 0"),
        ({"kind": "openai", "url": "https://a", "model": "m", "ca_file": "/nonexistent"}, "'/nonexistent'"),
        ({"kind": "sagemaker"}, "No endpoint"),
        ({"kind": "sagemaker", "model": "m", "container": "tar"}, "'tar'"),
        ({"kind": "sagemaker", "model": "m", "task": "magic"}, "'magic'"),
        ({"kind": "sagemaker", "model": "m", "url": "ftp://a"}, "'ftp://a'"),
        ({"kind": "sagemaker", "model": "m", "labels": ["a", "b"]}, "`labels` say nothing to the container hugg"),
        ({"kind": "sagemaker", "model": "m", "input": "T"}, "`input`"),
        ({"kind": "sagemaker", "model": "m", "output": "logits"}, "`output`"),
        ({"kind": "sagemaker", "model": "m", "container": "oip", "task": "text-generation"}, "`task` says nothing"),
        ({"kind": "sagemaker", "model": "m", "container": "oip", "max_tokens": 9}, "`max_tokens` says nothing"),
        ({"kind": "sagemaker", "model": "m", "max_tokens": 9}, "`max_tokens` says nothing"),
        ({"kind": "sagemaker", "model": "m", "task": "text-generation", "max_tokens": -4}, "max_tokens is -4"),
        ({"kind": "bedrock"}, "No model"),
        ({"kind": "bedrock", "model": "m", "task": "feature-extraction"}, "feature-extraction"),
        ({"kind": "bedrock", "model": "arn:aws:bedrock:us-east-1:1:provisioned-model/x"}, "change unseen"),
        ({"kind": "bedrock", "model": "arn:aws:bedrock:us-east-1:1:default-prompt-router/x:1"}, "change unseen"),
        ({"kind": "bedrock", "model": "m", "seed": 3}, "`seed`"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_words(settings, says):
    with pytest.raises(ConfigError) as caught:
        wiring.connect(section(**settings))
    assert says in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("kind", ["sagemaker", "bedrock"])
def test_a_key_for_aws_is_refused(kind, monkeypatch):
    monkeypatch.setenv("CLOUD_KEY", "s3cret")
    with pytest.raises(ConfigError, match="standard chain") as caught:
        wiring.connect(section(kind=kind, model="m", api_key_env="CLOUD_KEY"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "extra"), [({"kind": "bedrock", "model": "m"}, "aws"), ({"url": "http://a", "http2": True}, "http2")]
)
def test_a_missing_extra_is_one_line_that_names_the_command(settings, extra, monkeypatch):
    for module in ("connections", "aws"):
        monkeypatch.setattr(f"edgewise.cloud.clients.{module}.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'edgewise\[{extra}\]'"):
        wiring.connect(section(**settings))


@pytest.mark.parametrize("kind", ["oip", "openai"])
def test_a_backend_without_an_address_is_refused(kind):
    with pytest.raises(ConfigError, match="url"):
        wiring.connect(BackendSection(kind=kind, model="m"))


def two(**cloud):
    backends = {"a": {"url": "http://a"}, "b": {"url": "http://b"}, "c": {"url": "http://c"}}
    return parse_config({"cloud": {"backends": backends, **cloud}})


def test_the_order_of_fail_over_is_the_settings():
    assert list(backends_in_use(two(use="b", fail_over=["c", "a"]).cloud)) == ["b", "c", "a"]
    assert list(backends_in_use(two(use="b").cloud)) == ["b"]


@pytest.mark.parametrize(
    ("cloud", "says"),
    [
        ({"use": "a", "fail_over": ["d"]}, "'d'"),
        ({"use": "a", "fail_over": ["a"]}, "in use itself"),
        ({"use": "a", "fail_over": ["b", "b"]}, "twice"),
        ({"fail_over": ["b"]}, "not clear"),
        ({"use": "d"}, "'d'"),
    ],
)
def test_a_fail_over_that_cannot_be_is_told_in_words(cloud, says):
    with pytest.raises(ConfigError) as caught:
        backends_in_use(two(**cloud).cloud)
    assert says in str(caught.value)
    assert caught.value.remedy


async def test_backends_that_stand_in_are_connected_too():
    client = cloud_of(two(use="a", fail_over=["c"]))
    assert isinstance(client, FailOverClient)
    await client.aclose()


def test_importing_the_clients_loads_nothing_that_one_of_them_needs():
    code = (
        "import sys, edgewise.cloud.clients as c\n"
        "c.CLIENTS['bedrock'](model='m'); c.CLIENTS['openai']('http://a', model='m', network=c.Network(http2=True))\n"
        "print([m for m in ('boto3', 'botocore', 'openai', 'h2.connection', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['h2.connection']")


def test_a_network_without_its_own_settings_is_the_default():
    assert Network() == Network(connect_timeout_s=2.0, keep_alive_s=4.0, http2=False, ca_file=None)


def test_every_error_of_a_cloud_is_a_cloud_error():
    assert issubclass(CloudThrottledError, CloudResponseError)
    assert issubclass(CloudCredentialsError, CloudError)


def test_the_command_line_names_a_cloud_by_url_or_by_file(tmp_path):
    named = {"kind": "oip", "model": "m", "api_key_env": None}
    assert wiring.backend_at("http://a", **named) == BackendSection(url="http://a", model="m")
    path = tmp_path / "edgewise.toml"
    path.write_text('[cloud.backends.a]\nkind = "bedrock"\nmodel = "x"\nlabels = ["yes", "no"]\n')
    found = wiring.backend_at(str(path), **named)
    assert (found.kind, found.model, found.labels) == ("bedrock", "x", ("yes", "no"))
    path.write_text("")
    with pytest.raises(ConfigError, match="no cloud backend"):
        wiring.backend_at(str(path), **named)


@pytest.mark.parametrize(("bundle", "kind"), [("tiny_generator_bundle", "openai"), ("tiny_text_bundle", "oip")])
def test_a_url_alone_is_asked_in_the_protocol_that_carries_what_the_bundle_is_asked(bundle, kind, request):
    named = {"kind": None, "model": None, "api_key_env": None, "bundle": request.getfixturevalue(bundle)}
    assert wiring.backend_at("http://a", **named) == BackendSection(url="http://a", kind=kind)


@pytest.mark.parametrize("kind", ["oip", "sagemaker"])
def test_a_protocol_without_prompts_is_refused_for_a_language_model(kind, tiny_generator_bundle, tmp_path):
    named = {"model": None, "api_key_env": None, "bundle": tiny_generator_bundle}
    with pytest.raises(ConfigError, match=f"'{kind}' carries no prompts") as refused:
        wiring.backend_at("http://a", kind=kind, **named)
    assert "--cloud-kind openai" in refused.value.remedy
    path = tmp_path / "edgewise.toml"
    path.write_text(f'[cloud.backends.a]\nkind = "{kind}"\nurl = "http://a"\nmodel = "m"\n')
    with pytest.raises(ConfigError, match=f"'{kind}' carries no prompts"):
        wiring.backend_at(str(path), kind=None, **named)


async def test_a_connection_that_is_reset_as_soon_as_it_is_made_is_none():
    """anyio then asks None for the socket's peer, where uvloop has let go of the socket already."""
    gone = None

    async def answer(request):
        return gone.getpeername()

    connections = Connections(Network(), tls=False, transport=httpx.MockTransport(answer))
    with pytest.raises(CloudUnreachableError, match="reset at once"):
        async with connections.open("GET", "http://cloud.test/"):
            pass
    await connections.aclose()


async def test_a_mistake_of_our_own_is_not_taken_for_a_lost_connection():
    connections = Connections(Network(), tls=False, transport=httpx.MockTransport(lambda request: httpx.Response(200)))
    with pytest.raises(AttributeError):
        async with connections.open("GET", "http://cloud.test/") as response:
            response.no_such_thing()
    gone = None
    with pytest.raises(AttributeError):
        async with connections.open("GET", "http://cloud.test/"):
            gone.no_such_thing()
    await connections.aclose()
