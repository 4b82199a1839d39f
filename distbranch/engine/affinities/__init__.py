"""Kinds of affinity measured on a network: `kind.py` says what one brings, `measure.py` runs them, every other file is one."""

from distbranch.engine.affinities import (  # noqa: F401  # each registers itself
    gradient_cosine,
    importance,
    look_ahead,
)
from distbranch.engine.affinities.kind import MEASURED, MeasuredAffinity, MeasuredKind

__all__ = ["MEASURED", "MeasuredAffinity", "MeasuredKind"]
