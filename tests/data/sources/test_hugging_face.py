"""Data sets of Hugging Face, written as `datasets` writes them."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from clothes import make_arrow, read_clothes, read_photos, save_parquet, save_to_disk
from packed_samples import picture
from tiny_world import assert_one_sentence, run_command

from distbranch.data.shards import read_dataset
from distbranch.data.sources import parse_options
from distbranch.data.sources.source import Source
from distbranch.tasks import Task

OWN_NAMES = {"train": "train", "val": "validation", "test": "test"}


def open_data(data: Path, **options: Any) -> Source:
    return parse_options({"source": "hf", "data": data, **options}).open()


def make_table(**columns: list[Any]) -> pyarrow.Table:
    num_rows = len(next(iter(columns.values())))
    images = [{"bytes": picture(number), "path": None} for number in range(num_rows)]
    return pyarrow.table({"image": images, **columns})


def test_real_photographs_saved_in_either_form_are_the_same_samples(
    tmp_path: Path, shared_data: Path
) -> None:
    clothes = read_clothes(shared_data, 60)
    photos = read_photos(shared_data, clothes)
    # Not the order of the alphabet, and one that never occurs.
    classes = [*sorted({one["category"] for one in clothes}, reverse=True), "Cape"]
    for split, own_name in OWN_NAMES.items():
        chosen = [number for number, one in enumerate(clothes) if one["split"] == split]
        part = [clothes[number] for number in chosen]
        table = make_arrow(part, [photos[number] for number in chosen], classes)
        save_to_disk(tmp_path / "saved" / own_name, table)
        save_parquet(tmp_path / "parquet" / "data" / f"{own_name}-00000-of-00001.parquet", table)
    (tmp_path / "saved" / "dataset_dict.json").write_text(
        json.dumps({"splits": list(OWN_NAMES.values())})
    )
    for form in ("saved", "parquet"):
        out = tmp_path / f"packed-{form}"
        ended = run_command(["data", "pack", "hf", str(out), "--data", str(tmp_path / form)])
        assert ended.code == 0, ended.err
        assert read_dataset(out).tasks == (
            Task("category", "categorical", tuple(classes)),
            Task("kids"),
        )
    assert (
        read_dataset(tmp_path / "packed-saved").fingerprint
        == read_dataset(tmp_path / "packed-parquet").fingerprint
    )
    samples = {sample.key: sample for sample in open_data(tmp_path / "saved").samples}
    for one, photo in zip(clothes, photos, strict=True):
        sample = samples[one["image"].removesuffix(".jpg")]
        assert (sample.split, sample.image) == (one["split"], photo)
        assert sample.labels == {"category": one["category"], "kids": int(one["kids"])}


def test_one_file_without_splits_is_divided_and_its_rows_are_numbered(tmp_path: Path) -> None:
    save_parquet(tmp_path / "all.parquet", make_table(a=[1, 0, 1] * 20))
    samples = list(open_data(tmp_path / "all.parquet", stratify="a").samples)
    assert [sample.key for sample in samples][:2] == ["row-0000001", "row-0000002"]
    assert {sample.split for sample in samples} == {"train", "val", "test"}


def test_lists_are_tags_and_what_is_no_label_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = make_table(
        tags=[["red", "new"], ["red"], [], ["new", "old"]],
        boxes=[{"x": 1}] * 4,
        parts=[[{"x": 1}]] * 4,
        mask=[b"1"] * 4,
        label=[0, -1, 1, 1],
    )
    features = {"label": {"names": ["none", "some"], "_type": "ClassLabel"}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    save_parquet(tmp_path / "a.parquet", table.replace_schema_metadata(noted))
    source = open_data(tmp_path / "a.parquet", tags="tags", separator="|", blank="tags=no")
    labels = [sample.labels for sample in source.samples]
    assert [one["red"] for one in labels] == [1, 1, 0, 0]
    assert [one.get("label") for one in labels] == ["none", None, "some", "some"]
    assert "3 column(s) hold no labels and are left out: boxes, parts, mask" in caplog.text


def test_a_row_without_bytes_is_the_file_that_it_names_or_a_missing_image(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(picture(1))
    images = [
        {"bytes": picture(0), "path": "a.jpg"},
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": "none.jpg"},
    ]
    save_parquet(tmp_path / "a.parquet", pyarrow.table({"image": images, "a": [1, 0, 1, 0]}))
    source = open_data(tmp_path / "a.parquet", on_bad_image="skip")
    assert [sample.image for sample in source.samples] == [picture(0), picture(1)]
    assert [(one.image, one.kind) for one in source.left_out] == [
        ("gone.jpg", "missing-image"),
        ("none.jpg", "missing-image"),
    ]


def write_odd_split(folder: Path) -> None:
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "unsupervised"]}))
    for split in ("train", "unsupervised"):
        save_to_disk(folder / split, make_table(a=[1, 0]))


def write_mixed_names(folder: Path) -> None:
    for name in ("train-0.parquet", "more.parquet"):
        save_parquet(folder / name, make_table(a=[1, 0]))


def write_other_columns(folder: Path) -> None:
    save_parquet(folder / "train.parquet", make_table(a=[1, 0]))
    save_parquet(folder / "test.parquet", make_table(b=[1, 0]))


def write_two_images(folder: Path) -> None:
    table = make_table(a=[1, 0]).rename_columns(["left", "a"])
    save_parquet(folder / "a.parquet", table.append_column("right", table.column("left")))


def write_damaged(folder: Path) -> None:
    (folder / "a.parquet").write_bytes(b"PAR1 and no more")


def write_damaged_state(folder: Path) -> None:
    (folder / "state.json").write_text("{")


def write_unnamed_class(folder: Path) -> None:
    features = {"a": {"names": ["x", "y"], "_type": "ClassLabel"}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    save_parquet(folder / "a.parquet", make_table(a=[1, 2]).replace_schema_metadata(noted))


def write_no_labels(folder: Path) -> None:
    captions = [f"text {number}" for number in range(9)]
    save_parquet(folder / "a.parquet", make_table(caption=captions, one=["x"] * 9))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda _: None, ("neither what `save_to_disk`", "nor parquet files")),
        (write_odd_split, ("neither train, validation nor test: unsupervised",)),
        (write_mixed_names, ("whose names hold neither train, validation nor test: more.parquet",)),
        (write_other_columns, ("have different columns (a, b)",)),
        (write_two_images, ("images in the column 'image'", "left, right")),
        (write_damaged, ("a.parquet is damaged, or no .parquet file",)),
        (write_damaged_state, ("state.json is damaged, it is no JSON",)),
        (write_unnamed_class, ("holds the class 2, and its schema names 2 classes",)),
        (write_no_labels, ("2 problems", "column 'caption'", "column 'one'", "--ignore")),
    ],
)
def test_what_is_no_such_data_set_is_one_sentence(
    tmp_path: Path, write: Any, words: tuple[str, ...]
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    arguments = ["data", "pack", "hf", str(tmp_path / "out"), "--data", str(tmp_path / "data")]
    assert_one_sentence(run_command(arguments), 1, words)
