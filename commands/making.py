"""Commands that make a bundle, measure it, and show how it came about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from edgewise import rendering
from edgewise.commands.console import ERR, OUT, conclude, show
from edgewise.commands.options import (
    BundlePath,
    CachedOption,
    DataOption,
    JsonOption,
    LabelField,
    MaxLength,
    TextField,
    TextLengths,
    ThreadCounts,
    names,
    numbers,
)

_MINUTES = 10.0
"""Time of a search unless given."""


def quantize(
    model: Annotated[Path, Argument(metavar="MODEL", help="Folder of a Hugging Face checkpoint, or a .onnx file.")],
    data: DataOption,
    out: Annotated[Path, Option("--out", help="Folder for the run; must not exist without --cached.")],
    gate: Annotated[Path | None, Option("--gate", help="Items no choice has seen, for the accuracy bound.")] = None,
    test: Annotated[Path | None, Option("--test", help="Items touched once, after the gate.")] = None,
    texts: Annotated[
        Path | None, Option("--texts", help="Other texts of the task, for the vocabulary of trim.")
    ] = None,
    task: Annotated[str, Option("--task", help="Task, or auto.")] = "auto",
    recipes: Annotated[str, Option("--recipes", help="[TRANSFORM+]NAME[:option=value], by commas.")] = "",
    search: Annotated[bool, Option("--search", help="Explore recipes, options and layers; can be resumed.")] = False,
    minutes: Annotated[float | None, Option("--minutes", help="Time of --search; 10 unless given.")] = None,
    max_drop: Annotated[float, Option("--max-drop", help="Largest loss of accuracy, as a share.")] = 0.01,
    confidence: Annotated[float, Option("--confidence", help="Confidence of the gate's bound.")] = 0.95,
    prefer: Annotated[str, Option("--prefer", help="What the pick favours: balanced, size or speed.")] = "balanced",
    threads: ThreadCounts = "1",
    lengths: TextLengths = "",
    profile_cmd: Annotated[
        str | None, Option("--profile-cmd", help="Measure with this command; {bundle} is the bundle's folder.")
    ] = None,
    max_length: MaxLength = None,
    exporter: Annotated[str, Option("--exporter", help="auto, optimum or torch.")] = "auto",
    labels: Annotated[Path | None, Option("--labels", help="For a .onnx file: its labels.")] = None,
    tokenizer: Annotated[Path | None, Option("--tokenizer", help="For a .onnx file: its tokenizer.json.")] = None,
    preprocessor: Annotated[
        Path | None, Option("--preprocessor", help="For a .onnx file: its preprocessor_config.json.")
    ] = None,
    seed: Annotated[int, Option("--seed", help="Seed of everything drawn.")] = 0,
    golden: Annotated[str, Option("--golden", help="Golden items: tuning takes 4, synthetic none.")] = "tuning",
    text_field: TextField = "text",
    label_field: LabelField = "label",
    cached: CachedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build, measure and pack 4/8-bit candidates of a checkpoint; the winner becomes OUT/bundle.

    Example: edgewise quantize checkpoint --data tuning.jsonl --gate gate.jsonl --out run
    """
    from edgewise.quantize import QuantizeJob
    from edgewise.quantize import quantize as run

    if minutes is not None and not search:
        raise BadParameter("--minutes is the time of a search: add --search.")
    named = names(recipes)
    if recipes and not named:
        raise BadParameter(f"--recipes {recipes!r} names no recipe.")
    job = QuantizeJob(
        checkpoint=model,
        data=data,
        out=out,
        gate=gate,
        test=test,
        texts=texts,
        task=task,
        recipes=named,
        search=search,
        minutes=_MINUTES if minutes is None else minutes,
        max_drop=max_drop,
        confidence=confidence,
        prefer=prefer,
        threads=numbers(threads, "--threads"),
        lengths=numbers(lengths, "--lengths"),
        profile_cmd=profile_cmd,
        max_length=max_length,
        text_field=text_field,
        label_field=label_field,
        exporter=exporter,
        labels=labels,
        tokenizer=tokenizer,
        preprocessor=preprocessor,
        seed=seed,
        golden=golden,
        reuse=cached,
    )
    with rendering.progress_on(ERR) as progress:
        result = run(job, progress)
    conclude(rendering.quantized_view(result), result.report, as_json=as_json, goal_met=result.goal_met)


def profile(
    bundle: BundlePath,
    data: Annotated[
        Path | None, Option("--data", help="Items to answer; the bundle's golden items unless given.")
    ] = None,
    threads: ThreadCounts = "1",
    lengths: TextLengths = "",
    rounds: Annotated[int, Option("--rounds", min=1, help="Fresh processes.")] = 3,
    text_field: TextField = "text",
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle on this machine: size, load, first answer, latency, memory. The base install is enough.

    Example: edgewise profile run/bundle --threads 1,2 --lengths 16,128
    """
    from edgewise.jobs.profile import ProfileJob, profile_bundle

    job = ProfileJob(
        bundle=bundle,
        data=data,
        threads=numbers(threads, "--threads"),
        lengths=numbers(lengths, "--lengths"),
        rounds=rounds,
        text_field=text_field,
    )
    with rendering.progress_on(ERR) as progress:
        found = profile_bundle(job, progress)
    show(rendering.profile_view(found), found, as_json=as_json)


def report(
    run: Annotated[Path, Argument(metavar="RUN", help="Folder that quantize wrote.")],
    out: Annotated[Path | None, Option("--out", help="The page; RUN/report.html unless given.")] = None,
    open_page: Annotated[bool, Option("--open", help="Open it in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a finished run again, and write its report as one page that opens offline.

    Example: edgewise report run --open
    """
    from edgewise.jobs.report import open_report, rebuild_report
    from edgewise.quantize import read_report

    found = read_report(run)
    page = rebuild_report(run, out)
    show(rendering.report_view(found), found, as_json=as_json)
    if not as_json:
        OUT.print(f"{page}")
    if open_page:
        open_report(page)


def pack(
    onnx: Annotated[Path, Argument(metavar="ONNX", help="A classifier's ONNX file.")],
    labels: Annotated[Path, Option("--labels", help="Labels in the order of the logits: a line each, or a JSON list.")],
    out: Annotated[Path, Option("--out", help="Folder for the bundle; must not exist.")],
    tokenizer: Annotated[Path | None, Option("--tokenizer", help="tokenizer.json, or its folder.")] = None,
    preprocessor: Annotated[
        Path | None, Option("--preprocessor", help="preprocessor_config.json, or its folder.")
    ] = None,
    name: Annotated[str | None, Option("--name", help="Model name; the file's unless given.")] = None,
    max_length: MaxLength = None,
    licence: Annotated[list[str] | None, Option("--licence", help="SPDX identifier; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle of an ONNX file of your own; needs no torch.

    Example: edgewise pack model.onnx --tokenizer tokenizer.json --labels labels.txt --out bundle
    """
    from edgewise.quantize import pack_onnx

    digest = pack_onnx(
        onnx,
        out,
        labels=labels,
        tokenizer=tokenizer,
        preprocessor=preprocessor,
        name=name,
        max_length=max_length,
        licences=tuple(licence or ()),
    )
    show(f"{out} {digest}", {"bundle": str(out), "model_digest": digest}, as_json=as_json)
