"""Batches: the plan's samples and no others, whoever reads them, on however many ranks, from wherever a run goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from packed_samples import picture, tiny_dataset

from distbranch.data.augmentation import Augmentation, shift_image
from distbranch.data.images import decode_to_size
from distbranch.data.loader import Batch, eval_loader, train_loader
from distbranch.data.mixing import Mixing
from distbranch.data.plan import Plan
from distbranch.data.shards import DatasetInfo
from distbranch.errors import UserError

SIZE = (32, 40)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "set")


def numbers(batches: Iterator[Batch], count: int) -> list[list[int]]:
    taken = list(islice(batches, count))
    assert [batch.error for batch in taken] == [None] * count
    return [batch.labels[:, 0].int().tolist() for batch in taken]


def planned(info: DatasetInfo, seed: int, window: int, stop: int) -> list[int]:
    shards = [shard.num_samples for shard in info.splits["train"].shards]
    starts = np.cumsum([0, *shards])
    return [
        int(starts[shard]) + sample
        for shard, sample, *_ in Plan(shards, seed, window).list_places(0, stop)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_together_read_the_plan_in_its_order(info: DatasetInfo, world_size: int) -> None:
    ranks = [
        numbers(
            train_loader(
                info,
                "train",
                batch_size=7,
                image_size=SIZE,
                rank=rank,
                world_size=world_size,
                seed=4,
                window=2,
            ),
            12,
        )
        for rank in range(world_size)
    ]
    together = [
        number for batches in zip(*ranks, strict=True) for share in batches for number in share
    ]
    assert together == planned(info, seed=4, window=2, stop=84)


def test_a_run_resumes_at_any_sample_on_any_number_of_ranks(info: DatasetInfo) -> None:
    for start, world_size in [(1, 2), (22, 3), (23, 1), (40, 4)]:
        ranks = [
            numbers(
                train_loader(
                    info,
                    "train",
                    batch_size=6,
                    image_size=SIZE,
                    rank=r,
                    world_size=world_size,
                    start=start,
                ),
                5,
            )
            for r in range(world_size)
        ]
        together = [
            number for batches in zip(*ranks, strict=True) for share in batches for number in share
        ]
        assert together == planned(info, seed=0, window=8, stop=start + 30)[start:]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_prefetching_processes_give_the_batches_of_the_thread(
    info: DatasetInfo, num_workers: int
) -> None:
    options = {
        "batch_size": 8,
        "image_size": (33, 37),
        "augmentation": Augmentation(flip=True, shift=3, recipe="trivialaugment"),
        "mixing": Mixing(mixup=1.0),
        "world_size": 2,
        "rank": 1,
    }
    expected = islice(train_loader(info, "train", **options), 9)  # type: ignore[arg-type]
    found = islice(train_loader(info, "train", num_workers=num_workers, **options), 9)  # type: ignore[arg-type]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels.nan_to_num(9), other.labels.nan_to_num(9))
        assert torch.equal(one.indices, other.indices)
        torch.testing.assert_close(other.mixed, one.mixed, equal_nan=True)
        assert other.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3, 30])
def test_an_evaluation_sees_every_sample_once_over_all_ranks(
    info: DatasetInfo, world_size: int, num_workers: int
) -> None:
    if num_workers and world_size == 30:
        world_size = 2
    seen = {}
    for rank in range(world_size):
        for batch in eval_loader(
            info,
            "train",
            batch_size=4,
            image_size=SIZE,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
        ):
            assert 1 <= len(batch.indices) == len(batch.images) == len(batch.labels) <= 4
            for index, number in zip(
                batch.indices.tolist(), batch.labels[:, 0].tolist(), strict=True
            ):
                assert index not in seen
                seen[index] = int(number)
    assert seen == {number: number for number in range(23)}


def test_labels_are_class_numbers_fractions_and_nan_where_unlabelled(info: DatasetInfo) -> None:
    batch = next(eval_loader(info, "train", batch_size=23, image_size=SIZE))
    expected = torch.tensor(
        [[n, float("nan") if n % 5 == 0 else 1 - n % 2, n / 23] for n in range(23)]
    )
    torch.testing.assert_close(batch.labels, expected, equal_nan=True)


def test_images_belong_to_their_labels_and_evaluation_shows_them_as_they_are(
    info: DatasetInfo,
) -> None:
    batch = next(eval_loader(info, "train", batch_size=23, image_size=SIZE))
    assert batch.images.shape == (23, 3, 32, 40)
    assert batch.images.dtype == torch.uint8
    assert (batch.images[:, :, :, :16] < 20).all()
    shades = batch.images[:, :, :, 24:].float().mean((1, 2, 3))
    assert (shades - torch.arange(23) - 55).abs().max() < 1.5


def test_half_of_the_images_are_mirrored_and_the_same_ones_on_any_ranks(info: DatasetInfo) -> None:
    def mirrored(world_size: int) -> dict[int, bool]:
        found = {}
        for rank in range(world_size):
            loader = train_loader(
                info,
                "train",
                batch_size=23,
                image_size=SIZE,
                augmentation=Augmentation(flip=True),
                rank=rank,
                world_size=world_size,
            )
            for batch in islice(loader, 20):
                left = batch.images[:, :, :, :16].float().mean((1, 2, 3)) > 30
                found.update(zip(batch.indices.tolist(), left.tolist(), strict=True))
        return found

    alone = mirrored(1)
    assert alone == mirrored(4)
    assert 0.4 < np.mean(list(alone.values())) < 0.6
    epochs = {tuple(alone[23 * epoch + n] for n in range(23)) for epoch in range(20)}
    assert len(epochs) == 20


def test_a_shifted_image_repeats_its_edge() -> None:
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    assert (
        shift_image(image, 2, -1) == np.pad(image, ((2, 0), (0, 1), (0, 0)), mode="edge")[:5, 1:]
    ).all()
    assert (shift_image(image, 0, 0) == image).all()
    views = [Augmentation(shift=1).choose_view((5, 4), 0, 0, n) for n in range(200)]
    shown = {view.show_image(image).tobytes() for view in views}
    assert shown == {
        shift_image(image, down, right).tobytes() for down in (-1, 0, 1) for right in (-1, 0, 1)
    }


@pytest.mark.parametrize("decoder", ["simplejpeg", "pil"])
def test_decoders_resize_large_and_small_images_alike(decoder: str) -> None:
    for height, width in [(32, 40), (300, 400), (20, 16)]:
        pixels = decode_to_size(picture(100, height, width), SIZE, decoder)
        assert pixels.shape == (*SIZE, 3)
        assert abs(pixels[:, 30:].mean() - 155) < 3
        assert pixels[:, :10].mean() < 5


def test_the_global_random_state_is_left_alone(info: DatasetInfo) -> None:
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        next(
            train_loader(
                info,
                "train",
                batch_size=4,
                image_size=SIZE,
                augmentation=Augmentation(flip=True),
                num_workers=num_workers,
            )
        )
    assert torch.equal(before, torch.get_rng_state())


def test_files_are_closed_and_processes_end_when_a_loader_is_closed(info: DatasetInfo) -> None:
    me = psutil.Process()
    next(train_loader(info, "train", batch_size=4, image_size=SIZE))
    before = me.num_fds()
    for _ in range(5):
        loader = train_loader(info, "train", batch_size=4, image_size=SIZE)
        next(loader)
        loader.close()  # type: ignore[attr-defined]
    assert me.num_fds() <= before + 2


def test_more_ranks_than_samples_in_a_batch_are_refused(info: DatasetInfo) -> None:
    with pytest.raises(
        UserError, match="batch of 4 samples cannot be divided among 3 ranks in 2 part"
    ):
        train_loader(info, "train", batch_size=4, image_size=SIZE, world_size=3, accumulate=2)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(info: DatasetInfo) -> None:
    with pytest.raises(UserError, match=r"has no split 'valid'; it has .*train"):
        eval_loader(info, "valid", batch_size=4, image_size=SIZE)


def test_memory_does_not_grow_with_the_samples_read(info: DatasetInfo) -> None:
    loader = train_loader(info, "train", batch_size=64, image_size=SIZE)
    for _ in islice(loader, 30):
        pass
    before = psutil.Process().memory_info().rss
    for _ in islice(loader, 200):
        pass
    assert psutil.Process().memory_info().rss - before < 20e6


TRAINER = """
import sys, time
from distbranch.data.loader import train_loader
from distbranch.data.shards import read_dataset

if __name__ == "__main__":
    loader = train_loader(read_dataset(sys.argv[1]), "train", batch_size=4, image_size=(32, 40), num_workers=2)
    for number, batch in enumerate(loader):
        assert batch.error is None
        if number % 20 == 0:
            print(number, flush=True)
        time.sleep(0.005)
"""


def prefetching_processes(trainer: int) -> list[psutil.Process]:
    """The processes below the fork server of this trainer."""
    below = psutil.Process(trainer).children(recursive=True)
    return [process for process in below if process.ppid() != trainer]


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that ended stays a zombie until its new parent takes notice."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def trainer(info: DatasetInfo, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(script), info.path],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == [
        "0\n",
        "20\n",
    ]  # both processes are at work
    yield process
    process.kill()
    process.communicate()


def test_prefetching_processes_leave_signals_to_the_trainer_and_end_with_it(
    trainer: subprocess.Popen[str],
) -> None:
    workers = prefetching_processes(trainer.pid)
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            worker.send_signal(number)
    assert trainer.stdout
    assert [int(trainer.stdout.readline()) for _ in range(5)] == [40, 60, 80, 100, 120]
    trainer.kill()
    deadline = time.monotonic() + 5
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_prefetching_process_ends_the_run_with_a_sentence(info: DatasetInfo) -> None:
    loader = train_loader(info, "train", batch_size=4, image_size=SIZE, num_workers=1)
    next(loader)
    for worker in prefetching_processes(os.getpid()):
        worker.kill()
    with pytest.raises(UserError, match="prefetching process ended unexpectedly"):
        next(islice(loader, 50, None))
