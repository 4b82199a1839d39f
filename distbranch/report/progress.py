"""What a person sees while a run trains: a live line on a terminal, elsewhere a plain line every 30 seconds."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from distbranch.report.console import NOT_EVERYWHERE, UNDEFINED

SECONDS_BETWEEN_LINES = 30.0

Event = Mapping[str, Any]


class ProgressDisplay:
    """Shows events of a run (see `engine.metrics.RunLog`) on a console; use it as a context manager and as `report`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event; kinds without a picture of their own are passed over."""
        show = getattr(self, f"_{event['kind']}", None)
        if show is not None:
            show(event)

    def _packing(self, event: Event) -> None:
        self._advance("packing", event["done"], event["total"], "")

    def _labelling(self, event: Event) -> None:
        self._advance("labelling", event["done"], event["total"], "")

    def _checking(self, event: Event) -> None:
        self._advance("checking", event["done"], event["total"], "")

    def _packed(self, event: Event) -> None:
        self._finish("packing")
        self._finish("labelling")
        if event.get("before"):
            self._say(f"{event['path']} holds this data set already, so nothing was packed; remove it to pack again")
        else:
            self._say(f"packed {event['num_samples']:,} samples into {event['path']}")

    def _progress(self, event: Event) -> None:
        layer = (
            f"round {event['round']}, active layer {event['active_layer']}"
            if event["active_layer"]
            else "tree is final"
        )
        loss = "" if event["loss"] is None else f"loss {event['loss']:.3f}  "
        detail = (
            f"{event['samples_per_second']:.0f} images/s  data wait {event['data_wait']:.1%}  {loss}"
            f"{layer}  width {width_text(event['branches'])}"
        )
        self._advance("training", event["iteration"], event["iterations"], detail)

    def _decision(self, event: Event) -> None:
        where = f"step {event['iteration']:,}  {event['layer_name']}"
        if event["num_groups"] == 1:
            self._say(f"{where}: no split (one branch is cheapest)")
            return
        self._say(f"{where}: {event['num_groups']} branches  [{event['seconds_in_all']:.2f} s]")
        for tasks in event["tasks"]:
            self._say(f"    {', '.join(tasks)}", dim=True)

    def _policy(self, event: Event) -> None:
        num_blocks, released = len(event["blocks"]), event["num_released"]
        decided = [row[num_blocks - released :] for row in event["policy"]]
        skips = sum(not executes for row in decided for executes in row)
        self._say(
            f"step {event['iteration']:,}  cycle {event['cycle'] + 1}: {released} of {num_blocks} blocks released, "
            f"{skips} of {len(decided) * released} decisions skip"
        )

    def _evaluation(self, event: Event) -> None:
        self._say(f"step {event['iteration']:,}  {event['split']}: {_means_text(event['mean'])}")
        for name, part in event.get("datasets", {}).items():
            self._say(f"    {name}: {_means_text(part['mean'])}", dim=True)

    def _resumed(self, event: Event) -> None:
        seconds = event.get("seconds_to_first_step")
        stood = "" if seconds is None else f", {seconds:.1f} s after the last sign of life"
        self._say(f"went on after step {event['iteration']:,} on {event['world_size']} rank(s){stood}")

    def _bad_samples(self, event: Event) -> None:
        counts = ", ".join(f"{count} {kind}" for kind, count in event["counts"].items() if count)
        self._say(f"step {event['iteration']:,}: samples left out so far: {counts}")

    def _warning(self, event: Event) -> None:
        self.console.print(
            f"warning: {event['message']}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    def _stopping(self, _: Event) -> None:
        self._say("stopping: a checkpoint is being written")

    def _finished(self, event: Event) -> None:
        self._say(f"the run {event['directory']} is finished; nothing was changed")

    def _say(self, text: str, *, dim: bool = False) -> None:
        self.console.print(text, style="dim" if dim else "", markup=False, highlight=False, soft_wrap=not self._live)

    def _advance(self, what: str, done: int, total: int | None, detail: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, detail=detail)
        self._bar.update(self._tasks[what], completed=done, detail=detail)
        if not self._live and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            share = f"{done:,} of {total:,}" if total else f"{done:,}"
            self._say(f"{what} {share}  {detail}")

    def _finish(self, what: str) -> None:
        if what in self._tasks:
            self._bar.remove_task(self._tasks.pop(what))


def _means_text(means: Mapping[str, float | None]) -> str:
    shown = {name: value for name, value in means.items() if value is not None or name not in NOT_EVERYWHERE}
    texts = {name: UNDEFINED if value is None else f"{value:.1%}" for name, value in shown.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())


def width_text(branches: Mapping[str, int]) -> str:
    """Branches per layer, runs of the same number shortened: `1x13-5-9`."""
    parts: list[tuple[int, int]] = []
    for number in branches.values():
        parts = [*parts[:-1], (number, parts[-1][1] + 1)] if parts and parts[-1][0] == number else [*parts, (number, 1)]
    return "-".join(str(number) if count == 1 else f"{number}x{count}" for number, count in parts)
