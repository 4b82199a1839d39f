"""The table of `distbranch ls`, for a terminal of any width: what fits beside the state, which says why."""

import time
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from distbranch.listing.rows import (
    FAILED,
    FINISHED,
    RUNNING,
    SILENT,
    STOPPED,
    WAITING,
    Row,
    format_age,
)

WIDE = 110  # characters from which method and rate have columns of their own
UNKNOWN = "\u2013"
STYLES = {
    RUNNING: "green",
    WAITING: "cyan",
    FINISHED: "bold",
    STOPPED: "yellow",
    FAILED: "red",
    SILENT: "red",
}


def make_table(rows: Sequence[Row], width: int) -> Table:
    """The rows as a table for so many characters."""
    is_wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2 if is_wide else 1, 0, 0))
    table.add_column("name", overflow="fold", min_width=12, ratio=3)
    table.add_column("kind" if is_wide else "", no_wrap=True)
    if is_wide:
        table.add_column("method", no_wrap=True)
    table.add_column("done", justify="right", no_wrap=True)
    if is_wide:
        table.add_column("rate", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("score", no_wrap=True)
    table.add_column("state", overflow="fold", min_width=9, ratio=4)
    table.add_column("age", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_make_cells(row, is_wide))
    return table


def _make_cells(row: Row, is_wide: bool) -> list[str]:
    cells = [escape(row.name), row.kind if is_wide else row.kind[:3]]
    if is_wide:
        cells.append(escape(row.method))
    cells.append(_describe_progress(row))
    if is_wide:
        cells.append(_describe_rate(row))
    cells.append(UNKNOWN if row.minutes_left is None else format_age(60 * row.minutes_left))
    cells.append(_describe_score(row))
    style = STYLES[row.state]
    detail = f" [dim]{escape(shorten(row.detail))}[/dim]" if row.detail else ""
    cells.append(f"[{style}]{row.state}[/{style}]{detail}")
    cells.append(format_age(time.time() - row.active_at))
    return cells


def _describe_progress(row: Row) -> str:
    total = "?" if row.total is None else f"{row.total:,}"
    done = f"{row.done:,}" if row.done == row.total else f"{row.done:,}/{total}"
    return f"{done} [red]({row.failed} failed)[/red]" if row.failed else done


def _describe_rate(row: Row) -> str:
    if row.rate is None:
        return UNKNOWN
    return f"{row.rate:,.0f} img/s" if row.kind == "run" else f"{row.rate:,.3g}/h"


def _describe_score(row: Row) -> str:
    if row.score is None:
        return UNKNOWN
    return escape(row.score.text) + (" test" if row.score.split == "test" else "")


def shorten(text: str, most: int = 80) -> str:
    """The text on one line, cut where it is long: the whole of it is in `status`."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3].rstrip() + "..."
