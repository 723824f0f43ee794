"""The configuration's costs as what a request costs.

Owns the way from `[cost]` to `router.cost.CostModel`, and what stands in for a region where none is named. The formula
is there.
"""

from __future__ import annotations

from edgewise.config import CostSection
from edgewise.errors import ConfigError
from edgewise.quantize.joint import Price
from edgewise.router.cost import CostModel, Region

MEASURED = "as measured"
"""The region's name where none is configured and the cloud's calls were timed."""


def cost_model(section: CostSection, *, edge_ms: float = 0.0, cloud_ms: float = 0.0) -> CostModel:
    """What answers cost with a candidate at the edge.

    Args:
        section: The configuration.
        edge_ms: Milliseconds of an edge answer, from which power becomes energy.
        cloud_ms: Milliseconds of a cloud call, there and back, where no region says how long it takes.

    Raises:
        ConfigError: A figure is negative or not a number, or power and energy are both given.
    """
    if section.edge_watts is not None and section.edge_joules is not None:
        raise ConfigError("cost.edge_watts and cost.edge_joules are both given.", "Give one of them.")
    watts = section.edge_watts or 0.0
    measured = Region(name=MEASURED, rtt_ms=0.0, price_per_call=None, cloud_ms=cloud_ms)
    named = tuple(
        Region(name=name, rtt_ms=found.rtt_ms, price_per_call=found.price_per_call, cloud_ms=found.cloud_ms)
        for name, found in section.regions.items()
    )
    return CostModel(
        price_per_call=section.price_per_call,
        price_per_1k_tokens=section.price_per_1k_tokens,
        edge_ms=edge_ms,
        edge_joules=section.edge_joules if section.edge_joules is not None else watts * edge_ms / 1e3,
        price_per_kwh=section.price_per_kwh,
        price_per_second=section.price_per_second,
        regions=named or (measured,),
    )


class Costs:
    """What a request costs with any candidate at the edge.

    Args:
        section: The configuration.
        cloud_ms: Milliseconds of a cloud call as it was measured; counts where no region is configured. None where it
            was not: latencies then leave the cloud out.

    Raises:
        ConfigError: The configuration cannot be used, or waiting has a price and nothing says how long the cloud takes.
    """

    def __init__(self, section: CostSection, cloud_ms: float | None = None) -> None:
        self._section = section
        self._is_timed = cloud_ms is not None or bool(section.regions)
        if section.price_per_second and not self._is_timed:
            raise ConfigError(
                f"cost.price_per_second is {section.price_per_second:g}, and nothing says how long the cloud takes.",
                "Name a region: [cost.regions.NAME] with rtt_ms and cloud_ms; or ask a cloud with --cloud.",
            )
        self._cloud_ms = cloud_ms = cloud_ms or 0.0
        self._region = cost_model(section, cloud_ms=cloud_ms).nearest()

    def price(self, edge_ms: float, local_share: float) -> Price:
        """What a request costs on average.

        Args:
            edge_ms: Milliseconds of an edge answer.
            local_share: Share that is answered locally, in [0, 1].
        """
        model = cost_model(self._section, edge_ms=edge_ms, cloud_ms=self._cloud_ms)
        cost = model.expected(local_share, edge_ms=edge_ms, tokens=self._section.tokens)
        return Price(cost.money, cost.latency_ms, cost.total)

    def cloud_only(self) -> Price:
        """What a request costs where all go to the cloud, past the edge model."""
        cost = cost_model(self._section, cloud_ms=self._cloud_ms).cloud_only(tokens=self._section.tokens)
        return Price(cost.money, cost.latency_ms, cost.total)

    def told(self) -> dict[str, float | str | None]:
        """Every figure that counts, by its name in the configuration; of the regions the nearest alone.

        Times that are not known are None.
        """
        fields = self._section.__struct_fields__
        return {
            **{name: getattr(self._section, name) for name in fields if name != "regions"},
            "region": self._region.name,
            "rtt_ms": self._region.rtt_ms if self._is_timed else None,
            "cloud_ms": self._region.cloud_ms if self._is_timed else None,
        }
