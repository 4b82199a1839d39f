"""Folders of classes, ROOT/CLASS/photo.jpg or ROOT/{train,val,test}/CLASS/photo.jpg: a table of one column, read like any other."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import open_images
from distbranch.data.images import SUFFIXES
from distbranch.data.sources.csv import CsvOptions
from distbranch.data.sources.label_options import LearntOptions
from distbranch.data.sources.label_table import open_table
from distbranch.data.sources.label_text import fold_text
from distbranch.data.sources.like import list_names
from distbranch.data.sources.option_values import Name, Names
from distbranch.data.sources.source import SPLIT_OF_NAME, Source
from distbranch.data.sources.tables import Problems, Table

logger = logging.getLogger("distbranch")

IMAGE, SPLIT = "(image)", "(split)"  # columns, of which no task has the name

Paths = Mapping[str, Sequence[str]]  # by the name of an image its path below the root


class FolderOptions(LearntOptions):
    """A folder per class."""

    source: Literal["folder"] = "folder"
    root: Path = Field(
        description="Folder, .zip or .tar that has a folder per class, or train, val and test with a folder per class in each."
    )
    task: Name = Field("class", description="Name of the task whose classes the folders are.")
    one_task_per_class: Names = Field(
        (),
        description="That name, if every class is to be a binary task, so that classes can branch apart.",
    )

    def open(self) -> Source:
        """Lists the images. Raises UserError with all that is not in order."""
        images = open_images(self.root)
        problems = Problems(self.root)
        found = _list_images(sorted(images.names()))
        paths, is_split = _find_splits(found, problems)
        columns: dict[str, Sequence[str]] = {
            IMAGE: list(paths),
            self.task: [path[1 if is_split else 0] for path in paths.values()],
        }
        if is_split:
            columns[SPLIT] = [SPLIT_OF_NAME[path[0].casefold()] for path in paths.values()]
        _check_classes(columns[self.task], problems, is_like=self.like is not None)
        problems.raise_all()

        given = self.model_dump(include=self.model_fields_set - {"source", "root", "task"})
        options = CsvOptions(
            **given,
            images=self.root,
            table=self.root,
            image_column=IMAGE,
            split_column=SPLIT if is_split else None,
            as_written=(self.task,),  # a class may well be called `none`
        )
        table = Table(self.root, list(columns), columns, range(1, len(paths) + 1), "file")
        return open_table(options, table, problems, images, self.describe())


def _list_images(names: Sequence[str]) -> dict[str, Sequence[str]]:
    """The images by name, with their paths below the folder in which there is more than one; what is none is told."""
    visible = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    paths: dict[str, Sequence[str]] = {}
    others = []
    for name in visible:
        if name.lower().endswith(SUFFIXES):
            paths[name] = name.split("/")
        else:
            others.append(name)
    if others:
        logger.warning(
            "%d file(s) are left out, for by their names they are no images (%s): %s.",
            len(others),
            " ".join(SUFFIXES),
            list_names(others),
        )
    # An archive often holds one folder with all the others.
    while len({path[0] for path in paths.values()}) == 1 and min(map(len, paths.values())) > 2:
        if next(iter(paths.values()))[0].casefold() in SPLIT_OF_NAME:
            break
        paths = {name: path[1:] for name, path in paths.items()}
    return paths


def _find_splits(paths: Paths, problems: Problems) -> tuple[Paths, bool]:
    """The images in folders of classes, and whether these lie in train, val and test; images elsewhere are `problems`."""
    splits = {path[0] for path in paths.values() if path[0].casefold() in SPLIT_OF_NAME}
    # A class may be called test: no split has images without a folder around them.
    if all(len(path) < 3 for path in paths.values() if path[0] in splits):
        splits = set()
    depth = 3 if splits else 2
    beside = [name for name, path in paths.items() if len(path) < depth]
    if beside:
        problems.add(
            f"{len(beside):,} image(s) lie in no folder of a class: {list_names(beside)}",
            "Have a folder for each class, or a table of what they show for `data pack csv`.",
        )
    classes = sorted({path[0] for path in paths.values()} - splits)
    if splits and classes:
        problems.add(
            f"beside {' and '.join(sorted(splits))} there are folders that are no split: {list_names(classes)}",
            "Have train, val and test with the same folders of classes in each, or folders of classes alone.",
        )
    if not paths:
        problems.add("it holds no image", "Have a folder with images for each class.")
    placed = {name: path for name, path in paths.items() if len(path) >= depth}
    if splits:
        placed = {name: path for name, path in placed.items() if path[0] in splits}
    return placed, bool(splits)


def _check_classes(classes: Sequence[str], problems: Problems, *, is_like: bool) -> None:
    first: dict[str, str] = {}
    for name in dict.fromkeys(classes):
        same = first.setdefault(fold_text(name), name)
        if same != name:
            problems.add(
                f"the folders '{same}' and '{name}' differ only in how they are written",
                "Make them one.",
            )
    if len(set(classes)) == 1 and not is_like:
        problems.add(
            f"'{classes[0]}' is its only class", "Have a folder with images for each class."
        )
