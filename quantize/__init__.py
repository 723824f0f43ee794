"""From a checkpoint to a measured bundle: export, recipes, measurement, choice, gate, report.

Owns everything between a Hugging Face checkpoint (or an ONNX file) and a bundle. Serves nothing. Importing it loads
neither torch nor onnx; exporting and quantizing happen in processes of their own.

    from edgewise.quantize import QuantizeJob, quantize

    result = quantize(QuantizeJob(Path("checkpoint"), data=Path("tuning.jsonl"), out=Path("run")))
    print(result.report.headline)
"""

from edgewise.quantize.pack import pack_onnx
from edgewise.quantize.pipeline import QuantizeResult, quantize
from edgewise.quantize.plan import QuantizeJob
from edgewise.quantize.progress import NullProgress
from edgewise.quantize.recipes import RECIPES
from edgewise.quantize.report import Report
from edgewise.quantize.run_folder import read_report

__all__ = [
    "RECIPES",
    "NullProgress",
    "QuantizeJob",
    "QuantizeResult",
    "Report",
    "pack_onnx",
    "quantize",
    "read_report",
]
