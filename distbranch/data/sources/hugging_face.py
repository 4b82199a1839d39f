"""Data sets of Hugging Face, as `save_to_disk` writes them (Arrow) or as parquet files, read by pyarrow alone.

Labels are a table like any other. Images are read where their rows are, a row group at a time.
"""

import hashlib
import json
import logging
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from distbranch.data.image_files import MissingImageError
from distbranch.data.sources.label_options import TableOptions
from distbranch.data.sources.label_table import open_table
from distbranch.data.sources.like import list_names
from distbranch.data.sources.source import (
    SPLIT_OF_NAME,
    Source,
    as_typed,
    explain_unreadable,
    sample_key,
)
from distbranch.data.sources.tables import Problems, Table, format_cell
from distbranch.errors import UserError

logger = logging.getLogger("distbranch")

SPLIT = "split"
ENDINGS = (".parquet", ".arrow")
TAG_SEPARATOR = "|"  # between the values of a list in one cell

Files = Mapping[str, Sequence[Path]]  # by split; "" where there is none
Features = Mapping[str, Any]  # by column, what its schema says of it in the terms of `datasets`


class HuggingFaceOptions(TableOptions):
    """A data set of Hugging Face; its columns are read as those of a table, and lists in a cell as tags."""

    source: Literal["hf"] = "hf"
    data: Path = Field(
        description="Folder that `save_to_disk` wrote, folder of parquet files (train-00000.parquet, test/0.parquet), or one such file."
    )

    def open(self) -> Source:
        """Reads the labels. Raises UserError for what is no such data set, and with all that is not in order in its columns."""
        files = _find_files(self.data)
        parts = [
            part for of_split in files.values() for file in of_split for part in _list_parts(file)
        ]
        schema, features = _read_schema(parts)
        options = self
        image_column = _find_image_column(self, schema)
        if image_column != self.image_column:
            options = self.model_copy(update={"image_column": image_column})

        images = _name_images(parts, schema.field(image_column))
        columns: dict[str, Sequence[str]] = {image_column: images}
        for name in self.ignore:
            if name in schema.names:
                columns[name] = [""] * len(images)
        names = _select_columns(options, schema)
        columns |= {name: _read_column(parts, name, features.get(name)) for name in names}
        if "" not in files:
            of_file = {file: split for split, of_split in files.items() for file in of_split}
            columns[SPLIT] = [of_file[part.file] for part in parts for _ in range(part.num_rows)]

        sums = hashlib.sha256()
        for name, cells in columns.items():
            sums.update("\0".join([name, *cells, ""]).encode(errors="surrogatepass"))
        table = Table(self.data, list(columns), columns, range(1, len(images) + 1), "row")
        classes = {name: _get_class_names(features.get(name)) for name in names}
        return open_table(
            options,
            table,
            Problems(self.data),
            RowImages(parts, image_column, images),
            self.describe(labels_sha256=sums.hexdigest()),
            {name: found for name, found in classes.items() if found},
        )


@dataclass(frozen=True)
class _Part:
    """Rows that are read together: a row group of a parquet file, or a whole file of Arrow, which is mapped and not read."""

    file: Path
    row_group: int
    num_rows: int


class RowImages:
    """The images of the rows, by names that were made for them."""

    def __init__(self, parts: Sequence[_Part], column: str, names: Sequence[str]) -> None:
        self._parts = parts
        self._column = column
        self._rows = {name: row for row, name in enumerate(names)}
        self._ends = list(accumulate(part.num_rows for part in parts))
        self._loaded = -1
        self._cells: Any = None

    def has(self, name: str) -> bool:
        """Whether a row has this name."""
        return name in self._rows

    def names(self) -> Iterator[str]:
        """Those of all rows."""
        return iter(self._rows)

    def read(self, name: str) -> bytes:
        """The bytes in the row, or of the file beside the data set that it names. Raises MissingImageError where there are none."""
        row = self._rows[name]
        number = bisect_right(self._ends, row)
        part = self._parts[number]
        if number != self._loaded:
            self._cells = _read_part(part, self._column)
            self._loaded = number
        value = self._cells[row - self._ends[number] + part.num_rows].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes")
            if value is None and path and (part.file.parent / path).is_file():
                value = (part.file.parent / path).read_bytes()
        if value is None:
            raise MissingImageError("the row holds no bytes of an image")
        return bytes(value)


# ---- files


def _find_files(data: Path) -> Files:
    """The files with the rows, by split. Raises UserError for what is no data set, or has splits of other names."""
    if data.is_file() and data.suffix in ENDINGS:
        return {"": [data]}
    if not data.is_dir():
        raise UserError(
            f"{data} should be the folder of a data set, or a file that ends in {' or '.join(ENDINGS)}, and is neither."
        )
    with explain_unreadable(str(data)):
        if (data / "dataset_dict.json").is_file():
            names = _read_json(data / "dataset_dict.json").get("splits", ())
            return _join_splits(data, {name: _list_saved(data / name) for name in names})
        if (data / "state.json").is_file():
            return {"": _list_saved(data)}
        found = sorted(file for file in data.rglob("*") if file.suffix in ENDINGS)
    if not found:
        raise UserError(
            f"{data} holds neither what `save_to_disk` of Hugging Face writes nor parquet files. Give the folder with them."
        )
    by_name: dict[str, list[Path]] = {}
    for file in found:
        words = re.split(r"[^a-z]+", str(file.relative_to(data)).lower())
        splits = [word for word in words if word in SPLIT_OF_NAME]
        by_name.setdefault(splits[-1] if splits else "", []).append(file)
    if "" in by_name and len(by_name) > 1:
        raise UserError(
            f"{data} has files of a split and others, whose names hold neither train, validation nor test: "
            f"{list_names([file.name for file in by_name['']])}. Rename these or move them away."
        )
    return by_name if "" in by_name else _join_splits(data, by_name)


def _list_saved(folder: Path) -> list[Path]:
    # Not all Arrow files of the folder: `map` leaves its results beside them.
    state = _read_json(folder / "state.json")
    return [folder / file["filename"] for file in state.get("_data_files", ())]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged, it is no JSON. Copy it anew.") from None


def _join_splits(data: Path, found: Files) -> Files:
    odd = [name for name in found if name.casefold() not in SPLIT_OF_NAME]
    if odd:
        raise UserError(
            f"{data} has splits that are neither train, validation nor test: {list_names(odd)}. Give the folder of one split "
            "alone, or save the data set without these."
        )
    joined: dict[str, list[Path]] = {}
    for name, files in found.items():
        joined.setdefault(SPLIT_OF_NAME[name.casefold()], []).extend(files)
    return joined


@contextmanager
def _explain_damage(file: Path) -> Iterator[None]:
    import pyarrow

    try:
        with explain_unreadable(str(file)):
            yield
    except pyarrow.ArrowInvalid as error:
        first = str(error).partition(".")[0]
        raise UserError(
            f"{file} is damaged, or no {file.suffix} file ({first}). Copy it anew."
        ) from None


def _list_parts(file: Path) -> list[_Part]:
    from pyarrow import parquet

    with _explain_damage(file):
        if file.suffix == ".arrow":
            return [_Part(file, 0, _map_arrow(file).num_rows)]
        metadata = parquet.ParquetFile(file).metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return [_Part(file, number, size) for number, size in enumerate(sizes)]


def _map_arrow(file: Path) -> Any:
    import pyarrow

    source = pyarrow.memory_map(str(file))
    try:
        return pyarrow.ipc.open_stream(source).read_all()  # as `datasets` writes
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source).read_all()


def _read_part(part: _Part, column: str, *, inner: str = "") -> Any:
    """The cells of a column; `inner`: of a struct this field alone, without reading the others."""
    from pyarrow import compute, parquet

    with _explain_damage(part.file):
        if part.file.suffix == ".arrow":
            cells = _map_arrow(part.file).column(column)
        else:
            path = f"{column}.{inner}" if inner else column
            cells = parquet.ParquetFile(part.file).read_row_group(part.row_group, columns=[path])[
                column
            ]
    return compute.struct_field(cells, inner) if inner else cells


# ---- columns


def _read_schema(parts: Sequence[_Part]) -> tuple[Any, Features]:
    """The schema of all files, and what `datasets` wrote into it. Raises UserError for files of different columns."""
    from pyarrow import parquet

    schemas = {}
    for file in dict.fromkeys(part.file for part in parts):
        with _explain_damage(file):
            is_arrow = file.suffix == ".arrow"
            schemas[file] = _map_arrow(file).schema if is_arrow else parquet.read_schema(file)
    if not schemas:
        raise UserError("The data set has no rows.")
    first, schema = next(iter(schemas.items()))
    for file, other in schemas.items():
        if set(other.names) != set(schema.names):
            odd = sorted(set(other.names) ^ set(schema.names))
            raise UserError(
                f"{first} and {file} have different columns ({list_names(odd)}). Give files of one data set."
            )
    noted = (schema.metadata or {}).get(b"huggingface", b"{}")
    return schema, json.loads(noted).get("info", {}).get("features", {})


def _find_image_column(options: HuggingFaceOptions, schema: Any) -> str:
    """The column that was named, else the only one that holds images."""
    held = [field.name for field in schema if _holds_bytes(field.type)]
    name = options.image_column
    if name in held:
        return name
    if len(held) != 1 or "image_column" in options.model_fields_set:
        raise UserError(
            f"{options.data} should have images in the column '{name}'; columns that hold some: {list_names(held) or 'none'}. "
            f"Give another with {as_typed('image_column')}."
        )
    return str(held[0])


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _select_columns(options: HuggingFaceOptions, schema: Any) -> list[str]:
    """The columns of labels; what is no label (boxes, masks, further images) is told."""
    from pyarrow import types

    names: list[str] = []
    nested: list[str] = []
    for field in schema:
        kind = field.type
        if types.is_list(kind) or types.is_large_list(kind):
            kind = kind.value_type
        # An index without a name, which pandas writes, is no label.
        is_index = field.name.startswith("__index_level_")
        if is_index or field.name in (options.image_column, *options.ignore):
            continue
        is_label = not (types.is_nested(kind) or _holds_bytes(kind))
        (names if is_label else nested).append(field.name)
    if nested:
        logger.warning(
            "%d column(s) hold no labels and are left out: %s.", len(nested), list_names(nested)
        )
    return names


def _get_class_names(feature: Any) -> Sequence[str]:
    """Those of a ClassLabel, else none."""
    is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return feature["names"] if is_class else ()


def _read_column(parts: Sequence[_Part], name: str, feature: Any) -> list[str]:
    """The cells as text: classes by their names, lists with TAG_SEPARATOR in between."""
    inner = feature.get("feature") if isinstance(feature, dict) else None
    class_names = _get_class_names(feature) or _get_class_names(inner)
    # `datasets` has -1 where there is no label.
    names = {-1: "", **dict(enumerate(class_names))} if class_names else {}

    def write(value: Any) -> str:
        if isinstance(value, list):
            return TAG_SEPARATOR.join(map(write, value))
        if not names or value is None:
            return format_cell(value).strip()
        if value not in names:
            raise UserError(
                f"Column '{name}' holds the class {value}, and its schema names {len(class_names)} classes, from 0."
            )
        return str(names[value])

    return [write(value) for part in parts for value in _read_part(part, name).to_pylist()]


def _name_images(parts: Sequence[_Part], field: Any) -> list[str]:
    """The names of the files that the images once were, if each has one of its own; else the numbers of the rows."""
    from pyarrow import types

    named: list[str] = []
    if types.is_struct(field.type) and field.type.get_field_index("path") >= 0:
        for part in parts:
            paths = _read_part(part, field.name, inner="path").to_pylist()
            named += [Path(path).name for path in paths if path]
    num_rows = sum(part.num_rows for part in parts)
    if len(set(map(sample_key, named))) == num_rows:
        return named
    return [f"row-{number:07d}" for number in range(1, num_rows + 1)]
