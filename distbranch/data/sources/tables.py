"""Rows of text out of a table as spreadsheets and programs write it: CSV of any delimiter and encoding, .xlsx, .parquet.

`Problems` gathers what is not in order in a table, so that one message tells all of it.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import math
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from itertools import islice
from pathlib import Path
from typing import IO, Any

from distbranch.data.sources.label_text import tidy_text
from distbranch.data.sources.source import as_typed
from distbranch.errors import UserError
from distbranch.permissions import denied

Cells = list[str]
Rows = Iterator[tuple[int, Cells]]

DELIMITERS = (",", ";", "\t", "|")
NUM_LINES = 100  # of a table, from which its delimiter is found
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BOMS = {  # the longer ones first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
EXCEL = (".xlsx", ".xlsm")
PARQUET = (".parquet", ".pq")
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
NUM_TOLD = 3  # problems of one kind; the rest is counted


@dataclass(frozen=True)
class Table:
    """A table that can be read again and again: `rows()` gives the number of a line and its cells, the header first.

    Cells have no blanks around them, rows without any content are left out, and rows end with their last cell that
    has content or that stands below a name.
    """

    path: Path
    rows: Callable[[], Rows]


@dataclass
class Problems:
    """The problems of a table found so far, by what is to be done about them."""

    table: Path
    _facts: dict[str, list[str]] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def add(self, fact: str, advice: str) -> None:
        """Note a fact ("line 3: ...", "column 'a': ...") and, as one or two sentences, what to do about all of its kind."""
        facts = self._facts.setdefault(advice, [])
        self._counts[advice] += 1
        if len(facts) < NUM_TOLD:  # a table of a million lines may have a million of one kind
            facts.append(fact)

    def raise_all(self) -> None:
        """Raises UserError with every problem, if there is any."""
        told = [self._describe(advice) for advice in self._facts]
        if len(told) == 1:
            joint = ", " if told[0].startswith(("line ", "column ")) else ": "
            raise UserError(f"{self.table}{joint}{told[0]}")
        if told:
            numbered = " ".join(f"({number}) {text}" for number, text in enumerate(told, start=1))
            raise UserError(f"{self.table} has {self._counts.total()} problems: {numbered}")

    def _describe(self, advice: str) -> str:
        facts = self._facts[advice]
        listed = "; ".join(facts)
        if self._counts[advice] > len(facts):
            listed += f"; and {self._counts[advice] - len(facts)} more"
        end = "" if listed.endswith("?") else "."
        return f"{listed}{end} {advice}"


def open_table(path: Path, *, delimiter: str | None, encoding: str | None, image_column: str) -> Table:
    """Finds out how the table is written; what is given is not sought. Raises UserError for anything that is no table.

    `image_column`: a name that the header should hold, by which a delimiter is known.
    """
    if not path.exists():
        raise UserError(f"The table {path} does not exist.")
    try:
        if path.suffix.lower() in EXCEL:
            return Table(path, lambda: _filter_rows(_read_sheet_rows(path)))
        if path.suffix.lower() in PARQUET:
            return Table(path, lambda: _filter_rows(_read_parquet_rows(path)))
        written = encoding or _find_encoding(path)
        separated = delimiter or _find_delimiter(path, written, image_column)
        return Table(path, lambda: _filter_rows(_read_text_rows(path, written, separated)))
    except UnicodeError:
        raise _explain_undecodable(path, written) from None
    except UNREADABLE as error:
        raise _explain_unreadable(path, error) from None


def _filter_rows(rows: Rows) -> Rows:
    """Rows as `Table` promises them."""
    width = 0
    for number, cells in rows:
        stripped = [cell.strip() for cell in cells]
        if not any(stripped):
            continue
        width = width or len(stripped)
        # Spreadsheets write a delimiter for every column that was ever touched.
        while len(stripped) > width and not stripped[-1]:
            stripped.pop()
        yield number, stripped


def _explain_unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, PermissionError):
        return denied(error)
    return UserError(f"The table {path} cannot be read: {getattr(error, 'strerror', None) or error}.")


def _open_bytes(path: Path) -> IO[bytes]:
    file: IO[bytes] = OPENERS.get(path.suffix.lower(), open)(path, "rb")
    return file


def _find_encoding(path: Path) -> str:
    """By the mark at its beginning, else UTF-8. Raises UserError for files that are no text."""
    with _open_bytes(path) as file:
        start = file.read(4096)
    for mark, encoding in BOMS.items():
        if start.startswith(mark):
            return encoding
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):  # a zip, as .xlsx and .ods are; .xls
        raise UserError(
            f"{path} is no text but a workbook or an archive. Save it as CSV, or as .xlsx with this ending."
        )
    if b"\0" in start:
        raise UserError(
            f"{path} is not text in UTF-8: it holds zero bytes. Say {as_typed('encoding')} utf-16-le or utf-16-be if it is "
            "text of this kind, or save it as CSV in UTF-8."
        )
    return "utf-8"


def _find_delimiter(path: Path, encoding: str, image_column: str) -> str:
    """The one that fits the first lines best: the header holds the name, and rows have as many cells as the header."""
    with _open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding, errors="replace", newline="")
        lines = list(islice(text, NUM_LINES))
    first = "".join(lines[:1]).lstrip("\ufeff")
    told = re.fullmatch(r'"?sep=(.)"?\s*', first)
    if told:  # as Excel writes it for itself
        return told[1]
    return max(DELIMITERS, key=lambda delimiter: _score_delimiter(lines, delimiter, image_column))


def _score_delimiter(lines: Sequence[str], delimiter: str, image_column: str) -> tuple[bool, float, int]:
    """In the order in which they count: is the name in the header, what share of rows is as wide as it, how wide it is."""
    try:
        rows = [row for row in _create_reader(lines, delimiter, strict=False) if any(row)]
    except csv.Error:
        return False, 0.0, 0
    if not rows:
        return False, 0.0, 0
    width = len(rows[0])
    if width < 2:
        return False, 0.0, width
    share = sum(len(row) == width for row in rows) / len(rows)
    return image_column in map(tidy_text, rows[0]), share, width


def _create_reader(lines: Any, delimiter: str, *, strict: bool) -> Any:
    """`strict`: a quote that is never closed is an error, and does not swallow the rest of the table."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != " ", strict=strict)


def _read_text_rows(path: Path, encoding: str, delimiter: str) -> Rows:
    number = 0
    try:
        with _open_bytes(path) as file:
            reader = _create_reader(io.TextIOWrapper(file, encoding, newline=""), delimiter, strict=True)
            for row in reader:
                is_first = number == 0
                number = reader.line_num
                if is_first and row:
                    row[0] = row[0].lstrip("\ufeff")
                # "sep=;" comes back as one cell, or as "sep=" and an empty one.
                if is_first and re.fullmatch("sep=.?", ",".join(row).strip()):
                    continue
                yield number, row
    except UnicodeError:
        raise _explain_undecodable(path, encoding) from None
    except csv.Error as error:
        raise UserError(f"{path}, line {number + 1}: this is not CSV ({error}). Mend the quotes there.") from None
    except UNREADABLE as error:
        raise _explain_unreadable(path, error) from None


def _explain_undecodable(path: Path, encoding: str) -> UserError:
    """Names the first line that cannot be read, and how it reads in the encoding of Excel on Windows."""
    if encoding not in ("utf-8", "utf-8-sig"):
        return UserError(f"{path} is not text in {encoding}. Give another {as_typed('encoding')}.")
    with _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                reads = ""
                if encoding == "utf-8":
                    start = max(0, error.start - 20)
                    around = line[start : error.start + 20].decode("cp1252", errors="replace")
                    reads = f", which as cp1252 (Excel on Windows) would be '{tidy_text(around)}'"
                return UserError(
                    f"{path}, line {number}: this is not text in UTF-8: byte 0x{line[error.start]:02x} stands there{reads}. "
                    f"Save the table as CSV in UTF-8, or say what it is: {as_typed('encoding')} cp1252, for instance."
                )
    return UserError(f"{path} is not text in UTF-8. Save it as CSV in UTF-8, or give its {as_typed('encoding')}.")


def _read_sheet_rows(path: Path) -> Rows:
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            f"To read {path} the package openpyxl is needed. Install it: pip install 'distbranch[excel]', or save the "
            "table as CSV."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats of cells, which no label has
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            sheet, *others = book.worksheets
            if any(other.max_row and other.max_row > 1 for other in others):
                titles = ", ".join(one.title for one in book.worksheets)
                raise UserError(
                    f"{path} should have one sheet, but it has {len(book.worksheets)} ({titles}). "
                    "Save the one with the labels as a file of its own."
                )
            sheet.reset_dimensions()  # which other programs write wrongly
            width = 0
            for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = [format_cell(value) for value in row]
                # The first row with content is the header, whose last name says how wide the table is.
                if not width and any(cells):
                    while not cells[-1]:
                        cells.pop()
                    width = len(cells)
                yield number, cells + [""] * (width - len(cells))
    except OSError as error:
        raise _explain_unreadable(path, error) from None
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no workbook that can be read ({error}). Save it anew, or as CSV.") from None


def _read_parquet_rows(path: Path) -> Rows:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        names = file.schema_arrow.names
        # An index without a name, which pandas writes, has no name in a CSV either.
        yield 1, [re.sub(r"__index_level_\d+__", "", name) for name in names]
        number = 1
        for batch in file.iter_batches():  # a table of any length in the memory of one batch
            columns = [column.to_pylist() for column in batch.columns]
            for row in zip(*columns, strict=True):
                number += 1
                yield number, [format_cell(value) for value in row]
    except (OSError, ArrowException) as error:
        raise UserError(f"{path} is no Parquet file that can be read ({error}). Write it anew, or as CSV.") from None


def format_cell(value: object) -> str:
    """A value as it would stand in a CSV: whole numbers without `.0`, dates without a time that is midnight."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    if isinstance(value, date):
        return value.isoformat()
    return str(value)
