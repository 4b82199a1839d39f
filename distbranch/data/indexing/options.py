"""What a person says of tars that others made: where the labels are, what they mean, and which tar is in which split."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from distbranch.data.indexing.label_files import SEPARATOR, LabelFile, is_table
from distbranch.data.pack import SPLITS
from distbranch.data.sources.columns import KIND_OPTIONS
from distbranch.data.sources.label_options import ColumnOptions
from distbranch.data.sources.label_text import tidy_text
from distbranch.data.sources.option_values import Name, Names
from distbranch.errors import UserError, reason_of


def _parse_patterns(value: Any) -> Any:
    """`train=train-*,train=extra-*,val=val-*` as the patterns of every split."""
    patterns: dict[str, list[str]] = {}
    for text in value.split(","):
        name, _, pattern = text.partition("=")
        if name.strip() not in SPLITS or not pattern:
            raise ValueError(
                f"should be {', '.join(SPLITS)} with names of tars, as train='train-*',val='val-*'"
            )
        patterns.setdefault(name.strip(), []).append(pattern)
    return patterns


class IndexOptions(ColumnOptions):
    """Tars of WebDataset that others made: KEY.jpg (.jpeg, .png, .webp) and files with labels, or a table of them by key."""

    source: Literal["index"] = "index"
    image_size: tuple[int, int] | None = Field(
        None,
        description="HxW in pixels in which networks see all images, unless data.image_size says another; that of the first if empty.",
    )
    labels: Names = Field(
        description="Where labels are: what their files end with (json:attributes.colour, cls, txt), or a table (labels.parquet, .csv, "
        ".xlsx); several with commas."
    )
    key_column: Name = Field(
        "key",
        description="Column of such a table with the keys of the samples (or names of their files).",
    )
    mapping: Path | None = Field(
        None,
        description="YAML with the tasks: `TASK: {from: COLUMN, kind: ..., values: {...}, classes: [...], unit: ...}`.",
    )
    split: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_parse_patterns)] = Field(
        {}, description="Splits by names of tars: train='train-*',val='val-*'."
    )
    image_suffix: Name | None = Field(
        None, description="What the file of the image ends with, where a sample has several."
    )

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not is_table(text):
                LabelFile.parse(text)
        return value

    @field_validator("bits")
    @classmethod
    def _refuse_bits(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError("says how images of 16 bits are packed; these are read as they are")
        return value

    @property
    def label_files(self) -> list[LabelFile]:
        """Those of the places of labels that are in the tars."""
        return [LabelFile.parse(text) for text in self.labels if not is_table(text)]

    @property
    def tables(self) -> list[Path]:
        """Those that are tables beside them."""
        return [Path(text) for text in self.labels if is_table(text)]

    def find_splits(self, place: str) -> list[str]:
        """The splits whose patterns the name of a tar fits; a pattern with folders is compared with its last folders too."""
        path = PurePosixPath(place.partition("?")[0])
        return [name for name, patterns in self.split.items() if any(map(path.match, patterns))]


class MappedTask(BaseModel):
    """What a task is made from, as it stands in the YAML of `--mapping`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field("", alias="from")
    kind: str = ""
    values: dict[str, str] = {}
    classes: tuple[str, ...] = ()
    unit: str = ""

    @field_validator("values", mode="before")
    @classmethod
    def _number_values(cls, value: Any) -> Any:
        # A list names the classes 0, 1, ...
        if isinstance(value, list):
            return {str(number): name for number, name in enumerate(value)}
        return value


def read_mapping(path: Path) -> dict[str, MappedTask]:
    """The tasks of a mapping by their names. Raises UserError that names everything that is wrong."""
    try:
        # All values as they are written: `no` is a text, and 1 too.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The mapping {path} cannot be read: {reason_of(error)}.") from None
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"The mapping {path} should have a line per task, `TASK: {{from: COLUMN, kind: categorical}}`."
        )
    tasks, problems = {}, []
    for name, said in content.items():
        try:
            task = MappedTask.model_validate({} if said == "" else said)
        except ValidationError as error:
            for one in error.errors():
                where = ".".join(map(str, (name, *one["loc"])))
                problems.append(f"{where}: {one['msg']}")
            continue
        if task.classes and task.kind != "ordinal":
            problems.append(
                f"{name}.classes is the order of an ordinal task; names of classes are its values"
            )
        if task.kind == "ordinal" and len(task.classes) < 2:
            problems.append(f"{name}.classes should give the order, lowest first")
        if task.unit and task.kind != "number":
            problems.append(f"{name}.unit is of a number")
        tasks[tidy_text(name)] = task
    if problems:
        what = f"The mapping {path} (from, kind, values, classes, unit)"
        raise UserError(what, problems=[f"{problem}." for problem in problems])
    return tasks


def apply_mapping(options: IndexOptions, mapping: Mapping[str, MappedTask]) -> dict[str, Any]:
    """The options of columns with what a mapping says of them."""
    said: dict[str, Any] = {name: getattr(options, name) for name in (*KIND_OPTIONS, "unit")}
    for name, task in mapping.items():
        kind = task.kind.replace("-", "_")
        if not kind and not task.values and task.column in list_class_numbers(options):
            kind = "categorical"
        if kind in ("categorical", "one_task_per_class", "tags", "number"):
            said[kind] = (*said[kind], name)
        elif kind == "ordinal":
            said["ordinal"] = said["ordinal"] | {name: task.classes}
        elif kind not in ("", "binary"):
            said["kind"] = said["kind"] | {name: task.kind}
        if task.unit:
            said["unit"] = said["unit"] | {name: task.unit}
    return said


def list_class_numbers(options: IndexOptions) -> list[str]:
    """The columns of `cls` files, which hold numbers of classes."""
    return [one.suffix for one in options.label_files if one.suffix.rpartition(".")[2] == "cls"]


def choose_column_options(
    options: IndexOptions, mapping: Mapping[str, MappedTask]
) -> dict[str, Any]:
    """All options of the table of labels."""
    # Those that were given: others may come from --like.
    given = options.model_fields_set & ColumnOptions.model_fields.keys()
    shared = {name: getattr(options, name) for name in given - {"source"}}
    shared |= apply_mapping(options, mapping)
    listed = {name for kind in KIND_OPTIONS for name in shared[kind]}
    if not mapping:
        own = [name for name in list_class_numbers(options) if name not in listed]
        shared["categorical"] = (*shared["categorical"], *own)
    # A list in JSON is one of tags.
    shared["separator"] = options.separator or (SEPARATOR if shared["tags"] else None)
    if options.split:
        shared["split_column"] = "split"
    return shared
