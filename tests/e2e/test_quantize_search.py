"""A search over recipes and layers: it keeps to its time, survives a kill, and leaves a run like any other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from edgewise.bundle import Bundle
from edgewise.errors import InputError
from edgewise.quantize import QuantizeJob, quantize, read_report
from edgewise.quantize.run_folder import search_folder, workshop
from edgewise.quantize.search import Ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(newsroom, tmp_path_factory) -> QuantizeJob:
    folder = tmp_path_factory.mktemp("search")
    return QuantizeJob(
        checkpoint=newsroom.checkpoint,
        # More than a look takes, so that what a look sees cannot pass for the whole.
        data=newsroom.write(folder / "tuning.jsonl", newsroom.sentences(180, seed=2)),
        texts=newsroom.write(folder / "texts.jsonl", newsroom.sentences(60, seed=5)),
        test=newsroom.write(folder / "test.jsonl", newsroom.sentences(80, seed=4)),
        out=folder / "run",
        recipes=("int8_dynamic", "trim+int8_dynamic", "margin+int8_embed4"),
        search=True,
        minutes=0.5,
        max_drop=0.2,
    )


def start(job: QuantizeJob) -> subprocess.Popen[bytes]:
    given = {
        "--data": job.data,
        "--test": job.test,
        "--texts": job.texts,
        "--out": job.out,
        "--recipes": ",".join(job.recipes),
        "--minutes": job.minutes,
        "--max-drop": job.max_drop,
    }
    options = [str(part) for pair in given.items() for part in pair]
    command = [sys.executable, "-m", "edgewise.cli", "quantize", str(job.checkpoint), *options, "--search", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "it did not happen within two minutes"
        time.sleep(0.02)


def test_a_killed_search_goes_on_with_what_it_had_and_ends_as_a_run(job):
    tried = search_folder(job.out) / "tried"
    killed = start(job)
    try:
        wait_for(lambda: len(list(tried.glob("*.json"))) >= 2 or killed.poll() is not None)
        assert killed.poll() is None, killed.stderr.read()[-2000:]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    finally:
        killed.kill()
    assert not job.out.exists()
    kept = Ledger(tried).read()
    records = search_folder(job.out) / "made"
    built = {found.id: json.loads((records / f"{found.id}.json").read_bytes())["seconds"] for found in kept}

    resumed = start(job)
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err[-3000:]
    assert b"The search goes on" in err
    report = read_report(job.out)
    assert json.loads(out)["winner"] == report.winner
    ids = [candidate.id for candidate in report.candidates]
    # What was tried before the kill is in the report, and was not built a second time.
    assert {found.id for found in kept} <= set(ids)
    assert len(ids) == len(set(ids))
    for found in kept:
        # A build, and a look, take another time each time, to the last digit.
        candidate = report.candidate(found.id)
        assert candidate.seconds == (built[found.id] if candidate.state == "measured" else found.seconds)
    assert not search_folder(job.out).exists()
    assert [path.name for path in job.out.parent.glob(".run.*")] == []

    # The front is measured in full, each with a bundle; the pick is on it and explained.
    measured = [candidate for candidate in report.candidates if candidate.state == "measured"]
    assert measured[0].id == "fp32"
    assert any(candidate.on_front for candidate in measured)
    # A search cannot propose this one, so it is measured because it was named.
    assert "margin+int8_embed4" in {candidate.id for candidate in measured}
    for candidate in measured:
        assert Bundle.open(job.out / "candidates" / candidate.id).model_digest == candidate.model_digest
    assert report.winner in report.why
    assert report.test.n == 80
    assert {stage.name for stage in report.stages} >= {"export", "search", "build", "measure", "test"}
    # A search only names candidates as a user can name them.
    again = [candidate.spelling for candidate in report.candidates[1:] if candidate.spelling]
    assert len(again) == len(report.candidates) - 1


def test_a_candidate_of_a_search_is_the_one_that_a_plain_run_builds(job, tmp_path):
    """Also where looks at others came between: what is measured with must not get among what is built from."""
    found = quantize(replace(job, search=False, recipes=("trim+int8_dynamic",), test=None, out=tmp_path / "run"))
    searched = read_report(job.out).candidate("trim+int8_dynamic")
    assert searched.model_digest == found.report.candidate("trim+int8_dynamic").model_digest != ""


def test_two_searches_do_not_share_a_workshop(job, tmp_path):
    with (
        workshop(tmp_path / "run", "digest"),
        pytest.raises(InputError, match="Another search"),
        workshop(tmp_path / "run", "digest"),
    ):
        pass


def test_a_workshop_of_other_inputs_is_begun_anew(tmp_path):
    def stop_in(digest: str, *, expected: bool) -> None:
        with workshop(tmp_path / "run", digest) as folder:
            assert (folder / "tried" / "00000.json").exists() == expected
            (folder / "tried").mkdir(exist_ok=True)
            (folder / "tried" / "00000.json").write_bytes(b"{}")
            raise KeyboardInterrupt

    for digest, expected in (("one", False), ("one", True), ("other", False)):
        with pytest.raises(KeyboardInterrupt):
            stop_in(digest, expected=expected)
    with workshop(tmp_path / "run", "other"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_search_says_how_to_go_on(job, tmp_path):
    one = replace(job, out=tmp_path / "run", minutes=5)
    process = start(one)
    try:
        wait_for(lambda: any((search_folder(one.out) / "tried").glob("*.json")) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"same command" in err
    assert [path.name for path in tmp_path.iterdir()] == [".run.search"]
