"""What plan shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table

from edgewise.rendering.words import percent

if TYPE_CHECKING:
    from edgewise.jobs.planning import Planned
    from edgewise.quantize.joint import JointPlan, Option, Practice, Price

_MOST_ROWS = 14
_COLUMNS = (
    "MB",
    "edge p50 ms",
    "at the edge",
    "95 % interval",
    "certified",
    "money / 1,000",
    "latency ms",
    "total / 1,000",
)


def planned_view(found: Planned) -> RenderableType:
    """A plan: its first line, every recipe with its best signals, other practices, and where it lies."""
    plan = found.plan
    where = [
        f"Plan: {found.out / 'plan.json'}    Report: {found.out / 'report.html'}",
        f"Bundle with its certificate, ready to serve: {found.bundle}",
    ]
    return Group(plan.headline, "", _options(plan), _legend(plan), "", *_practices(plan), *where)


def _options(plan: JointPlan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("signal", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    rows: list[tuple[float, tuple[str, ...]]] = [(option.price.total, _option(option)) for option in _shown(plan)]
    alone = ("cloud alone", "", "", "", "0 %", "", "", *_price(plan.cloud_only))
    place = sum(total <= plan.cloud_only.total for total, _ in rows) if plan.priced else len(rows)
    rows.insert(place, (plan.cloud_only.total, alone))
    for _, cells in rows:
        table.add_row(*cells)
    return table


def _shown(plan: JointPlan) -> list[Option]:
    """Each recipe's best signal and the plan, then the cheapest of the others while there is room; by cost."""
    first = {id(option) for option in plan.options if option.curve or option.chosen}
    others = [option for option in plan.options if id(option) not in first]
    shown = first | {id(option) for option in others[: max(_MOST_ROWS - len(first), 0)]}
    return [option for option in plan.options if id(option) in shown]


def _option(option: Option) -> tuple[str, ...]:
    found = option.certified
    share = option.expected_share if found is None else found.local_share
    ends = (
        ""
        if found is None
        else f"{100 * found.local_share_interval[0]:.1f} to {100 * found.local_share_interval[1]:.1f}"
    )
    return (
        f"{option.recipe}{' ←' if option.chosen else ''}",
        option.signal,
        f"{option.size_bytes / 1e6:.1f}",
        f"{option.edge_ms:.2f}",
        f"{100 * share:.1f} %",
        ends,
        "not tested" if found is None else "yes" if found.local_share > 0 else "nothing",
        *_price(option.price),
    )


def _price(price: Price) -> tuple[str, str, str]:
    return f"{1e3 * price.money:.4g}", f"{price.latency_ms:.2f}", f"{1e3 * price.total:.4g}"


def _legend(plan: JointPlan) -> str:
    left = len(plan.options) - len(_shown(plan))
    more = f"; {left} more in plan.json" if left else ""
    if plan.pay == "split":
        return f"← the plan; what is not tested is expected from the {plan.tuning.items} tuning items{more}"
    return f"← the plan; {plan.m} options share δ = {plan.delta:g}{more}"


def _practices(plan: JointPlan) -> list[RenderableType]:
    if not plan.practices:
        return []
    table = Table(box=None, pad_edge=False)
    table.add_column("another practice", style="bold")
    for name in ("at the edge", "risk seen", "risk, at most", "promised", "kept", "total / 1,000"):
        table.add_column(name, justify="right")
    for practice in plan.practices:
        table.add_row(*_practice(practice, plan))
    return [table, ""]


def _practice(practice: Practice, plan: JointPlan) -> tuple[str, ...]:
    limit = practice.risk_bound
    return (
        practice.name,
        f"{100 * practice.local_share:.1f} %",
        percent(practice.risk),
        "" if limit is None else percent(limit),
        percent(plan.alpha),
        "" if limit is None else "yes" if limit <= plan.alpha else "no",
        f"{1e3 * practice.price.total:.4g}",
    )
