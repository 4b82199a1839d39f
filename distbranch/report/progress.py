"""What a person sees: of a run a live line on a terminal and elsewhere a line every 30 seconds; of a sweep a line per trial.

Most events are one sentence with the event's fields in it; those that need more have a function.
"""

import textwrap
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.text import Text

from distbranch.config.paths import hide_secrets
from distbranch.metrics import list_metrics
from distbranch.report.console import UNDEFINED, describe_means, format_value

SECONDS_BETWEEN_LINES = 30.0
NO_BREAK = "\u00a0"  # a blank at which no line ends; printed as a plain one
SECONDS_OF_PACE = 300.0  # over which the time that is left is estimated; steps may take a minute
COUNTED = ("packing", "labelling", "checking", "indexing", "measuring")
# By kind of event; kinds that stand nowhere here are not for people.
SENTENCES = {
    "packed": "packed {num_samples:,} samples into {path}",
    "indexed": "indexed {num_samples:,} samples of {num_tars:,} tars into {path}",
    "resumed": "resumed after step {iteration:,} on {world_size} rank(s)",
    "widened": "step {iteration:,}  the given tree was taken",
    "tracked": "{tracker} shows the run: {place}",
    "warning": "warning: {message}",
    "stopping": "stopping: a checkpoint is being written",
    "finished": "the run {directory} is finished; nothing was changed",
}
SENTENCES_OF_SWEEP = {
    "saving": "{text}",
    "stopping": "stopping: running trials save a checkpoint ...",
    "warning": "warning: {message}",
}
SENTENCES_BEFORE = {
    "packed": "{path} holds this data set already, so nothing was packed; remove it to pack again",
    "indexed": "{path} holds this index already, so nothing was read; remove its dataset.json to index again",
}
STYLES = {
    "warning": "yellow",
    "stopping": "yellow",
    "finished": "green",
    "failed": "red",
    "stopped early": "yellow",
    "unfinished": "yellow",
}

Event = Mapping[str, Any]


class TwoLines(Progress):
    """What is done and how long the rest takes in one line, the details below: in one line they would push that out."""

    waits = False  # for what is to be counted: Ray starts, say, or the data are opened
    spinner = Spinner("line", "starting")  # of ASCII, which every terminal has

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bars, then the details of each; before the first bar, and between two, something that moves."""
        if self.waits and not self.tasks:
            yield self.spinner
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["detail"]:
                yield Text(task.fields["detail"], style="dim")


class ProgressDisplay:
    """Shows events of a run (see `engine.run_log.RunLog`) on a console; use it as a context manager and as `report`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal
        self._bar = TwoLines(
            TextColumn("[bold]{task.description}"),
            # so short that the time left is whole in 60 characters
            BarColumn(bar_width=25),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[pace]}"),
            console=console,
            disable=not self._live,
            speed_estimate_period=SECONDS_OF_PACE,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._shown_groups: list[list[str]] = []
        self._who = ""  # whose events these are, if not the run's own

    def __enter__(self) -> Self:
        self._bar.waits = True
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.waits = False
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        kind = event["kind"]
        if kind == "scout":
            self._who = "scout: "
            self(event["event"])
            self._who = ""
        elif kind in COUNTED:
            self._update_bar(kind, event["done"], event["total"])
        elif kind == "progress":
            pace = f"{event['samples_per_second']:.0f} images/s"
            self._update_bar(
                "training",
                event["iteration"],
                event["iterations"],
                pace,
                _describe_step(event),
            )
        elif kind == "decision":
            self._show_decision(event)
        elif kind == "policy":
            self._print_line(_describe_policy(event))
        elif kind == "evaluation":
            step = event.get("weights_of", event["iteration"])  # of the best ones, which are kept
            self._print_line(f"step {step:,}  {event['split']}: {_format_means(event['mean'])}")
            for name, part in event.get("datasets", {}).items():
                self._print_line(f"    {name}: {_format_means(part['mean'])}", "dim")
        elif kind == "bad_samples":
            counts = ", ".join(
                f"{count} {what}" for what, count in event["counts"].items() if count
            )
            self._print_line(f"step {event['iteration']:,}: samples left out so far: {counts}")
        elif kind in SENTENCES:
            sentence = (SENTENCES_BEFORE if event.get("before") else SENTENCES)[kind]
            self._print_line(sentence.format_map(event), STYLES.get(kind, ""))
        if kind == "packed":
            self._remove_bars()

    def _show_decision(self, event: Event) -> None:
        where = f"step {event['iteration']:,}  {event['layer_name']}"
        if "layers" in event:
            self._remove_bars()  # the scout is trained
            where = f"the scout decides from {event['layer_name']} up"
        if event["num_groups"] == 1:
            self._print_line(f"{where}: no split (one branch is cheapest)")
            return
        self._print_line(
            f"{where}: {event['num_groups']} branches  [{event['seconds_in_all']:.2f} s]"
        )
        # the order of groups and of tasks in them says nothing
        groups = sorted(map(sorted, event["tasks"]))
        # most layers are split as the one above them was
        shown = ["same groups"]
        if groups != self._shown_groups:
            shown = [", ".join(tasks) for tasks in event["tasks"]]
        self._shown_groups = groups
        for text in shown:
            self._print_line(f"    {text}", "dim")

    def _print_line(self, text: str, style: str = "") -> None:
        text = hide_secrets(self._who + text)
        if self._live:
            # what follows in the next line stands below its own beginning
            text = textwrap.fill(
                text,
                self.console.width,
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        # a line of a file is not folded: it is searched
        text = text.replace(NO_BREAK, " ")
        self.console.print(
            text,
            style=style,
            markup=False,
            highlight=False,
            soft_wrap=not self._live,
        )

    def _update_bar(
        self,
        what: str,
        done: int,
        total: int | None,
        pace: str = "",
        detail: str = "",
    ) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(
                self._who + what, total=total, pace=pace, detail=detail
            )
        self._bar.update(self._tasks[what], completed=done, pace=pace, detail=detail)
        # a file is read later: a line per step would fill it
        if not self._live and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_line("  ".join(filter(None, (self._describe_progress(what), pace, detail))))

    def _remove_bars(self) -> None:
        while self._tasks:
            _, task = self._tasks.popitem()
            self._bar.remove_task(task)

    def _describe_progress(self, what: str) -> str:
        """`training 12,345 of 100,000, 0:02:34 left`, as far as it is known."""
        number = self._bar.task_ids.index(self._tasks[what])
        task = self._bar.tasks[number]
        text = f"{what} {task.completed:,.0f}"
        if task.total is not None:
            text += f" of {task.total:,.0f}"
        if task.time_remaining is not None:
            text += f", {timedelta(seconds=round(task.time_remaining))} left"
        return text


class SweepDisplay:
    """Called with what happens; prints it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.num_open = self.num_ended = self.num_begun = 0
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        """One line about an event."""
        kind = event["kind"]
        if kind == "sweep":
            self.num_open = event["open"]
            self._began = time.monotonic()
            done = event["trials"] - event["open"]
            self._print_line(
                f"{event['trials']} trials, {done} of them done before, in {event['directory']}"
            )
        elif kind == "begun":
            others = len(event["family"]) - 1
            self.num_begun += 1 + others
            alike = f" and {others} that begin alike" if others else ""
            self._print_line(f"begun: {event['trial']}{alike}", "dim")
        elif kind == "ended":
            # One that is stopped with its sweep is still to be trained.
            place = left = ""
            if event["status"] != "unfinished":
                self.num_ended += 1
                place = f"{self.num_ended}/{max(self.num_open, self.num_ended)} "
                left = self._describe_time_left()
            reason = f": {event['reason']}" if event["reason"] else ""
            text = (
                f"{place}{event['status']}: {event['trial']}{reason}{_describe_value(event)}{left}"
            )
            self._print_line(text, STYLES.get(event["status"], ""))
        elif kind in SENTENCES_OF_SWEEP:
            self._print_line(SENTENCES_OF_SWEEP[kind].format_map(event), STYLES.get(kind, ""))
        elif kind != "packing":
            self._print_line(" ".join(map(str, event.values())), "dim")

    def _describe_time_left(self) -> str:
        """Roughly: as if all trials were alike, and those that run were half done."""
        if self.num_ended >= self.num_open:
            return ""
        done = self.num_ended + max(0, self.num_begun - self.num_ended) / 2
        # trials that have parted begin twice
        seconds = (time.monotonic() - self._began) / done * max(0, self.num_open - done)
        return f" (about {timedelta(seconds=round(seconds))} left)"

    def _print_line(self, text: str, style: str = "") -> None:
        text = hide_secrets(text)
        soft_wrap = not self.console.is_terminal  # which would end a line within a word
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=soft_wrap)


def _describe_value(event: Event) -> str:
    """What a trial has reached on val, beside the best so far; nothing where it is not told."""
    if event.get("value") is None:
        return ""
    metric = event["metric"]
    sign = " %" if list_metrics()[metric].unit == "%" else ""
    value, best = (format_value(metric, event[key]) + sign for key in ("value", "best"))
    told = f", {list_metrics()[metric].in_words} {value}"
    if event["best_trial"] == event["trial"]:
        return f"{told}, the best so far"
    return f"{told}, best so far {best} of {event['best_trial']}"


def _describe_step(event: Event) -> str:
    parts = [f"data wait {event['data_wait']:.1%}"]
    if event["loss"] is not None:
        parts.append(f"loss {event['loss']:.3f}")
    state = "tree is final"
    if "phase" in event:
        state = f"search: {event['phase']}, {event['num_released']} blocks released"
    elif "widen_at" in event:
        state = f"the given tree is taken after step {event['widen_at']:,}"
    elif event["active_layer"]:
        state = f"round {event['round']}, active layer {event['active_layer']}"
    return "  ".join([*parts, state, f"width {_shorten_widths(event['branches'])}"])


def _describe_policy(event: Event) -> str:
    num_blocks = len(event["blocks"])
    released = event["num_released"]
    # the search releases blocks from the last one on
    decided = [executes for row in event["policy"] for executes in row[num_blocks - released :]]
    return (
        f"step {event['iteration']:,}  cycle {event['cycle'] + 1}: {released} of {num_blocks} blocks released, "
        f"{decided.count(0)} of {len(decided)} decisions skip"
    )


def _format_means(means: Mapping[str, float | None]) -> str:
    texts = []
    for name, text in describe_means(means).items():
        is_share = list_metrics()[name].unit == "%" and text != UNDEFINED
        sign = "%" if is_share else ""
        texts.append(f"{name}{NO_BREAK}{text}{sign}")
    return "  ".join(texts)


def _shorten_widths(branches: Mapping[str, int]) -> str:
    """Branches per layer, runs of the same number shortened: `1x13-5-9`."""
    parts = []
    for number, run in groupby(branches.values()):
        count = len(list(run))
        parts.append(str(number) if count == 1 else f"{number}x{count}")
    return "-".join(parts)
