"""A split in which each class has its share of train, val and test: folds by scikit-learn, of which each split gets some.

Folds leave a class of few images out of some of them, so such a class is moved: first into train, then into the others.
"""

import math
import warnings
from collections import Counter, defaultdict
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

    Unlike those of `source.draw_split` it depends on all samples: one that is added moves others. The only image of a class is in
    the first split, of two one is there and one in another, and of more there is one in every split, whatever the shares. Groups
    keep to that as far as one of them can be moved: a class of one group is in the first split.

    Args:
        classes: of each sample; a missing one is a class like others.
        shares: of the splits; train comes first.
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
        warnings.simplefilter("ignore", UserWarning)  # of rare classes, which are moved below
        for split, (_, chosen) in zip(
            split_of_fold, folds.split(labels, labels, groups), strict=True
        ):
            for sample in chosen:
                splits[sample] = split
    used = [split for split, part in zip(shares, parts, strict=True) if part]
    return _spread_rare_classes(splits, classes, groups or range(len(splits)), used)


def _spread_rare_classes(
    splits: Sequence[str], classes: Sequence[str], groups: Sequence[object], used: Sequence[str]
) -> list[str]:
    """The splits with groups moved until every class is in the first of those `used`, and in the others as far as it can be."""
    split_of = dict(zip(groups, splits, strict=True))
    pairs = dict.fromkeys(zip(classes, groups, strict=True))
    counts = Counter((name, split_of[group]) for name, group in pairs)
    groups_of = defaultdict(list)
    classes_of = defaultdict(list)
    for name, group in pairs:
        groups_of[name].append(group)
        classes_of[group].append(name)

    def is_spare(group: object) -> bool:
        return all(counts[name, split_of[group]] > 1 for name in classes_of[group])

    for split in used:
        for name, own in groups_of.items():
            if counts[name, split]:
                continue
            # From where most are; where some class would be gone, only to the first split.
            ranked = sorted((-counts[name, split_of[one]], at) for at, one in enumerate(own))
            most_first = [own[at] for _, at in ranked]
            group = next((one for one in most_first if split == used[0] or is_spare(one)), None)
            if group is not None:
                counts.subtract((one, split_of[group]) for one in classes_of[group])
                counts.update((one, split) for one in classes_of[group])
                split_of[group] = split
    return [split_of[group] for group in groups]
