"""CityScapes' own files: ids and training ids, and disparity of 16 bits with zeros."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_areas import (
    assert_labels_fit,
    draw_areas,
    draw_picture,
    open_source,
    read_samples,
    write_png,
)

from distbranch.data.sources.dense.class_names import CITYSCAPES_7, CITYSCAPES_19
from distbranch.errors import UsageError, UserError

# road, bicycle, caravan, parking, pole, ego vehicle
IDS = np.array([7, 33, 29, 9, 17, 1])
CODES_19 = np.array([0, 18, 255, 255, 5, 255])
CODES_7 = np.array([0, 6, 6, 0, 2, 255])
DISPARITY = np.array([1, 257, 5121, 32257, 300, 0])


def write(root: Path, *kinds: str, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Two frames of one city of each split, with labels of these kinds."""
    values = {"labelIds": IDS, "labelTrainIds": CODES_19}
    for split in splits:
        for number in range(2):
            areas = draw_areas(number)
            city = f"{split}stadt"
            stem = f"{split}/{city}/{city}_{number:06d}_000019"
            write_png(root / f"leftImg8bit/{stem}_leftImg8bit.png", draw_picture(number))
            for kind in kinds:
                write_png(
                    root / f"gtFine/{stem}_gtFine_{kind}.png", values[kind].astype(np.uint8)[areas]
                )
            write_png(root / f"disparity/{stem}_disparity.png", DISPARITY.astype(np.uint16)[areas])
    return root


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_every_pixel_carries_its_labels(tmp_path: Path, kind: str) -> None:
    source = open_source("cityscapes", write(tmp_path, kind), val=0)
    # Disparity is what is published: 0 is none, else (value - 1) / 256 pixels.
    samples = assert_labels_fit(source, {"segmentation": CODES_19, "disparity": DISPARITY})
    assert [(sample.key, sample.split) for sample in samples] == [
        ("trainstadt_000000_000019", "train"),
        ("trainstadt_000001_000019", "train"),
        ("valstadt_000000_000019", "test"),
        ("valstadt_000001_000019", "test"),
    ]
    assert source.tasks[0].classes == CITYSCAPES_19
    assert source.tasks[1].quantity == "disparity"
    assert source.description["disparity"].endswith("of the camera of 2048 columns")


def test_the_seven_categories_are_those_of_the_ids(tmp_path: Path) -> None:
    write(tmp_path, "labelIds")
    source = open_source("cityscapes", tmp_path, classes=7, tasks="segmentation")
    assert_labels_fit(source, {"segmentation": CODES_7})
    assert source.tasks[0].classes == CITYSCAPES_7


def test_labels_of_two_conventions_are_asked_about(tmp_path: Path) -> None:
    write(tmp_path, "labelIds", "labelTrainIds")
    with pytest.raises(UserError, match=r"holds labelIds and labelTrainIds, .* --labels"):
        open_source("cityscapes", tmp_path)
    for labels in ("ids", "train-ids"):
        source = open_source("cityscapes", tmp_path, labels=labels)
        assert_labels_fit(source, {"segmentation": CODES_19, "disparity": DISPARITY})
    with pytest.raises(UserError, match="7 categories need labelIds"):
        open_source("cityscapes", tmp_path, labels="train-ids", classes="7")


def test_frames_of_one_city_stay_in_one_split(tmp_path: Path) -> None:
    write(tmp_path, "labelIds")
    drawn = set()
    for seed in range(12):
        samples = read_samples("cityscapes", tmp_path, val=0.5, seed=seed, tasks="disparity")
        assert samples[0].split == samples[1].split
        drawn.add(samples[0].split)
    assert drawn == {"train", "val"}


def test_the_official_test_split_is_refused_and_never_packed(tmp_path: Path) -> None:
    write(tmp_path, "labelIds", splits=("train", "val", "test"))
    with pytest.raises(UsageError, match="labels of test are dummies"):
        open_source("cityscapes", tmp_path, splits="train,test")
    keys = [sample.key for sample in read_samples("cityscapes", tmp_path)]
    assert len(keys) == 4
    assert not any(key.startswith("test") for key in keys)
    assert open_source("cityscapes", tmp_path, splits="val").num_samples == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "disparity/train/trainstadt/trainstadt_000000_000019_disparity.png",
            np.zeros((16, 24), np.uint8),
            "label 'disparity': a grey picture of 16 bits should lie there, found one of 8 bits",
        ),
        (
            "gtFine/train/trainstadt/trainstadt_000000_000019_gtFine_labelIds.png",
            np.full((16, 24), 34, np.uint8),
            "the class ids 0 to 33 alone should stand there, found 34",
        ),
    ],
)
def test_labels_that_cannot_be_right_are_one_sentence(
    tmp_path: Path, file: str, content: Any, message: str
) -> None:
    write_png(write(tmp_path, "labelIds") / file, content)
    with pytest.raises(UserError, match=message):
        read_samples("cityscapes", tmp_path)


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No labelIds or labelTrainIds was found"):
        open_source("cityscapes", tmp_path)
    with pytest.raises(UserError, match=r"No \*_leftImg8bit.png was found in the cities of"):
        open_source("cityscapes", tmp_path, tasks="disparity")
    write(tmp_path, "labelIds")
    (tmp_path / "disparity").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"No \*_disparity.png was found in .*--tasks the others"):
        open_source("cityscapes", tmp_path)
    samples = read_samples("cityscapes", tmp_path, tasks="segmentation")
    assert [set(sample.maps) for sample in samples] == 4 * [{"segmentation"}]


def test_a_frame_without_disparity_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "labelIds")
    next(tmp_path.glob("disparity/*/*/*.png")).unlink()
    assert all("segmentation" in sample.maps for sample in read_samples("cityscapes", tmp_path))
    assert "1 of 4 samples have no file of 'disparity'" in caplog.text
