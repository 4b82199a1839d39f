"""Pictures of dense tasks: image, truth, prediction and error, a row per image."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from distbranch.kinds import KINDS
from distbranch.kinds.dense import DenseKind
from distbranch.report.figure_style import GRID, MUTED, ORANGE, in_style, make_figure
from distbranch.report.layers import format_name
from distbranch.report.run_files import SampleMaps
from distbranch.tasks import Task

WIDTH = 2.3  # of a picture, in inches
MOST_COLOURS = 24  # in a legend
ERRORS = LinearSegmentedColormap.from_list("errors", ["#ffffff", ORANGE, "#4a1500"])
VALUES = "viridis"


@in_style
def draw_maps(task: Task, samples: SampleMaps) -> Figure:
    """The maps of one dense task; hatched where the truth is not labelled."""
    kind = KINDS[task.kind]
    assert isinstance(kind, DenseKind)
    images = samples.arrays["images"]
    truth, found = (samples.arrays[f"{part}/{task.name}"] for part in ("truth", "found"))
    errors = [kind.measure_errors(task, *pair) for pair in zip(found, truth, strict=True)]
    shown = [
        (kind.draw_codes(task, t), kind.draw_codes(task, f))
        for t, f in zip(truth, found, strict=True)
    ]

    height = WIDTH * images.shape[1] / images.shape[2]
    figure = make_figure(4 * WIDTH + 1.4, len(images) * (height + 0.06) + 0.75)
    panels = figure.subplots(len(images), 4, squeeze=False)
    of_errors = Normalize(0, _find_limit(errors))
    of_values = _find_range([one for pair in shown for one in pair[:1]])
    for row, image, (true, own), error in zip(panels, images, shown, errors, strict=True):
        _show(row[0], image)
        _show(row[1], true, of_values)
        _show(row[2], own, of_values)
        _show(row[3], error, of_errors, cmap=ERRORS)

    unit = kind.error_unit or kind.get_unit(task)
    for axes, title in zip(panels[0], ("image", "truth", "prediction", "error"), strict=True):
        axes.set_title(title)
    if of_values is not None:
        bar = figure.colorbar(panels[0, 2].images[0], ax=panels[:, 1:3], shrink=0.6, pad=0.01)
        bar.set_label(unit, color=MUTED)
    if task.classes:
        _add_legend(figure, task, kind, np.concatenate([truth.ravel(), found.ravel()]))
    else:
        bar = figure.colorbar(panels[0, 3].images[0], ax=panels[:, 3], shrink=0.6, pad=0.02)
        bar.set_label(unit, color=MUTED)
    return figure


def _show(
    axes: Axes,
    picture: np.ndarray,
    norm: Normalize | None = None,
    cmap: str | LinearSegmentedColormap = VALUES,
) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_facecolor(GRID)
    axes.patch.set(hatch="////", edgecolor=MUTED, linewidth=0)
    axes.imshow(picture, cmap=cmap, norm=norm, interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _find_limit(errors: Sequence[np.ndarray]) -> float:
    """The 98th percentile: a few wild pixels would make all others pale."""
    known = np.concatenate([one[np.isfinite(one)] for one in errors])
    return float(np.percentile(known, 98)) or 1.0 if known.size else 1.0


def _find_range(pictures: Sequence[np.ndarray]) -> Normalize | None:
    """That of values, of all pictures together; None of pictures that have colours."""
    if pictures[0].ndim == 3:
        return None
    known = np.concatenate([one[np.isfinite(one)] for one in pictures])
    if not known.size:
        return Normalize(0, 1)
    return Normalize(*np.percentile(known, (1, 99)))


def _add_legend(figure: Figure, task: Task, kind: DenseKind, codes: np.ndarray) -> None:
    """The classes that the pictures have, the most frequent first."""
    counts = np.bincount(codes, minlength=len(task.classes))[: len(task.classes)]
    palette = kind.get_palette()
    assert palette is not None
    patches = []
    for number in np.argsort(-counts, kind="stable")[:MOST_COLOURS]:
        if counts[number]:
            name = format_name(task.classes[number])
            patches.append(Patch(color=palette[number] / 255, label=name))
    figure.legend(handles=patches, loc="outside lower left", ncols=8)
