"""On TensorBoard: a decision as images of the affinity and the tree, and as text; a sweep in the HPARAMS tab.

The engine imports nothing from here: whoever launches a run passes `log_decision` to it as a callable.
"""

import io
import shutil
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from distbranch.report.figure_style import render_in_style
from distbranch.report.figures import draw_affinity, draw_costs
from distbranch.report.layers import format_name, grow_layers, list_top_groups, name_decision
from distbranch.report.run_files import read_run
from distbranch.report.sweep_files import COSTS, FINISHED, SweepFiles
from distbranch.report.tree_figure import draw_tree

DPI = 90  # about as large as TensorBoard shows an image


def log_decision(writer: Any, decision: Mapping[str, Any], run_directory: Path | str) -> None:
    """Add the pictures of one decision to a SummaryWriter, at the decision's iteration.

    Reads the affinity file, `tree.json` and the earlier decisions of the run directory; the decision itself may be there or not.
    """
    run = read_run(run_directory)
    # Decisions of a scout are of one round and written in one step, so later ones may be there too.
    earlier = list(takewhile(lambda line: _locate(line) != _locate(decision), run.decisions))
    layers = grow_layers(run.layers, [*earlier, decision])[-1]
    groups = list_top_groups(layers)
    step = decision["iteration"]
    pictures = {
        "decision/tree": draw_tree(layers, title=": ".join(name_decision(decision))),
        "decision/affinity": draw_affinity(run.read_affinity(decision), run.tasks, groups),
        "decision/costs": draw_costs([decision]),
    }
    for name, figure in pictures.items():
        writer.add_image(name, render_pixels(figure), global_step=step, dataformats="HWC")
    # TensorBoard shows texts as Markdown: a heading and a numbered list
    lines = [f"1. {', '.join(map(format_name, group))}" for group in decision["tasks"]]
    writer.add_text(
        "decision/groups",
        "\n".join([f"**{decision['layer_name']}**\n", *lines]),
        global_step=step,
    )


def _locate(decision: Mapping[str, Any]) -> tuple[int, str]:
    return decision["round"], decision["layer_name"]


def render_pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 RGB [H, W, 3]."""
    file = io.BytesIO()
    with render_in_style():
        figure.savefig(file, dpi=DPI)
    return np.asarray(Image.open(file).convert("RGB"))


def log_hparams(sweep: SweepFiles, folder: Path) -> None:
    """Write what was varied and what each finished trial reached to `folder`, anew."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    columns = [f"{split}_{sweep.metric}" for split in ("val", "test")] + list(COSTS)
    finished = sweep.rows[sweep.rows["status"] == FINISHED]
    with SummaryWriter(str(folder)) as writer:
        for _, row in finished.iterrows():
            settings = {key: _parse_setting(row[key]) for key in (*sweep.keys, "seed")}
            reached = row[columns].dropna().add_prefix("sweep/").to_dict()
            writer.add_hparams(settings, reached, run_name=row["trial"], global_step=0)


def _parse_setting(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text or "none"
