"""A backend whose text is drafted here, from its settings."""

import pytest

from edgewise import wiring
from edgewise.cloud.clients.drafting import DraftedCloud
from edgewise.cloud.clients.openai import OpenAIClient
from edgewise.config import BackendSection
from edgewise.edge import EdgeGenerator
from edgewise.errors import BundleError, ConfigError
from edgewise.telemetry import Metrics
from edgewise.wiring.backends import connect

URL = "http://127.0.0.1:9"


def backend(**fields):
    return BackendSection(**{"url": URL, "kind": "openai", "model": "large", **fields})


async def test_a_bundle_drafts_for_a_backend(tiny_generator_bundle):
    client = wiring.connect(backend(draft=str(tiny_generator_bundle), draft_tokens=3))
    assert isinstance(client, DraftedCloud)
    assert client.figures.k == 3
    await client.aclose()
    assert isinstance(connect(backend()), OpenAIClient)


async def test_a_model_that_is_loaded_already_drafts_itself(tiny_generator_bundle, monkeypatch):
    with EdgeGenerator.load(tiny_generator_bundle) as generator:
        monkeypatch.setattr(EdgeGenerator, "load", None)
        client = connect(backend(draft=str(tiny_generator_bundle)), generator=generator)
        assert isinstance(client, DraftedCloud)
        await client.aclose()


async def test_metrics_of_drafting_are_there_where_something_drafts(tiny_generator_bundle):
    plain, drafted = Metrics(), Metrics()
    for metrics, fields in ((plain, {}), (drafted, {"draft": str(tiny_generator_bundle)})):
        await connect(backend(**fields), metrics=metrics).aclose()
    assert not plain.render()
    assert b"edgewise_draft_acceptance" in drafted.render()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"draft_tokens": 3}, "no model drafts"),
        ({"draft": "bundle", "kind": "oip"}, "takes no `draft`"),
        ({"draft": "bundle", "url": None}, "no URL"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, problem):
    with pytest.raises(ConfigError, match=problem):
        connect(backend(**fields))


def test_what_drafts_must_be_a_bundle_and_its_number_in_range(tiny_generator_bundle, tmp_path):
    with pytest.raises(BundleError):
        connect(backend(draft=str(tmp_path)))
    with pytest.raises(ConfigError, match="drafts 99 tokens"):
        connect(backend(draft=str(tiny_generator_bundle), draft_tokens=99))
