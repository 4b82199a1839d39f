"""What can be wrong with the values of a column: each question that only its owner can answer is asked, none is guessed."""

import logging
from collections.abc import Callable, Mapping, Sequence

from distbranch.data.sources.column import MAX_CLASSES, Column
from distbranch.data.sources.problems import Problems
from distbranch.data.sources.source import as_typed
from distbranch.data.sources.tags import find_separator, split_tags
from distbranch.data.sources.words import VOCABULARIES, fold_text, parse_mark, parse_number

logger = logging.getLogger("distbranch")


Problem = tuple[str, str]  # what is so, and what to do about it
Check = Callable[[Column], Problem | None]


def columns_in_order(columns: Sequence[Column], problems: Problems, *, may_be_names: bool) -> list[Column]:
    """The columns that can be learnt; of the others `problems` say why they cannot.

    `may_be_names`: the column with the names of images was not found, so one of these may be it.
    """
    _check_minus_ones(columns, problems)
    in_order = []
    for column in columns:
        found = next(((check, problem) for check in CHECKS if (problem := check(column))), None)
        if found is None:
            in_order.append(column)
            _warn_guesses(column)
        elif not (may_be_names and found[0] in OF_NAMES):
            problems.add(*found[1])
    return in_order


def _check_minus_ones(columns: Sequence[Column], problems: Problems) -> None:
    """-1 beside 0 in one column, or 0 in a column without -1 beside columns with it: 0 could mean no or unknown."""
    numbers: dict[str, set[int]] = {}
    for column in columns:
        marks = column.marks or {}
        if column.minus_one is None and any(parse_number(value) is not None for value in marks):
            numbers[column.name] = set(marks.values())
    undecided = {column.name for column in columns if column.minus_one_of_all is None}
    both = [name for name, marks in numbers.items() if {-1, 0} <= marks and name in undecided]
    for name in both:
        problems.add(
            f"column '{name}' holds 1, 0 and -1",
            f"Say what -1 means: {as_typed('minus_one')} unknown (then 0 is no) or no (then 0 is unknown), COLUMN=no for one "
            "column; or put it into --categorical.",
        )
    signed = [name for name, marks in numbers.items() if -1 in marks and name not in both]
    unsigned = [name for name, marks in numbers.items() if 0 in marks and -1 not in marks]
    if signed and unsigned:
        more = f" (and {len(unsigned) - 1} more)" if len(unsigned) > 1 else ""
        problems.add(
            f"the column '{signed[0]}' says no with -1, the column '{unsigned[0]}'{more} has 0 but no -1, so its 0 could "
            "mean no or unknown",
            "Write no as -1 or as 0 in all columns and leave unknown cells empty, or say which columns have which: "
            f"{as_typed('minus_one')} {signed[0]}=no.",
        )


def _no_label(column: Column) -> Problem | None:
    if column.lines:
        return None
    told = "all its cells are empty"
    if column.missing_words:
        told += f" or say that they are ({_listed(column.missing_words)})"
    return f"column '{column.name}': {told}, so there is nothing to learn", "Put it into --ignore."


def _no_separator(column: Column) -> Problem | None:
    if column.kind != "tags" or column.separator is not None:
        return None
    return (
        f"column '{column.name}' is to hold tags, but nothing says what stands between them",
        f"Give --separator '{find_separator(column.lines) or ' '}', for instance.",
    )


def _lists_of_tags(column: Column) -> Problem | None:
    """A class for every combination of tags is hardly what is meant."""
    if column.kind not in ("", "per_class") or column.as_written or column.marks is not None:
        return None
    separator = find_separator(column.lines)
    if separator is None:
        return None
    as_one_class = "--categorical" if column.is_open else as_typed("as_written")
    example = max(column.lines, key=lambda value: len(split_tags(value, separator)))
    return (
        f"column '{column.name}' seems to hold several tags in a cell, such as '{_cut(example)}' in line {column.lines[example]}",
        f"Make each tag a task by --tags {column.name} --separator '{separator}', or put the column into {as_one_class}.",
    )


def _too_many(column: Column) -> Problem | None:
    if column.too_many_at is None:
        return None
    what = "tags" if column.kind == "tags" else "values, so it is no task"
    return (
        f"line {column.too_many_at}: the column '{column.name}' has more than {MAX_CLASSES} different {what}",
        "Put it into --ignore.",
    )


def _number_that_is_no_mark(column: Column) -> Problem | None:
    """Points at the first value that is no mark, or, in a column of names, at the first that is a number."""
    numbers = [value for value in column.lines if parse_mark(value) is not None or parse_number(value) is not None]
    if not column.is_open or column.marks is not None or not numbers:
        return None
    odd = [value for value in column.lines if parse_mark(value) is None]
    if len(odd) == len(column.lines):
        odd = numbers
    return (
        f"line {column.lines[odd[0]]}: the column '{column.name}' holds '{_cut(odd[0])}', which is neither 1, 0, -1 nor empty",
        "Correct it, or put the column into --categorical or --ignore, or the value into --missing.",
    )


def _word_beside_yes_and_no(column: Column) -> Problem | None:
    if not column.is_open or column.marks is not None:
        return None
    words = {value.casefold(): value for value in column.lines}
    for yes, no in VOCABULARIES:
        if yes & words.keys() and no & words.keys():
            pair = [words[min(side & words.keys())] for side in (yes, no)]
            odd = next(value for word, value in words.items() if word not in yes | no)
            return (
                f"line {column.lines[odd]}: the column '{column.name}' holds '{_cut(odd)}' beside '{pair[0]}' and '{pair[1]}'",
                "Put it into --missing if it means unknown, or the column into --categorical.",
            )
    return None


def _yes_or_nothing(column: Column) -> Problem | None:
    """A cross and empty cells: no, or not looked at?"""
    if not column.is_yes_or_nothing or any(parse_mark(value) is not None for value in column.lines):
        return None
    return (
        f"column '{column.name}' has only '{next(iter(column.lines))}' and empty cells",
        f"Say what an empty cell means: {as_typed('blank')} no or unknown, COLUMN=no for one column.",
    )


def _like_classes(column: Column) -> Problem | None:
    """Labels that are one for who reads them."""
    if column.as_written or column.marks is not None:
        return None
    first: dict[str, str] = {}
    pairs = []
    for label in column.lines:
        same = first.setdefault(fold_text(label), label)
        if same != label:
            pairs.append(f"'{_cut(same)}' (line {column.lines[same]}) and '{_cut(label)}' (line {column.lines[label]})")
    if not pairs:
        return None
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return (
        f"column '{column.name}' has classes that differ only in how they are written: {', '.join(pairs[:3])}{more}",
        f"Write each class in one way, or put the column into {as_typed('as_written')}.",
    )


def _one_value(column: Column) -> Problem | None:
    if len(column.lines) > 1 or column.kind == "tags":
        return None
    value = next(iter(column.lines))
    marks = column.marks or {}
    if parse_mark(value) in marks.values() or (marks.get(value) == 1 and column.num_blank):
        return None
    return f"column '{column.name}': '{_cut(value)}' is its only value", "Put it into --ignore."


def _id(column: Column) -> Problem | None:
    if not column.is_open or column.marks is not None or len(column.lines) < column.num_cells:
        return None
    return (
        f"column '{column.name}': each of its {column.num_cells} values is in one line only. Is it an id?",
        "Put it into --ignore, or into --categorical or --tags if its values are classes or lists of tags all the same.",
    )


# In this order, and none after one that finds something.
CHECKS: tuple[Check, ...] = (
    _no_label,
    _no_separator,
    _lists_of_tags,
    _too_many,
    _number_that_is_no_mark,
    _word_beside_yes_and_no,
    _yes_or_nothing,
    _like_classes,
    _one_value,
    _id,
)
OF_NAMES = (_too_many, _one_value, _id)  # what would be found of the names of images as well


def _warn_guesses(column: Column) -> None:
    """Tells of what was taken in one way and might be meant in another."""
    words = {word: count for word, count in column.missing_words.items() if parse_number(word) is None}
    if column.marks is None and not words.keys() <= column.missing:
        logger.warning(
            "The column '%s': %s are taken as missing. If they are classes, put the column into %s.",
            column.name,
            _listed(words),
            as_typed("as_written"),
        )
    if not column.is_open and any(parse_mark(value) == -1 for value in column.lines):
        logger.warning(
            "The column '%s' has the class -1. If it means unknown: %s %s=unknown.",
            column.name,
            as_typed("minus_one"),
            column.name,
        )
    if column.is_yes_or_nothing:
        logger.warning(
            "The column '%s' says yes or nothing: its empty cells stay unlabelled, so it has no negative sample. "
            "If they mean no: %s %s=no.",
            column.name,
            as_typed("blank"),
            column.name,
        )


def _listed(words: Mapping[str, int]) -> str:
    return ", ".join(f"'{word}' ({count:,} cells)" for word, count in list(words.items())[:5])


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
