"""Tables as spreadsheets and programs write them: whatever the file, the cells are the same."""

import bz2
import gzip
import lzma
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pandas
import pytest
from packed_samples import picture
from table_labels import learn_file

from distbranch.data.sources import pack_source, parse_options
from distbranch.data.sources.csv import CsvOptions
from distbranch.data.sources.tables import Problems, format_cell, read_table
from distbranch.errors import UserError

ROWS = [
    ["image", "size, cm", "größe", "note"],
    ["1.jpg", "1,0", "klein", "a;b"],
    ["2.jpg", "0,5", "groß", 'say "hi"'],
    ["3.jpg", "", "groß", "two\nlines"],
]
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}


def as_csv(rows: list[list[str]], delimiter: str, line_end: str = "\n") -> str:
    def quoted(cell: str) -> str:
        doubled = cell.replace('"', '""')
        return f'"{doubled}"' if set(cell) & {delimiter, '"', "\n"} else cell

    return line_end.join(delimiter.join(map(quoted, row)) for row in rows) + line_end


def read(
    path: Path, *, delimiter: str | None = None, encoding: str | None = None
) -> list[list[str]]:
    table = read_table(
        CsvOptions(images=path, table=path, delimiter=delimiter, encoding=encoding), Problems(path)
    )
    return [table.names, *map(list, zip(*table.columns.values(), strict=True))]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", DELIMITERS)
def test_the_delimiter_is_found_whatever_stands_in_the_cells(
    tmp_path: Path, name: str, line_end: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(as_csv(ROWS, DELIMITERS[name], line_end).encode())
    assert read(path) == ROWS
    path.write_bytes(
        as_csv([[row[0], row[1]] for row in ROWS], DELIMITERS[name], line_end).encode()
    )
    assert read(path) == [row[:2] for row in ROWS]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image\n1.jpg\n2.jpg\n", [["image"], ["1.jpg"], ["2.jpg"]]),
        ("sep=;\nimage;a\n1.jpg;1,0\n", [["image", "a"], ["1.jpg", "1,0"]]),
        (
            "file;a;b\nx.jpg;1,5;2,5\ny.jpg;0,5;1,0\n",
            [["file", "a", "b"], ["x.jpg", "1,5", "2,5"], ["y.jpg", "0,5", "1,0"]],
        ),
        ("image, a\n1.jpg, 1\n", [["image", "a"], ["1.jpg", "1"]]),
        ('image, a\n1.jpg, "x, y"\n', [["image", "a"], ["1.jpg", "x, y"]]),
        ("image,a\n1.jpg,1,,\n2.jpg,0\n", [["image", "a"], ["1.jpg", "1"], ["2.jpg", "0"]]),
        ("image,a\n1.jpg,1\n,\n\n  ,  \n", [["image", "a"], ["1.jpg", "1"]]),
        ("\n\nimage,a\n1.jpg,1\n", [["image", "a"], ["1.jpg", "1"]]),
        (
            "image;a b, c\n1.jpg;red, blue\n2.jpg;red\n",
            [["image", "a b, c"], ["1.jpg", "red, blue"], ["2.jpg", "red"]],
        ),
    ],
)
def test_small_tables_of_every_kind_are_read(
    tmp_path: Path, text: str, expected: list[list[str]]
) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert read(tmp_path / "t.csv") == expected


def test_a_delimiter_that_is_given_is_taken(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image:a,b\n1.jpg:1,5\n")
    assert read(tmp_path / "t.csv", delimiter=":") == [["image", "a,b"], ["1.jpg", "1,5"]]
    (tmp_path / "t.txt").write_text("image a\n1.jpg 1\n")
    assert read(tmp_path / "t.txt", delimiter=" ") == [["image", "a"], ["1.jpg", "1"]]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-mark", "utf-16-be-mark", "utf-32"]
)
def test_unicode_is_known_by_its_mark(tmp_path: Path, encoding: str) -> None:
    text = as_csv(ROWS, ";")
    if encoding.endswith("-mark"):
        encoding, text = encoding.removesuffix("-mark"), "\ufeff" + text
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert read(tmp_path / "t.csv") == ROWS


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "utf-8", "utf-8-sig"])
def test_an_encoding_that_is_given_is_taken(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(as_csv(ROWS, ",").encode(encoding))
    assert read(tmp_path / "t.csv", encoding=encoding) == ROWS
    (tmp_path / "t.csv").write_bytes(
        as_csv([["image", "帽子"], ["1.jpg", "赤"]], ",").encode("shift_jis")
    )
    assert read(tmp_path / "t.csv", encoding="shift_jis") == [["image", "帽子"], ["1.jpg", "赤"]]


def test_another_encoding_is_told_with_its_line_and_how_it_would_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(as_csv(ROWS, ",").replace("größe", "size").encode("cp1252"))
    with pytest.raises(
        UserError,
        match=r"t.csv has 3 problems: \(1\) line 3: .* not text in UTF-8: byte 0xdf .* cp1252 .* would be '.*groß.*'.*--encoding",
    ):
        learn_file(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(as_csv(ROWS, ",").encode("utf-16-le"))
    with pytest.raises(UserError, match=r"zero bytes. Say --encoding utf-16-le"):
        read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes("image,größe\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"is not text in utf-16. Give another --encoding"):
        read(tmp_path / "t.csv", encoding="utf-16")


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_a_packed_table_is_unpacked(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"t.csv{ending}"
    path.write_bytes(pack(as_csv(ROWS, "\t").encode()))
    assert read(path) == ROWS
    path.write_bytes(pack(as_csv(ROWS, "\t").encode())[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


def save_sheet(path: Path, rows: list[list[Any]], *more: str) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for title in more:
        book.create_sheet(title).append(["x"])
        book[title].append(["y"])
    book.save(path)
    return path


def test_a_sheet_of_excel_reads_as_its_cells_show(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        ["image", "yes", "whole", "share", "day", "time", "gap"],
        ["1.jpg", True, 1.0, 0.5, date(2024, 2, 1), datetime(2024, 2, 1, 9, 30), None],
        [None] * 7,
        [7, False, 0, 1.5, datetime(2024, 2, 1), None, "#N/A"],
        ["2.jpg", True],
    ]
    path = save_sheet(tmp_path / "t.xlsx", rows)
    assert read(path) == [
        ["image", "yes", "whole", "share", "day", "time", "gap"],
        ["1.jpg", "True", "1", "0.5", "2024-02-01", "2024-02-01T09:30:00", ""],
        ["7", "False", "0", "1.5", "2024-02-01", "", ""],
        ["2.jpg", "True", "", "", "", "", ""],
    ]
    assert read_table(CsvOptions(images=path, table=path), Problems(path)).lines == [2, 4, 5]


def test_a_first_try_with_a_list_from_excel_tells_all_that_must_be_said(tmp_path: Path) -> None:
    rows = [
        "Bild;Preis;Gewicht;Kinder;Schlagworte;Größe",
        *("a.jpg;1.299,00 €;0,35;ja;rot, neu;S", "b.jpg;99,95 €;1,2;nein;blau;M"),
        *("c.jpg;12,50 €;;;rot, alt;L", "d.jpg;7,00 €;2;ja;neu, blau;S", "e.jpg;8 €;1,2;ja;rot;M"),
    ]
    path = tmp_path / "t.csv"
    path.write_bytes(("\r\n".join(rows) + "\r\n").encode("cp1252"))
    with pytest.raises(UserError) as told:
        learn_file(path)
    for words in (
        "5 problems",
        "--encoding cp1252",
        "no column 'image'. Nearest: Bild",
        "--number Preis",
        "--number Gewicht",
        "--tags Schlagworte --separator ','",
    ):
        assert words in str(told.value)
    given = {"number": "Preis,Gewicht", "tags": "Schlagworte", "separator": ","}
    learnt = learn_file(path, encoding="cp1252", image_column="Bild", **given)
    labels = [row.labels for row in learnt.rows]
    assert [one.get("Gewicht") for one in labels] == [0.35, 1.2, None, 2.0, 1.2]
    assert [one["Preis"] for one in labels] == [1299.0, 99.95, 12.5, 7.0, 8.0]
    assert labels[3] == {
        **{"Preis": 7.0, "Gewicht": 2.0, "Kinder": 1, "Größe": "S"},
        **{"rot": 0, "neu": 1, "blau": 1, "alt": 0},
    }


def test_a_workbook_of_several_sheets_is_refused_and_an_empty_one_beside_is_not(
    tmp_path: Path,
) -> None:
    save_sheet(tmp_path / "t.xlsx", [["image", "a"], ["1.jpg", 1]], "Notes")
    with pytest.raises(
        UserError, match=r"one sheet, but it has 2 \(Sheet, Notes\). Save the one with the labels"
    ):
        read(tmp_path / "t.xlsx")
    book = openpyxl.Workbook()
    book.active.append(["image"])
    book.create_sheet("Sheet2")
    book.save(tmp_path / "t.xlsx")
    assert read(tmp_path / "t.xlsx") == [["image"]]


def test_a_workbook_without_its_reader_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sheet(tmp_path / "t.xlsx", [["image"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        UserError,
        match=r"package openpyxl is needed. Install it: pip install 'distbranch\[excel\]'",
    ):
        read(tmp_path / "t.xlsx")


def test_parquet_reads_like_the_csv_of_the_same_frame(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {
            "image": ["1.jpg", "2.jpg"],
            "a": [1.0, None],
            "b": pandas.array([1, None], dtype="Int64"),
            "c": [True, False],
            "kind": pandas.Categorical(["red", "blue"]),
            "tags": [["x", "y"], ["x"]],
        },
        index=["p", "q"],
    )
    frame.to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [
        ["image", "a", "b", "c", "kind", "tags"],
        ["1.jpg", "1", "1", "True", "red", "['x', 'y']"],
        ["2.jpg", "", "", "False", "blue", "['x']"],
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"PK\x03\x04rest", "workbook or an archive. Save it as CSV"),
        ("t.xls", b"\xd0\xcf\x11\xe0rest", "workbook or an archive. Save it as CSV"),
        ("t.xlsx", b"image,a\n1.jpg,1\n", "cannot be read"),
        ("t.parquet", b"image,a\n1.jpg,1\n", "cannot be read"),
        ("t.csv.gz", b"image,a\n1.jpg,1\n", "cannot be read"),
        (
            "t.csv",
            b'image,a\n1.jpg,"red\n2.jpg,blue\n3.jpg,red\n',
            "line 2: this is not CSV .* Mend the quotes",
        ),
        ("t.csv", b'image,a\n1.jpg,"red"dish\n', "line 2: this is not CSV"),
        ("t.csv", b"", "is empty; its first line should name the columns"),
    ],
)
def test_what_is_no_table_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (1.0, "1"),
        (-1.0, "-1"),
        (0.25, "0.25"),
        (True, "True"),
        (3, "3"),
        ("x", "x"),
        (float("inf"), "inf"),
    ],
)
def test_a_value_is_written_as_in_a_csv(value: object, text: str) -> None:
    assert format_cell(value) == text


@pytest.mark.parametrize("form", ["xlsx", "parquet", "csv.gz", "txt"])
def test_the_same_labels_are_packed_from_every_form_of_a_table(tmp_path: Path, form: str) -> None:
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / f"images/{number}.jpg").write_bytes(picture(number))
    frame = pandas.DataFrame(
        {
            "image": [f"{number}.jpg" for number in range(6)],
            "split": ["train", "val", "test"] * 2,
            "Edema": [1.0, 0.0, -1.0, None, 1.0, 0.0],
            "wears\na hat": ["x", None] * 3,
            "findings": ["a, b", "b", "No Finding", None, "a", "b, a"],
        }
    )
    write = {
        "xlsx": lambda path: frame.to_excel(path, index=False),
        "parquet": frame.to_parquet,
        "csv.gz": lambda path: frame.to_csv(path, index=False),
        "txt": lambda path: frame.to_csv(
            path, index=False, sep="\t", decimal=",", encoding="utf-16"
        ),
    }
    write[form](tmp_path / f"t.{form}")
    answers = {
        "minus_one": "Edema=unknown",
        "blank": "wears a hat=no",
        "tags": "findings",
        "separator": ", ",
    }
    values = {
        "source": "csv",
        "images": tmp_path / "images",
        "table": tmp_path / f"t.{form}",
        **answers,
    }
    info = pack_source(parse_options(values).open(), tmp_path / "set")
    total: dict[str, Counter[str]] = {}
    for split in info.splits.values():
        for task, counts in split.labels.items():
            total.setdefault(task, Counter()).update(counts)
    assert {task: (n["1"], n["0"], n["unlabelled"]) for task, n in total.items()} == {
        "Edema": (2, 2, 2),
        "wears a hat": (3, 3, 0),
        "No Finding": (1, 4, 1),
        "a": (3, 2, 1),
        "b": (3, 2, 1),
    }
