"""Fonts of a contact sheet: Pillow's own for plain letters, and for others the first one of this machine that has them all."""

import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger("distbranch")

# Names of files, which Pillow looks for in the font folders of Linux, macOS and Windows.
OTHERS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansCJKjp-Regular.otf", "NotoSansSC-Regular.otf",
    "NotoSansJP-Regular.otf", "NotoSansKR-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "ipag.ttf", "NanumGothic.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "Arial Unicode.ttf",
    "msyh.ttc", "msgothic.ttc", "YuGothM.ttc", "malgun.ttf", "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "FreeSans.ttf", "unifont.ttf",
)  # fmt: skip
UNASSIGNED = "\U0010ffff"  # no font has it, so it looks like every letter that a font lacks


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font in which a text is drawn, `size` in pixels; where none has its letters it shows boxes, and a warning says so."""
    for file in ("", *_font_files()):
        if all(_has(file, letter) for letter in set(text)):
            return _open_font(file, size)
    _warn_of_boxes()
    return _open_font("", size)


def as_one_line(text: str) -> str:
    """The text as it can be drawn: blanks for line breaks and tabs, a mark for bytes and signs that are no letters."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


@cache
def _font_files() -> tuple[str, ...]:
    """Those that are there; DejaVu Sans lies in the folder of matplotlib (which need not be imported for it)."""
    found = find_spec("matplotlib")
    folders = found.submodule_search_locations if found and found.submodule_search_locations else []
    dejavu = [str(Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf") for folder in folders]
    return tuple(file for file in (*dejavu, *OTHERS) if _can_be_opened(file))


def _can_be_opened(file: str) -> bool:
    try:
        ImageFont.truetype(file, 12)
    except OSError:
        return False
    return True


@cache
def _open_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@cache
def _has(file: str, letter: str) -> bool:
    font = _open_font(file, 12)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask(UNASSIGNED))


@cache
def _warn_of_boxes() -> None:
    logger.warning(
        "Some letters are in no installed font, so the picture shows boxes in their place. Install one that has them "
        "(Noto Sans has all scripts: fonts-noto-cjk, say, on Debian and Ubuntu)."
    )
