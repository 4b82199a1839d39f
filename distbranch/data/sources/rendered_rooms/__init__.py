"""Furnished rooms with dense labels, drawn from a seed: classes, depth, normals, edges and keypoints whose true groups are known.

On most training images a nuisance takes away what the tasks of one group need, so that they are difficult together: `TASK_GROUPS` is
what a correct affinity must find. Every sample is a pure function of (seed, split, index).
"""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from distbranch.data.label_maps import encode_map
from distbranch.data.shards import Sample
from distbranch.data.sources.dense.class_names import NYU_13
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.rendered_rooms.drawing import Drawing, draw_noise, draw_room
from distbranch.data.sources.rendered_rooms.nuisances import NUISANCES, TASK_GROUPS
from distbranch.data.sources.rendered_rooms.scene import make_generator
from distbranch.data.sources.source import Source, SourceOptions
from distbranch.kinds.depth import encode_depth
from distbranch.kinds.heat import encode_heat
from distbranch.kinds.kind import Array
from distbranch.kinds.normals import encode_normals
from distbranch.tasks import Task

JPEG_QUALITY = 95
SMALLEST = 32  # pixels of a side: below, frame and pins are most of the picture
NOISE = "noise"
TASKS = {
    "segmentation": Task("segmentation", "segmentation", classes=NYU_13),
    "depth": Task("depth", "depth"),
    "normals": Task("normals", "normals"),
    "edges": Task("edges", "heat"),
    "keypoints": Task("keypoints", "heat"),
    NOISE: Task(NOISE, "heat"),
}
GROUPS = {**TASK_GROUPS, NOISE: (NOISE,)}


class RenderedRoomsOptions(SourceOptions):
    """Rooms drawn by the program itself, so nothing has to be downloaded.

    The name of a sample ends in its nuisance, if it has one: `train-00000012-semantic`.
    """

    source: Literal["rendered-rooms"] = "rendered-rooms"
    samples: int = Field(2400, ge=1, description="Number of rooms to train on.")
    val: int = Field(400, ge=0, description="Number of rooms of the val split.")
    test: int = Field(400, ge=0, description="Number of rooms of the test split.")
    image_size: tuple[int, int] | None = Field((96, 128), description="HxW in pixels.")
    seed: int = Field(0, description="Another seed draws other rooms.")
    nuisance: float = Field(
        0.6, ge=0, le=1, description="Share of the training rooms on which one group is difficult."
    )
    eval_nuisance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The same share of val and test; 0 measures what was learnt where it can be seen.",
    )
    nuisances: Names = Field(
        NUISANCES,
        description=f"Which there are, equally often: {', '.join(NUISANCES)}.",
    )
    tasks: Names = Field(
        tuple(name for name in TASKS if name != NOISE),
        description=f"Which labels: {', '.join(TASKS)}; {NOISE} cannot be learnt.",
    )

    @field_validator("nuisances")
    @classmethod
    def _check_nuisances(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _choose_in_order(names, NUISANCES)

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _choose_in_order(names, TASKS)

    @model_validator(mode="after")
    def _check_room_size(self) -> "RenderedRoomsOptions":
        if self.image_size is None or min(self.image_size) < SMALLEST:
            raise ValueError(
                f"image_size should be HxW, each at least {SMALLEST} pixels, for rendered rooms, for instance 96x128"
            )
        return self

    def open(self) -> Source:
        """Nothing is drawn until the samples are read."""
        assert self.image_size is not None
        num_samples = {"train": self.samples, "val": self.val, "test": self.test}
        shares = {"train": self.nuisance, "val": self.eval_nuisance, "test": self.eval_nuisance}
        samples = render_samples(
            num_samples,
            image_size=self.image_size,
            seed=self.seed,
            shares=shares,
            nuisances=self.nuisances,
            tasks=self.tasks,
        )
        return Source(
            tasks=tuple(TASKS[name] for name in self.tasks),
            samples=samples,
            description=self.describe(),
            num_samples=sum(num_samples.values()),
            groups=list_groups(self.tasks),
        )


def _choose_in_order(names: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise ValueError(f"should be one or more of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def list_groups(tasks: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The planted groups of these tasks, by the nuisance that makes them difficult together.

    Example:
        >>> list_groups(["depth", "normals", "edges"])
        {'geometry': ('depth', 'normals'), 'image': ('edges',)}
    """
    groups = {}
    for nuisance, names in GROUPS.items():
        chosen = tuple(name for name in names if name in tasks)
        if chosen:
            groups[nuisance] = chosen
    return groups


def render_samples(
    num_samples: Mapping[str, int],
    *,
    image_size: tuple[int, int],
    seed: int,
    shares: Mapping[str, float],
    nuisances: Sequence[str] = NUISANCES,
    tasks: Sequence[str] = tuple(TASKS),
) -> Iterator[Sample]:
    """Rooms with their labels, split by split.

    Args:
        num_samples: number of rooms by split, for example {"train": 2400, "val": 400}.
        image_size: (height, width) in pixels.
        seed: another seed gives other rooms.
        shares: of each split the share of rooms with a nuisance, 0..1.
        nuisances: of which, each equally often.
        tasks: names of `TASKS`.

    Example:
        >>> one = next(render_samples({"val": 1}, image_size=(48, 64), seed=0, shares={"val": 0}))
        >>> one.key, list(one.maps)
        ('val-00000000', ['segmentation', 'depth', 'normals', 'edges', 'keypoints', 'noise'])
    """
    for split, number in num_samples.items():
        for index in range(number):
            nuisance = choose_nuisance(seed, split, index, shares[split], nuisances)
            yield _render_sample(seed, split, index, image_size, nuisance, tasks)


def choose_nuisance(
    seed: int, split: str, index: int, share: float, nuisances: Sequence[str]
) -> str | None:
    """The nuisance of a sample, or None; a larger share adds samples that have one and takes none away."""
    chance, choice = make_generator(seed, split, index, "which nuisance").random(2).tolist()
    return nuisances[int(choice * len(nuisances))] if chance < share else None


def _render_sample(
    seed: int,
    split: str,
    index: int,
    size: tuple[int, int],
    nuisance: str | None,
    tasks: Sequence[str],
) -> Sample:
    drawing = draw_room(seed, split, index, size=size, nuisance=nuisance)
    buffer = io.BytesIO()
    Image.fromarray(drawing.picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    codes = encode_labels(drawing)
    if NOISE in tasks:
        codes[NOISE] = encode_heat(draw_noise(seed, split, index, size), np.array(True))
    key = "-".join(filter(None, (split, f"{index:08d}", nuisance)))
    maps = {name: encode_map(TASKS[name], codes[name]) for name in tasks}
    return Sample(key=key, split=split, image=buffer.getvalue(), labels={}, maps=maps)


def encode_labels(drawing: Drawing) -> dict[str, Array]:
    """The codes of every task but noise, as they are stored."""
    everywhere = np.array(True)
    geometry = drawing.geometry
    return {
        "segmentation": drawing.segmentation,
        "depth": encode_depth(TASKS["depth"], geometry.depth, geometry.valid),
        "normals": encode_normals(geometry.normals, geometry.valid),
        "edges": encode_heat(drawing.edges, everywhere),
        "keypoints": encode_heat(drawing.keypoints, everywhere),
    }
