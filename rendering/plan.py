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
_COLUMNS = ("MB", "edge p50 ms", "expected", "certified", "95 % interval", "calls / 1,000", "latency ms")
_PRICES = ("money / 1,000", "total / 1,000")


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
    for name in (*_COLUMNS, *(_PRICES if plan.priced else ())):
        table.add_column(name, justify="right")
    shown = _shown(plan)
    rows = [_option(option, plan) for option in shown]
    cheaper = [option for option in shown if option.price.total <= plan.cloud_only.total]
    rows.insert(len(cheaper), ("cloud alone", *[""] * 6, *_price(0.0, plan.cloud_only, plan)))
    for cells in rows:
        table.add_row(*cells)
    return table


def _shown(plan: JointPlan) -> list[Option]:
    """Each recipe's best signal and the plan, then the cheapest of the others while there is room; by cost."""
    first = {id(option) for option in plan.options if option.curve or option.chosen}
    others = [option for option in plan.options if id(option) not in first]
    shown = first | {id(option) for option in others[: max(_MOST_ROWS - len(first), 0)]}
    return [option for option in plan.options if id(option) in shown]


def _option(option: Option, plan: JointPlan) -> tuple[str, ...]:
    found = option.certified
    share = option.expected_share if found is None else found.local_share
    ends = "" if found is None else " to ".join(f"{100 * end:.1f}" for end in found.local_share_interval)
    return (
        f"{option.recipe}{' ←' if option.chosen else ''}",
        option.signal,
        f"{option.size_bytes / 1e6:.1f}",
        f"{option.edge_ms:.2f}",
        f"{100 * option.expected_share:.1f} %",
        "not tested" if found is None else f"{100 * found.local_share:.1f} %" if found.local_share > 0 else "nothing",
        ends,
        *_price(share, option.price, plan),
    )


def _price(share: float, price: Price, plan: JointPlan) -> tuple[str, ...]:
    figures = (f"{1e3 * (1 - share):.0f}", f"{price.latency_ms:.2f}" if plan.timed else "unknown")
    return (*figures, f"{1e3 * price.money:.4g}", f"{1e3 * price.total:.4g}") if plan.priced else figures


def _legend(plan: JointPlan) -> str:
    left = len(plan.options) - len(_shown(plan))
    more = f"; {left} more in plan.json" if left else ""
    expected = f"expected: the share at the edge by the {plan.tuning.items} tuning items, no promise"
    if plan.pay == "split":
        return f"← the plan, chosen by what is expected and certified alone; {expected}{more}"
    return f"← the plan; {plan.m} options share δ = {plan.delta:g}; {expected}{more}"


def _practices(plan: JointPlan) -> list[RenderableType]:
    if not plan.practices:
        return []
    table = Table(box=None, pad_edge=False)
    table.add_column("another practice", style="bold")
    prices = _PRICES[1:] if plan.priced else ()
    for name in ("at the edge", "risk seen", "risk, at most", "promised", "promise", *prices):
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
        practice.verdict(plan.alpha),
        *([f"{1e3 * practice.price.total:.4g}"] if plan.priced else []),
    )
