"""Exact copies among the samples of a packed data set: one in train and one in test makes the test too easy.

The indexes hold size and crc32 of every image, so a sort finds them; only images that agree in both are read and compared.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distbranch.data.shards import SplitInfo

COPIES_FILE = "copies.csv"


@dataclass(frozen=True)
class Copy:
    """One of several samples with the same image, byte for byte."""

    split: str
    key: str


def find_copies(folder: Path, splits: Mapping[str, SplitInfo]) -> list[list[Copy]]:
    """The samples with equal images, together, in the order in which they were packed."""
    shards = [
        (name, folder / shard.file, folder / shard.index) for name, split in splits.items() for shard in split.shards
    ]
    alike: dict[bytes, list[Copy]] = {}
    indexes = [np.load(index, allow_pickle=False) for _, _, index in shards]
    for (split, file, _), rows in zip(shards, _equal_sums(indexes), strict=True):
        with file.open("rb") as content:
            for offset, size, _, label_offset, label_size, _ in rows.tolist():
                content.seek(offset)
                image = sha256(content.read(size)).digest()
                content.seek(label_offset)
                key = json.loads(content.read(label_size))["key"]
                alike.setdefault(image, []).append(Copy(split, key))
    return [copies for copies in alike.values() if len(copies) > 1]


def _equal_sums(indexes: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Of every index [n, 6] the rows whose image has the size and the crc32 of another one, in any index."""
    sums = [index[:, 1] << 32 | index[:, 2] for index in indexes]
    values, counts = np.unique(np.concatenate([np.empty(0, np.int64), *sums]), return_counts=True)
    repeated = values[counts > 1]
    return [index[np.isin(own, repeated)] for index, own in zip(indexes, sums, strict=True)]


def count_copies(found: Sequence[Sequence[Copy]]) -> dict[str, int]:
    """How many samples repeat an earlier one, and how many pairs of equal ones lie in different splits."""
    if not found:
        return {}
    num_pairs = 0
    for copies in found:
        per_split = Counter(copy.split for copy in copies)
        num_pairs += comb(len(copies), 2) - sum(comb(count, 2) for count in per_split.values())
    return {"copies": sum(len(copies) - 1 for copies in found), "pairs_across_splits": num_pairs}


def write_copies(folder: Path, found: Sequence[Sequence[Copy]]) -> None:
    """Lists them in a file of the data set: a number per image, then split and key of each of its samples."""
    with (folder / COPIES_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "key"])
        for number, copies in enumerate(found, start=1):
            writer.writerows((number, copy.split, copy.key) for copy in copies)


def copies_sentence(counts: Mapping[str, int]) -> str:
    """What `count_copies` found, for people."""
    said = f"{counts['copies']:,} of the images are exact copies of others"
    pairs = counts["pairs_across_splits"]
    if pairs:
        return f"{said}, and {pairs:,} pair(s) of equal ones lie in different splits, so what is tested was seen in training"
    return f"{said}, all of them in the same split"
