"""Folders of classes, as a person sorts photographs."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest
from clothes import read_clothes, read_photos, write_folders
from packed_samples import picture
from tiny_world import assert_one_sentence, run_command

from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.data.sources import parse_options
from distbranch.data.sources.source import Source
from distbranch.tasks import Task


def pack_folder(root: Path, *options: str) -> DatasetInfo:
    out = root.with_name(f"packed-{root.name}{len(options)}")
    ended = run_command(["data", "pack", "folder", str(out), "--root", str(root), *options])
    assert ended.code == 0, ended.err
    return read_dataset(out)


def open_folder(root: Path, **options: str) -> Source:
    return parse_options({"source": "folder", "root": root, **options}).open()


def test_real_photographs_in_folders_are_one_task_with_or_without_splits_and_in_a_zip(
    tmp_path: Path, shared_data: Path
) -> None:
    clothes = read_clothes(shared_data, 60)
    photos = read_photos(shared_data, clothes)
    flat = [f"{one['category']}/{one['image']}" for one in clothes]
    split = [
        f"{one['split'].replace('val', 'Validation')}/{place}"
        for one, place in zip(clothes, flat, strict=True)
    ]
    write_folders(tmp_path / "flat", flat, photos)
    write_folders(tmp_path / "split", split, photos)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for place, photo in zip(split, photos, strict=True):
            archive.writestr(f"photos/{place}", photo)

    info = pack_folder(tmp_path / "split", "--task", "category")
    classes = tuple(sorted({one["category"] for one in clothes}))
    assert info.tasks == (Task("category", "categorical", classes),)
    sizes = {name: part.num_samples for name, part in info.splits.items()}
    assert sizes == Counter(one["split"] for one in clothes)
    counts = Counter(one["category"] for one in clothes if one["split"] == "test")
    found = info.splits["test"].labels["category"]
    assert {name: count for name, count in found.items() if count} == counts

    zipped = pack_folder(tmp_path / "photos.zip", "--task", "category")
    assert [part.labels for part in zipped.splits.values()] == [
        part.labels for part in info.splits.values()
    ]
    drawn = pack_folder(tmp_path / "flat")
    assert drawn.tasks == (Task("class", "categorical", classes),)
    assert drawn.num_samples == 60
    assert run_command(["data", "check", drawn.path]).code == 0


def test_every_class_may_be_a_task_and_may_be_called_as_nothing(tmp_path: Path) -> None:
    places = ["none/1.jpg", "NA/2.jpg", "test/3.jpg"]
    root = write_folders(tmp_path / "root", places, [picture(n) for n in range(3)])
    assert open_folder(root).tasks[0].classes == ("NA", "none", "test")
    tasks = open_folder(root, one_task_per_class="class").tasks
    assert [(task.name, task.exclusive) for task in tasks] == [
        ("NA", "class"),
        ("none", "class"),
        ("test", "class"),
    ]


def test_what_is_no_image_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = ["a/1.jpg", "b/2.JPG", "b/2.txt", "a/.DS_Store", ".git/config.jpg"]
    root = write_folders(tmp_path / "root", places, [picture(n) for n in range(5)])
    assert [sample.key for sample in open_folder(root).samples] == ["a/1", "b/2"]
    assert "1 file(s) are left out" in caplog.text
    assert "b/2.txt" in caplog.text


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([], ("it holds no image",)),
        (["1.jpg", "2.jpg"], ("2 image(s) lie in no folder of a class: 1.jpg, 2.jpg",)),
        (
            ["train/a/1.jpg", "test/2.jpg", "extra/b/3.jpg", "train/A/4.jpg"],
            (
                "has 3 problems",
                "1 image(s) lie in no folder of a class: test/2.jpg",
                "no split: extra",
                "folders 'A' and 'a' differ only",
            ),
        ),
        (["a/1.jpg", "a/2.jpg"], ("'a' is its only class",)),
        (["a/1.jpg", "a/1.png", "b/1.jpg"], ("differ only in their extension",)),
    ],
)
def test_what_is_no_folder_of_classes_is_told_all_at_once(
    tmp_path: Path, places: list[str], words: tuple[str, ...]
) -> None:
    (tmp_path / "root").mkdir()
    write_folders(tmp_path / "root", places, [picture(n) for n in range(len(places))])
    arguments = ["data", "pack", "folder", str(tmp_path / "out"), "--root", str(tmp_path / "root")]
    assert_one_sentence(run_command(arguments), 1, words)
