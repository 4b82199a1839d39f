"""From the conventions of published labels to the one in which labels are stored; what cannot be right is refused.

Each function gives the codes [H, W] or [H, W, 3] that `distbranch.data.label_maps` encodes. Errors are the second half of a
sentence: `frames.py` puts the file before it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from distbranch.data.images import BrokenImageError
from distbranch.data.sources.dense.files import Array
from distbranch.errors import UserError
from distbranch.kinds.depth import encode_depth
from distbranch.kinds.heat import encode_heat
from distbranch.kinds.normals import encode_normals
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

AS_GIVEN = "axes as in the files, which do not say which they are"  # a note for dataset.json
MIN_LENGTH = (
    0.5  # a colour near grey has no direction: AdaShare's files hold such pixels of length 0.007
)
LENGTHS = (0.9, 1.1)  # of unit vectors that were rounded or resized
# (n + 1) / 2 and bytes that were not decoded have hardly a quarter of their pixels within LENGTHS, vectors that were resized nearly all.
MIN_UNIT_SHARE = 0.75
MAX_CODE = 65_535  # of 16 bits


def _parse_axes(value: Any) -> Any:
    axes = value.split(",") if isinstance(value, str) else value
    if not isinstance(axes, list | tuple):
        return axes
    axes = tuple(str(axis).strip().removeprefix("+") for axis in axes)
    # Here, for pydantic would ask for the third of two in words of its own.
    if sorted(axis.removeprefix("-") for axis in axes) != ["x", "y", "z"]:
        raise ValueError(
            "should say which of the file's axes are x (right), y (up) and z (towards the camera), "
            "each once and with - where it is turned: x,z,-y for instance"
        )
    return axes


# Where our x, y and z lie among the axes of a file.
NormalAxes = Annotated[tuple[str, str, str], BeforeValidator(_parse_axes)]


def convert_classes(ids: Array, class_of: Mapping[int, int]) -> NDArray[np.uint8]:
    """The class of every id [H, W], 255 where it is not labelled. Raises UserError for an id that is not listed."""
    found, places = np.unique(ids, return_inverse=True)
    unknown = [value for value in found.tolist() if value not in class_of]
    if unknown:
        raise UserError(
            f"the class ids {_describe_ids(class_of)} alone should stand there, found {unknown[0]:g}. "
            "Are these other labels, or were they resized with mixing?"
        )
    classes = np.array([class_of[value] for value in found.tolist()], dtype=np.uint8)
    return classes[places].reshape(ids.shape)


def _describe_ids(ids: Iterable[int]) -> str:
    """`0 to 39, 255`."""
    runs: list[list[int]] = []  # the first and the last of neighbours
    for value in sorted(ids):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = []
    for first, last in runs:
        texts.append(str(first) if first == last else f"{first} to {last}")
    return ", ".join(texts)


def convert_metres(task: Task, metres: Array, invalid: float = 0) -> NDArray[np.uint16]:
    """Depth [H, W] in metres; `invalid`, 0 and what is no finite number are not labelled."""
    valid = np.isfinite(metres) & (metres > 0) & (metres != invalid)
    largest = float(metres.max(initial=0, where=valid))
    limit = MAX_CODE / task.scale
    if largest > limit:
        raise UserError(
            f"depth in metres, up to {limit:g}, should stand there, found {largest:.5g}. Is it in millimetres?"
        )
    codes: NDArray[np.uint16] = encode_depth(task, np.where(valid, metres, 0), valid)
    return codes


def decode_colours(colours: NDArray[np.uint8]) -> Array:
    """Vectors [H, W, 3] of bytes (n + 1) * 127.5; 0 where there is none: white, black, and near grey."""
    vectors = colours / 127.5 - 1
    lengths = np.linalg.norm(vectors, axis=2)
    is_direction = (lengths >= MIN_LENGTH) & (colours.min(axis=2) < 255) & (colours.max(axis=2) > 0)
    vectors[~is_direction] = 0
    return vectors


def convert_normals(vectors: Array, axes: tuple[str, str, str] | None) -> NDArray[np.uint8]:
    """Normals [H, W, 3] whose axes are read as `axes` says, or kept if nobody knows them (None); 0 is not labelled.

    Raises UserError where most lengths are not 1, or (of known axes) most normals point away from the camera, which no surface
    that is seen does.
    """
    lengths = np.linalg.norm(vectors, axis=2)
    valid = np.isfinite(lengths) & (lengths > 0)
    if not valid.any():
        return np.zeros(vectors.shape, dtype=np.uint8)
    is_unit = (lengths >= LENGTHS[0]) & (lengths <= LENGTHS[1])
    if is_unit[valid].mean() < MIN_UNIT_SHARE:
        raise UserError(
            f"normals of length 1 should stand there, found {np.median(lengths[valid]):.3g} in the median. "
            "Were they stored as colours?"
        )
    turned = vectors if axes is None else turn_axes(vectors, axes)
    if axes is not None and points_away(turned):
        raise UserError(
            "normals that point towards the camera should stand there, found that most point away from it, as in a mirrored file. "
            "Say with --normal-axes (normal_axes) which axes are x (right), y (up) and z (towards the camera): x,z,-y for instance"
        )
    unit = np.where(valid[..., None], turned / np.where(valid, lengths, 1)[..., None], 0)
    codes: NDArray[np.uint8] = encode_normals(unit, valid)
    return codes


def turn_axes(vectors: Array, axes: tuple[str, str, str]) -> Array:
    """Vectors [H, W, 3] in our axes, which are found in the file's by `axes`."""
    columns = ["xyz".index(axis.removeprefix("-")) for axis in axes]
    signs = [-1.0 if axis.startswith("-") else 1.0 for axis in axes]
    turned: Array = vectors[..., columns] * np.array(signs)
    return turned


def points_away(vectors: Array) -> bool:
    """Whether most of the normals [H, W, 3] in our axes point away from the camera."""
    num_away = np.count_nonzero(vectors[..., 2] < 0)
    return bool(2 * num_away > np.count_nonzero(np.any(vectors, axis=2)))


def warn_of_first_axes(files: Iterable[Path], read_vectors: Callable[[Path], Array]) -> None:
    """Tells where the normals of the first file, of unknown axes, cannot be in ours."""
    first = next(filter(Path.exists, files), None)
    if first is None:
        return
    # What is wrong with the file is told when all are read.
    with suppress(BrokenImageError, UserError):
        if points_away(read_vectors(first)):
            logger.warning(
                "%s: most normals point away from the camera if the axes of these files are ours, and they are kept as they are. "
                "Say with --normal-axes which are x (right), y (up) and z (towards the camera) before comparing angles with others.",
                first,
            )


def convert_heat(values: Array, highest: float) -> NDArray[np.uint8]:
    """Edges or keypoints [H, W], of which `highest` and all above become 1."""
    shares = (values / highest).clip(0, 1)
    codes: NDArray[np.uint8] = encode_heat(shares, np.ones(values.shape, dtype=bool))
    return codes
