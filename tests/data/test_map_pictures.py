"""Contact sheets with maps, and what `data check` finds in maps that are as they were packed and still mean nothing."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_samples import (
    DENSE,
    HEIGHT,
    TASKS,
    WIDTH,
    make_board,
    make_codes,
    make_sample,
    pack_rooms,
)
from numpy.typing import NDArray
from PIL import Image
from webdataset.writer import TarWriter

from distbranch.data.check import check_dataset
from distbranch.data.contact_sheet import CARD_WIDTH, GAP, HEAD, draw_contact_sheet
from distbranch.data.map_pictures import MapPainter
from distbranch.data.shard_writer import file_sha256, index_shard, name_map_file
from distbranch.data.shards import DatasetInfo
from distbranch.data.sources import pack_source
from distbranch.data.sources.source import Source
from distbranch.engine.labelling import _add_soft_labels
from distbranch.kinds.kind import Array
from distbranch.report.console import describe_maps

SIZE = (HEIGHT, WIDTH)
CODES = make_codes(make_board())


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return pack_rooms(tmp_path_factory.mktemp("rooms") / "set")


def painter(info: DatasetInfo, name: str) -> MapPainter:
    (task,) = (task for task in DENSE if task.name == name)
    return MapPainter(task, info.splits["train"].labels[name])


def test_classes_have_the_colours_of_the_legend(info: DatasetInfo) -> None:
    seg = painter(info, "seg")
    picture = seg.draw(CODES["seg"], SIZE)
    dark, light, _ = seg.make_legend()
    assert (dark.text, light.text) == ("dark", "light")
    board = make_board()
    assert (picture[1:][board[1:]] == light.swatch[0, 0]).all()
    assert (picture[1:][~board[1:]] == dark.swatch[0, 0]).all()


def test_depth_has_one_colour_map_over_1_to_99_percent_of_the_split(info: DatasetInfo) -> None:
    depth = painter(info, "depth")
    (entry,) = depth.make_legend()
    assert entry.text == "2 to 10 m"
    ends = np.array([[2000, 10000]], np.uint16)
    picture = depth.draw(ends, (1, 2))
    assert picture[0, 0].tolist() == entry.swatch[0, 0].tolist()
    assert picture[0, 1].tolist() == entry.swatch[0, -1].tolist()
    beyond = depth.draw(np.array([[500, 60000]], np.uint16), (1, 2))
    assert np.array_equal(beyond, picture)
    lightness = entry.swatch.astype(int).sum(axis=2)[0]
    assert (np.diff(lightness) >= -2).all()
    assert lightness[-1] > 2 * lightness[0]


def test_normals_are_the_colours_of_half_their_sum_with_one(info: DatasetInfo) -> None:
    picture = painter(info, "normals").draw(CODES["normals"], SIZE)
    x = np.where(make_board(), 0.6, -0.8)
    vectors = np.stack([x, np.zeros_like(x), np.sqrt(1 - x**2)], axis=-1)
    expected = 255 * (vectors + 1) / 2
    assert np.abs(picture[1:] - expected[1:]).max() <= 2


def test_heat_is_grey_from_0_to_1(info: DatasetInfo) -> None:
    edges = painter(info, "edges")
    picture = edges.draw(np.array([[0, 127, 254]], np.uint8), (1, 3))
    assert picture[0].tolist() == [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    assert [entry.text for entry in edges.make_legend()] == ["0 to 1"]


@pytest.mark.parametrize("name", ["seg", "depth", "normals", "edges"])
def test_what_is_not_labelled_is_striped_in_every_kind(info: DatasetInfo, name: str) -> None:
    one = painter(info, name)
    nothing = one.draw(None, SIZE)
    assert set(np.unique(nothing)) == {150, 225}
    assert np.array_equal(one.draw(CODES[name], SIZE)[0], nothing[0])
    assert one.describe(None) == f"{name}: 0% labelled"
    assert one.describe(CODES[name]) == f"{name}: 98% labelled"


def test_a_sheet_has_a_row_per_sample_with_its_image_and_every_map(
    info: DatasetInfo, tmp_path: Path
) -> None:
    out = draw_contact_sheet(info.path, tmp_path / "sheet.png", num_images=3)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] == GAP + 5 * (CARD_WIDTH + GAP)
    height = round(CARD_WIDTH * HEIGHT / WIDTH)
    tiles = [
        sheet[HEAD : HEAD + height, GAP + n * (CARD_WIDTH + GAP) :][:, :CARD_WIDTH]
        for n in range(5)
    ]
    expected = painter(info, "seg").draw(CODES["seg"], (height, CARD_WIDTH))
    assert np.array_equal(tiles[1], expected)
    light = tiles[0].mean(axis=2) > 120
    colour = painter(info, "seg").make_legend()[1].swatch[0, 0]
    is_light = (tiles[1] == colour).all(axis=2)
    assert (light == is_light)[10:].mean() > 0.97


def test_the_legend_of_directions_has_the_colours_of_surfaces_that_face_there(
    info: DatasetInfo,
) -> None:
    normals = painter(info, "normals")
    colours = {entry.text: entry.swatch[0, 0].tolist() for entry in normals.make_legend()}
    assert colours == {
        "right": [255, 128, 128],
        "left": [1, 128, 128],
        "up": [128, 255, 128],
        "down": [128, 1, 128],
        "forward": [128, 128, 255],
    }


def test_pixels_of_classes_and_ranges_of_depth_are_told(info: DatasetInfo) -> None:
    of_seg, of_depth = describe_maps(info)
    assert re.fullmatch(
        r"train, seg: (light|dark) [\d.]+%, (light|dark) [\d.]+%, no pixel of .+", of_seg
    )
    assert of_depth == "train, depth: 2 to 10 m (median 5)"


@pytest.mark.parametrize(("metres", "is_odd"), [(0.05, True), (0.2, False), (60.0, False)])
def test_depth_that_no_camera_measures_is_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metres: float, is_odd: bool
) -> None:
    codes = np.full(SIZE, 1000 * metres, np.uint16)
    samples = [make_sample(0, depth=codes)]
    pack_source(Source(tasks=TASKS, samples=samples, description={}), tmp_path / "set")
    told = f"Depth 'depth' of train goes from {metres:g} to {metres:g} m"
    assert (told in caplog.text) == is_odd


def test_labelling_keeps_maps(info: DatasetInfo) -> None:
    copied = list(_add_soft_labels(info, {}))
    assert [sample.key for sample in copied] == [f"room-{number:03d}" for number in range(7)]
    for number, sample in enumerate(copied):
        packed = make_sample(number, lacking="depth" if number % 3 == 2 else "")
        assert sample.maps == packed.maps


def pack_unchecked(folder: Path, **changed: NDArray[Any]) -> None:
    """Rooms of which sample 1 has other codes, as no packing lets them in: index, sums and counts are those of the file."""
    info = pack_rooms(folder, num_samples=3)
    (shard,) = info.splits["train"].shards
    path = folder / shard.file
    with path.open("wb") as file:
        tar = TarWriter(file, encoder=False, mtime=0, compress=False)
        for number in range(3):
            sample = make_sample(number, **(changed if number == 1 else {}))
            described = json.dumps({"key": sample.key, "labels": sample.labels})
            files = {name_map_file(task): sample.maps[task.name] for task in DENSE}
            files |= {"jpg": sample.image, "json": described.encode()}
            tar.write({"__key__": sample.key, **files})
        tar.close()
    np.save(folder / shard.index, index_shard(path, info.tasks))
    data = json.loads((folder / "dataset.json").read_text())
    entry = data["splits"]["train"]["shards"][0]
    entry["num_bytes"], entry["sha256"] = path.stat().st_size, file_sha256(path)
    entry["index_sha256"] = file_sha256(folder / shard.index)
    (folder / "dataset.json").write_text(json.dumps(data))


MEANINGLESS: dict[str, tuple[dict[str, Array], tuple[str, ...]]] = {
    "another size": ({"seg": make_codes(make_board(40, 64))["seg"]}, ("48x64", "found 40x64")),
    "a class too many": ({"seg": np.full(SIZE, 7, np.uint8)}, ("3 classes", "found 7")),
    "long vectors": ({"normals": np.full((*SIZE, 3), 250, np.uint8)}, ("1.66", "3,072 of 3,072")),
}


@pytest.mark.parametrize("what", MEANINGLESS)
def test_check_finds_maps_that_mean_nothing(tmp_path: Path, what: str) -> None:
    changed, said = MEANINGLESS[what]
    pack_unchecked(tmp_path / "set", **changed)
    (problem,) = check_dataset(tmp_path / "set").problems
    for words in ("Shard train-000000.tar, sample room-001: ", *said):
        assert words in problem


def test_check_finds_counts_that_are_not_those_of_the_maps(tmp_path: Path) -> None:
    pack_unchecked(tmp_path / "set", seg=np.zeros(SIZE, np.uint8))
    problems = check_dataset(tmp_path / "set").problems
    assert any("task 'seg'" in problem and "pixels of dark" in problem for problem in problems)
