"""A contact sheet: pictures of a packed data set in an even grid, each with its labels as chips underneath.

Plain letters are drawn in Pillow's own font, others in the first font of this machine that has them all.
"""

import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from distbranch.config.paths import check_can_be_written
from distbranch.data.images import BrokenImageError, decode_image
from distbranch.data.reader import ShardReader
from distbranch.data.shards import BadSample, DatasetInfo, locate_samples, read_dataset
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

# All lengths in pixels.
MARGIN = 40
GAP = 20  # between cards
PADDING = 14
CARD_WIDTH = 248
INNER_WIDTH = CARD_WIDTH - 2 * PADDING
CHIP_GAP = 6
CHIP_PADDING = 8
LINE_HEIGHT = 19
TITLE_SIZE, SUBTITLE_SIZE, TEXT_SIZE, KEY_SIZE = 32, 18, 15, 13
SUBTITLE_AT = MARGIN + TITLE_SIZE + 14
LEGEND_AT = SUBTITLE_AT + SUBTITLE_SIZE + 26
LEGEND_GAP = 24
KEY_HEIGHT = 10 + KEY_SIZE + 12
TALLEST_PICTURE = 1.5  # height by width; taller ones are fitted into it

LEAST_SHOWN = 0.2  # of soft labels: below it a chip would tell what the image most probably is not
Font = ImageFont.FreeTypeFont
Colours = tuple[str, str]  # background, text
PAPER, CARD, EDGE, INK, FAINT = "#F3F4F6", "#FFFFFF", "#E2E5EA", "#1F2430", "#7A8291"
PLAIN: Colours = ("#E3ECFB", "#1D4E9E")
CLASS: Colours = ("#3A4256", "#FFFFFF")
NONE: Colours = ("#F3F4F6", "#7A8291")
GROUP_COLOURS: tuple[Colours, ...] = (
    ("#E3ECFB", "#1D4E9E"),
    ("#FDE8D7", "#9A4A0B"),
    ("#DFF3E4", "#1B6B38"),
    ("#F1E4FA", "#6A2C91"),
    ("#FBE3EA", "#9B1F4B"),
    ("#DDF2F4", "#0F6670"),
    ("#FBF1CF", "#7A5A00"),
    ("#E8E6E1", "#544C3C"),
    ("#E6F0CF", "#4F6310"),
    ("#E4E4FB", "#3D36A3"),
)


# Names of files, which Pillow looks for in the font folders of Linux, macOS and Windows.
OTHERS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansCJKjp-Regular.otf", "NotoSansSC-Regular.otf",
    "NotoSansJP-Regular.otf", "NotoSansKR-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "ipag.ttf", "NanumGothic.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf",
    "msyh.ttc", "msgothic.ttc", "YuGothM.ttc", "malgun.ttf", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "FreeSans.ttf", "unifont.ttf",
)  # fmt: skip
UNASSIGNED = "\U0010ffff"  # no font has it, so it looks like every letter that a font lacks


@dataclass(frozen=True)
class _Chip:
    """A word or more on a coloured ground; `lines` are short enough for a card."""

    lines: tuple[str, ...]
    colours: Colours
    width: int
    font: Font

    @property
    def height(self) -> int:
        return len(self.lines) * LINE_HEIGHT + 6


PlacedChip = tuple[int, int, _Chip]  # (x, y, chip)


@dataclass(frozen=True)
class _Card:
    """One sample, ready to draw: every chip with its place below the picture."""

    key: str
    picture: Image.Image
    chips: list[PlacedChip]
    chips_height: int


def draw_contact_sheet(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "train",
    num_images: int = 24,
    columns: int = 6,
    seed: int = 0,
) -> Path:
    """Draws `num_images` samples, chosen by the seed, into the PNG file `out`, and returns its path.

    A chip is a binary task whose label is 1, or soft and not small, with its value (coloured by its group, where groups
    are known), or the class of a categorical one. Raises UserError for an unknown split, a damaged sample or a file that cannot be written.
    """
    info = read_dataset(path)
    if split not in info.splits:
        raise UserError(f"The data set has no split '{split}'. It has: {', '.join(info.splits)}.")
    if num_images < 1 or columns < 1:
        raise UserError(f"At least 1 image and 1 column can be shown, found {num_images} and {columns}.")
    check_can_be_written(Path(out))
    colours = _choose_colours(info)
    cards = []
    for key, image, labels in _choose_samples(info, split, num_images, seed):
        cards.append(_make_card(key, image, labels, info.tasks, colours))
    title = info.path.rstrip("/").rpartition("/")[2]
    num_samples = info.splits[split].num_samples
    what = f"{split} · {len(cards)} of {num_samples:,} samples · {len(info.tasks)} tasks"
    legend = list(map(_make_chip, info.groups, cycle(GROUP_COLOURS)))
    sheet = _draw_sheet(title, what, legend, cards, min(columns, len(cards)))
    try:
        sheet.save(out, "PNG")
    except OSError as error:
        raise UserError(
            f"The picture cannot be written to {out}: {error.strerror or error}. Give another place."
        ) from None
    return Path(out)


def _choose_samples(
    info: DatasetInfo,
    split: str,
    num_images: int,
    seed: int,
) -> Iterator[tuple[str, Image.Image, Mapping[str, float]]]:
    """Key, image and labels (NaN = unlabelled) of samples drawn from the whole split, in the order of the split."""
    shards = info.splits[split].shards
    num_samples = info.splits[split].num_samples
    names = [task.name for task in info.tasks]
    drawn = random.Random(seed).sample(range(num_samples), min(num_images, num_samples))
    with closing(ShardReader([(info.path, shards)], info.tasks, max_open=1)) as reader:
        for shard, sample in locate_samples(shards, sorted(drawn)):
            content, labels = reader.read_sample(shard, sample)
            key = str(reader.read_key(shard, sample))
            try:
                image = decode_image(content)
            except BrokenImageError as error:
                raise BadSample(
                    "broken-image",
                    shards[shard].file,
                    key,
                    f"{error}.",
                ) from None
            yield key, image, dict(zip(names, labels.tolist(), strict=True))


def _choose_colours(info: DatasetInfo) -> dict[str, Colours]:
    """The colours of every binary task, group by group and in the colours of the group; tasks of no group come last."""
    colours: dict[str, Colours] = {}
    for members, of_group in zip(info.groups.values(), cycle(GROUP_COLOURS), strict=False):
        colours |= dict.fromkeys(members, of_group)
    for task in info.tasks:
        colours.setdefault(task.name, PLAIN)
    return colours


def _make_card(
    key: str,
    image: Image.Image,
    labels: Mapping[str, float],
    tasks: Sequence[Task],
    colours: Mapping[str, Colours],
) -> _Card:
    """Classes come first, then binary tasks in the order of `colours`, last how many tasks have no label."""
    order = {name: place for place, name in enumerate(colours)}
    chips = []
    for task in sorted(tasks, key=lambda task: (task.kind == "binary", order[task.name])):
        value = labels[task.name]
        if math.isnan(value):
            continue
        if task.kind == "categorical":
            label = task.classes[int(value)]
            chips.append(_make_chip(f"{task.name}: {label}", CLASS))
        elif value == 1:
            chips.append(_make_chip(task.name, colours[task.name]))
        elif value >= LEAST_SHOWN:
            chips.append(_make_chip(f"{task.name} {value:.2f}", colours[task.name]))

    num_unlabelled = sum(map(math.isnan, labels.values()))
    if num_unlabelled:
        chips.append(_make_chip(f"{num_unlabelled} unlabelled", NONE))
    elif not chips:
        chips.append(_make_chip("no label is 1", NONE))
    placed, height = _place_chips(chips, INNER_WIDTH)
    return _Card(key, image, placed, height)


def _place_chips(chips: Sequence[_Chip], width: int) -> tuple[list[PlacedChip], int]:
    """Places chips from left to right in as many rows as they need; also the height of all rows."""
    placed = []
    x = y = row_height = 0
    for chip in chips:
        if x and x + chip.width > width:
            y += row_height + CHIP_GAP
            x = row_height = 0
        placed.append((x, y, chip))
        x += chip.width + CHIP_GAP
        row_height = max(row_height, chip.height)
    return placed, y + row_height


def _make_chip(text: str, colours: Colours) -> _Chip:
    text = convert_to_one_line(text.replace("_", " "))  # blanks, where lines may be broken
    font = find_font(text, TEXT_SIZE)
    lines = _break_lines(text, font, INNER_WIDTH - 2 * CHIP_PADDING)
    widest = max(map(font.getlength, lines))
    return _Chip(tuple(lines), colours, round(widest) + 2 * CHIP_PADDING, font)


def _break_lines(text: str, font: Font, width: float) -> list[str]:
    """Lines of at most `width` pixels, broken at blanks, and inside a word only where it does not fit alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        lines[-1] = word
        while font.getlength(lines[-1]) > width:
            word = lines.pop()
            fits = _count_fitting_letters(word, font, width)
            lines += [word[:fits], word[fits:]]
    return lines


def _count_fitting_letters(word: str, font: Font, width: float) -> int:
    # From the end: pairs of letters may move together, so a longer text is not always wider. One letter always stays, else
    # nothing would get shorter.
    for fits in range(len(word) - 1, 1, -1):
        if font.getlength(word[:fits]) <= width:
            return fits
    return 1


def _paste_picture(
    sheet: Image.Image,
    left: int,
    top: int,
    picture: Image.Image,
    box_height: int,
) -> None:
    """The picture in the middle of a box of `INNER_WIDTH`, as large as it fits in."""
    sheet.paste(PAPER, (left, top, left + INNER_WIDTH, top + box_height))
    scale = min(INNER_WIDTH / picture.width, box_height / picture.height)
    width = max(1, round(picture.width * scale))
    height = max(1, round(picture.height * scale))
    fitted = picture.resize((width, height), Image.Resampling.LANCZOS)
    left += (INNER_WIDTH - width) // 2
    top += (box_height - height) // 2
    sheet.paste(fitted, (left, top))


def _draw_sheet(
    title: str,
    what: str,
    legend: Sequence[_Chip],
    cards: Sequence[_Card],
    columns: int,
) -> Image.Image:
    # Measure the cards: all pictures stand in boxes of one height, and a row is as high as its highest card.
    tallest = max(card.picture.height / card.picture.width for card in cards)
    picture_height = round(INNER_WIDTH * min(tallest, TALLEST_PICTURE))
    rows = [cards[at : at + columns] for at in range(0, len(cards), columns)]
    row_heights = []
    for row in rows:
        chips_height = max(card.chips_height for card in row)
        row_heights.append(PADDING + picture_height + KEY_HEIGHT + chips_height + PADDING)

    # Measure the sheet.
    inner_width = columns * (CARD_WIDTH + GAP) - GAP
    placed, legend_height = _place_chips(legend, inner_width)
    top = LEGEND_AT
    if legend:
        top += legend_height + LEGEND_GAP
    width = MARGIN + inner_width + MARGIN
    height = top + sum(row_heights) + GAP * (len(rows) - 1) + MARGIN

    # Draw the head.
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_text(draw, MARGIN, MARGIN, inner_width, title, TITLE_SIZE, INK)
    _draw_text(draw, MARGIN, SUBTITLE_AT, inner_width, what, SUBTITLE_SIZE, FAINT)
    for x, y, chip in placed:
        _draw_chip(draw, MARGIN + x, LEGEND_AT + y, chip)

    # Draw the cards, row by row.
    for row, row_height in zip(rows, row_heights, strict=True):
        left = MARGIN
        for card in row:
            right = left + CARD_WIDTH - 1  # the last column inside it
            bottom = top + row_height - 1
            draw.rounded_rectangle((left, top, right, bottom), 10, CARD, EDGE)
            _draw_card(sheet, draw, left + PADDING, top + PADDING, card, picture_height)
            left += CARD_WIDTH + GAP
        top += row_height + GAP
    return sheet


def _draw_card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    card: _Card,
    picture_height: int,
) -> None:
    """Picture, key and chips, one below the other."""
    _paste_picture(sheet, left, top, card.picture, picture_height)
    top += picture_height
    _draw_text(draw, left, top + 10, INNER_WIDTH, card.key, KEY_SIZE, FAINT)
    top += KEY_HEIGHT
    for x, y, chip in card.chips:
        _draw_chip(draw, left + x, top + y, chip)


def _draw_text(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    width: int,
    text: str,
    size: int,
    ink: str,
) -> None:
    """One line, its middle left out where it is wider than `width` pixels."""
    line = convert_to_one_line(text)
    font = find_font(line, size)
    line = _shorten_text(line, font, width)
    draw.text((x, y), line, ink, font, anchor="lt")


def _draw_chip(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    chip: _Chip,
) -> None:
    background, ink = chip.colours
    right = x + chip.width - 1
    bottom = y + chip.height - 1
    draw.rounded_rectangle((x, y, right, bottom), 7, background)
    middle = y + 3 + LINE_HEIGHT // 2
    for line in chip.lines:
        draw.text((x + CHIP_PADDING, middle), line, ink, chip.font, anchor="lm")
        middle += LINE_HEIGHT


def _shorten_text(text: str, font: Font, width: float) -> str:
    """The text with its middle left out where it is wider than `width` pixels."""
    shortened = text
    kept = len(text)
    while kept and font.getlength(shortened) > width:
        kept -= 1
        head = text[: (kept + 1) // 2]
        tail = text[len(text) - kept // 2 :]
        shortened = f"{head}…{tail}"
    return shortened


def find_font(text: str, size: int) -> Font:
    """The font in which a text is drawn, `size` in pixels; where none has its letters it shows boxes, and a warning says so."""
    # "" is the font of Pillow, which is drawn alike on every machine.
    for file in ("", *_find_font_files()):
        if all(_has_letter(file, letter) for letter in set(text)):
            return _open_font(file, size)
    _warn_of_boxes()
    return _open_font("", size)


def convert_to_one_line(text: str) -> str:
    """The text as it can be drawn: blanks for line breaks and tabs, a mark for bytes and signs that are no letters."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


@cache
def _find_font_files() -> tuple[str, ...]:
    """Those that are there; DejaVu Sans lies in the folder of matplotlib (which need not be imported for it)."""
    files: tuple[str, ...] = OTHERS
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        dejavu = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        files = (str(dejavu), *OTHERS)
    return tuple(filter(_can_be_opened, files))


def _can_be_opened(file: str) -> bool:
    try:
        _open_font(file, 12)
    except OSError:
        return False
    return True


@cache
def _open_font(file: str, size: int) -> Font:
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
    assert isinstance(font, Font)
    return font


@cache
def _has_letter(file: str, letter: str) -> bool:
    font = _open_font(file, 12)  # of any size, for only shapes are compared
    shape = bytes(font.getmask(letter))
    return letter.isspace() or shape != bytes(font.getmask(UNASSIGNED))


@cache
def _warn_of_boxes() -> None:
    logger.warning(
        "Some letters are in no installed font, so the picture shows boxes in their place. Install one that has them "
        "(Noto Sans has all scripts: fonts-noto-cjk, say, on Debian and Ubuntu)."
    )
