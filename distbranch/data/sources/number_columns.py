"""Columns of numbers and of ordered classes: what their cells say, and what in them only their owner can tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from distbranch.data.number_tasks import is_rounded_away
from distbranch.data.sources.label_text import parse_number
from distbranch.data.sources.number_text import (
    DecimalSign,
    find_ambiguous,
    find_common_unit,
    find_decimal_signs,
    find_unit,
    read_number,
    without_unit,
)

if TYPE_CHECKING:
    from distbranch.data.sources.columns import Column

NUM_SHOWN = 3  # cells of a column, with their lines
CUT_AT = 60  # characters of a cell that is shown
MAX_STEPS = 100  # of an ordinal column: more are amounts
MAX_FLOAT = float(np.finfo(np.float32).max)  # labels are float32
CORRECT_IT = "Correct it, or put the value into --missing if it means that there is no label."

Problem = tuple[str, str]  # what is so, and what to do about it


def find_common_sign(columns: Iterable[Collection[str]]) -> DecimalSign | None:
    """The decimal sign of a table, as far as those of its columns of numbers that tell one tell the same."""
    signs = []
    for texts in columns:
        unit = find_common_unit(texts)
        signs.append(find_decimal_signs(without_unit(text, unit) for text in texts))
    told = {sign for found in signs if len(found) == 1 for sign in found}
    return told.pop() if len(told) == 1 else None


def choose_decimal_sign(column: Column) -> DecimalSign | None:
    """The sign that the cells of the column tell, else that of the table; None where it must be asked."""
    if column.options.decimal is not None:
        return column.options.decimal
    bare = column.bare_numbers.values()
    signs = find_decimal_signs(bare)
    sign = signs.pop() if len(signs) == 1 else column.table_sign
    # A point alone is the decimal one of every program that writes tables.
    if sign is None and not any("," in text for text in find_ambiguous(bare)):
        return "point"
    return sign


def _find_ambiguous_cells(column: Column) -> list[str]:
    ambiguous = set(find_ambiguous(column.bare_numbers.values()))
    return [text for text, bare in column.bare_numbers.items() if bare in ambiguous]


def read_numbers(column: Column) -> dict[str, float]:
    """The number of every value; what is none is left out."""
    sign = column.sign or "point"
    numbers = {text: read_number(bare, sign) for text, bare in column.bare_numbers.items()}
    return {text: number for text, number in numbers.items() if number is not None}


def check_numbers(column: Column) -> Iterator[Problem]:
    """Is each cell a number, with one meaning, that float32 holds, and do they differ?"""
    if column.sign is None:
        yield (
            f"{_list_cells(column, _find_ambiguous_cells(column))}, where the comma could stand before decimals or between "
            "thousands",
            "Say which sign stands before decimals: --decimal comma or --decimal point.",
        )
    odd = [text for text in column.labelled if text not in column.numbers]
    # In a column of decimal commas `2.5` is one of those of points.
    other = [text for text in odd if parse_number(column.bare_numbers[text]) is not None]
    if other:
        yield (
            f"{_list_cells(column, other)} although its numbers have a decimal {column.sign}",
            "Write all of them with one decimal sign.",
        )
    with_units = list(filter(find_unit, odd))
    if with_units:
        yield (
            f"{_list_cells(column, with_units)}, numbers with a unit",
            f"Write the same unit in every cell, or the numbers alone, whose unit --unit {column.name}=... may name.",
        )
    if odd:
        yield f"{_list_cells(column, odd)}, which is no number", CORRECT_IT
    huge = [text for text, number in column.numbers.items() if abs(number) > MAX_FLOAT]
    if huge:
        what = f"which is more than a label can hold ({MAX_FLOAT:.1e})"
        advice = "Correct it, write the numbers in a larger unit, or put the value into --missing."
        yield f"{_list_cells(column, huge)}, {what}", advice
    if column.is_like:  # whose mean and deviation are known
        return
    values = np.array(list(column.numbers.values()))
    if np.ptp(values) == 0:
        only = next(iter(column.numbers))
        yield f"column '{column.name}': '{only}' is its only value", "Put it into --ignore."
    if is_rounded_away(values.min(), values.max(), values.std()):
        yield (
            f"{_list_cells(column, column.numbers)}, which differ behind the seven digits that a label has",
            "Subtract from all of them what they have in common.",
        )


def describe_readings(column: Column) -> Iterator[str]:
    """How cells were read that could be meant in another way, or that a label does not hold to the last digit."""
    decimal = "," if column.sign == "comma" else "."
    if column.cell_unit:
        said = column.options.unit.get(column.name, column.cell_unit)
        as_told = "" if said == column.cell_unit else f", which are told in '{said}'"
        yield f"column '{column.name}': '{column.cell_unit}' is taken for the unit of its numbers{as_told}."
    unsure = _find_ambiguous_cells(column) if column.options.decimal is None else []
    thousands = [text for text in unsure if decimal not in text]
    if thousands:
        yield (
            f"{_list_cells(column, thousands[:1])}, which is read as {column.numbers[thousands[0]]:.15g}, by the decimal "
            f"{column.sign} of other cells."
        )
    whole = {text: number for text, number in column.numbers.items() if number.is_integer()}
    errors = {text: abs(number - float(np.float32(number))) for text, number in whole.items()}
    largest = max(errors, key=errors.__getitem__, default="")
    if errors.get(largest):
        yield (
            f"{_list_cells(column, [largest])}, from which its label differs by {errors[largest]:g}, for labels have seven "
            "digits. If that matters, subtract from all what they have in common."
        )


def check_order(column: Column) -> Iterator[Problem]:
    """Is each value one of the ordered classes that were given, or a number where none were?"""
    order = column.order
    unknown = [text for text in column.labelled if order and text not in order]
    if unknown:
        yield (
            f"{_list_cells(column, unknown)}, which is none of {' < '.join(order)}",
            "Correct it, put it into --missing, or give all classes from the lowest to the highest to --ordinal.",
        )
    words = [text for text in column.labelled if parse_number(text) is None]
    if words and not order:
        yield (
            f"{_list_cells(column, words)}, and nothing says in which order they are",
            f"Give the classes from the lowest to the highest: --ordinal '{column.name}=low<middle<high'.",
        )
    if len(column.labelled) > MAX_STEPS and not order:
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
    return f"column '{column.name}' holds {', '.join(shown)}"
