"""A contact sheet: pictures of a packed data set in an even grid, each with its labels as chips underneath."""

import os
import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from distbranch.config.paths import make_ready
from distbranch.data.cache import open_files
from distbranch.data.images import BrokenImageError, decode
from distbranch.data.reader import ShardReader
from distbranch.data.shards import BadSample, DatasetInfo, read_dataset
from distbranch.data.sheet_fonts import as_one_line, font_for
from distbranch.errors import UserError
from distbranch.tasks import Task

# All lengths in pixels.
MARGIN, GAP, PADDING = 40, 20, 14
CARD_WIDTH = 248
INNER_WIDTH = CARD_WIDTH - 2 * PADDING
CHIP_GAP, CHIP_PADDING = 6, 8
LINE_HEIGHT = 19
TITLE_SIZE, SUBTITLE_SIZE, TEXT_SIZE, KEY_SIZE = 32, 18, 15, 13

LEAST_SHOWN = 0.2  # of soft labels
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


@dataclass(frozen=True)
class _Chip:
    """A word or more on a coloured ground; `lines` are short enough for a card."""

    lines: tuple[str, ...]
    colours: Colours
    width: int
    font: ImageFont.FreeTypeFont

    @property
    def height(self) -> int:
        return len(self.lines) * LINE_HEIGHT + 6


@dataclass(frozen=True)
class _Card:
    """One sample, ready to draw: every chip with its place (x, y) below the picture."""

    key: str
    picture: Image.Image
    chips: tuple[tuple[int, int, _Chip], ...]
    chips_height: int


def show(
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
    make_ready(Path(out))
    colours = _task_colours(info)
    cards = [_card(*sample, info.tasks, colours) for sample in _choose(info, split, num_images, seed)]
    what = f"{split} · {len(cards)} of {info.splits[split].num_samples:,} samples · {len(info.tasks)} tasks"
    legend = [_chip(name, GROUP_COLOURS[n % len(GROUP_COLOURS)]) for n, name in enumerate(info.groups)]
    sheet = _draw_sheet(info.path.rstrip("/").rpartition("/")[2], what, legend, cards, min(columns, len(cards)))
    try:
        sheet.save(out, "PNG")
    except OSError as error:
        raise UserError(
            f"The picture cannot be written to {out}: {error.strerror or error}. Give another place."
        ) from None
    return Path(out)


def _choose(
    info: DatasetInfo, split: str, num_images: int, seed: int
) -> Iterator[tuple[str, Image.Image, Mapping[str, float]]]:
    """Key, image and labels (NaN = unlabelled) of samples drawn from the whole split, in the order of the split."""
    shards, num_samples = info.splits[split].shards, info.splits[split].num_samples
    starts = list(accumulate((shard.num_samples for shard in shards), initial=0))
    with closing(ShardReader(open_files(info.path), shards, info.tasks, max_open=1)) as reader:
        for number in sorted(random.Random(seed).sample(range(num_samples), min(num_images, num_samples))):
            shard = bisect_right(starts, number) - 1
            sample = number - starts[shard]
            content, labels = reader.read(shard, sample)
            key = str(reader.name(shard, sample))
            try:
                image = decode(content)
            except BrokenImageError as error:
                raise BadSample("broken-image", shards[shard].file, key, f"{error}.") from None
            yield key, image, dict(zip((task.name for task in info.tasks), labels.tolist(), strict=True))


def _task_colours(info: DatasetInfo) -> dict[str, Colours]:
    """The colours of every binary task, group by group and in the colours of the group; tasks of no group come last."""
    colours: dict[str, Colours] = {}
    for number, members in enumerate(info.groups.values()):
        colours |= dict.fromkeys(members, GROUP_COLOURS[number % len(GROUP_COLOURS)])
    return colours | {task.name: PLAIN for task in info.tasks if task.name not in colours}


def _card(
    key: str, image: Image.Image, labels: Mapping[str, float], tasks: Sequence[Task], colours: Mapping[str, Colours]
) -> _Card:
    chips = []
    order = {name: place for place, name in enumerate(colours)}
    for task in sorted(tasks, key=lambda task: (task.kind == "binary", order[task.name])):
        value = labels[task.name]
        if task.kind == "categorical" and value == value:  # not NaN
            chips.append(_chip(f"{task.name}: {task.classes[int(value)]}", CLASS))
        elif value >= LEAST_SHOWN:
            chips.append(_chip(task.name if value == 1 else f"{task.name} {value:.2f}", colours[task.name]))
    num_unlabelled = sum(value != value for value in labels.values())
    if num_unlabelled or not chips:
        chips.append(_chip(f"{num_unlabelled} unlabelled" if num_unlabelled else "no label is 1", NONE))
    placed, height = _flow(chips, INNER_WIDTH)
    return _Card(key, image, placed, height)


def _flow(chips: Sequence[_Chip], width: int) -> tuple[tuple[tuple[int, int, _Chip], ...], int]:
    """Places chips from left to right in as many rows as they need; also the height of all rows."""
    placed = []
    x = y = row_height = 0
    for chip in chips:
        if x and x + chip.width > width:
            x, y, row_height = 0, y + row_height + CHIP_GAP, 0
        placed.append((x, y, chip))
        x += chip.width + CHIP_GAP
        row_height = max(row_height, chip.height)
    return tuple(placed), y + row_height


def _chip(text: str, colours: Colours) -> _Chip:
    text = as_one_line(text.replace("_", " "))
    font = font_for(text, TEXT_SIZE)
    lines = _break(text, font, INNER_WIDTH - 2 * CHIP_PADDING)
    return _Chip(tuple(lines), colours, round(max(font.getlength(line) for line in lines)) + 2 * CHIP_PADDING, font)


def _break(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of at most `width` pixels, broken at blanks, and inside a word only where it does not fit alone."""
    lines = [""]
    for word in text.split() or [""]:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while font.getlength(lines[-1]) > width:
            fits = max(1, max(n for n in range(1, len(lines[-1])) if n == 1 or font.getlength(lines[-1][:n]) <= width))
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return lines


def _picture(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image, as large as the box (width, height) allows, in its middle."""
    scale = min(size[0] / image.width, size[1] / image.height)
    fitted = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )
    box = Image.new("RGB", size, PAPER)
    box.paste(fitted, ((size[0] - fitted.width) // 2, (size[1] - fitted.height) // 2))
    return box


def _draw_sheet(title: str, what: str, legend: Sequence[_Chip], cards: Sequence[_Card], columns: int) -> Image.Image:
    tallest = max(card.picture.height / card.picture.width for card in cards)
    picture_height = round(INNER_WIDTH * min(tallest, 1.5))
    rows = [cards[at : at + columns] for at in range(0, len(cards), columns)]
    above = PADDING + picture_height + 10 + KEY_SIZE + 12  # from the top of a card to its chips
    heights = [above + max(card.chips_height for card in row) + PADDING for row in rows]
    width = 2 * MARGIN + columns * CARD_WIDTH + (columns - 1) * GAP
    placed, legend_height = _flow(legend, width - 2 * MARGIN)
    top = MARGIN + TITLE_SIZE + 14 + SUBTITLE_SIZE + 26 + (legend_height + 24 if legend else 0)
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_text(draw, MARGIN, MARGIN, width - 2 * MARGIN, title, TITLE_SIZE, INK)
    _draw_text(draw, MARGIN, MARGIN + TITLE_SIZE + 14, width - 2 * MARGIN, what, SUBTITLE_SIZE, FAINT)
    for x, y, chip in placed:
        _draw_chip(draw, MARGIN + x, top - legend_height - 24 + y, chip)
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            left = MARGIN + column * (CARD_WIDTH + GAP)
            draw.rounded_rectangle((left, top, left + CARD_WIDTH - 1, top + height - 1), 10, CARD, EDGE)
            sheet.paste(_picture(card.picture, (INNER_WIDTH, picture_height)), (left + PADDING, top + PADDING))
            _draw_text(
                draw, left + PADDING, top + PADDING + picture_height + 10, INNER_WIDTH, card.key, KEY_SIZE, FAINT
            )
            for x, y, chip in card.chips:
                _draw_chip(draw, left + PADDING + x, top + above + y, chip)
        top += height + GAP
    return sheet


def _draw_text(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, text: str, size: int, ink: str) -> None:
    """One line, its middle left out where it is wider than `width` pixels."""
    text = as_one_line(text)
    font = font_for(text, size)
    draw.text((x, y), _shorten(text, font, width), ink, font, anchor="lt")


def _draw_chip(draw: ImageDraw.ImageDraw, x: int, y: int, chip: _Chip) -> None:
    background, ink = chip.colours
    draw.rounded_rectangle((x, y, x + chip.width - 1, y + chip.height - 1), 7, background)
    for number, line in enumerate(chip.lines):
        middle = y + 3 + number * LINE_HEIGHT + LINE_HEIGHT // 2
        draw.text((x + CHIP_PADDING, middle), line, ink, chip.font, anchor="lm")


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text with its middle left out where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = max(n for n in range(len(text)) if n == 0 or font.getlength(_without_middle(text, n)) <= width)
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    return text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
