"""Letters of every script in figures: from the fonts of this machine that have them, and where none has, one warning."""

import logging
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

logger = logging.getLogger("distbranch")

FIGURES = "DejaVu Sans"  # comes with matplotlib
# What Linux, macOS and Windows have for other scripts; the first one that has a letter draws it.
OTHERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC", "Noto Sans SC", "Noto Sans JP",
    "Noto Sans KR", "Noto Sans TC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "IPAGothic", "IPAexGothic", "TakaoGothic", "VL Gothic", "NanumGothic", "UnDotum",
    "PingFang SC", "PingFang HK", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "Heiti TC", "STHeiti",
    "Arial Unicode MS", "Microsoft YaHei", "MS Gothic", "Yu Gothic", "Meiryo", "Malgun Gothic", "SimHei", "SimSun",
    "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Thai", "Noto Sans Ethiopic", "Noto Sans Khmer", "Nirmala UI", "Leelawadee UI", "FreeSans", "Unifont",
    "Noto Emoji", "Symbola", "Segoe UI Emoji", "Segoe UI Symbol",
)  # fmt: skip
MISSING_GLYPH = "Glyph "  # how matplotlib's warning of a missing letter begins
SCRIPTS = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL"), "Chinese, Japanese or Korean")


@cache
def font_families() -> list[str]:
    """The font of all figures, then the installed ones for letters that it lacks."""
    installed = {font.name for font in fontManager.ttflist}
    return [FIGURES, *(name for name in OTHERS if name in installed)]


@contextmanager
def one_warning_of_missing_letters() -> Iterator[None]:
    """Draws boxes for letters without a font, and says so once per script instead of once per letter and figure."""
    with warnings.catch_warnings(record=True) as caught, _quiet_search():
        warnings.simplefilter("always")
        yield
    for one in caught:
        text = str(one.message)
        if not text.startswith(MISSING_GLYPH):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
            continue
        letter = chr(int(text.split()[1]))
        _warn_of_script(SCRIPTS.get(_script(letter), _script(letter).title()))


@contextmanager
def missing_letters_not_told() -> Iterator[None]:
    """While texts are only measured: drawing them tells."""
    with warnings.catch_warnings(), _quiet_search():
        warnings.filterwarnings("ignore", MISSING_GLYPH)
        yield


@contextmanager
def _quiet_search() -> Iterator[None]:
    """Matplotlib logs every other script's font that has no bold letters."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def settle_layout(figure: Figure) -> None:
    """Makes places in pixels known."""
    with missing_letters_not_told():
        figure.draw_without_rendering()


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0]


@cache
def _warn_of_script(script: str) -> None:
    logger.warning(
        "No font for %s letters is installed, so figures show boxes in their place. Install one (Noto Sans has all scripts: "
        "fonts-noto-cjk, say, on Debian and Ubuntu) and draw them again with `distbranch report`.",
        script,
    )
