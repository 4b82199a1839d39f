"""What all figures share: one style, colours, letters of every script, costs on an axis, names beside the points of a diagram.

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

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

INK = "#1b2430"
DARK = "#1b2431"
MUTED = "#68707a"
GRID = "#d9dde2"
PAPER = "#fefefd"

# Lines with a fixed meaning (Okabe and Ito, Paul Tol): total cost and training in blue, what was chosen in orange.
BLUE = "#3b6fb6"
ORANGE = "#e0702b"
TEAL = "#2a9d8f"
PURPLE = "#a6408c"
OLIVE = "#7d8b2f"
BROWN = "#8a5a3b"

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


# Every figure is drawn and saved in this style; nothing of it is left in the settings of whoever imports the package.
STYLE: dict[Any, Any] = {
    "font.family": font_families(),
    "font.size": 8.5,
    "text.color": INK,
    # People name tasks and runs: a `$` in a name is no mathematics, which could not be drawn.
    "text.parse_math": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
}
in_style = rc_context(STYLE)  # decorates whatever draws a figure


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, laid out by matplotlib."""
    return Figure(figsize=(width, height), layout="constrained")


def make_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose units are inches from its upper left corner, without an axis."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def add_grid(axes: Axes, axis: str = "y") -> None:
    """Faint lines across an axis, and iterations with their thousands marked."""
    axes.grid(axis=axis)  # type: ignore[arg-type]
    if axes.get_xlim()[1] > 999:
        axes.xaxis.set_major_formatter("{x:,.0f}")


def hide_frame(axes: Axes) -> None:
    """Neither spines nor marks, only labels in ink."""
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)


def draw_legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """One legend for all panels, in at most eight columns, as more are wider than one panel."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))


def draw_notice(axes: Axes, text: str) -> None:
    """A sentence in place of a diagram for which there is nothing."""
    axes.text(0.5, 0.5, text, fontsize=10, ha="center", color=MUTED, transform=axes.transAxes)
    axes.set_axis_off()


def make_dot(colour: str, label: str, **style: Any) -> Line2D:
    """A point for a legend."""
    return Line2D([], [], linestyle="", marker="o", color=colour, label=label, **style)


def set_cost_axis(axes: Axes, label: str) -> None:
    """A logarithmic axis of costs with readable marks, faint lines, a faint frame."""
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    low, high = axes.get_xlim()
    marks: tuple[float, ...] = (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    if high / low > 5:
        marks = (1, 2, 5)
    elif high / low > 2.5:
        marks = (1, 1.5, 2, 3, 4, 5, 6, 8)
    if high / low < 30:  # less than a decade and a half has too few marks of its own
        axes.xaxis.set_major_locator(LogLocator(subs=marks))
    axes.xaxis.set_major_formatter(FuncFormatter(_format_cost_mark))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(label, color=INK, fontsize=10)
    axes.grid(linewidth=0.6)
    axes.tick_params(labelsize=8.5, length=3.5)
    axes.spines[:].set(visible=True, color=GRID)


def _format_cost_mark(value: float, _: object) -> str:
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


@contextmanager
def rendering() -> Iterator[None]:
    """Renders in the style, with boxes for letters without a font, which it says once per script and not per letter."""
    # also here: matplotlib makes most marks of an axis only when it renders
    with warnings.catch_warnings(record=True) as caught, rc_context(STYLE), _mute_font_search():
        warnings.simplefilter("always")
        yield
    for one in caught:
        text = str(one.message)
        if text.startswith(MISSING_GLYPH):
            script = _find_script(chr(int(text.split()[1])))
            _warn_of_script(SCRIPTS.get(script, script.title()))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


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
    turn, place = divmod(number, len(_HUES))
    hue = _HUES[place]
    if turn % 3 == 0:
        return hue
    # 0.42: so far from the hue and from the other shade that all thirty are told apart
    return blend_colours(hue, PAPER if turn % 3 == 1 else INK, 0.42)


def blend_colours(colour: str, other: str, share: float) -> str:
    """`colour` with `share` (0..1) of `other` mixed in; all as #rrggbb."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes(round((1 - share) * mine + share * theirs) for mine, theirs in pairs).hex()


def choose_text_colour(colour: str) -> str:
    """White or nearly black, whichever is easier to read on `colour`."""
    red, green, blue = bytes.fromhex(colour[1:])
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return "#ffffff" if luma < 150 else DARK


LABEL_FONT = 8.5  # points
Place = tuple[float, float, str, str]  # points right and up of the spot, and what of the name stands there
Spot = tuple[float, float]
Label = tuple[str, float, float]  # a name and its spot in the units of the axes
NEAR: tuple[Place, ...] = (
    (0, 7, "center", "bottom"), (0, -7, "center", "top"), (8, 0, "left", "center"), (-8, 0, "right", "center"),
    (6, 9, "left", "bottom"), (-6, 9, "right", "bottom"), (6, -9, "left", "top"), (-6, -9, "right", "top"),
)  # fmt: skip
# the share of a name that lies before (left of, below) the point at which it is aligned
SHARE_BEFORE = {"center": 0.5, "left": 0.0, "right": 1.0, "bottom": 0.0, "top": 1.0}
FAR = tuple((2.8 * dx, 2.8 * dy, across, up) for dx, dy, across, up in NEAR)  # with a line to its spot


def place_labels(axes: Axes, labels: Sequence[Label], spots: Sequence[Spot]) -> list[str]:
    """Write the names whose place can be found, those first that come first; returns those that were written.

    Args:
        axes: of the points.
        labels: (name, x, y).
        spots: of all points, named or not; a name covers one only where there is no other room.
    """
    # a point is about ten pixels wide
    around = [axes.transData.transform(spot) for spot in spots]
    dots = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in around]
    inside = axes.get_window_extent()
    taken: list[Bbox] = []
    written = []
    for text, *spot in labels:
        free = []
        for place in (*NEAR, *FAR):
            box = _measure_box(axes, spot, place, text)
            if not box.count_overlaps(taken) and _contains(inside, box):
                # a covered point is worse than a name far away
                cost = 2 * box.count_overlaps(dots) + (place in FAR)
                free.append((cost, place, box))
        if free:
            _, place, box = min(free, key=lambda found: found[0])
            taken.append(box)
            _write_label(axes, text, spot, place)
            written.append(text)
    return written


def _write_label(axes: Axes, text: str, spot: Sequence[float], place: Place) -> None:
    dx, dy, across, up = place
    axes.annotate(
        text,
        xy=(spot[0], spot[1]),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=across,
        va=up,
        fontsize=LABEL_FONT,
        zorder=4,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.4},
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if place in FAR else None,
    )


def _measure_box(axes: Axes, spot: Sequence[float], place: Place, text: str) -> Bbox:
    """The pixels that a name takes."""
    dx, dy, across, up = place
    point = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    x, y = axes.transData.transform((spot[0], spot[1]))
    width = text_width(text, LABEL_FONT) * 72 * point
    height = 1.15 * LABEL_FONT * point
    left = x + dx * point - SHARE_BEFORE[across] * width
    bottom = y + dy * point - SHARE_BEFORE[up] * height
    return Bbox.from_bounds(left, bottom, width, height)


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
