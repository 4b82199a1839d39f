"""A task column on the first pass over a table: which values it holds, and in which lines they stand first."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from distbranch.data.sources.source import Answer
from distbranch.data.sources.tags import split_tags
from distbranch.data.sources.words import is_missing, parse_mark, parse_number, tidy_text, vocabulary_of

MAX_CLASSES = 1000
MAX_CELLS = 10 * MAX_CLASSES  # that are counted; only lists of tags have more that matter
Kind = Literal["", "categorical", "per_class", "tags"]  # "": to be found out


@dataclass
class Column:
    """A task column on the first pass: `lines` has the first line of every value (or tag) that is a label.

    `kind`: what it was said to be; `as_written`: no value is a word for "missing", and `Red` is another class than `red`.
    `minus_one` and `blank` say what -1 and an empty cell mean; None if nobody said. `minus_one_of_all` was said of no
    column by name, so it tells nothing of those that hold no -1.
    """

    name: str
    at: int
    kind: Kind = ""
    as_written: bool = False
    separator: str | None = None
    minus_one: Answer | None = None
    minus_one_of_all: Answer | None = None
    blank: Answer | None = None
    missing: frozenset[str] = frozenset()  # words beside those that always are
    lines: dict[str, int] = field(default_factory=dict)
    cells: dict[str, int] = field(default_factory=dict)  # how often each occurs
    too_many_at: int | None = None  # line

    def see(self, cell: str, line: int) -> None:
        """Notes a cell."""
        count = self.cells.get(cell)
        if count is not None:
            self.cells[cell] = count + 1
        elif self.too_many_at is None:
            if len(self.cells) < MAX_CELLS:
                self.cells[cell] = 1
            value = tidy_text(cell)
            if not self.is_missing(value):
                for label in self.labels_in(value):
                    self._note(label, line)

    @property
    def num_blank(self) -> int:
        """The number of empty cells."""
        return sum(count for cell, count in self.cells.items() if not tidy_text(cell))

    @property
    def num_cells(self) -> int:
        """The number of cells with a label."""
        return sum(count for cell, count in self.cells.items() if not self.is_missing(tidy_text(cell)))

    @property
    def holds_minus_one(self) -> bool:
        """Whether -1 stands in a cell, whatever it means."""
        return any(parse_mark(tidy_text(cell)) == -1 for cell in self.cells)

    @property
    def missing_words(self) -> dict[str, int]:
        """The words that say that there is no label, and how often."""
        words: dict[str, int] = {}
        for cell, count in self.cells.items():
            value = tidy_text(cell)
            if value and self.is_missing(value):
                words[value] = words.get(value, 0) + count
        return words

    def is_missing(self, value: str) -> bool:
        """Whether a tidy value stands for no label."""
        if not value:
            return True
        if (self.minus_one or self.minus_one_of_all) == "unknown" and parse_mark(value) == -1:
            return True
        return value in self.missing or (not self.as_written and is_missing(value))

    def labels_in(self, value: str) -> Collection[str]:
        """The tags of a value; the value itself where a cell has one."""
        if self.kind == "tags" and self.separator is not None:
            return split_tags(value, self.separator)
        return (value,)

    def _note(self, label: str, line: int) -> None:
        if label in self.lines:
            return
        if len(self.lines) == MAX_CLASSES:
            self.too_many_at = line
        else:
            self.lines[label] = line

    @property
    def is_open(self) -> bool:
        """Whether nobody said that its values are classes or tags."""
        return not self.kind and not self.as_written

    @property
    def is_yes_or_nothing(self) -> bool:
        """Whether it has marks for yes and empty cells of which nobody said what they mean, and nothing else."""
        says_yes = set((self.marks or {}).values()) == {1}
        return says_yes and self.num_blank > 0 and self.blank is None

    @property
    def marks(self) -> dict[str, int] | None:
        """1, 0 or -1 for every value of a binary column; None if its values are classes."""
        if not self.is_open:
            return None
        marks = {value: parse_mark(value) for value in self.lines}
        known = {value: mark for value, mark in marks.items() if mark is not None}
        if len(known) == len(marks):
            return known
        vocabulary = vocabulary_of(self.lines)
        if vocabulary is None:
            return None
        return {value: int(value.casefold() in vocabulary[0]) for value in self.lines}

    @property
    def classes(self) -> list[str]:
        """The values in the order of their numbers, if all are numbers, else of the alphabet."""
        numbers = {value: parse_number(value) for value in self.lines}
        if any(number is None for number in numbers.values()):
            return sorted(self.lines)
        return sorted(self.lines, key=lambda value: (numbers[value], value))
