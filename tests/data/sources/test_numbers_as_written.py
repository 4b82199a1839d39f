"""Columns of numbers and of ordered classes as people write them: what has one meaning is read, what could have two is asked."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import yaml
from table_labels import Labels
from torch import Tensor

from distbranch.data.sources.number_text import find_unit, read_number
from distbranch.errors import UsageError, UserError
from distbranch.kinds import KINDS, Kind
from distbranch.tasks import Task

Learn = Callable[..., Labels]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["3.5", "4", "-5.25", ""], [3.5, 4, -5.25, None]),
        (["3,5", "4", "-5,25", "NA"], [3.5, 4, -5.25, None]),
        (["1,234.5", "2,345", "\u22127", "?"], [1234.5, 2345, -7, None]),
        (["1.234,5", "2.345", "+7", "-"], [1234.5, 2345, 7, None]),
        (["1,234,567", "2,345", "1e3", "5"], [1234567, 2345, 1000, 5]),
        (["1 234,5", "1'234,5", "0,125", "7"], [1234.5, 1234.5, 0.125, 7]),
        (["12.345", "2.000", "1.5e-3", "n/a"], [12.345, 2, 0.0015, None]),
        (["0,123", "1,234", "5", "6"], [0.123, 1.234, 5, 6]),
    ],
)
def test_numbers_are_read_as_their_cells_tell(
    learn: Learn, cells: list[str], numbers: list[float | None]
) -> None:
    assert learn({"w": cells}, number="w") == {"w": numbers}


def test_a_comma_with_two_meanings_is_asked_about_and_read_as_said(learn: Learn) -> None:
    columns = {"w": ["1,234", "", "2,000"]}
    with pytest.raises(
        UserError,
        match=r"'w' holds '1,234' \(line 2\), '2,000' \(line 4\), where the comma could stand before decimals or between "
        "thousands. Say which sign stands before decimals: --decimal comma or --decimal point",
    ):
        learn(columns, number="w")
    assert learn(columns, number="w", decimal="comma") == {"w": [1.234, None, 2]}
    assert learn(columns, number="w", decimal="point") == {"w": [1234, None, 2000]}


def test_a_decimal_sign_without_numbers_is_told(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    learn({"a": ["1", "0", "1"]}, decimal="comma")
    assert "so --decimal is without effect" in caplog.text


@pytest.mark.parametrize(("other", "read"), [("1.5", 1234.0), ("1,5", 1.234)])
def test_other_columns_of_the_table_tell_what_a_comma_means(
    learn: Learn, other: str, read: float
) -> None:
    columns = {"w": ["1,234", "5", "6"], "h": [other, "2", "3"]}
    assert learn(columns, number="w,h")["w"] == [read, 5, 6]


def test_a_comma_that_only_other_cells_explain_is_told(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    assert learn({"w": ["1,5", "1.234", "2"]}, number="w") == {"w": [1.5, 1234, 2]}
    assert "'1.234' (line 3), which is read as 1234, by the decimal comma of" in caplog.text


def test_seconds_since_1970_are_learned_and_what_their_labels_lose_is_told(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    cells = ["1600000000", "1600000060", "1700000000"]
    assert learn({"w": cells, "year": ["1990", "2020", "2019.5"]}, number="w,year")["w"][1] == (
        1600000060
    )
    assert "holds '1600000060' (line 3), from which its label differs by 60, for" in caplog.text
    assert "year" not in caplog.text


REFUSED: dict[str, tuple[Sequence[str], str]] = {
    "units": (["3.5 kg", "4 kg", "7"], r"'3.5 kg' \(line 2\), '4 kg' \(line 3\), numbers with a"),
    "per cent": (["50%", "4"], r"'50%' \(line 2\), numbers with a unit. .*--unit w="),
    "infinite": (
        ["1", "inf", "-Inf"],
        r"'inf' \(line 3\), '-Inf' \(line 4\), which is no number.*--missing",
    ),
    "beyond float32": (["1", "1e39", "-1e400"], r"'1e39' \(line 3\), '-1e400' .*3.4e\+38"),
    "words": (["1", "a", "b", "c", "d"], r"'a' .*line 3.*, and 1 more, which is no number"),
    "dates": (["1", "2020-01-31"], r"'2020-01-31' \(line 3\), which is no number"),
    "truth": (["1", "True", "2"], r"'True' \(line 3\), which is no number"),
    "mixed signs": (["1,5", "2,5", "2.5"], r"'2.5' \(line 4\) although .* a decimal comma"),
    "one value": (["7", "7.0", ""], "'7' is its only value. Put it into --ignore"),
    "one label": (["16777216", "16777217"], "differ behind the seven digits"),
    "no value": (["", "NA"], "all its cells are empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_number_is_one_sentence_that_names_its_lines(learn: Learn, case: str) -> None:
    cells, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        learn({"w": cells}, number="w")


def test_words_for_missing_numbers_may_be_said(learn: Learn) -> None:
    columns = {"w": ["1", "inf", "-1", "999"]}
    assert learn(columns, number="w", missing="inf,999") == {"w": [1, None, -1, None]}
    assert learn(columns, number="w", missing="inf", minus_one="w=unknown") == {
        "w": [1, None, None, 999]
    }


def test_minus_one_of_marks_stays_a_number_in_columns_of_numbers(learn: Learn) -> None:
    columns = {"a": ["1", "0", "-1"], "w": ["5", "-1", "0"]}
    assert learn(columns, number="w", minus_one="unknown") == {"a": [1, 0, None], "w": [5, -1, 0]}


@pytest.mark.parametrize(
    "cells",
    [["20", "30", "20"], ["1", "0", "7"], ["1.5", "2.5", "3.5"], list(map(str, range(1001)))],
)
def test_numbers_of_which_nobody_said_what_they_are_are_asked_about(
    learn: Learn, cells: list[str]
) -> None:
    with pytest.raises(UserError, match=r"give --number w; .*--ordinal w"):
        learn({"w": cells})
    assert learn({"w": cells}, number="w") == {"w": list(map(float, cells))}


def test_an_option_in_advice_can_be_copied_where_the_column_has_a_blank_in_its_name(
    learn: Learn,
) -> None:
    with pytest.raises(UserError, match=r"give --number 'net w'; .*--ordinal 'net w'"):
        learn({"net w": ["20", "30", "20"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": "w", "categorical": "w"}, "one kind and is listed for several"),
        ({"unit": "w=kg"}, "'w' has a --unit, but it is none of --number"),
        ({"number": "w", "blank": "w=no"}, "is no yes or no, and --blank says nothing"),
        ({"ordinal": "w", "blank": "w=no"}, "is no yes or no, and --blank says nothing"),
        (
            {"number": "w", "minus_one": "w=no"},
            r"is no yes or no, and --minus-one \(minus_one\) says",
        ),
        ({"number": "v"}, "no column 'v'"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    learn: Learn, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        learn({"w": ["1", "0", "1"]}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "w"}, "--unit: should say what 'w' has: w=..."),
        ({"ordinal": "s=1<1"}, r"several different classes of 's', lowest first, with <"),
        ({"ordinal": "s=S<<M"}, r"several different classes of 's'"),
        ({"decimal": ";"}, "--decimal: Input should be 'point' or 'comma'"),
    ],
)
def test_options_that_cannot_be_read_are_one_sentence(
    learn: Learn, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        learn({"s": ["1", "0", "1"]}, **options)


# ---- ordered classes


@pytest.mark.parametrize(
    "text",
    ["ordinal: 's=none<mild<severe'", "ordinal: {s: [none, mild, severe]}", "ordinal: [s=none < mild < severe]"],
)  # fmt: skip
def test_ordered_classes_are_given_from_the_lowest_to_the_highest(learn: Learn, text: str) -> None:
    cells = ["mild", "none", "severe", "", "NA"]
    # `none` is a class where it is given as one.
    assert learn({"s": cells}, **yaml.safe_load(text)) == {
        "s": ["mild", "none", "severe", None, None]
    }


@pytest.mark.parametrize("text", ["ordinal: s", "ordinal: [s]", "ordinal: {s: }"])
def test_numbers_are_ordered_by_their_size(learn_tasks: Callable[..., Any], text: str) -> None:
    (task,) = learn_tasks({"s": ["10", "2", "1", "2"]}, **yaml.safe_load(text))
    assert (task.kind, task.classes) == ("ordinal", ("1", "2", "10"))


def test_an_order_that_is_not_known_is_asked_for(learn: Learn) -> None:
    with pytest.raises(UserError, match=r"'S' \(line 2\), .* in which order .*'s=low<middle<high'"):
        learn({"s": ["S", "L", "S"]}, ordinal="s")
    with pytest.raises(UserError, match=r"'XL' \(line 4\), which is none of S < M < L"):
        learn({"s": ["S", "L", "XL"]}, ordinal="s=S<M<L")
    with pytest.raises(UserError, match=r"200 different numbers, .*Give --number s"):
        learn({"s": list(map(str, range(200)))}, ordinal="s")


def test_a_unit_goes_into_the_task(learn_tasks: Callable[..., Any]) -> None:
    tasks = learn_tasks({"w": ["1", "2", "3"], "a": ["1", "0", "1"]}, number="w", unit="w=kg")
    assert [(task.name, task.kind, task.unit) for task in tasks] == [
        ("w", "number", "kg"),
        ("a", "binary", ""),
    ]


# ---- units in the cells


PRICES = ["1.299,00 €", "99,95 €", "", "12 €"]


def test_a_unit_that_every_cell_has_is_that_of_the_task(
    learn: Learn, learn_tasks: Callable[..., tuple[Task, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    assert learn({"price": PRICES}, number="price") == {"price": [1299.0, 99.95, None, 12.0]}
    assert "'€' is taken for the unit of its numbers" in caplog.text
    assert learn_tasks({"price": PRICES}, number="price") == (Task("price", "number", unit="€"),)
    (task,) = learn_tasks({"price": PRICES}, number="price", unit="price=EUR")
    assert task.unit == "EUR"
    assert learn({"a": ["50%", "7%"]}, number="a") == {"a": [50.0, 7.0]}


def test_the_unit_of_one_cell_hides_no_decimal_comma_of_another_column(learn: Learn) -> None:
    columns = {"price": PRICES, "weight": ["1,234", "2,345", "3,456", "4,567"]}
    assert learn(columns, number="price,weight")["weight"] == [1.234, 2.345, 3.456, 4.567]


def test_amounts_with_units_that_would_be_classes_are_told(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    learn({"price": ["5 €", "7 €", "5 €"]})
    assert "'5 €', are taken as names of classes" in caplog.text
    assert "--number price" in caplog.text


# ---- texts


@pytest.mark.parametrize("text", ["", "-", ".", ",", "1_000", "0x10", "--3", "12 34", "1,2,3", "3-5", "<5", "1e", "½"])  # fmt: skip
def test_other_texts_are_no_numbers(text: str) -> None:
    assert read_number(text, "point") is None
    assert read_number(text, "comma") is None


@pytest.mark.parametrize("text", ["3.5 kg", "3,5kg", "€ 5", "5 €", "50%", "-3 °C", "9.8 m/s²"])
def test_numbers_with_units_are_known(text: str) -> None:
    assert find_unit(text)


@pytest.mark.parametrize("text", ["3.5", "kg", "1 234", "2020-01-31", "3-5", "about 3", "1e5"])
def test_texts_without_units_are_known(text: str) -> None:
    assert not find_unit(text)


# ---- kinds of one's own


class Angle(Kind):
    """Degrees, of which a table may hold more than a turn."""

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 1 - ((logits.squeeze(2) - labels) * math.pi / 180).cos()

    def read_label(self, task: Task, value: object) -> float:
        if isinstance(value, str) and value.endswith("°"):
            value = float(value[:-1])
        return super().read_label(task, value) % 360


@pytest.fixture
def angle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KINDS, "_entries", {**KINDS._entries, "angle": Angle()})


@pytest.mark.usefixtures("angle")
def test_the_cells_of_a_kind_of_ones_own_are_read_by_it(learn: Learn) -> None:
    columns = {"wind": ["370°", "20", "NA", "-10"]}
    assert learn(columns, kind="wind=angle") == {"wind": [10, 20, None, 350]}
    with pytest.raises(UserError, match="line 3: the label of 'wind' should be a number"):
        learn({"wind": ["1", "north", "3"]}, kind="wind=angle")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("angel", "no kind of task 'angel'.*plugins"), ("number", "numbers are those of --number")],
)
def test_another_kind_is_one_sentence(learn: Learn, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        learn({"w": ["1", "2", "3"]}, kind=f"w={kind}")
    assert "problems" not in str(refused.value)
