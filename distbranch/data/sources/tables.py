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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distbranch.data.sources.label_text import tidy_text
from distbranch.data.sources.source import explain_unreadable
from distbranch.errors import UserError

if TYPE_CHECKING:
    from distbranch.data.sources.csv import CsvOptions

DELIMITERS = (",", ";", "\t", "|")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BOMS = {  # the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
EXCEL_ENCODING = "cp1252"  # on Windows in Western Europe
NUM_TOLD = 3  # problems of one kind; the rest is counted

Rows = Iterator[tuple[int, Iterable[object]]]  # the line of each, and its values


@dataclass(frozen=True)
class Table:
    """The names of the columns as they stand in the header, the cells below each name, and the number of each row's line.

    Cells have no blanks around them; rows without any content are left out. `place` and
    `row_word` are how people know it and its rows.
    """

    place: Path
    names: list[str]
    columns: dict[str, Sequence[str]]
    lines: Sequence[int]
    row_word: str = "line"


class Problems:
    """The problems of a table found so far, by what is to be done about them."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._facts: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, fact: str, advice: str) -> None:
        """Note a fact ("line 3: ...", "column 'a': ...") and, as one or two sentences, what to do about all of its kind."""
        self._facts[advice].append(fact)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._facts)

    def raise_all(self) -> None:
        """Raises UserError with every problem, if there is any."""
        told = []
        for advice, facts in self._facts.items():
            listed = "; ".join(facts[:NUM_TOLD])
            if len(facts) > NUM_TOLD:
                listed += f"; and {len(facts) - NUM_TOLD} more"
            told.append(f"{listed}. {advice}")
        if told:
            raise UserError(self._table, problems=told)


def read_table(options: "CsvOptions", problems: Problems) -> Table:
    """Reads the table of the options. Rows whose cells stand below the names of other columns are `problems`.

    Raises UserError for what is no table.
    """
    names: list[str] = []
    lines: list[int] = []
    whole: list[list[str]] = []
    for line, values in _read_rows(options, problems):
        cells = [format_cell(value).strip() for value in values]
        if not any(cells):
            continue
        if not names:
            names = [tidy_text(name) for name in cells]
            continue
        # Spreadsheets write a delimiter for every column that was ever touched.
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        if len(cells) == len(names):
            lines.append(line)
            whole.append(cells)
        else:
            problems.add(
                f"line {line}: {len(names)} columns were expected as in line 1, found {len(cells)}",
                "Mend the lines, or say with --delimiter what separates cells.",
            )
    if not names:
        raise UserError(f"{options.table} is empty; its first line should name the columns.")
    if not lines:
        problems.add("it has a header but not a single row that fits it", "Add a line per image.")
    columns = zip(*whole, strict=True) if whole else [()] * len(names)
    return Table(options.table, names, dict(zip(names, columns, strict=True)), lines)


def _read_rows(options: "CsvOptions", problems: Problems) -> Rows:
    path = options.table
    if not path.exists():
        raise UserError(f"The table {path} does not exist.")
    reader = READERS.get(path.suffix.lower(), _read_text_rows)
    try:
        with explain_unreadable(f"The table {path}"):
            yield from reader(path, options, problems)
    except UserError:  # which is a ValueError
        raise
    except (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        NotImplementedError,
        KeyError,
        ValueError,
        IndexError,
    ) as error:
        raise UserError(
            f"The table {path} cannot be read ({error}). Save it anew as what its ending says (a workbook, Parquet, a compressed "
            "file), or as CSV."
        ) from None


def format_cell(value: object) -> str:
    """A value as it would stand in a CSV: whole numbers without `.0`, dates without a time that is midnight."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    if isinstance(value, date):
        return value.isoformat()
    return str(value)


def _read_text_rows(path: Path, options: "CsvOptions", problems: Problems) -> Rows:
    with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
        data = file.read()
    encoding = options.encoding or _find_encoding(path, data)
    try:
        # Not `bytes.decode`, which takes UTF-16 without a mark for that of this machine.
        text = io.TextIOWrapper(io.BytesIO(data), encoding, newline="").read()
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(f"{path} is not text in {encoding}. Give another --encoding.") from None
        problems.add(*_explain_undecodable(data, error.start))
        # Read on, so that all else that is wrong is told as well.
        text = data.decode(EXCEL_ENCODING, errors="replace")
    except UnicodeError:
        raise UserError(f"{path} is not text in {encoding}. Give another --encoding.") from None
    text = text.removeprefix("\ufeff")
    # The first line that Excel writes for itself.
    told = re.match(r'"?sep=(.)"?(?=\s)', text)
    delimiter = options.delimiter
    if told:
        text = text[told.end() :]
        delimiter = delimiter or told[1]

    number = 0
    try:
        # Of equals the first, so a table of one column is taken as CSV.
        delimiter = delimiter or max(
            DELIMITERS, key=lambda one: _rate_header(text, one, options.image_column)
        )
        # Strict: a quote that is never closed is an error, and does not swallow the rest of the table.
        reader = _create_reader(text, delimiter, strict=True)
        for row in reader:
            number = reader.line_num
            yield number, row
    except csv.Error as error:
        problems.raise_all()  # of the encoding, from which it may follow
        raise UserError(
            f"{path}, line {number + 1}: this is not CSV ({error}). Mend the quotes there."
        ) from None


def _create_reader(text: str, delimiter: str, *, strict: bool) -> Any:
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != " ", strict=strict)


def _rate_header(text: str, delimiter: str, image_column: str) -> tuple[bool, int]:
    """How well the header fits a delimiter: whether it holds the name of the column of images, and how many names."""
    rows = _create_reader(text, delimiter, strict=False)
    names: list[str] = next(filter(any, rows), [])
    return image_column in map(tidy_text, names), len(names)


def _find_encoding(path: Path, data: bytes) -> str:
    """By the mark at its beginning, else UTF-8. Raises UserError for files that are no text."""
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            return encoding
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):  # a zip, as .xlsx and .ods are; .xls
        raise UserError(
            f"{path} is no text but a workbook or an archive. Save it as CSV, or as .xlsx with this ending."
        )
    if b"\0" in data:
        raise UserError(
            f"{path} is not text in UTF-8: it holds zero bytes. Say --encoding utf-16-le or utf-16-be if it is "
            "text of this kind, or save it as CSV in UTF-8."
        )
    return "utf-8"


def _explain_undecodable(data: bytes, start: int) -> tuple[str, str]:
    """The first line that is not UTF-8, how it reads in the encoding of Excel on Windows, and what to do."""
    line = data.count(b"\n", 0, start) + 1
    around = data[max(0, start - 20) : start + 20].decode(EXCEL_ENCODING, errors="replace")
    return (
        f"line {line}: this is not text in UTF-8: byte 0x{data[start]:02x} stands there, which as {EXCEL_ENCODING} (Excel on "
        f"Windows) would be '{tidy_text(around)}'",
        f"Save the table as CSV in UTF-8, or say what it is: --encoding {EXCEL_ENCODING}, for instance.",
    )


def _read_sheet_rows(path: Path, *_: object) -> Rows:
    import pandas  # here, for it takes its time, and other tables do without

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats of cells, which no label has
            # Texts such as NA stay what they are; only empty cells are empty.
            sheets = pandas.read_excel(
                path,
                sheet_name=None,
                header=None,
                dtype=object,
                keep_default_na=False,
                na_values=[""],
                engine="openpyxl",
            )
    except ImportError:
        raise UserError(
            f"To read {path} the package openpyxl is needed. Install it: pip install 'distbranch[excel]', or save the "
            "table as CSV."
        ) from None
    filled = [title for title, sheet in sheets.items() if len(sheet) > 1]
    if len(filled) > 1:
        raise UserError(
            f"{path} should have one sheet, but it has {len(sheets)} ({', '.join(sheets)}). "
            "Save the one with the labels as a file of its own."
        )
    sheet = max(sheets.values(), key=len)
    yield from enumerate(sheet.dropna(axis="columns", how="all").to_numpy().tolist(), start=1)


def _read_parquet_rows(path: Path, *_: object) -> Rows:
    # Here, for it takes its time, and other tables do without.
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read()
    # An index without a name, which pandas writes, is no label.
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    yield 1, names
    columns = [column.to_pylist() for column in table.select(names).columns]
    yield from enumerate(zip(*columns, strict=True), start=2)


# By the ending of the name; everything else is text.
READERS = {
    ".xlsx": _read_sheet_rows,
    ".xlsm": _read_sheet_rows,
    ".parquet": _read_parquet_rows,
    ".pq": _read_parquet_rows,
}
