"""Maps of dense tasks: packed, read by us and by stock readers, counted, and refused where they mean nothing."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from dense_samples import (
    BRIGHT,
    DENSE,
    DEPTH,
    HEIGHT,
    NORMALS,
    SEG,
    TASKS,
    WIDTH,
    make_board,
    make_codes,
    make_sample,
    pack_rooms,
)
from packed_samples import tiny_dataset
from PIL import Image

from distbranch.data.check import check_dataset
from distbranch.data.label_maps import decode_map, encode_map, find_centres, resize_codes
from distbranch.data.loader import Batch, eval_loader, train_loader
from distbranch.data.mixture import merge_datasets
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample, read_dataset
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.tasks import Task

SIZE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return pack_rooms(tmp_path_factory.mktemp("rooms") / "set")


def read_batch(info: DatasetInfo, size: tuple[int, int] = SIZE, **options: Any) -> Batch:
    """All samples of a small data set."""
    batches = eval_loader(info, "train", batch_size=64, image_size=size, **options)
    batch = next(batches)
    assert batch.error is None
    return batch


@pytest.mark.parametrize("task", DENSE, ids=lambda task: task.kind)
def test_a_map_is_decoded_to_the_codes_that_were_encoded(task: Task) -> None:
    codes = make_codes(make_board())[task.name]
    content = encode_map(task, codes)
    assert content == encode_map(task, codes)
    assert np.array_equal(decode_map(task, content), codes)


def test_a_batch_has_the_maps_that_were_packed(info: DatasetInfo) -> None:
    batch = read_batch(info)
    for number in range(7):
        codes = make_codes(make_board(), number)
        metres = torch.from_numpy(codes["depth"] / np.float32(1000))
        if number % 3 == 2:
            metres = torch.zeros(SIZE)
        assert torch.equal(batch.maps["depth"][number], metres)
        assert torch.equal(batch.maps["seg"][number], torch.from_numpy(codes["seg"]))
        assert torch.equal(batch.maps["edges"][number], torch.from_numpy(codes["edges"]))
        normals = torch.from_numpy(codes["normals"]).permute(2, 0, 1)
        assert torch.equal(batch.maps["normals"][number], normals)
    types = {name: one.dtype for name, one in batch.maps.items()}
    assert types == {
        "seg": torch.uint8,
        "depth": torch.float32,
        "normals": torch.uint8,
        "edges": torch.uint8,
    }


def test_the_label_of_a_dense_task_is_its_share_of_labelled_pixels(info: DatasetInfo) -> None:
    labels = read_batch(info).labels
    share = np.float32((HEIGHT - 1) / HEIGHT)
    assert labels[:, 0].tolist() == [share] * 7
    assert labels[:, 1].tolist() == [number % 2 for number in range(7)]
    assert labels[:, 2].isnan().tolist() == [number % 3 == 2 for number in range(7)]


def test_maps_are_shared_with_the_process_that_trains(info: DatasetInfo) -> None:
    batch = read_batch(info)
    before = {name: one.clone() for name, one in batch.maps.items()}
    shared = batch.share_memory()
    for name, maps in shared.maps.items():
        assert maps.is_shared()
        assert torch.equal(maps, before[name])


def test_the_index_has_three_numbers_per_file_and_minus_one_where_there_is_none(
    info: DatasetInfo,
) -> None:
    shard = info.splits["train"].shards[0]
    index = np.load(Path(info.path) / shard.index)
    assert index.shape == (3, 3 * (2 + 4))
    assert (index[2, 9:12] == -1).all()
    assert (np.delete(index, range(9, 12), axis=1) >= 0).all()
    content = (Path(info.path) / shard.file).read_bytes()
    offset, size = index[1, 9], index[1, 10]
    codes = decode_map(DEPTH, content[offset : offset + size])
    assert np.array_equal(codes, make_codes(make_board(), 1)["depth"])


def test_stock_readers_read_all_but_maps_of_16_bits_which_they_leave_as_bytes(
    info: DatasetInfo,
) -> None:
    shard = Path(info.path) / info.splits["train"].shards[0].file
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == ["room-000", "room-001", "room-002"]
    first = samples[0]
    codes = make_codes(make_board())
    assert first["jpg"].shape == (HEIGHT, WIDTH, 3)
    assert first["json"]["labels"] == {"bright": 0}
    assert np.array_equal(first["normals.png"], codes["normals"])
    assert np.array_equal(first["seg.png"][..., 0], codes["seg"])
    assert np.array_equal(decode_map(DEPTH, first["depth.png16"]), codes["depth"])
    assert "depth.png16" not in samples[2]


def test_only_a_data_set_with_maps_has_version_2(info: DatasetInfo, tmp_path: Path) -> None:
    assert json.loads((Path(info.path) / "dataset.json").read_text())["version"] == 2
    plain = tiny_dataset(tmp_path / "plain")
    assert json.loads((Path(plain.path) / "dataset.json").read_text())["version"] == 1
    shard = plain.splits["train"].shards[0]
    assert np.load(Path(plain.path) / shard.index).shape == (5, 6)


def test_labels_are_counted_by_pixel(info: DatasetInfo) -> None:
    counts = read_dataset(info.path).splits["train"].labels
    pixels = (HEIGHT - 1) * WIDTH
    light = int(make_board()[1:].sum())
    assert counts["seg"] == {
        "count": 7,
        "pixels": 7 * pixels,
        "pixels of dark": 7 * (pixels - light),
        "pixels of light": 7 * light,
        "pixels of never": 0,
        "unlabelled": 0,
    }
    assert counts["normals"] == {"count": 7, "pixels": 7 * pixels, "unlabelled": 0}
    depth = counts["depth"]
    assert (depth["count"], depth["pixels"], depth["unlabelled"]) == (5, 5 * pixels, 2)
    values = np.concatenate([make_codes(make_board(), n)["depth"][1:] for n in (0, 1, 3, 4, 6)])
    for percent in (0, 1, 50, 99, 100):
        exact = np.percentile(values, percent, method="lower") / 1000
        assert depth[f"{percent} %"] == pytest.approx(exact, abs=1e-6)


def test_counts_of_a_mixture_are_sums_and_its_quantiles_lie_between(tmp_path: Path) -> None:
    near = pack([make_sample(0)], tmp_path / "near", TASKS)
    far = pack([make_sample(9, "train")], tmp_path / "far", TASKS)
    counts = merge_datasets([near, far]).splits["train"].labels["depth"]
    assert counts["pixels"] == 2 * (HEIGHT - 1) * WIDTH
    assert (counts["0 %"], counts["100 %"]) == (2, 13)
    assert 4 <= counts["50 %"] <= 11
    merged = KINDS["depth"].merge_counts([near.splits["train"].labels["depth"]] * 3)
    assert (merged["0 %"], merged["100 %"]) == (2, 4)
    assert merged["99 %"] == pytest.approx(4, rel=0.02)


def test_a_data_set_without_a_dense_task_is_unlabelled_for_it_in_a_mixture(
    info: DatasetInfo, tmp_path: Path
) -> None:
    others = [make_sample(number, lacking="depth") for number in range(3)]
    tasks = (Task("more"), NORMALS, SEG)
    kept = [
        Sample(s.key, "train", s.image, {"more": 1}, _only(s, "normals", "seg")) for s in others
    ]
    other = pack(kept, tmp_path / "other", tasks)
    mixture = merge_datasets([info, other])
    batches = train_loader(mixture, "train", batch_size=10, image_size=SIZE)
    batch = next(batches)
    names = [task.name for task in mixture.tasks]
    of_other = ~batch.labels[:, names.index("more")].isnan()
    assert of_other.sum() == 3
    assert (batch.maps["edges"][of_other] == 255).all()
    assert batch.labels[of_other, names.index("edges")].isnan().all()
    assert batch.labels[:, names.index("normals")].isnan().sum() == 0
    codes = torch.from_numpy(make_codes(make_board())["seg"])
    assert (batch.maps["seg"] == codes).all()


def test_depth_of_two_scales_is_not_one_task(info: DatasetInfo, tmp_path: Path) -> None:
    finer = Task("depth", "depth", scale=256.0)
    sample = make_sample(0)
    kept = Sample("a", "train", sample.image, {}, _only(sample, "depth"))
    other = pack([kept], tmp_path / "other", [finer])
    with pytest.raises(UserError, match=r"depth, scale 1000 in .* depth, scale 256 in"):
        merge_datasets([info, other])


def _only(sample: Sample, *names: str) -> dict[str, bytes]:
    return {name: sample.maps[name] for name in names}


def test_labels_are_resized_to_the_pixel_in_which_the_centre_lies() -> None:
    assert find_centres(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert find_centres(6, 3).tolist() == [1, 3, 5]
    assert find_centres(5, 2).tolist() == [1, 3]
    board = make_board(16, 16).astype(np.uint8)
    assert np.array_equal(resize_codes(board, (32, 32)), board.repeat(2, 0).repeat(2, 1))


def test_another_image_size_moves_no_label(info: DatasetInfo) -> None:
    batch = read_batch(info, (96, 128))
    light = batch.images[0].float().mean(dim=0) > 120
    labels = batch.maps["seg"][0]
    assert ((labels == 1) == light)[labels != 255].float().mean() > 0.99
    assert (labels[:2] == 255).all()
    assert (labels[2:] != 255).all()


REFUSED: dict[str, tuple[Callable[[], Sample], tuple[str, ...]]] = {
    "another size": (
        lambda: make_sample(4, seg=make_codes(make_board(40, 64))["seg"]),
        ("'seg'", "48x64 pixels of the image", "found 40x64"),
    ),
    "a class too many": (
        lambda: make_sample(4, seg=np.full(SIZE, 3, np.uint8)),
        ("3 classes", "found 3"),
    ),
    "vectors that are too short": (
        lambda: make_sample(4, normals=np.full((*SIZE, 3), 127, np.uint8)),
        ("length 1", "3,072 of 3,072"),
    ),
    "a map of a task that has none": (
        lambda: _with_map(make_sample(4), "bright", b""),
        ("map of 'bright'", "no dense task"),
    ),
    "no PNG": (
        lambda: _with_map(make_sample(4), "seg", make_sample(4).image),
        ("'seg'", "cannot be decoded"),
    ),
    "depth of 8 bits": (
        lambda: _with_map(make_sample(4), "depth", make_sample(4).maps["seg"]),
        ("'depth'", "uint16 [height, width]", "found uint8 [48, 64]"),
    ),
    "a palette": (
        lambda: _with_map(make_sample(4), "seg", _write_palette()),
        ("'seg'", "without palette", "mode P"),
    ),
    "a label in place of a map": (
        lambda: Sample("room-004", "train", make_sample(4).image, {"depth": 1.0}),
        ("'depth'", "a picture beside the image", "1.0"),
    ),
}


def _with_map(sample: Sample, name: str, content: bytes) -> Sample:
    return Sample(sample.key, "train", sample.image, {}, {name: content})


def _write_palette() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_codes(make_board())["seg"]).convert("P").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("what", REFUSED)
def test_a_map_that_means_nothing_is_refused_with_the_key_of_its_sample(
    tmp_path: Path, what: str
) -> None:
    make, said = REFUSED[what]
    with pytest.raises(UserError) as caught:
        pack([make_sample(0), make()], tmp_path / "set", TASKS)
    for words in ("Sample room-004: ", *said):
        assert words in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_a_code_that_is_no_map_is_not_encoded() -> None:
    with pytest.raises(UserError, match=r"uint16 \[height, width\].*found uint8 \[4, 4\]"):
        encode_map(DEPTH, np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"uint8 \[height, width, 3\].*found uint8 \[4, 4\]"):
        encode_map(NORMALS, np.zeros((4, 4), np.uint8))


def test_a_map_that_is_cut_or_changed_costs_its_sample_alone(tmp_path: Path) -> None:
    info = pack_rooms(tmp_path / "set")
    shard = info.splits["train"].shards[0]
    path = tmp_path / "set" / shard.file
    index = np.load(tmp_path / "set" / shard.index)
    whole = path.read_bytes()
    middle = int(index[1, 6] + index[1, 7] // 2)  # of the classes of the second sample
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content, kind, said in (
        (whole[:middle], "truncated", "ends"),
        (changed, "corrupt", "crc32"),
    ):
        path.write_bytes(content)
        failed = next(eval_loader(info, "train", batch_size=7, image_size=SIZE))
        assert failed.error is not None
        assert "sample room-001: " in failed.error
        assert "map of 'seg'" in failed.error
        assert said in failed.error
        left = read_batch(info, on_bad_sample="skip")
        # Of the sample that was cut the map is the last file; the third one of the shard is gone.
        num_lost = 1 if kind == "corrupt" else 2
        assert left.num_bad == {kind: num_lost}
        assert len(left.images) == len(left.maps["seg"]) == 7 - num_lost
        assert left.maps["depth"][1].max() == (0 if kind == "corrupt" else 7)
        problems = check_dataset(tmp_path / "set").problems
        assert any("room-001" in problem and "'seg'" in problem for problem in problems)


def test_a_sound_data_set_with_maps_has_no_problem(info: DatasetInfo) -> None:
    assert check_dataset(info.path).problems == []


def test_a_sample_without_a_labelled_pixel_is_unlabelled(tmp_path: Path) -> None:
    empty = np.full(SIZE, 255, np.uint8)
    info = pack([make_sample(0), make_sample(1, seg=empty)], tmp_path / "set", TASKS)
    assert read_batch(info).labels[:, 0].isnan().tolist() == [False, True]
    counts = info.splits["train"].labels["seg"]
    assert (counts["count"], counts["unlabelled"]) == (1, 1)


def test_without_dense_tasks_a_batch_has_no_maps(tmp_path: Path) -> None:
    info = pack(
        [Sample("a", "train", make_sample(0).image, {"bright": 1})], tmp_path / "s", [BRIGHT]
    )
    assert read_batch(info).maps == {}
