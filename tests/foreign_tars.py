"""Tars of WebDataset as others make them, of real photographs: GNU, PAX and plain headers, folders, JPEG, PNG and WebP."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from PIL import Image

FORMATS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)
IMAGES = ("jpg", "png", "webp", "jpeg")
CLASSES = ("Dress", "T-Shirt", "Shoes")
NUM_IN_TAR = {"train-000": 14, "train-001": 14, "val-000": 8, "test-000": 6}


@dataclass(frozen=True)
class Photograph:
    """A photograph of clothes in some format; what is known of it."""

    name: str
    split: str
    suffix: str
    image: bytes
    category: str
    kids: bool
    tags: list[str]
    price: float


def read_photographs(shared_data: Path) -> list[Photograph]:
    """Some of every split, in the order of NUM_IN_TAR; every ninth has no price."""
    folder = shared_data / "clothing"
    with (folder / "attributes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in CLASSES]
    found = []
    with ZipFile(folder / "images.zip") as images:
        paths = {Path(name).name: name for name in images.namelist()}
        for tar, count in NUM_IN_TAR.items():
            for row in rows[len(found) : len(found) + count]:
                number = len(found)
                suffix = IMAGES[number % len(IMAGES)]
                image = images.read(paths[Path(row["image"]).name])
                found.append(
                    Photograph(
                        f"{number:03d}",
                        tar.partition("-")[0],
                        suffix,
                        _convert(image, suffix, number),
                        row["category"],
                        row["kids"] == "1" or number % 3 == 0,
                        [["new", "red"], ["red"], ["new"]][number % 3],
                        number % 7 + 0.5,
                    )
                )
    return found


def write_tars(folder: Path, photographs: list[Photograph]) -> list[Path]:
    """The tars of NUM_IN_TAR, each with headers of another kind, in folders by split."""
    rest = iter(photographs)
    tars = []
    for number, (name, count) in enumerate(NUM_IN_TAR.items()):
        files: dict[str, bytes] = {"./._junk.jpg": b"?", "./notes/README": b"no dot"}
        for _ in range(count):
            one = next(rest)
            key = f"./{'long-' * 30}/{one.name}" if number < 2 else f"deep.er/{one.name}"
            described = {
                "split": one.split,
                "url": f"https://example.org/{one.name}",
                "labels": {
                    "category": one.category,
                    "kids": one.kids,
                    "tags": one.tags,
                    "price": one.price if int(one.name) % 9 else None,
                },
            }
            files[f"{key}.{one.suffix}"] = one.image
            files[f"{key}.json"] = json.dumps(described).encode()
            files[f"{key}.cls"] = f"{CLASSES.index(one.category)}\n".encode()
            files[f"{key}.txt"] = one.category.encode()
            files[f"{key}.mask.npy"] = b"of no use"
        tars.append(write_tar(folder / name.partition("-")[0] / f"{name}.tar", files, number))
    return tars


def write_tar(path: Path, files: Mapping[str, bytes], number: int = 0) -> Path:
    """A tar of these files with headers of one kind or another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[number % len(FORMATS)]) as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def _convert(image: bytes, suffix: str, number: int) -> bytes:
    """JPEGs as they are, others in sizes of their own."""
    if suffix in ("jpg", "jpeg"):
        return image
    out = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        opened.resize((40 + number, 70)).save(out, suffix, lossless=True)
    return out.getvalue()
