"""MTAN's and LibMTL's arrays of NYUv2 and CityScapes, and AdaShare's index of the latter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_areas import (
    METRE_CODES,
    METRES,
    NORMAL_CODES,
    NORMALS,
    assert_labels_fit,
    decode_first,
    draw_areas,
    draw_picture,
    open_source,
    read_samples,
    write_npy,
    write_png,
)

from distbranch.data.sources.dense.class_names import CITYSCAPES_7, CITYSCAPES_19, NYU_13
from distbranch.errors import UserError

IDS = np.array([0, 12, 3, 4, 5, -1])
CLASS_CODES = np.array([0, 12, 3, 4, 5, 255])
SEVEN_CODES = np.array([0, 6, 3, 4, 5, 255])
DISPARITY = np.array([1, 257, 5121, 32257, 65535, 0])


def write_nyuv2(root: Path) -> Path:
    """Two frames of train, one of val."""
    for split, number, name in (("train", 0, "0"), ("train", 1, "10"), ("val", 2, "0")):
        areas = draw_areas(number)
        write_npy(root / split / f"image/{name}.npy", draw_picture(number) / 255)
        write_npy(root / split / f"label/{name}.npy", IDS.astype(np.float32)[areas])
        write_npy(root / split / f"depth/{name}.npy", METRES[areas][:, :, None])
        write_npy(root / split / f"normal/{name}.npy", NORMALS[areas].astype(np.float32))
    return root


def write_cityscapes(root: Path, *folders: str) -> Path:
    """One frame of train, one of val."""
    for split, number in (("train", 0), ("val", 1)):
        areas = draw_areas(number)
        write_npy(root / split / "image/0.npy", draw_picture(number) / 255)
        write_npy(root / split / "depth/0.npy", (DISPARITY / 65535)[areas][:, :, None])
        for folder in folders:
            ids = np.where(SEVEN_CODES == 255, -1, SEVEN_CODES)
            write_npy(root / split / folder / "0.npy", ids[areas])
    return root


def test_every_pixel_of_nyuv2_carries_its_labels(tmp_path: Path) -> None:
    source = open_source("mtan-nyuv2", write_nyuv2(tmp_path), val=0)
    samples = assert_labels_fit(
        source, {"segmentation": CLASS_CODES, "depth": METRE_CODES, "normals": NORMAL_CODES}
    )
    # Their val is the official test split.
    assert [(sample.key, sample.split) for sample in samples] == [
        ("train-0", "train"),
        ("train-10", "train"),
        ("val-0", "test"),
    ]
    assert source.tasks[0].classes == NYU_13


def test_a_normal_whose_components_sum_to_zero_is_one(tmp_path: Path) -> None:
    write_nyuv2(tmp_path)
    side = np.sqrt(0.5)
    write_npy(tmp_path / "train/normal/0.npy", np.full((16, 24, 3), (-side, 0, side)))
    codes = decode_first(open_source("mtan-nyuv2", tmp_path), "normals")
    assert (codes == [128 - 90, 128, 128 + 90]).all()


def test_axes_that_nobody_documents_are_kept_noted_and_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source("mtan-nyuv2", write_nyuv2(tmp_path))
    assert source.description["normals"] == "axes as in the files, which do not say which they are"
    assert not caplog.text
    away = np.broadcast_to([0.0, 0.6, -0.8], (16, 24, 3))
    for split, name in (("train", "0"), ("train", "10"), ("val", "0")):
        write_npy(tmp_path / split / f"normal/{name}.npy", away)
    source = open_source("mtan-nyuv2", tmp_path)
    assert "0.npy: most normals point away from the camera" in caplog.text
    assert (decode_first(source, "normals") == [128, 204, 26]).all()

    # Who names axes is held to them.
    source = open_source("mtan-nyuv2", tmp_path, normal_axes="x,y,-z")
    assert (decode_first(source, "normals") == [128, 204, 230]).all()
    assert "normals" not in source.description
    with pytest.raises(UserError, match="most point away"):
        read_samples("mtan-nyuv2", tmp_path, normal_axes="x,y,z")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("label/0.npy", np.full((16, 24), 13), "the class ids -1 to 12 alone .* found 13"),
        ("label/0.npy", np.full((16, 24), 2.5), r"found 2.5.* resized with mixing\?$"),
        ("label/0.npy", np.zeros((8, 12)), "16x24 pixels, .* found 8x12"),
        (
            "image/0.npy",
            np.full((16, 24, 3), 200),
            r"image/0.npy: a picture of values in 0..1 should lie there, found 200 to 200\.$",
        ),
        (
            "image/0.npy",
            np.full((16, 24, 3), "a"),
            r"image/0.npy: an array of numbers should lie there, found one of <U1\.$",
        ),
        ("depth/0.npy", np.ones((16, 24), complex), "of numbers .* found one of complex128"),
        ("normal/0.npy", np.full((16, 24, 3), 0.25), "normals of length 1 .* found 0.433"),
        (
            "normal/0.npy",
            np.ones((16, 24)),
            r"\[height, width, 3\] should lie there, found \[16, 24\]",
        ),
    ],
)
def test_arrays_that_cannot_be_right_are_one_sentence(
    tmp_path: Path, file: str, content: Any, message: str
) -> None:
    write_npy(write_nyuv2(tmp_path) / "train" / file, content)
    with pytest.raises(UserError, match=message):
        read_samples("mtan-nyuv2", tmp_path)


def test_arrays_that_hold_code_are_damaged_ones(tmp_path: Path) -> None:
    path = write_nyuv2(tmp_path) / "train/depth/0.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"no .npy file of numbers"):
        read_samples("mtan-nyuv2", tmp_path)
    assert len(read_samples("mtan-nyuv2", tmp_path, on_bad_image="skip")) == 2


def test_a_folder_of_two_conventions_is_refused(tmp_path: Path) -> None:
    write_png(write_nyuv2(tmp_path) / "train/depth/0.png", np.zeros((16, 24), np.uint8))
    with pytest.raises(UserError, match=r"depth holds .npy and .png files"):
        open_source("mtan-nyuv2", tmp_path)
    assert open_source("mtan-nyuv2", tmp_path, tasks="normals").num_samples == 3
    for path in (tmp_path / "train/depth").glob("*.npy"):
        path.unlink()
    with pytest.raises(UserError, match=r"depth should hold .npy files, found .png"):
        open_source("mtan-nyuv2", tmp_path)


def test_a_folder_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"image was not found, in which the files of 'images' should lie. Give with --root",
    ):
        open_source("mtan-nyuv2", tmp_path)


@pytest.mark.parametrize(
    ("folder", "classes"),
    [("label", CITYSCAPES_7), ("label_7", CITYSCAPES_7), ("label_19", CITYSCAPES_19)],
)
def test_every_pixel_of_cityscapes_carries_its_labels(
    tmp_path: Path, folder: str, classes: tuple[str, ...]
) -> None:
    source = open_source("mtan-cityscapes", write_cityscapes(tmp_path, folder), val=0)
    # 65535ths of what the official files hold.
    samples = assert_labels_fit(source, {"segmentation": SEVEN_CODES, "disparity": DISPARITY})
    assert [sample.split for sample in samples] == ["train", "test"]
    assert source.tasks[0].classes == classes
    assert source.tasks[1].quantity == "disparity"
    assert ("classes" in source.description) == (len(classes) == 7)


def test_which_of_several_label_sets_counts_is_asked(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, "label_7", "label_19")
    with pytest.raises(UserError, match=r"--labels .* found label_7 and label_19"):
        open_source("mtan-cityscapes", tmp_path)
    with pytest.raises(UserError, match="--labels"):
        open_source("mtan-cityscapes", tmp_path, labels="label_2")
    assert len(open_source("mtan-cityscapes", tmp_path, labels="label_19").tasks[0].classes) == 19
    assert open_source("mtan-cityscapes", tmp_path, tasks="disparity").num_samples == 2


def test_adashares_index_names_the_same_files(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, "label_2", "label_7", "label_19")
    index = {}
    for split in ("train", "val"):
        folders = ("image", "depth", "label_2", "label_7", "label_19")
        index[split] = [[f"{split}/{folder}/0.npy" for folder in folders]]
    (tmp_path / "cityscape.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="found label_2 and label_7 and label_19"):
        open_source("mtan-cityscapes", tmp_path)
    source = open_source("mtan-cityscapes", tmp_path, labels="label_7", val=0)
    samples = assert_labels_fit(source, {"segmentation": SEVEN_CODES, "disparity": DISPARITY})
    assert [(sample.key, sample.split) for sample in samples] == [
        ("train-image-0", "train"),
        ("val-image-0", "test"),
    ]
    source = open_source("mtan-cityscapes", tmp_path, tasks="disparity")
    assert_labels_fit(source, {"disparity": DISPARITY})
    assert "classes" not in source.description


def test_disparity_that_is_no_share_is_refused(tmp_path: Path) -> None:
    write_npy(write_cityscapes(tmp_path, "label") / "train/depth/0.npy", np.full((16, 24), 30.0))
    with pytest.raises(UserError, match=r"disparity as shares of 65535, .* found 30 to 30"):
        read_samples("mtan-cityscapes", tmp_path)
