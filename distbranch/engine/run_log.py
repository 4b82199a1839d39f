"""The record of a run while it trains: lines of metrics.jsonl, TensorBoard scalars and figures, and events for whoever watches.

Only rank 0 has one.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from distbranch.engine.run_directory import RunDirectory, append_line, read_lines, read_touch_time

logger = logging.getLogger("distbranch")
Event = dict[str, Any]
Report = Callable[[Event], None]
DrawDecision = Callable[[SummaryWriter, Mapping[str, Any], Path], None]

SECONDS_BETWEEN_EVENTS = 0.5
FIRST_TRACED_STEP = 10
LAST_TRACED_STEP = 15


class RunLog:
    """Writes what happens to the run directory and tells it to `report`.

    Args:
        directory: of the run.
        after: the step from which the run goes on.
        iterations: its steps in all.
        report: called with what happens.
        draw: called with every decision, to draw it into TensorBoard.
    """

    def __init__(
        self, directory: RunDirectory, *, after: int, iterations: int, report: Report, draw: DrawDecision | None
    ) -> None:
        self.directory, self.iterations = directory, iterations
        self.report = report
        self.draw = draw
        if not directory.tensorboard.exists():
            write_tensorboard(directory, draw)
        self.writer = SummaryWriter(
            str(directory.tensorboard), purge_step=after + 1
        )  # what a killed run wrote later is hidden
        self._last_sign = read_touch_time(directory.sign_of_life)  # of whoever trained the run before
        self._loss: float | None = None  # as last logged
        self._reported_at = 0.0

    def write_step(self, line: Event) -> None:
        """One logged training step."""
        append_line(self.directory.metrics, {"kind": "train", **line})
        _add_training(self.writer, line)
        self._loss = line["loss"]
        self.report_progress(line)

    @property
    def is_silent(self) -> bool:
        """Whether nothing was told for so long that whoever watches may wonder."""
        return time.monotonic() - self._reported_at >= SECONDS_BETWEEN_EVENTS

    def report_progress(self, fields: Event) -> None:
        """Let whoever watches know where the run stands."""
        self._reported_at = time.monotonic()
        self._touch_heartbeat()
        self.report({"kind": "progress", "loss": self._loss, "iterations": self.iterations, **fields})

    def report_resumed(self, iteration: int, world_size: int, rounding: Mapping[str, Any]) -> None:
        """With what the run goes on, and how long it stood still before its first new step.

        Both times are those of the storage, whoever wrote.
        """
        self._touch_heartbeat()
        now = read_touch_time(self.directory.sign_of_life)
        away = None if self._last_sign is None or now is None else round(now - self._last_sign, 2)
        self.write_note("resumed", iteration=iteration, world_size=world_size, **rounding, seconds_to_first_step=away)

    def _touch_heartbeat(self) -> None:
        with suppress(
            OSError
        ):  # storage that fails is told of when something is lost by it: at the next line or checkpoint
            self.directory.sign_of_life.touch()

    def write_evaluation(self, split: str, iteration: int, scores: Mapping[str, Any]) -> None:
        """Metrics of one split."""
        line = {"kind": "evaluation", "iteration": iteration, "split": split, **scores}
        append_line(self.directory.metrics, line)
        _add_evaluation(self.writer, line)
        datasets = {name: {"mean": part["mean"]} for name, part in line.get("datasets", {}).items()}
        told = {key: value for key, value in line.items() if key not in ("tasks", "exclusive", "datasets")}
        self.report(told | {"datasets": datasets} if datasets else told)

    def write_decision(self, record: Event) -> None:
        """A decision; its figures go to TensorBoard."""
        append_line(self.directory.decisions, record)
        if self.draw is not None:
            _draw(self.draw, self.writer, record, self.directory)
        self.report({"kind": "decision", **record})

    def write_policy(self, record: Event) -> None:
        """AdaShare's policy at the end of a cycle: a line of policies.jsonl."""
        append_line(self.directory.policies, record)
        _add_policy(self.writer, record)
        self.report({"kind": "policy", **record})

    def write_note(self, kind: str, **values: Any) -> None:
        """Anything else that a reader of metrics.jsonl should find: `resumed`, `bad_samples`, `stopped`."""
        append_line(self.directory.metrics, {"kind": kind, **values})
        self.report({"kind": kind, **values})

    def flush(self) -> None:
        """Bring TensorBoard's file up to what a checkpoint holds."""
        self.writer.flush()

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        self.writer.close()


class Profiler:
    """Traces a few steps in the middle of training and writes `trace.json` (Chrome's and Perfetto's format) into a folder.

    The first steps are left out: in them kernels are chosen, memory is first taken and the loader fills.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._steps = 0
        self._trace: torch.profiler.profile | None = None

    def record_step(self) -> None:
        """Call after every training step."""
        if self.folder is None:
            return
        self._steps += 1
        if self._steps == FIRST_TRACED_STEP:
            self._trace = torch.profiler.profile(record_shapes=True)
            self._trace.start()
        elif self._trace is not None and self._steps == LAST_TRACED_STEP:
            self._trace.stop()
            self.folder.mkdir(exist_ok=True)
            self._trace.export_chrome_trace(str(self.folder / "trace.json"))
            self._trace = None

    def close(self) -> None:
        """Warn if training ended before there was a trace."""
        if self.folder is not None and self._steps < LAST_TRACED_STEP:
            logger.warning("No trace was written: it takes %d steps, found %d.", LAST_TRACED_STEP, self._steps)


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
                _draw(draw, writer, record, directory)
    for number, file in enumerate(sorted(aside.iterdir())):  # they are read in the order of their names, these first
        file.rename(aside / f"events.out.tfevents.0000000000.beginning.{number}")
    aside.rename(directory.tensorboard)


def _draw(draw: DrawDecision, writer: SummaryWriter, record: Event, directory: RunDirectory) -> None:
    try:
        draw(writer, record, directory.path)
    except Exception as error:  # whatever a picture meets (a name, a font, a file) is not worth hours of training
        logger.warning(
            "The decision of round %s could not be drawn into TensorBoard (%s: %s); the run goes on without its pictures.",
            record["round"],
            type(error).__name__,
            " ".join(str(error).split()),
        )


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


def _add_policy(writer: SummaryWriter, line: Event) -> None:
    step = line["iteration"]
    _add(writer, "policy/num_released", line["num_released"], step)
    _add(writer, "policy/temperature", line["temperature"], step)
    for task, probabilities in zip(line["tasks"], line["execute_probability"], strict=True):
        _add(writer, f"policy_executes/{task}", sum(probabilities) / len(probabilities), step)
    for block, column in zip(line["blocks"], zip(*line["execute_probability"], strict=True), strict=True):
        _add(writer, f"policy_executed/{block}", sum(column) / len(column), step)


ADD = {"train": _add_training, "evaluation": _add_evaluation}


def _add(writer: SummaryWriter, name: str, value: float | None, step: int) -> None:
    if value is not None:
        writer.add_scalar(name, value, step)
