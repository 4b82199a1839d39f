"""What a decision looks like on TensorBoard: the affinity and the tree as images, the groups as text.

The engine imports nothing from here: whoever launches a run passes `log_decision` to it as a callable.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distbranch.report.figures import draw_affinity, draw_costs
from distbranch.report.fonts import one_warning_of_missing_letters
from distbranch.report.layers import grow, readable, top_groups
from distbranch.report.run_files import read_run, task_order
from distbranch.report.tree_figure import draw_tree

DPI = 90


def log_decision(writer: Any, decision: Mapping[str, Any], run_directory: Path | str) -> None:
    """Add the pictures of one decision to a SummaryWriter, at the decision's iteration.

    Reads the affinity file, `tree.json` and the earlier decisions of the run directory; the decision itself may be there or not.
    """
    run = read_run(run_directory)
    earlier = [line for line in run.decisions if line["round"] < decision["round"]]
    layers = grow(run.layers, [*earlier, decision])[-1]
    groups, step = top_groups(layers), decision["iteration"]
    tasks = task_order([*earlier, decision])
    pictures = {
        "decision/tree": draw_tree(layers, title=f"Round {decision['round']}: {decision['layer_name']}"),
        "decision/affinity": draw_affinity(run.affinity(decision), tasks, groups),
        "decision/costs": draw_costs([decision]),
    }
    for name, figure in pictures.items():
        writer.add_image(name, pixels(figure), global_step=step, dataformats="HWC")
    lines = [f"{number}. {', '.join(map(readable, group))}" for number, group in enumerate(decision["tasks"], start=1)]
    writer.add_text("decision/groups", f"**{decision['layer_name']}**\n\n" + "\n".join(lines), global_step=step)


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 RGB [H, W, 3]."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    with one_warning_of_missing_letters():
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]
