"""Folders of classes, ROOT/CLASS/photo.jpg or ROOT/{train,val,test}/CLASS/photo.jpg: a table of one column, read like any other."""

import logging
from collections.abc import Sequence
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

IMAGE, SPLIT = "(image)", "(split)"  # columns that no task is called like

Parts = tuple[str, ...]  # of the path of an image below the root


class FolderOptions(LearntOptions):
    """A folder per class."""

    source: Literal["folder"] = "folder"
    root: Path = Field(
        description="Folder, .zip or .tar that has a folder per class, or train, val and test with a folder per class in each."
    )
    task: Name = Field("class", description="Name of the task whose classes the folders are.")
    one_task_per_class: Names = Field(
        (),
        description="That name, where every class is to become a binary task, so that classes can branch apart.",
    )

    def open(self) -> Source:
        """Lists the images. Raises UserError for what is no folder of classes."""
        images = open_images(self.root)
        problems = Problems(self.root)
        paths = _list_images(sorted(images.names()), problems)
        has_splits = _has_splits(paths, problems)
        depth = 1 if has_splits else 0
        classes = _list_classes(paths, depth, problems, at_least=1 if self.like else 2)
        columns: dict[str, Sequence[str]] = {
            IMAGE: ["/".join(path) for path in paths],
            self.task: classes,
        }
        if has_splits:
            columns[SPLIT] = [SPLIT_OF_NAME[path[0].casefold()] for path in paths]
        table = Table(self.root, list(columns), columns, range(1, len(paths) + 1), row_word="file")
        given = self.model_dump(exclude={"source", "root", "task"})
        options = CsvOptions(
            **given,
            images=self.root,
            table=self.root,
            image_column=IMAGE,
            split_column=SPLIT if has_splits else None,
            as_written=(self.task,),  # a class may well be called `none`
        )
        return open_table(options, table, problems, images, self.describe())


def _list_images(names: Sequence[str], problems: Problems) -> list[Parts]:
    """The paths of the images; what hangs in the root alone is refused, what is no image by its name is told."""
    visible = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    images = [name for name in visible if name.lower().endswith(SUFFIXES)]
    others = [name for name in visible if not name.lower().endswith(SUFFIXES)]
    if others:
        logger.warning(
            "%d file(s) are no images by their names (%s) and are left out: %s.",
            len(others),
            " ".join(SUFFIXES),
            list_names(others),
        )
    paths = [tuple(name.split("/")) for name in images]
    # A zip often holds one folder with all the others.
    while paths and len({path[0] for path in paths}) == 1 and min(map(len, paths)) > 2:
        if paths[0][0].casefold() in SPLIT_OF_NAME:
            break
        paths = [path[1:] for path in paths]
    return paths
