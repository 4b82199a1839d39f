"""`data check` counts the images of each class and split, and tells which classes are too rare to be scored."""

import pytest
from packed_samples import picture
from rich.console import Console
from tiny_world import run_command

from distbranch.data.class_checks import describe_rare_classes
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample
from distbranch.report.class_table import make_class_table
from distbranch.tasks import Task

CLASSES = tuple(f"class-{number:02d}" for number in range(40))
TASKS = (
    Task("kind", "categorical", CLASSES),
    Task("size", "ordinal", ("small", "large")),
    Task("red", exclusive="colour"),
    Task("blue", exclusive="colour"),
    Task("worn"),
    Task("price", "number", unit="EUR"),
)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    """120 images of train and 24 of test; class 0 is on most images, classes from 30 on are on none of test."""

    def make(split: str, number: int) -> Sample:
        of_class = min(number, 39) if number < 42 else 0
        labels: dict[str, str | float] = {
            "kind": CLASSES[of_class % (30 if split == "test" else 40)],
            "size": "small" if number % 2 else "large",
            "red": number % 2,
            "blue": 1 - number % 2,
            "price": number * 1.5,
        }
        if number % 4:
            labels["worn"] = int(number == 1)
        return Sample(f"{split}-{number}", split, picture(number), labels)

    samples = [make("train", number) for number in range(120)]
    samples += [make("test", number) for number in range(24)]
    return pack(samples, tmp_path_factory.mktemp("classes") / "set", TASKS)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_the_counts_and_folds_many_classes(info: DatasetInfo, width: int) -> None:
    console = Console(width=width, record=True)
    console.print(make_class_table(info))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    lines = [line.split() for line in text.splitlines()]
    assert ["samples", "120", "24"] in lines
    assert ["kind", "class-00", "79", "1"] in lines
    assert ["\u2026", "28", "more", "28", "19"] in lines
    assert ["size", "small", "60", "12"] in lines
    assert ["colour", "red", "60", "12"] in lines
    assert ["worn", "1", "of", "labelled", "1", "of", "90", "1", "of", "18"] in lines
    assert ["price", "labelled", "120", "24"] in lines
    assert len(lines) < 30


def test_classes_of_fewer_than_ten_test_images_are_told(info: DatasetInfo) -> None:
    kind, worn = describe_rare_classes(info)
    assert "Task 'kind': 40 of its 40 classes have fewer than 10 images in test" in kind
    assert kind.endswith("and 30 more.")
    assert "worn=1 (1)" in worn
    assert "worn=0" not in worn


def test_the_check_tells_both(info: DatasetInfo) -> None:
    ended = run_command(["data", "check", info.path])
    assert ended.code == 0, ended.err
    assert "Images of each class" in ended.out
    assert "fewer than 10 images in test" in ended.out
