"""The benchmark of reading: both readers see the same samples, and its pictures are as large as photographs are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_data as bench_of_data
import pytest
import torch
from bench_data import OURS, PHOTO_SIZE, PLAIN, bench_data, pack_photographs
from benchmark_runs import run_benchmark
from plain_reading import plain_batches
from tiny_world import assert_one_sentence

from distbranch.data.loader import eval_loader
from distbranch.data.shards import DatasetInfo, join, read_dataset
from distbranch.errors import UserError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return pack_photographs(tmp_path_factory.mktemp("photographs") / "set", 40)


def test_the_pictures_are_of_the_size_of_photographs(photographs: DatasetInfo) -> None:
    (shard,) = photographs.splits["train"].shards
    assert photographs.image_size == PHOTO_SIZE
    assert 7_000 < shard.num_bytes / 40 < 20_000


def test_plain_reading_gives_the_labels_of_the_loader_and_nearly_its_pixels(
    photographs: DatasetInfo,
) -> None:
    files = [join(photographs.path, shard.file) for shard in photographs.splits["train"].shards]
    images, labels = next(
        plain_batches(files, photographs.tasks, image_size=(64, 64), batch_size=40)
    )
    batch = next(eval_loader(photographs, "train", batch_size=40, image_size=(64, 64)))
    assert torch.equal(labels, batch.labels)
    assert images.shape == batch.images.shape
    difference = (images.float() - batch.images.float()).abs()
    assert difference.mean() < 3


def test_categorical_and_missing_labels_are_read_too(tiny_data: Path) -> None:
    info = read_dataset(tiny_data)
    files = [join(info.path, shard.file) for shard in info.splits["val"].shards]
    images, labels = next(plain_batches(files, info.tasks, image_size=(32, 32), batch_size=37))
    batch = next(eval_loader(info, "val", batch_size=37, image_size=(32, 32), decoder="pil"))
    torch.testing.assert_close(labels, batch.labels, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(images, batch.images)


@pytest.mark.parametrize("processes", [0, 1])
def test_both_readers_are_measured_pass_by_pass(photographs: DatasetInfo, processes: int) -> None:
    ours, plain = bench_data(
        photographs, batch_size=8, processes=[processes], num_passes=2, num_samples=40
    )
    assert (ours.reader, plain.reader, plain.faster) == (OURS, PLAIN, 1.0)
    for row in (ours, plain):
        assert 0 < row.low <= row.images_per_s <= row.high
        assert row.per_core > 0
    assert ours.faster > 0


def test_every_process_of_plain_webdataset_gets_as_many_shards(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(files: Sequence[str], *arguments: Any, **named: Any) -> Any:
        read.append(len(files))
        return plain_batches(files, *arguments, **named)

    monkeypatch.setattr(bench_of_data, "plain_batches", counted)
    info = read_dataset(tiny_data)  # 201 training samples, 40 to a shard
    for processes, expected in ((0, 3), (2, 4)):
        bench_data(
            info,
            image_size=(32, 32),
            batch_size=20,
            processes=[processes],
            num_passes=1,
            num_samples=100,
        )
        assert set(read) == {expected}
        read.clear()
    with pytest.raises(UserError, match=r"7 need at least as many, but the split 'train' .* has 6"):
        bench_data(info, processes=[7], num_samples=100)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["absent"], 1, ("absent", "distbranch data pack")),
        (["data", "--split", "dev"], 1, ("'dev'", "train")),
        (["--image-size", "64"], 2, ("HEIGHTxWIDTH",)),
        (["http://127.0.0.1:9/data"], 1, ("http://127.0.0.1:9", "connect")),
    ],
)
def test_a_data_set_that_cannot_be_measured_is_refused_in_one_sentence(
    world: Path, arguments: list[str], code: int, words: tuple[str, ...]
) -> None:
    ended = run_benchmark("bench_data.py", *arguments)
    assert_one_sentence(ended, code, words)
