"""The demo of a conversation, as `make demo-chat` runs it: an escalation, a warm second turn, an interrupt."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "chat" / "demo.sh"


def test_every_step_is_a_public_command():
    text = SCRIPT.read_text()
    commands = [line.split(" ", 1)[1] for line in text.splitlines() if re.match(r"(run|serve) ", line)]
    assert len(commands) == 6
    assert all(line.startswith(("edgewise ", "python examples/chat/")) for line in commands)


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_the_demo_holds_the_conversation(free_ports):
    cloud_port, gateway_port = free_ports
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CLOUD_PORT": str(cloud_port),
        "GATEWAY_PORT": str(gateway_port),
    }
    process = subprocess.Popen(
        ["bash", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=800)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)
    assert process.returncode == 0, output[-3000:]
    found = json.loads((ROOT / "build" / "demo-chat" / "talk.json").read_text())
    by_source = {turn["source"]: turn for turn in found["questions"]}
    assert by_source["edge"]["reason"] == "confident"
    assert by_source["cloud"]["reason"] == "below_threshold"
    cut, continued = found["story"]
    assert cut["finish"] == "interrupted"
    assert cut["tokens"] < 200
    assert continued["text"]
    assert all(turn["text"] for turn in found["turns"])
