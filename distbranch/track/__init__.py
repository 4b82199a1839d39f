"""Trackers show a run elsewhere than in its directory: Weights & Biases and MLflow (`track: [wandb, mlflow]`).

They stand behind the one callable to which a run reports (`RunLog`), on rank 0, and get the lines of metrics.jsonl. Each has a thread
and a queue of its own, so that no step waits for a network, and the run directory says what its page has: a resumed run continues it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import Config
from distbranch.engine.gauges import Gauge
from distbranch.engine.logged_values import list_values
from distbranch.engine.lost_ranks import LostRankError
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import SCOUT, RunDirectory, read_lines
from distbranch.engine.run_log import Event, Report
from distbranch.engine.tensorboard_log import DrawDecision, draw_decision
from distbranch.errors import StoppedEarly
from distbranch.track.page import FAILED, FINISHED, STOPPED, Page
from distbranch.track.sender import PageSender, wait_for_pages

UseGauges = Callable[[Sequence[Gauge]], None]


@contextmanager
def track_run(
    config: Config, report: Report, draw: DrawDecision, use_gauges: UseGauges | None = None
) -> Iterator[tuple[Report, DrawDecision | None]]:
    """What to hand to `train_rank` in the place of `report` and `draw` while this block lasts; its end is that of the pages.

    Args:
        config: of the run.
        report: gets what is for people.
        draw: draws a decision into TensorBoard, and so into the pages.
        use_gauges: gets where the run stands at every logged line, its scout's too.

    Example:
        >>> with track_run(config, print, log_decision) as (report, draw):
        ...     train_rank(config, report=report, draw=draw)
    """
    tracked = TrackedRun(config, report, draw, use_gauges)
    end = FAILED
    try:
        yield tracked.take_event, tracked.draw if config.track else None
        end = FINISHED
    # What is not sent then is sent when the run is resumed.
    except (StoppedEarly, LostRankError):
        end = STOPPED
        raise
    finally:
        tracked.close(end)


def show_finished_run(config: Config, draw: DrawDecision) -> None:
    """Make the pages of a run that has its result from another one, and was never trained itself."""
    with track_run(config, lambda _: None, draw) as (report, _):
        report({"kind": "opened"})


class TrackedRun:
    """The pages of a run, and what they get of what it reports."""

    def __init__(
        self,
        config: Config,
        report: Report,
        draw: DrawDecision,
        use_gauges: UseGauges | None = None,
    ) -> None:
        self.config = config
        self.files = RunDirectory(config.run_directory)
        self._report = report
        self._draw = draw
        self._use_gauges = use_gauges
        self._senders: list[PageSender] = []

    def take_event(self, event: Event) -> None:
        """Send what is for pages, and pass on what is for people."""
        kind = event["kind"]
        if kind == "gauges":
            self._take_gauges(event)
        elif kind == "opened":
            self._open_pages()
        elif kind == "line":
            self._send_line(event["line"])
        elif kind == SCOUT:
            self._take_event_of_scout(event)
        else:
            if kind == "policy":
                self._send_line(event)
            self._report(event)

    def draw(self, writer: Any, record: Mapping[str, Any], directory: Path) -> None:
        """Draw a decision once, for TensorBoard and all pages that lack it."""
        layer, step = str(record["layer_name"]), record["iteration"]
        what = f"decision/{layer}"
        senders = [sender for sender in self._senders if sender.lacks(what, step)]
        if writer is None and not senders:
            return
        pictures = _Pictures(writer)
        self._draw(pictures, record, directory)

        def add_pictures(page: Page) -> None:
            for name, pixels in pictures.found.items():
                page.add_picture(name, pixels, step, layer)

        for sender in senders:
            sender.send(what, step, add_pictures)

    def close(self, end: str) -> None:
        """Wait for the pages, but not for long."""
        summary: dict[str, float] = {}
        if end == FINISHED and self._senders:
            summary = list_final_values(self.config)
        for sender in self._senders:
            sender.end(end, summary)
        wait_for_pages(self._senders, end)

    def _take_event_of_scout(self, event: Event) -> None:
        # Its steps are counted anew, so they have no place on the page of the run.
        inner = event["event"]
        if inner["kind"] == "gauges":
            self._take_gauges(inner)
        elif inner["kind"] not in ("opened", "line"):
            self._report(event)

    def _take_gauges(self, event: Event) -> None:
        if self._use_gauges is not None:
            self._use_gauges(event["gauges"])

    def _open_pages(self) -> None:
        """Open the pages, and send what is on record and they lack: all of a run that had none until now."""
        for name in self.config.track:
            if name != "tensorboard":
                self._senders.append(PageSender(name, self.config, self._report))
        if not self._senders:
            return
        policies = [{"kind": "policy", **line} for line in read_lines(self.files.policies)]
        lines = [*read_lines(self.files.metrics), *policies]
        for line in sorted(lines, key=lambda line: line.get("iteration", 0)):
            self._send_line(line)
        for record in read_lines(self.files.decisions):
            draw_decision(self.draw, None, record, self.files)

    def _send_line(self, line: Mapping[str, Any]) -> None:
        values = list_values(line)
        if not values:
            return
        step = line["iteration"]
        # A run may end with two evaluations of val: of the last weights and of the best.
        what = "/".join(str(line[key]) for key in ("kind", "split", "weights_of") if key in line)
        for sender in self._senders:
            sender.send(what, step, lambda page: page.add_values(values, step))


class _Pictures:
    """Takes the place of TensorBoard's writer where a decision is drawn, and keeps the pictures [H, W, 3] by name."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.found: dict[str, np.ndarray] = {}

    def add_image(
        self, name: str, pixels: np.ndarray, *, global_step: int, dataformats: str
    ) -> None:
        self.found[name] = pixels
        if self.writer is not None:
            self.writer.add_image(name, pixels, global_step=global_step, dataformats=dataformats)

    def add_text(self, name: str, text: str, *, global_step: int) -> None:
        # TensorBoard's alone: it says what the picture of the tree shows.
        if self.writer is not None:
            self.writer.add_text(name, text, global_step=global_step)


def list_final_values(config: Config) -> dict[str, float]:
    """The means of every split, and what the network takes, as result.json has them."""
    result = read_result(config.run_directory)
    if result is None:
        return {}
    sizes = ("weights", "parameters", "multiply_adds", "folded_weights", "iterations", "seconds")
    found = {key: result.summary.get(key) for key in sizes}
    for split, scores in result.metrics.items():
        found |= {f"{split}/{metric}": value for metric, value in scores["mean"].items()}
    return {f"result/{key}": value for key, value in found.items() if value is not None}
