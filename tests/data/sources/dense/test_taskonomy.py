"""Taskonomy's own files in its three layouts: 16 bits of depth, keypoints and edges, colours of normals, ids from 0 to 17."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_areas import (
    NORMAL_CODES,
    NORMALS,
    assert_labels_fit,
    draw_areas,
    draw_picture,
    open_source,
    read_samples,
    write_png,
)

from distbranch.data.sources.dense.taskonomy import TINY
from distbranch.errors import UserError

LAYOUTS = ("{domain}/{building}", "{domain}/taskonomy/{building}", "{building}/{domain}")
IDS = np.array([1, 17, 3, 4, 5, 0])
DEPTH = np.array([512, 1, 1024, 5000, 64999, 65535])
SHARES = np.array([0, 0.5, 1, 0.3, 2, 0.7])  # of the value above which they are clipped
CODES = {
    "segmentation": np.array([0, 16, 2, 3, 4, 255]),
    "normals": NORMAL_CODES,
    # In 1 / 512 m.
    "depth": np.array([512, 1, 1024, 5000, 64999, 0]),
    "keypoints": np.array([0, 127, 254, 76, 254, 178]),
    "edges": np.array([0, 127, 254, 76, 254, 178]),
}
# One of each split of `tiny`.
BUILDINGS = {"hanson": "train", "darden": "val", "ihlen": "test"}


def write(root: Path, layout: str = LAYOUTS[0], buildings: Any = BUILDINGS) -> Path:
    """A view of each building."""
    keypoints = np.rint(SHARES * 0.005 * 65536)
    edges = np.rint(SHARES * 0.08 * 65536)
    # x right, y down, z towards the camera. Where there is no depth, a colour that says nothing.
    theirs = np.where(NORMALS.any(axis=1, keepdims=True), NORMALS * [1, -1, 1], [0, 0, 1])
    colours = np.rint((theirs + 1) * 127.5)
    for number, building in enumerate(buildings):
        areas = draw_areas(number)
        files = {
            ("rgb", "rgb"): draw_picture(number),
            ("segment_semantic", "segmentsemantic"): IDS.astype(np.uint8)[areas],
            ("normal", "normal"): colours.astype(np.uint8)[areas],
            ("depth_zbuffer", "depth_zbuffer"): DEPTH.astype(np.uint16)[areas],
            ("keypoints2d", "keypoints2d"): keypoints.astype(np.uint16)[areas],
            ("edge_texture", "edge_texture"): edges.astype(np.uint16)[areas],
        }
        for (domain, word), pixels in files.items():
            folder = root / layout.format(domain=domain, building=building)
            write_png(folder / f"point_{number}_view_7_domain_{word}.png", pixels)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pixel_carries_its_labels_in_every_layout(tmp_path: Path, layout: str) -> None:
    source = open_source("taskonomy", write(tmp_path, layout))
    samples = assert_labels_fit(source, CODES)
    assert [(sample.key, sample.split) for sample in samples] == [
        ("darden/point_1_view_7", "val"),
        ("hanson/point_0_view_7", "train"),
        ("ihlen/point_2_view_7", "test"),
    ]
    tasks = {task.name: task for task in source.tasks}
    assert tasks["depth"].scale == 512
    assert len(tasks["segmentation"].classes) == 17


def test_a_domain_in_two_layouts_is_refused(tmp_path: Path) -> None:
    write(tmp_path, LAYOUTS[0])
    write(tmp_path, LAYOUTS[1])
    with pytest.raises(UserError, match=r"rgb/taskonomy/BUILDING and rgb/BUILDING, .* Keep one"):
        open_source("taskonomy", tmp_path)


def test_depth_along_the_ray_is_no_substitute(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "depth_zbuffer").rename(tmp_path / "depth_euclidean")
    with pytest.raises(
        UserError, match=r"should hold the folder depth_zbuffer \(.* depth_euclidean, .* --tasks"
    ):
        open_source("taskonomy", tmp_path)
    assert set(read_samples("taskonomy", tmp_path, tasks="edges,keypoints")[0].maps) == {
        "keypoints",
        "edges",
    }


def test_the_splits_of_tiny_have_the_published_numbers_of_buildings() -> None:
    counts = {split: len(set(names.split())) for split, names in TINY.items()}
    assert counts == {"train": 25, "val": 5, "test": 5}


def test_other_splits_come_from_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, buildings=("hanson", "elsewhere"))
    assert [sample.key for sample in read_samples("taskonomy", tmp_path, tasks="edges")] == [
        "hanson/point_0_view_7"
    ]
    assert "1 of 2 buildings are in no split and are left out, such as 'elsewhere'" in caplog.text
    table = tmp_path / "splits.csv"
    table.write_text("id,train,val,test\nhanson,0,0,1\nelsewhere,1,0,0\nother,0,0,0\n")
    samples = read_samples("taskonomy", tmp_path, tasks="edges", split_table=table)
    assert [sample.split for sample in samples] == ["train", "test"]
    table.write_text("id,train,val,test\nother,1,0,0\n")
    with pytest.raises(UserError, match="Of 2 buildings none is in a split, such as 'elsewhere'"):
        open_source("taskonomy", tmp_path, split_table=table)
    for line in ("hanson,1,1,0", "hanson,yes,0,0", "hanson,1"):
        table.write_text(f"id,train,val,test\n{line}\n")
        with pytest.raises(UserError, match=r"splits.csv, line 2: .* 1 in at most one of"):
            open_source("taskonomy", tmp_path, split_table=table)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "depth_zbuffer/hanson/point_0_view_7_domain_depth_zbuffer.png",
            np.full((16, 24), 9, np.uint8),
            "a grey picture of 16 bits should lie there, found one of 8 bits",
        ),
        (
            "segment_semantic/hanson/point_0_view_7_domain_segmentsemantic.png",
            np.full((16, 24), 18, np.uint8),
            "the class ids 0 to 17 alone should stand there, found 18",
        ),
        (
            "normal/hanson/point_0_view_7_domain_normal.png",
            np.full((16, 24, 3), (128, 128, 0), np.uint8),
            "most point away from it",
        ),
        (
            "normal/hanson/point_0_view_7_domain_normal.png",
            np.full((8, 24, 3), (128, 128, 255), np.uint8),
            r"label 'normals': .* 16x24 pixels, found 8x24",
        ),
    ],
)
def test_labels_that_cannot_be_right_are_one_sentence(
    tmp_path: Path, file: str, content: Any, message: str
) -> None:
    write_png(write(tmp_path) / file, content)
    with pytest.raises(UserError, match=message):
        read_samples("taskonomy", tmp_path)


def test_a_view_without_a_label_is_unlabelled_for_that_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    (tmp_path / "edge_texture/hanson/point_0_view_7_domain_edge_texture.png").unlink()
    samples = {sample.key: sample for sample in read_samples("taskonomy", tmp_path)}
    assert "edges" not in samples["hanson/point_0_view_7"].maps
    assert "1 of 3 samples have no file of 'edges'" in caplog.text
