"""What all figures share: colours, letters of every script, and names beside the points of a diagram.

Colours: one per top group, chosen so that colour-blind readers tell neighbours apart. INK, MUTED, GRID and PAPER are exact marks:
the page replaces them by CSS variables, so that the same SVG suits light and dark. DARK is not replaced: it stands on colours,
which are the same on either.
"""

import logging
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.textpath import TextToPath
from matplotlib.transforms import Bbox

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
    with warnings.catch_warnings(record=True) as caught, _mute_font_search():
        warnings.simplefilter("always")
        yield
    for one in caught:
        text = str(one.message)
        if not text.startswith(MISSING_GLYPH):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
            continue
        letter = chr(int(text.split()[1]))
        _warn_of_script(SCRIPTS.get(_find_script(letter), _find_script(letter).title()))


@contextmanager
def missing_letters_not_told() -> Iterator[None]:
    """While texts are only measured: drawing them tells."""
    with warnings.catch_warnings(), _mute_font_search():
        warnings.filterwarnings("ignore", MISSING_GLYPH)
        yield


@contextmanager
def _mute_font_search() -> Iterator[None]:
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


def _find_script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0]


@cache
def _warn_of_script(script: str) -> None:
    logger.warning(
        "No font for %s letters is installed, so figures show boxes in their place. Install one (Noto Sans has all scripts: "
        "fonts-noto-cjk, say, on Debian and Ubuntu) and draw them again with `distbranch report`.",
        script,
    )


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width in inches of a line of text."""
    font = FontProperties(family=font_families(), size=size, weight="bold" if bold else "normal")
    with missing_letters_not_told():
        return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]) / 72


INK = "#1b2430"
DARK = "#1b2431"
MUTED = "#68707a"
GRID = "#d9dde2"
PAPER = "#fefefd"

# Lines with a fixed meaning (Okabe and Ito, Paul Tol): total cost and training in blue, what was chosen in orange.
BLUE, ORANGE, TEAL, PURPLE = "#3b6fb6", "#e0702b", "#2a9d8f", "#a6408c"
OLIVE, BROWN = "#7d8b2f", "#8a5a3b"

# Of every text that people name (tasks, runs): a `$` in it is no mathematics, which could not be drawn, and its letters may
# be of any script.
AS_IT_IS: dict[str, Any] = {"parse_math": False, "fontfamily": font_families()}

# Paul Tol's qualitative schemes, ordered so that neighbours differ in lightness as well as in hue.
_HUES = (
    "#4477aa",
    "#ee8866",
    "#228833",
    "#cc79c0",
    "#33a8c7",
    "#ccaa33",
    "#aa3355",
    "#44bb99",
    "#7d6bb5",
    "#999933",
)


def group_colour(number: int) -> str:
    """The colour of top group `number` (from 0): ten hues, then the same ones lighter, then darker, then again."""
    hue = _HUES[number % len(_HUES)]
    shade = (number // len(_HUES)) % 3
    return hue if shade == 0 else blend(hue, PAPER, 0.42) if shade == 1 else blend(hue, INK, 0.42)


def blend(colour: str, other: str, share: float) -> str:
    """`colour` with `share` (0..1) of `other` mixed in; all as #rrggbb."""
    mixed = (round((1 - share) * int(colour[i : i + 2], 16) + share * int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def text_on(colour: str) -> str:
    """White or nearly black, whichever is easier to read on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 150 else DARK


LABEL_FONT = 8.5  # points
Place = tuple[float, float, str, str]  # points right and up of the spot, and what of the name stands there
Label = tuple[str, float, float]  # a name and its spot in the units of the axes
NEAR: tuple[Place, ...] = (
    (0, 7, "center", "bottom"), (0, -7, "center", "top"), (8, 0, "left", "center"), (-8, 0, "right", "center"),
    (6, 9, "left", "bottom"), (-6, 9, "right", "bottom"), (6, -9, "left", "top"), (-6, -9, "right", "top"),
)  # fmt: skip
FAR = tuple((2.8 * dx, 2.8 * dy, across, up) for dx, dy, across, up in NEAR)  # with a line to its spot


def place_labels(axes: Axes, labels: Sequence[Label], spots: Sequence[tuple[float, float]]) -> list[str]:
    """Write the names whose place can be found, those first that come first; returns those that were written.

    The layout of the figure should be settled (`fonts.settle_layout`), so that places in pixels are known.

    Args:
        axes: of the points.
        labels: (name, x, y).
        spots: of all points, named or not; a name covers one only where there is no other room.
    """
    around = [axes.transData.transform(spot) for spot in spots]
    dots, taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in around], list[Bbox]()
    inside, dpi = axes.get_window_extent(), axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    written = []
    for text, x, y in labels:
        at = axes.transData.transform((x, y))
        boxes = {place: _measure_box((float(at[0]), float(at[1])), place, text, dpi) for place in (*NEAR, *FAR)}
        free = [
            (2 * sum(box.overlaps(dot) for dot in dots) + (place in FAR), place)
            for place, box in boxes.items()
            if _contains(inside, box) and not any(box.overlaps(other) for other in taken)
        ]
        if free:
            _, place = min(free, key=lambda found: found[0])
            taken.append(boxes[place])
            _write_label(axes, text, (x, y), place)
            written.append(text)
    return written


def _write_label(axes: Axes, text: str, spot: tuple[float, float], place: Place) -> None:
    dx, dy, across, up = place
    axes.annotate(
        text,
        xy=spot,
        xytext=(dx, dy),
        textcoords="offset points",
        ha=across,
        va=up,
        fontsize=LABEL_FONT,
        color=INK,
        zorder=4,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.4},
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if place in FAR else None,
        **AS_IT_IS,
    )


def _measure_box(spot: tuple[float, float], place: Place, text: str, dpi: float) -> Bbox:
    """The pixels that a name takes."""
    dx, dy, across, up = place
    width, height = text_width(text, LABEL_FONT) * dpi, 1.15 * LABEL_FONT * dpi / 72
    left = spot[0] + dx * dpi / 72 - {"center": width / 2, "left": 0.0, "right": width}[across]
    bottom = spot[1] + dy * dpi / 72 - {"center": height / 2, "bottom": 0.0, "top": height}[up]
    return Bbox.from_bounds(left, bottom, width, height)


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
