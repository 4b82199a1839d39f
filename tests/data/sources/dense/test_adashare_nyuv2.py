"""AdaShare's folder of NYUv2: ids, colours of normals with z into the scene, metres."""

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
    encode_colours,
    open_source,
    read_areas,
    read_samples,
    write_npy,
    write_png,
)

from distbranch.data.label_maps import decode_map
from distbranch.errors import UsageError, UserError

IDS = np.array([0, 39, 7, 12, 20, 255])
CODES = {"segmentation": IDS, "normals": NORMAL_CODES, "depth": METRE_CODES}


def write(root: Path) -> Path:
    """Two frames of train, one of test."""
    index: dict[str, list[list[str]]] = {"train": [], "train1": [], "train2": [], "test": []}
    for number in range(3):
        areas = draw_areas(number)
        name = f"{number + 1:04d}"
        write_png(root / f"img/{name}.png", draw_picture(number))
        write_png(root / f"seg/{name}.png", IDS.astype(np.uint8)[areas])
        write_npy(root / f"depth/{name}.npy", METRES.astype(np.float32)[areas])
        # x right, z into the scene, y up.
        theirs = np.stack([NORMALS[:, 0], -NORMALS[:, 2], NORMALS[:, 1]], axis=1)[areas]
        write_png(root / f"normal_mask/{name}.png", encode_colours(theirs))
        files = [
            f"img/{name}.png",
            f"seg/{name}.png",
            f"normal_mask/{name}.png",
            f"depth/{name}.npy",
        ]
        index["test" if number == 2 else "train"].append(files)
    (root / "nyu_v2_3task.json").write_text(json.dumps(index))
    return root


def test_every_pixel_carries_its_labels(tmp_path: Path) -> None:
    source = open_source("adashare-nyuv2", write(tmp_path), val=0)
    samples = assert_labels_fit(source, CODES)
    assert [(sample.key, sample.split) for sample in samples] == [
        ("0001", "train"),
        ("0002", "train"),
        ("0003", "test"),
    ]
    assert len(source.tasks[0].classes) == 40


def test_colours_near_grey_have_no_direction(tmp_path: Path) -> None:
    path = write(tmp_path) / "normal_mask/0001.png"
    colours = encode_colours(np.broadcast_to([0.0, -1.0, 0.0], (16, 24, 3)))
    colours[3, 5] = (127, 127, 128)
    write_png(path, colours)
    codes = decode_first(open_source("adashare-nyuv2", tmp_path), "normals")
    assert codes[3, 5].tolist() == [0, 0, 0]
    assert codes[3, 4].tolist() == [128, 128, 255]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "seg/0001.png",
            np.zeros((16, 23), np.uint8),
            r"0001.png, label 'segmentation': 16x24 pixels, those of the image, .* found 16x23",
        ),
        (
            "seg/0001.png",
            np.full((16, 24), 40, np.uint8),
            r"label 'segmentation': the class ids 0 to 39, 255 alone .* found 40",
        ),
        (
            "seg/0001.png",
            np.zeros((16, 24, 3), np.uint8),
            "a grey picture of class ids should lie there, found one of colours",
        ),
        (
            "normal_mask/0001.png",
            np.full((16, 24, 3), (200, 200, 128), np.uint8),
            r"label 'normals': normals of length 1 should stand there, found 0.804 in the median",
        ),
        (
            "normal_mask/0001.png",
            np.full((16, 24, 3), (127, 255, 127), np.uint8),
            "most point away from it, as in a mirrored file. Say with --normal-axes",
        ),
        (
            "depth/0001.npy",
            np.full((16, 24), 3200.0),
            r"depth in metres, up to 65.535, .* found 3200. Is it in millimetres\?$",
        ),
        (
            "depth/0001.npy",
            np.ones((16, 24, 3)),
            r"an array \[height, width\] should lie there, found \[16, 24, 3\]",
        ),
    ],
)
def test_labels_that_cannot_be_right_are_one_sentence(
    tmp_path: Path, file: str, content: Any, message: str
) -> None:
    write(tmp_path)
    (write_npy if file.endswith(".npy") else write_png)(tmp_path / file, content)
    with pytest.raises(UserError, match=message):
        read_samples("adashare-nyuv2", tmp_path, on_bad_image="skip")


def test_other_axes_of_normals_are_read_as_said(tmp_path: Path) -> None:
    write(tmp_path)
    facing = np.broadcast_to([0.0, 0.0, 1.0], (16, 24, 3))
    write_png(tmp_path / "normal_mask/0001.png", encode_colours(facing))
    source = open_source("adashare-nyuv2", tmp_path, normal_axes="x,-y,z", tasks="normals")
    assert (decode_first(source, "normals") == [128, 128, 255]).all()
    with pytest.raises(UsageError, match=r"--normal-axes .* each once"):
        open_source("adashare-nyuv2", tmp_path, normal_axes="x,y,y")


def test_missing_labels_are_told_and_damaged_ones_stop_or_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    (tmp_path / "depth/0001.npy").unlink()
    assert set(read_samples("adashare-nyuv2", tmp_path)[0].maps) == {"segmentation", "normals"}
    assert (
        "1 of 3 samples have no file of 'depth' and are unlabelled for this task, '0001'"
        in caplog.text
    )

    (tmp_path / "seg/0002.png").write_bytes(b"no picture")
    (tmp_path / "img/0003.png").unlink()
    with pytest.raises(
        UserError, match=r"0002.png cannot be used: .*0002.png is a damaged picture"
    ):
        read_samples("adashare-nyuv2", tmp_path)
    source = open_source("adashare-nyuv2", tmp_path, on_bad_image="skip")
    assert [sample.key for sample in source.samples] == ["0001"]
    assert [one.kind for one in source.left_out] == ["broken-image", "missing-image"]


def test_labels_are_resized_at_the_centres_of_pixels(tmp_path: Path) -> None:
    source = open_source("adashare-nyuv2", write(tmp_path), image_size="8x12")
    for sample in source.samples:
        areas = read_areas(sample.image, (8, 12))
        codes = decode_map(source.tasks[0], sample.maps["segmentation"])
        assert codes.tolist() == IDS[areas].tolist()


def test_a_size_of_another_shape_is_refused_for_normals_alone(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(
        UserError, match=r"16x24 pixels would be stretched to 8x8.* --image-size 5x8"
    ):
        read_samples("adashare-nyuv2", tmp_path, image_size="8x8")
    samples = read_samples("adashare-nyuv2", tmp_path, image_size="8x8", tasks="depth")
    assert [set(sample.maps) for sample in samples] == 3 * [{"depth"}]


def test_a_task_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--tasks: should be some of segmentation, normals, depth .*edges"
    ):
        open_source("adashare-nyuv2", tmp_path, tasks="depth,edges")


def test_an_option_that_nothing_would_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--normal-axes .* says something of 'normals', which is"):
        open_source("adashare-nyuv2", tmp_path, tasks="depth", normal_axes="x,y,z")


@pytest.mark.parametrize("axes", ["x,y", "x,y,z,z", "x,x,y", "x;y;z", ""])
def test_axes_that_are_not_three_are_refused_with_an_example(tmp_path: Path, axes: str) -> None:
    with pytest.raises(UsageError, match=r"which of the file's axes .*: x,z,-y for instance"):
        open_source("adashare-nyuv2", tmp_path, normal_axes=axes)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"train": [["a", "b"]], "test": [["a", "b"]]}',
        '{"train": 3}',
        '{"train": ["abcd"], "test": ["abcd"]}',
    ],
)
def test_an_index_of_another_make_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "nyu_v2_3task.json").write_text(content)
    with pytest.raises(
        UserError, match=r"should be JSON that lists for train and for test .* 4 files"
    ):
        open_source("adashare-nyuv2", tmp_path)
