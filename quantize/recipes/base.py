"""What a recipe is. Owns the shape of the registry's entries and the spelling of a choice, and no technique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgewise.errors import ConfigError


class Outcome(msgspec.Struct, frozen=True):
    """What a recipe did.

    Attributes:
        facts: Sentences on what became of the weights, read off the written graph.
        skipped: Names of weights that the recipe promised to quantize and did not.
        inapplicable: Why there is nothing in this graph for the recipe to do; empty where it wrote a graph.
        tokenizer: A `tokenizer.json` that goes with the written graph in place of the checkpoint's; empty if none.
        max_unknown_share: With it, the share of unknown tokens above which a text is not what the graph was made for.
    """

    facts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    inapplicable: str = ""
    tokenizer: str = ""
    max_unknown_share: float | None = None


class Aids(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe may read beside the graph; each is there if the recipe needs it.

    Attributes:
        calibration: An .npz of encoded tuning items, "NAME/NUMBER" to an array of batch one.
        sensitivity: A JSON file: how much each weight's quantization moves the answers.
        tokenizer: The `tokenizer.json` of a text model.
        items: A JSON file of tuning items.
    """

    calibration: str = ""
    sensitivity: str = ""
    tokenizer: str = ""
    items: str = ""


class Apply(Protocol):
    """Writes the quantized graph; runs in a worker process."""

    def __call__(self, source: Path, out: Path, options: Any, *, seed: int, aids: Aids) -> Outcome:
        """Read the graph at `source`, write the quantized one to `out`."""
        ...


@dataclass(frozen=True)
class Recipe:
    """One technique.

    Attributes:
        name: Its name.
        summary: One line on what it does.
        options: Struct of its options, each with a default.
        apply: Does it.
        prepared: Whether it reads the prepared graph or the exported one.
    """

    name: str
    summary: str
    options: type[msgspec.Struct]
    apply: Apply
    prepared: bool = True


@dataclass(frozen=True)
class Choice:
    """A recipe with its options: what makes one candidate.

    Attributes:
        id: The recipe's name, and each option that is not the default: "int8_dynamic", "int4_matmul.block_size-64".
        recipe: The recipe.
        options: Its options.
    """

    id: str
    recipe: Recipe
    options: msgspec.Struct

    def plain_options(self) -> dict[str, str | int | float | bool]:
        """The options as plain values, defaults included."""
        return {name: getattr(self.options, name) for name in self.options.__struct_fields__}


def parse_choices(registry: Mapping[str, Recipe], texts: Sequence[str]) -> tuple[Choice, ...]:
    """Choices as a user spells them: "NAME" or "NAME:option=value:option=value".

    Raises:
        ConfigError: An unknown recipe or option, a value out of its range, or one choice twice.
    """
    choices = tuple(_parse(registry, text) for text in texts)
    ids = [choice.id for choice in choices]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice:
        raise ConfigError(f"The recipe {twice!r} is named twice.", "Name each candidate once.")
    return choices


def _parse(registry: Mapping[str, Recipe], text: str) -> Choice:
    name, _, rest = text.strip().partition(":")
    if name not in registry:
        raise ConfigError(f"There is no recipe {name!r}.", f"Choose from: {', '.join(registry)}.")
    recipe = registry[name]
    options = _options(recipe, [part.strip() for part in rest.split(":") if part.strip()])
    changed = [
        f"{field}-{str(getattr(options, field)).lower()}"
        for field in options.__struct_fields__
        if getattr(options, field) != getattr(recipe.options(), field)
    ]
    return Choice(".".join([name, *changed]), recipe, options)


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
