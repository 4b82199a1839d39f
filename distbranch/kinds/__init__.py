"""Kinds of tasks: `kind.py` says what one must bring, and every other file is one of them."""

from distbranch.kinds import (  # noqa: F401  # each registers itself
    binary,
    categorical,
    depth,
    heat,
    normals,
    number,
    ordinal,
    segmentation,
)
from distbranch.kinds.kind import (
    KINDS,
    UNIT_OF_TASK,
    Answer,
    Kind,
    LabelValue,
    Loss,
    Metric,
    Metrics,
)

__all__ = [
    "KINDS",
    "UNIT_OF_TASK",
    "Answer",
    "Kind",
    "LabelValue",
    "Loss",
    "Metric",
    "Metrics",
]
