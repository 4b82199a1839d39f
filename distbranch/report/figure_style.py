"""What all figures share: one style, colours, letters of every script, axes, and boxes of inches for pictures of a tree.

Colours: one per top group, chosen so that colour-blind readers tell neighbours apart. INK, MUTED, GRID and PAPER are exact marks:
the page replaces them by CSS variables, so that the same SVG suits light and dark. DARK is not replaced: it stands on colours,
which are the same on either.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

INK = "#1b2430"
DARK = "#1b2431"
MUTED = "#68707a"
GRID = "#d9dde2"
PAPER = "#fefefd"

# Lines with a fixed meaning (Okabe and Ito, Paul Tol): total cost and training in blue, what was chosen in orange.
BLUE = "#3b6fb6"
ORANGE = "#e0702b"

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


@cache
def list_font_families() -> list[str]:
    """The font of all figures, then the installed ones for letters that it lacks."""
    installed = {font.name for font in fontManager.ttflist}
    return [FIGURES, *(name for name in OTHERS if name in installed)]


# Every figure is drawn and saved in this style; nothing of it is left in the settings of whoever imports the package.
STYLE: dict[Any, Any] = {
    "font.family": list_font_families(),
    "font.size": 8.5,
    "text.color": INK,
    # People name tasks and runs: a `$` in a name is no mathematics, which could not be drawn.
    "text.parse_math": False,
    "figure.facecolor": PAPER,
    "figure.titlesize": 10,
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
    # names may stand beyond the edge: the picture is cut around what was drawn
    "savefig.bbox": "tight",
    "savefig.dpi": 160,
}
in_style = rc_context(STYLE)  # decorates whatever draws a figure


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, laid out by matplotlib."""
    return Figure(figsize=(width, height), layout="constrained")


class StyledFigure(Figure):
    """A figure whose files and whose picture in a notebook are in the style, and whole, without whoever saves it knowing of it."""

    def savefig(self, *args: Any, **options: Any) -> None:
        """See Figure."""
        with render_in_style():
            super().savefig(*args, **options)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def make_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose units are inches from its upper left corner, without an axis."""
    figure = StyledFigure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def draw_box(
    axes: Axes, left: float, top: float, right: float, bottom: float, **style: Any
) -> None:
    """A box with round corners on a canvas."""
    look: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.03",
        "facecolor": PAPER,
        "edgecolor": INK,
        "linewidth": 0.9,
    }
    axes.add_patch(FancyBboxPatch((left, top), right - left, bottom - top, **look | style))


def add_grid(axes: Axes) -> None:
    """Faint lines across, and iterations with their thousands marked."""
    axes.grid(axis="y")
    if axes.get_xlim()[1] > 999:
        axes.xaxis.set_major_formatter("{x:,.0f}")


def hide_frame(axes: Axes) -> None:
    """Neither spines nor marks, only labels in ink."""
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)


def set_cost_axis(axes: Axes, label: str) -> None:
    """A logarithmic axis of costs with readable marks, faint lines, a faint frame."""
    axes.set_xscale("log")
    # room for the names beside the outermost points
    axes.margins(x=0.15, y=0.12)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    # less than a decade would have one mark
    if high < 10 * low:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(label, color=INK, fontsize=10)
    axes.grid(linewidth=0.6)
    axes.spines[:].set(visible=True, color=GRID)


@contextmanager
def render_in_style() -> Iterator[None]:
    """Renders in the style, with boxes for letters without a font, which it says once and not per letter."""
    # it logs every other script's font that has no bold letters
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    # also here: matplotlib makes most marks of an axis only when it renders
    with warnings.catch_warnings(record=True) as caught, rc_context(STYLE):
        warnings.simplefilter("always")
        yield
    for one in caught:
        if str(one.message).startswith(MISSING_GLYPH):
            _warn_of_missing_font()
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


@cache
def _warn_of_missing_font() -> None:
    logger.warning(
        "No font for some letters is installed, so figures show boxes in their place. Install one (Noto Sans has all scripts: "
        "fonts-noto-cjk, say, on Debian and Ubuntu) and draw them again with `distbranch report`."
    )


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
    """`colour` with `share` (0..1) of `other` mixed in; as #rrggbb."""
    red, green, blue = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return to_hex((red, green, blue))


def choose_text_colour(colour: Any) -> str:
    """White or nearly black, whichever is easier to read on `colour`."""
    luma = np.dot((0.299, 0.587, 0.114), to_rgb(colour))  # ITU-R BT.601
    return "#ffffff" if luma < 0.59 else DARK


# of a probability: the page is zero
EXECUTES = LinearSegmentedColormap.from_list("executes", [PAPER, BLUE])
