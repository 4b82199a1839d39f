"""The record of a run while it trains: lines of metrics.jsonl, TensorBoard scalars and figures, and events for whoever watches.

Only rank 0 has one.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from distbranch.engine.run_directory import RunDirectory, append_line, read_lines

Event = dict[str, Any]
Report = Callable[[Event], None]
DrawDecision = Callable[[SummaryWriter, Mapping[str, Any], Path], None]


class RunLog:
    """Writes what happens to the run directory and tells it to `report`."""

    def __init__(self, directory: RunDirectory, *, after: int, report: Report, draw: DrawDecision | None) -> None:
        self.directory = directory
        self.report = report
        self.draw = draw
        if not directory.tensorboard.exists():
            write_tensorboard(directory, draw)
        self.writer = SummaryWriter(
            str(directory.tensorboard), purge_step=after + 1
        )  # what a killed run wrote later is hidden

    def train(self, line: Event) -> None:
        """One logged training step."""
        append_line(self.directory.metrics, {"kind": "train", **line})
        _add_training(self.writer, line)

    def evaluation(self, split: str, iteration: int, scores: Mapping[str, Any]) -> None:
        """Metrics of one split."""
        line = {"kind": "evaluation", "iteration": iteration, "split": split, **scores}
        append_line(self.directory.metrics, line)
        _add_evaluation(self.writer, line)
        datasets = {name: {"mean": part["mean"]} for name, part in line.get("datasets", {}).items()}
        told = {key: value for key, value in line.items() if key not in ("tasks", "exclusive", "datasets")}
        self.report(told | {"datasets": datasets} if datasets else told)

    def decision(self, record: Event) -> None:
        """A decision; its figures go to TensorBoard."""
        append_line(self.directory.decisions, record)
        if self.draw is not None:
            self.draw(self.writer, record, self.directory.path)
        self.report({"kind": "decision", **record})

    def note(self, kind: str, **values: Any) -> None:
        """Anything else that a reader of metrics.jsonl should find: `resumed`, `bad_samples`, `stopped`."""
        append_line(self.directory.metrics, {"kind": kind, **values})
        self.report({"kind": kind, **values})

    def flush(self) -> None:
        """Bring TensorBoard's file up to what a checkpoint holds."""
        self.writer.flush()

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        self.writer.close()


def write_tensorboard(directory: RunDirectory, draw: DrawDecision | None) -> None:
    """TensorBoard's file of all that a run directory holds, for a run that has its beginning from another one."""
    lines, decisions = read_lines(directory.metrics), read_lines(directory.decisions)
    if not lines and not decisions:
        return
    aside = directory.path / f".{directory.tensorboard.name}"
    shutil.rmtree(aside, ignore_errors=True)
    with SummaryWriter(str(aside)) as writer:
        for line in lines:
            if line["kind"] in ADD:
                ADD[line["kind"]](writer, line)
        if draw is not None:
            for record in decisions:
                draw(writer, record, directory.path)
    for number, file in enumerate(sorted(aside.iterdir())):  # they are read in the order of their names, these first
        file.rename(aside / f"events.out.tfevents.0000000000.beginning.{number}")
    aside.rename(directory.tensorboard)


def _add_training(writer: SummaryWriter, line: Event) -> None:
    step = line["iteration"]
    for key in ("loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait"):
        _add(writer, f"train/{key}", line[key], step)
    for task, loss in line["task_loss"].items():
        _add(writer, f"train_loss/{task}", loss, step)
    for layer, width in line["branches"].items():
        _add(writer, f"tree/{layer}", width, step)


def _add_evaluation(writer: SummaryWriter, line: Event) -> None:
    split, step = line["split"], line["iteration"]
    for metric, value in line["mean"].items():
        _add(writer, f"{split}/{metric}", value, step)
    for name, part in line.get("datasets", {}).items():
        for metric, value in part["mean"].items():
            _add(writer, f"{split}_{name}/{metric}", value, step)
    for task, row in line["tasks"].items():
        for metric in ("accuracy", "average_precision"):
            _add(writer, f"{split}_{metric}/{task}", row.get(metric), step)


ADD = {"train": _add_training, "evaluation": _add_evaluation}


def _add(writer: SummaryWriter, name: str, value: float | None, step: int) -> None:
    if value is not None:
        writer.add_scalar(name, value, step)
