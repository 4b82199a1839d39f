"""A contact sheet shows every chosen sample in an even grid, and no text leaves its card or lies on another."""

from contextlib import closing
from pathlib import Path

import pytest
from packed_samples import picture, tiny_dataset
from PIL import Image

from distbranch.data import contact_sheet as module
from distbranch.data.contact_sheet import (
    UNASSIGNED,
    _warn_of_boxes,
    convert_to_one_line,
    draw_contact_sheet,
    find_font,
)
from distbranch.data.pack import pack
from distbranch.data.reader import ShardReader
from distbranch.data.shards import BadSample, Sample
from distbranch.errors import UserError
from distbranch.tasks import Task


def test_the_sheet_has_one_column_per_picture_and_as_many_rows_as_needed(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "set")
    sizes = {}
    for num_images in (1, 3, 4, 100):
        path = draw_contact_sheet(
            tmp_path / "set", tmp_path / "out" / f"{num_images}.png", num_images=num_images, columns=3
        )
        sizes[num_images] = Image.open(path).size
    assert sizes[1][0] < sizes[3][0] == sizes[4][0] == sizes[100][0]
    assert sizes[1][1] <= sizes[3][1] < sizes[4][1] < sizes[100][1]


def test_the_same_seed_gives_the_same_sheet(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "set")
    one, two, other = (
        draw_contact_sheet(tmp_path / "set", tmp_path / f"{n}.png", num_images=4, seed=seed).read_bytes()
        for n, seed in enumerate((0, 0, 1))
    )
    assert one == two != other


def test_no_chip_leaves_its_card_or_lies_on_another() -> None:
    names = ["a", "Wearing_Necktie", "a very long name of a task that needs several lines to be read", "x" * 90, "é中"]
    chips = [module._make_chip(name, module.PLAIN) for name in names * 4]
    placed, height = module._place_chips(chips, module.INNER_WIDTH)
    boxes = [(x, y, x + chip.width, y + chip.height) for x, y, chip in placed]
    assert max(box[2] for box in boxes) <= module.INNER_WIDTH
    assert max(box[3] for box in boxes) == height
    for n, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[n + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    assert all(chip.font.getlength(line) <= module.INNER_WIDTH for chip in chips for line in chip.lines)
    assert ["".join(chip.lines).replace(" ", "") for chip in chips[:4]] == [
        name.replace("_", "").replace(" ", "") for name in names[:4]
    ]


def test_every_kind_of_label_is_shown() -> None:
    tasks = [Task("a"), Task("b"), Task("kind", "categorical", ("red", "blue")), Task("c"), Task("d")]
    nan = float("nan")
    labels = {"a": 1.0, "b": 0.0, "kind": 1.0, "c": 0.25, "d": nan}
    card = module._make_card(
        "key", Image.new("RGB", (4, 4)), labels, tasks, dict.fromkeys("abcd", module.PLAIN) | {"kind": module.PLAIN}
    )
    assert [chip.lines for _, _, chip in card.chips] == [("kind: blue",), ("a",), ("c 0.25",), ("1 unlabelled",)]


def test_pictures_of_any_shape_and_long_names_fit(tmp_path: Path) -> None:
    shapes = [(4, 400), (400, 4), (1, 1), (64, 48)]
    samples = [Sample("n" * 150 + str(h), "train", picture(1, h, max(w, 2)), {"a": 1}) for h, w in shapes]
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
    with pytest.raises(UserError, match="At least 1 image"):
        draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png", num_images=0)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        draw_contact_sheet(tmp_path / "set", tmp_path / "file" / "sheet.png")


def test_soft_labels_are_shown_with_their_value_unless_they_are_small() -> None:
    tasks = [Task(name) for name in ("sure", "likely", "hardly", "no")]
    labels = dict(zip([task.name for task in tasks], (1.0, 0.9996, 0.1, 0.0), strict=True))
    card = module._make_card(
        "key", Image.new("RGB", (9, 9)), labels, tasks, {task.name: module.PLAIN for task in tasks}
    )
    assert [chip.lines for _, _, chip in card.chips] == [("sure",), ("likely 1.00",)]


@pytest.mark.parametrize("key", ["new\nline", "tab\there", "caf\udce9", "bell\x07", "日本", "é ß ж", "\r", "n" * 90])
def test_keys_and_names_of_any_letters_are_drawn(tmp_path: Path, key: str) -> None:
    tasks = [Task(f"of {key}"), Task("kind", "categorical", (f"a {key}", "b"))]
    labels = {tasks[0].name: 1, "kind": f"a {key}"}
    card = module._make_card(
        key, Image.new("RGB", (9, 9)), labels | {"kind": 0}, tasks, {tasks[0].name: module.PLAIN, "kind": module.PLAIN}
    )
    sheet = module._draw_sheet(key, key, [module._make_chip(key, module.PLAIN)], [card], 1)
    assert sheet.width < 500
    if "\ud800" <= max(key) <= "\udfff" or key == "\r":
        return  # a label file is UTF-8, and a key is no blank
    pack([Sample(key, "train", picture(1), labels)], tmp_path / "set", tasks)
    assert Image.open(draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png")).format == "PNG"


def test_a_sample_is_named_by_its_key_in_any_letters(tmp_path: Path) -> None:
    keys = ["写真", "in/жук", "plain", "new\nline", "n" * 120 + "é"]
    info = pack([Sample(key, "train", picture(1), {}) for key in keys], tmp_path / "set", [Task("a")])
    with closing(ShardReader([(info.path, info.splits["train"].shards)], info.tasks, max_open=1)) as reader:
        assert [reader.read_key(0, number) for number in range(len(keys))] == keys


def test_letters_are_drawn_in_a_font_that_has_them() -> None:
    for text in ("plain", "é ß ø", "жизнь", "ελληνικά", "tab\there", "a\ufffdb"):
        drawn = convert_to_one_line(text)
        font = find_font(drawn, 20)
        lacking = bytes(font.getmask(UNASSIGNED))
        assert all(bytes(font.getmask(letter)) != lacking for letter in drawn if letter != " "), text
    assert find_font("plain", 20).getname()[0] == "Aileron"


def test_letters_that_no_font_has_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_boxes.cache_clear()
    for _ in range(3):
        find_font("a" + UNASSIGNED, 20)
    assert caplog.text.count("in no installed font") == 1
