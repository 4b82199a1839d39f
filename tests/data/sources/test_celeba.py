"""CelebA in every layout in use gives the same samples; lists that do not fit together are refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packed_samples import picture

from distbranch.data.shards import Sample
from distbranch.data.sources import pack_source, parse_options
from distbranch.errors import UserError

NAMES = ["5_o_Clock_Shadow", "Bald", "Young"]
LABELS = {
    "000001.jpg": "-1  1  1",
    "000002.jpg": "-1 -1  1",
    "000003.jpg": " 1 -1 -1",
    "000004.jpg": "-1 -1 -1",
}
SPLITS = {"000001.jpg": 0, "000002.jpg": 0, "000003.jpg": 1, "000004.jpg": 2}
ATTRIBUTES = f"4\n{' '.join(NAMES)} \n" + "".join(
    f"{image} {values}\n" for image, values in LABELS.items()
)
PARTITION = "".join(f"{image} {split}\n" for image, split in SPLITS.items())
ATTRIBUTES_CSV = "\n".join(
    [
        f"image_id,{','.join(NAMES)}",
        *(",".join([image, *values.split()]) for image, values in LABELS.items()),
    ]
)
PARTITION_CSV = "\n".join(
    ["image_id,partition", *(f"{image},{split}" for image, split in SPLITS.items()), ""]
)


def write(root: Path, files: dict[str, str], images: str) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode())
    (root / images).mkdir(parents=True)
    for n, name in enumerate(LABELS):
        (root / images / name).write_bytes(picture(n))


def samples(root: Path, **options: Any) -> list[Sample]:
    return list(parse_options({"source": "celeba", "root": root, **options}).open().samples)


LAYOUTS: dict[str, tuple[dict[str, str], str]] = {
    "official": (
        {"Anno/list_attr_celeba.txt": ATTRIBUTES, "Eval/list_eval_partition.txt": PARTITION},
        "Img/img_align_celeba",
    ),
    "with Windows line ends": (
        {
            "Anno/list_attr_celeba.txt": ATTRIBUTES.replace("\n", "\r\n"),
            "Eval/list_eval_partition.txt": PARTITION.replace("\n", "\r\n"),
        },
        "Img/img_align_celeba",
    ),
    "without the final newline": (
        {
            "Anno/list_attr_celeba.txt": ATTRIBUTES.rstrip(),
            "Eval/list_eval_partition.txt": PARTITION.rstrip(),
        },
        "Img/img_align_celeba",
    ),
    "flat": (
        {"list_attr_celeba.txt": ATTRIBUTES, "list_eval_partition.txt": PARTITION},
        "img_align_celeba",
    ),
    "flat, one folder down": (
        {"celeba/list_attr_celeba.txt": ATTRIBUTES, "celeba/list_eval_partition.txt": PARTITION},
        "celeba/img_align_celeba",
    ),
    "comma-separated": (
        {"list_attr_celeba.csv": ATTRIBUTES_CSV, "list_eval_partition.csv": PARTITION_CSV},
        "img_align_celeba/img_align_celeba",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(tmp_path: Path, layout: str) -> None:
    write(tmp_path, *LAYOUTS[layout])
    source = parse_options({"source": "celeba", "root": tmp_path}).open()
    assert [task.name for task in source.tasks] == NAMES
    assert source.num_samples == 4
    found = list(source.samples)
    assert [sample.key for sample in found] == ["000001", "000002", "000003", "000004"]
    assert [sample.split for sample in found] == ["train", "train", "val", "test"]
    assert [list(sample.labels.values()) for sample in found] == [
        [0, 1, 1],
        [0, 0, 1],
        [1, 0, 0],
        [0, 0, 0],
    ]
    assert [sample.image for sample in found] == [picture(n) for n in range(4)]


def test_original_photographs_are_taken_where_asked(tmp_path: Path) -> None:
    write(tmp_path, LAYOUTS["official"][0], "Img/img_celeba")
    with pytest.raises(UserError, match=r"img_align_celeba.zip .* was not found under .* --images"):
        samples(tmp_path)
    assert len(samples(tmp_path, aligned=False)) == 4


def test_images_may_lie_in_a_zip(tmp_path: Path) -> None:
    write(tmp_path, LAYOUTS["official"][0], "elsewhere")
    (tmp_path / "Img").mkdir()
    with zipfile.ZipFile(tmp_path / "Img" / "img_align_celeba.zip", "w") as zipped:
        for n, name in enumerate(LABELS):
            zipped.writestr(f"img_align_celeba/{name}", picture(n))
    assert [sample.image for sample in samples(tmp_path)] == [picture(n) for n in range(4)]
    assert samples(tmp_path, images=tmp_path / "elsewhere") == samples(tmp_path)


def test_celeba_is_packed_whole(tmp_path: Path) -> None:
    write(tmp_path / "celeba", *LAYOUTS["official"])
    info = pack_source(
        parse_options({"source": "celeba", "root": tmp_path / "celeba"}).open(), tmp_path / "set"
    )
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    assert info.splits["train"].labels["Bald"] == {"1": 1, "0": 1, "unlabelled": 0}


Change = Callable[[str], str]
ANNO, EVAL = "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt"
BROKEN: dict[str, tuple[str, Change, str]] = {
    "a row too few": (
        ANNO,
        lambda text: text.replace("000002.jpg -1 -1  1\n", ""),
        "has 4 rows, but it has 3",
    ),
    "another count": (ANNO, lambda text: text.replace("4\n", "5\n", 1), "has 5 rows, but it has 4"),
    "no count": (
        ANNO,
        lambda text: text.replace("4\n", "", 1),
        "line 1: the number of rows should stand here",
    ),
    "a label too few": (
        ANNO,
        lambda text: text.replace("-1  1  1", "-1  1"),
        "line 3: 3 labels should .* found 2",
    ),
    "no label": (
        ANNO,
        lambda text: text.replace("-1  1  1", "-1  1  2"),
        "line 3: the label of 'Young' .* found '2'",
    ),
    "a name twice": (
        ANNO,
        lambda text: text.replace("Bald", "Young"),
        "names of the attributes .* each once",
    ),
    "another image": (
        ANNO,
        lambda text: text.replace("000003", "000009"),
        "line 5: image '000009.jpg' has no split",
    ),
    "a split too few": (
        EVAL,
        lambda text: text.replace("000004.jpg 2\n", ""),
        "has 4 images, .* has 3",
    ),
    "no split": (
        EVAL,
        lambda text: text.replace(" 2\n", " 3\n"),
        "line 4: one of 0, 1, 2 should stand behind the name, found '3'",
    ),
    "image twice": (
        EVAL,
        lambda text: text.replace("000002", "000001"),
        "line 2: image '000001.jpg' .* a second time",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    name, change, message = BROKEN[case]
    files = dict(LAYOUTS["official"][0])
    files[name] = change(files[name])
    write(tmp_path, files, "Img/img_align_celeba")
    with pytest.raises(UserError, match=message):
        samples(tmp_path)


def test_a_folder_without_the_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"list_attr_celeba.txt or list_attr_celeba.csv was not found under"
    ):
        samples(tmp_path)


def test_an_image_that_is_absent_is_named(tmp_path: Path) -> None:
    write(tmp_path, *LAYOUTS["official"])
    (tmp_path / "Img/img_align_celeba/000002.jpg").unlink()
    with pytest.raises(
        UserError, match=r"list_attr_celeba.txt, line 4: image '000002.jpg' cannot be used"
    ):
        samples(tmp_path)
    assert len(samples(tmp_path, on_bad_image="skip")) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_that_says_no_with_zero_gives_the_same_labels(tmp_path: Path, layout: str) -> None:
    files, images = LAYOUTS[layout]
    write(tmp_path / "signs", files, images)
    write(
        tmp_path / "zeros", {name: text.replace("-1", "0") for name, text in files.items()}, images
    )
    assert samples(tmp_path / "zeros") == samples(tmp_path / "signs")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zero_beside_minus_one_is_asked_about_and_read_as_said(tmp_path: Path, layout: str) -> None:
    files, images = LAYOUTS[layout]
    mixed = {name: text.replace("-1", "0", 1) for name, text in files.items()}
    write(tmp_path, mixed, images)
    with pytest.raises(
        UserError, match=r"list_attr_celeba.* holds 1, 0 and -1. Say what -1 means: --minus-one"
    ):
        samples(tmp_path)
    first = list(samples(tmp_path, minus_one="no")[0].labels.values())
    assert first == [1, 1]  # 0 is unknown
    first = list(samples(tmp_path, minus_one="unknown")[0].labels.values())
    assert first == [0, 1, 1]
    assert samples(tmp_path, minus_one=False) == samples(
        tmp_path, minus_one="no"
    )  # as YAML reads it
