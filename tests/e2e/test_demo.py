"""The demo, as `make demo` runs it: it can be interrupted, it can be run again, and it reaches what it promises."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "newswire" / "demo.sh"
KEYS = {
    "cloud_accuracy", "edge_accuracy", "routed_accuracy", "local_share", "local_disagreement",
    "disagreement_given_local", "alpha", "delta", "n_certify", "n_test", "latency_ms", "bundle_bytes",
    "checkpoint_bytes", "cloud_calls_saved", "wall_s",
}  # fmt: skip


def start(free_ports):
    cloud_port, gateway_port = free_ports
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CLOUD_PORT": str(cloud_port),
        "GATEWAY_PORT": str(gateway_port),
    }
    return subprocess.Popen(
        ["bash", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip


def members_of_session(session):
    """Command lines of the processes that still belong to a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def follow(process, until):
    """Read the output up to the line that holds `until`; returns what was read."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if until in line:
            return "".join(seen)
    raise AssertionError(f"{until!r} never came: {''.join(seen)[-3000:]}")


def test_every_step_is_a_public_command():
    text = SCRIPT.read_text()
    commands = [line.split(" ", 1)[1] for line in text.splitlines() if re.match(r"(run|serve) ", line)]
    assert len(commands) == 7
    assert all(line.startswith(("edgewise ", "python examples/newswire/")) for line in commands)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds left-over processes through Linux's /proc")
def test_the_demo_can_be_interrupted_and_run_again(free_ports):
    first = start(free_ports)
    try:
        follow(first, "Gateway for")
        os.killpg(first.pid, signal.SIGINT)
        first.communicate(timeout=60)
        assert first.returncode == 130
        assert members_of_session(first.pid) == []
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    again = start(free_ports)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output[-3000:]
    assert members_of_session(again.pid) == []
    assert "up to date" in output
    assert "(unchanged)" in output
    summary = json.loads((ROOT / "build" / "demo" / "summary.json").read_text())
    assert set(summary) >= KEYS
    assert summary["cloud_accuracy"] >= 0.92
    assert summary["edge_accuracy"] >= 0.80
    assert summary["routed_accuracy"] > summary["edge_accuracy"]
    assert summary["bundle_bytes"] < summary["checkpoint_bytes"]
    assert (ROOT / "build" / "demo" / "operating_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_port_that_is_taken_ends_the_demo(free_ports):
    """A stranger on the cloud's port must not be certified against."""
    with socket.create_server(("127.0.0.1", free_ports[0])):
        process = start(free_ports)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "is in use" in output
    assert members_of_session(process.pid) == []
