"""What a file of labels in a tar says: the cells of a row, which are then understood as those of a table."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distbranch.data.sources.tables import OPENERS, READERS, format_cell
from distbranch.errors import UserError

TABLES = (".csv", ".tsv", *READERS, *OPENERS)
SEPARATOR = "|"  # between the values of a list in one cell, as between tags


@dataclass(frozen=True)
class LabelFile:
    """The files KEY.`suffix` and the place of the labels in them, if they are JSON."""

    suffix: str
    path: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "LabelFile":
        """Of `json:attributes.colour`, `cls` or `meta.json`. Raises ValueError."""
        suffix, colon, path = text.partition(":")
        parts = tuple(path.split(".")) if colon else ()
        is_json = suffix.rpartition(".")[2] == "json"
        if not suffix or "" in parts or (colon and not is_json):
            raise ValueError(
                f"should be what label files end with (json, cls, txt), in JSON with a path (json:attributes.colour), or a table "
                f"(labels.csv, labels.parquet); found '{text}'"
            )
        return cls(suffix.lower(), parts)

    def __str__(self) -> str:
        """As it was given."""
        path = ".".join(self.path)
        return f"{self.suffix}:{path}" if path else self.suffix

    def fits(self, suffix: str) -> bool:
        """Whether a file whose name goes on like this behind its key holds these labels."""
        return suffix == self.suffix or suffix.endswith(f".{self.suffix}")

    def read_cells(self, content: bytes) -> dict[str, str]:
        """The cells by column: of JSON a column per field, of a text the whole; none where JSON has no value at the path.

        Raises UserError, a part of a sentence.
        """
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"its {self.suffix} is not text in UTF-8") from None
        if self.suffix.rpartition(".")[2] != "json":
            return {self.suffix: text.strip()}
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UserError(f"its {self.suffix} is not JSON ({error})") from None
        name = ""
        for name in self.path:
            value = value.get(name) if isinstance(value, dict) else None
        if not self.path and not isinstance(value, dict):
            raise UserError(f"its {self.suffix} should hold fields, {{...}}, found {text[:40]!r}")
        return {} if value is None else dict(_flatten(name, value))

    def list_fields(self, content: bytes) -> list[str]:
        """The places of all values in JSON, each as it would be given."""
        return [str(LabelFile(self.suffix, path)) for path in _list_paths(json.loads(content))]


def is_table(text: str) -> bool:
    """Whether a place of labels is a table, and not the ending of files in the tars."""
    is_path = "/" in text or text.count(".") == 1 or Path(text).exists()
    return is_path and text.lower().endswith(TABLES)


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A field with fields is a column for each of them, named without what leads to it."""
    if not isinstance(value, dict):
        yield name, _write_cell(value)
        return
    for field, part in value.items():
        for column, cell in _flatten(field, part):
            yield (column if column == field else f"{field}.{column}"), cell


def _list_paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path and value is not None:
        yield path
    if isinstance(value, dict):
        for field, part in value.items():
            yield from _list_paths(part, (*path, field))


def _write_cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, list):
        return format_cell(value)
    cells = list(map(_write_cell, value))
    if SEPARATOR in "".join(cells):
        raise UserError(
            f"one of its lists has a value with '{SEPARATOR}', which stands between values"
        )
    return SEPARATOR.join(cells)
