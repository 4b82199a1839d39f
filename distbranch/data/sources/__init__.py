"""Sources of labelled images by name; the command line and the section `data.pack` of a config choose from here."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from distbranch.data.pack import COPIES_FILE, LEFT_OUT_FILE, SPLITS, describe_copies, pack
from distbranch.data.shards import DatasetInfo, list_dense_tasks
from distbranch.data.sources.celeba import CelebaOptions
from distbranch.data.sources.csv import CsvOptions
from distbranch.data.sources.deepfashion import DeepFashionOptions
from distbranch.data.sources.dense.adashare_nyuv2 import AdaShareNyuV2Options
from distbranch.data.sources.dense.cityscapes import CityscapesOptions
from distbranch.data.sources.dense.mtan import MtanCityscapesOptions, MtanNyuV2Options
from distbranch.data.sources.dense.nyud_mt import NyudMtOptions
from distbranch.data.sources.dense.nyuv2 import NyuV2Options
from distbranch.data.sources.dense.taskonomy import TaskonomyOptions
from distbranch.data.sources.folder import FolderOptions
from distbranch.data.sources.hugging_face import HuggingFaceOptions
from distbranch.data.sources.rendered_faces import RenderedFacesOptions
from distbranch.data.sources.rendered_rooms import RenderedRoomsOptions
from distbranch.data.sources.source import Source, SourceOptions, as_typed
from distbranch.errors import UsageError
from distbranch.kinds.map_counts import PERCENTS, read_quantiles
from distbranch.registry import find_near

Options = TypeVar("Options", bound=SourceOptions)

logger = logging.getLogger("distbranch")

ODD_METRES = (0.1, 100.0)  # what is nearer or farther no camera of these data sets measures
LARGE = 256  # pixels of a side; above it training is slow without need

SOURCES: dict[str, type[SourceOptions]] = {
    "csv": CsvOptions,
    "folder": FolderOptions,
    "hf": HuggingFaceOptions,
    "celeba": CelebaOptions,
    "deepfashion": DeepFashionOptions,
    "rendered-faces": RenderedFacesOptions,
    "rendered-rooms": RenderedRoomsOptions,
    "nyuv2": NyuV2Options,
    "adashare-nyuv2": AdaShareNyuV2Options,
    "mtan-nyuv2": MtanNyuV2Options,
    "nyud-mt": NyudMtOptions,
    "cityscapes": CityscapesOptions,
    "mtan-cityscapes": MtanCityscapesOptions,
    "taskonomy": TaskonomyOptions,
}


def parse_options(values: Mapping[str, Any]) -> SourceOptions:
    """The options of `values["source"]`; text is read as typed (`64x48`, `a,b`). Raises UsageError."""
    name = values.get("source")
    if name not in SOURCES:
        raise UsageError(f"The source should be one of {', '.join(SOURCES)}, found {name!r}.")
    return validate_options(SOURCES[name], values)


def validate_options(options: type[Options], values: Mapping[str, Any]) -> Options:
    """Options of one kind from text. Raises UsageError."""
    try:
        return options.model_validate(dict(values))
    except ValidationError as error:
        name = options.model_fields["source"].default
        raise UsageError(f"Source {name}", problems=_explain_errors(error, options)) from None


def pack_source(
    source: Source,
    out: str | os.PathLike[str],
    *,
    shard_samples: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Packs an opened source into the new folder `out`; see `pack`. Warns of what training would stumble over."""
    info = pack(
        source.samples,
        out,
        source.tasks,
        groups=source.groups,
        source=source.description,
        left_out=source.left_out,
        shard_samples=shard_samples,
        progress=progress,
    )
    for remark in list_remarks(info):
        logger.warning(remark)
    return info


def list_remarks(info: DatasetInfo) -> Iterator[str]:
    """What is odd about a new data set, and what training would stumble over."""
    height, width = info.image_size
    is_packed = info.source.get("source") != "index"  # of others it was said already
    if is_packed and max(height, width) > LARGE and info.source.get("image_size") is None:
        yield (
            f"The first image has {height}x{width} pixels, and networks train at that size unless data.image_size says another. "
            f"--image-size (image_size) packs smaller ones, 64x64 for instance."
        )
    left_out = Path(info.path) / LEFT_OUT_FILE
    if left_out.exists():
        num_left_out = sum(info.skipped.values())
        yield f"{num_left_out:,} image(s) were left out; {left_out} names them."
    if info.copies:
        yield f"{describe_copies(info.copies)}; {Path(info.path) / COPIES_FILE} names them."
    yield from _list_odd_depths(info)
    empty = [
        name for name in SPLITS if name not in info.splits or not info.splits[name].num_samples
    ]
    if empty:
        yield f"No sample is in {' and '.join(empty)}: train is what is learnt, val and test what is evaluated."


def _list_odd_depths(info: DatasetInfo) -> Iterator[str]:
    """Of depth that nobody measures, which a wrong unit makes of others."""
    for task in list_dense_tasks(info.tasks):
        for name, split in info.splits.items():
            found = dict(zip(PERCENTS, read_quantiles(split.labels[task.name]), strict=False))
            if not found or task.quantity != "depth":
                continue
            low, high = found[1], found[99]
            if low < ODD_METRES[0] or high > ODD_METRES[1]:
                yield (
                    f"Depth '{task.name}' of {name} goes from {low:g} to {high:g} m (1 and 99 % of the pixels); outside "
                    f"{ODD_METRES[0]:g} to {ODD_METRES[1]:g} m it is likely in another unit."
                )


def list_changed_options(values: Mapping[str, Any], info: DatasetInfo) -> list[str]:
    """Which of the options that `values` names made a data set otherwise, as text; where its files lay does not matter."""
    if not values or "source" not in info.source:  # packed by a program
        return []
    options = parse_options(values)
    named = json.loads(options.model_dump_json(include=options.model_fields_set))
    changed = []
    for key, value in named.items():
        packed = info.source.get(key)
        # The same files may lie elsewhere on another machine.
        is_place = isinstance(getattr(options, key), Path)
        if packed != value and not is_place:
            changed.append(f"{key}={packed} and not {value}")
    return changed


def _explain_errors(error: ValidationError, options: type[SourceOptions]) -> list[str]:
    """All that is wrong with the options; what is misspelt comes first, for it explains what is missing."""
    errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    return list(dict.fromkeys(_explain_error(one, options) for one in errors))


def _explain_error(error: Mapping[str, Any], options: type[SourceOptions]) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        near = find_near(name, options.model_fields)
        return f"there is no option {as_typed(name)}. Nearest: {', '.join(map(as_typed, near))}."
    # Deeper ones are of a part of a value.
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return f"the option {as_typed(name)} is required: {options.model_fields[name].description}"
    what = error["msg"].removeprefix("Value error, ")
    if not name:  # of several options together
        return f"{what}."
    return f"{as_typed(name)}: {what} (found {error['input']!r})."
