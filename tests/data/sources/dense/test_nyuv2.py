"""NYUv2's own file, written here as MATLAB does: HDF5 with all axes in reverse, and cells as references."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from dense_areas import (
    METRE_CODES,
    METRES,
    assert_labels_fit,
    decode_first,
    draw_areas,
    draw_picture,
    open_source,
    read_samples,
)
from numpy.typing import NDArray

from distbranch.data.images import read_image_size
from distbranch.data.label_maps import decode_map
from distbranch.data.sources.dense.class_names import NYU_13, NYU_40
from distbranch.data.sources.dense.plane_normals import CENTRE, FOCAL_LENGTHS, fit_normals
from distbranch.errors import UserError
from distbranch.tasks import Task

LABELS = np.array([1, 2, 40, 41, 894, 0])
SCENES = ("kitchen_0004", "office_0001a", "kitchen_0004")
# Of 894 labels: 1 is bed (4), 2 wall (1), ..., the last otherprop (40).
MAP_40 = np.resize(np.arange(1, 41), 894)
MAP_40[[0, 1, 39, 40, 893]] = (4, 1, 22, 23, 40)
CODES_40 = np.array([3, 0, 21, 22, 39, 255])
# bed, wall, ceiling, books, objects
CODES_13 = np.array([0, 11, 2, 1, 6, 255])


def write_frames(
    path: Path,
    pictures: NDArray[np.uint8],
    labels: NDArray[Any],
    depths: NDArray[Any],
    raw_depths: NDArray[Any],
    scenes: Sequence[str] = SCENES,
    *,
    is_row: bool = False,
) -> None:
    """A file of version 7.3. Arrays are as in MATLAB: [H, W, 3, n], [H, W, n]."""
    # MATLAB puts a text before what is HDF5.
    with h5py.File(path, "w", userblock_size=512) as file:
        fields = {"images": pictures, "labels": labels, "depths": depths, "rawDepths": raw_depths}
        for name, array in fields.items():
            file.create_dataset(name, data=array.T)
        cells = np.empty(len(scenes), dtype=h5py.ref_dtype)
        for number, scene in enumerate(scenes):
            characters = np.array([[ord(character)] for character in scene], dtype=np.uint16)
            cells[number] = file.create_dataset(f"#refs#/{number}", data=characters).ref
        shape = (-1, 1) if is_row else (1, -1)
        file.create_dataset("scenes", data=cells.reshape(shape), dtype=h5py.ref_dtype)


def write(root: Path, *, is_row: bool = False) -> Path:
    """Three frames: two of one kitchen (train), and an office (test)."""
    areas = np.stack([draw_areas(number) for number in range(3)], axis=2)
    pictures = np.stack([draw_picture(number) for number in range(3)], axis=3)
    depths = METRES.astype(np.float32)[areas]
    labels = LABELS.astype(np.uint16)[areas]
    path = root / "nyu_depth_v2_labeled.mat"
    write_frames(path, pictures, labels, depths, depths, is_row=is_row)
    write_lists(root)
    return root


def write_lists(root: Path, train: Sequence[int] = (1, 3), test: Sequence[int] = (2,)) -> None:
    """Splits and classes as MATLAB writes them, counted from 1."""
    scipy.io.savemat(
        root / "splits.mat",
        {"trainNdxs": np.array(train)[:, None], "testNdxs": np.array(test)[:, None]},
    )
    scipy.io.savemat(
        root / "classMapping40.mat",
        {"mapClass": MAP_40[None].astype(np.float64), "className": np.array(NYU_40, dtype=object)},
    )


@pytest.mark.parametrize("is_row", [False, True])
def test_every_pixel_carries_its_labels(tmp_path: Path, is_row: bool) -> None:
    source = open_source("nyuv2", write(tmp_path, is_row=is_row), val=0)
    samples = assert_labels_fit(source, {"segmentation": CODES_40, "depth": METRE_CODES})
    assert [(sample.key, sample.split) for sample in samples] == [
        ("0001", "train"),
        ("0002", "test"),
        ("0003", "train"),
    ]
    assert source.tasks[0].classes == NYU_40
    assert source.num_samples == 3


def test_the_thirteen_classes_are_parts_of_the_forty(tmp_path: Path) -> None:
    source = open_source("nyuv2", write(tmp_path), classes=13, tasks="segmentation")
    assert_labels_fit(source, {"segmentation": CODES_13})
    assert source.tasks[0].classes == NYU_13
    assert source.description["classes"] == "13"


def test_frames_of_one_scene_stay_in_one_split(tmp_path: Path) -> None:
    write(tmp_path)
    kitchens = set()
    for seed in range(12):
        samples = read_samples("nyuv2", tmp_path, val=0.5, seed=seed, tasks="depth")
        first, office, second = (sample.split for sample in samples)
        assert first == second
        assert office == "test"
        kitchens.add(first)
    assert kitchens == {"train", "val"}


def test_crops_keep_what_they_say(tmp_path: Path) -> None:
    depth = np.ones((480, 640, 1), dtype=np.float32)
    depth[45, 41] = 2
    depth[8, 8] = 3
    picture = np.zeros((480, 640, 3, 1), dtype=np.uint8)
    labels = np.zeros((480, 640, 1), dtype=np.uint16)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    write_frames(path, picture, labels, depth, depth, SCENES[:1])
    write_lists(tmp_path, (1,), ())
    for crop, size, corner in (("eigen", (426, 560), 2000), ("border", (464, 624), 3000)):
        (sample,) = read_samples("nyuv2", tmp_path, crop=crop, tasks="depth")
        codes = decode_map(Task("depth", "depth"), sample.maps["depth"])
        assert codes.shape == size
        assert codes[0, 0] == corner
        assert read_image_size(sample.image) == size


def test_normals_of_raw_depth_are_those_of_the_planes_and_named_so(tmp_path: Path) -> None:
    # A wall that is turned to the right side of the picture, and a hole in it.
    normal = np.array([0.6, 0.0, 0.8])
    rows, columns = np.indices((40, 60))
    rays = np.stack(
        [
            (columns - CENTRE[0]) / FOCAL_LENGTHS[0],
            (CENTRE[1] - rows) / FOCAL_LENGTHS[1],
            -np.ones((40, 60)),
        ],
        axis=2,
    )
    depth = -2 / (rays @ normal)
    depth[10:30, 10:30] = 0
    fitted = fit_normals(depth)
    assert (fitted[20, 20] == 0).all()
    has_normal = fitted.any(axis=2)
    assert has_normal[:, 35:].all()
    assert fitted[has_normal] @ normal == pytest.approx(1, abs=1e-6)

    path = tmp_path / "nyu_depth_v2_labeled.mat"
    picture = np.zeros((40, 60, 3, 1), dtype=np.uint8)
    labels = np.zeros((40, 60, 1), dtype=np.uint16)
    write_frames(path, picture, labels, np.ones((40, 60, 1)), depth[:, :, None], SCENES[:1])
    write_lists(tmp_path, (1,), ())
    source = open_source("nyuv2", tmp_path, tasks="normals")
    assert source.description["normals"] == "from-depth"
    codes = decode_first(source, "normals")
    assert codes[20, 50].tolist() == [204, 128, 230]
    assert codes[20, 20].tolist() == [0, 0, 0]


def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    whole = path.read_bytes()
    scipy.io.savemat(path, {"images": np.zeros(3)})
    with pytest.raises(UserError, match=r"should be a MATLAB file of version 7.3 \(HDF5\)"):
        open_source("nyuv2", tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is cut short or damaged"):
        open_source("nyuv2", tmp_path)
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(UserError, match="depths, rawDepths, labels, scenes is not there"):
        open_source("nyuv2", tmp_path)
    with h5py.File(path, "w") as file:
        for name in ("images", "depths", "rawDepths", "labels", "scenes"):
            file[name] = np.zeros((3, 24, 16))
    with pytest.raises(
        UserError, match=r"as many maps as pictures .* found pictures of \(3, 24, 16"
    ):
        open_source("nyuv2", tmp_path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file["scenes"]
        file["scenes"] = np.zeros(3)
    with pytest.raises(UserError, match="'scenes' should be cells, a text each"):
        open_source("nyuv2", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"nyu_depth_v2_labeled.mat was not found under"):
        open_source("nyuv2", tmp_path)


def test_the_package_that_reads_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        UserError,
        match=r"h5py, which is not installed. Install it: pip install 'distbranch\[nyu\]'",
    ):
        open_source("nyuv2", tmp_path)


def test_lists_of_another_make_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    write_lists(tmp_path, (1, 4))
    with pytest.raises(
        UserError, match=r"each of the 3 frames .* counted from 1, found 4 in trainNdxs"
    ):
        open_source("nyuv2", tmp_path)
    write_lists(tmp_path, (1, 2))
    with pytest.raises(UserError, match="found 2 in testNdxs"):
        open_source("nyuv2", tmp_path)
    (tmp_path / "splits.mat").write_bytes(b"no such file")
    with pytest.raises(
        UserError, match=r"splits.mat should be a MATLAB file .version 5. that holds"
    ):
        open_source("nyuv2", tmp_path)
    write_lists(tmp_path)
    scipy.io.savemat(tmp_path / "classMapping40.mat", {"mapClass": np.arange(13)})
    with pytest.raises(UserError, match=r"should map 894 labels to 1..40, found 13 numbers"):
        open_source("nyuv2", tmp_path)
    other = tmp_path / "other.mat"
    scipy.io.savemat(other, {"mapClass": MAP_40})
    assert open_source("nyuv2", tmp_path, class_map=other).num_samples == 3


def test_a_label_beyond_the_list_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["labels"][1, 3, 4] = 895
    with pytest.raises(
        UserError, match=r"frame 2, label 'segmentation': .* 0 to 894 alone .* found 895"
    ):
        read_samples("nyuv2", tmp_path)
