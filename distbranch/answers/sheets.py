"""Photographs with what they are and what was answered, as sheets in the style of `data show`."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas
from PIL import Image

from distbranch.config import DataConfig
from distbranch.data.contact_sheet import draw_sheet
from distbranch.data.mixture import member_names
from distbranch.data.plan import Plan
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shards import DatasetInfo
from distbranch.engine.loaders import open_cache
from distbranch.kinds import KINDS
from distbranch.kinds.categorical import Categorical
from distbranch.kinds.digits import write_digits
from distbranch.kinds.kind import Array
from distbranch.tasks import Task

COLUMNS = 6
NUM_PICTURES = 12  # of a sheet
QUALITY = 88


class ReadImage(Protocol):
    """Reads the image of a place: a row with split, dataset and position."""

    def __call__(self, place: Any) -> Image.Image: ...  # noqa: D102


@contextmanager
def open_images(info: DatasetInfo, data: DataConfig) -> Iterator[ReadImage]:
    """Gives what reads single images of data sets; shards that were read from stay open until the end."""
    members = dict(zip(member_names(info), info.members, strict=True))
    opened: dict[tuple[str, str], tuple[Plan, ShardReader]] = {}
    with ExitStack() as stack:

        def read_image(place: Any) -> Image.Image:
            member = members[place.dataset]
            if (place.dataset, place.split) not in opened:
                source = ShardSource.from_split(member, place.split)
                reader = ShardReader([source], open_cache(info, data), max_open=2)
                order = Plan([shard.num_samples for shard in source.shards], seed=None, window=1)
                opened[place.dataset, place.split] = order, stack.enter_context(closing(reader))
            plan, reader = opened[place.dataset, place.split]
            ((shard, sample, *_),) = plan.list_places(place.position, place.position + 1)
            pixels, _ = reader.open_shard(shard).read_pixels(
                sample, member.tasks, info.image_size, data.decoder
            )
            return Image.fromarray(pixels)

        yield read_image


def write_sheet(
    file: Path,
    title: str,
    places: pandas.DataFrame,
    lines: Sequence[Sequence[str]],
    read_image: ReadImage,
) -> None:
    """Write the images of these places, in their order, each with its key and its lines, as JPEG."""
    cards = []
    for place, below in zip(places.itertuples(), lines, strict=True):
        cards.append((read_image(place), [place.key, *below]))
    draw_sheet(title, cards, COLUMNS).save(file, "JPEG", quality=QUALITY)


def describe_label(task: Task, label: float) -> str:
    """A label for people, also one that says no."""
    if KINDS[task.kind].is_share:
        return "yes" if label >= 0.5 else "no"
    if task.classes:
        return task.classes[int(label)]
    return f"{write_digits(label, 4)} {task.unit}".rstrip()


def describe_answer(task: Task, scores: Array, threshold: float = 0.5) -> str:
    """What is answered by scores [K], yes from the threshold on, with the probability of just that."""
    kind = KINDS[task.kind]
    if kind.is_share:
        share = float(scores[0])
        return f"yes ({share:.0%})" if share >= threshold else f"no ({1 - share:.0%})"
    if isinstance(kind, Categorical):
        chosen = int(kind.choose_classes(np.asarray(scores)[None])[0])
        return f"{task.classes[chosen]} ({scores[chosen]:.0%})"
    return describe_label(task, float(scores[0]))
