"""The command line and the configs choose sources by name and type their options as text."""

from pathlib import Path
from typing import Any

import pytest

from distbranch.data.sources import SOURCES, pack_source, parse_options
from distbranch.data.sources.csv import CsvOptions
from distbranch.errors import UsageError


def test_options_are_read_as_typed() -> None:
    options = parse_options(
        {
            "source": "csv",
            "images": "i.zip",
            "table": "t.csv",
            "ignore": "a, b",
            "image_size": "64x48",
            "seed": "3",
        }
    )
    assert isinstance(options, CsvOptions)
    assert (options.images, options.ignore, options.image_size, options.seed) == (
        Path("i.zip"),
        ("a", "b"),
        (64, 48),
        3,
    )
    assert parse_options(
        {"source": "csv", "images": "i", "table": "t", "image_size": [64, 48]}
    ).image_size == (64, 48)
    assert parse_options(
        {"source": "csv", "images": "i", "table": "t", "image_size": "64"}
    ).image_size == (64, 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {},
            "The source should be one of csv, folder, hf, celeba, deepfashion, rendered-faces, .*found None",
        ),
        ({"source": "cvs"}, "found 'cvs'"),
        ({"source": "csv"}, "the option --images is required"),
        (
            {"source": "csv", "images": "i", "tabel": "t"},
            "there is no option --tabel. Nearest: --table",
        ),
        (
            {"source": "csv", "images": "i", "table": "t", "image_size": "wide"},
            r"--image-size \(image_size\)",
        ),
        (
            {"source": "csv", "images": "i", "table": "t", "image_size": "0x5"},
            "should be HxW in pixels",
        ),
        (
            {"source": "csv", "images": "i", "table": "t", "on_bad_image": "maybe"},
            "should be 'fail' or 'skip'",
        ),
        (
            {"source": "csv", "images": "i", "table": "t", "fractions": "1,-1,1"},
            "three shares that are not negative",
        ),
        (
            {"source": "csv", "images": "i", "table": "t", "fractions": "0.5,0.5"},
            "three shares that are not negative, of train, val",
        ),
        ({"source": "rendered-faces", "image_size": "64x32"}, "should be a square"),
        ({"source": "rendered-faces", "samples": 0}, "--samples"),
        ({"source": "rendered-rooms", "image_size": "16x64"}, "at least 32 pixels"),
        ({"source": "rendered-rooms", "tasks": "depth,colour"}, "one or more of segmentation"),
        ({"source": "rendered-rooms", "tasks": ""}, "one or more of segmentation"),
        ({"source": "rendered-rooms", "nuisances": "fog"}, "semantic, geometry, image"),
    ],
)
def test_options_that_are_none_are_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_options(values)


def test_every_option_has_a_help_text() -> None:
    for options in SOURCES.values():
        for name, field in options.model_fields.items():
            assert name == "source" or field.description, name


def test_drawn_faces_are_packed_with_the_groups_that_were_planted(tmp_path: Path) -> None:
    source = parse_options(
        {"source": "rendered-faces", "samples": 6, "val": 2, "test": 0, "image_size": "32"}
    ).open()
    info = pack_source(source, tmp_path / "set")
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 6,
        "val": 2,
    }
    assert len(info.tasks) == 40
    assert sorted(name for group in info.groups.values() for name in group) == sorted(
        task.name for task in info.tasks
    )
    assert info.image_size == (32, 32)
