"""The record of a run while it trains: lines of metrics.jsonl, TensorBoard scalars and figures, and events for whoever watches.

Only rank 0 has one.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from distbranch.engine.run_directory import RunDirectory, append_line, read_lines
from distbranch.kinds import KINDS

logger = logging.getLogger("distbranch")
Event = dict[str, Any]
Report = Callable[[Event], None]
DrawDecision = Callable[[SummaryWriter, Mapping[str, Any], Path], None]

SECONDS_BETWEEN_EVENTS = 0.5  # fast enough to look alive, and nothing beside a step
# In the first steps kernels are chosen, memory is first taken and the loader fills: they are left out of a trace.
UNTRACED_STEPS, TRACED_STEPS = 10, 5


class RunLog:
    """Writes what happens into the run directory and reports it.

    Args:
        directory: of the run.
        after: the step from which the run is resumed.
        iterations: its steps in all.
        report: called with what happens.
        draw: called with every decision, to draw it into TensorBoard.
        profile: whether a few steps are traced.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        after: int,
        iterations: int,
        report: Report,
        draw: DrawDecision | None,
        profile: bool = False,
    ) -> None:
        self.directory = directory
        self.iterations = iterations
        self.report = report
        self.draw = draw
        if not directory.tensorboard.exists():
            write_tensorboard(directory, draw)
        # What a killed run wrote after its last checkpoint is hidden.
        self.writer = SummaryWriter(str(directory.tensorboard), purge_step=after + 1)
        self._last_sign = _read_touch_time(
            directory.sign_of_life
        )  # of whoever trained the run before
        self._loss: float | None = None  # as last logged
        self._reported_at = 0.0
        self._steps_to_trace = UNTRACED_STEPS + TRACED_STEPS if profile else 0
        self._profiler: torch.profiler.profile | None = None

    def write_step(self, line: Event) -> None:
        """One logged training step."""
        append_line(self.directory.metrics, {"kind": "train", **line})
        _add_scalars(self.writer, _list_training_scalars(line), line["iteration"])
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
        self.report(
            {"kind": "progress", "loss": self._loss, "iterations": self.iterations, **fields}
        )

    def report_resumed(self, iteration: int, world_size: int, rounding: Mapping[str, Any]) -> None:
        """With what the run is resumed, and how long it stood still before its first new step.

        Both times are those of the storage, whoever wrote.
        """
        self._touch_heartbeat()
        now = _read_touch_time(self.directory.sign_of_life)
        away = None
        if self._last_sign is not None and now is not None:
            away = round(now - self._last_sign, 2)
        self.write_note(
            "resumed",
            iteration=iteration,
            world_size=world_size,
            **rounding,
            seconds_to_first_step=away,
        )

    def _touch_heartbeat(self) -> None:
        # Storage that fails is reported when something is lost by it: at the next line or checkpoint.
        with suppress(OSError):
            self.directory.sign_of_life.touch()

    def write_evaluation(self, split: str, iteration: int, scores: Mapping[str, Any]) -> None:
        """Metrics of one split."""
        line = {"kind": "evaluation", "iteration": iteration, "split": split, **scores}
        append_line(self.directory.metrics, line)
        _add_scalars(self.writer, _list_scores(line), iteration)
        # Means alone are reported: the rows of all tasks would be too much for a screen.
        event = {
            key: value
            for key, value in line.items()
            if key not in ("tasks", "exclusive", "datasets")
        }
        if "datasets" in line:
            event["datasets"] = {
                name: {"mean": part["mean"]} for name, part in line["datasets"].items()
            }
        self.report(event)

    def write_decision(self, record: Event) -> None:
        """A decision; its figures go to TensorBoard."""
        append_line(self.directory.decisions, record)
        _draw_decision(self.draw, self.writer, record, self.directory)
        self.report({"kind": "decision", **record})

    def write_policy(self, record: Event) -> None:
        """AdaShare's policy at the end of a cycle: a line of policies.jsonl."""
        append_line(self.directory.policies, record)
        scalars = {f"policy/{key}": record[key] for key in ("num_released", "temperature")}
        for task, probabilities in zip(record["tasks"], record["execute_probability"], strict=True):
            scalars[f"policy_executes/{task}"] = sum(probabilities) / len(probabilities)
        for block, column in zip(
            record["blocks"], zip(*record["execute_probability"], strict=True), strict=True
        ):
            scalars[f"policy_executed/{block}"] = sum(column) / len(column)
        _add_scalars(self.writer, scalars, record["iteration"])
        self.report({"kind": "policy", **record})

    def write_note(self, kind: str, **values: Any) -> None:
        """Anything else that a reader of metrics.jsonl should find: `resumed`, `bad_samples`, `stopped`."""
        append_line(self.directory.metrics, {"kind": kind, **values})
        self.report({"kind": kind, **values})

    def trace_step(self) -> None:
        """Call after every step: a few of them are traced into `profile/trace.json` (Chrome's and Perfetto's format)."""
        if not self._steps_to_trace:
            return
        self._steps_to_trace -= 1
        if self._steps_to_trace == TRACED_STEPS:
            self._profiler = torch.profiler.profile(record_shapes=True)
            self._profiler.start()
        elif self._profiler is not None and not self._steps_to_trace:
            self._profiler.stop()
            self.directory.profile.mkdir(exist_ok=True)
            self._profiler.export_chrome_trace(str(self.directory.profile / "trace.json"))

    def flush(self) -> None:
        """Bring TensorBoard's file up to what a checkpoint holds."""
        self.writer.flush()

    def close(self) -> None:
        """Flush and close the TensorBoard file; warn if training ended before there was a trace."""
        self.writer.close()
        if self._steps_to_trace:
            logger.warning(
                "No trace was written: training ended %d steps before it was whole.",
                self._steps_to_trace,
            )


def write_tensorboard(directory: RunDirectory, draw: DrawDecision | None) -> None:
    """TensorBoard's file of all that a run directory holds, for a run that has its beginning from another one."""
    lines, decisions = read_lines(directory.metrics), read_lines(directory.decisions)
    if not lines and not decisions:
        return
    aside = directory.path / f".{directory.tensorboard.name}"
    shutil.rmtree(aside, ignore_errors=True)
    with SummaryWriter(str(aside)) as writer:
        for line in lines:
            if line["kind"] in LISTS:
                _add_scalars(writer, LISTS[line["kind"]](line), line["iteration"])
        for record in decisions:
            _draw_decision(draw, writer, record, directory)
    for number, file in enumerate(
        sorted(aside.iterdir())
    ):  # they are read in the order of their names, these first
        file.rename(aside / f"events.out.tfevents.0000000000.beginning.{number}")
    aside.rename(directory.tensorboard)


def _read_touch_time(path: Path) -> float | None:
    """When a file was last touched, by the clock of its storage; None if there is none."""
    with suppress(OSError):
        return path.stat().st_mtime
    return None


def _draw_decision(
    draw: DrawDecision | None, writer: SummaryWriter, record: Event, directory: RunDirectory
) -> None:
    if draw is None:
        return
    try:
        draw(writer, record, directory.path)
    except (
        Exception
    ) as error:  # whatever a picture meets (a name, a font, a file) is not worth hours of training
        logger.warning(
            "The decision of round %s could not be drawn into TensorBoard (%r); the run continues without its pictures.",
            record["round"],
            error,
        )


def _list_training_scalars(line: Event) -> Event:
    keys = ("loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait")
    scalars = {f"train/{key}": line[key] for key in keys}
    scalars |= {f"train_loss/{task}": loss for task, loss in line["task_loss"].items()}
    for task, weight in line.get("loss_weights", {}).items():
        scalars[f"train_loss_weight/{task}"] = weight
    return scalars | {f"tree/{layer}": width for layer, width in line["branches"].items()}


def _list_scores(line: Event) -> Event:
    split = line["split"]
    metrics = chain.from_iterable(kind.metrics.items() for kind in KINDS.values())
    drawn = dict.fromkeys(name for name, metric in metrics if metric.is_drawn)
    scalars = {f"{split}/{metric}": value for metric, value in line["mean"].items()}
    for name, part in line.get("datasets", {}).items():
        scalars |= {f"{split}_{name}/{metric}": value for metric, value in part["mean"].items()}
    for task, row in line["tasks"].items():
        for metric in drawn:
            scalars[f"{split}_{metric}/{task}"] = row.get(metric)
    return scalars


LISTS = {"train": _list_training_scalars, "evaluation": _list_scores}


def _add_scalars(writer: SummaryWriter, scalars: Mapping[str, float | None], step: int) -> None:
    for name, value in scalars.items():
        if value is not None:
            writer.add_scalar(name, value, step)
