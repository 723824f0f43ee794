"""What it takes to keep numbers to the multiples that a JSON Schema asks for.

Owns that count, which is a pure rule. llguidance goes through a state for every remainder before the first token, and
neither ends early nor can be stopped: ten million of them for `{"multipleOf": 9999991}`. Everything else in a schema it
bounds itself, by the limits that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal
from typing import Any

from edgewise.schemas import DATA, MAPS, REFERENCES

MAX_REMAINDERS = 10_000
"""Of all schemas of an answer together; so many take a tenth of a second."""

# What may hold one value to several multiples. How many depends on what is inside of what; all of them is the most.
_JOINING = REFERENCES | {"allOf", "anyOf", "oneOf", "patternProperties"}
_DIGITS = len(str(MAX_REMAINDERS))


def are_few(schemas: Iterable[Any]) -> bool:
    """Whether numbers can be kept to the multiples in some schemas without taking long."""
    return sum(map(_remainders, schemas)) <= MAX_REMAINDERS


def _remainders(schema: Any) -> int:
    """Remainders that are told apart at most."""
    found: set[Decimal] = set()
    joined = False
    for keyword, value in _keywords(schema):
        joined = joined or keyword in _JOINING
        if keyword == "multipleOf" and isinstance(value, int | float):
            if not 0 < value < math.inf:
                return MAX_REMAINDERS + 1
            found.add(Decimal(repr(value)).normalize())
    if joined:
        return math.lcm(*_whole(found))
    return sum(_whole([one])[0] for one in found)


def _whole(numbers: Collection[Decimal]) -> list[int]:
    """Decimal numbers as multiples of the last place that any of them has; one that is too large stays so."""
    places = max((max(0, -int(number.as_tuple().exponent)) for number in numbers), default=0)
    most = MAX_REMAINDERS + 1
    return [most if number.adjusted() + places > _DIGITS else int(number.scaleb(places)) for number in numbers]


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """The keywords of a schema and of those inside of it, also of those that nothing refers to."""
    waiting = [(schema, False)]
    while waiting:
        value, names = waiting.pop()
        if isinstance(value, list):
            waiting.extend((one, False) for one in value)
        if not isinstance(value, dict):
            continue
        for key, one in value.items():
            if not names:
                yield key, one
            if names or key not in DATA:
                waiting.append((one, not names and key in MAPS))
