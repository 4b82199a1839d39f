"""Mixup and CutMix: who is mixed with whom, in which proportion, and what that means for labels of every kind."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_samples import tiny_dataset
from torch.nn import functional

from distbranch.data.loader import Batch, train_loader
from distbranch.data.mixing import Mixing
from distbranch.data.shards import DatasetInfo
from distbranch.maps import MixedLabels
from distbranch.tasks import Task, TaskSet

OWN = np.full((20, 30, 3), 200, dtype=np.uint8)
OTHER = np.full((20, 30, 3), 40, dtype=np.uint8)


def read_batch(
    info: DatasetInfo, mixing: Mixing | None = None, *, world_size: int = 1, rank: int = 0
) -> Batch:
    batches = train_loader(
        info,
        "train",
        batch_size=6,
        image_size=(32, 40),
        rank=rank,
        world_size=world_size,
        on_bad_sample="skip",
        mixing=mixing,
    )
    (batch,) = islice(batches, 1)
    assert batch.error is None
    return batch


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_come_from_the_beta_distribution(alpha: float) -> None:
    mixing = Mixing(mixup=alpha)
    shares = np.array([mixing.mix_images(OWN, OTHER, position)[1] for position in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_mixup_averages_with_the_share_that_it_tells() -> None:
    for position in range(50):
        mixed, share = Mixing(mixup=1.0).mix_images(OWN, OTHER, position)
        assert np.abs(mixed - (40 + 160 * share)).max() <= 0.5


def test_cutmix_puts_a_rectangle_of_the_other_image_and_tells_which_share_is_left() -> None:
    corners = set()
    for position in range(50):
        mixed, share = Mixing(cutmix=1.0).mix_images(OWN, OTHER, position)
        is_other = mixed[..., 0] == 40
        assert share == pytest.approx(1 - is_other.mean())
        rows, columns = np.nonzero(is_other)
        if rows.size:
            assert is_other[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
            corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 20


def test_both_together_come_each_half_of_the_time() -> None:
    mixed = [Mixing(1.0, 1.0).mix_images(OWN, OTHER, position)[0] for position in range(400)]
    averaged = sum(
        len(np.unique(image)) == 1 and image[0, 0, 0] not in (40, 200) for image in mixed
    )
    assert 150 < averaged < 250


def test_every_image_is_mixed_with_its_neighbour_in_the_stream(tmp_path: Path) -> None:
    info = tiny_dataset(tmp_path / "set")
    plain, mixed = read_batch(info), read_batch(info, Mixing(mixup=1.0))
    other, shares = mixed.mixed
    swapped = [1, 0, 3, 2, 5, 4]
    torch.testing.assert_close(other, plain.labels[swapped], equal_nan=True)
    torch.testing.assert_close(mixed.labels, plain.labels, equal_nan=True)
    weights = shares.view(-1, 1, 1, 1)
    expected = weights * plain.images + (1 - weights) * plain.images[swapped]
    assert (mixed.images - expected).abs().max() <= 0.5


def test_an_image_whose_neighbour_cannot_be_used_stays_as_it_is_on_whichever_rank(
    tmp_path: Path,
) -> None:
    info = tiny_dataset(tmp_path / "set")
    plain = read_batch(info)
    # The second of the stream is destroyed: 300 bytes in the middle of its image.
    number = int(plain.labels[1, 0])
    shard = info.splits["train"].shards[number // 5]
    index = np.load(tmp_path / "set" / shard.index)
    with (tmp_path / "set" / shard.file).open("r+b") as file:
        file.seek(int(index[number % 5, 0]) + 100)
        file.write(bytes(300))

    mixing = Mixing(mixup=1.0)
    alone = read_batch(info, mixing)
    assert alone.indices.tolist() == [0, 2, 3, 4, 5]
    assert torch.equal(alone.images[0], plain.images[0])
    torch.testing.assert_close(alone.mixed[0][0], alone.labels[0], equal_nan=True)
    shares = [read_batch(info, mixing, world_size=3, rank=rank) for rank in range(3)]
    assert torch.equal(torch.cat([share.images for share in shares]), alone.images)
    assert sum(sum(share.num_bad.values()) for share in shares) == 1
    split = [read_batch(info, mixing, world_size=6, rank=rank) for rank in (0, 2, 3, 4, 5)]
    assert torch.equal(torch.cat([share.images for share in split]), alone.images)


TASKS = TaskSet(
    [
        Task("hat"),
        Task("colour", "categorical", ("red", "green", "blue")),
        Task("size", "ordinal", ("small", "medium", "large")),
        Task("age", "number", mean=40.0, deviation=10.0),
    ]
)
NAN = float("nan")


def test_losses_and_margins_count_each_label_by_its_share_and_what_is_missing_not_at_all() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(3, TASKS.num_outputs)
    own = torch.tensor([[1, 2, 0, 33.0], [NAN, 1, NAN, NAN], [0, NAN, 1, NAN]])
    other = torch.tensor([[0, 1, 2, 51.0], [1, NAN, NAN, 20], [1, 0, NAN, NAN]])
    shares = torch.tensor([0.75, 0.25, 0.5])
    mixed = MixedLabels(own, other, shares)
    for compute in (TASKS.compute_losses, TASKS.compute_margins):
        expected = shares[:, None] * compute(outputs, own)
        expected += (1 - shares[:, None]) * compute(outputs, other)
        torch.testing.assert_close(compute(outputs, mixed), expected)
    assert mixed.isnan().tolist() == [
        [False] * 4,
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_of_binary_and_categorical_tasks_that_is_the_loss_of_a_soft_label() -> None:
    torch.manual_seed(1)
    outputs = torch.randn(1, TASKS.num_outputs)
    mixed = MixedLabels(
        torch.tensor([[1, 2, 0, 33.0]]), torch.tensor([[0, 1, 2, 51.0]]), torch.tensor([0.75])
    )
    hat, colour, *_ = TASKS.compute_losses(outputs, mixed)[0]
    target = torch.tensor(0.75)
    torch.testing.assert_close(
        hat, functional.binary_cross_entropy_with_logits(outputs[0, 0], target)
    )
    shares = torch.tensor([0.0, 0.25, 0.75])
    torch.testing.assert_close(colour, functional.cross_entropy(outputs[0, 1:4], shares))
