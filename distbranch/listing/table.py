"""The list of `distbranch ls` as lines, for a terminal of any width: facts in columns, and below them why or where.

A name that is longer than its column has a line of its own, for a name is copied from here.
"""

import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from distbranch.listing.rows import (
    FAILED,
    FINISHED,
    RUNNING,
    SILENT,
    STOPPED,
    UNREADABLE,
    WAITING,
    Row,
    format_age,
)

WIDE = 110  # characters from which method and rate have columns of their own
ROOMY = 140  # from which two blanks part the columns
LONGEST_NAME = {False: 24, True: 40}  # in its column; wide or not
UNKNOWN = "\u2013"
LEFT_ALIGNED = ("name", "kind", "method", "score", "state")
STYLES = {
    RUNNING: "green",
    WAITING: "cyan",
    FINISHED: "bold",
    STOPPED: "yellow",
    FAILED: "red",
    SILENT: "red",
    UNREADABLE: "red",
}


def make_table(rows: Sequence[Row], width: int) -> Group:
    """The rows as lines of so many characters."""
    is_wide = width >= WIDE
    cells = [_make_cells(row, is_wide) for row in rows]
    longest = LONGEST_NAME[is_wide]
    widths = {}
    for column in cells[0]:
        lengths = [cell_len(one[column]) for one in cells]
        if column == "name":
            lengths = [length for length in lengths if length <= longest]
        widths[column] = max([len(column), *lengths])
    gap = "  " if width >= ROOMY else " "

    lines: list[Text | Padding] = [
        Text(_align(dict(zip(widths, widths, strict=True)), widths, gap), "bold")
    ]
    for row, one in zip(rows, cells, strict=True):
        if cell_len(one["name"]) > widths["name"]:
            lines.append(Text(one.pop("name")))
            one = {"name": "", **one}
        line = Text(_align(one, widths, gap).rstrip())
        line.highlight_words([row.state], STYLES[row.state])
        detail = Text(" ".join(row.detail.split()), "dim")
        # Beside the facts where there is room, else below them.
        if not detail:
            lines.append(line)
        elif line.cell_len + 1 + detail.cell_len <= width:
            lines.append(Text.assemble(line, " ", detail))
        else:
            lines += [line, Padding(detail, (0, 0, 0, 4))]
    return Group(*lines)


def _align(cells: dict[str, str], widths: dict[str, int], gap: str) -> str:
    padded = []
    for column, text in cells.items():
        blanks = " " * (widths[column] - cell_len(text))
        padded.append(text + blanks if column in LEFT_ALIGNED else blanks + text)
    return gap.join(padded)


def _make_cells(row: Row, is_wide: bool) -> dict[str, str]:
    left = UNKNOWN if row.minutes_left is None else format_age(60 * row.minutes_left)
    cells = {
        "name": row.name,
        "kind": "exp." if row.kind == "experiment" and not is_wide else row.kind,
        "method": row.method,
        "done": _describe_progress(row, is_wide),
        "rate": _describe_rate(row),
        "left": left,
        "score": _describe_score(row, is_wide),
        "age": format_age(time.time() - row.active_at),
        "state": row.state,
    }
    if not is_wide:
        del cells["method"], cells["rate"]
    return cells


def _describe_progress(row: Row, is_wide: bool) -> str:
    write = _write_whole if is_wide else _write_briefly
    done = write(row.done)
    if row.done != row.total:
        done += "/" + ("?" if row.total is None else write(row.total))
    return f"{done}, {row.failed} failed" if row.failed else done


def _write_whole(count: int) -> str:
    return f"{count:,}"


def _write_briefly(count: int) -> str:
    """Four characters for any count of steps: 9999, 12.3k, 100k."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 100_000 else f"{count / 1000:.0f}k"


def _describe_rate(row: Row) -> str:
    if row.rate is None:
        return UNKNOWN
    return f"{row.rate:,.0f} img/s" if row.kind == "run" else f"{row.rate:,.3g}/h"


def _describe_score(row: Row, is_wide: bool) -> str:
    if row.score is None:
        return UNKNOWN
    return row.score.text + (" test" if row.score.split == "test" and is_wide else "")
