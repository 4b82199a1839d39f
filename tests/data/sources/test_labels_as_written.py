"""Labels as people write them: what has one meaning is read, what could have two is asked about, nothing is guessed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from table_labels import Labels, learn_file, read_labels

from distbranch.config import load_config
from distbranch.data.sources import parse_options
from distbranch.data.sources.csv import CsvOptions
from distbranch.data.sources.label_text import fold_text, parse_number, tidy_text
from distbranch.errors import UsageError, UserError

Learn = Callable[..., Labels]


# ---- -1 beside 0


@pytest.mark.parametrize(
    "marks", [("1", "0", "-1"), ("1.0", "0.0", "-1.0"), ("1,0", "0,0", "-1,0"), ("+1", "0", "-1.")]
)
def test_minus_one_beside_zero_is_asked_about_and_read_as_said(
    learn: Learn, marks: tuple[str, str, str]
) -> None:
    columns = {"Edema": [*marks, "", marks[0]]}
    with pytest.raises(
        UserError, match=r"column 'Edema' holds 1, 0 and -1. Say what -1 means: --minus-one"
    ):
        learn(columns)
    assert learn(columns, minus_one="unknown") == {"Edema": [1, 0, None, None, 1]}
    assert learn(columns, minus_one="no") == {"Edema": [1, None, 0, None, 1]}
    assert learn(columns, minus_one="Edema=unknown") == learn(
        columns, minus_one={"Edema": "unknown"}
    )


def test_minus_one_is_answered_for_all_columns_or_for_each(learn: Learn) -> None:
    columns = {
        "a": ["1", "0", "-1"],
        "b": ["-1", "0", "1"],
        "c": ["1", "0", ""],
        "d": ["1", "-1", "-1"],
    }
    with pytest.raises(UserError, match=r"2 problems|3 problems") as refused:
        learn(columns)
    assert "column 'a' holds 1, 0 and -1; column 'b' holds 1, 0 and -1" in str(refused.value)
    unknown = {"a": [1, 0, None], "b": [None, 0, 1], "c": [1, 0, None], "d": [1, None, None]}
    assert learn(columns, minus_one="unknown") == unknown
    assert learn(columns, minus_one="a=no,b=unknown,d=no") == {
        **unknown,
        "a": [1, None, 0],
        "d": [1, 0, 0],
    }
    assert learn(columns, minus_one="unknown,a=no")["a"] == [1, None, 0]
    with pytest.raises(
        UserError, match=r"'c' .*has 0 but no -1, so its 0 could mean no or unknown"
    ):
        learn(columns, minus_one="no")
    with pytest.raises(UserError, match=r"no column 'e'.* --minus-one"):
        learn(columns, minus_one="e=no")


def test_minus_one_alone_is_the_convention_of_celeba(learn: Learn) -> None:
    assert learn({"a": ["1", "-1", "", "-1"], "b": ["-1.0", "1.0", "1.0", "1.0"]}) == {
        "a": [1, 0, None, 0],
        "b": [0, 1, 1, 1],
    }


def test_minus_one_is_a_class_where_values_are_and_that_is_told(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"size": ["-1", "0", "2", "10", "-1"]}
    assert learn(columns, categorical="size") == {"size": ["-1", "0", "2", "10", "-1"]}
    assert (
        "has the class -1. If it means unknown: --minus-one (minus_one) size=unknown" in caplog.text
    )
    caplog.clear()
    assert learn(columns, categorical="size", minus_one="size=unknown") == {
        "size": [None, "0", "2", "10", None]
    }
    assert not caplog.records


@pytest.mark.parametrize(
    "cells",
    [["0", "1", "2"], ["0", "1", "9"], ["1", "2", "1"], ["0", "1", "-2"], ["1,5", "0,5", "1"]],
)
def test_other_codes_are_neither_marks_nor_classes_unless_declared(
    learn: Learn, cells: list[str]
) -> None:
    with pytest.raises(
        UserError, match=r"which is neither 1, 0, -1, yes, no nor empty. Correct it"
    ):
        learn({"a": cells})
    assert learn({"a": cells}, categorical="a") == {"a": cells}


def test_a_code_for_missing_is_said(learn: Learn) -> None:
    assert learn({"a": ["0", "1", "9", "1"]}, missing="9") == {"a": [0, 1, None, 1]}
    assert learn({"a": ["0", "1", "9", "1"]}, **yaml.safe_load("missing: [9]")) == {
        "a": [0, 1, None, 1]
    }
    assert learn({"2019": ["0", "1"], "b": ["1", "0"]}, **yaml.safe_load("ignore: 2019")) == {
        "b": [1, 0]
    }
    assert learn({"a": ["yes", "no", "not sure"]}, missing="not sure,x") == {"a": [1, 0, None]}


def test_an_answer_that_nothing_asks_for_is_told(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    assert learn({"a": ["1", "0"]}, minus_one="no") == {"a": [1, 0]}
    assert "No column holds -1, so --minus-one (minus_one) is without effect." in caplog.text


@pytest.mark.parametrize("text", ["minus_one: no", "minus_one: {a: no}", "minus_one: 'a=no'"])
def test_a_config_says_no_without_quotes(learn: Learn, text: str) -> None:
    assert learn({"a": ["1", "0", "-1"]}, **yaml.safe_load(text)) == {"a": [1, None, 0]}


def test_every_answer_may_stand_in_data_pack(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"data: {{path: {tmp_path}/d, pack: {{source: csv, images: i, table: t, minus_one: no, blank: {{b: no}}, "
        "tags: [t], separator: space, delimiter: tab, missing: ['9'], as_written: w, encoding: cp1252}}\n"
    )
    options = parse_options(load_config(tmp_path / "c.yaml").data.pack or {})
    assert isinstance(options, CsvOptions)
    assert (options.minus_one, options.blank) == ({"*": "no"}, {"b": "no"})
    assert (options.separator, options.delimiter, options.tags, options.as_written) == (
        " ",
        "\t",
        ("t",),
        ("w",),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minus_one": "maybe"}, "--minus-one .*'no' or 'unknown' .*'maybe'"),
        ({"minus_one": {"a": True}}, "--minus-one .*'no' or 'unknown'"),
        ({"delimiter": ";;"}, "--delimiter: should be one character"),
        ({"separator": ""}, "--separator: should be one character"),
        ({"encoding": "cp99999"}, "--encoding: should be an encoding of text"),
        (
            {"tabs": "a", "encoding": "x"},
            "no option --tabs. Nearest: --tags.* --encoding: should be",
        ),
    ],
)
def test_an_answer_that_is_none_is_refused(
    learn: Learn, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        learn({"a": ["1", "0"]}, **options)


# ---- yes and no


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("yes", "no"), ("Yes", "No"), ("Y", "N"), ("true", "false"), ("TRUE", "FALSE"), ("T", "F"), ("ja", "nein"),
        ("Ja", "Nein"), ("WAHR", "FALSCH"), ("oui", "non"), ("VRAI", "FAUX"), ("si", "no"), ("sí", "no"), ("sì", "no"),
        ("VERDADERO", "FALSO"), ("sim", "não"), ("ja", "nee"), ("x", "✗"), ("1", "0"), ("1.00", "0.00"), ("True", "0"),
        ("1e0", "0.000000000000000000e+00"),
    ],
)  # fmt: skip
def test_yes_and_no_are_marks_in_many_languages(learn: Learn, yes: str, no: str) -> None:
    assert learn({"a": [yes, no, "", f" {yes} "]}) == {"a": [1, 0, None, 1]}
    assert learn({"a": [yes, no, "NA", yes.upper()]}) == {"a": [1, 0, None, 1]}


@pytest.mark.parametrize(
    "cells", [["m", "f", "m"], ["n", "s", "n"], ["si", "nein", "si"], ["no", "mild", "no"]]
)
def test_words_of_no_one_language_are_classes(learn: Learn, cells: list[str]) -> None:
    assert learn({"a": cells}) == {"a": cells}


def test_yes_and_no_are_classes_where_declared(learn: Learn) -> None:
    assert learn({"a": ["yes", "no", "maybe", "yes"]}, categorical="a") == {
        "a": ["yes", "no", "maybe", "yes"]
    }


@pytest.mark.parametrize("odd", ["maybe", "7", "unknown"])
def test_another_word_beside_yes_and_no_is_refused(learn: Learn, odd: str) -> None:
    with pytest.raises(UserError, match=f"line 4: the column 'a' holds '{odd}'.*--missing"):
        learn({"a": ["yes", "no", odd, "yes"]})


@pytest.mark.parametrize("mark", ["x", "X", "yes", "ja", "\u2713"])
def test_a_cross_and_empty_cells_are_asked_about(learn: Learn, mark: str) -> None:
    columns = {"hat": [mark, "", mark, ""], "b": ["1", "0", "", "1"]}
    with pytest.raises(
        UserError,
        match=f"column 'hat' has only '{mark}' and empty cells. Say .* --blank no or unknown",
    ):
        learn(columns)
    assert learn(columns, blank="hat=no") == {"hat": [1, 0, 1, 0], "b": [1, 0, None, 1]}
    assert learn(columns, blank="no")["b"] == [1, 0, 0, 1]
    assert learn(columns, blank="unknown")["hat"] == [1, None, 1, None]


def test_ones_and_empty_cells_stay_unlabelled_and_that_is_told(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    assert learn({"a": ["1", "", "1"]}) == {"a": [1, None, 1]}
    assert "'a' says yes or nothing: its empty cells stay unlabelled" in caplog.text
    assert learn({"a": ["1", "", "NA"]}, blank="no") == {"a": [1, 0, None]}


def test_a_decimal_comma_is_a_number_beside_semicolons(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image;a;size\n1.jpg;1,0;2,5\n2.jpg;0,0;10,0\n3.jpg;;2,5\n")
    assert read_labels(tmp_path / "t.csv", categorical="size") == {
        "a": [1, 0, None],
        "size": ["2,5", "10,0", "2,5"],
    }
    with pytest.raises(UserError, match="line 2: the column 'size' holds '2,5', which is neither"):
        read_labels(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,5", 1.5), ("1.5", 1.5), ("-1", -1), ("1,000", 1000), ("1,000.5", 1000.5), ("1_0", None), ("nan", None),
     ("1e3", 1000), (".5", 0.5), ("1 2", None), ("0,000", 0), ("", None), ("-", None), ("12:30", None)],
)  # fmt: skip
def test_numbers_are_read_with_point_or_comma(text: str, number: float | None) -> None:
    assert parse_number(text) == number


# ---- missing values, classes that look alike

MISSING = [
    "NA",
    "N/A",
    "n/a",
    "None",
    "null",
    "NULL",
    "nan",
    "NaN",
    "?",
    "-",
    "",
    "#N/A",
    "<NA>",
    "none",
    "#DIV/0!",
    "\u2013",
]


@pytest.mark.parametrize("word", MISSING)
@pytest.mark.parametrize("kind", ["", "categorical", "one_task_per_class"])
def test_words_for_missing_are_no_class_in_any_kind_of_column(
    learn: Learn, word: str, kind: str
) -> None:
    options = {kind: "colour"} if kind else {}
    found = learn({"colour": ["red", "blue", word, "red"]}, **options)
    if kind == "one_task_per_class":
        assert found == {"blue": [0, 1, None, 0], "red": [1, 0, None, 1]}
    else:
        assert found == {"colour": ["red", "blue", None, "red"]}
    assert learn({"a": ["1", "0", word, "1"]}) == {"a": [1, 0, None, 1]}


@pytest.mark.parametrize(
    "word", ["unknown", "other", "no", "Nope", "x", "Nancy", "Nullarbor", "0-3"]
)
def test_words_that_may_be_classes_are(learn: Learn, word: str) -> None:
    assert learn({"colour": ["red", "blue", word, "red"]}) == {
        "colour": ["red", "blue", word, "red"]
    }


def test_words_that_were_taken_as_missing_are_told_and_kept_where_asked(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"country": ["DE", "NA", "FR", "DE", "NA"]}
    assert learn(columns) == {"country": ["DE", None, "FR", "DE", None]}
    assert (
        "'country': 'NA' (2 cells) are taken as missing. If they are classes, put the column into --as-written"
        in caplog.text
    )
    assert learn(columns, as_written="country") == {"country": columns["country"]}


@pytest.mark.parametrize(
    "pair",
    [
        ("Red", "red"),
        ("RED", "red"),
        ("Stra\u00dfe", "STRASSE"),
        ("\uff32ed", "Red"),
        ("1", "1.0"),
        ("2,0", "2"),
    ],
)
@pytest.mark.parametrize("kind", ["", "categorical", "one_task_per_class", "tags"])
def test_classes_that_look_alike_are_refused_unless_they_are_as_written(
    learn: Learn, pair: tuple[str, str], kind: str
) -> None:
    if kind == "" and pair[0][0].isdigit():
        kind = "categorical"
    options: dict[str, str] = {kind: "c", "separator": ";"} if kind else {}
    columns = {"c": [pair[0], pair[1], "blue", pair[0]]}
    with pytest.raises(
        UserError,
        match=rf"column 'c' has classes that differ only .*: '{pair[0]}' \(line 2\) and '{pair[1]}'",
    ):
        learn(columns, **options)
    found = learn(columns, **options, as_written="c")
    assert len(found) == (1 if kind in ("", "categorical") else 3)


@pytest.mark.parametrize("like", [" red ", "red\u00a0", "light\nred", "light  red", "cafe\u0301"])
def test_blanks_and_forms_of_accents_make_no_class(learn: Learn, like: str) -> None:
    tidy = tidy_text(like)
    assert learn({"c": [tidy, like, "blue", like]}) == {"c": [tidy, tidy, "blue", tidy]}


def test_texts_fold_as_people_see_them() -> None:
    assert fold_text("Caf\u00e9  Noir") == fold_text("CAFE\u0301 noir")
    assert fold_text("red") != fold_text("reed")


def test_images_without_a_group_are_split_each_by_itself(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"image": [f"{n}.jpg" for n in range(60)], "a": [n % 2 for n in range(60)], "who": "NA"}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    rows = learn_file(tmp_path / "t.csv", group_column="who", on_bad_image="skip").rows
    assert {row.split for row in rows} == {"train", "val", "test"}


# ---- headers


def test_line_breaks_in_a_header_are_blanks(learn: Learn) -> None:
    columns = {"wears\na  hat": ["1", "0"], " size, cm ": ["0", "1"]}
    assert learn(columns) == {"wears a hat": [1, 0], "size, cm": [0, 1]}
    assert learn(columns, ignore='"size, cm"') == {"wears a hat": [1, 0]}
    assert learn(columns, tasks="wears  a hat") == {"wears a hat": [1, 0]}


@pytest.mark.parametrize(
    "pair", [("Hat", "hat"), ("gr\u00f6\u00dfe", "GRO\u0308SSE"), ("\uff48at", "hat"), ("a", "A ")]
)
def test_columns_that_look_alike_are_refused(learn: Learn, pair: tuple[str, str]) -> None:
    columns = {pair[0]: ["1", "0"], pair[1]: ["0", "1"]}
    with pytest.raises(
        UserError, match=r"line 1: the columns .* differ only in how they are written"
    ):
        learn(columns)
    assert len(learn(columns, ignore=[tidy_text(pair[1])])) == 1


@pytest.mark.parametrize(
    "header", ["image,a,a", "image,a, a ", "image,a,a\u00a0", "image,\u00e9,e\u0301"]
)
def test_a_name_that_stands_twice_is_refused_and_never_numbered(
    tmp_path: Path, header: str
) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n1.jpg,1,0\n2.jpg,0,1\n")
    with pytest.raises(UserError, match=r"line 1: the column '.' stands there twice. Rename one"):
        read_labels(tmp_path / "t.csv")


# ---- all at once


def test_all_problems_of_all_columns_are_one_message(tmp_path: Path) -> None:
    header = "file;a;b;c;d;e;id;t;col"
    tags, colours = ("p q", "q r", "r p", "q"), ("Red", "red", "blue")
    rows = [
        f"{n}.jpg;{n % 3};{('x', '')[n % 2]};;red;{n % 3 - 1};i{n};{tags[n % 4]};{colours[n % 3]}"
        for n in range(24)
    ]
    (tmp_path / "t.csv").write_text("\n".join([header, *rows, "9.jpg;1"]) + "\n")
    with pytest.raises(UserError) as refused:
        read_labels(tmp_path / "t.csv", image_column="fiel", ignore="ids,q", categorical="colour")
    told = str(refused.value)
    for part in (
        "no column 'fiel'. Nearest: file", "no column 'ids'. Nearest: id", "no column 'colour'. Nearest: col",
        "the column 'a' holds '2'", "'b' has only 'x' and empty cells", "column 'c': all its cells are empty",
        "column 'e' holds 1, 0 and -1", "'t' seems to hold several tags", "'Red' (line 2) and 'red' (line 3)",
        "line 26: 9 columns were expected as in line 1, found 2",
    ):  # fmt: skip
        assert part in told, part
    assert "\n" not in told
    assert "column 'file'" not in told  # which may be the one with the images


def test_many_problems_of_one_kind_are_counted(learn: Learn) -> None:
    columns = {f"c{n}": ["1", "0", "-1"] for n in range(40)}
    with pytest.raises(UserError) as refused:
        learn(columns)
    assert "column 'c0' holds 1, 0 and -1; column 'c1'" in str(refused.value)
    assert "and 37 more" in str(refused.value)
    assert len(str(refused.value)) < 500 + len(str(Path()))


def test_a_table_in_order_is_learnt_without_a_word(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    learn({"a": ["1", "0", "", "nan"], "kind": ["red", "blue", "", "red"]})
    assert not caplog.records
