"""A contact sheet: pictures of a packed data set in an even grid, each with its key and its labels underneath."""

import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from distbranch.config.paths import check_can_be_written
from distbranch.data.images import BrokenImageError, decode_image
from distbranch.data.plan import SequentialPlan
from distbranch.data.reader import ShardReader
from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

# All lengths in pixels.
GAP = 20
CARD_WIDTH = 220
LINE_HEIGHT = 25  # of a chip and the space below it
CHIP_PADDING = 8
TEXT_SIZE = 15
LEAST_SHOWN = 0.2  # of soft labels: below it a chip would tell what the image most probably is not

PAPER, INK, GREY = "#F3F4F6", "#1F2430", "#E2E5EA"
PLAIN = "#D5E3FA"
GROUP_COLOURS = (
    "#D5E3FA",
    "#FBD9BC",
    "#CDEBD5",
    "#E6D1F5",
    "#F7CCD8",
    "#C8E9ED",
    "#F6E6AE",
    "#DAD6CE",
    "#D6E6B0",
    "#D2D2F7",
)

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
Chip = tuple[str, str]  # a text and the colour of its ground
Card = tuple[Image.Image, list[Chip]]


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
    if num_images < 1 or columns < 1:
        raise UserError(f"At least 1 image and 1 column can be shown, found {num_images} and {columns}.")
    check_can_be_written(Path(out))

    # Tasks have the colour of their group.
    groups = dict(zip(info.groups, cycle(GROUP_COLOURS), strict=False))
    colours: dict[str, str] = {}
    for group, names in info.groups.items():
        colours |= dict.fromkeys(names, groups[group])
    cards = list(_make_cards(info, split, num_images, seed, colours))

    name = info.path.rstrip("/").rpartition("/")[2]
    title = f"{name} · {split} · {len(cards)} of {info.splits[split].num_samples:,} samples · {len(info.tasks)} tasks"
    sheet = draw_sheet([(title, PAPER), *groups.items()], cards, columns)
    try:
        sheet.save(out, "PNG")
    except OSError as error:
        raise UserError(
            f"The picture cannot be written to {out}: {error.strerror or error}. Give another place."
        ) from None
    return Path(out)


def list_chips(tasks: Sequence[Task], labels: Sequence[float], colours: Mapping[str, str]) -> list[Chip]:
    """What a sample's labels (NaN = unlabelled) say: classes, binary tasks that are 1, soft ones that are not small."""
    chips = []
    for task, value in zip(tasks, labels, strict=True):
        colour = colours.get(task.name, PLAIN)
        if math.isnan(value):
            continue
        if task.classes:
            chips.append((f"{task.name}: {task.classes[int(value)]}", GREY))
        elif value == 1:
            chips.append((task.name, colour))
        elif value >= LEAST_SHOWN:
            chips.append((f"{task.name} {value:.2f}", colour))
    num_unlabelled = sum(map(math.isnan, labels))
    if num_unlabelled:
        chips.append((f"{num_unlabelled} unlabelled", PAPER))
    return chips


def draw_sheet(head: Sequence[Chip], cards: Sequence[Card], columns: int) -> Image.Image:
    """The cards in rows below the lines of the head; all cards are as high as the highest."""
    columns = min(columns, len(cards))
    lists = [chips for _, chips in cards]
    num_chips = max(map(len, lists))
    card_height = CARD_WIDTH + GAP // 2 + num_chips * LINE_HEIGHT + GAP
    num_rows = -(-len(cards) // columns)
    top = GAP + len(head) * LINE_HEIGHT + GAP
    width = GAP + columns * (CARD_WIDTH + GAP)

    sheet = Image.new("RGB", (width, top + num_rows * card_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    texts = [text for chips in (head, *lists) for text, _ in chips]
    draw.font = find_font(convert_to_one_line(" ".join(texts)))
    _draw_chips(draw, (GAP, GAP), head, width - 2 * GAP)
    for number, (picture, chips) in enumerate(cards):
        row, column = divmod(number, columns)
        x = GAP + column * (CARD_WIDTH + GAP)
        y = top + row * card_height
        fitted = ImageOps.pad(picture, (CARD_WIDTH, CARD_WIDTH), color=GREY)
        sheet.paste(fitted, (x, y))
        _draw_chips(draw, (x, y + CARD_WIDTH + GAP // 2), chips, CARD_WIDTH)
    return sheet


def find_font(text: str) -> Font:
    """The first font that has all letters of a text. If none has, they are drawn as boxes, and a warning says so."""
    matplotlib = find_spec("matplotlib")  # which need not be imported for the font in its folder
    assert matplotlib is not None
    dejavu = Path(str(matplotlib.origin)).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    for file in ("", str(dejavu), *FONTS):
        try:
            # Pillow's own is drawn alike on every machine.
            font = ImageFont.truetype(file, TEXT_SIZE) if file else ImageFont.load_default(TEXT_SIZE)
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


def _make_cards(
    info: DatasetInfo,
    split: str,
    num_images: int,
    seed: int,
    colours: Mapping[str, str],
) -> Iterator[Card]:
    """Samples drawn from the whole split, in its order."""
    shards = info.splits[split].shards
    plan = SequentialPlan([shard.num_samples for shard in shards])
    num_samples = info.splits[split].num_samples
    drawn = random.Random(seed).sample(range(num_samples), min(num_images, num_samples))
    with closing(ShardReader([(info.path, shards)], max_open=1)) as reader:
        for number in sorted(drawn):
            ((shard, sample, _),) = plan.list_places(number, number + 1)
            opened = reader.open_shard(shard)
            content, labels = opened.read_sample(sample, info.tasks)
            try:
                picture = decode_image(content)
            except BrokenImageError as error:
                raise opened.bad_sample(sample, "broken-image", f"{error}.") from None
            chips = list_chips(info.tasks, labels.tolist(), colours)
            yield picture, [(str(opened.read_key(sample)), PAPER), *chips]


def _draw_chips(draw: ImageDraw.ImageDraw, place: tuple[int, int], chips: Sequence[Chip], width: int) -> None:
    """One below the other, the middle of a text left out where it is wider than `width` pixels."""
    x, y = place
    for text, colour in chips:
        line = text = convert_to_one_line(text)
        for kept in range(len(text), -1, -1):
            right = x + CHIP_PADDING + draw.textlength(line) + CHIP_PADDING
            if right <= x + width:
                break
            line = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        draw.rounded_rectangle((x, y, right, y + LINE_HEIGHT - 4), 7, colour)
        draw.text((x + CHIP_PADDING, y + LINE_HEIGHT // 2 - 2), line, INK, anchor="lm")
        y += LINE_HEIGHT
