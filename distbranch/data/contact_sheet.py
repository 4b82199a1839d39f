"""A contact sheet: pictures of a packed data set in an even grid, each with its key and its labels underneath."""

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
from distbranch.data.plan import Plan
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shards import read_dataset
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
    cards = []
    source = ShardSource.from_split(info, split)
    with closing(ShardReader([source], max_open=1)) as reader:
        for number in sorted(drawn):
            ((shard, sample, _),) = plan.list_places(number, number + 1)
            opened = reader.open_shard(shard)
            pixels, labels = opened.read_pixels(sample, info.tasks, info.image_size)
            lines = [str(opened.read_key(sample)), *describe_labels(info.tasks, labels.tolist())]
            cards.append((Image.fromarray(pixels), lines))

    name = info.path.rstrip("/").rpartition("/")[2]
    title = (
        f"{name} · {split} · {len(cards)} of {plan.num_samples:,} samples · {len(info.tasks)} tasks"
    )
    sheet = draw_sheet(title, cards, columns)
    try:
        sheet.save(out, "PNG")
    except OSError as error:  # a full disk
        raise UserError(
            f"The picture cannot be written to {out} ({reason_of(error)}). Give another place."
        ) from None
    return Path(out)


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


def draw_sheet(title: str, cards: Sequence[Card], columns: int) -> Image.Image:
    """The cards in rows below the title; all are as high as the one with the most lines."""
    everything = " ".join([title, *(line for _, lines in cards for line in lines)])
    font = find_font(convert_to_one_line(everything))
    texts = [_break_lines(lines, font) for _, lines in cards]
    columns = min(columns, len(cards))
    num_rows = math.ceil(len(cards) / columns)
    card_height = CARD_WIDTH + GAP + LINE_HEIGHT * max(map(len, texts)) + GAP
    sheet = Image.new(
        "RGB", (GAP + columns * (CARD_WIDTH + GAP), HEAD + num_rows * card_height), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), convert_to_one_line(title), INK, font)
    for number, (picture, _) in enumerate(cards):
        row, column = divmod(number, columns)
        x = GAP + column * (CARD_WIDTH + GAP)
        y = HEAD + row * card_height
        sheet.paste(ImageOps.pad(picture, (CARD_WIDTH, CARD_WIDTH), color=EDGE), (x, y))
        draw.text((x, y + CARD_WIDTH + GAP // 2), "\n".join(texts[number]), INK, font)
    return sheet


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
