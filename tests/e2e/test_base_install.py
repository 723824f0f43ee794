"""What a stranger gets from `pip install edgewise`: the wheel's files, and a base install that is a whole gateway."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE_DATA = ("py.typed", "bundle/manifest.schema.json", "quantize/page/page.css", "quantize/page/page.js")
ROOMS = (
    "bundle", "cloud", "commands", "edge", "jobs", "quantize", "rendering", "router", "store", "wire", "wiring",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out, clean = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for path in [*tracked_files(), *PACKAGE_DATA, "LICENSE", "README.md", "pyproject.toml"]:
        (clean / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, clean / path)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, clean],
        check=True,
        timeout=300,
    )
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def base_python(wheel, tmp_path_factory):
    home = tmp_path_factory.mktemp("base") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(command, check=True, timeout=600)
    return python


def tracked_files():
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    return [path.relative_to(ROOT).as_posix() for path in files]


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {f"edgewise/{path}" for path in (*tracked_files(), *PACKAGE_DATA)}


def run_base(python, *arguments):
    command = [python, "-m", "edgewise.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)


def test_a_base_install_examines_itself_and_names_what_is_missing(base_python):
    done = run_base(base_python, "doctor")
    assert done.returncode == 0
    assert "pip install 'edgewise[quantize]'" in done.stdout


def test_a_base_install_predicts_and_verifies(base_python, tiny_text_bundle):
    assert run_base(base_python, "verify", tiny_text_bundle).returncode == 0
    assert "grain" in run_base(base_python, "predict", tiny_text_bundle, "wheat corn").stdout


def test_a_base_install_reads_images(base_python, tiny_image_bundle):
    assert run_base(base_python, "verify", tiny_image_bundle).returncode == 0


@pytest.mark.parametrize("command", ["quantize", "pack", "cloud serve"])
def test_a_missing_extra_is_one_line_that_names_the_command(base_python, tiny_text_onnx, tmp_path, command):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(
        '{"architectures": ["BertForSequenceClassification"], "model_type": "bert", "max_position_embeddings": 64,'
        ' "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}'
    )
    for name in ("model.safetensors", "tokenizer.json"):
        (checkpoint / name).write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "x", "label": "a"}\n')
    labels = tmp_path / "labels.txt"
    labels.write_text("grain\nship\ntrade\n")
    arguments = {
        "quantize": ("quantize", checkpoint, "--data", data, "--out", tmp_path / "run"),
        "pack": ("pack", tiny_text_onnx, "--labels", labels, "--tokenizer", checkpoint, "--out", tmp_path / "packed"),
        "cloud serve": ("cloud", "serve", checkpoint, "--port", 0),
    }[command]
    done = run_base(base_python, *arguments)
    assert done.returncode == 2, done.stderr
    extra = "cloud" if command == "cloud serve" else "quantize"
    assert f"pip install 'edgewise[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "packed").exists()


def test_a_base_install_is_a_whole_gateway_and_a_cloud_over_a_bundle(base_python, tiny_text_bundle):
    command = [base_python, "-m", "edgewise.cli", "cloud", "serve", tiny_text_bundle, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as service:
        try:
            url = service.stdout.readline().split("ready on ")[1].strip()
            answer = httpx.post(f"{url}/v1/predict", json={"inputs": "wheat corn"}).json()
            assert (answer["output"], answer["source"]) == ("grain", "cloud")
        finally:
            service.terminate()
    assert service.returncode == 0
