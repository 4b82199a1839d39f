"""What the lists of published data sets have in common: a count, a header, then an image and its labels padded by blanks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from distbranch.data.shards import Labels
from distbranch.data.sources.label_text import label_marks, parse_mark
from distbranch.data.sources.source import Answer, Row, explain_unreadable
from distbranch.errors import UserError
from distbranch.kinds import LabelValue

GIVE_ROOT = "Give with --root the folder that holds the data set."
GIVE_IMAGES = "No images were found; say with --images where they are."

T = TypeVar("T")
Line = tuple[str, str]  # where it stands, and its text
LabelLine = tuple[str, str, Labels]  # where it stands, the image, its labels


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not empty, with blanks for the commas of a .csv; with or without a byte-order mark."""
    try:
        # Reads UTF-8 with and without a byte-order mark.
        with explain_unreadable(str(path)), path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if path.suffix == ".csv":
                    line = line.replace(",", " ")
                if line.strip():
                    yield f"{path}, line {number}", line.strip()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8.") from None


def read_list(path: Path) -> Iterator[Line]:
    """The header and the rows of a list that opens with the number of its rows, unless it is a .csv.

    Raises UserError in the end where number and rows differ.
    """
    lines = read_lines(path)
    if path.suffix == ".csv":
        yield from lines
        return
    where, count = next(lines, (f"{path}, line 1", ""))
    if not count.isdecimal():
        raise UserError(f"{where}: the number of rows should stand here, found '{count[:40]}'.")
    num_rows = -1  # the header is none
    for line in lines:
        num_rows += 1
        yield line
    if num_rows != int(count):
        raise UserError(
            f"{path} says in line 1 that it has {count} rows, but it has {num_rows}: lines are missing or too many, "
            "and every label counted by its line would be wrong. Get the file again from its source."
        )


def split_pair(line: Line) -> tuple[str, str]:
    """Name and value of a line; names may hold blanks, so the value is split off from the right."""
    where, text = line
    parts = text.rsplit(maxsplit=1)
    if len(parts) != 2:
        raise UserError(f"{where}: a name and a value should stand here, found '{text[:60]}'.")
    return parts[0], parts[1]


def read_choices(lines: Iterable[Line], choices: Mapping[str, T]) -> dict[str, T]:
    """What the value of each image stands for. Raises UserError for one that is none of the choices, or an image twice."""
    found: dict[str, T] = {}
    for line in lines:
        where, _ = line
        image, value = split_pair(line)
        if value not in choices:
            raise UserError(
                f"{where}: one of {', '.join(choices)} should stand behind the name, found '{value[:60]}'."
            )
        if image in found:
            raise UserError(f"{where}: image '{image}' stands there a second time.")
        found[image] = choices[value]
    return found


def read_marks(
    lines: Iterable[Line], names: Sequence[str], label_of: Mapping[str, LabelValue | None]
) -> Iterator[LabelLine]:
    """The labels of every image, from the marks behind it. Raises UserError for too many or few, and for one that is none."""
    for where, text in lines:
        image, *marks = text.split()
        if len(marks) != len(names):
            raise UserError(
                f"{where}: {len(names)} labels should follow the image '{image}', found {len(marks)}."
            )
        labels: dict[str, LabelValue] = {}
        for name, mark in zip(names, marks, strict=True):
            if mark not in label_of:
                raise UserError(
                    f"{where}: the label of '{name}' should be 1, -1 or 0, found '{mark[:40]}'."
                )
            label = label_of[mark]
            if label is not None:
                labels[name] = label
        yield where, image, labels


def add_splits(lines: Iterable[LabelLine], splits: Mapping[str, str]) -> Iterator[Row]:
    """Rows out of labels and splits. Raises UserError for an image without a split."""
    for where, image, labels in lines:
        if image not in splits:
            raise UserError(f"{where}: image '{image}' has no split in the list of splits.")
        yield Row(where, image, splits[image], labels)


def map_marks(
    marks: Iterable[str], minus_one: Answer | None, path: Path
) -> dict[str, LabelValue | None]:
    """The label of every mark of a list (None: unlabelled); those that are neither 1, 0 nor -1 are left out.

    Raises UserError where both 0 and -1 occur and nobody said (by `minus_one`) which of them means no.
    """
    parsed = {text: parse_mark(text) for text in marks}
    values = {text: mark for text, mark in parsed.items() if mark is not None}
    if minus_one is None and {0, -1} <= set(values.values()):
        raise UserError(
            f"{path} holds 1, 0 and -1. Say what -1 means: --minus-one (minus_one) unknown (0 is no) or no (0 is unknown)."
        )
    label_of = label_marks(values.values(), minus_one)
    return {text: label_of[mark] for text, mark in values.items()}


def find_first(root: Path, folders: Iterable[str], names: Sequence[str], advice: str) -> Path:
    """The first of these names in one of these folders under root. Raises UserError, with the advice, when there is none."""
    for folder in folders:
        for name in names:
            if (root / folder / name).exists():
                return root / folder / name
    raise UserError(f"{' or '.join(names)} was not found under {root}. {advice}")
