"""A table of text (a DataFrame of strings) on the terminal and in Markdown; on a page `templates/table.html` renders it."""

import re
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas

WORD_ENDS = r"[^-_./ ]*[-_./ ]+|[^-_./ ]+"


class FoldedName:
    """A name in a cell, folded behind its hyphens, underscores, dots and slashes: rich alone breaks it letter by letter."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces = re.findall(WORD_ENDS, text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        # the narrowest column that breaks no piece
        longest = max(map(cell_len, self.pieces), default=0)
        return Measurement(longest, cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for piece in self.pieces:
            if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += piece
        yield Text("\n".join(line.rstrip() for line in lines), overflow="fold")


def start_table(title: str = "", *, gap: int = 2, has_heads: bool = True) -> Table:
    """An empty table in the one style of the program: a line below the heads, and so many blanks between columns."""
    return Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        show_header=has_heads,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),  # beside the blank of the box
    )


def render_rich(cells: "pandas.DataFrame", title: str = "", *, num_names: int = 1) -> Table:
    """A table whose first columns are names, which fold where there is little room; all else is numbers."""
    table = start_table(title, gap=1)
    for head in cells.columns[:num_names]:
        table.add_column(FoldedName(head), overflow="fold")
    for head in cells.columns[num_names:]:
        # a word per line: heads wider than their numbers cost the names room
        words = head.removesuffix(" %").replace("parameters", "para-\nmeters").replace(" ", "\n")
        table.add_column(words, justify="right", no_wrap=True)
    for row in cells.itertuples(index=False, name=None):
        table.add_row(*map(FoldedName, row[:num_names]), *row[num_names:])
    return table


def render_markdown(cells: "pandas.DataFrame") -> str:
    """The first column to the left, all others, which are numbers, to the right."""
    lines = [" | ".join(cells.columns)]
    lines += [" | ".join(row) for row in cells.itertuples(index=False, name=None)]
    head, *body = [f"| {line} |\n" for line in lines]
    return "".join([head, "|---|", "---:|" * (cells.shape[1] - 1), "\n", *body])
