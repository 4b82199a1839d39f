"""A contact sheet shows every chosen sample in an even grid, and no text leaves its card or lies on another."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from packed_samples import picture, tiny_dataset
from PIL import Image

from distbranch.data.contact_sheet import (
    CARD_WIDTH,
    GAP,
    UNASSIGNED,
    convert_to_one_line,
    describe_labels,
    draw_contact_sheet,
    draw_sheet,
    find_font,
)
from distbranch.data.pack import pack
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shards import BadSample, Sample
from distbranch.errors import UserError
from distbranch.tasks import Task


def test_the_sheet_has_one_column_per_picture_and_as_many_rows_as_needed(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "set")
    sizes = {}
    for num_images in (1, 3, 4, 100):
        path = draw_contact_sheet(
            tmp_path / "set",
            tmp_path / "out" / f"{num_images}.png",
            num_images=num_images,
            columns=3,
        )
        sizes[num_images] = Image.open(path).size
    assert sizes[1][0] < sizes[3][0] == sizes[4][0] == sizes[100][0]
    assert sizes[1][1] <= sizes[3][1] < sizes[4][1] < sizes[100][1]


def test_the_same_seed_gives_the_same_sheet(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "set")
    one, two, other = (
        draw_contact_sheet(
            tmp_path / "set", tmp_path / f"{n}.png", num_images=4, seed=seed
        ).read_bytes()
        for n, seed in enumerate((0, 0, 1))
    )
    assert one == two != other


def test_every_kind_of_label_is_shown() -> None:
    tasks = [
        Task("a"),
        Task("b"),
        Task("kind", "categorical", ("red", "blue")),
        Task("c"),
        Task("d"),
    ]
    lines = describe_labels(tasks, [1.0, 0.0, 1.0, 0.25, float("nan")])
    assert lines == ["a", "kind: blue", "c 0.25", "(1 unlabelled)"]


def test_pictures_of_any_shape_and_long_names_fit(tmp_path: Path) -> None:
    shapes = [(4, 400), (400, 4), (1, 1), (64, 48)]
    samples = [
        Sample("n" * 150 + str(h), "train", picture(1, h, max(w, 2)), {"a": 1}) for h, w in shapes
    ]
    pack(samples, tmp_path / "set", [Task("a")], groups={"letters": ["a"]})
    assert Image.open(draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png")).height < 2000


def test_a_damaged_sample_is_named(tmp_path: Path) -> None:
    info = tiny_dataset(tmp_path / "set", num_samples=3, shard_samples=5)
    path = tmp_path / "set" / info.splits["train"].shards[0].file
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadSample, match=r"Shard train-000000.tar, sample photo-0000"):
        draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png")


def test_what_cannot_be_shown_is_one_sentence(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "set")
    with pytest.raises(UserError, match=r"has no split 'dev'. It has: train"):
        draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png", split="dev")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        draw_contact_sheet(tmp_path / "set", tmp_path / "file" / "sheet.png")


def test_soft_labels_are_shown_with_their_value_unless_they_are_small() -> None:
    tasks = [Task(name) for name in ("sure", "likely", "hardly", "no")]
    assert describe_labels(tasks, [1.0, 0.9996, 0.1, 0.0]) == ["sure", "likely 1.00"]


@pytest.mark.parametrize(
    "key", ["new\nline", "tab\there", "caf\udce9", "bell\x07", "日本", "é ß ж", "\r", "n" * 90]
)
def test_keys_and_names_of_any_letters_are_drawn(tmp_path: Path, key: str) -> None:
    assert draw_sheet(key, [(Image.new("RGB", (9, 9)), [key])], 1).width < 500
    if "\ud800" <= max(key) <= "\udfff" or key == "\r":
        return  # a label file is UTF-8, and a key is no blank
    tasks = [Task(f"of {key}"), Task("kind", "categorical", (f"a {key}", "b"))]
    labels = {tasks[0].name: 1, "kind": f"a {key}"}
    pack([Sample(key, "train", picture(1), labels)], tmp_path / "set", tasks)
    assert Image.open(draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png")).format == "PNG"


def test_no_text_leaves_its_column() -> None:
    cards = [
        (Image.new("RGB", (9, 9)), ["x" * 200, "W" * 50 + "i" * 50, "a long name of a task " * 9])
    ] * 2
    pixels = np.asarray(draw_sheet("", cards, 2))
    gap = pixels[:, GAP + CARD_WIDTH + 1 : GAP + CARD_WIDTH + GAP - 1]
    assert len(np.unique(gap.reshape(-1, 3), axis=0)) == 1


def test_a_sample_is_named_by_its_key_in_any_letters(tmp_path: Path) -> None:
    keys = ["写真", "in/жук", "plain", "new\nline", "n" * 120 + "é"]
    info = pack(
        [Sample(key, "train", picture(1), {}) for key in keys], tmp_path / "set", [Task("a")]
    )
    with closing(ShardReader([ShardSource.from_split(info, "train")], max_open=1)) as reader:
        assert [reader.open_shard(0).read_key(number) for number in range(len(keys))] == keys


def test_letters_are_drawn_in_a_font_that_has_them() -> None:
    for text in ("plain", "é ß ø", "жизнь", "ελληνικά", "tab\there", "a\ufffdb"):
        drawn = convert_to_one_line(text)
        font = find_font(drawn)
        lacking = bytes(font.getmask(UNASSIGNED))
        assert all(bytes(font.getmask(letter)) != lacking for letter in drawn if letter != " "), (
            text
        )
    assert find_font("plain").getname()[0] == "Aileron"


def test_letters_that_no_font_has_are_told(caplog: pytest.LogCaptureFixture) -> None:
    find_font("a" + UNASSIGNED)
    assert caplog.text.count("in no installed font") == 1
