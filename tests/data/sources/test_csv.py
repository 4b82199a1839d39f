"""A table and images: what a column means is learnt from its values, and whatever is not in order is named by its line."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_samples import picture
from PIL import Image

from distbranch.data.images import (
    BrokenImageError,
    convert_to_jpeg,
    decode_image,
    decode_to_size,
    read_image_size,
)
from distbranch.data.shards import Sample
from distbranch.data.sources import pack_source, parse_options
from distbranch.data.sources.rendered_faces import render_face
from distbranch.data.sources.source import Source, sample_key
from distbranch.errors import UserError
from distbranch.tasks import Task

NAMES = ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
Open = Callable[..., Source]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens a source of four images (a folder, unless given) and the table."""

    def open_source(table: str | bytes, **options: Any) -> Source:
        content = table.encode() if isinstance(table, str) else table
        (tmp_path / "table.csv").write_bytes(content)
        if not (tmp_path / "images").exists():
            in_folder(tmp_path, {name: picture(n) for n, name in enumerate(NAMES)})
        given = {
            "source": "csv",
            "images": tmp_path / "images",
            "table": tmp_path / "table.csv",
            **options,
        }
        return parse_options(given).open()

    return open_source


def in_folder(tmp_path: Path, images: dict[str, bytes]) -> Path:
    for name, content in images.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
    return tmp_path / "images"


def labels(samples: Iterable[Sample], task: str) -> list[object]:
    return [sample.labels.get(task) for sample in samples]


def table(header: str, *rows: str) -> str:
    """A table of the four images; `rows` are the cells behind the name."""
    return "\n".join(
        [f"image,{header}", *(f"{n},{row}" for n, row in zip(NAMES, rows, strict=False))]
    )


def test_ones_zeros_and_gaps_are_a_binary_task_with_unlabelled_samples(opened: Open) -> None:
    source = opened(table("split,shoes", "train,1", "val,0", "test,", "train,1"))
    samples = list(source.samples)
    assert source.tasks == (Task("shoes"),)
    assert source.num_samples == 4
    assert labels(samples, "shoes") == [1, 0, None, 1]
    assert [sample.split for sample in samples] == ["train", "val", "test", "train"]
    assert [sample.key for sample in samples] == ["1", "2", "3", "4"]
    assert [sample.image for sample in samples] == [picture(n) for n in range(4)]  # byte for byte


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-1", "-1", "1"], [1, 0, 0, 1]),
        (["1.0", "0.0", "", "1.0"], [1, 0, None, 1]),
        (["True", "False", "", "True"], [1, 0, None, 1]),
        (["TRUE", "FALSE", "", "TRUE"], [1, 0, None, 1]),
        ([" 1", "0 ", " ", "1"], [1, 0, None, 1]),
        (["1", "1", "1", ""], [1, 1, 1, None]),
    ],
)
def test_every_common_way_to_write_yes_and_no_is_read(
    opened: Open, cells: list[str], expected: list[object]
) -> None:
    source = opened(table("shoes", *cells))
    assert source.tasks == (Task("shoes"),)
    assert labels(source.samples, "shoes") == expected


def test_names_are_a_categorical_task_in_alphabetical_order(opened: Open) -> None:
    source = opened(table("kind", "shoe", "dress", "", "shoe"))
    assert source.tasks == (Task("kind", "categorical", ("dress", "shoe")),)
    assert labels(source.samples, "kind") == ["shoe", "dress", None, "shoe"]


def test_numbers_are_classes_where_declared_in_the_order_of_the_numbers(opened: Open) -> None:
    source = opened(table("size,shoes", "10,1", "9,0", ",1", "1,0"), categorical="size")
    assert source.tasks == (Task("size", "categorical", ("1", "9", "10")), Task("shoes"))
    assert labels(source.samples, "size") == ["10", "9", None, "1"]


def test_columns_are_chosen_and_ignored_by_name(opened: Open) -> None:
    content = table("a,b,c", "1,x,0", "0,y,1")
    assert [task.name for task in opened(content, ignore="b").tasks] == ["a", "c"]
    assert [task.name for task in opened(content, tasks="c,a").tasks] == ["c", "a"]


def test_a_drawn_split_is_that_of_the_seed_and_keeps_groups_together(
    tmp_path: Path, opened: Open
) -> None:
    in_folder(tmp_path, {f"{n}.jpg": picture(0, 4, 4) for n in range(400)})
    content = "\n".join(
        ["image,smiles,person", *(f"{n}.jpg,{n % 2},person-{n // 10}" for n in range(400))]
    )

    def splits(**options: Any) -> list[str]:
        return [sample.split for sample in opened(content, **options).samples]

    drawn = splits(ignore="person")
    assert drawn == splits(ignore="person")
    assert drawn != splits(ignore="person", seed=1)
    assert [drawn.count(split) for split in ("train", "val", "test")] == pytest.approx(
        [320, 40, 40], abs=25
    )
    grouped = splits(group_column="person", fractions="0.5,0.25,0.25")
    assert all(len(set(grouped[first : first + 10])) == 1 for first in range(0, 400, 10))
    assert set(grouped) == {"train", "val", "test"}


@pytest.mark.parametrize("top", ["", "photos/", "./"])
@pytest.mark.parametrize("archive", ["zip", "tar"])
def test_images_are_found_in_archives_with_or_without_a_top_folder(
    tmp_path: Path, opened: Open, archive: str, top: str
) -> None:
    path = tmp_path / f"images.{archive}"
    if archive == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for n, name in enumerate(NAMES):
                zipped.writestr(top.removeprefix("./") + name, picture(n))
    else:
        with tarfile.open(path, "w") as tar:
            for n, name in enumerate(NAMES):
                member = tarfile.TarInfo(top + name)
                member.size = len(picture(n))
                tar.addfile(member, io.BytesIO(picture(n)))
    source = opened(table("a", "1", "0", "1", "0"), images=path)
    assert [sample.image for sample in source.samples] == [picture(n) for n in range(4)]


def test_images_are_resized_where_asked(opened: Open) -> None:
    source = opened(table("a", "1", "0"), image_size="20x30")
    assert [read_image_size(sample.image) for sample in source.samples] == [(20, 30), (20, 30)]


def test_a_resized_image_is_as_it_is_kept_and_has_the_pixels_of_a_prediction_for_the_original() -> (
    None
):
    face = render_face({"Smiling": 1, "Wearing_Hat": 1}, size=200, seed=1)
    for form in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        face.save(buffer, form)
        packed = convert_to_jpeg(buffer.getvalue(), (64, 48))
        assert convert_to_jpeg(packed, (64, 48)) == packed
        predicted = decode_to_size(convert_to_jpeg(buffer.getvalue()), (64, 48)).astype(
            int
        )  # as `predict` reads a file
        assert abs(decode_to_size(packed, (64, 48)) - predicted).mean() < 2


FORMS = {
    "PNG": "RGB L P RGBA LA 1",
    "TIFF": "RGB L P RGBA 1 CMYK",
    "BMP": "RGB L P 1",
    "GIF": "RGB L P",
    "WEBP": "RGB RGBA",
}


@pytest.mark.parametrize(
    ("form", "mode"), [(form, mode) for form, modes in FORMS.items() for mode in modes.split()]
)
def test_other_formats_become_jpeg_of_three_colours(form: str, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (12, 10)).save(buffer, form)
    image = Image.open(io.BytesIO(convert_to_jpeg(buffer.getvalue())))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (12, 10))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(form: str) -> None:
    ramp = np.repeat(np.arange(16, dtype=np.uint16) * 17 * 257, 16).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, form)
    assert Image.open(io.BytesIO(buffer.getvalue())).mode == "I;16"
    assert (np.asarray(decode_image(buffer.getvalue())) == (ramp // 257)[..., None]).all()
    assert (
        abs(
            np.asarray(decode_image(convert_to_jpeg(buffer.getvalue())), int)[..., 1] - ramp // 257
        ).max()
        < 4
    )


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), 1000).save(buffer, "TIFF")
    with pytest.raises(
        BrokenImageError, match=r"^it has pixels of another type .* 8 bits per channel$"
    ):
        convert_to_jpeg(buffer.getvalue())


def test_transparent_parts_become_white() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(buffer, "PNG")
    assert decode_image(convert_to_jpeg(buffer.getvalue())).getpixel((4, 4)) == (255, 255, 255)
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(buffer, "PNG", transparency=9000)
    assert decode_image(buffer.getvalue()).getpixel((4, 4)) == (255, 255, 255)


def test_bad_images_stop_the_packing_or_are_left_out_and_counted(
    tmp_path: Path, opened: Open
) -> None:
    in_folder(
        tmp_path,
        {
            "1.jpg": picture(0),
            "2.jpg": picture(1)[:-200],
            "3.jpg": b"no image",
            "4.jpg": picture(3),
        },
    )
    content = table("a", "1", "0", "1", "0") + "\n5.jpg,1"
    with pytest.raises(
        UserError, match=r"table.csv, line 3: image '2.jpg' cannot be used: it is a damaged image"
    ):
        list(opened(content).samples)
    source = opened(content, on_bad_image="skip")
    info = pack_source(source, tmp_path / "set")
    assert info.skipped == {"broken-image": 2, "missing-image": 1}
    assert info.num_samples == 2


def test_a_missing_image_is_named_with_its_line(opened: Open) -> None:
    source = opened("image,a\n1.jpg,1\nnosuch.jpg,0")
    with pytest.raises(
        UserError,
        match=r"table.csv, line 3: image 'nosuch.jpg' cannot be used: there is no such image",
    ):
        list(source.samples)


def test_a_table_from_windows_reads_the_same(opened: Open) -> None:
    content = "\ufeffimage,shoes\r\n1.jpg,1\r\n\r\n2.jpg,0"
    source = opened(content.encode())
    assert source.tasks == (Task("shoes"),)
    assert labels(source.samples, "shoes") == [1, 0]


def test_a_column_without_a_name_is_left_out_with_a_warning(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(",image,a\n0,1.jpg,1\n1,2.jpg,0\n2,3.jpg,1")  # as pandas writes a table
    assert source.tasks == (Task("a"),)
    assert labels(source.samples, "a") == [1, 0, 1]
    assert [r.getMessage().partition(", ")[2] for r in caplog.records] == [
        "line 1: column 1 has no name and is left out."
    ]


def test_a_name_may_hold_a_folder_dots_and_quotes(tmp_path: Path, opened: Open) -> None:
    in_folder(tmp_path, {"deep/er/a.b.jpg": picture(1), 'say "hi", you.png': picture(2)})
    samples = list(opened('image,a\ndeep/er/a.b.jpg,1\n"say ""hi"", you.png",0').samples)
    assert [sample.key for sample in samples] == ["deep/er/a%2Eb", 'say "hi", you']


@pytest.mark.parametrize(
    ("image", "key"),
    [
        ("a.jpg", "a"),
        ("/x/a.jpeg", "x/a"),
        ("./a.jpg", "%2E/a"),
        ("..", "%2E"),
        (".hidden.jpg", "%2Ehidden"),
        ("a", "a"),
    ],
)
def test_no_key_holds_a_dot(image: str, key: str) -> None:
    assert sample_key(image) == key


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "empty": ("", {}, "table.csv is empty"),
    "no rows": ("image,a\n", {}, "has a header but not a single row"),
    "column twice": ("image,a,a\n1.jpg,1,0", {}, "line 1: the column 'a' stands there twice"),
    "no image column": (
        "file,a\n1.jpg,1",
        {},
        r"has no column 'image'. Nearest: file. .* --image-column \(image_column\)",
    ),
    "no such task": (
        table("shoes", "1"),
        {"tasks": "shoos"},
        "no column 'shoos'. Nearest: shoes. .* --tasks",
    ),
    "no such ignored": (table("a", "1"), {"ignore": "b"}, "has no column 'b'. .* --ignore"),
    "task ignored": (
        table("a,b", "1,0"),
        {"tasks": "b", "ignore": "b"},
        "'b' is listed in --tasks and in --ignore. Take it out of one",
    ),
    "no such group": (
        table("a", "1"),
        {"group_column": "b"},
        "has no column 'b'. .* --group-column",
    ),
    "no such categorical": (
        table("a", "1"),
        {"categorical": "b"},
        "has no column 'b'. .* --categorical",
    ),
    "categorical ignored": (
        table("a,b", "1,x"),
        {"categorical": "b", "ignore": "b"},
        "'b' is listed in --categorical, but it is no task",
    ),
    "nothing to learn": (table("split", "train"), {}, "has no column left to learn"),
    "split and groups": (
        table("split,a,who", "train,1,x"),
        {"group_column": "who"},
        "'split' already says the split",
    ),
    "too few cells": (
        table("a,b", "1,0", "1"),
        {},
        "line 3: 3 columns were expected as in line 1, found 2",
    ),
    "too many cells": (
        table("a", "1,0"),
        {},
        "line 2: 2 columns were expected as in line 1, found 3",
    ),
    "no image name": ("image,a\n,1", {}, "line 2: the column 'image' is empty"),
    "image twice": (
        "image,a\n1.jpg,1\n2.jpg,0\n1.jpg,0",
        {},
        "line 4: image '1.jpg' has a line already, line 2",
    ),
    "same key": (
        "image,a\n1.jpg,1\n1.png,0",
        {},
        "line 3: image '1.png' .* only in their extension.* Rename",
    ),
    "split unknown": (
        table("split,a", "train,1", "dev,0"),
        {},
        "line 3: .* one of train, val, test, found 'dev'",
    ),
    "split empty": (
        table("split,a", "train,1", ",0"),
        {},
        "line 3: .* one of train, val, test, found ''",
    ),
    "number": (
        table("a", "1", "2"),
        {},
        "line 3: the column 'a' holds '2', which is neither 1, 0, -1, yes, no nor empty",
    ),
    "share": (table("a", "0.5", "1"), {}, "line 2: the column 'a' holds '0.5'"),
    "word among marks": (table("a", "1", "0", "yes"), {}, "line 4: the column 'a' holds 'yes'"),
    "number among words": (table("a", "red", "7", "blue"), {}, "line 3: the column 'a' holds '7'"),
    "zero or unknown": (
        table("a,b", "1,1", "-1,0"),
        {},
        "'a' says no with -1, the column 'b' has 0 but no -1",
    ),
    "all empty": (table("a,b", "1,", "0,"), {}, "column 'b': all its cells are empty"),
    "ids": (
        table("name", "x1", "x2", "x3"),
        {},
        "'name': each of its 3 values .* an id. Put it into --ignore",
    ),
    "one class": (table("a", "red", "red"), {}, "'red' is its only value"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_table_that_is_not_in_order_is_one_sentence(opened: Open, case: str) -> None:
    content, options, message = CASES[case]
    with pytest.raises(UserError, match=message):
        opened(content, **options)


def test_a_column_of_free_text_is_no_task(opened: Open) -> None:
    rows = "\n".join(f"{n}.jpg,note {n}" for n in range(1001))
    with pytest.raises(
        UserError, match="line 1002: the column 'note' has more than 1000 different values"
    ):
        opened(f"image,note\n{rows}")


def test_a_table_in_another_encoding_is_one_sentence(opened: Open) -> None:
    with pytest.raises(UserError, match="is not text in UTF-8"):
        opened("image,größe\n1.jpg,1".encode("latin-1"))


@pytest.mark.parametrize(
    ("images", "message"), [("nosuch", "does not exist"), ("table.csv", "should be a folder")]
)
def test_images_that_are_none_are_one_sentence(
    tmp_path: Path, opened: Open, images: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened(table("a", "1"), images=tmp_path / images)


def test_a_table_that_is_absent_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The table .*nosuch.csv does not exist"):
        parse_options(
            {"source": "csv", "images": tmp_path, "table": tmp_path / "nosuch.csv"}
        ).open()


def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        parse_options({"source": "csv", "images": tmp_path, "table": tmp_path}).open()


def test_an_image_with_an_impossible_name_is_one_sentence(opened: Open) -> None:
    source = opened(f"image,a\n{'x' * 300}.jpg,1")
    with pytest.raises(
        UserError, match=r"table.csv, line 2: image 'x+.jpg' cannot be read: File name too long"
    ):
        list(source.samples)


def test_the_catalogue_photographs_are_forty_binary_tasks(
    tmp_path: Path, shared_data: Path
) -> None:
    images, attributes = shared_data / "fps" / "images.zip", shared_data / "fps" / "attributes.csv"
    options = {
        "source": "csv",
        "images": images,
        "table": attributes,
        "ignore": "brand,article_type",
    }
    source = parse_options(options).open()
    assert len(source.tasks) == 40
    assert {task.kind for task in source.tasks} == {"binary"}
    assert source.num_samples == 33_517
    first = next(iter(source.samples))
    assert (first.key, first.split, first.labels["Men"], first.labels["Women"]) == (
        "1163",
        "train",
        1,
        0,
    )


def test_the_photographs_of_clothes_are_one_category_and_one_binary_task(
    tmp_path: Path, shared_data: Path
) -> None:
    images, attributes = (
        shared_data / "clothing" / "images.zip",
        shared_data / "clothing" / "attributes.csv",
    )
    source = parse_options({"source": "csv", "images": images, "table": attributes}).open()
    info = pack_source(source, tmp_path / "set")
    assert [(task.name, task.kind, len(task.classes)) for task in info.tasks] == [
        ("category", "categorical", 17),
        ("kids", "binary", 0),
    ]
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 3067,
        "val": 984,
        "test": 1045,
    }


def test_one_task_per_class_gives_exclusive_binary_tasks_named_by_the_classes(opened: Open) -> None:
    rows = table("colour,hat", "red,1", "blue,0", ",1", "red,0")
    source = opened(rows, one_task_per_class="colour")
    assert source.tasks == (
        Task("blue", exclusive="colour"),
        Task("red", exclusive="colour"),
        Task("hat"),
    )
    expected = [
        {"blue": 0, "red": 1, "hat": 1},
        {"blue": 1, "red": 0, "hat": 0},
        {"hat": 1},
        {"blue": 0, "red": 1, "hat": 0},
    ]
    assert [dict(sample.labels) for sample in source.samples] == expected
    prefixed = opened(rows, one_task_per_class="colour", class_prefix="c-")
    assert [task.name for task in prefixed.tasks] == ["c-blue", "c-red", "hat"]
    assert [task.exclusive for task in prefixed.tasks] == ["c-colour", "c-colour", ""]
    numbers = opened(table("shelf,hat", "10,1", "9,0", "10,1", "9,0"), one_task_per_class="shelf")
    assert [task.name for task in numbers.tasks] == ["9", "10", "hat"]


def test_a_class_that_is_called_like_another_task_gets_the_name_of_its_column(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(
        table("kind,shoes", "shoes,1", "hat,0", "hat,0", "shoes,1"), one_task_per_class="kind"
    )
    assert [task.name for task in source.tasks] == ["hat", "kind_shoes", "shoes"]
    assert (
        "There is a task 'shoes' already, so the class 'shoes' is called 'kind_shoes'."
        in caplog.text
    )
    clash = table("kind,shoes,kind_shoes", "shoes,1,1", "hat,0,1", "hat,0,0", "shoes,1,0")
    with pytest.raises(UserError, match="'shoes' and 'kind_shoes' are taken by other tasks"):
        opened(clash, one_task_per_class="kind")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"one_task_per_class": "colour", "categorical": "colour"}, "list it once"),
        (
            {"one_task_per_class": "colour", "ignore": "colour"},
            "listed in --one-task-per-class .*, but it is no task",
        ),
        (
            {"one_task_per_class": "colours"},
            "no column 'colours'. Nearest: colour. .* --one-task-per-class",
        ),
    ],
)
def test_a_column_that_cannot_be_one_task_per_class_is_refused(
    opened: Open, options: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        opened(table("colour,hat", "red,1", "blue,0", ",1", "red,0"), **options)
