"""A gateway of a language model: its promise, its settings, its judge, and that others load nothing of it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import pytest

from edgewise import wiring
from edgewise.config import parse_config
from edgewise.contracts import Answered, Bound, DataPolicy, Reason, Reference, Request, Status, Token
from edgewise.dialogue import Prompt, Sampling
from edgewise.edge import EdgeGenerator, probe
from edgewise.errors import CertificateError, ConfigError, RequestError
from edgewise.jobs.answerers import runtime_of
from edgewise.router import certificate as certificates

ABC = Prompt(text="a", sampling=Sampling(max_tokens=8))


@pytest.fixture
def resources():
    with ExitStack() as held:
        yield held


def certificate(bundle, path, signal="mean_logprob:first=4", **fields):
    with EdgeGenerator.load(bundle) as model:
        issued = certificates.issue(
            Bound(threshold=-1.0, local_share=0.5, n=300, k=0, alpha=0.01, delta=0.05), model_digest=model.digest,
            signal=signal, data_digest="none", reference=Reference("cloud", "1"), created="2026-01-01T00:00:00Z",
            runtime=fields.pop("runtime", runtime_of(model.bundle)), isa=probe().isa, **fields,
        )  # fmt: skip
    path.write_bytes(certificates.encode(issued))
    return path


def built(bundle, resources, path=None, kind="openai", **sections):
    edge = {"bundle": str(bundle), **({"certificate": str(path)} if path else {"mode": "edge_only"})}
    cloud = {"backends": {"main": {"url": "http://127.0.0.1:9", "kind": kind}}}
    return wiring.build_gateway(parse_config({"edge": edge, "cloud": cloud, **sections}), resources)


async def collect(gateway, **fields):
    found = [event async for event in gateway.router.events(Request(inputs=ABC, **fields))]
    (answer,) = (event.answer for event in found if isinstance(event, Answered))
    assert "".join(event.text for event in found if isinstance(event, Token)) == answer.output
    return answer


async def test_a_language_model_is_served_without_a_certificate(tiny_generator_bundle, resources):
    gateway = built(tiny_generator_bundle, resources)
    assert (gateway.info.task, gateway.info.labels, gateway.info.input) == ("text-generation", (), "text")
    answer = await collect(gateway)
    assert (answer.output, answer.decision.reason) == ("bcdefghi", Reason.EDGE_ONLY)
    assert (answer.written.finish, answer.written.completion_tokens) == ("length", 8)
    await gateway.router.aclose()


async def test_under_a_certificate_its_first_tokens_decide(tiny_generator_bundle, resources, tmp_path):
    path = certificate(tiny_generator_bundle, tmp_path / "c.json")
    gateway = built(tiny_generator_bundle, resources, path)
    assert gateway.warnings == ()
    answer = await collect(gateway)
    assert (answer.status, answer.decision.reason) == (Status.FINAL, Reason.CONFIDENT)
    local = await collect(gateway, data_policy=DataPolicy.LOCAL_ONLY)
    assert local.decision.reason is Reason.LOCAL_ONLY
    with pytest.raises(RequestError) as refused:
        await gateway.router.answer(Request(inputs=Prompt(text="")))
    assert refused.value.field == "prompt"
    await gateway.router.aclose()


def test_a_cloud_that_carries_no_prompts_is_refused_at_the_start(tiny_generator_bundle, resources):
    with pytest.raises(ConfigError, match="'oip' carries no prompts"):
        built(tiny_generator_bundle, resources, kind="oip")


def test_a_signal_of_whole_texts_is_worth_a_warning(tiny_generator_bundle, resources, tmp_path):
    path = certificate(tiny_generator_bundle, tmp_path / "c.json", signal="mean_logprob")
    (warning,) = built(tiny_generator_bundle, resources, path).warnings
    assert "nothing is streamed from the edge" in warning


def test_a_certificate_of_another_runtime_is_refused(tiny_generator_bundle, resources, tmp_path):
    path = certificate(tiny_generator_bundle, tmp_path / "c.json", runtime="onnxruntime-genai 0.1")
    with pytest.raises(CertificateError, match=r"issued with onnxruntime-genai 0\.1"):
        built(tiny_generator_bundle, resources, path)


def test_the_settings_of_texts_reach_the_model_and_the_router(tiny_generator_bundle, resources, tmp_path):
    text = {"threads": 3, "slots": 2, "gate_ms": 200, "watch_window": 4, "watch_floor": -3.0, "prefill": ["be short"]}
    settings = built(tiny_generator_bundle, resources, text=text).router._settings.text
    assert (settings.threads, settings.gate_ms, settings.watch_window, settings.watch_floor) == (3, 200, 4, -3.0)


@pytest.mark.parametrize(
    "text",
    [{"threads": 0}, {"slots": -1}, {"gate_ms": -1}, {"watch_floor": 0.5}, {"watch_window": 0}, {"slot_tokens": 0}],
)
def test_settings_out_of_their_range_are_refused(text):
    with pytest.raises(ConfigError, match=f"text.{next(iter(text))}"):
        parse_config({"text": text})


def test_a_function_of_ones_own_judges_only_where_the_settings_name_it(
    tiny_generator_bundle, tiny_text_bundle, resources, tmp_path
):
    path = certificate(tiny_generator_bundle, tmp_path / "c.json", judge="python:os.path:samefile")
    with pytest.raises(ConfigError, match=r"python:os\.path:samefile"):
        built(tiny_generator_bundle, resources, path)
    path = certificate(tiny_generator_bundle, tmp_path / "c.json", judge="number")
    with pytest.raises(ConfigError, match="judge"):
        built(tiny_generator_bundle, resources, path, text={"judge": "choice"})
    with pytest.raises(ConfigError, match="gives no vectors"):
        built(tiny_generator_bundle, resources, path, text={"judge_bundle": str(tiny_text_bundle)})
    built(tiny_generator_bundle, resources, path, text={"judge": "number"})


def test_a_gateway_of_a_classifier_loads_nothing_of_texts(tiny_text_bundle):
    program = (
        "import sys; from contextlib import ExitStack; from edgewise import wiring; "
        "from edgewise.config import parse_config\n"
        f"config = parse_config({{'edge': {{'bundle': {str(tiny_text_bundle)!r}, 'mode': 'edge_only'}}}})\n"
        "with ExitStack() as held:\n"
        "    wiring.build_gateway(config, held)\n"
        "own = ('textflow', 'reciting', 'relaying', 'gate', 'writing', 'telling', 'dictation', 'toolcheck', 'watch')\n"
        "own = [f'edgewise.router.{name}' for name in (*own, 'agreement')]\n"
        "own += ['edgewise.wiring.texts', 'onnxruntime_genai']\n"
        "print([name for name in own if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
