"""A split in which each class has its share of train, val and test: folds by scikit-learn, of which each split gets some."""

import math
import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from distbranch.errors import UserError

MAX_FOLDS = 100  # whole per cents


def draw_stratified_splits(
    classes: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    *,
    groups: Sequence[str] | None = None,
) -> list[str]:
    """The split of every sample.

    Unlike those of `source.draw_split` it depends on all samples: one that is added moves others. A class of fewer images than
    folds (10 for shares of 0.8, 0.1 and 0.1) may be absent from a small split.

    Args:
        classes: of each sample; a missing one is a class like others.
        shares: of the splits.
        seed: shuffles.
        groups: of each sample, if those of one group must stay together.

    Raises:
        UserError: shares that are no whole per cents, too few images, or too few groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    total = sum(shares.values())
    parts = [Fraction(share / total).limit_denominator(MAX_FOLDS) for share in shares.values()]
    num_folds = math.lcm(2, *(part.denominator for part in parts))
    if num_folds > MAX_FOLDS or sum(parts) != 1:
        raise UserError(f"shares of {MAX_FOLDS} folds were expected, found {list(shares.values())}")
    labels = np.unique(np.array(classes), return_inverse=True)[1]
    if groups is None:
        folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
        num_units = int(np.bincount(labels).max())
        unit = "images in the largest class"
    else:
        folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        num_units = len(set(groups))
        unit = "groups"
    if num_units < num_folds:
        raise UserError(f"{num_folds} folds make these shares, and there are {num_units:,} {unit}")

    split_of_fold = [
        split
        for split, part in zip(shares, parts, strict=True)
        for _ in range(int(part * num_folds))
    ]
    splits = [""] * len(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes, of which `data check` tells
        for split, (_, chosen) in zip(
            split_of_fold, folds.split(labels, labels, groups), strict=True
        ):
            for sample in chosen:
                splits[sample] = split
    return splits
