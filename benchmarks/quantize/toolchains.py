"""The rivals: which commands quantize the same ONNX file, and what each built. Measures no model.

Raw onnxruntime and optimum-cli run in this environment. Olive gets one of its own, made here: `pip install
olive-ai[cpu]` beside the same onnxruntime and transformers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from graphs import HEADS, HIDDEN
from harness import BenchmarkError, Finished, Model, run_command
from minilm import rebuild

from edgewise.files import sha256_file, sha256_tree, write_atomically

OLIVE = "olive-ai[cpu]==0.13.0"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

# Its own switches come too late: with OLIVE_DISABLE_TELEMETRY and --disable_telemetry it still sends a first message,
# and waits ten seconds for it where there is no network. On what it takes for a CI machine it sends nothing.
OLIVE_ENVIRONMENT = {"CI": "1", "OLIVE_DISABLE_TELEMETRY": "1"}

_DYNAMIC = "from onnxruntime.quantization import quantize_dynamic as q; q({source!r}, 'out/model.onnx'{options})"
_PREPARED = (
    "from onnxruntime.quantization import quantize_dynamic as q;"
    "from onnxruntime.quantization.shape_inference import quant_pre_process as p;"
    "p({source!r}, 'prepared.onnx', skip_symbolic_shape=True); q('prepared.onnx', 'out/model.onnx')"
)


@dataclass(frozen=True)
class Rival:
    """One way to quantize a file with another tool.

    Attributes:
        tool: "onnxruntime", "optimum" or "olive".
        name: The setting.
        command: Run in an empty folder that has a folder `out`; leaves one ONNX file in it.
        files: Text files that the command reads, by name.
    """

    tool: str
    name: str
    command: tuple[str, ...]
    files: Mapping[str, str]

    @property
    def id(self) -> str:
        """Its name in tables and on disk."""
        return f"{self.tool} {self.name}"


@dataclass(frozen=True)
class Build:
    """What became of a rival.

    Attributes:
        rival: The rival.
        onnx: What it built, or None.
        wall_s: Wall time of the command, its start included.
        peak_rss_bytes: Largest sum of the resident memory of its processes.
        problem: Why there is nothing.
    """

    rival: Rival
    onnx: Path | None
    wall_s: float | None
    peak_rss_bytes: int | None
    problem: str = ""


def rivals(source: Path, olive: Path, calibration: Path, tokens: int) -> list[Rival]:
    """Every setting that is compared.

    Args:
        source: The float32 ONNX file, in a folder with the checkpoint's configuration and tokenizer.
        olive: Olive's program.
        calibration: Folder with the tuning items as Olive's raw data; see `write_calibration`.
        tokens: Length of each item.
    """
    return [*_raw(source), *_optimum(source), *_olive(source, olive, calibration, tokens)]


def _raw(source: Path) -> list[Rival]:
    def python(name: str, code: str) -> Rival:
        return Rival("onnxruntime", name, (sys.executable, "-P", "-c", code), {})

    return [
        python("dynamic defaults", _DYNAMIC.format(source=str(source), options="")),
        python("dynamic per channel", _DYNAMIC.format(source=str(source), options=", per_channel=True")),
        python("preprocess, dynamic", _PREPARED.format(source=str(source))),
    ]


def _optimum(source: Path) -> list[Rival]:
    program = str(Path(sys.executable).with_name("optimum-cli"))
    command = (program, "onnxruntime", "quantize", "--onnx_model", str(source.parent), "-o", "out")
    return [
        Rival("optimum", " ".join([isa, *(["per channel"] if per_channel else [])]), (*command, *flags), {})
        for isa in ("avx2", "avx512", "avx512_vnni")
        for per_channel in (False, True)
        for flags in ([f"--{isa}", *(["--per_channel"] if per_channel else [])],)
    ]


def _olive(source: Path, program: Path, calibration: Path, tokens: int) -> list[Rival]:
    model = ("-m", str(source), "-o", "out")
    quantize = (str(program), "quantize", *model, "--implementation")
    fuse = {"type": "OrtTransformersOptimization", "model_type": "bert", "num_heads": HEADS, "hidden_size": HIDDEN}
    dynamic = {"type": "OnnxDynamicQuantization", "precision": "int8"}
    static = {"type": "OnnxStaticQuantization", "precision": "int8", "data_config": "tuning"}
    data = _raw_data(calibration, tokens)
    run = (str(program), "run", "--config", "config.json")
    return [
        Rival("olive", "quantize ort int8", (*quantize, "ort", "--precision", "int8"), {}),
        Rival("olive", "quantize rtn int4", (*quantize, "olive", "--precision", "int4", "--algorithm", "rtn"), {}),
        Rival("olive", "quantize hqq int4", (*quantize, "olive", "--precision", "int4", "--algorithm", "hqq"), {}),
        Rival("olive", "k-quant int4", (str(program), "run-pass", "--pass-name", "OnnxKQuantQuantization", *model), {}),
        Rival("olive", "optimize int4", (str(program), "optimize", *model, "--precision", "int4"), {}),
        Rival("olive", "fuse, dynamic int8", run, {"config.json": _config(source, [fuse, dynamic], [])}),
        Rival("olive", "fuse, static int8", run, {"config.json": _config(source, [fuse, static], [data])}),
    ]


def _config(source: Path, passes: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, Any]]) -> str:
    """A workflow for `olive run`, as its command line writes them."""
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    config = {
        "input_model": {"type": "OnnxModel", "model_path": str(source)},
        "systems": {"local_system": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [*data],
        "passes": {f"pass-{number}": {**found} for number, found in enumerate(passes)},
        "host": "local_system",
        "target": "local_system",
        "output_dir": "out",
        "no_artifacts": True,
    }
    return json.dumps(config, indent=1)


def _raw_data(folder: Path, tokens: int) -> dict[str, Any]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    parameters = {
        "data_dir": str(folder),
        "input_names": names,
        "input_shapes": [[1, tokens]] * len(names),
        "input_types": ["int64"] * len(names),
        "input_suffix": ".bin",
    }
    return {
        "name": "tuning",
        "type": "RawDataContainer",
        "load_dataset_config": parameters,
    }


def write_calibration(model: Model, texts: Sequence[str], tokens: int, out: Path) -> None:
    """Texts as Olive's raw data: a folder an input, a file of int64 an item, each padded to one length."""

    def build(stage: Path) -> None:
        encoder = model.encoder()
        for number, text in enumerate(texts):
            for name, row in encoder.encode(text).items():
                padded = np.zeros((1, tokens), np.int64)
                padded[:, : row.shape[1]] = row
                (stage / name).mkdir(exist_ok=True)
                padded.tofile(stage / name / f"{number:04d}.bin")

    rebuild(out, {"texts": repr(texts), "tokens": str(tokens), "tokenizer": sha256_file(model.tokenizer)}, build)


def make_olive(work: Path, say: Callable[[str], None]) -> Path:
    """Olive's own virtual environment; made once (about a minute, 1.4 GB).

    Returns:
        Its program.

    Raises:
        BenchmarkError: pip failed.
    """
    folder = work / "olive-venv"
    made_from = folder / ".made-from"
    wanted = ["torch", OLIVE, *(f"{name}=={metadata.version(name)}" for name in ("onnxruntime", "transformers"))]
    recipe = " ".join([*wanted, sha256_file(CONSTRAINTS)])
    if not made_from.exists() or made_from.read_text() != recipe:
        say(f"making {folder} with {OLIVE}: about a minute")
        python = folder / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "-qq", "--constraint", str(CONSTRAINTS)]
        # torch first: with it in place pip looks for no other build of it.
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*pip, "torch"], [*pip, *wanted]):
            if subprocess.run(command, check=False).returncode != 0:
                raise BenchmarkError(f"{' '.join(command)} failed.", "Check that the package registry can be reached.")
        write_atomically(made_from, recipe.encode())
    return folder / "bin" / "olive"


def build(rival: Rival, source: Path, calibration: Path, folder: Path) -> Build:
    """Let a rival quantize `source`, or take what it built before from the same inputs. A failure is a result."""
    out = folder / rival.id.replace(" ", "-").replace(",", "")
    log = folder / "logs" / f"{out.name}.log"
    inputs = {
        "command": repr(rival.command),
        "files": repr(rival.files),
        "source": sha256_tree(source.parent),
        "calibration": sha256_tree(calibration),
        "tools": repr([(name, metadata.version(name)) for name in ("onnxruntime", "optimum", "optimum-onnx")]),
        "olive": OLIVE,
    }
    try:
        rebuild(out, inputs, lambda stage: _build(rival, stage, log))
    except BenchmarkError as error:
        return Build(rival, None, None, None, str(error))
    done = json.loads((out / "built.json").read_text())
    return Build(rival, out / "model.onnx", done["wall_s"], done["peak_sum_bytes"])


def _build(rival: Rival, stage: Path, log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=stage.parent) as name:
        folder = Path(name)
        (folder / "out").mkdir()
        for file, content in rival.files.items():
            (folder / file).write_text(content)
        done = run_command(rival.command, log, environment=OLIVE_ENVIRONMENT, cwd=folder)
        _keep(rival, done, folder / "out", stage)
    (stage / "built.json").write_text(json.dumps(asdict(done)))


def _keep(rival: Rival, done: Finished, out: Path, stage: Path) -> None:
    """The one ONNX file that a command left, with its external data, as model.onnx."""
    found = [*out.rglob("*.onnx")]
    if done.code != 0 or len(found) != 1:
        raise BenchmarkError(f"{rival.id} failed ({done.code}): {done.tail}")
    for file in found[0].parent.iterdir():
        if file.suffix not in (".json", ".txt") and file.is_file():
            shutil.copy(file, stage / ("model.onnx" if file == found[0] else file.name))
