"""Several data sets as one: the union of their tasks, unlabelled where unknown, the same samples on any number of ranks."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_samples import picture

from distbranch.config import DataConfig
from distbranch.data.cache import Cache
from distbranch.data.loader import Batch, train_loader
from distbranch.data.mixture import member_names, merge_datasets, read_data
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample, read_dataset
from distbranch.errors import UserError
from distbranch.tasks import Task

SIZE = (32, 40)
SIZES = {"first": 17, "second": 5}
TASKS = {
    "first": (Task("number", "categorical", tuple(map(str, range(17)))), Task("shared")),
    "second": (Task("shared"), Task("own")),
}


def packed(
    folder: Path, name: str, tasks: tuple[Task, ...] | None = None, **splits: int
) -> DatasetInfo:
    def samples() -> Iterator[Sample]:
        for split, count in (splits or {"train": SIZES[name], "val": 3}).items():
            for number in range(count):
                labels: dict[str, Any] = (
                    {"number": str(number)} if name == "first" else {"own": number / 5}
                )
                yield Sample(
                    f"{split}-{number}", split, picture(number), labels | {"shared": number % 2}
                )

    return pack(samples(), folder / name, tasks or TASKS[name], shard_samples=4)


@pytest.fixture(scope="module")
def infos(tmp_path_factory: pytest.TempPathFactory) -> list[DatasetInfo]:
    folder = tmp_path_factory.mktemp("mixture")
    return [packed(folder, "first"), packed(folder, "second")]


def read(
    info: DatasetInfo, num_batches: int, world_size: int = 1, **options: Any
) -> list[tuple[Any, ...]]:
    """Position and labels of every sample, over all ranks, in the order of the stream."""
    options = {"batch_size": 6, "image_size": SIZE, "seed": 3, **options}
    rows = []
    for rank in range(world_size):
        for batch in islice(
            train_loader(info, "train", rank=rank, world_size=world_size, **options), num_batches
        ):
            assert batch.error is None
            rows += zip(
                batch.indices.tolist(),
                map(tuple, batch.labels.nan_to_num(-1).tolist()),
                strict=True,
            )
    return sorted(rows)


def test_tasks_are_the_union_and_labels_of_other_data_sets_are_unlabelled(
    infos: list[DatasetInfo],
) -> None:
    info = merge_datasets(infos)
    assert [task.name for task in info.tasks] == ["number", "shared", "own"]
    assert (info.num_samples, info.image_size) == (17 + 5 + 3 + 3, SIZE)
    assert info.splits["train"].labels["own"] == {"0": 1, "1": 0, "soft": 4, "unlabelled": 17}
    assert info.splits["train"].labels["shared"] == {"1": 10, "0": 12, "unlabelled": 0}
    epoch = [labels for _, labels in read(info, 11, batch_size=2)]
    assert sorted(labels[0] for labels in epoch if labels[0] >= 0) == list(range(17))
    assert all(
        (number >= 0) != (own >= 0) for number, _, own in epoch
    )  # each sample has the labels of its own set
    assert sorted(own for number, _, own in epoch if number < 0) == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8]
    )


@pytest.mark.parametrize("proportions", [(), (2, 1)])
def test_joint_batches_are_the_same_on_any_ranks_from_any_sample_by_any_process(
    infos: list[DatasetInfo], proportions: tuple[int, ...]
) -> None:
    info = merge_datasets(infos, proportions)
    alone = read(info, 8)
    assert [position for position, _ in alone] == list(range(48))
    assert read(info, 8, world_size=3) == alone
    assert read(info, 4, world_size=2, start=19) == alone[19:43]
    assert read(info, 8, num_workers=1) == alone
    if proportions:
        assert all(
            sum(own >= 0 for _, (_, _, own) in alone[at : at + 3]) == 1 for at in range(0, 48, 3)
        )


def test_a_url_and_a_folder_mix_like_two_folders(infos: list[DatasetInfo], tmp_path: Path) -> None:
    remote = read_dataset(f"file://{infos[1].path}")
    cache = Cache(str(tmp_path / "cache"))
    assert read(merge_datasets([infos[0], remote]), 8, cache=cache) == read(
        merge_datasets(infos), 8
    )
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_images_of_another_size_are_resized_to_those_of_the_run(infos: list[DatasetInfo]) -> None:
    batch = next(train_loader(merge_datasets(infos), "train", batch_size=22, image_size=(33, 50)))
    assert batch.images.shape == (22, 3, 33, 50)


def test_a_damaged_sample_is_named_with_the_place_of_its_shard(tmp_path: Path) -> None:
    infos = [packed(tmp_path, "first"), packed(tmp_path, "second")]
    shard = tmp_path / "second" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    batches: list[Batch] = list(
        train_loader(merge_datasets(infos), "train", batch_size=22, image_size=SIZE)
    )
    assert batches[-1].error is not None
    assert str(shard) in batches[-1].error


def test_one_data_set_is_itself_and_the_fingerprint_tells_mixtures_apart(
    infos: list[DatasetInfo],
) -> None:
    assert merge_datasets(infos[:1]) is infos[0]
    assert read_data(
        DataConfig(path=(infos[0].path, infos[1].path), proportions=(2, 1))
    ) == merge_datasets(infos, (2, 1))
    fingerprints = {
        merge_datasets(infos, proportions).fingerprint for proportions in ((), (2, 1), (1, 2))
    }
    assert len({*fingerprints, merge_datasets(infos[::-1]).fingerprint, infos[0].fingerprint}) == 5


def test_data_sets_are_called_by_their_folders_and_never_alike() -> None:
    def named(*paths: str) -> tuple[str, ...]:
        blank = DatasetInfo("", (), {}, {}, SIZE, {})
        parts = tuple(DatasetInfo(path, (), {}, {}, SIZE, {}) for path in paths)
        return member_names(DatasetInfo(blank.path, (), {}, {}, SIZE, {}, parts=parts))

    assert named("/a/fps", "s3://b/clothing/") == ("fps", "clothing")
    assert named("/a/data", "/b/data", "/c/d") == ("a/data", "b/data", "c/d")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task("shared", "categorical", ("0", "1")), "is binary in .*and categorical, 0, 1 in"),
        (Task("shared", exclusive="kind"), "is binary in .* and binary, kind in .*second"),
    ],
)
def test_a_task_that_differs_between_data_sets_is_refused(
    infos: list[DatasetInfo], task: Task, words: str
) -> None:
    other = DatasetInfo("/x/second", (task,), {}, infos[1].splits, SIZE, {})
    with pytest.raises(UserError, match=words):
        merge_datasets([infos[0], other])


def test_a_data_set_given_twice_is_refused(infos: list[DatasetInfo]) -> None:
    with pytest.raises(UserError, match="twice"):
        merge_datasets([infos[0], infos[1], infos[0]])


def test_the_global_random_state_is_left_alone_by_a_mixture(infos: list[DatasetInfo]) -> None:
    before = torch.get_rng_state()
    next(train_loader(merge_datasets(infos), "train", batch_size=4, image_size=SIZE))
    assert torch.equal(before, torch.get_rng_state())
