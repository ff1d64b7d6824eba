"""The labels that a classifier's config.json names: a stranger's texts, shown to whoever asks. Pure.

They are counted before transformers reads the file, since it makes a name for each of `num_labels`, however many those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.errors import BadInput

MAX_LABELS = 4_096
MAX_LABEL = 128
"""Characters of one."""


def check_count(count: Any, named: Any) -> None:
    """`num_labels` and `id2label` as the file has them. Generators carry some too, so that only too many are refused here."""
    for found in (count, len(named) if isinstance(named, Mapping) else None):
        if isinstance(found, int) and found > MAX_LABELS:
            raise BadInput(f"config.json: {found} labels, at most {MAX_LABELS} are allowed")


def labels_of(named: Mapping[int, Any], count: int) -> list[str]:
    """In the order of the scores; a number where none is named."""
    if not 1 <= count <= MAX_LABELS:
        raise BadInput(f"config.json: {count} labels, 1 to {MAX_LABELS} are allowed")
    found = [named.get(index, str(index)) for index in range(count)]
    return check_labels([str(label) if isinstance(label, int | float) else label for label in found])


def check_labels(labels: Sequence[Any]) -> list[str]:
    """`BadInput` names the one that isn't printable, empty or too long."""
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            raise BadInput(f"config.json: label {index} isn't a text")
        if not 1 <= len(label) <= MAX_LABEL:
            raise BadInput(f"config.json: label {index} has {len(label)} characters, 1 to {MAX_LABEL} are allowed")
        if not label.isprintable():
            raise BadInput(f"config.json: label {index} {label[:32]!r}: control characters are refused")
    return list(labels)
