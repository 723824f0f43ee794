"""The command line: the only file that prints, prompts or exits. Every command hands its work to a room or a job.

Exit codes: 0 done, 1 the goal was not met, 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from edgewise import __version__, rendering
from edgewise.config import Config, load_config
from edgewise.contracts import Mode
from edgewise.errors import DiskFullError, EdgewiseError

TERMINAL = sys.stdout.isatty()
# What goes to a pipe must not be folded at the width of a terminal that is not there.
OUT = Console(highlight=False, markup=False, soft_wrap=not TERMINAL, width=None if TERMINAL else 240)
ERR = Console(stderr=True, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())

app = typer.Typer(
    name="edgewise",
    help="Edge models with a certified way to the cloud: quantize, certify, serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
edge_app = typer.Typer(help="The gateway on a device.", no_args_is_help=True)
cloud_app = typer.Typer(help="The cloud service.", no_args_is_help=True)
app.add_typer(edge_app, name="edge")
app.add_typer(cloud_app, name="cloud")

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]
DataOption = Annotated[Path, typer.Option("--data", help="JSONL, CSV, or a folder of images with one folder a class.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TextField = Annotated[str, typer.Option("--text-field", help="Field of the text in the data.")]
LabelField = Annotated[str, typer.Option("--label-field", help="Field of the label in the data.")]
CloudUrl = Annotated[str | None, typer.Option("--cloud", help="URL of the cloud service, or a .toml that names it.")]
CloudKind = Annotated[
    str | None,
    typer.Option(
        "--cloud-kind",
        help="Protocol: oip, openai, sagemaker or bedrock; for a language model openai unless given, else oip.",
    ),
]
CloudModel = Annotated[
    str | None, typer.Option("--cloud-model", help="Model there; our own service, and openai's of one, need no name.")
]
CloudKeyEnv = Annotated[str | None, typer.Option("--cloud-key-env", help="Environment variable with the cloud's key.")]
CachedOption = Annotated[bool, typer.Option("--cached", help="Keep an output that was made from exactly these inputs.")]
AlphaOption = Annotated[float, typer.Option("--alpha", help="Bound on the risk that --target names.")]
DeltaOption = Annotated[float, typer.Option("--delta", help="Probability that the bound may fail.")]
TargetOption = Annotated[str, typer.Option("--target", help="What is bounded: agreement, accuracy or selective.")]
CertificateOption = Annotated[Path | None, typer.Option("--certificate", help="BUNDLE.certificate.json unless given.")]
Predictions = Annotated[
    Path | None, typer.Option("--predictions", help="The cloud's answers in a JSONL file, in place of --cloud.")
]
TuningPredictions = Annotated[
    Path | None, typer.Option("--tuning-predictions", help="The same for the items of --tuning.")
]
CostConfig = Annotated[Path | None, typer.Option("--config", help="edgewise.toml, for its [cost].")]
CloudCalls = Annotated[int, typer.Option("--concurrency", min=1, help="Cloud calls at the same time.")]
WaitOption = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for a service still starting.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds one call may take.")]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to bind; loopback unless told otherwise.")]
KeysEnv = Annotated[str | None, typer.Option("--api-keys-env", help="Environment variable with tenant:key,tenant:key.")]


def _version(asked: bool) -> None:
    if asked:
        OUT.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    level = os.environ.get("EDGEWISE_LOG", "WARNING").upper()
    if level not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"EDGEWISE_LOG is {level!r}: give DEBUG, INFO, WARNING or ERROR.")
    logging.getLogger("edgewise").setLevel(level)


@app.command()
def quantize(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a Hugging Face checkpoint, or a .onnx file.")
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the run; must not exist without --cached.")],
    gate: Annotated[
        Path | None, typer.Option("--gate", help="Items no choice has seen, for the accuracy bound.")
    ] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Items touched once, after the gate.")] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="Other texts of the task, for the vocabulary of trim.")
    ] = None,
    task: Annotated[str, typer.Option("--task", help="Task, or auto.")] = "auto",
    recipes: Annotated[str, typer.Option("--recipes", help="[TRANSFORM+]NAME[:option=value], by commas.")] = "",
    search: Annotated[
        bool, typer.Option("--search", help="Explore recipes, options and layers; can be resumed.")
    ] = False,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Time of --search; 10 unless given.")] = None,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Largest loss of accuracy, as a share.")] = 0.01,
    confidence: Annotated[float, typer.Option("--confidence", help="Confidence of the gate's bound.")] = 0.95,
    prefer: Annotated[
        str, typer.Option("--prefer", help="What the pick favours: balanced, size or speed.")
    ] = "balanced",
    threads: Annotated[str, typer.Option("--threads", help="Threads of one prediction; 1,2 measures both.")] = "1",
    lengths: Annotated[str, typer.Option("--lengths", help="Also measure texts of so many tokens: 16,128.")] = "",
    profile_cmd: Annotated[
        str | None, typer.Option("--profile-cmd", help="Measure with this command; {bundle} is the bundle's folder.")
    ] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Longest text, in tokens.")] = None,
    exporter: Annotated[str, typer.Option("--exporter", help="auto, optimum or torch.")] = "auto",
    labels: Annotated[Path | None, typer.Option("--labels", help="For a .onnx file: its labels.")] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="For a .onnx file: its tokenizer.json.")] = None,
    preprocessor: Annotated[
        Path | None, typer.Option("--preprocessor", help="For a .onnx file: its preprocessor_config.json.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything drawn.")] = 0,
    golden: Annotated[str, typer.Option("--golden", help="Golden items: tuning takes 4, synthetic none.")] = "tuning",
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
        raise typer.BadParameter("--minutes is the time of a search: add --search.")
    named = _names(recipes)
    if recipes and not named:
        raise typer.BadParameter(f"--recipes {recipes!r} names no recipe.")
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
        minutes=10.0 if minutes is None else minutes,
        max_drop=max_drop,
        confidence=confidence,
        prefer=prefer,
        threads=_numbers(threads, "--threads"),
        lengths=_numbers(lengths, "--lengths"),
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
    _show(rendering.quantized_view(result), result.report, as_json)
    if not result.goal_met:
        raise typer.Exit(1)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as e:
        raise typer.BadParameter(f"{option} takes whole numbers separated by commas, not {text!r}.") from e


@app.command()
def profile(
    bundle: BundlePath,
    data: Annotated[
        Path | None, typer.Option("--data", help="Items to answer; the bundle's golden items unless given.")
    ] = None,
    threads: Annotated[str, typer.Option("--threads", help="Threads of one prediction; 1,2 measures both.")] = "1",
    lengths: Annotated[str, typer.Option("--lengths", help="Also measure texts of so many tokens: 16,128.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Fresh processes.")] = 3,
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
        threads=_numbers(threads, "--threads"),
        lengths=_numbers(lengths, "--lengths"),
        rounds=rounds,
        text_field=text_field,
    )
    with rendering.progress_on(ERR) as progress:
        found = profile_bundle(job, progress)
    _show(rendering.profile_view(found), found, as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that quantize wrote.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; RUN/report.html unless given.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a finished run again, and write its report as one page that opens offline.

    Example: edgewise report run --open
    """
    from edgewise.jobs.report import open_report, rebuild_report
    from edgewise.quantize import read_report

    found = read_report(run)
    page = rebuild_report(run, out)
    _show(rendering.report_view(found), found, as_json)
    if not as_json:
        OUT.print(f"{page}")
    if show:
        open_report(page)


@app.command()
def pack(
    onnx: Annotated[Path, typer.Argument(metavar="ONNX", help="A classifier's ONNX file.")],
    labels: Annotated[
        Path, typer.Option("--labels", help="Labels in the order of the logits: a line each, or a JSON list.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the bundle; must not exist.")],
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="tokenizer.json, or its folder.")] = None,
    preprocessor: Annotated[
        Path | None, typer.Option("--preprocessor", help="preprocessor_config.json, or its folder.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Model name; the file's unless given.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Longest text, in tokens.")] = None,
    licence: Annotated[list[str] | None, typer.Option("--licence", help="SPDX identifier; may be repeated.")] = None,
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
    _show(f"{out} {digest}", {"bundle": str(out), "model_digest": digest}, as_json)


@app.command()
def plan(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a run, of a checkpoint, which is quantized, or a bundle.")
    ],
    data: DataOption,
    cloud: CloudUrl = None,
    predictions: Predictions = None,
    tuning_predictions: TuningPredictions = None,
    tuning: Annotated[
        Path | None, typer.Option("--tuning", help="Items to compare on; a third of --data unless given.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the plan; MODEL.plan unless given.")] = None,
    config: CostConfig = None,
    alpha: AlphaOption = 0.01,
    delta: DeltaOption = 0.05,
    target: TargetOption = "agreement",
    recipes: Annotated[str, typer.Option("--recipes", help="Recipes to plan with, by commas.")] = "",
    signals: Annotated[str, typer.Option("--signals", help="Scores to plan with, by commas.")] = "",
    pay: Annotated[str, typer.Option("--pay", help="How the choice is paid for: split or share.")] = "split",
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    concurrency: CloudCalls = 4,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = 0.0,
    text_field: TextField = "text",
    label_field: LabelField = "label",
    as_json: JsonOption = False,
) -> None:
    """Choose recipe, signal and threshold together: the cheapest that certifies; writes a bundle ready to serve.

    Example: edgewise plan run --cloud http://127.0.0.1:8700 --data certify.jsonl --tuning tuning.jsonl
    """
    from edgewise import wiring
    from edgewise.jobs.planning import PlanJob, plan_with_cloud, plan_with_predictions

    _check_answers(cloud, predictions, tuning_predictions)
    job = PlanJob(
        model=model,
        data=data,
        tuning=tuning,
        out=out,
        alpha=alpha,
        delta=delta,
        target=target,
        recipes=_names(recipes),
        signals=_names(signals),
        pay=pay,
        concurrency=concurrency,
        timeout_s=timeout,
        wait_s=wait,
        text_field=text_field,
        label_field=label_field,
    )
    costs = (load_config(config) if config else Config()).cost
    with rendering.progress_on(ERR) as progress:
        if predictions is not None:
            found = plan_with_predictions(job, costs, predictions, progress, tuning_predictions=tuning_predictions)
        else:
            backend = wiring.backend_at(cloud or "", kind=cloud_kind, model=cloud_model, api_key_env=cloud_key_env)
            found = plan_with_cloud(job, costs, wiring.connect(backend), progress)
    _show(rendering.planned_view(found), found.plan, as_json)
    if not found.goal_met:
        raise typer.Exit(1)


@app.command()
def certify(
    bundle: BundlePath,
    data: DataOption,
    alpha: AlphaOption = 0.01,
    delta: DeltaOption = 0.05,
    target: TargetOption = "agreement",
    tuning: Annotated[
        Path | None, typer.Option("--tuning", help="Other items, to choose the signal on and to fit what decides.")
    ] = None,
    cloud: CloudUrl = None,
    predictions: Predictions = None,
    tuning_predictions: TuningPredictions = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    signal: Annotated[
        str | None, typer.Option("--signal", help="Score, or auto; the bundle's unless given, auto with --tuning.")
    ] = None,
    veto: Annotated[bool, typer.Option("--veto", help="Escalate what is unlike every tuning item.")] = False,
    complexity: Annotated[
        bool, typer.Option("--complexity", help="Escalate texts that look too hard before the edge model runs.")
    ] = False,
    group_by: Annotated[
        str | None, typer.Option("--group-by", help="A bound for each group: label, or a field of the data.")
    ] = None,
    groups: Annotated[str, typer.Option("--groups", help="The groups, by commas; all unless given.")] = "",
    valid_days: Annotated[
        float | None, typer.Option("--valid-days", help="Days after which the certificate ends.")
    ] = None,
    keep_texts: Annotated[
        bool, typer.Option("--keep-texts", help="Keep the tuning items beside the certificate, for explain.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Certificate; BUNDLE.certificate.json unless given.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the operating curve: .png or .svg.")] = None,
    config: CostConfig = None,
    concurrency: CloudCalls = 4,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = 0.0,
    text_field: TextField = "text",
    label_field: Annotated[
        str | None, typer.Option("--label-field", help="Field of the label; label, where there is one, unless given.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", help="When two texts agree: exact, choice, number, similarity, python:MODULE:FUNCTION."
        ),
    ] = None,
    judge_bundle: Annotated[
        Path | None, typer.Option("--judge-bundle", help="The embedding bundle of --judge similarity.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of a written answer at most.")] = 256,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a certificate that exists.")] = False,
    cached: CachedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the threshold above which the edge may answer alone, with a proof; writes the certificate beside the bundle.

    Example: edgewise certify run/bundle --cloud http://127.0.0.1:8700 --data certify.jsonl --alpha 0.01 --delta 0.05
    """
    from edgewise import wiring
    from edgewise.jobs.certifying import CertifyJob, certify_with_cloud, certify_with_predictions
    from edgewise.router.certificate import encode

    _check_answers(cloud, predictions, tuning_predictions)
    job = CertifyJob(
        bundle=bundle,
        data=data,
        alpha=alpha,
        delta=delta,
        target=target,
        tuning=tuning,
        signal=signal,
        veto=veto,
        complexity=complexity,
        group_by=group_by,
        groups=_names(groups),
        valid_days=valid_days,
        keep_texts=keep_texts,
        out=out,
        cost=load_config(config).cost if config else None,
        plot=plot,
        concurrency=concurrency,
        timeout_s=timeout,
        wait_s=wait,
        text_field=text_field,
        label_field=label_field,
        judge=judge,
        judge_bundle=judge_bundle,
        max_tokens=max_tokens,
        cached=cached,
        overwrite=overwrite,
    )
    with rendering.progress_on(ERR) as progress:
        if predictions is not None:
            found = certify_with_predictions(job, predictions, progress, tuning_predictions=tuning_predictions)
        else:
            backend = wiring.backend_at(
                cloud or "", kind=cloud_kind, model=cloud_model, api_key_env=cloud_key_env, bundle=bundle
            )
            found = certify_with_cloud(job, wiring.connect(backend), progress)
    _show(rendering.certified_view(found), encode(found.certificate), as_json)
    if not found.goal_met:
        raise typer.Exit(1)


@app.command()
def explain(
    bundle: BundlePath,
    items: Annotated[list[str], typer.Argument(metavar="TEXT…", help="Texts; for an image model, paths of images.")],
    certificate: CertificateOption = None,
    fitted: Annotated[
        Path | None, typer.Option("--fitted", help="What was fitted for it; beside the certificate unless given.")
    ] = None,
    tuning: Annotated[
        Path | None, typer.Option("--tuning", help="Items to look for the nearest among; those that were kept else.")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", help="NAME=VALUE of the requests; may be repeated.")
    ] = None,
    text_field: TextField = "text",
    label_field: LabelField = "label",
    as_json: JsonOption = False,
) -> None:
    """Show what the router would decide on an item, and why.

    Example: edgewise explain run/bundle "grain exports rose in march"
    """
    from edgewise.jobs.explain import ExplainJob, explain_items

    job = ExplainJob(
        bundle=bundle,
        items=items,
        certificate=certificate,
        fitted=fitted,
        tuning=tuning,
        attributes=dict(_pair(text) for text in attribute or ()),
        text_field=text_field,
        label_field=label_field,
    )
    with rendering.progress_on(ERR) as progress:
        rows = explain_items(job, progress)
    _show(rendering.explained_view(rows), rows, as_json)


def _check_answers(cloud: str | None, predictions: Path | None, tuning_predictions: Path | None) -> None:
    """The cloud's answers come from a cloud, or from files."""
    if (cloud is None) == (predictions is None):
        raise typer.BadParameter("Give either --cloud URL or --predictions FILE.")
    if predictions is None and tuning_predictions is not None:
        raise typer.BadParameter("--tuning-predictions goes with --predictions; --cloud is asked about both parts.")


def _names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pair(text: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise typer.BadParameter(f"--attribute takes NAME=VALUE, not {text!r}.")
    return name, value


@app.command()
def evaluate(
    bundle: BundlePath,
    gateway: Annotated[str, typer.Option("--gateway", help="URL of the gateway that serves the bundle.")],
    cloud: Annotated[str, typer.Option("--cloud", help="URL of the reference cloud.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for summary.json and operating_curve.png.")],
    certificate: CertificateOption = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    gateway_key_env: Annotated[
        str | None, typer.Option("--gateway-key-env", help="Environment variable with the gateway's key.")
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at the same time.")] = 1,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = 0.0,
    text_field: TextField = "text",
    label_field: LabelField = "label",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a summary that exists.")] = False,
    since: Annotated[float | None, typer.Option("--since", help="Unix time that wall_s counts from.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send labelled items through a running gateway and compare with edge and cloud alone.

    Example: edgewise evaluate run/bundle --gateway http://127.0.0.1:8701 --cloud http://127.0.0.1:8700
    --data test.jsonl --out results
    """
    from edgewise import wiring
    from edgewise.jobs.evaluate import EvaluateJob, evaluate_gateway

    job = EvaluateJob(
        bundle=bundle,
        gateway=gateway,
        data=data,
        out=out,
        certificate=certificate,
        concurrency=concurrency,
        timeout_s=timeout,
        wait_s=wait,
        text_field=text_field,
        label_field=label_field,
        api_key=wiring.secret(gateway_key_env),
        overwrite=overwrite,
        since=since,
    )
    backend = wiring.backend_at(cloud, kind=cloud_kind, model=cloud_model, api_key_env=cloud_key_env)
    with rendering.progress_on(ERR) as progress:
        found = evaluate_gateway(job, wiring.connect(backend), progress)
    _show(rendering.summary_view(found.summary), found.summary, as_json)
    if not as_json:
        OUT.print(f"{found.summary_path}\n{found.plot_path}")


@app.command()
def predict(
    bundle: BundlePath,
    items: Annotated[list[str], typer.Argument(metavar="TEXT…", help="Texts; for an image model, paths of images.")],
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of one prediction.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Answer with the edge model alone; nothing leaves this machine.

    Example: edgewise predict run/bundle "grain exports rose in march"
    """
    from edgewise.jobs.predict import predict_items

    rows = predict_items(bundle, items, threads=threads)
    _show(rendering.predictions_view(rows), rows, as_json)


@app.command()
def chat(
    bundle: BundlePath,
    cloud: CloudUrl = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    config: Annotated[Path | None, typer.Option("--config", help="edgewise.toml; options win over it.")] = None,
    certificate: CertificateOption = None,
    mode: Annotated[
        Mode | None,
        typer.Option("--mode", help="Mode of the requests; guarded where there is a cloud."),
    ] = None,
    system: Annotated[str, typer.Option("--system", help="What the model is told before the conversation.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of an answer at most.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON an answer.")] = False,
) -> None:
    """Talk with a language model at the terminal: it answers here, and the cloud where it has to.

    Example: edgewise chat run/bundle --cloud http://127.0.0.1:8700
    """
    from contextlib import ExitStack

    from edgewise import wiring
    from edgewise.dialogue import Sampling
    from edgewise.jobs.chat import Chat, Talk, check_chat

    check_chat(bundle, max_tokens)
    settings = load_config(config) if config else Config()
    if cloud is not None:
        backend = wiring.backend_at(cloud, kind=cloud_kind, model=cloud_model, api_key_env=cloud_key_env, bundle=bundle)
        backends = {"command line": backend}
        settings = _overridden(settings, cloud={"use": "command line", "backends": backends, "fail_over": ()})
    if mode is None and not settings.cloud.backends:
        mode = Mode.EDGE_ONLY
    # A gateway may be running on the same settings: its file of what is owed is not this conversation's.
    settings = _overridden(settings, edge={"bundle": bundle, "certificate": certificate, "mode": mode})
    settings = msgspec.structs.replace(settings, state=msgspec.structs.replace(settings.state, path=None))
    with ExitStack() as resources:
        with ERR.status("Loading the model"):
            gateway = wiring.build_gateway(settings, resources)
            talking = resources.enter_context(Chat(gateway.router))
        if not as_json:
            for warning in gateway.warnings:
                ERR.print(f"warning: {warning}")
            OUT.print(rendering.chat_greeting(gateway.info.name, settings.edge.mode is not Mode.EDGE_ONLY))
        failed = _converse(talking, Talk(system, Sampling(max_tokens=max_tokens)), as_json)
    if failed and not sys.stdin.isatty():
        raise typer.Exit(1)


def _converse(talking: Any, talk: Any, as_json: bool) -> bool:
    """Answer line after line until there are no more; whether an answer failed."""
    failed = False
    for line in _lines(quiet=as_json):
        command, _, rest = line.partition(" ")
        prompt = None
        if command == "/exit":
            break
        if command == "/new":
            talk = talk.anew()
        elif command == "/help":
            OUT.print(rendering.chat_help())
        elif command == "/edit":
            prompt = talk.editing(rest) if rest else None
            if prompt is None:
                OUT.print(rendering.chat_note("/edit TEXT replaces the last answer; there has to be one."))
        elif command.startswith("/"):
            OUT.print(rendering.chat_note(f"There is no {command}; /help shows what there is."))
        else:
            prompt = talk.asking(line)
        if prompt is not None:
            heard = _hear(talking, prompt, talk.session, as_json)
            failed |= heard is None
            talk = talk if heard is None else talk.after(prompt, heard)
    return failed


def _lines(*, quiet: bool) -> Iterator[str]:
    """What is typed, line after line; Ctrl-C twice at the prompt ends it, as the end of the input does."""
    interactive = sys.stdin.isatty() and not quiet
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if interactive:
        import readline

        readline.set_auto_history(True)
    warned = False
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            OUT.print()
            return
        except KeyboardInterrupt:
            OUT.print()
            if warned or not interactive:
                return
            warned = True
            OUT.print(rendering.chat_note("Ctrl-C again, or /exit, leaves."))
            continue
        if not interactive and not line:
            return
        warned = False
        if line.strip():
            if not interactive and not quiet:
                OUT.print(f"> {line.strip()}")
            yield line.strip()


def _hear(talking: Any, prompt: Any, session: str, as_json: bool) -> str | None:
    """Show one answer as it comes, and what it took; its text, or None where there is none for an error."""
    from edgewise.jobs.chat import Reply, now_s

    reply = Reply(now_s())
    try:
        with closing(talking.ask(prompt, session)) as events:
            for event in events:
                said = reply.hear(event, now_s())
                if said is not None and not as_json:
                    instead = f"\n{rendering.INSTEAD}\n" if said.replaces else ""
                    sys.stdout.write(instead + rendering.printable(said.text))
                    sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except EdgewiseError as error:
        _show(rendering.chat_note(f"error: {error}"), {"error": error.problem, "remedy": error.remedy}, as_json)
        return None
    heard = reply.heard(now_s())
    if as_json:
        sys.stdout.write(msgspec.json.encode(heard).decode() + "\n")
        sys.stdout.flush()
    else:
        OUT.print()
        OUT.print(rendering.heard_line(heard))
    return heard.text


@app.command()
def inspect(bundle: BundlePath, as_json: JsonOption = False) -> None:
    """Show what a bundle holds and what was measured of it.

    Example: edgewise inspect run/bundle
    """
    from edgewise.bundle import Bundle

    opened = Bundle.open(bundle)
    described = {
        "path": str(bundle),
        "model_digest": opened.model_digest,
        "size_bytes": opened.size_bytes,
        "core": opened.core,
        "attestations": opened.attestations(),
    }
    _show(rendering.bundle_view(opened), described, as_json)


@app.command()
def verify(bundle: BundlePath, as_json: JsonOption = False) -> None:
    """Check every byte of a bundle, and that it answers its golden items on this machine.

    Example: edgewise verify run/bundle
    """
    from edgewise.jobs.predict import verify_bundle

    digest = verify_bundle(bundle)
    verdict = {"path": str(bundle), "model_digest": digest, "verified": True}
    _show(f"{bundle} is whole and answers as packed: {digest}", verdict, as_json)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Examine this machine: versions, processor, extras, what will not work and why.

    Example: edgewise doctor
    """
    from edgewise.jobs.doctor import diagnose

    diagnosis = diagnose()
    _show(rendering.diagnosis_view(diagnosis), diagnosis, as_json)
    if not diagnosis.healthy:
        raise typer.Exit(1)


@edge_app.command("serve")
def edge_serve(
    bundle: Annotated[Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder of a bundle.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="edgewise.toml; options win over it.")] = None,
    cloud: CloudUrl = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    certificate: CertificateOption = None,
    other_machine: Annotated[
        bool | None, typer.Option("--other-machine", help="Accept a certificate of another kind of machine.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="Mode of requests that name none.")] = None,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="Budget of requests that name none.")] = None,
    audit_share: Annotated[float | None, typer.Option("--audit-share", help="Probability of an audit.")] = None,
    state: Annotated[Path | None, typer.Option("--state", help="File for outbox, answers and audits.")] = None,
    host: HostOption = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to bind; 0 takes a free one.")] = None,
    api_keys_env: KeysEnv = None,
) -> None:
    """Serve a bundle: answer locally what the certificate covers, escalate the rest.

    Example: edgewise edge serve run/bundle --cloud http://127.0.0.1:8700 --port 8701
    """
    from edgewise import wiring

    settings = _overridden(
        load_config(config) if config else Config(),
        edge={
            "bundle": bundle,
            "certificate": certificate,
            "other_machine": other_machine,
            "mode": mode,
            "budget_ms": budget_ms,
        },
        audit={"share": audit_share},
        state={"path": state},
        server={"host": host, "port": port, "api_keys_env": api_keys_env},
    )
    if cloud is not None:
        backend = wiring.backend_at(
            cloud, kind=cloud_kind, model=cloud_model, api_key_env=cloud_key_env, bundle=settings.edge.bundle
        )
        backends = {"command line": backend}
        settings = _overridden(settings, cloud={"use": "command line", "backends": backends, "fail_over": ()})

    def ready(gateway: wiring.Gateway, bound_host: str, bound_port: int) -> None:
        for warning in gateway.warnings:
            ERR.print(f"warning: {warning}")
        certified = gateway.router.certificate
        if certified is not None and settings.edge.mode in (Mode.GUARDED, Mode.SPECULATIVE):
            ERR.print(rendering.certificate_sentence(certified))
        OUT.print(f"Gateway for {gateway.info.name} ready on http://{_address(bound_host, bound_port)}")

    wiring.serve_gateway(settings, ready)


@cloud_app.command("serve")
def cloud_serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL [NAME=PATH…]", help="Folders of Hugging Face checkpoints or of bundles."),
    ],
    name: Annotated[str | None, typer.Option("--name", help="The first model's name; its own unless given.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="What computes: auto, torch, onnx, or ray.")] = "auto",
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=0, help="Worker processes a model; 0 computes in this process.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="Threads a model, shared out among its workers; every core unless given."
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Most requests computed together.")] = 16,
    host: HostOption = None,
    port: Annotated[int, typer.Option("--port", help="Port to bind; 0 takes a free one.")] = 8700,
    api_keys_env: KeysEnv = None,
    admins: Annotated[str, typer.Option("--admins", help="Tenants that may load and unload models, by commas.")] = "",
    allow_load: Annotated[
        bool, typer.Option("--allow-load", help="Without API keys, on loopback: everybody may load and unload.")
    ] = False,
    draft: Annotated[
        Path | None,
        typer.Option("--draft", help="Checkpoint of a small language model that guesses for the first model."),
    ] = None,
) -> None:
    """Serve checkpoints or bundles; the first is the reference that gateways escalate to.

    Example: edgewise cloud serve checkpoint small=run/bundle --replicas 2 --port 8700
    """
    from edgewise import wiring

    config = _overridden(Config(), server={"host": host, "port": port, "api_keys_env": api_keys_env})
    settings = wiring.CloudSettings(
        models=wiring.cloud_models(models, name),
        engine=engine,
        replicas=replicas,
        threads=threads,
        max_batch=max_batch,
        admins=frozenset(_names(admins)),
        allow_load=allow_load,
        draft=draft,
    )

    def ready(infos: Any, bound_host: str, bound_port: int) -> None:
        served = ", ".join(info.name for info in infos)
        OUT.print(f"Cloud service for {served} ready on http://{_address(bound_host, bound_port)}")

    wiring.serve_cloud(settings, config, ready)


def _overridden(config: Config, **sections: dict[str, Any]) -> Config:
    """The configuration with the options that were given in place of the file's; ranges are checked again."""
    from edgewise.config import checked

    replaced = {
        name: msgspec.structs.replace(
            getattr(config, name),
            **{
                key: str(value) if isinstance(value, Path) else value
                for key, value in given.items()
                if value is not None
            },
        )
        for name, given in sections.items()
    }
    return checked(msgspec.structs.replace(config, **replaced))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _show(view: Any, value: Any, as_json: bool) -> None:
    """The view for people, or the value as JSON for machines."""
    if as_json:
        raw = value if isinstance(value, bytes) else msgspec.json.format(msgspec.json.encode(value), indent=2)
        sys.stdout.write(raw.decode().rstrip() + "\n")
    else:
        OUT.print(view)


def _terminated(*_: object) -> None:
    sys.exit(143)


def main() -> None:
    """Run the command line; every error raised on purpose becomes two lines and an exit code."""
    # As Ctrl-C does, SIGTERM unwinds: what was half-written is removed, what was started is ended.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except EdgewiseError as error:
        ERR.print(f"error: {error.problem}")
        if error.remedy:
            ERR.print(f"       {error.remedy}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        ERR.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        told = DiskFullError.caused_by(error) or EdgewiseError(
            f"{error.strerror or error}{where}.", "Check the path, its permissions and the free space."
        )
        ERR.print(f"error: {told.problem}\n       {told.remedy}")
        sys.exit(2)


if __name__ == "__main__":
    main()
