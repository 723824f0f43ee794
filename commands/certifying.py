"""Commands that prove what the edge may answer alone, explain it, and hold it against a running gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from edgewise import rendering
from edgewise.commands.console import ERR, OUT, conclude, show
from edgewise.commands.options import (
    AlphaOption,
    BundlePath,
    CachedOption,
    CertificateOption,
    CloudCalls,
    CloudKeyEnv,
    CloudKind,
    CloudModel,
    CloudUrl,
    CostConfig,
    DataOption,
    DeltaOption,
    Items,
    JsonOption,
    LabelField,
    Predictions,
    TargetOption,
    TextField,
    TimeoutOption,
    TuningPredictions,
    WaitOption,
    names,
    pair,
)
from edgewise.commands.settings import CloudOptions, configured


def plan(
    model: Annotated[
        Path, Argument(metavar="MODEL", help="Folder of a run, of a checkpoint, which is quantized, or a bundle.")
    ],
    data: DataOption,
    cloud: CloudUrl = None,
    predictions: Predictions = None,
    tuning_predictions: TuningPredictions = None,
    tuning: Annotated[
        Path | None, Option("--tuning", help="Items to compare on; a third of --data unless given.")
    ] = None,
    out: Annotated[Path | None, Option("--out", help="Folder for the plan; MODEL.plan unless given.")] = None,
    config: CostConfig = None,
    alpha: AlphaOption = 0.01,
    delta: DeltaOption = 0.05,
    target: TargetOption = "agreement",
    recipes: Annotated[str, Option("--recipes", help="Recipes to plan with, by commas.")] = "",
    signals: Annotated[str, Option("--signals", help="Scores to plan with, by commas.")] = "",
    pay: Annotated[str, Option("--pay", help="How the choice is paid for: split or share.")] = "split",
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
        recipes=names(recipes),
        signals=names(signals),
        pay=pay,
        concurrency=concurrency,
        timeout_s=timeout,
        wait_s=wait,
        text_field=text_field,
        label_field=label_field,
    )
    costs = configured(config).cost
    with rendering.progress_on(ERR) as progress:
        if predictions is not None:
            found = plan_with_predictions(job, costs, predictions, progress, tuning_predictions=tuning_predictions)
        else:
            client = CloudOptions(cloud, cloud_kind, cloud_model, cloud_key_env).client()
            found = plan_with_cloud(job, costs, client, progress)
    conclude(rendering.planned_view(found), found.plan, as_json=as_json, goal_met=found.goal_met)


def certify(
    bundle: BundlePath,
    data: DataOption,
    alpha: AlphaOption = 0.01,
    delta: DeltaOption = 0.05,
    target: TargetOption = "agreement",
    tuning: Annotated[
        Path | None, Option("--tuning", help="Other items, to choose the signal on and to fit what decides.")
    ] = None,
    cloud: CloudUrl = None,
    predictions: Predictions = None,
    tuning_predictions: TuningPredictions = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    signal: Annotated[
        str | None, Option("--signal", help="Score, or auto; the bundle's unless given, auto with --tuning.")
    ] = None,
    veto: Annotated[bool, Option("--veto", help="Escalate what is unlike every tuning item.")] = False,
    complexity: Annotated[
        bool, Option("--complexity", help="Escalate texts that look too hard before the edge model runs.")
    ] = False,
    group_by: Annotated[
        str | None, Option("--group-by", help="A bound for each group: label, or a field of the data.")
    ] = None,
    groups: Annotated[str, Option("--groups", help="The groups, by commas; all unless given.")] = "",
    valid_days: Annotated[float | None, Option("--valid-days", help="Days after which the certificate ends.")] = None,
    keep_texts: Annotated[
        bool, Option("--keep-texts", help="Keep the tuning items beside the certificate, for explain.")
    ] = False,
    out: Annotated[Path | None, Option("--out", help="Certificate; BUNDLE.certificate.json unless given.")] = None,
    plot: Annotated[Path | None, Option("--plot", help="Draw the operating curve: .png or .svg.")] = None,
    config: CostConfig = None,
    concurrency: CloudCalls = 4,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = 0.0,
    text_field: TextField = "text",
    label_field: Annotated[
        str | None, Option("--label-field", help="Field of the label; label, where there is one, unless given.")
    ] = None,
    judge: Annotated[
        str | None,
        Option("--judge", help="When two texts agree: exact, choice, number, similarity, python:MODULE:FUNCTION."),
    ] = None,
    judge_bundle: Annotated[
        Path | None, Option("--judge-bundle", help="The embedding bundle of --judge similarity.")
    ] = None,
    max_tokens: Annotated[int, Option("--max-tokens", help="Tokens of a written answer at most.")] = 256,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a certificate that exists.")] = False,
    cached: CachedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the threshold above which the edge may answer alone, with a proof; writes the certificate beside the bundle.

    Example: edgewise certify run/bundle --cloud http://127.0.0.1:8700 --data certify.jsonl --alpha 0.01 --delta 0.05
    """
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
        groups=names(groups),
        valid_days=valid_days,
        keep_texts=keep_texts,
        out=out,
        cost=configured(config).cost if config else None,
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
            client = CloudOptions(cloud, cloud_kind, cloud_model, cloud_key_env).client(bundle)
            found = certify_with_cloud(job, client, progress)
    conclude(rendering.certified_view(found), encode(found.certificate), as_json=as_json, goal_met=found.goal_met)


def explain(
    bundle: BundlePath,
    items: Items,
    certificate: CertificateOption = None,
    fitted: Annotated[
        Path | None, Option("--fitted", help="What was fitted for it; beside the certificate unless given.")
    ] = None,
    tuning: Annotated[
        Path | None, Option("--tuning", help="Items to look for the nearest among; those that were kept else.")
    ] = None,
    attribute: Annotated[
        list[str] | None, Option("--attribute", help="NAME=VALUE of the requests; may be repeated.")
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
        attributes=dict(pair(text, "--attribute") for text in attribute or ()),
        text_field=text_field,
        label_field=label_field,
    )
    with rendering.progress_on(ERR) as progress:
        rows = explain_items(job, progress)
    show(rendering.explained_view(rows), rows, as_json=as_json)


def evaluate(
    bundle: BundlePath,
    gateway: Annotated[str, Option("--gateway", help="URL of the gateway that serves the bundle.")],
    cloud: Annotated[str, Option("--cloud", help="URL of the reference cloud.")],
    data: DataOption,
    out: Annotated[Path, Option("--out", help="Folder for summary.json and operating_curve.png.")],
    certificate: CertificateOption = None,
    cloud_kind: CloudKind = None,
    cloud_model: CloudModel = None,
    cloud_key_env: CloudKeyEnv = None,
    gateway_key_env: Annotated[
        str | None, Option("--gateway-key-env", help="Environment variable with the gateway's key.")
    ] = None,
    concurrency: Annotated[int, Option("--concurrency", min=1, help="Requests at the same time.")] = 1,
    timeout: TimeoutOption = 30.0,
    wait: WaitOption = 0.0,
    text_field: TextField = "text",
    label_field: LabelField = "label",
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a summary that exists.")] = False,
    since: Annotated[float | None, Option("--since", help="Unix time that wall_s counts from.")] = None,
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
    backend = CloudOptions(cloud, cloud_kind, cloud_model, cloud_key_env).backend()
    with rendering.progress_on(ERR) as progress:
        found = evaluate_gateway(job, wiring.connect(backend), progress)
    show(rendering.summary_view(found.summary), found.summary, as_json=as_json)
    if not as_json:
        OUT.print(f"{found.summary_path}\n{found.plot_path}")


def _check_answers(cloud: str | None, predictions: Path | None, tuning_predictions: Path | None) -> None:
    """The cloud's answers come from a cloud, or from files."""
    if (cloud is None) == (predictions is None):
        raise BadParameter("Give either --cloud URL or --predictions FILE.")
    if predictions is None and tuning_predictions is not None:
        raise BadParameter("--tuning-predictions goes with --predictions; --cloud is asked about both parts.")
