"""CityScapes as it is published: pictures, fine labels by id or by training id, and disparity of 16 bits."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator

from distbranch.data.sources.dense.class_names import (
    CITYSCAPES_7,
    CITYSCAPES_19,
    UNLABELLED,
    list_cityscapes_ids,
    list_plain_ids,
)
from distbranch.data.sources.dense.conversions import convert_classes
from distbranch.data.sources.dense.files import read_class_ids, read_deep_grey
from distbranch.data.sources.dense.frames import DrawnValOptions, Frame, Readers
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.published import GIVE_ROOT
from distbranch.data.sources.source import Source, explain_unreadable
from distbranch.errors import UserError
from distbranch.tasks import Task

IMAGE = "leftImg8bit"
LABEL_FILES = {"ids": "labelIds", "train-ids": "labelTrainIds"}
SPLITS = ("train", "val")


class CityscapesOptions(DrawnValOptions):
    """CityScapes, the official files; its val is our test, and val is drawn from train by cities."""

    all_tasks: ClassVar = ("segmentation", "disparity")

    source: Literal["cityscapes"] = "cityscapes"
    root: Path = Field(description="Folder that holds leftImg8bit, gtFine and disparity.")
    tasks: Names = Field(all_tasks, description="Which labels become tasks.")
    classes: Annotated[Literal["7", "19"], BeforeValidator(str)] = Field(
        "19",
        description="How many classes the segmentation has: the 19 that are trained, or their 7 categories.",
    )
    labels: Literal["ids", "train-ids"] | None = Field(
        None,
        description="Which labels: `ids` (labelIds) or `train-ids` (labelTrainIds); needed where there are both.",
    )
    splits: Names = Field(
        SPLITS, description="Which of the official splits are packed: train, val (as test)."
    )

    @field_validator("splits")
    @classmethod
    def _check_splits(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if "test" in splits:
            raise ValueError(
                "should be train and val: the official labels of test are dummies, with which nothing can be learnt or scored"
            )
        if not splits or set(splits) - set(SPLITS):
            raise ValueError("should be train, val or both")
        return splits

    def open(self) -> Source:
        """Lists the pictures. Raises UserError where a task has no files, or labels of both kinds and nobody said which count."""
        labels = self._find_labels()
        frames = self._list_frames(LABEL_FILES[labels])
        # A download of its own, whose absence nobody should learn of when all is packed.
        disparity = self.root / "disparity"
        if "disparity" in self.tasks and not any(disparity.glob("*/*/*_disparity.png")):
            raise UserError(
                f"No *_disparity.png was found in {disparity}. Get the disparities, or name with --tasks the others."
            )
        names = CITYSCAPES_19 if self.classes == "19" else CITYSCAPES_7
        class_of = list_cityscapes_ids(len(names))
        if labels == "train-ids":
            class_of = list_plain_ids(len(names), unlabelled=UNLABELLED)
        return self.make_source(
            [
                Task("segmentation", "segmentation", names),
                Task("disparity", "depth", quantity="disparity"),
            ],
            frames,
            Readers(
                image=Path.read_bytes,
                labels={
                    "segmentation": partial(_read_classes, class_of=class_of),
                    # As published: 0 is none, else (value - 1) / 256 pixels.
                    "disparity": read_deep_grey,
                },
            ),
            num_samples=len(frames),
            notes={"disparity": "(value - 1) / 256 pixels of the camera of 2048 columns"},
        )

    def _find_labels(self) -> str:
        """`ids` or `train-ids`, whichever lies there or is asked for."""
        if "segmentation" not in self.tasks:
            return "ids"
        found = [
            name
            for name, file in LABEL_FILES.items()
            if any(self.root.glob(f"gtFine/*/*/*_gtFine_{file}.png"))
        ]
        if self.labels is None and len(found) > 1:
            raise UserError(
                f"{self.root / 'gtFine'} holds labelIds and labelTrainIds, which number the classes differently. "
                "Say which count: --labels (labels) ids or train-ids."
            )
        if not found or self.labels not in (None, *found):
            files = " or ".join(LABEL_FILES.values())
            raise UserError(
                f"No {LABEL_FILES.get(self.labels or '', files)} was found in {self.root / 'gtFine'}. Get the labels (gtFine), "
                "or name with --tasks the others."
            )
        labels = self.labels or found[0]
        if labels == "train-ids" and self.classes == "7":
            raise UserError(
                "The 7 categories need labelIds, for labelTrainIds lack some of their parts. Give --labels ids, or --classes 19."
            )
        return labels

    def _list_frames(self, label_file: str) -> list[Frame]:
        frames = []
        for name in self.splits:
            folder = self.root / IMAGE / name
            with explain_unreadable(str(folder)):
                images = sorted(folder.glob(f"*/*_{IMAGE}.png"))
            if not images:
                raise UserError(
                    f"No *_{IMAGE}.png was found in the cities of {folder}. {GIVE_ROOT}"
                )
            for image in images:
                city = image.parent.name
                stem = image.name.removesuffix(f"_{IMAGE}.png")
                labels = self.root / "gtFine" / name / city / f"{stem}_gtFine_{label_file}.png"
                disparity = self.root / "disparity" / name / city / f"{stem}_disparity.png"
                # Everybody reports the official val, so nothing may be chosen on it.
                split = self.draw_train_or_val(city) if name == "train" else "test"
                places = {"segmentation": labels, "disparity": disparity}
                frames.append(Frame(str(image), stem, split, image, places))
        return frames


def _read_classes(path: Path, class_of: Mapping[int, int]) -> NDArray[np.uint8]:
    return convert_classes(read_class_ids(path), class_of)
