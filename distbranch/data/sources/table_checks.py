"""What can be wrong with a table before its columns are judged: options that do not fit it, its header, its images and splits."""

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from distbranch.data.image_files import ImageFiles, ImageNames
from distbranch.data.images import SUFFIXES
from distbranch.data.pack import SPLITS
from distbranch.data.sources.columns import ALL, KIND_OPTIONS
from distbranch.data.sources.label_options import TableOptions
from distbranch.data.sources.label_text import fold_text
from distbranch.data.sources.source import LEAVE_OUT_IMAGES, as_typed, find_fault, sample_key
from distbranch.data.sources.tables import Problems, Table

BUILT_IN_KINDS = {
    "binary": "columns of marks, such as 1 and 0, are binary by themselves",
    "categorical": "names of classes are those of --categorical",
    "number": "numbers are those of --number",
    "ordinal": "ordered classes are those of --ordinal",
}
# Options that name columns, of which some say something about tasks.
OF_TASKS = (*KIND_OPTIONS, "unit", "as_written", "minus_one", "blank")
OF_COLUMNS = (
    *("image_column", "split_column", "group_column", "stratify", "ignore", "tasks"),
    *("unknown_as_missing", *OF_TASKS),
)


def correct_names(options: TableOptions, table: Table, problems: Problems) -> TableOptions:
    """The options with the nearest column in place of each that is not there, which is a problem.

    So the columns that were meant are judged as what they were meant to be, and all that is wrong is told at once.
    """
    listed = [(option, name) for option in OF_COLUMNS for name in _list_names(options, option)]
    named = {name for _, name in listed}
    meant: dict[str, str] = {}
    for option, name in listed:
        if name in table.names:
            continue
        close = _find_close(name, table.names)
        if option == "image_column":
            close = find_image_columns(table) or close
        # A table may have a thousand columns; a few show what they are like.
        near = ", ".join(close or table.names[:8])
        problems.add(
            f"it has no column '{name}'. Nearest: {near}", f"Give another with {as_typed(option)}."
        )
        free = [one for one in close if one not in (*named, *meant.values())]
        # Which of several columns with names of files has the images, nobody knows.
        if free and (option != "image_column" or len(close) == 1):
            meant.setdefault(name, free[0])
    return options.model_copy(
        update={option: _rename(getattr(options, option), meant) for option in OF_COLUMNS}
    )


def _list_names(options: TableOptions, option: str) -> list[str]:
    """The columns that an option names."""
    said = getattr(options, option) or ()
    names = [said] if isinstance(said, str) else list(said)
    return [name for name in names if name != ALL or option not in ("minus_one", "blank")]


def _rename(said: Any, meant: Mapping[str, str]) -> Any:
    """The value of an option that names columns, with other names for some."""
    if said is None:
        return None
    if isinstance(said, str):
        return meant.get(said, said)
    if isinstance(said, Mapping):
        return {meant.get(name, name): value for name, value in said.items()}
    return tuple(meant.get(name, name) for name in said)


def check_options(
    options: TableOptions, table: Table, wanted: Sequence[str], problems: Problems
) -> None:
    """Columns that are listed should be tasks, and be listed once."""
    for option in OF_COLUMNS:
        for name in _list_names(options, option):
            if name not in table.names:
                continue
            if option in OF_TASKS and name not in wanted:
                problems.add(
                    f"the column '{name}' is listed in {as_typed(option)}, but it is no task",
                    "Take it out of the list.",
                )
            elif option == "ignore" and name in wanted:
                problems.add(
                    f"the column '{name}' is listed in --tasks and in --ignore",
                    "Take it out of one of them.",
                )
    counts = Counter(chain.from_iterable(getattr(options, option) for option in KIND_OPTIONS))
    for name, count in counts.items():
        if count > 1:
            problems.add(
                f"the column '{name}' has one kind and is listed for several (or twice for one)",
                "Take it out of the other lists and list it once.",
            )
    for name, kind in options.kind.items():
        if kind in BUILT_IN_KINDS:
            problems.add(
                f"column '{name}': {BUILT_IN_KINDS[kind]}",
                "--kind is for kinds of your own, from a file named in `plugins`.",
            )
    for name in options.unit:
        if name not in options.number:
            problems.add(
                f"the column '{name}' has a --unit, but it is none of --number",
                "Add it there, or leave its unit out.",
            )
    own = (*options.number, *options.ordinal, *options.kind)
    said = {
        "as_written": set(options.as_written) & set(options.number),
        "blank": {name for name in own if options.blank.get(name) == "no"},
        "minus_one": {name for name in own if options.minus_one.get(name) == "no"},
    }
    for option, names in said.items():
        for name in sorted(names):
            problems.add(
                f"the column '{name}' is no yes or no, and {as_typed(option)} says nothing of it",
                "Take it out of the list.",
            )


def find_image_columns(table: Table) -> list[str]:
    """The columns whose first cells are names of image files."""
    first = {name: cells[0].lower() for name, cells in table.columns.items() if cells}
    return [name for name, cell in first.items() if cell.endswith(SUFFIXES)]


def _find_close(name: str, names: Sequence[str]) -> list[str]:
    """Compared as people read, so that a wrong case or a blank too many is the nearest."""
    alike = {fold_text(one): one for one in names}
    close = difflib.get_close_matches(fold_text(name), alike, n=3, cutoff=0.5)
    return [alike[one] for one in close]


def check_twins(used: Collection[str | None], table: Table, problems: Problems) -> None:
    """Names that stand in the header twice, or that differ in a way that people do not see."""
    first: dict[str, str] = {}
    for name, count in Counter(table.names).items():
        # Columns that nobody uses may be called as they like.
        if not name or name not in used:
            continue
        if count > 1:
            problems.add(f"line 1: the column '{name}' stands there twice", "Rename one of them.")
        same = first.setdefault(fold_text(name), name)
        if same != name:
            problems.add(
                f"line 1: the columns '{same}' and '{name}' differ only in how they are written",
                "Rename one of them or put it into --ignore.",
            )


def check_images(
    options: TableOptions, table: Table, split: str | None, problems: Problems
) -> None:
    """Every row should have an image, whose key no other has, and a split if there is a column for it."""
    for line, value in zip(table.lines, table.columns.get(split or "", ()), strict=False):
        if split and value not in SPLITS:
            problems.add(
                f"line {line}: the split should be one of {', '.join(SPLITS)}, found '{value[:40]}'",
                "Correct it there.",
            )
    seen: dict[str, tuple[str, int]] = {}  # the image of a key, and its line
    for line, image in zip(table.lines, table.columns.get(options.image_column, ()), strict=False):
        key = sample_key(image)
        first, first_line = seen.get(key, ("", 0))
        if not image:
            problems.add(
                f"line {line}: the column '{options.image_column}' is empty",
                "The name of an image file should stand there.",
            )
        elif first == image:
            problems.add(
                f"line {line}: image '{image}' has a line already, line {first_line}",
                "Every image should stand in one line only: delete one of them.",
            )
        elif first:
            problems.add(
                f"line {line}: image '{image}' and '{first}' of line {first_line} differ only in their extension, which no sample "
                "keeps",
                "Rename one of them.",
            )
        seen.setdefault(key, (image, line))


def check_files(
    options: TableOptions, table: Table, images: ImageFiles, problems: Problems
) -> None:
    """Every image that a row names should be there, and be one."""
    names = ImageNames(images)
    for line, image in zip(table.lines, table.columns.get(options.image_column, ()), strict=False):
        fault = find_fault(image, images, names) if image else None
        if fault:
            problems.add(f"line {line}: image '{image}': {fault}", LEAVE_OUT_IMAGES)
