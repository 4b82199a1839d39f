"""NYUD-MT in both of its forms: labels as arrays beside JPEGs, or as pictures beside PNGs."""

from pathlib import Path

import numpy as np
import pytest
from dense_areas import (
    METRE_CODES,
    METRES,
    NORMAL_CODES,
    NORMALS,
    assert_labels_fit,
    draw_areas,
    draw_picture,
    encode_colours,
    encode_jpeg,
    open_source,
    read_samples,
    write_npy,
    write_png,
)

from distbranch.errors import UserError

IDS = np.array([1, 40, 8, 13, 21, 0])
EDGES = np.array([0, 1, 0, 1, 1, 0])
CODES = {
    "segmentation": np.array([0, 39, 7, 12, 20, 255]),
    "normals": NORMAL_CODES,
    "depth": METRE_CODES,
    "edges": 254 * EDGES,
}


def write(root: Path, *, as_pictures: bool) -> Path:
    """Two frames of train, one of val."""
    for number, name in enumerate(("0003", "0014", "0001")):
        areas = draw_areas(number)
        metres = np.where(METRES == 0, 255, METRES)[areas]
        write_png(root / f"segmentation/{name}.png", IDS.astype(np.uint8)[areas])
        write_npy(root / f"depth/{name}.npy", metres.astype(np.float32))
        picture = draw_picture(number)
        if as_pictures:
            write_png(root / f"images/{name}.png", picture)
            write_png(root / f"normals/{name}.png", encode_colours(NORMALS[areas]))
            write_png(root / f"edge/{name}.png", (255 * EDGES).astype(np.uint8)[areas])
        else:
            (root / "images").mkdir(exist_ok=True)
            (root / f"images/{name}.jpg").write_bytes(encode_jpeg(picture))
            write_npy(root / f"normals/{name}.npy", NORMALS[areas])
            write_npy(root / f"edge/{name}.npy", EDGES[areas])
    (root / "gt_sets").mkdir()
    (root / "gt_sets/train.txt").write_text("0003\n0014\n")
    (root / "gt_sets/val.txt").write_text("0001\n")
    return root


@pytest.mark.parametrize("as_pictures", [False, True])
def test_every_pixel_carries_its_labels(tmp_path: Path, as_pictures: bool) -> None:
    source = open_source("nyud-mt", write(tmp_path, as_pictures=as_pictures), val=0)
    samples = assert_labels_fit(source, CODES)
    assert [(sample.key, sample.split) for sample in samples] == [
        ("0003", "train"),
        ("0014", "train"),
        ("0001", "test"),
    ]
    assert source.description["normals"].startswith("axes as in the files")


def test_jpegs_are_kept_byte_for_byte(tmp_path: Path) -> None:
    write(tmp_path, as_pictures=False)
    kept = [sample.image for sample in read_samples("nyud-mt", tmp_path, tasks="depth")]
    assert kept[0] == (tmp_path / "images/0003.jpg").read_bytes()


def test_a_folder_of_two_conventions_is_refused(tmp_path: Path) -> None:
    write(tmp_path, as_pictures=False)
    write_png(tmp_path / "normals/0003.png", np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(UserError, match=r"normals holds .npy and .png files"):
        open_source("nyud-mt", tmp_path)


def test_a_task_without_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path, as_pictures=False)
    (tmp_path / "edge").rename(tmp_path / "edges")
    with pytest.raises(UserError, match=r"edge was not found, .* name with --tasks the others"):
        open_source("nyud-mt", tmp_path)
    assert len(open_source("nyud-mt", tmp_path, tasks="depth,normals").tasks) == 2


def test_a_frame_in_both_lists_is_refused(tmp_path: Path) -> None:
    write(tmp_path, as_pictures=False)
    (tmp_path / "gt_sets/val.txt").write_text("0001\n0014\n")
    with pytest.raises(UserError, match=r"val.txt: '0014' stands there or in train.txt already"):
        open_source("nyud-mt", tmp_path)
