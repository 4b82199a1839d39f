"""Balanced sampling: how often a sample is shown in an epoch, so that classes are as frequent as `data.balance` asks.

Drawn with replacement, samples would come from any shard at any time, and the 30,000th would be known only after all before it.
So an epoch stays one way through the shards, as long as ever, on which a sample comes never, once or several times (repeat
factors, as in LVIS: Gupta et al. 2019): whole shards are still read one after the other, and a sample's place is arithmetic.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

import numpy as np

from distbranch.config import DataConfig
from distbranch.data.cache import Cache
from distbranch.data.plan import Balance, Floats, Ints
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shards import BadSample, DatasetInfo
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.kinds.binary import count_classes
from distbranch.kinds.label_counts import Counts
from distbranch.registry import find_near
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")
UNLABELLED = -1
_MOST_ROUNDS = 200
_PRECISION = 1e-4  # of a class's share, relative; samples are whole, so that a finer one would show in no epoch


def check_balance(powers: Mapping[str, float], info: DatasetInfo) -> None:
    """Refuse tasks that there are not, that have no classes, or of which the training samples have one class alone.

    Raises:
        UserError: one sentence.
    """
    known = {task.name: task for task in info.tasks}
    counts = info.splits["train"].labels
    for name in powers:
        if name not in known:
            raise UserError(
                f"data.balance should name tasks of {info.path}, found '{name}'. The nearest of its {len(known)} are: "
                f"{', '.join(find_near(name, known)[:8])}."
            )
        if not _has_classes(known[name]):
            raise UserError(
                f"data.balance should name tasks with classes, found '{name}', whose kind is {known[name].kind}: leave it out."
            )
        if count_classes(counts[name]) < 2:
            raise UserError(
                f"data.balance names '{name}', of which the training samples of {info.path} have fewer than two classes: leave it out."
            )


def _run_here(work: Callable[[], Any]) -> Any:
    return work()


def read_balances(
    data: DataConfig,
    info: DatasetInfo,
    cache: Cache | None,
    run_once: Callable[[Callable[[], Any]], Any] = _run_here,
) -> list[Balance | None]:
    """How the training samples of every data set are balanced, each by itself; None where it lacks the tasks.

    All label files are read for it, some 10,000 a second. Those that cannot be read count as unlabelled here: the loader
    says so, or leaves them out.

    Args:
        data: says what is balanced.
        info: a data set, or several as one.
        cache: of data sets at a URL.
        run_once: gives all processes of a run what one of them finds; it is called shard by shard, so that none waits long.
    """
    found: list[Balance | None] = []
    for member in info.members:
        balanced = [task for task in member.tasks if data.balance.get(task.name)]
        if not balanced:
            found.append(None)
            continue
        classes = _read_classes(member, balanced, cache, run_once)
        rows, groups, sizes = np.unique(classes, axis=0, return_inverse=True, return_counts=True)
        powers = [data.balance[task.name] for task in balanced]
        # Other machines would have other rates in the last bit.
        rates = run_once(partial(_ask_rates, rows, sizes, powers, member.path))
        found.append(Balance(groups.reshape(-1), rates))
    return found


def raise_rare_classes(counts: Floats, power: float) -> Floats:
    """The frequencies [K] that are asked for: the power 0 leaves the counts as they are, 1 makes them equal; their sum stays."""
    # Of a class that never occurs 0 ** 0 would make one.
    wanted = np.where(counts > 0, counts ** (1 - power), 0)
    sums: Floats = wanted * (counts.sum() / max(wanted.sum(), 1))
    return sums


def find_rates(classes: Ints, sizes: Ints, powers: Sequence[float]) -> tuple[Floats, float]:
    """How often samples of each group come [G], and by how much, relative, the frequency of some class misses what was asked.

    classes: [G, B] of B tasks, UNLABELLED where there is none: such samples keep their share; sizes: [G] samples.
    Several tasks get their frequencies at once by raking (Deming and Stephan, 1940): of all ways to weigh the groups the one
    that is nearest to the data.
    """
    totals = sizes.astype(np.float64)
    wanted = []
    for column, power in zip(classes.T, powers, strict=True):
        counts = np.bincount(column + 1, sizes).astype(np.float64)
        wanted.append(np.append(counts[:1], raise_rare_classes(counts[1:], power)))
    missed = 1.0
    rounds = 0
    while missed > _PRECISION and rounds < _MOST_ROUNDS:
        missed = 0.0
        for column, asked in zip(classes.T, wanted, strict=True):
            factors = (asked / np.bincount(column + 1, totals).clip(min=1e-12))[column + 1]
            missed = max(missed, np.abs(factors - 1).max())
            totals *= factors
        rounds += 1
    # In float32, so that another machine, whose powers differ in the last bit of a float64, has the same ones.
    rates = (totals / sizes).astype(np.float32)
    return rates.astype(np.float64), missed


def _ask_rates(classes: Ints, sizes: Ints, powers: Sequence[float], place: str) -> Floats:
    rates, missed = find_rates(classes, sizes, powers)
    if missed > _PRECISION:
        logger.warning(
            "The frequencies of data.balance cannot all be had at once in %s: some class comes %.0f %% more or less often than "
            "asked. Name fewer tasks, or give lower powers.",
            place,
            100 * missed,
        )
    return rates


def describe_balance(counts: Counts, power: float) -> str:
    """How frequent classes are, and are asked to be, the rarest first: `hat 1.2 % -> 50.0 %, none 98.8 % -> 50.0 %`."""
    found = {name: count for name, count in counts.items() if count and name != "unlabelled"}
    if "soft" in found:  # on which side of 0.5 they lie is not counted
        return f"power {power:g}"
    names = sorted(found, key=found.__getitem__)
    before = np.array([found[name] for name in names], dtype=np.float64)
    after = raise_rare_classes(before, power)
    shares = [
        f"{name} {100 * old:.1f} % -> {100 * new:.1f} %"
        for name, old, new in zip(names, before / before.sum(), after / before.sum(), strict=True)
    ]
    if len(shares) > 4:
        shares[2:-2] = ["..."]
    return ", ".join(shares)


def _read_classes(
    info: DatasetInfo,
    balanced: Sequence[Task],
    cache: Cache | None,
    run_once: Callable[[Callable[[], Any]], Any],
) -> Ints:
    """The class of every training sample for every task [N, B], in the order of the shards."""
    columns = [info.tasks.index(task) for task in balanced]
    source = ShardSource.from_split(info, "train")
    with closing(ShardReader([source], cache, max_open=1)) as reader:
        labels = np.concatenate(
            [
                run_once(partial(_read_shard, reader, number, shard.num_samples, info, columns))
                for number, shard in enumerate(source.shards)
            ]
        )
    for column, task in enumerate(balanced):
        if KINDS[task.kind].is_share:
            # Soft labels are yes from 0.5 on; a comparison would make "no" of what is unlabelled.
            labels[:, column] = np.floor(labels[:, column] + 0.5)
    classes: Ints = np.nan_to_num(labels, nan=UNLABELLED).astype(np.int64)
    return classes


def _read_shard(
    reader: ShardReader, number: int, num_samples: int, info: DatasetInfo, columns: Sequence[int]
) -> Floats:
    """The labels of a shard [num_samples, B]; NaN where there is none, or it cannot be read."""
    labels = np.full((num_samples, len(columns)), np.nan)
    for sample in range(num_samples):
        with suppress(BadSample):
            labels[sample] = reader.open_shard(number).read_labels(sample, info.tasks)[columns]
    return labels


def _has_classes(task: Task) -> bool:
    return not task.is_dense and (bool(task.classes) or KINDS[task.kind].is_share)
