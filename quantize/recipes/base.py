"""What a recipe is. Owns the shape of the registry's entries and the spelling of a choice, and no technique."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgewise.errors import ConfigError
from edgewise.quantize.technique import Aids as Aids
from edgewise.quantize.technique import Outcome as Outcome
from edgewise.quantize.transforms import TRANSFORMS

PlainOptions = dict[str, str | int | float | bool]
"""Options as they travel in JSON."""


class Apply(Protocol):
    """Writes the quantized graph; runs in a worker process."""

    def __call__(self, source: Path, out: Path, options: Any, *, seed: int, aids: Aids) -> Outcome:
        """Read the graph at `source`, write the quantized one to `out`."""
        ...


def _nothing(options: Any) -> frozenset[str]:
    return frozenset()


@dataclass(frozen=True)
class Recipe:
    """One technique.

    Attributes:
        name: Its name.
        summary: One line on what it does.
        options: Struct of its options, each with a default.
        apply: Does it.
        prepared: Whether it reads the prepared graph or the exported one.
        needs: What it reads beside the graph, whatever its options: "calibration", "sensitivity".
        also_needs: What it reads besides with these options.
    """

    name: str
    summary: str
    options: type[msgspec.Struct]
    apply: Apply
    prepared: bool = True
    needs: frozenset[str] = frozenset()
    also_needs: Callable[[Any], frozenset[str]] = _nothing


@dataclass(frozen=True)
class Choice:
    """A recipe with its options, on a graph that some transforms changed: what makes one candidate.

    Attributes:
        id: The transforms, the recipe's name, and each option that is not the default: "int8_dynamic",
            "trim+int4_matmul.block_size-64".
        recipe: The recipe.
        options: Its options.
        transforms: Names of the transforms, in the order of their registry.
    """

    id: str
    recipe: Recipe
    options: msgspec.Struct
    transforms: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, options: msgspec.Struct, transforms: Sequence[str] = ()) -> Choice:
        """The choice of these.

        Raises:
            ConfigError: An unknown transform, or one twice.
        """
        ordered = _transforms(transforms)
        changed = [f"{field}-{value}" for field, value in _changed(recipe, options)]
        return cls(".".join(["+".join([*ordered, recipe.name]), *changed]), recipe, options, ordered)

    @property
    def needs(self) -> frozenset[str]:
        """What must be made ready for it beside the graph: names of fields of `Aids`."""
        recipe = self.recipe.needs | self.recipe.also_needs(self.options)
        return recipe.union(*(TRANSFORMS[name].needs for name in self.transforms))

    def plain_options(self) -> PlainOptions:
        """The options as plain values, defaults included."""
        return {name: getattr(self.options, name) for name in self.options.__struct_fields__}

    def spelling(self) -> str:
        """The text that `parse_choices` reads as this choice."""
        options = (f":{name}={value}" for name, value in _changed(self.recipe, self.options))
        return "+".join([*self.transforms, self.recipe.name]) + "".join(options)


def parse_choices(registry: Mapping[str, Recipe], texts: Sequence[str]) -> tuple[Choice, ...]:
    """Choices as a user spells them: "[TRANSFORM+…]RECIPE[:option=value…]".

    Raises:
        ConfigError: An unknown recipe, transform or option, a value out of its range, or a transform or a choice twice.
    """
    choices = tuple(_parse(registry, text) for text in texts)
    ids = [choice.id for choice in choices]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice:
        raise ConfigError(f"The recipe {twice!r} is named twice.", "Name each candidate once.")
    return choices


def _parse(registry: Mapping[str, Recipe], text: str) -> Choice:
    head, _, rest = text.strip().partition(":")
    *before, name = (part.strip() for part in head.split("+"))
    if name not in registry:
        raise ConfigError(f"There is no recipe {name!r}.", _hint(registry, name))
    recipe = registry[name]
    return Choice.of(recipe, _options(recipe, [part.strip() for part in rest.split(":") if part.strip()]), before)


def _hint(registry: Mapping[str, Recipe], name: str) -> str:
    if name in TRANSFORMS:
        return f"It is a transform, and goes before a recipe: {name}+{next(iter(registry))}."
    if "=" in name:
        return "Several options of one recipe are separated by colons: int4_matmul:block_size=64:symmetric=true."
    return f"Choose from: {', '.join(registry)}."


def _transforms(names: Sequence[str]) -> tuple[str, ...]:
    unknown = next((name for name in names if name not in TRANSFORMS), None)
    if unknown is not None:
        raise ConfigError(f"There is no transform {unknown!r}.", f"Choose from: {', '.join(TRANSFORMS)}.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"The transform {twice!r} is named twice.", "Name each transform once.")
    # The registry's order, whatever the user's: they are applied in that one, and a candidate has one name.
    return tuple(name for name in TRANSFORMS if name in names)


def _changed(recipe: Recipe, options: msgspec.Struct) -> list[tuple[str, str]]:
    """Each option that is not the default, with its value as it is spelled."""
    default = recipe.options()
    values = {name: getattr(options, name) for name in options.__struct_fields__}
    return [
        (name, str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in values.items()
        if value != getattr(default, name)
    ]


def _options(recipe: Recipe, parts: Sequence[str]) -> msgspec.Struct:
    given = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{part!r} is no option.", f"Write {recipe.name}:option=value.")
        given[key.strip()] = value.strip()
    unknown = [key for key in given if key not in recipe.options.__struct_fields__]
    if unknown:
        known = ", ".join(recipe.options.__struct_fields__) or "none"
        raise ConfigError(f"The recipe {recipe.name} has no option {unknown[0]!r}.", f"It has: {known}.")
    try:
        return msgspec.convert(given, recipe.options, strict=False)
    except msgspec.ValidationError as e:
        raise ConfigError(f"The recipe {recipe.name} cannot use this: {e}.", "Correct the value.") from e
