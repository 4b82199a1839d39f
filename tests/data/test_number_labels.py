"""Numbers in a packed data set: their exact mean and deviation, how they are counted, and what `data check` says of them."""

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from distbranch.data.check import check_dataset
from distbranch.data.mixture import merge_datasets
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample, read_dataset
from distbranch.errors import UserError
from distbranch.kinds.digits import write_digits
from distbranch.kinds.label_counts import NumberCounts
from distbranch.tasks import Task

JPEG = simplejpeg.encode_jpeg(np.full((8, 8, 3), 90, np.uint8))
AGE = Task("age", "number", unit="years")
Ages = Mapping[str, Sequence[float | None]]


def pack_ages(folder: Path, ages: Ages, task: Task = AGE) -> DatasetInfo:
    """A data set of one number: {split: its labels}, None where there is none."""
    samples = []
    for split, values in ages.items():
        for number, value in enumerate(values):
            labels = {} if value is None else {"age": value}
            samples.append(Sample(f"{split}-{number}", split, JPEG, labels))
    return pack(samples, folder, [task])


def test_counts_are_exact_in_any_order() -> None:
    draw = random.Random(1)
    values = [draw.gauss(1e6, 1e-3) for _ in range(200)]
    found = []
    for _ in range(3):
        counts = NumberCounts()
        for value in values:
            counts.add(value)
        found.append(counts.to_json())
        draw.shuffle(values)
    assert found[0] == found[1] == found[2]
    assert found[0]["mean"] == statistics.mean(values)
    assert found[0]["deviation"] == pytest.approx(statistics.pstdev(values), rel=1e-14)
    assert (found[0]["min"], found[0]["max"]) == (min(values), max(values))


def test_mean_and_deviation_of_a_task_are_those_of_train(tmp_path: Path) -> None:
    ages: Ages = {"train": [10, 20, None, 60], "val": [1000.5], "test": [None]}
    info = pack_ages(tmp_path / "a", ages)
    assert read_dataset(tmp_path / "a").tasks == info.tasks
    (task,) = info.tasks
    assert (task.mean, task.deviation, task.unit) == (30, statistics.pstdev([10, 20, 60]), "years")
    assert info.splits["train"].labels["age"] == {
        "count": 3, "mean": 30, "deviation": task.deviation, "min": 10, "max": 60, "unlabelled": 1,
    }  # fmt: skip
    assert info.splits["test"].labels["age"] == {"count": 0, "unlabelled": 1}
    assert pack_ages(tmp_path / "a", ages) == info, "it is there already"
    assert check_dataset(tmp_path / "a").problems == []


def test_many_different_numbers_are_few_counts(tmp_path: Path) -> None:
    info = pack_ages(tmp_path / "a", {"train": [number / 7 for number in range(500)]})
    assert len(info.splits["train"].labels["age"]) == 6


def test_a_mean_that_was_given_is_kept(tmp_path: Path) -> None:
    task = Task("age", "number", mean=40.0, deviation=10.0)
    assert pack_ages(tmp_path / "a", {"train": [1, 2]}, task).tasks == (task,)


def test_data_that_are_only_evaluated_have_the_mean_of_all_labels(tmp_path: Path) -> None:
    (task,) = pack_ages(tmp_path / "a", {"val": [1, 3], "test": [5, 7]}).tasks
    assert (task.mean, task.deviation) == (4, pytest.approx(5**0.5))


@pytest.mark.parametrize(
    ("ages", "message"),
    [
        ({"train": [None], "val": [1, 2]}, "'age' has no label in train, so nothing says"),
        ({"train": [5, 5, None], "val": [1, 2]}, "'age' in train are 5, so there is nothing"),
        ({"test": [None, None]}, "'age' has no label, so nothing says"),
        ({"train": [1e9, 1e9 + 3]}, "1000000000 to 1000000003, differ behind the seven digits"),
        ({"train": [1, float("inf")]}, "Sample train-1: the label of 'age' should be a number"),
        ({"train": [1, float("nan")]}, "should be a number, .*found nan"),
        ({"train": [1, 1e39]}, r"should be a number, at most 3.4e\+38, found 1e\+39"),
    ],
)
def test_numbers_that_cannot_be_learnt_are_refused(
    tmp_path: Path, ages: Ages, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pack_ages(tmp_path / "a", ages)
    assert not (tmp_path / "a").exists()


def test_numbers_far_outside_are_told_with_the_first_samples(tmp_path: Path) -> None:
    draw = random.Random(0)
    usual = [draw.gauss(40, 5) for _ in range(300)]
    pack_ages(tmp_path / "a", {"train": usual, "val": [*usual, 999, -999]})
    report = check_dataset(tmp_path / "a")
    assert report.ok
    told = " ".join(report.remarks)
    assert "2 number(s) lie more than 8 deviations from the mean of train (" in told
    assert "years): 999 of 'val-300' (val), -999 of 'val-301' (val). If they stand for" in told


def test_another_mean_and_a_constant_split_are_told(tmp_path: Path) -> None:
    draw = random.Random(0)
    usual = [draw.gauss(40, 5) for _ in range(300)]
    older = [value + 6 for value in usual]
    pack_ages(tmp_path / "a", {"train": usual, "val": older, "test": [40, 40, 40]})
    remarks = check_dataset(tmp_path / "a").remarks
    assert len(remarks) == 2
    assert "Task 'age': its mean in val is 45." in remarks[0] + remarks[1]
    assert "Task 'age': all its numbers in test are 40." in remarks
    pack_ages(tmp_path / "b", {"train": usual, "val": usual[::2], "test": usual[:3]})
    assert check_dataset(tmp_path / "b").remarks == []


def test_counts_of_numbers_of_several_data_sets_are_joined(tmp_path: Path) -> None:
    one = pack_ages(tmp_path / "a", {"train": [10, 20, None]})
    other = pack_ages(tmp_path / "b", {"train": [30, 60]})
    joined = merge_datasets([one, other])
    assert joined.splits["train"].labels["age"] == pytest.approx(
        {"count": 4, "mean": 30, "deviation": 350**0.5, "min": 10, "max": 60, "unlabelled": 1}
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(41944.5, "41,944.5"), (1234567.8, "1,234,568"), (0.0123456789, "0.0123457"), (3.0, "3"), (-5.25, "-5.25"), (2e-9, "2e-09")],
)  # fmt: skip
def test_digits_are_those_that_people_read(value: float, text: str) -> None:
    assert write_digits(value, 6) == text
