"""A sweep in TensorBoard's HPARAMS tab: what was varied, and what each finished trial reached."""

import shutil
from pathlib import Path

from distbranch.report.sweep_files import COSTS, SweepFiles


def log_hparams(sweep: SweepFiles, folder: Path) -> None:
    """Write the finished trials to `folder` anew."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    columns = [f"{split}_{sweep.metric}" for split in ("val", "test")] + list(COSTS)
    with SummaryWriter(str(folder)) as writer:
        for point in sweep.points:
            for row in point.finished:
                settings = {key: _plain(row[key]) for key in (*sweep.keys, "seed")}
                reached = {f"sweep/{column}": float(row[column]) for column in columns if row.get(column)}
                writer.add_hparams(settings, reached, run_name=row["trial"], global_step=0)


def _plain(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text or "none"
