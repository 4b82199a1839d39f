"""Names beside the points of a diagram: each where it covers neither a point nor another name."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from distbranch.report.palette import AS_IT_IS, INK, MUTED, PAPER
from distbranch.report.tree_figure import text_width

FONT = 8.5  # points
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
        boxes = {place: _box((float(at[0]), float(at[1])), place, text, dpi) for place in (*NEAR, *FAR)}
        free = [
            (2 * sum(box.overlaps(dot) for dot in dots) + (place in FAR), place)
            for place, box in boxes.items()
            if _contains(inside, box) and not any(box.overlaps(other) for other in taken)
        ]
        if free:
            _, place = min(free, key=lambda found: found[0])
            taken.append(boxes[place])
            _write(axes, text, (x, y), place)
            written.append(text)
    return written


def _write(axes: Axes, text: str, spot: tuple[float, float], place: Place) -> None:
    dx, dy, across, up = place
    axes.annotate(
        text,
        xy=spot,
        xytext=(dx, dy),
        textcoords="offset points",
        ha=across,
        va=up,
        fontsize=FONT,
        color=INK,
        zorder=4,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.4},
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if place in FAR else None,
        **AS_IT_IS,
    )


def _box(spot: tuple[float, float], place: Place, text: str, dpi: float) -> Bbox:
    """The pixels that a name takes."""
    dx, dy, across, up = place
    width, height = text_width(text, FONT) * dpi, 1.15 * FONT * dpi / 72
    left = spot[0] + dx * dpi / 72 - {"center": width / 2, "left": 0.0, "right": width}[across]
    bottom = spot[1] + dy * dpi / 72 - {"center": height / 2, "bottom": 0.0, "top": height}[up]
    return Bbox.from_bounds(left, bottom, width, height)


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
