"""What can be wrong with the values of a column: each question that only its owner can answer is asked, none is guessed."""

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from distbranch.data.sources.columns import (
    ALL,
    MAX_CLASSES,
    Column,
    create_own_task,
    read_own_label,
)
from distbranch.data.sources.label_text import (
    find_separator,
    fold_text,
    parse_mark,
    parse_number,
    read_words,
    split_tags,
)
from distbranch.data.sources.number_columns import (
    CUT_AT,
    Problem,
    check_numbers,
    check_order,
    describe_readings,
)
from distbranch.data.sources.number_text import are_all_numbers
from distbranch.data.sources.tables import Problems
from distbranch.errors import UserError

NUM_UNKNOWN = 20  # classes of a column that are named

logger = logging.getLogger("distbranch")


def select_learnable_columns(columns: Sequence[Column], problems: Problems) -> list[Column]:
    """The columns that can be learnt; of the others `problems` say why they cannot."""
    _check_minus_ones(columns, problems)
    _check_unknown(columns, problems)
    learnable = []
    for column in columns:
        if column.unknown:
            continue
        # The first problem of a column is the one to mend, and those behind it often follow from it: a list of tags would
        # be refused for its many values, and a misspelt yes for being one class of three.
        problem = next(_check_column(column), None)
        if problem is None:
            learnable.append(column)
            _warn_guesses(column)
        else:
            problems.add(*problem)
    return learnable


def _check_column(column: Column) -> Iterator[Problem]:
    if column.is_like and not column.lines and not column.dropped:
        return iter(())
    if column.kind == "number":
        return chain(_check_content(column), check_numbers(column))
    if column.kind == "kind":
        return chain(_check_content(column), _check_own_labels(column))
    if column.kind == "ordinal":
        return chain(_check_content(column), check_order(column), _check_classes(column))
    return chain(_check_content(column), _check_marks(column), _check_classes(column))


def _check_minus_ones(columns: Sequence[Column], problems: Problems) -> None:
    """-1 beside 0 in one column, or 0 in a column without -1 beside columns with it: 0 could mean no or unknown."""
    signed = []
    unsigned = []
    for column in columns:
        values = column.marks or {}
        # Words for yes and no raise no such question.
        in_numbers = any(parse_number(value) is not None for value in values)
        if column.minus_one is not None or not in_numbers:
            continue
        marks = set(values.values())
        if {-1, 0} <= marks and ALL not in column.options.minus_one:
            problems.add(
                f"column '{column.name}' holds 1, 0 and -1",
                "Say what -1 means: --minus-one (minus_one) unknown (then 0 is no) or no (then 0 is unknown), COLUMN=no for "
                "one column; or put it into --categorical.",
            )
        elif -1 in marks:
            signed.append(column.name)
        elif 0 in marks:
            unsigned.append(column.name)
    if signed and unsigned:
        problems.add(
            f"the column '{signed[0]}' says no with -1, the column '{unsigned[0]}' has 0 but no -1, so its 0 could "
            "mean no or unknown",
            "Write no as -1 or as 0 in all columns and leave unknown cells empty, or say which columns have which: "
            f"--minus-one (minus_one) {signed[0]}=no.",
        )


def _check_unknown(columns: Sequence[Column], problems: Problems) -> None:
    """Does the data set of --like have each of the classes? One fact for all columns, so that nothing of it is cut off."""
    told = []
    for column in columns:
        shown = [f"'{label[:CUT_AT]}' (line {line})" for label, line in column.unknown.items()]
        if len(shown) > NUM_UNKNOWN:
            shown[NUM_UNKNOWN:] = [f"and {len(shown) - NUM_UNKNOWN:,} more"]
        if shown:
            told.append(f"{', '.join(shown)} of the column '{column.name}'")
    if told:
        names = ",".join(column.name for column in columns if column.unknown)
        problems.add(
            f"{columns[0].options.like} does not know the class {'; '.join(told)}",
            f"Correct them, or take them as missing labels: --unknown-as-missing (unknown_as_missing) {shlex.quote(names)}.",
        )


def _check_content(column: Column) -> Iterator[Problem]:
    """Is there a label at all, and one in a cell?"""
    if not column.lines:
        yield (
            f"column '{column.name}': all its cells are empty or words for missing, so there is nothing to learn",
            "Put it into --ignore.",
        )
    separator = find_separator(column.lines)
    if column.kind == "tags" and column.options.separator is None:
        yield (
            f"column '{column.name}' is to hold tags, but nothing says what stands between them",
            f"Give --separator '{separator or ' '}', for instance.",
        )
    # Who said tags or categorical has answered. Else a class for every combination of tags is hardly what is meant.
    if (
        column.kind in ("", "one_task_per_class")
        and not _is_settled(column)
        and separator is not None
    ):
        as_one_class = "--categorical" if column.is_open else "--as-written (as_written)"
        # The longest list shows best what is meant.
        example = max(column.lines, key=lambda value: len(split_tags(value, separator)))
        yield (
            f"column '{column.name}' seems to hold several tags in a cell, such as '{example[:CUT_AT]}' in line "
            f"{column.lines[example]}",
            f"Make each tag a task by --tags {column.name} --separator '{separator}', or put the column into {as_one_class}.",
        )
    if len(column.lines) > MAX_CLASSES and column.kind not in ("number", "kind"):
        line = list(column.lines.values())[MAX_CLASSES]
        yield (
            f"line {line}: the column '{column.name}' has more than {MAX_CLASSES} different values",
            f"Put it into --ignore.{_suggest_number(column)}",
        )


def _check_marks(column: Column) -> Iterator[Problem]:
    """Is each value a mark, and does an empty cell mean no?"""
    if column.is_open and column.marks is None:
        odd_values = _find_odd_values(list(column.lines))
        if column.is_like and not odd_values:
            odd_values = list(column.lines)
        for odd in odd_values:
            yield (
                f"line {column.lines[odd]}: the column '{column.name}' holds '{odd[:CUT_AT]}', which is neither 1, 0, -1, yes, "
                "no nor empty",
                "Correct it, or put the column into --categorical or --ignore, or the value into --missing."
                + _suggest_number(column),
            )
    # A cross and empty cells: no, or not looked at?
    if column.is_yes_or_nothing and not any(parse_mark(value) for value in column.lines):
        yield (
            f"column '{column.name}' has only '{next(iter(column.lines))}' and empty cells",
            "Say what an empty cell means: --blank no or unknown, COLUMN=no for one column.",
        )


def _check_own_labels(column: Column) -> Iterator[Problem]:
    """Does the kind that somebody named read each cell?"""
    where = f"column '{column.name}'"
    try:
        task = create_own_task(column)
        for text, line in column.labelled.items():
            where = f"line {line}"
            read_own_label(task, text)
    except UserError as error:
        yield f"{where}: {str(error).rstrip('.')}", "Correct it, or give another --kind."


def _find_odd_values(values: Sequence[str]) -> Sequence[str]:
    """What is no mark among marks, or neither yes nor no among such words, or a number among names."""
    odd = [value for value in values if parse_mark(value) is None]
    if len(odd) < len(values):
        return odd
    numbers = [value for value in values if parse_number(value) is not None]
    words = {value.casefold() for value in values}
    for yes, no in read_words()["yes_and_no"]:
        if words & yes and words & no:
            return numbers or [value for value in values if value.casefold() not in yes | no]
    return numbers


def _check_classes(column: Column) -> Iterator[Problem]:
    """Is each class written in one way, and are there several of them, each of several images?"""
    first: dict[str, str] = {}
    for label, line in column.lines.items():
        # The first spelling stands for all that read alike.
        same = first.setdefault(fold_text(label), label)
        if same != label and not _is_settled(column):
            yield (
                f"column '{column.name}' has classes that differ only in how they are written: '{same}' (line "
                f"{column.lines[same]}) and '{label}' (line {line})",
                "Write each class in one way, or put the column into --as-written (as_written).",
            )
    # A column of 1 alone, or of 0 alone, is a binary task whose other label is in none of these images. So is a cross beside
    # empty cells, if somebody said what they mean.
    value = next(iter(column.lines))
    has_other = column.marks and (
        parse_mark(value) is not None or (column.marks[value] == 1 and column.counts[""])
    )
    if len(column.lines) == 1 and column.kind != "tags" and not (has_other or column.is_like):
        yield (
            f"column '{column.name}': '{value[:CUT_AT]}' is its only value",
            "Put it into --ignore.",
        )
    # A value that no second image has cannot be learnt.
    is_repeated = any(column.counts[value] > 1 for value in column.lines)
    if column.is_open and column.marks is None and not is_repeated:
        yield (
            f"column '{column.name}': each of its {len(column.lines)} values is in one line only, as if it were an id",
            "Put it into --ignore, or into --categorical or --tags if its values are classes or lists of tags all the same."
            + _suggest_number(column),
        )


def _suggest_number(column: Column) -> str:
    """What to give where the values of a column of which nobody said anything are numbers."""
    if column.is_open and are_all_numbers(column.bare_numbers.values()):
        name = shlex.quote(column.name)  # many names have blanks
        return (
            f" If its numbers are amounts to be predicted as such, give --number {name}; if they are steps in an order, "
            f"--ordinal {name}."
        )
    return ""


def _is_settled(column: Column) -> bool:
    """Whether its values are marks, or classes just as they are written."""
    return column.as_written or column.marks is not None


def _warn_guesses(column: Column) -> None:
    """Tells of what was taken in one way and might be meant in another."""
    if column.dropped:
        logger.warning(
            "The column '%s': what %s does not know is taken as missing: %s.",
            column.name,
            column.options.like,
            _list_words(column.dropped),
        )
    # A number is missing only where somebody said so.
    words = {
        word: count for word, count in column.missing_words.items() if parse_number(word) is None
    }
    # In a column of yes and no, or of numbers, None or NA can hardly be a class.
    may_be_class = column.marks is None and column.kind != "number"
    if may_be_class and not words.keys() <= set(column.options.missing):
        logger.warning(
            "The column '%s': %s are taken as missing. If they are classes, put the column into --as-written (as_written).",
            column.name,
            _list_words(words),
        )
    may_be_mark = not column.is_open and column.kind != "number"
    if may_be_mark and any(parse_mark(value) == -1 for value in column.lines):
        logger.warning(
            "The column '%s' has the class -1. If it means unknown: --minus-one (minus_one) %s=unknown.",
            column.name,
            column.name,
        )
    if column.kind == "number":
        for reading in describe_readings(column):
            logger.warning("The %s", reading)
    amounts = column.bare_numbers.values()
    if column.is_open and column.cell_unit and are_all_numbers(amounts):
        logger.warning(
            "The column '%s': its values, such as '%s', are taken as names of classes.%s",
            column.name,
            next(iter(column.labelled)),
            _suggest_number(column),
        )
    if column.kind == "tags" and column.counts[""] and column.blank is None:
        logger.warning(
            "The column '%s': its %d empty cells stay unlabelled. If they mean that no tag applies: --blank %s=no.",
            column.name,
            column.counts[""],
            column.name,
        )
    if column.is_yes_or_nothing:
        logger.warning(
            "The column '%s' says yes or nothing: its empty cells stay unlabelled, so it has no negative sample. "
            "If they mean no: --blank %s=no.",
            column.name,
            column.name,
        )


def _list_words(words: Mapping[str, int]) -> str:
    first = list(words.items())[:5]
    return ", ".join(f"'{word}' ({count:,} cells)" for word, count in first)
