"""TensorBoard's files of a run: its numbers, and the pictures of its decisions."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distbranch.engine.logged_values import list_values
from distbranch.engine.run_directory import RunDirectory, read_lines

if TYPE_CHECKING:  # loaded by who writes: not all ranks do, and not all runs
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("distbranch")
# Called with a SummaryWriter or what takes its place (None where there is none), the decision, and the run's folder.
DrawDecision = Callable[[Any, Mapping[str, Any], Path], None]


def open_tensorboard(
    directory: RunDirectory, draw: DrawDecision | None, *, after: int
) -> "SummaryWriter":
    """The writer of a run that is resumed after a step; what a killed one wrote later is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    if not directory.tensorboard.exists():
        write_tensorboard(directory, draw)
    return SummaryWriter(str(directory.tensorboard), purge_step=after + 1)


def write_tensorboard(directory: RunDirectory, draw: DrawDecision | None) -> None:
    """TensorBoard's files of all that a run directory holds, for a run that has its beginning from another one."""
    from torch.utils.tensorboard import SummaryWriter

    lines, decisions = read_lines(directory.metrics), read_lines(directory.decisions)
    if not lines and not decisions:
        return
    aside = directory.path / f".{directory.tensorboard.name}"
    shutil.rmtree(aside, ignore_errors=True)
    with SummaryWriter(str(aside)) as writer:
        for line in lines:
            add_values(writer, line)
        for record in decisions:
            draw_decision(draw, writer, record, directory)
    # They are read in the order of their names, these first.
    for number, file in enumerate(sorted(aside.iterdir())):
        file.rename(aside / f"events.out.tfevents.0000000000.beginning.{number}")
    aside.rename(directory.tensorboard)


def add_values(writer: "SummaryWriter", line: Mapping[str, Any]) -> None:
    """Add the numbers of a line, if it has any."""
    for name, value in list_values(line).items():
        writer.add_scalar(name, value, line["iteration"])


def draw_decision(
    draw: DrawDecision | None,
    writer: "SummaryWriter | None",
    record: Mapping[str, Any],
    directory: RunDirectory,
) -> None:
    """Draw a decision; a picture that cannot be drawn costs a warning."""
    if draw is None:
        return
    try:
        draw(writer, record, directory.path)
    # Whatever a picture meets (a name, a font, a file) is not worth hours of training.
    except Exception as error:
        logger.warning(
            "The decision of round %s could not be drawn (%r); the run continues without its pictures.",
            record["round"],
            error,
        )
