"""Balanced sampling: frequencies as asked, every sample in its turn, and one stream whatever the ranks."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_samples import tiny_dataset
from tiny_world import run_command

from distbranch.config import DataConfig
from distbranch.data.augmentation import Augmentation
from distbranch.data.balance import UNLABELLED, find_rates, read_balances
from distbranch.data.loader import train_loader
from distbranch.data.mixing import Mixing
from distbranch.data.plan import Balance, Place, Plan
from distbranch.data.shards import DatasetInfo

SIZES = [40, 7, 0, 60, 33, 60]  # 200 samples
SIZE = (32, 40)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "set")


def balance_of(labels: list[int], power: float = 1.0) -> Balance:
    """That of one task, of which every sample has this class."""
    rows, groups, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rates, missed = find_rates(rows[:, None], sizes, [power])
    assert missed < 1e-3
    return Balance(groups, rates)


def read_epoch(plan: Plan, epoch: int) -> list[Place]:
    return plan.list_places(epoch * plan.num_samples, (epoch + 1) * plan.num_samples)


def number_of(place: Place) -> int:
    """Of a sample among all."""
    return sum(SIZES[: place[0]]) + place[1]


# ---- how often


@pytest.mark.parametrize(
    ("power", "shares"), [(0.0, (0.9, 0.1)), (0.5, (0.75, 0.25)), (1.0, (0.5, 0.5))]
)
def test_a_power_leads_from_the_frequencies_of_the_data_to_equal_ones(
    power: float, shares: tuple[float, float]
) -> None:
    sizes = np.array([900, 100])
    rates, _ = find_rates(np.array([[0], [1]]), sizes, [power])
    np.testing.assert_allclose(rates * sizes / 1000, shares, rtol=1e-6)


def test_several_tasks_have_their_frequencies_at_once_and_unlabelled_samples_keep_their_share() -> (
    None
):
    draw = np.random.default_rng(0)
    classes = np.array([(a, b, c) for a in (0, 1) for b in range(UNLABELLED, 3) for c in (0, 1)])
    sizes = draw.integers(5, 400, len(classes))
    rates, _ = find_rates(classes, sizes, [1.0, 1.0, 0.0])
    shown = rates * sizes
    first, second, third = (np.bincount(column + 1, shown) for column in classes.T)
    np.testing.assert_allclose(first[1:] / sizes.sum(), 0.5, rtol=1e-3)
    unlabelled = sizes[classes[:, 1] == UNLABELLED].sum()
    np.testing.assert_allclose(
        second, [unlabelled, *[(sizes.sum() - unlabelled) / 3] * 3], rtol=1e-3
    )
    np.testing.assert_allclose(third, np.bincount(classes[:, 2] + 1, sizes), rtol=1e-3)


def test_an_epoch_is_as_long_as_ever_and_has_the_frequencies_that_were_asked_for() -> None:
    labels = np.random.default_rng(1).choice(3, 200, p=[0.8, 0.17, 0.03]).tolist()
    plan = Plan(SIZES, seed=3, window=2, balance=balance_of(labels))
    assert plan.num_samples == 200
    for epoch in range(5):
        places = read_epoch(plan, epoch)
        counts = Counter(labels[number_of(place)] for place in places)
        assert all(abs(counts[label] - 200 / 3) < 1 for label in range(3))
        assert len(set(places)) == 200, "a sample that comes twice is told apart"
        for place, times in Counter(number_of(place) for place in places).items():
            rate = plan_rate(labels, place)
            assert int(rate) <= times <= int(rate) + 1


def plan_rate(labels: list[int], number: int) -> float:
    return len(labels) / 3 / labels.count(labels[number])


def test_every_sample_has_its_turn_however_rarely_it_comes() -> None:
    labels = [0] * 190 + [1] * 10
    plan = Plan(SIZES, seed=0, window=3, balance=balance_of(labels))
    epochs = 40
    times = Counter(
        number_of(place) for epoch in range(epochs) for place in read_epoch(plan, epoch)
    )
    for number, label in enumerate(labels):
        rate = 100 / labels.count(label)
        assert abs(times[number] - epochs * rate) <= 2


def test_the_power_zero_changes_no_place() -> None:
    labels = np.random.default_rng(2).integers(0, 4, 200).tolist()
    balanced = Plan(SIZES, seed=5, window=2, balance=balance_of(labels, power=0.0))
    assert balanced.list_places(0, 900) == Plan(SIZES, seed=5, window=2).list_places(0, 900)


# ---- where


def test_any_range_equals_the_same_range_of_the_whole_balanced_stream() -> None:
    labels = [int(number % 17 == 0) for number in range(200)]
    stream = Plan(SIZES, 1, 2, balance=balance_of(labels)).list_places(0, 1000)
    draw = np.random.default_rng(0)
    for _ in range(50):
        start, stop = sorted(draw.integers(0, 1001, 2).tolist())
        plan = Plan(SIZES, 1, 2, balance=balance_of(labels))
        assert plan.list_places(start, stop) == stream[start:stop]
        ahead = set(plan.list_shards_ahead(start))
        assert {shard for shard, *_ in stream[start : start + 2]} <= ahead


def test_shards_are_still_read_window_by_window() -> None:
    labels = [int(number % 3 == 0) for number in range(400)]
    plan = Plan([50] * 8, seed=2, window=2, balance=balance_of(labels))
    shards = [shard for shard, *_ in read_epoch(plan, 0)]
    order = [plan.shards_of_window(0, window).tolist() for window in range(4)]
    turns = [next(n for n, pair in enumerate(order) if shard in pair) for shard in shards]
    assert turns == sorted(turns)


def test_two_parts_of_a_data_set_are_balanced_and_have_no_sample_in_common() -> None:
    labels = [int(number % 5 == 0) for number in range(200)]
    seen = []
    for part in ((0.0, 0.6), (0.6, 1.0)):
        plan = Plan(SIZES, 4, 2, part, balance_of(labels))
        assert plan.num_samples == round(200 * (part[1] - part[0]))
        places = [place for epoch in range(10) for place in read_epoch(plan, epoch)]
        seen.append({number_of(place) for place in places})
        yes = sum(labels[number_of(place)] for place in places[: plan.num_samples])
        assert abs(yes - plan.num_samples / 2) < 0.2 * plan.num_samples
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 200


@pytest.mark.parametrize("start", [0, 13, 46])
def test_balanced_changed_and_mixed_batches_are_the_same_on_one_two_and_three_ranks(
    info: DatasetInfo, start: int
) -> None:
    balances = read_balances(DataConfig(balance={"even": 1.0}), info, None)
    changed = Augmentation(
        flip=True, shift=2, seed=6, crop_area=(0.3, 1.0), recipe="randaugment", jitter=0.4
    )

    def read(world_size: int, start: int) -> list[list[torch.Tensor]]:
        loaders = [
            train_loader(
                info,
                "train",
                batch_size=7,
                image_size=SIZE,
                rank=rank,
                world_size=world_size,
                start=start,
                seed=6,
                window=2,
                augmentation=changed,
                balances=balances,
                mixing=Mixing(0.4, 1.0, seed=6),
            )
            for rank in range(world_size)
        ]
        batches = []
        for shares in islice(zip(*loaders, strict=True), 8):
            assert not any(share.error for share in shares)
            parts = [(share.images, share.labels, share.indices, *share.mixed) for share in shares]
            batches.append([torch.cat(part) for part in zip(*parts, strict=True)])
        return batches

    alone = read(1, start)
    later = read(3, start + 21)  # resumed after three batches on another number of ranks
    for world_size in (2, 3):
        for one, other in zip(alone, read(world_size, start), strict=True):
            for expected, found in zip(one, other, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    for one, other in zip(alone[3:], later, strict=False):
        for expected, found in zip(one, other, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_what_comes_again_in_an_epoch_is_shown_otherwise() -> None:
    augmentation = Augmentation(flip=True, shift=4, crop_area=(0.2, 1.0))
    views = {augmentation.choose_view(SIZE, 0, 0, 0, copy) for copy in range(8)}
    assert len(views) == 8
    assert augmentation.choose_view(SIZE, 0, 0, 0) in views


# ---- labels


def test_labels_are_read_from_the_shards_and_what_cannot_be_read_counts_as_unlabelled(
    tmp_path: Path,
) -> None:
    info = tiny_dataset(tmp_path / "set")
    (balance,) = read_balances(DataConfig(balance={"even": 1.0, "soft": 0.0}), info, None)
    assert balance is not None
    counts = info.splits["train"].labels["even"]
    expected = {0: (counts["0"] + counts["1"]) / 2}
    shown = balance.rates[balance.groups]
    for number in range(23):
        # Of multiples of 5 there is no label.
        wanted = 1.0
        if number % 5:
            wanted = expected[0] / counts[str(1 - number % 2)]
        assert shown[number] == pytest.approx(wanted, rel=1e-3)

    # A shard that is gone: its five samples are unlabelled, the others keep their balance.
    (tmp_path / "set" / info.splits["train"].shards[0].file).unlink()
    (balance,) = read_balances(DataConfig(balance={"even": 1.0}), info, None)
    assert balance is not None
    np.testing.assert_allclose(balance.rates[balance.groups][:5], 1.0, rtol=1e-3)


def test_whoever_waits_for_another_process_waits_for_one_shard_at_a_time(
    info: DatasetInfo,
) -> None:
    found = []

    def run_once(work: Callable[[], Any]) -> Any:
        found.append(work())
        return found[-1]

    shards = info.splits["train"].shards
    data = DataConfig(balance={"even": 1.0})
    (balance,) = read_balances(data, info, None, run_once)
    assert [len(labels) for labels in found[:-1]] == [shard.num_samples for shard in shards]
    assert len(shards) > 1

    # Another process, which reads nothing, has the same.
    said = iter(found)
    (other,) = read_balances(data, info, None, lambda _: next(said))
    assert balance is not None
    assert other is not None
    np.testing.assert_array_equal(other.groups, balance.groups)
    np.testing.assert_array_equal(other.rates, balance.rates)


def test_frequencies_that_contradict_each_other_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = tiny_dataset(tmp_path / "set")
    # All numbers equally often, and yes and no, too: of 23 numbers 12 are even.
    read_balances(DataConfig(balance={"number": 1.0, "soft": 1.0}), info, None)
    assert "cannot all be had at once" in caplog.text


# ---- through the command line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.balance={brigth: 1}", "should name tasks of .*, found 'brigth'.*: bright"),
        ("data.balance={bright: 2}", "less than or equal to 1"),
        ("data.crop_area=[0.9, 0.2]", "should be .least, largest"),
    ],
)
def test_what_cannot_be_balanced_or_cut_is_refused_in_one_sentence(
    world: Path, override: str, said: str
) -> None:
    ended = run_command(["train", "tiny.yaml", "run.name=other", override])
    assert ended.code in (1, 2)
    assert re.search(said, ended.err), ended.err
    assert world.is_dir()


def test_a_dry_run_tells_how_frequent_classes_will_be(world: Path) -> None:
    ended = run_command(
        ["train", "tiny.yaml", "run.name=other", "data.balance={bright: 1}", "--dry-run"]
    )
    assert ended.code == 0, ended.err
    assert "-> 50.0 %" in ended.out
    assert world.is_dir()
