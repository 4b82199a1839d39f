"""Nothing is lost in silence: whatever happens to a shard, `fail` names shard and sample and `skip` counts them."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packed_samples import tiny_dataset

from distbranch.data.loader import Batch, eval_loader, train_loader
from distbranch.data.shard_writer import index_shard
from distbranch.data.shards import DatasetInfo, Shard

SIZE = (32, 40)
SHARD = "train-000001.tar"  # samples 5 to 9 of 23
FIRST = ["photo-0005", "photo-0006", "photo-0007", "photo-0008", "photo-0009"]


@pytest.fixture
def info(tmp_path: Path) -> DatasetInfo:
    return tiny_dataset(tmp_path / "set")


def places(info: DatasetInfo) -> np.ndarray:
    """The index of SHARD, [5, 6]."""
    return np.load(Path(info.path) / info.splits["train"].shards[1].index)


def skipping(info: DatasetInfo, num_workers: int = 0) -> tuple[list[int], Counter[str]]:
    """The samples that an evaluation sees, and the count of those it leaves out."""
    seen: list[int] = []
    bad: Counter[str] = Counter()
    loader = eval_loader(
        info, "train", batch_size=6, image_size=SIZE, on_bad_sample="skip", num_workers=num_workers
    )
    for batch in loader:
        assert batch.error is None
        assert batch.indices.tolist() == batch.labels[:, 0].int().tolist()
        seen += batch.indices.tolist()
        bad.update(batch.num_bad)
    assert len(seen) + bad.total() == 23
    return seen, bad


def failing(info: DatasetInfo, num_workers: int = 0) -> str:
    """The error with which an evaluation ends, at once."""
    batches = list(
        eval_loader(info, "train", batch_size=3, image_size=SIZE, num_workers=num_workers)
    )
    assert [batch.error for batch in batches[:-1]] == [None] * (len(batches) - 1)
    assert len(batches[-1].images) == len(batches[-1].labels) == 0
    assert batches[-1].error is not None
    return batches[-1].error


# Where a cut falls -> the samples of the shard that are lost, and whether the first of them can still be named.
CUTS: dict[str, tuple[Callable[[np.ndarray], int], int, bool]] = {
    "inside the first header": (lambda index: index[0, 0] - 412, 5, False),
    "inside an image": (lambda index: index[1, 0] + index[1, 1] // 2, 4, True),
    "at the end of an image": (lambda index: index[2, 0] + index[2, 1], 3, True),
    "between an image and its labels": (lambda index: index[2, 3] - 512, 3, True),
    "inside the header of the labels": (lambda index: index[3, 3] - 200, 2, True),
    "inside the labels": (lambda index: index[3, 3] + 5, 2, True),
    "inside the header of an image": (lambda index: index[4, 0] - 300, 1, False),
    "at a header": (lambda index: index[4, 0] - 512, 1, False),
    "in the last byte": (lambda index: index[4, 3] + index[4, 4] - 1, 1, True),
    "behind the last sample": (lambda index: index[4, 3] + index[4, 4], 0, True),
}


@pytest.mark.parametrize("where", CUTS)
def test_a_shard_cut_anywhere_loses_what_is_behind_the_cut_and_says_so(
    info: DatasetInfo, where: str
) -> None:
    position, num_lost, named = CUTS[where]
    path = Path(info.path) / SHARD
    path.write_bytes(path.read_bytes()[: int(position(places(info)))])
    lost = range(10 - num_lost, 10)
    assert skipping(info) == (
        [n for n in range(23) if n not in lost],
        Counter({"truncated": num_lost} if lost else {}),
    )
    if lost:
        name = FIRST[5 - num_lost] if named else str(5 - num_lost)
        assert failing(info).startswith(
            f"Shard {SHARD}, sample {name}: the file ends inside or before its"
        )


@pytest.mark.parametrize("part", ["image", "label file"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_flipped_bit_costs_one_sample_by_name(
    info: DatasetInfo, part: str, num_workers: int
) -> None:
    flip_bit(info, int(places(info)[3, 0 if part == "image" else 3]) + 7)
    assert skipping(info, num_workers) == (
        [n for n in range(23) if n != 8],
        Counter({"corrupt": 1}),
    )
    assert failing(info, num_workers).startswith(
        f"Shard {SHARD}, sample photo-0008: its {part} is not the one"
    )


def test_a_damaged_tar_header_costs_nothing_since_it_is_not_read(info: DatasetInfo) -> None:
    for offset in places(info)[:, 0]:
        flip_bit(info, int(offset) - 512 + 150)
    assert skipping(info) == (list(range(23)), Counter())


def test_a_sample_whose_header_is_damaged_too_is_named_by_its_number(info: DatasetInfo) -> None:
    offset = int(places(info)[3, 0])
    flip_bit(info, offset + 3)
    flip_bit(info, offset - 512 + 3)
    assert failing(info).startswith(f"Shard {SHARD}, sample 3: its image is not the one")


@pytest.mark.parametrize("file", [SHARD, "train-000001.index.npy"])
def test_a_missing_file_costs_its_shard(info: DatasetInfo, file: str) -> None:
    (Path(info.path) / file).unlink()
    assert skipping(info) == ([*range(5), *range(10, 23)], Counter({"missing-shard": 5}))
    assert failing(info) == f"Shard {SHARD}: the file {file} is absent."


def test_an_empty_shard_and_a_folder_in_its_place_are_noticed(info: DatasetInfo) -> None:
    path = Path(info.path) / SHARD
    path.write_bytes(b"")
    assert skipping(info)[1] == Counter({"truncated": 5})
    path.unlink()
    path.mkdir()
    assert sum(skipping(info)[1].values()) == 5


def test_a_damaged_index_costs_its_shard(info: DatasetInfo) -> None:
    path = Path(info.path) / "train-000001.index.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert skipping(info) == ([*range(5), *range(10, 23)], Counter({"corrupt": 5}))
    assert "its index train-000001.index.npy is not the one that was packed" in failing(info)


# (part, its new content) -> kind and a part of the sentence. The checksums are those of the new content.
REPACKED: list[tuple[str, Callable[[bytes], bytes], str, str]] = [
    ("jpg", lambda old: b"x" * len(old), "broken-image", "cannot be decoded"),
    (
        "jpg",
        lambda old: old[: len(old) // 2] + bytes(len(old) - len(old) // 2),
        "broken-image",
        "cannot be decoded",
    ),
    ("json", lambda old: old.replace(b'"labels"', b'"lebals"'), "incomplete", "no field 'labels'"),
    ("json", lambda old: b" " * len(old), "incomplete", "no field 'labels'"),
    ("json", lambda old: old.replace(b"{", b"[", 1), "bad-label", "not JSON"),
    (
        "json",
        lambda old: old.replace(b'"even":1', b'"even":7'),
        "bad-label",
        "'even' should be a number from 0 to 1",
    ),
    (
        "json",
        lambda old: old.replace(b'"8"', b'"z"'),
        "bad-label",
        "'number' should be one of its 23 classes",
    ),
]


@pytest.mark.parametrize("case", range(len(REPACKED)))
@pytest.mark.parametrize("decoder", ["simplejpeg", "pil"])
def test_content_that_was_packed_wrong_is_a_bad_sample(
    info: DatasetInfo, case: int, decoder: str
) -> None:
    part, change, kind, sentence = REPACKED[case]
    info = repacked(info, part, change)
    loader = eval_loader(
        info, "train", batch_size=23, image_size=SIZE, on_bad_sample="skip", decoder=decoder
    )
    assert next(loader).num_bad == {kind: 1}
    error = failing(info)
    assert error.startswith(f"Shard {SHARD}, sample photo-0008: ")
    assert sentence in error
    assert "\n" not in error


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_skips_and_counts_once_an_epoch(info: DatasetInfo, num_workers: int) -> None:
    flip_bit(info, int(places(info)[3, 0]) + 7)
    (Path(info.path) / "train-000000.tar").unlink()
    loader = train_loader(
        info, "train", batch_size=23, image_size=SIZE, on_bad_sample="skip", num_workers=num_workers
    )
    for _ in range(4):
        batch = next(loader)
        assert batch.num_bad == {"missing-shard": 5, "corrupt": 1}
        assert sorted(batch.labels[:, 0].int().tolist()) == [n for n in range(5, 23) if n != 8]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_ends_after_the_error(info: DatasetInfo, num_workers: int) -> None:
    flip_bit(info, int(places(info)[3, 0]) + 7)
    batches: list[Batch] = list(
        train_loader(info, "train", batch_size=4, image_size=SIZE, num_workers=num_workers)
    )
    assert len(batches) <= 6
    assert [batch.error is None for batch in batches] == [True] * (len(batches) - 1) + [False]


def test_a_file_that_vanishes_is_noticed_in_the_next_epoch(info: DatasetInfo) -> None:
    loader = train_loader(
        info, "train", batch_size=23, image_size=SIZE, on_bad_sample="skip", prefetch=1
    )
    assert next(loader).num_bad == {}
    (Path(info.path) / SHARD).unlink()
    assert [next(loader).num_bad for _ in range(3)][2] == {"missing-shard": 5}


def test_a_batch_of_which_nothing_is_left_is_an_error_even_when_skipping(info: DatasetInfo) -> None:
    for shard in info.splits["train"].shards:
        (Path(info.path) / shard.file).unlink()
    batches = list(train_loader(info, "train", batch_size=4, image_size=SIZE, on_bad_sample="skip"))
    assert len(batches) == 1
    assert batches[0].num_bad == {"missing-shard": 4}
    assert "No sample of a batch could be used. The last of them: Shard train-" in str(
        batches[0].error
    )


def flip_bit(info: DatasetInfo, offset: int) -> None:
    path = Path(info.path) / SHARD
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def repacked(info: DatasetInfo, part: str, change: Callable[[bytes], bytes]) -> DatasetInfo:
    """Sample 8 with other content of the same size, as though it had been packed so."""
    path, shard = Path(info.path) / SHARD, info.splits["train"].shards[1]
    offset, size = places(info)[3, :2] if part == "jpg" else places(info)[3, 3:5]
    content = path.read_bytes()
    changed = change(content[offset : offset + size])
    assert len(changed) == size
    assert changed != content[offset : offset + size]
    path.write_bytes(content[:offset] + changed + content[offset + size :])
    np.save(path.parent / shard.index, index_shard(path))
    split = info.splits["train"]
    new: Shard = replace(shard, sha256=sha256(path), index_sha256=sha256(path.parent / shard.index))
    return replace(
        info, splits={"train": replace(split, shards=(split.shards[0], new, *split.shards[2:]))}
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
