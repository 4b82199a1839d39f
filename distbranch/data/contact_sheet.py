"""A contact sheet: pictures of a packed data set in an even grid, each with its key and its labels underneath.

Maps of dense tasks follow their image as pictures of their own, and the sheet ends with what their colours mean.
"""

import logging
import math
import os
import random
import textwrap
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from distbranch.config.paths import check_can_be_written
from distbranch.data.map_pictures import LegendEntry, MapPainter
from distbranch.data.plan import Plan
from distbranch.data.reader import OpenShard, ShardReader, ShardSource
from distbranch.data.shards import DatasetInfo, list_dense_tasks, read_dataset
from distbranch.errors import UserError, reason_of
from distbranch.kinds import KINDS
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

# All lengths in pixels.
GAP = 20
CARD_WIDTH = 220
TEXT_SIZE = 15
LINE_HEIGHT = 24  # the most of the fonts below
HEAD = 60  # above the pictures, for the title
PAPER, EDGE, INK = "#FFFFFF", "#E2E5EA", "#1F2430"

# Files that Pillow looks for in the font folders of Linux, macOS and Windows.
FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansCJKjp-Regular.otf", "NotoSansSC-Regular.otf",
    "NotoSansJP-Regular.otf", "NotoSansKR-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "ipag.ttf", "NanumGothic.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf",
    "msyh.ttc", "msgothic.ttc", "YuGothM.ttc", "malgun.ttf", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "FreeSans.ttf", "unifont.ttf",
)  # fmt: skip
UNASSIGNED = "\U0010ffff"  # no font has it, so it looks like every letter that a font lacks

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Card = tuple[Image.Image, list[str]]  # a picture and the lines below it
Legend = tuple[str, list[LegendEntry]]  # of a task


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

    Raises UserError for an unknown split, a damaged sample or a file that cannot be written.
    """
    info = read_dataset(path)
    if split not in info.splits:
        raise UserError(f"The data set has no split '{split}'. It has: {', '.join(info.splits)}.")
    check_can_be_written(Path(out))

    # Drawn from the whole split, shown in its order, and as a network sees them.
    shards = info.splits[split].shards
    plan = Plan([shard.num_samples for shard in shards], seed=None, window=1)
    drawn = random.Random(seed).sample(range(plan.num_samples), min(num_images, plan.num_samples))
    counts = info.splits[split].labels
    painters = [MapPainter(task, counts[task.name]) for task in list_dense_tasks(info.tasks)]
    cards = []
    source = ShardSource.from_split(info, split)
    with closing(ShardReader([source], max_open=1)) as reader:
        for number in sorted(drawn):
            ((shard, sample, *_),) = plan.list_places(number, number + 1)
            cards += draw_cards(reader.open_shard(shard), sample, info, painters)

    name = info.path.rstrip("/").rpartition("/")[2]
    title = (
        f"{name} · {split} · {len(drawn)} of {plan.num_samples:,} samples · {len(info.tasks)} tasks"
    )
    # Whole samples in a row.
    per_sample = 1 + len(painters)
    columns = per_sample * max(1, columns // per_sample)
    height = find_picture_size(info, painters)[0]
    legends = [(painter.task.name, painter.make_legend()) for painter in painters]
    sheet = draw_sheet(title, cards, columns, height=height, legends=legends)
    try:
        sheet.save(out, "PNG")
    except OSError as error:  # a full disk
        raise UserError(
            f"The picture cannot be written to {out} ({reason_of(error)}). Give another place."
        ) from None
    return Path(out)


def draw_cards(
    opened: OpenShard, sample: int, info: DatasetInfo, painters: Sequence[MapPainter]
) -> list[Card]:
    """A card of the image, with its key and its labels, and one of every map."""
    pixels, labels = opened.read_pixels(sample, info.tasks, info.image_size)
    dense = [painter.task for painter in painters]
    scalar = [number for number, task in enumerate(info.tasks) if task not in dense]
    described = describe_labels([info.tasks[n] for n in scalar], labels[scalar].tolist())
    cards = [(Image.fromarray(pixels), [str(opened.read_key(sample)), *described])]
    codes = opened.read_codes(sample)
    size = find_picture_size(info, painters)
    for painter in painters:
        own = codes.get(painter.task.name)
        picture = Image.fromarray(painter.draw(own, size))
        cards.append((picture, [painter.describe(own)]))
    return cards


def find_picture_size(info: DatasetInfo, painters: Sequence[MapPainter]) -> tuple[int, int]:
    """(height, width) in pixels of all pictures: that of the images where there are maps, else a square for images of any shape."""
    if not painters:
        return CARD_WIDTH, CARD_WIDTH
    height, width = info.image_size
    return max(1, round(CARD_WIDTH * height / width)), CARD_WIDTH


def describe_labels(tasks: Sequence[Task], labels: Sequence[float]) -> list[str]:
    """What a sample's labels (NaN = unlabelled) say: classes, numbers, binary tasks that are 1, soft ones that are not small."""
    lines = []
    for task, value in zip(tasks, labels, strict=True):
        if not math.isnan(value):
            lines.append(KINDS[task.kind].describe_label(task, value))
    lines = list(filter(None, lines))
    num_unlabelled = sum(map(math.isnan, labels))
    if num_unlabelled:
        lines.append(f"({num_unlabelled} unlabelled)")
    return lines


def draw_sheet(
    title: str,
    cards: Sequence[Card],
    columns: int,
    *,
    height: int = CARD_WIDTH,
    legends: Sequence[Legend] = (),
) -> Image.Image:
    """The cards in rows below the title, then the legends; all cards are as high as the one with the most lines.

    height: of the pictures.
    """
    words = [title, *(line for _, lines in cards for line in lines)]
    for name, entries in legends:
        words += [name, *(entry.text for entry in entries)]
    font = find_font(convert_to_one_line(" ".join(words)))
    texts = [_break_lines(lines, font) for _, lines in cards]
    columns = min(columns, len(cards))
    num_rows = math.ceil(len(cards) / columns)
    card_height = height + GAP + LINE_HEIGHT * max(map(len, texts)) + GAP
    width = GAP + columns * (CARD_WIDTH + GAP)
    legend = draw_legends(legends, width, font)
    end = HEAD + num_rows * card_height
    sheet = Image.new("RGB", (width, end + legend.height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), convert_to_one_line(title), INK, font)
    for number, (picture, _) in enumerate(cards):
        row, column = divmod(number, columns)
        x = GAP + column * (CARD_WIDTH + GAP)
        y = HEAD + row * card_height
        sheet.paste(ImageOps.pad(picture, (CARD_WIDTH, height), color=EDGE), (x, y))
        draw.text((x, y + height + GAP // 2), "\n".join(texts[number]), INK, font)
    sheet.paste(legend, (0, end))
    return sheet


def draw_legends(legends: Sequence[Legend], width: int, font: Font) -> Image.Image:
    """What colours mean, a line or more for each task: its name, then swatches with their texts."""
    start = GAP + round(max((font.getlength(name) for name, _ in legends), default=0)) + GAP
    # Places first, for they say how high it is.
    texts: list[tuple[int, int, str]] = []
    swatches: list[tuple[int, int, Image.Image]] = []
    y = 0
    for name, entries in legends:
        if not entries:
            continue
        x = start
        texts.append((GAP, y, name))
        for entry in entries:
            swatch = Image.fromarray(entry.swatch)
            text = convert_to_one_line(entry.text)
            length = swatch.width + GAP // 2 + round(font.getlength(text)) + GAP
            if x > start and x + length > width:
                x = start
                y += LINE_HEIGHT
            swatches.append((x, y + 2, swatch))
            texts.append((x + swatch.width + GAP // 2, y, text))
            x += length
        y += LINE_HEIGHT + GAP // 2

    legend = Image.new("RGB", (width, y + GAP if y else 0), PAPER)
    draw = ImageDraw.Draw(legend)
    for x, y, swatch in swatches:
        legend.paste(swatch, (x, y))
    for x, y, text in texts:
        draw.text((x, y), text, INK, font)
    return legend


def find_font(text: str) -> Font:
    """The first font that has all letters of a text. If none has, they are drawn as boxes, and a warning says so."""
    matplotlib = find_spec("matplotlib")  # which need not be imported for the font in its folder
    assert matplotlib is not None
    dejavu = Path(str(matplotlib.origin)).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    for file in ("", str(dejavu), *FONTS):
        try:
            # Pillow's own is drawn alike on every machine.
            font = (
                ImageFont.truetype(file, TEXT_SIZE) if file else ImageFont.load_default(TEXT_SIZE)
            )
        except OSError:  # it is not on this machine
            continue
        lacking = bytes(font.getmask(UNASSIGNED))
        if all(bytes(font.getmask(letter)) != lacking for letter in set(text) - {" "}):
            return font
    logger.warning(
        "Some letters are in no installed font, so the picture shows boxes in their place. Install one that has them "
        "(Noto Sans has all scripts: fonts-noto-cjk, say, on Debian and Ubuntu)."
    )
    return ImageFont.load_default(TEXT_SIZE)


def convert_to_one_line(text: str) -> str:
    """The text as it can be drawn: blanks for line breaks and tabs, a mark for bytes and signs that are no letters."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def _break_lines(lines: Sequence[str], font: Font) -> list[str]:
    """The lines, each in as many as it needs on a card."""
    broken = []
    for line in map(convert_to_one_line, lines):
        if font.getlength(line) <= CARD_WIDTH:
            broken.append(line)
        else:
            widest = max(map(font.getlength, line))
            broken += textwrap.wrap(line, int(CARD_WIDTH / widest))
    return broken
