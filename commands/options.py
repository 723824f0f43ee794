"""Options that several commands share, and the reading of those that hold more than one value.

An option of one command alone stands in that command's signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

BundlePath = Annotated[Path, Argument(metavar="BUNDLE", help="Folder of a bundle.")]
Items = Annotated[list[str], Argument(metavar="TEXT…", help="Texts; for an image model, paths of images.")]

DataOption = Annotated[Path, Option("--data", help="JSONL, CSV, or a folder of images with one folder a class.")]
TextField = Annotated[str, Option("--text-field", help="Field of the text in the data.")]
LabelField = Annotated[str, Option("--label-field", help="Field of the label in the data.")]
JsonOption = Annotated[bool, Option("--json", help="Print JSON for machines.")]
CachedOption = Annotated[bool, Option("--cached", help="Keep an output that was made from exactly these inputs.")]
ThreadCounts = Annotated[str, Option("--threads", help="Threads of one prediction; 1,2 measures both.")]
TextLengths = Annotated[str, Option("--lengths", help="Also measure texts of so many tokens: 16,128.")]
MaxLength = Annotated[int | None, Option("--max-length", help="Longest text, in tokens.")]

CloudUrl = Annotated[str | None, Option("--cloud", help="URL of the cloud service, or a .toml that names it.")]
CloudKind = Annotated[
    str | None,
    Option(
        "--cloud-kind",
        help="Protocol: oip, openai, sagemaker or bedrock; for a language model openai unless given, else oip.",
    ),
]
CloudModel = Annotated[
    str | None, Option("--cloud-model", help="Model there; our own service, and openai's of one, need no name.")
]
CloudKeyEnv = Annotated[str | None, Option("--cloud-key-env", help="Environment variable with the cloud's key.")]
CloudCalls = Annotated[int, Option("--concurrency", min=1, help="Cloud calls at the same time.")]
WaitOption = Annotated[float, Option("--wait", min=0, help="Seconds to wait for a service still starting.")]
TimeoutOption = Annotated[float, Option("--timeout", min=0.001, help="Seconds one call may take.")]
Predictions = Annotated[
    Path | None, Option("--predictions", help="The cloud's answers in a JSONL file, in place of --cloud.")
]
TuningPredictions = Annotated[Path | None, Option("--tuning-predictions", help="The same for the items of --tuning.")]

AlphaOption = Annotated[float, Option("--alpha", help="Bound on the risk that --target names.")]
DeltaOption = Annotated[float, Option("--delta", help="Probability that the bound may fail.")]
TargetOption = Annotated[str, Option("--target", help="What is bounded: agreement, accuracy or selective.")]
CertificateOption = Annotated[Path | None, Option("--certificate", help="BUNDLE.certificate.json unless given.")]
CostConfig = Annotated[Path | None, Option("--config", help="edgewise.toml, for its [cost].")]

ConfigOption = Annotated[Path | None, Option("--config", help="edgewise.toml; options win over it.")]
HostOption = Annotated[str | None, Option("--host", help="Address to bind; loopback unless told otherwise.")]
KeysEnv = Annotated[str | None, Option("--api-keys-env", help="Environment variable with tenant:key,tenant:key.")]


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas.

    Raises:
        typer.BadParameter: There is something else between the commas.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as e:
        raise BadParameter(f"{option} takes whole numbers separated by commas, not {text!r}.") from e


def pair(text: str, option: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE.

    Raises:
        typer.BadParameter: There is no name, or no sign.
    """
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise BadParameter(f"{option} takes NAME=VALUE, not {text!r}.")
    return name, value
