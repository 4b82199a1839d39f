"""A sweep on the terminal: a line per trial that begins or ends, then the settings that are worth their cost."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distbranch.report.figures import MEANS
from distbranch.report.page import UNKNOWN, large
from distbranch.report.sweep_figures import readable_value
from distbranch.report.sweep_files import COSTS, pareto_front, read_sweep

STYLES = {"finished": "green", "failed": "red", "stopped early": "yellow", "unfinished": "yellow"}
MOST_ROWS = 30


class SweepDisplay:
    """Called with what happens; prints it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.num_open = self.num_ended = self.num_begun = 0
        self._began = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """One line about an event."""
        kind = event["kind"]
        if kind == "sweep":
            self.num_open = event["open"]
            self._began = time.monotonic()
            done = event["trials"] - event["open"]
            self._say(f"{event['trials']} trials, {done} of them done before, in {event['directory']}")
        elif kind == "begun":
            others = len(event["family"]) - 1
            self.num_begun += len(event["family"])
            self._say(f"begun: {event['trial']}" + (f" and {others} that begin alike" if others else ""), "dim")
        elif kind == "ended":
            self.num_ended += 1
            reason = f": {event['reason']}" if event["reason"] else ""
            count = f"{self.num_ended}/{max(self.num_open, self.num_ended)}"
            ended = f"{count} {event['status']}: {event['trial']}{reason}{self._time_left()}"
            self._say(ended, STYLES.get(event["status"], ""))
        elif kind == "stopping":
            self._say("stopping: running trials save a checkpoint ...", "yellow")
        elif kind == "saving":
            self._say(event["text"])
        elif kind == "warning":
            self._say(f"warning: {event['message']}", "yellow")
        elif kind != "packing":
            self._say(" ".join(map(str, event.values())), "dim")

    def _time_left(self) -> str:
        """Roughly: as if all trials were alike, and those that run were half done."""
        if self.num_ended >= self.num_open:
            return ""
        done = self.num_ended + max(0, self.num_begun - self.num_ended) / 2
        seconds = (time.monotonic() - self._began) / done * (self.num_open - done)
        return f" (about {timedelta(seconds=round(seconds))} left)"

    def _say(self, text: str, style: str = "") -> None:
        soft_wrap = not self.console.is_terminal  # which would end a line within a word
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=soft_wrap)


def front_table(directory: Path) -> Table:
    """The settings on the Pareto front of any cost, chosen on val, cheapest first."""
    sweep = read_sweep(directory)
    points = sweep.points
    fronts = {cost: pareto_front(points, cost, f"val_{sweep.metric}") for cost in COSTS}
    title = f"Pareto fronts (*), chosen on val: mean {MEANS[sweep.metric][0].lower()} in %"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 0)
    for key in sweep.keys:
        table.add_column(escape(key.rpartition(".")[2]), min_width=5, overflow="fold")
    for head in ("seeds", "val", "test", "para-\nmeters", "multiply-\nadds", "latency\nms"):
        table.add_column(head, justify="right", no_wrap=True)
    shown = [number for number in range(len(points)) if any(number in front for front in fronts.values())]
    shown.sort(
        key=lambda number: ((spread := points[number].spread("multiply_adds")) is not None and spread.mean) or 0.0
    )
    for number in shown[:MOST_ROWS]:
        point = points[number]
        cells = [escape(readable_value(value)) for value in point.setting.values()]
        cells += [str(len(point.finished))]
        cells += [_percent(point.spread(f"{split}_{sweep.metric}")) for split in ("val", "test")]
        for cost, front in fronts.items():
            spread = point.spread(cost)
            text = "" if spread is None else f"{spread.mean:,.2f}" if cost == "latency_ms" else large(spread.mean)
            cells.append(("*" if number in front else "") + text)
        table.add_row(*cells)
    return table


def _percent(spread: Any) -> str:
    if spread is None:
        return UNKNOWN
    return f"{100 * spread.mean:.1f}" + (f"±{100 * spread.deviation:.1f}" if spread.deviation is not None else "")
