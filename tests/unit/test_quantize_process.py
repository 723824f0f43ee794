"""Work in a fresh process: results and errors come back, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from edgewise import errors
from edgewise.quantize.build import BuildJob
from edgewise.quantize.measure import GoldenAnswers, GoldenJob, MeasureJob, Round
from edgewise.quantize.process import WorkerError, run_fresh
from edgewise.quantize.recipes import Outcome


def build_job(tmp_path, source="missing.onnx"):
    return BuildJob("fp32", {}, str(tmp_path / source), str(tmp_path / "out.onnx"), 0)


def test_a_result_comes_back(tmp_path):
    (tmp_path / "there.onnx").write_bytes(b"graph")
    log = tmp_path / "logs" / "build.log"
    outcome = run_fresh("build", build_job(tmp_path, "there.onnx"), Outcome, log=log, threads=1)
    assert outcome.facts == ("the exported graph, unchanged",)
    assert (tmp_path / "out.onnx").read_bytes() == b"graph"
    assert log.exists()


def test_an_error_comes_back_under_its_own_name(tmp_path):
    job = MeasureJob(str(tmp_path / "nowhere"), str(tmp_path / "items.json"), 1, str(tmp_path / "l.npy"))
    (tmp_path / "items.json").write_text('[{"text":"a"}]')
    with pytest.raises(errors.BundleError, match="no bundle at") as caught:
        run_fresh("measure", job, Round, log=tmp_path / "log", threads=1)
    assert caught.value.remedy


def test_a_crash_tells_the_last_words_of_the_log(tmp_path):
    with pytest.raises(WorkerError, match=r"'build' failed: .*missing\.onnx"):
        run_fresh("build", build_job(tmp_path), Outcome, log=tmp_path / "log", threads=1)
    assert "Traceback" in (tmp_path / "log").read_text()


def test_golden_items_cross_the_process(tmp_path, tiny_text_bundle, tiny_models):
    from edgewise.bundle import Bundle
    from edgewise.quantize.items import items_of

    job = GoldenJob(str(tiny_text_bundle), items_of(tiny_models.TEXTS), "margin")
    answers = run_fresh("golden", job, GoldenAnswers, log=tmp_path / "log", threads=1).items
    packed = {item.input: item for item in Bundle.open(tiny_text_bundle).golden()}
    assert [item.output for item in answers] == [packed[text].output for text in tiny_models.TEXTS]


def test_no_worker_loads_torch(tmp_path):
    code = "import sys, edgewise.quantize.measure, edgewise.quantize.build; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("torch", "transformers", "optimum", "onnx"):
        assert f"'{name}'" not in loaded


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    job, result = tmp_path / "job.json", tmp_path / "result.json"
    # A named pipe that nobody writes to: the worker waits in it for ever.
    os.mkfifo(tmp_path / "items.json")
    measure = MeasureJob(str(tmp_path), str(tmp_path / "items.json"), 1, str(tmp_path / "l.npy"))
    job.write_bytes(msgspec.json.encode(measure))
    command = [sys.executable, "-m", "edgewise.quantize.worker", "measure", str(job), str(result)]
    code = (
        "import subprocess, sys\n"
        f"worker = subprocess.Popen({command!r}, stdin=subprocess.PIPE)\n"
        "print(worker.pid, flush=True)\n"
        "worker.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 20
        while alive(worker) and time.monotonic() < until:
            time.sleep(0.02)
        assert not alive(worker)
    finally:
        if alive(worker):
            os.kill(worker, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
