"""What the commands make of their options, before any job is asked; and that their help waits for no room."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from edgewise.commands import console, options
from edgewise.commands.settings import CloudOptions, configured, for_a_chat, overridden
from edgewise.config import BackendSection, CloudSection, Config, StateSection, backend_in_use
from edgewise.contracts import Mode
from edgewise.errors import ConfigError

NO_CLOUD = CloudOptions(None, None, None, None)


def test_help_waits_for_no_room():
    """A room that is loaded for `--help` is waited for by every command, and kept by every gateway."""
    code = (
        "import sys, edgewise.cli; "
        "rooms = ('bundle', 'cloud', 'edge', 'jobs', 'quantize', 'router', 'store', 'wire', 'wiring'); "
        "print([name for name in sys.modules if name.startswith(tuple('edgewise.' + room for room in rooms))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_option_that_is_not_given_leaves_the_file_as_it_is():
    config = Config(state=StateSection(path="kept.db"))
    assert overridden(config, state={"path": None}, edge={"mode": None}) == config


def test_an_option_that_is_given_wins_over_the_file():
    config = overridden(Config(state=StateSection(path="kept.db")), state={"path": Path("mine.db")})
    assert config.state.path == "mine.db"


def test_ranges_hold_for_options_too():
    with pytest.raises(ConfigError, match=r"server\.port is 70000"):
        overridden(Config(), server={"port": 70000})


def test_no_file_is_the_defaults(tmp_path):
    assert configured(None) == Config()
    file = tmp_path / "edgewise.toml"
    file.write_text('[edge]\nmode = "edge_only"\n')
    assert configured(file).edge.mode is Mode.EDGE_ONLY


def test_the_cloud_of_the_options_stands_in_place_of_the_files():
    theirs = {"a": BackendSection(url="http://a"), "b": BackendSection(url="http://b")}
    config = Config(cloud=CloudSection(use="a", fail_over=("b",), backends=theirs))
    assert NO_CLOUD.over(config, None) is config
    ours = CloudOptions("http://c", "openai", "big", None).over(config, None)
    assert backend_in_use(ours.cloud) == BackendSection(url="http://c", kind="openai", model="big")
    assert list(ours.cloud.backends) == [ours.cloud.use]
    assert ours.cloud.fail_over == ()


def test_a_chat_without_a_cloud_stays_on_the_device_and_touches_no_state():
    config = Config(state=StateSection(path="gateway.db"))
    alone = for_a_chat(config, Path("bundle"), None, None)
    assert (alone.edge.bundle, alone.edge.mode, alone.state.path) == ("bundle", Mode.EDGE_ONLY, None)
    clouded = CloudOptions("http://c", None, None, None).over(config, None)
    assert for_a_chat(clouded, Path("bundle"), None, None).edge.mode is config.edge.mode
    assert for_a_chat(config, Path("bundle"), None, Mode.SPECULATIVE).edge.mode is Mode.SPECULATIVE


def test_lists_and_pairs_in_one_option():
    assert options.names(" a, b,,") == ("a", "b")
    assert options.numbers("1,2", "--threads") == (1, 2)
    assert options.pair("region=eu=1", "--attribute") == ("region", "eu=1")


@pytest.mark.parametrize(
    ("read", "text"), [(options.numbers, "1,x"), (options.numbers, "1.5"), (options.pair, "x"), (options.pair, "=x")]
)
def test_what_cannot_be_read_names_the_option_and_the_text(read, text):
    with pytest.raises(typer.BadParameter, match=f"--it takes .*{text!r}"):
        read(text, "--it")


def test_a_goal_that_was_missed_is_shown_and_told(capsys):
    console.conclude("view", {"a": 1}, as_json=True, goal_met=True)
    with pytest.raises(typer.Exit) as missed:
        console.conclude("view", b'{"raw": true}\n', as_json=True, goal_met=False)
    assert missed.value.exit_code == 1
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n{"raw": true}\n'


def test_what_is_shown_keeps_its_colons(capsys):
    console.OUT.print(":boom: x")
    assert capsys.readouterr().out == ":boom: x\n"
