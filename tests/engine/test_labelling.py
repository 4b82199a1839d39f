"""Soft labels of a teacher: the samples as they were, its probabilities beside their labels, and only where asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from tiny_runs import NUM_SAMPLES, TASKS, config_of, pack_tiny, train_tiny

from distbranch.data.check import check_dataset
from distbranch.data.images import decode_to_size
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample
from distbranch.engine.artifact import load_model
from distbranch.engine.labelling import label_with_teacher
from distbranch.errors import UserError
from distbranch.tasks import Task

TEACHER_TASKS = (Task("round", exclusive="form"), Task("square", exclusive="form"))


def samples_of(info: DatasetInfo, split: str) -> list[tuple[bytes, dict[str, Any]]]:
    urls = [f"{info.path}/{shard.file}" for shard in info.splits[split].shards]
    read = webdataset.WebDataset(urls, shardshuffle=False)
    return [(one["jpg"], json.loads(one["json"])) for one in read]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other tasks and smaller pictures, trained for two steps."""
    folder = tmp_path_factory.mktemp("teacher")
    source = samples_of(pack_tiny(folder / "source"), "train")[:24]
    samples = (
        Sample(
            f"{n}", ("train", "val")[n % 2], image, {"round": n % 3 // 2, "square": 1 - n % 3 // 2}
        )
        for n, (image, _) in enumerate(source)
    )
    pack(samples, folder / "data", TEACHER_TASKS)
    changes = {
        "method.name": "fixed",
        "train.iterations": 2,
        "train.batch_size": 6,
        "train.evaluate_every": 0,
    }
    assert train_tiny(config_of(folder / "data", folder, **changes))["end"] == "done"
    return folder / "tiny"


def test_images_and_labels_stay_and_the_train_split_gets_the_probabilities_of_the_teacher(
    tiny_data: Path, teacher: Path, tmp_path: Path
) -> None:
    told: list[int] = []
    info = label_with_teacher(str(tiny_data), tmp_path / "soft", teacher, progress=told.append)
    assert info.tasks == TASKS + TEACHER_TASKS
    assert info.source["teacher"]["run"] == str(teacher)
    assert len(info.source["teacher"]["weights_sha256"]) == 64
    assert told[-1] == sum(NUM_SAMPLES.values())
    assert check_dataset(info.path).ok
    network, preprocessing = load_model(teacher)
    before = pack_tiny(tmp_path / "again")  # the same pictures
    for split in NUM_SAMPLES:
        expected = samples_of(before, split)
        found = samples_of(info, split)
        assert [image for image, _ in found] == [image for image, _ in expected]
        assert [one["key"] for _, one in found] == [one["key"] for _, one in expected]
        names = {task.name for task in TEACHER_TASKS}
        own = [
            {name: v for name, v in one["labels"].items() if name not in names} for _, one in found
        ]
        assert own == [one["labels"] for _, one in expected]
        soft = [[one["labels"].get(task.name) for task in TEACHER_TASKS] for _, one in found]
        if split != "train":
            assert {value for row in soft for value in row} == {None}
            continue
        pixels = np.stack(
            [
                decode_to_size(image, preprocessing.image_size, preprocessing.decoder)
                for image, _ in found
            ]
        )
        with torch.inference_mode():
            logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2), flat=True)
        assert np.abs(np.array(soft, dtype=np.float64) - logits.sigmoid().numpy()).max() < 1e-4
        assert all(round(value, 4) == value for row in soft for value in row)


def test_the_same_labelling_again_changes_nothing_and_other_splits_can_be_asked_for(
    tiny_data: Path, teacher: Path, tmp_path: Path
) -> None:
    first = label_with_teacher(str(tiny_data), tmp_path / "soft", teacher, splits=("val", "test"))
    assert first.splits["train"].labels["round"]["unlabelled"] == NUM_SAMPLES["train"]
    assert first.splits["val"].labels["round"]["unlabelled"] == 0
    assert (
        label_with_teacher(str(tiny_data), tmp_path / "soft", teacher, splits=("val", "test"))
        == first
    )
    with pytest.raises(UserError, match="not empty"):
        label_with_teacher(str(tiny_data), tmp_path / "soft", teacher)


def test_a_teacher_that_cannot_teach_is_refused(
    tiny_data: Path, teacher: Path, tmp_path: Path
) -> None:
    info = label_with_teacher(str(tiny_data), tmp_path / "soft", teacher)
    with pytest.raises(UserError, match=r"has task\(s\) of the teacher .* already: round, square"):
        label_with_teacher(info.path, tmp_path / "more", teacher)
    with pytest.raises(UserError, match="itself"):
        label_with_teacher(str(tiny_data), tiny_data, teacher)
    (teacher / "result.json").rename(teacher / "was-result.json")
    with pytest.raises(UserError, match="only a finished one is a teacher"):
        label_with_teacher(str(tiny_data), tmp_path / "more", teacher)
    (teacher / "was-result.json").rename(teacher / "result.json")
    assert not (tmp_path / "more").exists()
