"""A few real photographs of clothes with their labels, as folders, tables and data sets that people would hand in."""

import csv
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow
from pyarrow import parquet

Clothes = list[dict[str, str]]  # image, split, category, kids


def read_clothes(shared_data: Path, num_images: int) -> Clothes:
    with (shared_data / "clothing" / "attributes.csv").open(newline="") as file:
        return list(csv.DictReader(file))[:num_images]


def read_photos(shared_data: Path, clothes: Clothes) -> list[bytes]:
    with zipfile.ZipFile(shared_data / "clothing" / "images.zip") as archive:
        found = {name.rpartition("/")[2]: name for name in archive.namelist()}
        return [archive.read(found[one["image"]]) for one in clothes]


def write_folders(root: Path, places: Sequence[str], photos: Sequence[bytes]) -> Path:
    for place, photo in zip(places, photos, strict=True):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(photo)
    return root


def write_table(path: Path, clothes: Clothes) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(clothes[0]))
        writer.writeheader()
        writer.writerows(clothes)
    return path


def make_arrow(clothes: Clothes, photos: Sequence[bytes], classes: Sequence[str]) -> pyarrow.Table:
    """As `datasets` makes it: images as structs, classes as numbers whose names stand in the schema."""
    features = {
        "photo": {"_type": "Image"},
        "category": {"names": list(classes), "_type": "ClassLabel"},
    }
    images = [
        {"bytes": photo, "path": one["image"]} for one, photo in zip(clothes, photos, strict=True)
    ]
    table = pyarrow.table(
        {
            "photo": images,
            "category": [classes.index(one["category"]) for one in clothes],
            "kids": [one["kids"] == "1" for one in clothes],
        }
    )
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(noted)


def save_to_disk(folder: Path, table: pyarrow.Table) -> None:
    """As the method of that name of `datasets`; its `map` leaves another file beside."""
    folder.mkdir(parents=True)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "cache-1234.arrow").write_bytes(b"")
    with (
        pyarrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=7)


def save_parquet(path: Path, table: pyarrow.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=9)
