"""Which labels a split has: how often each class occurs, or mean, deviation and range of numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Counts = Mapping[str, int | float]
STEP_BITS = 1074  # the smallest float64 is 2**-1074


class LabelCounts(Protocol):
    """Counts the labels of one task, sample by sample."""

    @property
    def num_labelled(self) -> int:
        """Labels so far."""
        ...

    def add(self, value: Any) -> None:
        """Count a label as it stands in a packed sample."""
        ...

    def to_json(self) -> dict[str, int | float]:
        """What `dataset.json` says, without `unlabelled`."""
        ...


class ClassCounts:
    """How often every class occurs: {"red": 20, "green": 7}; those of a share are "1", "0" and "soft"."""

    def __init__(self, classes: Iterable[str]) -> None:
        self._counts: dict[str, int | float] = dict.fromkeys(classes, 0)

    @property
    def num_labelled(self) -> int:
        """Labels so far."""
        return int(sum(self._counts.values()))

    def add(self, value: Any) -> None:
        """Count a class by its name, or a share."""
        name = value
        if not isinstance(value, str):
            name = str(int(value)) if value in (0, 1) else "soft"
        self._counts[name] = self._counts.get(name, 0) + 1

    def to_json(self) -> dict[str, int | float]:
        """The counts by class."""
        return dict(self._counts)


@dataclass
class NumberCounts:
    """Mean, deviation (of all, not of a sample) and range of numbers.

    The sums are whole numbers of the smallest step that float64 has: exact, so that no order of the samples changes a bit.
    """

    num_labelled: int = 0
    total: int = 0  # in steps of 2**-STEP_BITS
    squares: int = 0  # in steps of 2**-(2 * STEP_BITS)
    least: float = math.inf
    largest: float = -math.inf

    def add(self, value: Any) -> None:
        """Count a number."""
        number = float(value)
        numerator, denominator = number.as_integer_ratio()  # a power of two
        steps = numerator << (STEP_BITS + 1 - denominator.bit_length())
        self.num_labelled += 1
        self.total += steps
        self.squares += steps * steps
        self.least = min(self.least, number)
        self.largest = max(self.largest, number)

    def to_json(self) -> dict[str, int | float]:
        """{"count", "mean", "deviation", "min", "max"}; the count alone where there are no labels."""
        count = self.num_labelled
        if not count:
            return {"count": 0}
        # Python rounds a quotient of whole numbers once, however long they are.
        variance = (count * self.squares - self.total**2) / (count**2 << 2 * STEP_BITS)
        return {
            "count": count,
            "mean": self.total / (count << STEP_BITS),
            "deviation": math.sqrt(variance),
            "min": self.least,
            "max": self.largest,
        }


def merge_class_counts(parts: Sequence[Counts]) -> dict[str, int | float]:
    """The sums by class."""
    merged: Counter[str] = Counter()
    for part in parts:
        merged.update(part)
    return dict(merged)


def merge_number_counts(parts: Sequence[Counts]) -> dict[str, int | float]:
    """Mean, deviation and range of the numbers of all parts (Chan et al., 1979)."""
    unlabelled = {"unlabelled": int(sum(part.get("unlabelled", 0) for part in parts))}
    known = [part for part in parts if part.get("count")]
    count = sum(part["count"] for part in known)
    if not count:
        return {"count": 0, **unlabelled}
    mean = sum(part["count"] * part["mean"] for part in known) / count
    squares = sum(
        part["count"] * (part["deviation"] ** 2 + (part["mean"] - mean) ** 2) for part in known
    )
    return {
        "count": count,
        "mean": mean,
        "deviation": math.sqrt(squares / count),
        "min": min(part["min"] for part in known),
        "max": max(part["max"] for part in known),
        **unlabelled,
    }
