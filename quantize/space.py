"""What a search may choose: recipes, transforms and the values of their options, as declared beside each recipe.

Owns the translation between a recipe's option types and an optimiser's dimensions. Builds and measures nothing, and
loads no optimiser: it is handed one trial at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import msgspec

from edgewise.quantize.recipes import Choice, Recipe

Value: TypeAlias = str | int | float | bool


class Trial(Protocol):
    """One suggestion under way, as optuna's `Trial` makes it."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of a few values."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """A number between two, both included."""
        ...


@dataclass(frozen=True)
class Space:
    """The candidates among which a search looks.

    Attributes:
        recipes: Recipes by name; the baseline is not among them.
        transforms: Names of transforms, in the order in which they are applied.
    """

    recipes: Mapping[str, Recipe]
    transforms: tuple[str, ...] = ()

    def suggest(self, trial: Trial) -> Choice | None:
        """The candidate that a trial describes, or None where its options contradict each other.

        Equal parameters give equal candidates.
        """
        recipe = self.recipes[trial.suggest_categorical("recipe", sorted(self.recipes))]
        transforms = tuple(name for name in self.transforms if trial.suggest_categorical(name, [False, True]))
        given = {name: _draw(trial, f"{recipe.name}.{name}", kind) for name, kind in free_options(recipe).items()}
        try:
            return Choice.of(recipe, msgspec.convert(given, recipe.options), transforms)
        except msgspec.ValidationError:
            return None

    def parameters(self, choice: Choice) -> dict[str, Value]:
        """The parameters with which `suggest` gives this candidate back."""
        options = choice.plain_options()
        return {
            "recipe": choice.recipe.name,
            **{name: name in choice.transforms for name in self.transforms},
            **{f"{choice.recipe.name}.{name}": options[name] for name in free_options(choice.recipe)},
        }

    def has(self, choice: Choice) -> bool:
        """Whether a search could propose exactly this candidate."""
        if choice.recipe.name not in self.recipes or not set(choice.transforms) <= set(self.transforms):
            return False
        fixed = set(choice.options.__struct_fields__) - set(free_options(choice.recipe))
        default = choice.recipe.options()
        return all(getattr(choice.options, name) == getattr(default, name) for name in fixed)


def free_options(recipe: Recipe) -> dict[str, msgspec.inspect.Type]:
    """Options of a recipe that a search varies: those of a few values, and numbers between two limits."""
    info = msgspec.inspect.type_info(recipe.options)
    fields = info.fields if isinstance(info, msgspec.inspect.StructType) else ()
    return {field.name: field.type for field in fields if _is_free(field.type)}


def _is_free(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.FloatType):
        return kind.ge is not None and kind.le is not None
    return isinstance(kind, msgspec.inspect.BoolType | msgspec.inspect.LiteralType)


def _draw(trial: Trial, name: str, kind: msgspec.inspect.Type) -> Value:
    if isinstance(kind, msgspec.inspect.BoolType):
        return bool(trial.suggest_categorical(name, [False, True]))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return trial.suggest_categorical(name, list(kind.values))  # type: ignore[no-any-return]  # one of the values
    if isinstance(kind, msgspec.inspect.FloatType) and kind.ge is not None and kind.le is not None:
        return trial.suggest_float(name, float(kind.ge), float(kind.le), step=(kind.le - kind.ge) / STEPS)
    raise TypeError(f"{name} has no few values")


STEPS = 20
"""Parts that the range of a number is divided into: finer steps differ by less than a measurement can tell."""
