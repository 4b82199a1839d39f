"""From what the labels of every sample are read: fields of label files, columns of tables by key, and the split by a tar's name."""

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distbranch.data.indexing.label_files import LabelFile
from distbranch.data.indexing.options import IndexOptions, MappedTask
from distbranch.data.shards import split_member
from distbranch.data.sources.csv import CsvOptions
from distbranch.data.sources.label_text import is_missing, tidy_text
from distbranch.data.sources.tables import Problems, Table, read_table
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

NUM_NAMED = 8


@dataclass(frozen=True)
class LabelColumn:
    """A column of the table of labels, and the cell it is made from; `values`: what its texts mean, if somebody said."""

    source: str
    values: Mapping[str, str]
    is_used: bool = True

    def read(self, cells: Mapping[str, str], sample: str, problems: Problems) -> str:
        """The cell of a sample. `problems` name a text that the mapping does not."""
        text = cells.get(self.source, "")
        if not self.is_used:
            return ""
        if not self.values or is_missing(tidy_text(text)):
            return self.values.get(text, text)
        if text not in self.values:
            problems.add(
                f"'{sample}': '{self.source}' is '{text[:40]}'",
                "Add it to the values of the mapping (with nothing behind the colon where it means that there is no label).",
            )
        return self.values.get(text, "")


class KeyedTable:
    """A table with a row per sample, found by its key."""

    def __init__(self, path: Path, table: Table, key_column: str) -> None:
        self.path = path
        self._table = table
        self._rows = {_read_key(cell): row for row, cell in enumerate(table.columns[key_column])}
        self.columns = [name for name in table.names if name not in ("", key_column)]
        self._used: set[int] = set()

    @classmethod
    def read(cls, path: Path, options: IndexOptions) -> "KeyedTable":
        """Raises UserError for what is no table, or has no key of its own in every row."""
        problems = Problems(path)
        key_column = options.key_column
        table = read_table(CsvOptions(images=path, table=path, image_column=key_column), problems)
        if key_column not in table.columns:
            problems.add(
                f"it has no column '{key_column}'. It has: {', '.join(table.names[:NUM_NAMED])}",
                "Give the one with the keys of the samples by --key-column (key_column).",
            )
            problems.raise_all()
        first: dict[str, int] = {}
        for line, cell in zip(table.lines, table.columns[key_column], strict=True):
            if first.setdefault(_read_key(cell), line) != line:
                problems.add(f"line {line}: the key '{cell}' has a line already", "Leave one.")
        problems.raise_all()
        return cls(path, table, key_column)

    def add_cells(self, name: str, cells: dict[str, str]) -> bool:
        """Adds the cells of a sample to `cells`; whether it has a row."""
        row = self._rows.get(name)
        if row is None:
            return False
        self._used.add(row)
        cells |= {column: self._table.columns[column][row] for column in self.columns}
        return True

    def warn_unused(self) -> None:
        """Tells of rows that name no sample."""
        unused = [key for key, row in self._rows.items() if row not in self._used]
        if unused:
            named = ", ".join(map(repr, unused[:3]))
            logger.warning(
                "%s: %d row(s) name no sample of the shards: %s.", self.path, len(unused), named
            )


def check_places(
    places: Iterable[LabelFile], found: Collection[str], fields: Sequence[str], problems: Problems
) -> None:
    """`problems` name places of labels that say nothing in any sample, and the `fields` that have values."""
    by_path = {field.partition(":")[2]: field for field in fields}
    for place in places:
        if str(place) in found:
            continue
        near = difflib.get_close_matches(".".join(place.path), by_path, n=1)
        nearest_first = dict.fromkeys([*(by_path[path] for path in near), *fields])
        listed = list(nearest_first)[:NUM_NAMED]
        problems.add(
            f"no sample has a value at {place}. There are: {', '.join(listed) or 'none'}",
            "Give --labels that the samples have.",
        )


def choose_columns(
    fields: Iterable[str],
    tables: Sequence[KeyedTable],
    options: IndexOptions,
    mapping: Mapping[str, MappedTask],
    problems: Problems,
) -> dict[str, LabelColumn]:
    """The columns of the table of labels by their names: those that the mapping names, or all."""
    known = [*fields, *(column for table in tables for column in table.columns)]
    for name in {name for name in known if known.count(name) > 1}:
        problems.add(f"'{name}' is in several places of labels", "Name the columns differently.")
    special = [options.split_column or "split", options.group_column or ""]
    if not mapping:
        # Those that nobody reads keep their names alone, for the options that name them.
        wanted = {*(options.tasks or known), *special} - set(options.ignore)
        columns = {name: LabelColumn(name, {}, name in wanted) for name in known}
    else:
        columns = {
            name: LabelColumn(task.column or name, task.values) for name, task in mapping.items()
        }
        columns = {name: LabelColumn(name, {}) for name in special if name in known} | columns
    for name, column in columns.items():
        if column.source not in known:
            near = difflib.get_close_matches(column.source, known, n=3, cutoff=0.5)
            listed = ", ".join(near or known[:NUM_NAMED])
            problems.add(
                f"no label is called '{column.source}', of which the mapping makes '{name}'. Nearest: {listed}",
                "Correct its `from` in the mapping, or give other --labels.",
            )
    if options.split:
        columns.pop("split", None)
    return columns


def find_tar_splits(
    tars: Sequence[str], options: IndexOptions, problems: Problems
) -> dict[str, list[str]]:
    """The split of every tar, where splits go by their names."""
    if not options.split:
        return {}
    if options.split_column is not None:
        problems.add(
            "--split and --split-column (split_column) both say the splits",
            "Leave one of them out.",
        )
    found = {tar: options.find_splits(tar) for tar in tars}
    for tar, splits in found.items():
        if len(splits) != 1:
            fitting = " and ".join(splits) or "none"
            problems.add(
                f"{tar} fits the patterns of {fitting}",
                "Every tar should fit those of one split: --split train='train-*',val='val-*'.",
            )
    for split, patterns in options.split.items():
        if not any(split in splits for splits in found.values()):
            problems.add(
                f"--split {split}={patterns[0]} fits no tar", "Correct it, or leave it out."
            )
    return found


def check_kinds(tasks: Sequence[Task], mapping: Mapping[str, MappedTask]) -> None:
    """Raises UserError where the mapping says binary and labels are classes."""
    odd = [
        f"'{task.name}' ({', '.join(task.classes[:NUM_NAMED])})"
        for task in tasks
        if task.classes and task.name in mapping and mapping[task.name].kind == "binary"
    ]
    if odd:
        raise UserError(
            f"The mapping says binary, and the labels are classes: {'; '.join(odd)}. Say which are 1 and which "
            "are 0: values: {yes: 1, no: 0}."
        )


def _read_key(cell: str) -> str:
    """The key of a cell that may be the name of a file."""
    return split_member(cell.removeprefix("./"))[0]
