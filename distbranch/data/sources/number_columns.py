"""Columns of numbers and of ordered classes: what their cells say, and what in them only their owner can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from distbranch.data.sources.label_text import parse_number
from distbranch.data.sources.number_text import (
    DecimalSign,
    find_ambiguous,
    find_decimal_signs,
    has_thousands,
    has_unit,
    is_infinite,
    read_number,
)

if TYPE_CHECKING:
    from distbranch.data.sources.columns import Column

NUM_SHOWN = 3  # cells of a column, with their lines
CUT_AT = 40  # characters of a cell that is shown
MAX_STEPS = 100  # of an ordinal column: more are amounts
MAX_ROUNDING = 0.01  # of the deviation: less than any network predicts
MAX_FLOAT = float(np.finfo(np.float32).max)  # labels are float32

Problem = tuple[str, str]  # what is so, and what to do about it


def find_common_sign(columns: Iterable[Iterable[str]]) -> DecimalSign | None:
    """The decimal sign of a table, as far as those of its columns of numbers that tell one tell the same."""
    signs = [find_decimal_signs(texts) for texts in columns]
    told = {sign for found in signs if len(found) == 1 for sign in found}
    return told.pop() if len(told) == 1 else None


def choose_decimal_sign(column: Column) -> DecimalSign | None:
    """The sign that the cells of the column tell, else that of the table; None where it must be asked."""
    if column.options.decimal is not None:
        return column.options.decimal
    signs = find_decimal_signs(column.labelled)
    if len(signs) == 1:
        return signs.pop()
    if column.decimal_sign is not None:
        return column.decimal_sign
    # A point alone is the decimal one of every program that writes tables.
    if any("," in text for text in find_ambiguous(column.labelled)):
        return None
    return "point"


def read_numbers(column: Column) -> dict[str, float]:
    """The number of every value; what is none is left out."""
    sign = choose_decimal_sign(column) or "point"
    numbers = {text: read_number(text, sign) for text in column.labelled}
    return {text: number for text, number in numbers.items() if number is not None}


def check_numbers(column: Column) -> Iterator[Problem]:
    """Is each cell a number, with one meaning, that float32 holds, and do they differ?"""
    sign = choose_decimal_sign(column)
    if sign is None:
        ambiguous = find_ambiguous(column.labelled)
        yield (
            f"column '{column.name}' holds {_list_cells(column, ambiguous)}, where the comma could stand before decimals or "
            "between thousands",
            "Say which sign stands before decimals: --decimal comma or --decimal point.",
        )
    numbers = read_numbers(column)
    odd = [text for text in column.labelled if text not in numbers]
    yield from _explain_odd_cells(column, odd, sign)
    huge = [text for text, number in numbers.items() if abs(number) > MAX_FLOAT]
    if huge:
        yield (
            f"column '{column.name}' holds {_list_cells(column, huge)}, which is more than a label can hold "
            f"({MAX_FLOAT:.1e})",
            "Correct it, write the numbers in a larger unit, or put the value into --missing.",
        )
    if len(set(numbers.values())) == 1:
        yield (
            f"column '{column.name}': '{next(iter(numbers))}' is its only value",
            "Put it into --ignore.",
        )
    values = np.array(list(numbers.values()))
    rounding = np.abs(values.astype(np.float32) - values).max()
    if rounding > MAX_ROUNDING * values.std():
        yield (
            f"column '{column.name}' holds {_list_cells(column, numbers)}, which differ behind the seven digits that a label has",
            "Subtract from all of them what they have in common.",
        )


def _explain_odd_cells(
    column: Column, odd: Sequence[str], sign: DecimalSign | None
) -> Iterator[Problem]:
    """What the cells are that are no numbers, by what must be done about them."""
    infinite = [text for text in odd if is_infinite(text)]
    if infinite:
        yield (
            f"column '{column.name}' holds {_list_cells(column, infinite)}, which nothing can be trained to",
            f"Correct it, or take it for a missing label: --missing {infinite[0]}.",
        )
    # In a column of decimal commas `2.5` is one of those of points.
    other = [text for text in odd if parse_number(text) is not None]
    if other:
        yield (
            f"column '{column.name}' holds {_list_cells(column, other)} although its numbers have a decimal {sign}",
            "Write all of them with one decimal sign.",
        )
    with_units = [text for text in odd if has_unit(text)]
    if with_units:
        yield (
            f"column '{column.name}' holds {_list_cells(column, with_units)}, numbers with a unit",
            f"Write the numbers alone, all in one unit, which --unit {column.name}=... may name.",
        )
    if odd:
        yield (
            f"column '{column.name}' holds {_list_cells(column, odd)}, which is no number",
            "Correct it, or put the value into --missing if it means that there is no label.",
        )


def describe_thousands(column: Column, numbers: Mapping[str, float]) -> str:
    """How a cell was read whose sign between digits means thousands only by what other cells hold; empty if there is none."""
    sign = choose_decimal_sign(column)
    if sign is None or column.options.decimal is not None:
        return ""
    for text in find_ambiguous(column.labelled):
        if has_thousands(text, sign):
            where = f"'{text}' (line {column.labelled[text]})"
            return f"The column '{column.name}': {where} is read as {numbers[text]:.15g}, by the decimal {sign} of other cells."
    return ""


# ---- ordered classes


def check_order(column: Column) -> Iterator[Problem]:
    """Is each value one of the classes that were given, or a number where none were?"""
    if column.order:
        unknown = [text for text in column.labelled if text not in column.order]
        if unknown:
            yield (
                f"column '{column.name}' holds {_list_cells(column, unknown)}, which is none of "
                f"{' < '.join(column.order)}",
                "Correct it, put it into --missing, or give all classes from the lowest to the highest to --ordinal.",
            )
        return
    words = [text for text in column.labelled if parse_number(text) is None]
    if words:
        yield (
            f"column '{column.name}' holds {_list_cells(column, words)}, and nothing says in which order they are",
            f"Give the classes from the lowest to the highest: --ordinal '{column.name}=low<middle<high'.",
        )
    if len(column.labelled) > MAX_STEPS:
        yield (
            f"column '{column.name}' has {len(column.labelled):,} different numbers, which are amounts rather than steps",
            f"Give --number {column.name}.",
        )


def _list_cells(column: Column, texts: Iterable[str]) -> str:
    """The first cells with their lines, and how many more there are."""
    listed = list(texts)
    shown = [f"'{text[:CUT_AT]}' (line {column.first_lines[text]})" for text in listed[:NUM_SHOWN]]
    if len(listed) > NUM_SHOWN:
        shown.append(f"and {len(listed) - NUM_SHOWN:,} more")
    return ", ".join(shown)
