"""Made-up reports of every kind of model, as full as they can be, for tests of what people see."""

from __future__ import annotations

import msgspec

from edgewise.edge import Device
from edgewise.quantize.joint import CertifiedShare, CurvePoint, JointPlan, Option, Part, Practice, Price
from edgewise.quantize.report import (
    Candidate,
    CheckpointFacts,
    Export,
    Performance,
    Report,
    Setting,
    Stage,
    headline,
)
from edgewise.quantize.select import judge
from edgewise.quantize.statistics import Latency, Quality, drop_bound

WINNER = "trim+int8_embed4.block_size-64"
DEVICE = Device(
    machine="x86_64",
    isa="x86-64-avx512-vnni",
    cpu_flags=("avx2", "avx512_vnni"),
    cores=2,
    memory_bytes=25_000_000_000,
    onnxruntime="1.31.1",
    python="3.11.7",
)


def latency(p50: float) -> Latency:
    return Latency(calls=1000, mean_ms=1.05 * p50, p50_ms=p50, p95_ms=1.41 * p50, p99_ms=1.93 * p50)


def quality(lost: int, won: int, n: int = 500, **more: float) -> Quality:
    right = round(0.94 * n)
    return Quality(
        n=n,
        accuracy=(right - lost + won) / n,
        baseline_accuracy=right / n,
        drop=(lost - won) / n,
        lost=lost,
        won=won,
        flips=(lost + won + 2) / n,
        **more,
    )


def measured(name: str, size: int, p50: float, lost: int, won: int, kind: str, **more) -> Candidate:
    of_kind = {
        "text-classification": {"calibration_error": 0.021 + lost / 999, "auroc": 0.91 - lost / 777},
        "token-classification": {"unknown_share": 0.006},
        "feature-extraction": {"cosine_mean": 0.993, "cosine_min": 0.951},
        "text-generation": {"nll": 3.744 + lost / 60, "baseline_nll": 3.744, "kld": lost / 300},
    }
    return Candidate(
        id=name,
        recipe=name.split(".")[0].split("+")[-1],
        state="measured",
        model_digest="sha256:" + "3c5479cc" * 8,
        performance=Performance(
            size_bytes=size,
            load_ms=30 * p50,
            first_ms=3 * p50,
            latency=latency(p50),
            peak_rss_bytes=60_000_000 + 2 * size,
            settings=(
                Setting(threads=1, tokens=128, latency=latency(6 * p50)),
                Setting(threads=2, tokens=None, latency=latency(0.6 * p50)),
            ),
            tokens_per_s=150 / p50 if kind == "text-generation" else None,
        ),
        quality=quality(lost, won, **of_kind.get(kind, {})),
        drop_bound=drop_bound(lost, won, 500, 0.05) if lost else 0.0,
        seconds=1.1 * p50,
        **{"options": {}, "on_front": True, **more},
    )


def full_report(kind: str = "text-classification", **changes) -> Report:
    """A run with a gate and a test part, a candidate that failed and one that was skipped."""
    candidates = (
        measured("fp32", 90_437_100, 6.42, 0, 0, kind, facts=("the exported graph, unchanged",)),
        measured("int8_dynamic", 22_913_448, 1.77, 3, 2, kind, options={"per_channel": True, "reduce_range": False}),
        measured("int8_static", 23_011_000, 2.4, 9, 3, kind, on_front=False, options={"method": "percentile"}),
        measured("int4_matmul", 14_311_000, 5.2, 230, 4, kind, options={"block_size": 32}),
        measured(WINNER, 14_720_000, 1.95, 4, 2, kind, options={"block_size": 64}, skipped=("/classifier/Gemm",)),
        Candidate(id="gptq", recipe="gptq", options={}, state="failed", problem="calibration never reached 2 weights"),
        Candidate(id="mixed", recipe="mixed", options={}, state="inapplicable", problem="no layer stands out"),
    )
    gate = judge(quality(3, 2, n=900), bound=0.0086, needed=None, max_drop=0.01, confidence=0.95)
    report = Report(
        headline=headline(candidates, WINNER, max_drop=0.01, gate=gate),
        verdict=gate.verdict,
        winner=WINNER,
        why=f"{WINNER} has the smallest product of size and p50.",
        prefer="balanced",
        max_drop=0.01,
        checkpoint=CheckpointFacts(
            name="minilm-newswire",
            architecture="BertForSequenceClassification",
            task=kind,
            labels=52,
            size_bytes=90_900_000,
            max_length=64,
            digest="de271cf5e9e14b0f" * 4,
        ),
        export=Export(exporter="optimum", samples=16, largest_difference=4.8e-6, allowed_difference=0.0057),
        data_digest="96d790265c4a40db" * 4,
        gate_digest="a6d790265c4a40db" * 4,
        test_digest="b6d790265c4a40db" * 4,
        candidates=candidates,
        gate=gate,
        device=DEVICE,
        threads=1,
        tools={"edgewise": "0.1.0", "onnxruntime": "1.31.1", "torch": "2.13.0"},
        stages=(Stage("export", 14.2), Stage("build", 21.9), Stage("measure", 38.4), Stage("gate", 4.7)),
        test=quality(3, 1, n=700),
        peak_rss_bytes=2_210_000_000,
    )
    return msgspec.structs.replace(report, **changes)


def full_plan(**changes) -> JointPlan:
    """A plan of a run such as `full_report` is: one option certified, one expected, one that certifies nothing."""

    def option(recipe: str, share: float, **more) -> Option:
        cost = Price(0.0031 * (1 - share), 2.0 + 55.0 * (1 - share), 0.0042 * (1 - share) + 0.00007)
        curve = tuple(CurvePoint(part / 8, 0.021 * (part / 8) ** 3, cost) for part in range(9))
        return Option(
            **{
                "recipe": recipe, "signal": "margin:temperature=1.4", "model_digest": "sha256:" + "3c5479cc" * 8,
                "size_bytes": 14_720_000, "edge_ms": 1.95, "aurc": 0.0087, "auroc": None, "expected_share": share,
                "certified": None, "price": cost, "curve": curve, **more,
            }
        )  # fmt: skip

    def certified(share: float, threshold: float | str) -> CertifiedShare:
        return CertifiedShare(
            threshold=threshold, local_share=share, local_share_interval=(0.9 * share, 1.1 * share), k=6, delta=0.05
        )

    chosen = option(WINNER, 0.731, certified=certified(0.688, 0.912), chosen=True)
    other = option("fp32", 0.744, signal="max_logit", size_bytes=90_437_100, edge_ms=6.42, auroc=0.913)
    hopeless = option("int8_dynamic", 0.0, certified=certified(0.0, "inf"))
    practice = Practice(
        name=f"threshold tuned on fp32, used on {WINNER}", recipe=WINNER, signal="margin", threshold=0.87,
        local_share=0.757, risk=0.0121, risk_bound=0.0187, price=chosen.price,
    )  # fmt: skip
    plan = JointPlan(
        headline=f"{WINNER} with margin answers 68.8 % at the edge.",
        outcome="planned",
        options=(chosen, other, hopeless, msgspec.structs.replace(other, signal="entropy", curve=())),
        cloud_only=Price(0.0031, 57.0, 0.0042),
        practices=(practice, msgspec.structs.replace(practice, name="another", risk_bound=None)),
        target="agreement",
        alpha=0.01,
        delta=0.05,
        pay="split",
        m=1,
        reference=("news-large", "sha256:418512005cd8"),
        tuning=Part(700, "96d790265c4a40db" * 4),
        certifying=Part(1268, "c6d790265c4a40db" * 4),
        cost={"price_per_call": 0.0031, "region": "eu", "rtt_ms": 20.0, "cloud_ms": 8.0},
        certificate_id="sha256:" + "11223344" * 8,
        model="run",
        created="2026-01-01T00:00:00Z",
        runtime="onnxruntime 1.31.1",
        isa="x86-64-avx512-vnni",
    )
    return msgspec.structs.replace(plan, **changes)


def bare_report() -> Report:
    """A run in which only the baseline came about, without gate and test part."""
    full = full_report()
    baseline = full.candidates[0]
    plain = msgspec.structs.replace(
        baseline, drop_bound=None, quality=quality(0, 0), on_front=False, seconds=None, facts=()
    )
    return msgspec.structs.replace(
        full,
        headline=headline((plain,), plain.id, max_drop=0.01, gate=None),
        verdict="untested",
        winner=plain.id,
        candidates=(plain,),
        gate=None,
        gate_digest=None,
        test=None,
        test_digest=None,
        peak_rss_bytes=0,
        checkpoint=msgspec.structs.replace(full.checkpoint, max_length=None),
    )
