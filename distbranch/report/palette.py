"""The colours of every figure and table: one per top group, chosen so that colour-blind readers tell neighbours apart.

INK, MUTED, GRID and PAPER are exact marks: the page replaces them by CSS variables, so that the same SVG suits light and dark.
DARK is not replaced: it stands on colours, which are the same on either.
"""

from typing import Any

from distbranch.report.fonts import font_families

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
