"""Which labels the maps of a split have: samples and pixels with one, pixels of every class, how depth is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distbranch.kinds.label_counts import Counts, merge_class_counts

if TYPE_CHECKING:
    from distbranch.kinds.dense import DenseKind
    from distbranch.kinds.depth import Depth
    from distbranch.tasks import Task

PERCENTS = (0, 1, 5, 25, 50, 75, 95, 99, 100)  # of labelled pixels, for the quantiles of depth
QUANTILES = tuple(f"{percent} %" for percent in PERCENTS)
PIXELS_OF = "pixels of "
DECIMALS = 6  # of quantiles: finer than any code


class MapCounts:
    """Samples with a labelled pixel, and those pixels: {"count": 2400, "pixels": 29491200}."""

    def __init__(self, kind: DenseKind) -> None:
        self._kind = kind
        self.num_labelled = 0
        self._num_pixels = 0

    def add(self, value: Any) -> None:
        """Count the codes of a sample, [H, W] or [H, W, C]."""
        labelled = value[self._kind.find_labelled(value)]
        self.num_labelled += len(labelled) > 0
        self._num_pixels += len(labelled)
        self._add_pixels(labelled)

    def to_json(self) -> dict[str, int | float]:
        """The counts by name."""
        return {"count": self.num_labelled, "pixels": self._num_pixels}

    def _add_pixels(self, codes: Any) -> None:
        """Count the codes of labelled pixels, [n] or [n, C]."""


class ClassPixelCounts(MapCounts):
    """With the pixels of every class: {"count": 2400, "pixels": 29491200, "pixels of wall": 9210033, ...}."""

    def __init__(self, kind: DenseKind, task: Task) -> None:
        super().__init__(kind)
        self._classes = task.classes
        self._pixels = np.zeros(len(task.classes), dtype=np.int64)

    def to_json(self) -> dict[str, int | float]:
        """The counts by name."""
        of_classes = zip(self._classes, self._pixels.tolist(), strict=True)
        named = {f"{PIXELS_OF}{name}": number for name, number in of_classes}
        return super().to_json() | named

    def _add_pixels(self, codes: Any) -> None:
        self._pixels += np.bincount(codes, minlength=len(self._classes))


class DepthCounts(MapCounts):
    """With quantiles in metres or pixels of disparity: {"count": ..., "pixels": ..., "0 %": 0.71, "1 %": 0.92, ...}.

    A histogram of all codes makes them exact, in whatever order samples come.
    """

    def __init__(self, kind: Depth, task: Task) -> None:
        super().__init__(kind)
        self._task = task
        self._depth = kind
        self._pixels = np.zeros(kind.largest_code + 1, dtype=np.int64)

    def to_json(self) -> dict[str, int | float]:
        """The counts by name; without quantiles where there is no label."""
        counts = super().to_json()
        ends = self._pixels.cumsum()
        if ends[-1]:
            places = np.asarray(PERCENTS) * (ends[-1] - 1) // 100
            codes = np.searchsorted(ends, places, side="right")
            values = self._depth.load_codes(self._task, codes.astype(np.uint16)).tolist()
            for name, value in zip(QUANTILES, values, strict=True):
                counts[name] = round(value, DECIMALS)
        return counts

    def _add_pixels(self, codes: Any) -> None:
        self._pixels += np.bincount(codes, minlength=len(self._pixels))


def read_class_pixels(task: Task, counts: Counts) -> list[int]:
    """The labelled pixels of every class of a segmentation, in the order of its classes."""
    return [int(counts.get(f"{PIXELS_OF}{name}", 0)) for name in task.classes]


def read_quantiles(counts: Counts) -> list[float]:
    """The quantiles of depth at PERCENTS; none where there is no label."""
    return [float(counts[name]) for name in QUANTILES if name in counts]


def merge_depth_counts(parts: Sequence[Counts]) -> dict[str, int | float]:
    """The sums, and the quantiles of all parts, as if depth lay evenly between those of each part."""
    merged = merge_class_counts(parts)
    for name in QUANTILES:
        merged.pop(name, None)
    known = [part for part in parts if part.get("pixels")]
    if known:
        quantiles = [read_quantiles(part) for part in known]
        values = np.unique(np.concatenate(quantiles))
        below = np.zeros(len(values))  # how many pixels are at most as far
        for part, own in zip(known, quantiles, strict=True):
            below += part["pixels"] * np.interp(values, own, PERCENTS, left=0, right=100)
        wanted = np.asarray(PERCENTS) * merged["pixels"]
        found = np.interp(wanted, below, values).tolist()
        merged |= {
            name: round(value, DECIMALS) for name, value in zip(QUANTILES, found, strict=True)
        }
    return merged
