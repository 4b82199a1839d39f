"""`check` finds every damage and names shard and sample; a sound data set has no problem."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from packed_samples import picture, tiny_dataset

from distbranch.data.check import check_dataset
from distbranch.data.pack import pack
from distbranch.data.shard_writer import file_sha256, index_shard
from distbranch.data.shards import Sample
from distbranch.errors import UserError
from distbranch.tasks import Task

SHARD = "train-000001.tar"  # samples 5 to 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_dataset(tmp_path / "set")
    return tmp_path / "set"


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    data = json.loads((folder / "dataset.json").read_text())
    change(data)
    (folder / "dataset.json").write_text(json.dumps(data))


def seal(folder: Path) -> None:
    """Makes index and sums of SHARD those of the file as it now is: damage that only its content can show."""
    index = folder / SHARD.replace(".tar", ".index.npy")
    np.save(index, index_shard(folder / SHARD))

    def change(data: dict) -> None:
        shard = data["splits"]["train"]["shards"][1]
        shard["sha256"], shard["index_sha256"] = file_sha256(folder / SHARD), file_sha256(index)
        shard["num_bytes"] = (folder / SHARD).stat().st_size

    edit(folder, change)


def test_a_sound_data_set_has_no_problem(folder: Path) -> None:
    told: list[int] = []
    report = check_dataset(folder, told.append)
    assert report.ok
    assert report.problems == []
    assert (report.num_shards, report.num_samples) == (5, 23)
    assert told == [5, 10, 15, 20, 23]


def test_soft_labels_are_counted_as_they_were_packed(tmp_path: Path) -> None:
    # In float32, as a network sees them, the first is 1 and the second 0.
    labels = (1 - 1e-9, 1e-60, 0.5)
    samples = [
        Sample(str(n), "train", picture(n), {"soft": label}) for n, label in enumerate(labels)
    ]
    pack(samples, tmp_path / "set", [Task("soft")])
    assert check_dataset(tmp_path / "set").problems == []


def test_every_flipped_byte_of_a_shard_is_found(folder: Path) -> None:
    path = folder / SHARD
    whole = path.read_bytes()
    for position in range(0, len(whole), 997):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        problems = check_dataset(folder).problems
        assert (
            problems[0]
            == f"Shard {SHARD}: its bytes were changed (the sha256 differs from dataset.json)."
        )
    path.write_bytes(whole)
    assert check_dataset(folder).ok


def test_a_changed_image_is_named(folder: Path) -> None:
    row = np.load(folder / SHARD.replace(".tar", ".index.npy"))[2]
    content = bytearray((folder / SHARD).read_bytes())
    content[row[0] + 30] ^= 255
    (folder / SHARD).write_bytes(content)
    assert (
        f"Shard {SHARD}, sample photo-0007: its image is not the one that was packed (the crc32 differs)."
        in check_dataset(folder).problems
    )


def test_a_shard_cut_short_is_found(folder: Path) -> None:
    row = np.load(folder / SHARD.replace(".tar", ".index.npy"))[3]
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[: row[0] + 10])
    problems = check_dataset(folder).problems
    assert "bytes, found" in problems[0]
    assert (
        f"Shard {SHARD}, sample photo-0008: the file ends inside or before its image." in problems
    )


def test_a_flipped_header_byte_is_found_though_webdataset_alone_loses_samples_in_silence(
    folder: Path,
) -> None:
    assert len(list(webdataset.WebDataset([str(folder / SHARD)], shardshuffle=False))) == 5
    row = np.load(folder / SHARD.replace(".tar", ".index.npy"))[3]
    content = bytearray((folder / SHARD).read_bytes())
    content[row[0] - 512] ^= 1
    (folder / SHARD).write_bytes(content)
    assert len(list(webdataset.WebDataset([str(folder / SHARD)], shardshuffle=False))) == 3
    assert any(
        "its headers do not lead to the samples" in problem
        for problem in check_dataset(folder).problems
    )


@pytest.mark.parametrize("name", [SHARD, SHARD.replace(".tar", ".index.npy")])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    report = check_dataset(folder)
    assert report.num_problems == 1
    assert report.problems == [f"Shard {SHARD}: the file {name} is absent."]


def test_a_folder_in_place_of_a_shard_is_named(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()
    assert check_dataset(folder).problems == [f"Shard {SHARD}: it cannot be read (Is a directory)."]


def test_an_index_of_another_shard_is_found(folder: Path) -> None:
    shutil.copy(folder / "train-000000.index.npy", folder / "train-000001.index.npy")
    assert check_dataset(folder).problems == [
        f"Shard {SHARD}: its index train-000001.index.npy is not the one that was packed."
    ]


def test_an_image_that_does_not_decode_is_named(folder: Path) -> None:
    row = np.load(folder / SHARD.replace(".tar", ".index.npy"))[1]
    content = bytearray((folder / SHARD).read_bytes())
    content[row[0] : row[0] + row[1]] = bytes(row[1])
    (folder / SHARD).write_bytes(content)
    seal(folder)
    (problem,) = check_dataset(folder).problems
    assert problem.startswith(f"Shard {SHARD}, sample photo-0006: its image cannot be decoded (")


def test_a_label_that_is_none_is_named(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content.replace(b'"even":1', b'"even":7', 1))
    seal(folder)
    (problem,) = check_dataset(folder).problems
    assert (
        problem
        == f"Shard {SHARD}, sample photo-0006: the label of 'even' should be a number from 0 to 1, found 7."
    )


def test_a_key_that_occurs_twice_is_named(folder: Path) -> None:
    def change(data: dict) -> None:
        shards = data["splits"]["train"]["shards"]
        shards[1] = shards[0]

    edit(folder, change)
    problems = check_dataset(folder).problems
    assert problems == [
        f"Shard train-000000.tar, sample {n}: its key 'photo-{n:04d}' occurs a second time."
        for n in range(5)
    ]


def test_counts_that_are_not_those_of_the_shards_are_named(folder: Path) -> None:
    edit(folder, lambda data: data["splits"]["train"]["labels"]["even"].update({"1": 8}))
    assert check_dataset(folder).problems == [
        "Split train, task 'even': dataset.json counts {'1': 8, '0': 9, 'unlabelled': 5}, "
        "the shards hold {'1': 9, '0': 9, 'unlabelled': 5}."
    ]


def test_a_wrong_number_of_samples_is_named(folder: Path) -> None:
    edit(folder, lambda data: data["splits"]["train"].update({"num_samples": 24}))
    assert check_dataset(folder).problems == [
        "Split train: dataset.json says 24 samples, its shards have 23."
    ]


def test_a_remote_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="not on this machine"):
        check_dataset("http://example.org/set")


def test_the_list_of_problems_ends_but_the_count_continues(tmp_path: Path) -> None:
    tasks = [Task("even")]
    pack(
        (Sample(str(n), "train", picture(0, 2, 2), {"even": 1}) for n in range(1200)),
        tmp_path / "set",
        tasks,
    )
    edit(tmp_path / "set", lambda data: data.update({"tasks": [{"name": "odd", "kind": "binary"}]}))
    report = check_dataset(tmp_path / "set")
    assert report.num_problems == 1200
    assert len(report.problems) == 1000
