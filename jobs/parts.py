"""The parts of the data that a certificate is made of: what they hold, and that they are apart.

Owns reading and refusing. What edge and cloud answer to the items is asked for elsewhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.bundle import Bundle
from edgewise.contracts import Example, Output, Prediction
from edgewise.dataset import digest_examples, digest_items, item_key, load_examples, require_labels
from edgewise.errors import CertificateError, ConfigError, DataError
from edgewise.router.policies.threshold import BY_LABEL

_CHOSEN_ON = {"measurement": "tuning", "gate": "gate"}
"""Attestations that name the data behind a choice, and which part it is."""

PLANNED = "plan"
"""The attestation of a plan; it names every list of items that its choice has looked at."""

_FEW = 0.05
"""Largest share of the tuning items that may be certifying items as well: those are left out."""


@dataclass(frozen=True)
class Part:
    """Items of one part.

    Attributes:
        path: Where they were read from.
        examples: The items.
        groups: The value of each item's group field; None where groups are not asked for or follow from the answers.
    """

    path: Path
    examples: list[Example]
    groups: list[str] | None = None

    @property
    def digest(self) -> str:
        """Identity of the items, their labels and their order."""
        return digest_examples(self.examples)

    @property
    def labels(self) -> list[str]:
        """The truth of each item.

        Raises:
            DataError: The file has no labels.
        """
        return require_labels(self.examples, self.path)

    def only(self, places: Sequence[int]) -> Part:
        """The part with the items at these positions alone."""
        groups = None if self.groups is None else [self.groups[at] for at in places]
        return Part(self.path, [self.examples[at] for at in places], groups)

    @property
    def identities(self) -> tuple[str, str]:
        """Its digest, and the one that neither order nor labels change."""
        return self.digest, digest_items(self.examples)

    @property
    def repeated(self) -> int:
        """Items that equal an earlier one."""
        return len(self.examples) - len({item_key(example.input) for example in self.examples})


@dataclass(frozen=True)
class Answered:
    """A part with what edge and cloud answered to each of its items.

    Attributes:
        part: The items.
        edge: What the edge answered.
        cloud: What the cloud answered.
        agree: Whether two answers, or an answer and a label, say the same.
    """

    part: Part
    edge: list[Prediction]
    cloud: list[Output]
    agree: Callable[[Any, Any], bool] = operator.eq


def load_part(path: Path, *, text_field: str, label_field: str, group_by: str | None = None) -> Part:
    """Read a part.

    Args:
        path: A data file, or a folder of images.
        text_field: Field of the text.
        label_field: Field of the label.
        group_by: Field of the group; None or "label" reads none.

    Raises:
        DataError: It cannot be read, or an item has no group.
    """
    examples = load_examples(path, text_field=text_field, label_field=label_field)
    if group_by is None or group_by == BY_LABEL:
        return Part(path, examples)
    return Part(path, examples, _groups(path, text_field, group_by))


def _groups(path: Path, text_field: str, group_by: str) -> list[str]:
    """The group field is read as a label is: a string or an integer in every row."""
    if path.is_dir():
        raise DataError(f"The images in {path} have no field '{group_by}'.", "Group them by the predicted label.")
    found = [row.label for row in load_examples(path, text_field=text_field, label_field=group_by)]
    named = [group for group in found if group is not None]
    if len(named) != len(found):
        raise DataError(
            f"{path} has no field '{group_by}' to group by.",
            f"Add it to every item, or group by '{BY_LABEL}', the label that the edge model predicts.",
        )
    return named


def group_names(known: Sequence[str], given: Sequence[str], *, closed: bool) -> tuple[str, ...]:
    """The groups, fixed before anybody looks at the certifying part.

    Args:
        known: Labels of the model, or values in the tuning part.
        given: Groups by name; none takes all that are known.
        closed: Whether there can be no others than the known ones.

    Raises:
        ConfigError: A given group is repeated, or there is none of its name.
    """
    repeated = sorted({name for name in given if given.count(name) > 1})
    if repeated:
        raise ConfigError(f"The group {repeated[0]!r} is named twice.", "Name each group once.")
    strange = [name for name in given if name not in known] if closed else []
    if strange:
        raise ConfigError(f"The model has no label {strange[0]!r} to group by.", f"Choose from: {_some(known)}.")
    return tuple(given or known)


def refuse_chosen_on(part: Part, bundle: Bundle) -> None:
    """Refuse the parts that the bundle's own attestations name: a choice that has seen an item may owe itself to it.

    Raises:
        CertificateError: The items are the tuning or the gate part, or a plan chose this bundle on them.
    """
    digests = set(part.identities)
    for attestation in bundle.attestations():
        if attestation.kind == PLANNED and digests & set(attestation.payload.get("chosen_on", ())):
            raise CertificateError(
                f"A plan chose this bundle on the certifying items {part.path}.",
                "It brought a certificate of its own. Another one needs items that the choice has not seen.",
            )
        named = {attestation.payload.get("data_digest"), attestation.payload.get("items_digest")}
        if attestation.kind in _CHOSEN_ON and digests & named:
            raise CertificateError(
                f"The certifying items {part.path} are the {_CHOSEN_ON[attestation.kind]} part, which was used to "
                "choose this bundle.",
                "A certificate holds only for items that no choice has seen: certify on other items, drawn at random.",
            )


def held_apart(tuning: Part, certifying: Part) -> list[int]:
    """Positions of the tuning items that the certifying part does not hold too.

    Any choice of tuning items is as good as another one, as long as no certifying item is among them; and requests that
    repeat, repeat in two random draws as well. Parts that share much were not drawn apart.

    Raises:
        CertificateError: More than 5 % of the tuning items are shared; says how many.
    """
    certifies = {item_key(example.input) for example in certifying.examples}
    kept = [at for at, example in enumerate(tuning.examples) if item_key(example.input) not in certifies]
    shared = len(tuning.examples) - len(kept)
    if shared > _FEW * len(tuning.examples):
        raise CertificateError(
            f"{shared} of the {len(tuning.examples)} tuning items {tuning.path} are certifying items {certifying.path} "
            "too.",
            "Choose and certify on disjoint parts, drawn at random. Remove these items from the tuning part: without "
            "them the certifying part would be no draw of the requests any more.",
        )
    return kept


def shared_note(tuning: Path, certifying: Path, shared: int) -> str:
    """That a few shared items do not take part in choosing."""
    return f"note: {shared} items of {tuning} are in {certifying} too; they are left out of the choice."


def refuse_strange_labels(part: Part, labels: Sequence[str]) -> None:
    """Refuse labels of which the model knows none; some that it does not know are mistakes that it makes.

    Raises:
        DataError: The labels are missing, or are of another kind than the model's.
    """
    given = part.labels
    if not set(given) & set(labels):
        raise DataError(
            f"No label of {part.path} is one of the model's: {given[0]!r} is not among {_some(labels)}.",
            "Give labels as the model says them, or name the field that holds them with --label-field.",
        )


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:8]))
    return shown + (", …" if len(labels) > 8 else "")
