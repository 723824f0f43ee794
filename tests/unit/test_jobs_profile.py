"""Profiling a bundle here, with the base install alone, and on a target by a command."""

import os
import shlex
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edgewise.bundle import Bundle
from edgewise.errors import BundleError, ConfigError, DataError, EdgewiseError
from edgewise.jobs.profile import GOLDEN_CALLS, ProfileJob, profile_bundle
from edgewise.quantize.profiling import (
    Profile,
    TargetError,
    combined,
    command_of,
    profile_on_target,
    rows_of,
    run_profile_command,
)
from edgewise.quantize.report import Performance, Setting
from edgewise.quantize.statistics import Latency

# What is not in the base install; a device has none of it.
EXTRAS = (
    "accelerate",
    "boto3",
    "matplotlib",
    "onnx",
    "onnxruntime_genai",
    "onnxscript",
    "optimum",
    "optuna",
    "pandas",
    "plotly",
    "safetensors",
    "scipy",
    "sklearn",
    "sympy",
    "torch",
    "transformers",
)
# `edgewise profile --json`, as far as the target's side of it goes.
TARGET = """
import sys, msgspec
from pathlib import Path
from edgewise.errors import EdgewiseError
from edgewise.jobs.profile import ProfileJob, profile_bundle
try:
    profile = profile_bundle(ProfileJob(Path(sys.argv[-1]), rounds=1))
except EdgewiseError as e:
    sys.exit(str(e))
sys.stdout.buffer.write(msgspec.json.encode(profile))
"""


def command(tmp_path, code: str, *arguments: str) -> str:
    """A profile command that runs this code."""
    script = tmp_path / "fake target.py"
    script.write_text(code)
    return shlex.join([sys.executable, str(script), *arguments, "{bundle}"])


def test_a_bundle_is_profiled_with_its_golden_items(tiny_text_bundle, tiny_models):
    steps = []

    class Progress:
        def stage(self, name, total=None):
            steps.append([name, total, 0])

        def advance(self, count=1):
            steps[-1][2] += count

        def note(self, text):
            raise AssertionError(text)

    found = profile_bundle(ProfileJob(tiny_text_bundle, threads=(1, 2), lengths=(8, 99), rounds=2), Progress())
    bundle = Bundle.open(tiny_text_bundle)
    assert (found.model_digest, found.size_bytes) == (bundle.model_digest, bundle.size_bytes)
    assert (found.name, found.kind, found.golden) == ("tiny-text", "classifier", "same")
    assert (found.items, found.rounds, found.threads) == (len(tiny_models.TEXTS), 2, 1)
    assert found.device == tiny_models.probe()
    assert found.performance.latency.calls >= 2 * GOLDEN_CALLS
    assert found.performance.latency.p50_ms > 0
    assert [(row.threads, row.tokens) for row in rows_of(found)] == [(1, None), (1, 8), (2, None), (2, 8)]
    assert found.facts == ("latency at 99 tokens was not measured: the model reads 16 at most",)
    assert steps == [["golden", 1, 1], ["measure", 2, 2]]
    assert msgspec.json.decode(msgspec.json.encode(found), type=Profile) == found


def test_data_of_ones_own_are_profiled_instead(tmp_path, tiny_text_bundle):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "wheat"}\n{"text": "vessel in port"}\n')
    found = profile_bundle(ProfileJob(tiny_text_bundle, data=data, rounds=5))
    assert (found.items, found.rounds) == (2, 2)


def test_a_bundle_of_images_is_profiled(tiny_image_bundle):
    assert profile_bundle(ProfileJob(tiny_image_bundle, rounds=1)).golden == "same"


def test_a_different_golden_answer_is_told_and_no_error(tmp_path, tiny_models, tiny_text_onnx):
    items = tiny_models.pack_text(tmp_path)
    wrong = [msgspec.structs.replace(item, output="ship") for item in Bundle.open(items).golden()]
    tiny_models.pack_bundle(tiny_models.text_source(tiny_text_onnx, golden=tuple(wrong)), tmp_path / "wrong")
    found = profile_bundle(ProfileJob(tmp_path / "wrong", rounds=1))
    assert found.golden.startswith("Golden item 1 of 3 comes out differently on this machine: it answers 'grain'")


def test_what_cannot_be_profiled_is_refused(tmp_path, tiny_text_bundle, tiny_models, tiny_text_onnx):
    with pytest.raises(BundleError):
        profile_bundle(ProfileJob(tmp_path / "nowhere"))
    for wrong in ({"threads": (0,)}, {"threads": ()}, {"rounds": 0}, {"lengths": (0,)}, {"threads": (1, -2)}):
        with pytest.raises(ConfigError):
            profile_bundle(ProfileJob(tiny_text_bundle, **wrong))
    with pytest.raises(DataError, match="cannot be read"):
        profile_bundle(ProfileJob(tiny_text_bundle, data=tmp_path / "none.jsonl"))
    tiny_models.pack_bundle(tiny_models.text_source(tiny_text_onnx), tmp_path / "bare")
    with pytest.raises(BundleError, match="no golden items"):
        profile_bundle(ProfileJob(tmp_path / "bare"))


def test_the_base_install_is_enough(tmp_path, tiny_text_bundle):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in EXTRAS:
        (blocked / f"{name}.py").write_text(f"raise ImportError('{name} is not in the base install')")
    path = os.pathsep.join([str(blocked), *filter(None, [os.environ.get("PYTHONPATH")])])
    # By the environment, so that the processes which measure are bound by it too.
    done = subprocess.run(
        [sys.executable, "-c", TARGET, str(tiny_text_bundle)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert msgspec.json.decode(done.stdout, type=Profile).golden == "same"


def test_a_command_brings_a_profile_back_from_a_place_with_blanks(tmp_path, tiny_text_bundle):
    place = tmp_path / "a bundle; rm -rf $HOME"
    shutil.copytree(tiny_text_bundle, place)
    found = run_profile_command(command(tmp_path, TARGET, "profile", "--json"), place)
    assert found.model_digest == Bundle.open(tiny_text_bundle).model_digest
    assert found.performance.latency.p50_ms > 0


def test_a_command_is_split_before_the_bundle_goes_in(tmp_path):
    place = tmp_path / "x y"
    assert command_of("ssh pi 'profile --json' at={bundle}", place) == ["ssh", "pi", "profile --json", f"at={place}"]
    with pytest.raises(ConfigError, match="does not say where the bundle goes"):
        command_of("ssh pi edgewise profile --json", place)
    with pytest.raises(ConfigError, match="cannot be split"):
        command_of("ssh pi 'edgewise {bundle}", place)
    with pytest.raises(ConfigError):
        profile_on_target({"a": tmp_path}, "ssh pi", 1)


SLEEPS_IN_ITS_CHILD = (
    "import subprocess, sys\n"
    "print('starting', file=sys.stderr, flush=True)\n"
    "subprocess.run([sys.executable, '-c', 'import time; time.sleep(2)'])\n"
)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "import sys; print('first\\n\\nno route to host', file=sys.stderr); sys.exit(255)",
            r"exit code 255\. .*no route",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9"),
        ("print('Last login: today')", "printed no profile .*Last login"),
        ("print()", "printed no profile"),
        ("print('[' * 100_000)", "printed no profile"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')", "printed no profile"),
        ("print('{\"format_version\": 1}')", "printed no profile .*missing required field"),
        ("print('{\"format_version\": 2}')", "format version 2; this edgewise reads 1"),
        (SLEEPS_IN_ITS_CHILD, r"took longer than 0\.5 s\."),
    ],
    ids=["failed", "killed", "banner", "empty", "deep", "bytes", "incomplete", "newer", "late"],
)
def test_a_command_that_misbehaves_is_named_with_what_it_said(tmp_path, tiny_text_bundle, code, told):
    timeout_s = 0.5 if code is SLEEPS_IN_ITS_CHILD else 20
    with pytest.raises(TargetError, match=told) as caught:
        run_profile_command(command(tmp_path, code), tiny_text_bundle, timeout_s=timeout_s)
    assert "fake target.py" in caught.value.problem
    assert caught.value.remedy


def test_a_missing_program_is_named(tiny_text_bundle):
    with pytest.raises(TargetError, match=r"`no-such-ssh .* cannot be called: No such file"):
        run_profile_command("no-such-ssh pi {bundle}", tiny_text_bundle)


def example(digest: str, p50_ms: float = 1.0, golden: str = "same", rate: float | None = None) -> Profile:
    from edgewise.edge import probe

    latency = Latency(calls=10, mean_ms=p50_ms, p50_ms=p50_ms, p95_ms=2 * p50_ms, p99_ms=3 * p50_ms)
    return Profile(
        model_digest=digest,
        name="it",
        kind="classifier",
        size_bytes=7,
        performance=Performance(
            size_bytes=7,
            load_ms=10 * p50_ms,
            first_ms=p50_ms,
            latency=latency,
            peak_rss_bytes=int(100 * p50_ms),
            settings=(Setting(threads=2, tokens=16, latency=latency),),
            tokens_per_s=rate,
        ),
        threads=1,
        device=probe(),
        golden=golden,
        items=4,
        rounds=1,
        facts=(f"at {p50_ms}",),
    )


def test_a_profile_of_another_bundle_is_refused(tmp_path, tiny_text_bundle):
    (tmp_path / "profile.json").write_bytes(msgspec.json.encode(example(f"sha256:{'0' * 64}")))
    code = f"print(open({str(tmp_path / 'profile.json')!r}).read())"
    with pytest.raises(TargetError, match="profiled model sha256:0000") as caught:
        run_profile_command(command(tmp_path, code), tiny_text_bundle)
    assert Bundle.open(tiny_text_bundle).model_digest in caught.value.problem


def test_bundles_take_turns_on_the_target_and_a_failing_one_is_not_asked_again(
    tmp_path, tiny_text_bundle, tiny_image_bundle
):
    """The target takes a bundle's p50 from a counter, and fails for bundles of images."""
    digests = {str(bundle): Bundle.open(bundle).model_digest for bundle in (tiny_text_bundle, tiny_image_bundle)}
    copy = tmp_path / "copy"
    shutil.copytree(tiny_text_bundle, copy)
    profile = msgspec.json.encode(example(digests[str(tiny_text_bundle)])).decode()
    calls = tmp_path / "calls"
    code = f"""
import json, sys
with open({str(calls)!r}, "a+") as log:
    log.write(sys.argv[1] + "\\n")
    log.seek(0)
    number = len(log.readlines())
if sys.argv[1] == {str(tiny_image_bundle)!r}:
    sys.exit("no room left")
profile = json.loads({profile!r})
profile["performance"]["latency"]["p50_ms"] = number
print(json.dumps(profile))
"""
    steps = []
    found = profile_on_target(
        {"text": tiny_text_bundle, "image": tiny_image_bundle, "copy": copy},
        command(tmp_path, code),
        3,
        advance=lambda: steps.append(1),
    )
    order = [str(tiny_text_bundle), str(tiny_image_bundle), str(copy)]
    assert calls.read_text().split("\n")[:-1] == [*order, order[2], order[0], order[2], order[0]]
    assert len(steps) == 9
    assert isinstance(found["image"], EdgewiseError)
    assert "no room left" in str(found["image"])
    assert found["text"].performance.latency.p50_ms == np.median([1, 5, 7])
    assert found["copy"].rounds == 3


def test_profiles_are_combined_by_medians():
    found = combined(
        [
            example("a", 3.0, rate=30.0),
            example("a", 1.0, golden="item 2 differs", rate=10.0),
            example("a", 2.0, rate=20.0),
        ]
    )
    cost = found.performance
    assert (cost.load_ms, cost.first_ms, cost.peak_rss_bytes, cost.tokens_per_s) == (20.0, 2.0, 300, 20.0)
    assert cost.latency == Latency(calls=30, mean_ms=2.0, p50_ms=2.0, p95_ms=4.0, p99_ms=6.0)
    assert cost.settings == (Setting(threads=2, tokens=16, latency=cost.latency),)
    assert (found.golden, found.rounds, found.facts) == ("item 2 differs", 3, ("at 3.0", "at 1.0", "at 2.0"))
