"""The record of a run while it trains: lines of metrics.jsonl, TensorBoard, gauges, and events for whoever watches.

Only rank 0 has one. Beside events for people it reports each line as it is written (`line`) and the gauges (`gauges`), which trackers
and Ray's metrics take from the same callable; those that neither takes are for nobody.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distbranch.engine.gauges import RunGauges, format_gauges
from distbranch.engine.run_directory import RunDirectory, append_line, write_atomically
from distbranch.engine.tensorboard_log import (
    DrawDecision,
    add_values,
    draw_decision,
    open_tensorboard,
)

logger = logging.getLogger("distbranch")
Event = dict[str, Any]
Report = Callable[[Event], None]

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
        track: where its lines are shown too; of these TensorBoard is kept here.
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
        track: Sequence[str] = ("tensorboard",),
    ) -> None:
        self.directory = directory
        self.iterations = iterations
        self.report = report
        self.draw = draw
        self.writer = None
        if "tensorboard" in track:
            self.writer = open_tensorboard(directory, draw, after=after)
        self.gauges = RunGauges(directory, iterations)
        self._last_sign = _read_touch_time(
            directory.sign_of_life
        )  # of whoever trained the run before
        self._loss: float | None = None  # as last logged
        self._reported_at = 0.0
        self._steps_to_trace = UNTRACED_STEPS + TRACED_STEPS if profile else 0
        self._profiler: torch.profiler.profile | None = None
        report({"kind": "opened", "iteration": after})

    def write_step(self, line: Event) -> None:
        """One logged training step."""
        self._write_line({"kind": "train", **line})
        self._loss = line["loss"]
        self.report_progress(line)

    def _write_line(self, line: Event) -> None:
        """A line of metrics.jsonl, and all that is made of it."""
        append_line(self.directory.metrics, line)
        if self.writer is not None:
            add_values(self.writer, line)
        self.report({"kind": "line", "line": line})
        if not self.gauges.take_line(line):
            return
        # Storage that fails is reported where something is lost by it.
        with suppress(OSError):
            gauges = self.gauges.list_all()
            self.report({"kind": "gauges", "gauges": gauges})
            write_atomically(self.directory.gauges, format_gauges(gauges))

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
        self._write_line(line)
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
        draw_decision(self.draw, self.writer, record, self.directory)
        self.report({"kind": "decision", **record})

    def write_policy(self, record: Event) -> None:
        """AdaShare's policy at the end of a cycle: a line of policies.jsonl."""
        append_line(self.directory.policies, record)
        line = {"kind": "policy", **record}
        if self.writer is not None:
            add_values(self.writer, line)
        self.report(line)

    def write_note(self, kind: str, **values: Any) -> None:
        """Anything else that a reader of metrics.jsonl should find: `resumed`, `bad_samples`, `stopped`."""
        self._write_line({"kind": kind, **values})
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
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        """Flush and close the TensorBoard file; warn if training ended before there was a trace."""
        if self.writer is not None:
            self.writer.close()
        if self._steps_to_trace:
            logger.warning(
                "No trace was written: training ended %d steps before it was whole.",
                self._steps_to_trace,
            )


def _read_touch_time(path: Path) -> float | None:
    """When a file was last touched, by the clock of its storage; None if there is none."""
    with suppress(OSError):
        return path.stat().st_mtime
    return None
