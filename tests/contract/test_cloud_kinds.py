"""What single kinds of cloud clients do beyond the common contract, over real sockets."""

import asyncio
import importlib.util
import json
import ssl
import sys
from pathlib import Path

import boto3
import httpx
import numpy as np
import pytest

from edgewise import wiring
from edgewise.cloud.clients import CLIENTS, Network, Tensors
from edgewise.config import backends_in_use, parse_config
from edgewise.contracts import CloudReply, Request
from edgewise.errors import CloudRefusedError, CloudResponseError, CloudTimeoutError, CloudUnreachableError

SPEC = importlib.util.spec_from_file_location("edgewise_cloud_stubs", Path(__file__).parent / "cloud_stubs.py")
stubs = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = stubs  # dataclasses look their module up
SPEC.loader.exec_module(stubs)

REQUEST = Request(id="r1", inputs="corn rose")
LONG_S = 20.0
LABELS = ("grain", "ship", "trade")


@pytest.fixture(autouse=True)
def aws(monkeypatch):
    for name, value in stubs.AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def serving(request):
    with stubs.serving(stubs.DIALECTS[request.param]) as server:
        yield server


def of(name):
    return pytest.mark.parametrize("serving", [name], indirect=True)


async def once(client, timeout_s=LONG_S, request=REQUEST) -> CloudReply:
    try:
        return await client.predict(request, timeout_s=timeout_s)
    finally:
        await client.aclose()


# OpenAI's protocol.


@of("openai")
async def test_a_chat_model_classifies(serving, monkeypatch):
    monkeypatch.setattr(stubs, "chat_answer", lambda text: "Grain.")
    client = stubs.OPENAI.client(serving.url, labels=LABELS, instruction="Sort the news.", constrained=True)
    described = await client.describe(timeout_s=LONG_S)
    assert [piece async for piece in client.stream(REQUEST, timeout_s=LONG_S)] == [CloudReply("grain", described)]
    sent = serving.asked[-1].json
    assert sent["messages"][0] == {"role": "system", "content": "Sort the news."}
    assert sent["structured_outputs"] == {"choice": list(LABELS)}
    assert serving.asked[-1].headers["authorization"] == f"Bearer {stubs.SECRET}"
    monkeypatch.setattr(stubs, "chat_answer", lambda text: "I would say: grain")
    with pytest.raises(CloudRefusedError, match="none of its labels"):
        await once(client)


@of("openai")
async def test_an_embedding_model_embeds(serving):
    client = stubs.OPENAI.client(serving.url + "/v1/", task="feature-extraction")
    described = await client.describe(timeout_s=LONG_S)
    assert await once(client) == CloudReply((0.25, -0.5, 9.0), described)
    assert serving.asked[-1].json == {"model": "news", "input": "corn rose", "encoding_format": "float"}


@of("openai")
async def test_another_checkpoint_behind_the_same_name_is_another_version(serving, monkeypatch):
    client = stubs.OPENAI.client(serving.url)
    before = await client.describe(timeout_s=LONG_S)
    assert await client.describe(timeout_s=LONG_S) == before, "what changes at every request is no version"
    plain = stubs.card
    monkeypatch.setattr(stubs, "card", lambda name="news": plain(name) | {"root": "/models/news-8b"})
    assert (await client.describe(timeout_s=LONG_S)).version != before.version
    await client.aclose()


@of("openai")
async def test_a_model_that_is_not_listed_is_told_with_those_that_are(serving):
    client = stubs.OPENAI.client(serving.url, model="olds")
    with pytest.raises(CloudResponseError, match="'olds'") as caught:
        await once(client)
    assert "another, news" in caught.value.remedy


@of("openai")
async def test_describing_again_costs_no_answer(serving):
    client = stubs.OPENAI.client(serving.url)
    for _ in range(3):
        await client.describe(timeout_s=LONG_S)
    paths = [seen.path for seen in serving.asked]
    assert paths.count("/v1/chat/completions") == 1
    assert next(seen for seen in serving.asked if seen.method == "POST").json["max_tokens"] == 1
    await client.aclose()


# SageMaker.


@of("sagemaker")
async def test_a_hugging_face_endpoint_classifies(serving, monkeypatch):
    scores = [{"label": "grain", "score": 0.9}, {"label": "ship", "score": 0.1}]
    plain = stubs.sagemaker_reply

    def reply(asked, version):
        if asked.path == "/":
            return plain(asked, version)
        return stubs.Reply(json.dumps(scores).encode(), 200, {"x-Amzn-Invoked-Production-Variant": version})

    serving.dialect = stubs.Dialect(**{**vars(serving.dialect), "reply": reply})
    client = stubs.SAGEMAKER.client(serving.url, task=None)
    described = await client.describe(timeout_s=LONG_S)
    assert described.version.startswith(f"news-2026-11-01/{stubs.VERSION}")
    assert [piece async for piece in client.stream(REQUEST, timeout_s=LONG_S)] == [CloudReply("grain", described)]
    assert serving.asked[-1].json == {"inputs": "corn rose"}
    assert serving.asked[-1].headers["x-amz-security-token"] == stubs.SECRET
    await client.aclose()


@of("sagemaker")
async def test_an_endpoint_with_our_own_container_is_asked_in_its_protocol(serving):
    plain = stubs.sagemaker_reply

    def reply(asked, version):
        if asked.path == "/":
            return plain(asked, version)
        answered = stubs.oip_reply(asked, "sha256:inner")
        return stubs.Reply(answered.body, 200, {"x-Amzn-Invoked-Production-Variant": version})

    serving.dialect = stubs.Dialect(**{**vars(serving.dialect), "reply": reply})
    client = stubs.SAGEMAKER.client(serving.url, task=None, container="oip")
    described = await client.describe(timeout_s=LONG_S)
    assert await once(client) == CloudReply("label of corn rose", described)
    assert 0 < serving.asked[-1].json["parameters"]["budget_ms"] <= LONG_S * 1000


@of("sagemaker")
@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"EndpointStatus": "Updating"}, "Updating"),
        ({"EndpointStatus": "Failed"}, "Failed"),
        ({"EndpointConfigName": ""}, "configuration"),
        ({"ProductionVariants": [{"VariantName": "a"}, {"VariantName": "b"}]}, "a, b"),
        ({"ProductionVariants": []}, "none"),
    ],
)
async def test_an_endpoint_that_serves_no_one_version_is_no_reference(serving, told, problem):
    serving.always = stubs.as_json(stubs.described_endpoint(stubs.VERSION, **told))
    client = stubs.SAGEMAKER.client(serving.url)
    with pytest.raises(CloudResponseError, match=problem):
        await client.describe(timeout_s=LONG_S)
    await client.aclose()


@of("sagemaker")
async def test_a_variant_without_traffic_does_not_count_and_another_image_is_another_version(serving):
    client = stubs.SAGEMAKER.client(serving.url)
    one = {"VariantName": "a", "CurrentWeight": 1.0}
    old = {"VariantName": "b", "CurrentWeight": 0.0}
    versions = set()
    for image in ("x@sha256:1", "x@sha256:2"):
        variants = [one | {"DeployedImages": [{"ResolvedImage": image}]}, old]
        serving.always = stubs.as_json(stubs.described_endpoint(None, ProductionVariants=variants))
        versions.add((await client.describe(timeout_s=LONG_S)).version)
    assert len(versions) == 2
    await client.aclose()


@pytest.mark.slow
async def test_an_endpoint_of_moto_answers():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        control = boto3.client("sagemaker", region_name="us-east-1", endpoint_url=url)
        role = "arn:aws:iam::123456789012:role/serving"
        control.create_model(ModelName="m", ExecutionRoleArn=role, PrimaryContainer={"Image": "image:1"})
        variant = {"VariantName": "main", "ModelName": "m", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
        control.create_endpoint_config(EndpointConfigName="config-1", ProductionVariants=[variant])
        control.create_endpoint(EndpointName="news", EndpointConfigName="config-1")
        results = [
            {
                "Body": '[{"label": "grain", "score": 0.9}]',
                "ContentType": "application/json",
                "InvokedProductionVariant": "main",
            }
        ]
        async with httpx.AsyncClient(trust_env=False) as plain:
            path = "/moto-api/static/sagemaker/endpoint-results"
            account = {"account_id": "123456789012", "region": "us-east-1", "results": results}
            (await plain.post(url + path, json=account)).raise_for_status()
        client = CLIENTS["sagemaker"](url, control_url=url, model="news", region="us-east-1")
        described = await client.describe(timeout_s=LONG_S)
        assert described.version.startswith("config-1/main, ")
        assert await once(client) == CloudReply("grain", described)
    finally:
        server.stop()


# Bedrock.


@of("bedrock")
async def test_a_model_on_bedrock_classifies(serving, monkeypatch):
    monkeypatch.setattr(stubs, "chat_answer", lambda text: "ship")
    client = stubs.BEDROCK.client(serving.url, labels=LABELS, max_tokens=9)
    described = await client.describe(timeout_s=LONG_S)
    assert await once(client) == CloudReply("ship", described)
    sent = serving.asked[-1].json
    assert sent["inferenceConfig"] == {"maxTokens": 9, "temperature": 0.0}
    assert "grain, ship, trade" in sent["system"][0]["text"]


@of("bedrock")
@pytest.mark.parametrize("ending", ["guardrail_intervened", "content_filtered"])
async def test_what_a_guardrail_keeps_back_is_a_refusal(serving, ending):
    serving.always = stubs.as_json(stubs.converse("Sorry.", stubs.VERSION, ending))
    with pytest.raises(CloudRefusedError, match=ending):
        await once(stubs.BEDROCK.client(serving.url))


@of("bedrock")
async def test_an_answer_of_tools_is_no_answer(serving):
    serving.always = stubs.as_json(stubs.converse("", stubs.VERSION, "tool_use"))
    with pytest.raises(CloudResponseError, match="tool_use"):
        await once(stubs.BEDROCK.client(serving.url))


@of("bedrock")
async def test_an_inference_profile_is_described_too(serving):
    def reply(asked, version):
        if asked.path.startswith("/foundation-models/"):
            return stubs.aws_error(400, "The provided model identifier is invalid.", "ValidationException")
        profile = {"inferenceProfileId": "eu.amazon.nova-lite-v1:0", "inferenceProfileName": "EU Nova Lite"}
        return stubs.as_json({**profile, "status": "ACTIVE", "type": "SYSTEM_DEFINED", "models": []})

    serving.dialect = stubs.Dialect(**{**vars(serving.dialect), "reply": reply})
    client = stubs.BEDROCK.client(serving.url, model="eu.amazon.nova-lite-v1:0")
    assert (await client.describe(timeout_s=LONG_S)).name == "eu.amazon.nova-lite-v1:0"
    await client.aclose()


@of("bedrock")
async def test_no_credentials_at_all_are_told_as_such(serving, monkeypatch):
    from edgewise.cloud.clients import aws
    from edgewise.errors import CloudCredentialsError

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    # The process keeps one session, and this one has its credentials already.
    monkeypatch.setattr(aws, "_shared", aws._SharedSession())
    with pytest.raises(CloudCredentialsError, match="credentials") as caught:
        await once(stubs.BEDROCK.client(serving.url))
    assert "AWS_PROFILE" in caught.value.remedy
    assert serving.asked == []


@of("bedrock")
async def test_credentials_that_were_renewed_are_read_anew_after_a_refusal(serving, monkeypatch, tmp_path):
    from edgewise.cloud.clients import aws
    from edgewise.errors import CloudCredentialsError

    keys = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setattr(aws, "_shared", aws._SharedSession())
    signed, plain = [], serving.dialect.reply

    def reply(asked, version):
        signed.append(asked.headers["authorization"].partition("Credential=")[2].partition("/")[0])
        if signed[-1] == "OLDKEY":
            return stubs.aws_error(403, "The security token is expired", "ExpiredTokenException")
        return plain(asked, version)

    serving.dialect = stubs.Dialect(**{**vars(serving.dialect), "reply": reply})
    keys.write_text("[default]\naws_access_key_id = OLDKEY\naws_secret_access_key = s\n")
    client = stubs.BEDROCK.client(serving.url)
    # However often it is refused, the chain is not read again before its time.
    monkeypatch.setattr(aws, "RENEW_S", 1e6)
    for _ in range(2):
        with pytest.raises(CloudCredentialsError, match="expired"):
            await client.predict(REQUEST, timeout_s=LONG_S)
        keys.write_text("[default]\naws_access_key_id = NEWKEY\naws_secret_access_key = s\n")
    monkeypatch.setattr(aws, "RENEW_S", 0.0)
    for _ in range(2):
        await client.predict(REQUEST, timeout_s=LONG_S)
    await client.aclose()
    assert signed == ["OLDKEY", "OLDKEY", "NEWKEY", "NEWKEY"]


# A server like Triton: names, shapes and numbers of its own.


def triton(asked, version):
    """One model, BERT in numbers, as Triton answers for it (max_batch_size above 0, hence [1, 1])."""
    if asked.method == "GET":
        text = {"name": "TEXT", "datatype": "BYTES", "shape": [-1, 1]}
        logits = {"name": "LOGITS", "datatype": "FP32", "shape": [-1, 3]}
        return stubs.as_json(
            {"name": "bert", "versions": ["3"], "platform": "onnxruntime_onnx", "inputs": [text], "outputs": [logits]}
        )
    (tensor,) = asked.json["inputs"]
    if tensor["name"] != "TEXT":
        return stubs.as_json(
            {"error": f"[request id: r1] unexpected inference input '{tensor['name']}' for model 'bert'"}, 400
        )
    if tensor["shape"] != [1, 1]:
        return stubs.as_json(
            {"error": "[request id: r1] unexpected shape for input 'TEXT' for model 'bert'. Expected [-1,1]"}, 400
        )
    data = [0.25, -1.5, 7.125] if tensor["data"] == ["corn rose"] else [9.5, 0, 0]
    output = {"name": "LOGITS", "datatype": "FP32", "shape": [1, 3], "data": data}
    return stubs.as_json({"model_name": "bert", "model_version": "3", "outputs": [output]})


@of("oip")
async def test_one_line_swaps_the_cloud_for_triton(serving):
    serving.dialect = stubs.Dialect(**{**vars(serving.dialect), "reply": triton})
    cloud = {
        "use": "triton",
        "backends": {
            "ours": {"kind": "oip", "url": "http://127.0.0.1:9"},
            "triton": {
                "kind": "oip",
                "url": serving.url,
                "model": "bert",
                "input": "TEXT",
                "input_shape": [1, 1],
                "output": "LOGITS",
                "labels": list(LABELS),
            },
        },
    }
    (backend,) = backends_in_use(parse_config({"cloud": cloud}).cloud).values()
    client = wiring.connect(backend)
    described = await client.describe(timeout_s=LONG_S)
    assert (described.name, described.version[:2]) == ("bert", "3,")
    assert await once(client) == CloudReply("trade", described)
    misnamed = CLIENTS["oip"](serving.url, model="bert", tensors=Tensors(input="INPUT", input_shape=(1, 1)))
    with pytest.raises(CloudRefusedError, match="unexpected inference input 'INPUT'"):
        await once(misnamed)


@of("oip")
async def test_pixels_keep_their_shape(serving):
    def reply(asked, version):
        (tensor,) = asked.json["inputs"]
        assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("IMAGE", [1, 2, 2], "UINT8")
        return triton(
            stubs.Asked(
                "POST", "/", {}, json.dumps({"inputs": [{"name": "TEXT", "shape": [1, 1], "data": []}]}).encode()
            ),
            version,
        )

    serving.dialect = stubs.Dialect(**{**vars(serving.dialect), "reply": reply})
    client = CLIENTS["oip"](serving.url, model="bert", tensors=Tensors(input="IMAGE", output="LOGITS", labels=LABELS))
    request = Request(id="r1", inputs=np.zeros((2, 2), np.uint8))
    assert (await once(client, request=request)).output == "grain"


# HTTP/2.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A self-signed certificate of this machine, with its key, as one PEM file."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


class Http2Server:
    """Answers every stream of one connection; counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.hold = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.events import DataReceived, RequestReceived, StreamEnded

        self.connections += 1
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        bodies: dict[int, tuple[str, bytearray]] = {}
        while True:
            writer.write(connection.data_to_send())
            data = await reader.read(65536)
            if not data:
                break
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    bodies[event.stream_id] = (dict(event.headers)[b":method"].decode(), bytearray())
                elif isinstance(event, DataReceived):
                    bodies[event.stream_id][1].extend(event.data)
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, StreamEnded) and not self.hold:
                    method, body = bodies[event.stream_id]
                    reply = stubs.oip_reply(stubs.Asked(method, "", {}, bytes(body)), stubs.VERSION)
                    connection.send_headers(event.stream_id, [(":status", "200")])
                    connection.send_data(event.stream_id, reply.body, end_stream=True)
        writer.close()


async def test_http2_is_spoken_where_the_server_speaks_it(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    answering = Http2Server()
    async with await asyncio.start_server(answering, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        network = Network(http2=True, ca_file=str(certificate), connect_timeout_s=20)
        client = CLIENTS["oip"](url, model="news", network=network)
        described = await client.describe(timeout_s=LONG_S)
        replies = await asyncio.gather(*(client.predict(REQUEST, timeout_s=LONG_S) for _ in range(10)))
        assert replies == [CloudReply("label of corn rose", described)] * 10
        assert answering.connections == 1, "ten requests at once share one connection"
        answering.hold = True
        with pytest.raises(CloudTimeoutError):
            await client.predict(REQUEST, timeout_s=0.5)
        answering.hold = False
        assert (await client.predict(REQUEST, timeout_s=LONG_S)).reference == described
        assert answering.connections == 1, "the others' connection lives on"
        untrusting = CLIENTS["oip"](url, model="news", network=Network(http2=True))
        with pytest.raises(CloudUnreachableError, match="certificate"):
            await once(untrusting)
        await client.aclose()
