"""Options of the sources that learn their tasks from a table, whatever it comes from: a file, folders of classes, a saved data set."""

from abc import ABC
from pathlib import Path

from pydantic import Field

from distbranch.data.sources.number_text import DecimalSign
from distbranch.data.sources.option_values import (
    Answers,
    Character,
    Fractions,
    Name,
    Names,
    Orders,
    Said,
)
from distbranch.data.sources.source import ImageFileOptions


class LearntOptions(ImageFileOptions, ABC):
    """How a split is drawn, and what is taken from another data set."""

    fractions: Fractions = Field(
        (0.8, 0.1, 0.1), description="Shares of train, val and test of a drawn split."
    )
    seed: int = Field(0, description="Seed of a drawn split.")
    stratify: Name | None = Field(
        None,
        description="Draw the split so that each class of this column has its share in train, val and test. The only image of a class is "
        "in train, of two one is in train and one in val or test, of more one at least in each.",
    )
    like: Path | None = Field(
        None,
        description="A packed data set whose tasks, classes and their order these images get too, and whose options about "
        "columns count where none are given: so next month's images join it, or are evaluated.",
    )
    unknown_as_missing: Names = Field(
        (),
        description="Columns in which a class that the data set of --like has not is a missing label; else it is refused.",
    )


class ColumnOptions(LearntOptions, ABC):
    """What the columns of a table are."""

    split_column: Name | None = Field(
        None,
        description="Column with train, val or test; `split` if there is one, else the split is drawn.",
    )
    group_column: Name | None = Field(
        None,
        description="Draw the split so that the images of one group (a person, a brand) stay together.",
    )
    tasks: Names | None = Field(None, description="Columns to learn; all others if empty.")
    categorical: Names = Field(
        (), description="Columns whose values are names of classes even if numbers."
    )
    one_task_per_class: Names = Field(
        (),
        description="Columns whose every class becomes a binary task, so that classes can branch apart.",
    )
    tags: Names = Field(
        (),
        description="Columns with several tags in a cell, each of which becomes a binary task: 1 where it is mentioned, else 0. A row "
        "without any tag is not labelled, unless `blank` says no.",
    )
    number: Names = Field(
        (), description="Columns of numbers (a price, an age), each predicted as such."
    )
    unit: Said = Field({}, description="Units of such columns: COLUMN=kg,COLUMN=cm.")
    decimal: DecimalSign | None = Field(
        None,
        description="The sign before decimals, `point` or `comma`; what the cells tell if empty.",
    )
    ordinal: Orders = Field(
        {},
        description="Columns of classes in an order: 'COLUMN=low<middle<high', or COLUMN alone if they are numbers.",
    )
    kind: Said = Field({}, description="Columns of a kind of your own: COLUMN=KIND.")
    separator: Character | None = Field(
        None, description="What stands between tags: a character, `space` or `tab`."
    )
    class_prefix: str = Field(
        "", description="Put before the names of such tasks, to tell them from those of other sets."
    )
    minus_one: Answers = Field(
        {},
        description="What -1 means beside 1 and 0: `unknown` (0 is no) or `no` (0 is unknown); COLUMN=no,COLUMN=unknown for each.",
    )
    blank: Answers = Field(
        {},
        description="What an empty cell means in binary columns and in those of tags: `no`, or `unknown` as if empty; COLUMN=no for each.",
    )
    missing: Names = Field(
        (),
        description="More words for a missing label, such as 9 or unknown, beside NA, N/A, None, null, nan, ? and -.",
    )
    as_written: Names = Field(
        (),
        description="Columns whose values are classes as they are written: NA and None are, and Red is not red.",
    )
    ignore: Names = Field((), description="Columns to leave out.")


class TableOptions(ColumnOptions, ABC):
    """The same of a table that names its images."""

    image_column: Name = Field("image", description="Column with the names of the image files.")
