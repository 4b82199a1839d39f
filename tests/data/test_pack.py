"""A packed folder is whole or absent, its bytes depend on the samples only, and packing takes no memory for a sample."""

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import webdataset
from packed_samples import picture, tiny_dataset

from distbranch.data.pack import pack
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import BadSample, Sample, parse_labels, read_dataset
from distbranch.errors import UserError
from distbranch.tasks import Task

TASKS = [Task("round"), Task("colour", "categorical", ("red", "blue"))]


def sample(number: int, split: str = "train", **labels: Any) -> Sample:
    return Sample(
        f"photo-{number}", split, picture(number), labels or {"round": number % 2, "colour": "red"}
    )


def files(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def test_what_is_packed_is_what_is_read(tmp_path: Path) -> None:
    samples = [sample(n, ("train", "val", "test")[n % 3]) for n in range(10)]
    info = pack(
        samples,
        tmp_path / "set",
        TASKS,
        groups={"form": ["round"]},
        source={"made": "by hand"},
        shard_samples=3,
    )
    assert read_dataset(tmp_path / "set") == info
    assert info.image_size == (32, 40)
    assert info.groups == {"form": ("round",)}
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 4,
        "val": 3,
        "test": 3,
    }
    assert [shard.num_samples for shard in info.splits["train"].shards] == [3, 1]
    assert info.splits["train"].labels["round"] == {"1": 2, "0": 2, "unlabelled": 0}
    assert info.splits["train"].labels["colour"] == {"red": 4, "blue": 0, "unlabelled": 0}
    for name, split in info.splits.items():
        urls = [str(tmp_path / "set" / shard.file) for shard in split.shards]
        read = list(webdataset.WebDataset(urls, shardshuffle=False))
        expected = [one for one in samples if one.split == name]
        assert [one["__key__"] for one in read] == [one.key for one in expected]
        assert [one["jpg"] for one in read] == [one.image for one in expected]
        assert [json.loads(one["json"]) for one in read] == [
            {"key": o.key, "labels": o.labels} for o in expected
        ]


def test_an_index_points_at_the_bytes_of_every_sample(tmp_path: Path) -> None:
    info = pack([sample(n) for n in range(4)], tmp_path / "set", TASKS)
    (shard,) = info.splits["train"].shards
    content = (tmp_path / "set" / shard.file).read_bytes()
    for number, row in enumerate(np.load(tmp_path / "set" / shard.index)):
        assert content[row[0] : row[0] + row[1]] == picture(number)
        assert json.loads(content[row[3] : row[3] + row[4]])["key"] == f"photo-{number}"


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "one")
    tiny_dataset(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_long_names_and_names_in_any_script_survive(tmp_path: Path) -> None:
    keys = ["a/" * 60 + "deep", "x" * 180, "Größe 3/фото"]
    pack([Sample(key, "train", picture(0), {"round": 1}) for key in keys], tmp_path / "set", TASKS)
    read = webdataset.WebDataset([str(tmp_path / "set" / "train-000000.tar")], shardshuffle=False)
    assert [one["__key__"] for one in read] == keys


def test_packing_again_from_the_same_source_reads_no_sample(tmp_path: Path) -> None:
    first = pack(
        [sample(1)], tmp_path / "set", TASKS, source={"table": tmp_path / "t.csv", "size": (3, 4)}
    )
    (tmp_path / ".set.lock").unlink()

    def never() -> Iterator[Sample]:
        raise AssertionError("a sample was read")
        yield

    again = pack(
        never(), tmp_path / "set", TASKS, source={"table": tmp_path / "t.csv", "size": (3, 4)}
    )
    assert again == first
    assert not (tmp_path / ".set.lock").exists(), "a data set may lie where nothing can be written"


def test_a_data_set_packed_before_there_was_an_option_is_the_one_packed_without_it(
    tmp_path: Path,
) -> None:
    first = pack([sample(1)], tmp_path / "set", TASKS, source={"images": "photos"})
    again = pack([], tmp_path / "set", TASKS, source={"images": "photos", "bits": None})
    assert again == first
    with pytest.raises(UserError, match="another source"):
        pack([], tmp_path / "set", TASKS, source={"images": "photos", "bits": 12})


def test_a_target_that_holds_anything_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty.*no packed data set"):
        pack([sample(1)], tmp_path / "other", TASKS)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years of work"
    pack([sample(1)], tmp_path / "set", TASKS, source={"seed": 1})
    before = files(tmp_path / "set")
    with pytest.raises(UserError, match="another source"):
        pack([sample(1)], tmp_path / "set", TASKS, source={"seed": 2})
    assert files(tmp_path / "set") == before
    (tmp_path / "set" / "train-000000.tar").unlink()
    with pytest.raises(UserError, match=r"its shard train-000000.tar is missing"):
        pack([sample(1)], tmp_path / "set", TASKS, source={"seed": 1})


def test_an_empty_folder_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert pack([sample(1)], tmp_path / "set", TASKS).num_samples == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample(1), "Two samples have the key 'photo-1'"),
        (sample(2, "training"), "split should be one of train, val, test, found 'training'"),
        (
            sample(2, round=7),
            "Sample photo-2: the label of 'round' should be a number from 0 to 1, found 7",
        ),
        (sample(2, round=float("nan")), "from 0 to 1, found nan"),
        (sample(2, colour="green"), "should be one of its 2 classes, found 'green'"),
        (sample(2, shape=1), "a label of 'shape', which is no task"),
        (Sample("a.b", "train", picture(1), {}), "The key 'a.b' cannot name a sample"),
        (Sample("", "train", picture(1), {}), "The key '' cannot name a sample"),
    ],
)
def test_a_bad_sample_stops_packing_and_leaves_nothing(
    tmp_path: Path, bad: Sample, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pack([sample(1), bad], tmp_path / "set", TASKS)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_the_first_image_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Sample a: it is not an image"):
        pack([Sample("a", "train", b"no image", {})], tmp_path / "set", TASKS)


def test_no_sample_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a single sample"):
        pack([], tmp_path / "set", TASKS)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match=r"cannot be written to .*set: No space left on device"):
        pack([sample(1), sample(2, "val")], tmp_path / "set", TASKS)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_target_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        pack([sample(1)], tmp_path / "file" / "set", TASKS)


def test_what_a_killed_packing_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".set.partial").mkdir()
    (tmp_path / ".set.partial" / "train-000000.tar").write_bytes(b"half")
    pack([sample(1)], tmp_path / "set", TASKS)
    assert not (tmp_path / ".set.partial").exists()


def test_progress_is_told_and_ends_with_all_samples(tmp_path: Path) -> None:
    told: list[int] = []
    pack([sample(n) for n in range(250)], tmp_path / "set", TASKS, progress=told.append)
    assert told == [100, 200, 250]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a packed data set, which is a folder with a dataset.json"),
        ("{", "is damaged, it is no longer the JSON of a distbranch-dataset"),
        ("[]", "is not the description of a packed data set"),
        (
            '{"format": "distbranch-dataset", "version": 9}',
            "in version 1 to 3, found distbranch-dataset in version 9",
        ),
        ('{"format": "distbranch-dataset", "version": 1}', "is damaged: tasks: Field required"),
    ],
)
def test_a_description_that_is_no_description_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path)


def test_a_protocol_nobody_knows_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"cannot be read .*Protocol not known"):
        read_dataset("nosuch://place/set")


class NoCredentialsError(Exception):
    """As botocore's, which is no OSError."""


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (NoCredentialsError("Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
        (PermissionError("Forbidden"), "credentials"),
        (RuntimeError("out of\norder."), r"out of order\.\)"),
    ],
)
def test_whatever_a_store_raises_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, hint: str
) -> None:
    monkeypatch.setattr("fsspec.open", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=rf"^s3://bucket/set/dataset.json cannot be read .*{hint}"):
        read_dataset("s3://bucket/set")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not JSON with a field 'labels'"),
        (b"[1]", "not JSON with a field 'labels'"),
        (
            b'{"labels": {"round": "yes"}}',
            "the label of 'round' should be a number from 0 to 1, found 'yes'",
        ),
        (b'{"labels": {"colour": 1}}', "should be one of its 2 classes, found 1"),
        (b'{"labels": {"round": 1, "shape": 0}}', "a label of 'shape', which is no task"),
    ],
)
def test_a_bad_label_file_is_named(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_labels(content, TASKS)


def test_a_bad_sample_names_shard_and_sample_also_in_another_process() -> None:
    bad = BadSample("corrupt", "a.tar", 3, "its image is gone.")
    assert (
        str(pickle.loads(pickle.dumps(bad)))
        == str(bad)
        == "Shard a.tar, sample 3: its image is gone."
    )


def test_labels_become_numbers_and_gaps_nan() -> None:
    labels = parse_labels(b'{"key": "a", "labels": {"colour": "blue"}}', TASKS)
    assert np.isnan(labels[0])
    assert labels[1] == 1
    assert labels.dtype == np.float32


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    script = """
import resource, sys
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.tasks import Task

image = bytes.fromhex(sys.argv[2])
def packed(num_samples):
    samples = (Sample(f"{n:07d}", "train", image, {"even": n % 2}) for n in range(num_samples))
    pack(samples, f"{sys.argv[1]}/{num_samples}", [Task("even")])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(-(packed(1_000) - packed(11_000)))
"""
    arguments = [str(tmp_path), picture(1, 4, 4).hex()]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 6  # MiB for 10,000 samples; their tar files have 20


def test_a_class_that_is_called_like_what_counts_samples_without_a_label_is_refused(
    tmp_path: Path,
) -> None:
    task = Task("colour", "categorical", ("red", "unlabelled"))
    with pytest.raises(UserError, match="'colour' has a class called 'unlabelled'"):
        pack([sample(0, colour="red")], tmp_path / "set", [task])
    assert not (tmp_path / "set").exists()


def test_an_option_that_came_later_and_is_not_used_makes_no_other_data_set(tmp_path: Path) -> None:
    before = pack([sample(0)], tmp_path / "set", TASKS, source={"source": "csv", "table": "t.csv"})
    later = {"source": "csv", "table": "t.csv", "tags": [], "minus_one": {}, "encoding": None}
    assert pack([], tmp_path / "set", TASKS, source=later) == before
    with pytest.raises(UserError, match="packed from another source"):
        pack([], tmp_path / "set", TASKS, source={**later, "minus_one": {"*": "no"}})
