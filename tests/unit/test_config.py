"""The configuration file: defaults, every section, and errors that name the key and the remedy."""

import pytest

from edgewise.config import Config, backend_in_use, load_config, parse_config
from edgewise.contracts import Mode
from edgewise.errors import ConfigError

FULL = """
[edge]
bundle = "bundle"
mode = "speculative"
budget_ms = 80
[cloud]
use = "triton"
[cloud.backends.triton]
kind = "oip"
url = "http://127.0.0.1:8000"
model = "bert"
[server]
port = 0
[policy]
use = "budgeted"
money_per_day = 20
price_per_call = 0.002
[audit]
share = 0.5
on_alarm = "warn"
[profiles.checkout]
budget_ms = 80
mode = "edge_only"
"""


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "edgewise.toml"
    path.write_text("")
    assert load_config(path) == Config()


def test_every_section_is_read(tmp_path):
    path = tmp_path / "edgewise.toml"
    path.write_text(FULL)
    config = load_config(path)
    assert (config.edge.mode, config.edge.budget_ms, config.audit.share) == (Mode.SPECULATIVE, 80, 0.5)
    assert (config.policy.use, config.policy.money_per_day, config.audit.on_alarm) == ("budgeted", 20, "warn")
    assert backend_in_use(config.cloud).model == "bert"
    assert config.profiles["checkout"].mode is Mode.EDGE_ONLY


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[edge]\nbudget_m = 3", "Did you mean `budget_ms`"),
        ("[edeg]\n", "Did you mean `edge`"),
        ("[cloud]\nurl = 'http://x'", "in `cloud`. It is a key of [cloud.backends.NAME], [webhooks.NAME]."),
        ("[cloud.backends.a]\nurll = 'http://x'", "Did you mean `url`"),
        ("[text]\nslots = -1", "text.slots is -1"),
        ("[text]\nslots = 257", "text.slots is 257. Give at most 256"),
        ("[text]\nfoo = 1", "Known there: gate_ms, judge"),
        ("[edge]\nbudget_ms = 'x'", "edge.budget_ms"),
        ("[edge]\nbudget_ms = -1", "edge.budget_ms is -1"),
        ("[audit]\nshare = 1.5", "audit.share is 1.5"),
        ("[audit]\nrecertify_share = -0.1", "audit.recertify_share is -0.1"),
        ("[audit]\nverdict_deadline_s = 0", "audit.verdict_deadline_s is 0"),
        ("[audit]\nrecertify_items = 0", "audit.recertify_items is 0"),
        ("[audit]\non_alarm = 'panic'", "audit.on_alarm"),
        ("[policy]\nlocal_share = nan", "policy.local_share is nan"),
        ("[policy]\ncalls_per_day = 0", "policy.calls_per_day is 0"),
        ("[policy]\nprice_per_call = inf", "policy.price_per_call is inf"),
        ("[policy]\ncals_per_day = 3", "Did you mean `calls_per_day`"),
        ("[server]\nport = 70000", "server.port is 70000"),
        ("[cloud]\ntimeout_s = 0", "cloud.timeout_s is 0"),
        ("[cloud]\ntimeout_s = nan", "cloud.timeout_s is nan"),
        ("[server]\ndrain_s = inf", "server.drain_s is inf"),
        (f"[edge]\nmodel_threads = {10**400}", "edge.model_threads is 1000"),
        (f"[cache]\nmax_bytes = {2**63}", "cache.max_bytes is 9223372036854775808"),
        (f"[audit]\nshare = {10**400}", "audit.share"),
        (f"[text]\nslots = {10**400}", "text.slots is 1000"),
        (f"[server]\nport = {'9' * 5000}", "is not TOML"),
        ("edge = ", "is not TOML"),
        ("[cloud.backends.a]\nkind = 'oip'", "url"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_the_value_and_the_remedy(tmp_path, text, says):
    path = tmp_path / "edgewise.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert error.value.remedy


def test_as_many_sessions_of_texts_as_there_may_be(tmp_path):
    path = tmp_path / "edgewise.toml"
    path.write_text("[text]\nslots = 256")
    assert load_config(path).text.slots == 256


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "binary.toml")


def test_several_backends_want_a_choice():
    backends = {"a": {"url": "http://a"}, "b": {"url": "http://b"}}
    with pytest.raises(ConfigError, match="a, b"):
        backend_in_use(parse_config({"cloud": {"backends": backends}}).cloud)
    with pytest.raises(ConfigError, match="Known backends: a, b"):
        backend_in_use(parse_config({"cloud": {"use": "c", "backends": backends}}).cloud)


def test_no_backend_is_no_cloud():
    assert backend_in_use(Config().cloud) is None
