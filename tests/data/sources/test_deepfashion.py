"""DeepFashion: categories by their row, attributes with blanks in their names, and no label shifted by a missing row."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
from packed_samples import picture

from distbranch.data.shards import Sample
from distbranch.data.sources import parse_options
from distbranch.data.sources.source import Source
from distbranch.errors import UserError
from distbranch.tasks import Task

IMAGES = [f"img/Sheer_Pleated-Front_Blouse/img_{n:08d}.jpg" for n in range(1, 5)]
CLASSES = ("Anorak", "Blouse", "Dress")


def counted(header: str, rows: list[str], count: int | None = None) -> str:
    return "\n".join([str(len(rows) if count is None else count), header, *rows]) + "\n"


FILES = {
    "list_category_cloth.txt": counted(
        "category_name  category_type", [f"{name:14} 1" for name in CLASSES]
    ),
    "list_category_img.txt": counted(
        "image_name  category_label",
        [f"{image:70} {k}" for image, k in zip(IMAGES, (2, 2, 3, 1), strict=True)],
    ),
    "list_attr_cloth.txt": counted(
        "attribute_name  attribute_type",
        [
            "abstract chevron print      1",
            "a-line                      3",
            "category                    5",
        ],
    ),
    "list_attr_img.txt": counted(
        "image_name  attribute_labels",
        [
            f"{image:70} {v}"
            for image, v in zip(IMAGES, ("-1 1 0", "1  -1 -1", " 1 1 1", "0 0 0"), strict=True)
        ],
    ),
    "list_eval_partition.txt": counted(
        "image_name  evaluation_status",
        [
            f"{image:70} {s}"
            for image, s in zip(IMAGES, ("train", "val", "test", "train"), strict=True)
        ],
    ),
}


def write(root: Path, folder: str = "Anno", images: str = "Img", **changed: str) -> None:
    for name, content in (
        FILES | {f"{name}.txt": content for name, content in changed.items()}
    ).items():
        path = root / ("Eval" if "partition" in name else folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for n, name in enumerate(IMAGES):
        (root / images / name).parent.mkdir(parents=True, exist_ok=True)
        (root / images / name).write_bytes(picture(n))


def opened(root: Path, **options: Any) -> Source:
    return parse_options({"source": "deepfashion", "root": root, **options}).open()


def labels(samples: list[Sample]) -> list[dict[str, Any]]:
    return [dict(sample.labels) for sample in samples]


@pytest.mark.parametrize("folder", ["Anno", "Anno_coarse", "Anno/Anno_coarse"])
@pytest.mark.parametrize("images", ["Img", ""])
def test_the_category_is_the_row_counted_from_one(tmp_path: Path, folder: str, images: str) -> None:
    write(tmp_path, folder, images)
    source = opened(tmp_path)
    samples = list(source.samples)
    assert source.tasks == (Task("category", "categorical", CLASSES),)
    assert source.num_samples == 4
    assert labels(samples) == [
        {"category": name} for name in ("Blouse", "Blouse", "Dress", "Anorak")
    ]
    assert [sample.split for sample in samples] == ["train", "val", "test", "train"]
    assert samples[0].key == "img/Sheer_Pleated-Front_Blouse/img_00000001"
    assert [sample.image for sample in samples] == [picture(n) for n in range(4)]


def test_attributes_keep_their_blanks_and_zero_is_unlabelled(tmp_path: Path) -> None:
    write(tmp_path)
    source = opened(tmp_path, labels="attributes")
    names = ["abstract chevron print", "a-line", "category (2)"]
    assert [task.name for task in source.tasks] == names
    assert source.groups == {"texture": (names[0],), "shape": (names[1],), "style": (names[2],)}
    assert labels(list(source.samples)) == [
        {names[0]: 0, names[1]: 1},
        {names[0]: 1, names[1]: 0, names[2]: 0},
        dict.fromkeys(names, 1),
        {},
    ]


def test_both_kinds_of_labels_come_together(tmp_path: Path) -> None:
    write(tmp_path)
    source = opened(tmp_path, labels="both")
    assert [task.name for task in source.tasks] == [
        "category",
        "abstract chevron print",
        "a-line",
        "category (2)",
    ]
    assert labels(list(source.samples))[0] == {
        "category": "Blouse",
        "abstract chevron print": 0,
        "a-line": 1,
    }


def test_images_may_lie_in_a_zip(tmp_path: Path) -> None:
    write(tmp_path, images="elsewhere")
    (tmp_path / "Img").mkdir()
    with zipfile.ZipFile(tmp_path / "Img" / "img.zip", "w") as zipped:
        for n, name in enumerate(IMAGES):
            zipped.writestr(name, picture(n))
    assert [sample.image for sample in opened(tmp_path).samples] == [picture(n) for n in range(4)]
    assert len(list(opened(tmp_path, images=tmp_path / "elsewhere").samples)) == 4


def test_a_copy_that_says_fifty_categories_and_has_forty_six_is_refused(tmp_path: Path) -> None:
    rows = [f"Category{n} 1" for n in range(46)]
    write(tmp_path, list_category_cloth=counted("category_name  category_type", rows, count=50))
    with pytest.raises(
        UserError,
        match=r"list_category_cloth.txt says in line 1 that it has 50 rows, but it has 46",
    ):
        opened(tmp_path)


BROKEN: dict[str, tuple[str, str, str, str]] = {
    "category 0": (
        "list_category_img",
        " 3\n",
        " 0\n",
        "line 5: one of 1, 2, 3 should stand behind the name, found '0'",
    ),
    "category 4": (
        "list_category_img",
        " 3\n",
        " 4\n",
        "line 5: one of 1, 2, 3 should stand behind the name, found '4'",
    ),
    "no category": (
        "list_category_img",
        " 3\n",
        "\n",
        "line 5: a name and a value should stand here",
    ),
    "no split": (
        "list_eval_partition",
        " test\n",
        " dev\n",
        "line 5: one of train, val, test should .* found 'dev'",
    ),
    "image without a split": (
        "list_eval_partition",
        "00000003",
        "00000009",
        "line 5: image '.*3.jpg' has no split",
    ),
    "a row too few": (
        "list_eval_partition",
        "4\n",
        "5\n",
        "says in line 1 that it has 5 rows, but it has 4",
    ),
    "a label too few": (
        "list_attr_img",
        "1 1 1",
        "1 1",
        "line 5: 3 labels should follow the image .* found 2",
    ),
    "no label": (
        "list_attr_img",
        "1 1 1",
        "1 1 x",
        "line 5: the label of 'category \\(2\\)' .* found 'x'",
    ),
    "image without a category": (
        "list_category_img",
        "00000003",
        "00000009",
        "line 5: image .* has no category",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_lists_that_are_not_in_order_are_refused(tmp_path: Path, case: str) -> None:
    name, before, after, message = BROKEN[case]
    write(tmp_path, **{name: FILES[f"{name}.txt"].replace(before, after, 1)})
    with pytest.raises(UserError, match=message):
        list(opened(tmp_path, labels="both").samples)


def test_a_folder_without_lists_or_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list_category_cloth.txt was not found under"):
        opened(tmp_path)
    write(tmp_path, images="elsewhere")
    with pytest.raises(UserError, match=r"img or img\.zip was not found under .* --images"):
        opened(tmp_path)


def test_one_task_per_class_gives_an_exclusive_binary_task_for_every_category(
    tmp_path: Path,
) -> None:
    write(tmp_path)
    source = opened(tmp_path, one_task_per_class="true", labels="both", class_prefix="is ")
    names = [f"is {name}" for name in CLASSES]
    assert source.tasks[:3] == tuple(Task(name, exclusive="is category") for name in names)
    found = [{name: one[name] for name in names} for one in labels(list(source.samples))]
    assert found == [
        {name: int(name == f"is {own}") for name in names}
        for own in ("Blouse", "Blouse", "Dress", "Anorak")
    ]


def test_a_copy_that_says_no_with_zero_is_asked_about(tmp_path: Path) -> None:
    rows = [
        f"{image:70} {marks}"
        for image, marks in zip(IMAGES, ("0 1 0", "1 0 0", "1 1 1", "0 0 0"), strict=True)
    ]
    write(tmp_path, list_attr_img=counted("image_name  attribute_labels", rows))
    with pytest.raises(UserError, match=r"list_attr_img.txt has 0 but no -1 .* --minus-one"):
        list(opened(tmp_path, labels="attributes").samples)
    zeros = labels(list(opened(tmp_path, labels="attributes", minus_one="unknown").samples))
    assert [list(row.values()) for row in zeros] == [[0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]
    unknown = labels(list(opened(tmp_path, labels="attributes", minus_one="no").samples))
    assert [len(row) for row in unknown] == [1, 1, 3, 0]
