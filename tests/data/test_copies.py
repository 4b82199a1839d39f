"""Exact copies among samples are found wherever they lie, told, and listed by name."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packed_samples import picture

from distbranch.data.check import check_dataset
from distbranch.data.pack import COPIES_FILE, Copy, count_copies, describe_copies, find_copies, pack
from distbranch.data.shards import Sample, read_dataset
from distbranch.data.sources import pack_source
from distbranch.data.sources.source import Source
from distbranch.tasks import Task

TASKS = [Task("a")]
SPLITS = ("train", "val", "test")


def samples(numbers: dict[str, list[int]]) -> Iterator[Sample]:
    """Samples of pictures by their numbers; the same number is the same picture."""
    for split, listed in numbers.items():
        for at, number in enumerate(listed):
            yield Sample(f"{split}/{at}", split, picture(number), {"a": 1})


def listed(folder: Path) -> list[list[str]]:
    with (folder / COPIES_FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_copies_are_found_in_one_shard_in_several_and_in_several_splits(tmp_path: Path) -> None:
    numbers = {"train": [1, 2, 3, 1, 4, 2], "val": [5, 2], "test": [6, 7, 4]}
    info = pack(samples(numbers), tmp_path / "set", TASKS, shard_samples=2)
    assert find_copies(tmp_path / "set", info.splits) == [
        [Copy("train", "train/0"), Copy("train", "train/3")],
        [Copy("train", "train/1"), Copy("train", "train/5"), Copy("val", "val/1")],
        [Copy("train", "train/4"), Copy("test", "test/2")],
    ]
    assert (
        info.copies
        == {"copies": 4, "pairs_across_splits": 3}
        == read_dataset(tmp_path / "set").copies
    )
    assert listed(tmp_path / "set") == [
        ["image", "split", "key"],
        ["1", "train", "train/0"],
        ["1", "train", "train/3"],
        ["2", "train", "train/1"],
        ["2", "train", "train/5"],
        ["2", "val", "val/1"],
        ["3", "train", "train/4"],
        ["3", "test", "test/2"],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_comparing_every_two_samples(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    numbers = {split: draw.integers(0, 30, size=draw.integers(1, 20)).tolist() for split in SPLITS}
    info = pack(samples(numbers), tmp_path / "set", TASKS, shard_samples=3)
    every = [(split, number) for split, listed in numbers.items() for number in listed]
    repeated = sum(
        number in [other for _, other in every[:at]] for at, (_, number) in enumerate(every)
    )
    pairs = sum(a[1] == b[1] and a[0] != b[0] for at, a in enumerate(every) for b in every[:at])
    expected = {"copies": repeated, "pairs_across_splits": pairs} if repeated else {}
    assert count_copies(find_copies(tmp_path / "set", info.splits)) == expected == info.copies


def test_images_that_differ_in_one_byte_are_no_copies_and_without_copies_there_is_no_list(
    tmp_path: Path,
) -> None:
    one = picture(1)
    others = [Sample(str(n), "train", one[:-2] + bytes([n]) + one[-2:], {"a": 1}) for n in range(9)]
    info = pack(others, tmp_path / "set", TASKS)
    assert info.copies == {}
    assert not (tmp_path / "set" / COPIES_FILE).exists()


def test_packing_warns_of_copies_each_time_and_checking_names_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def source() -> Source:
        return Source(
            tuple(TASKS), samples({"train": [1, 2], "val": [2], "test": [3]}), {"source": "test"}
        )

    for _ in range(2):  # packed, and found to be packed already
        caplog.clear()
        pack_source(source(), tmp_path / "set")
        assert (
            "1 of the images are exact copies of others, and 1 pair(s) of equal ones lie in different"
            in caplog.text
        )
        assert str(tmp_path / "set" / COPIES_FILE) in caplog.text
    report = check_dataset(tmp_path / "set")
    assert report.ok
    assert report.copies == [[Copy("train", "train/1"), Copy("val", "val/0")]]


def test_copies_within_a_split_are_told_as_such() -> None:
    assert describe_copies({"copies": 60, "pairs_across_splits": 0}).endswith(
        "all of them in the same split"
    )
