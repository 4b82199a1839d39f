"""Reads the files in which labels are published: grey and colour PNGs, .npy arrays, index files in JSON.

A file that is not there is a FileNotFoundError (the label is not given), one that is damaged a BrokenImageError (which
`--on-bad-image skip` leaves out), one of the wrong make a UserError: then all others are likely wrong too.
"""

import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbranch.data.images import BROKEN, DEEP_GREY, BrokenImageError
from distbranch.data.sources.source import explain_unreadable
from distbranch.errors import UserError, reason_of

Array = NDArray[Any]

IMAGES = "images"  # beside the names of tasks

# Modes of Pillow: grey, grey or ids by a palette, one bit.
SHALLOW_GREY = ("L", "P", "1")
NUMBERS = "biuf"  # of numpy's kinds of arrays; not complex


def read_class_ids(path: Path) -> Array:
    """The ids [H, W] of a grey picture, also of one with a palette, in which the numbers are ids too."""
    image = _open_png(path)
    if image.mode not in (*SHALLOW_GREY, *DEEP_GREY):
        raise UserError(
            f"a grey picture of class ids should lie there, found one of colours ({image.mode}). Give the ids and not their colours"
        )
    return np.asarray(image)


def read_deep_grey(path: Path) -> NDArray[np.uint16]:
    """The values [H, W] of a grey picture of 16 bits; one of 8 bits is refused, for it has lost what it should hold."""
    image = _open_png(path)
    if image.mode not in DEEP_GREY:
        raise UserError(
            f"a grey picture of 16 bits should lie there, found one of 8 bits ({image.mode}). Get the original: "
            "most programs cut such pictures when they save them"
        )
    return np.asarray(image).astype(np.uint16)


def read_grey(path: Path) -> Array:
    """The values [H, W] of a grey picture of 8 bits."""
    image = _open_png(path)
    if image.mode not in SHALLOW_GREY:
        raise UserError(
            f"a grey picture of 8 bits should lie there, found one of another kind ({image.mode})"
        )
    return np.asarray(image)


def read_colours(path: Path) -> NDArray[np.uint8]:
    """The bytes [H, W, 3] of a picture of 8 bits a colour."""
    image = _open_png(path)
    if image.mode != "RGB":
        raise UserError(
            f"a picture of three colours of 8 bits should lie there, found one of another kind ({image.mode})"
        )
    return np.asarray(image)


def read_array(path: Path, num_channels: int = 1) -> Array:
    """The array of a .npy file: [H, W] of one channel (a last axis of 1 is dropped), or [H, W, num_channels]."""
    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BrokenImageError(f"{path} is no .npy file of numbers ({reason_of(error)})") from None
    if array.dtype.kind not in NUMBERS:
        raise UserError(f"an array of numbers should lie there, found one of {array.dtype}")
    if num_channels == 1 and array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    expected = "[height, width]" if num_channels == 1 else f"[height, width, {num_channels}]"
    has_channels = num_channels == 1 or array.shape[-1:] == (num_channels,)
    if array.ndim != (2 if num_channels == 1 else 3) or not has_channels:
        raise UserError(f"an array {expected} should lie there, found {list(array.shape)}")
    return array


def read_array_as_picture(path: Path) -> bytes:
    """The PNG of an RGB picture [H, W, 3] of floats in 0..1."""
    array = read_array(path, 3)
    # A picture of bytes would come out white; 1.01 forgives an overshoot of resizing.
    if not np.isfinite(array).all() or array.min() < -0.01 or array.max() > 1.01:
        raise UserError(
            f"a picture of values in 0..1 should lie there, found {array.min():.3g} to {array.max():.3g}"
        )
    return encode_png(np.rint(array.clip(0, 1) * 255).astype(np.uint8))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture [H, W, 3] as the bytes of a file, without loss."""
    buffer = io.BytesIO()
    # 1: for the next step alone, which decodes it.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_index(path: Path, num_files: int) -> tuple[list[list[str]], list[list[str]]]:
    """The files of every sample of train and of test, from AdaShare's {mode: [[file, ...], ...]}; UserError for anything else."""
    with explain_unreadable(str(path)):
        content = path.read_text(encoding="utf-8")
    try:
        index = json.loads(content)
        # train1 and train2 are the parts of train from which weights and policy are learnt.
        train = index.get("train") or [*index.get("train1", []), *index.get("train2", [])]
        test = index.get("test") or index.get("val", [])
        samples = [*train, *test]
        kinds = {type(file) for files in samples for file in files}
        is_index = bool(train and test) and kinds == {str}
        is_index &= all(type(files) is list and len(files) == num_files for files in samples)
    except (ValueError, TypeError, AttributeError):
        is_index = False
    if not is_index:
        raise UserError(
            f"{path} should be JSON that lists for train and for test (or val) {num_files} files of every sample, and it is not. "
            "Get it again from its source."
        )
    return train, test


def find_suffix(folder: Path, suffixes: Sequence[str], name: str) -> str:
    """Which of these suffixes the files of a folder have: those of a task, or the images.

    Raises UserError for none, and for more than one.
    """
    advice = "Give with --root the folder that holds the data set."
    if name != IMAGES:
        advice = "Get them, or name with --tasks the others."
    if not folder.is_dir():
        raise UserError(
            f"{folder} was not found, in which the files of '{name}' should lie. {advice}"
        )
    with explain_unreadable(str(folder)):
        found = {path.suffix for path in folder.iterdir()} & set(suffixes)
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(sorted(found))} files, which follow different conventions. Keep those of one kind."
        )
    if not found:
        raise UserError(
            f"{folder} holds no {' or '.join(suffixes)} file, which those of '{name}' should be. {advice}"
        )
    return found.pop()


def _open_png(path: Path) -> Image.Image:
    """The loaded picture, with the pixels that it stores."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (FileNotFoundError, PermissionError):
        raise
    except (*BROKEN, zlib.error) as error:
        raise BrokenImageError(f"{path} is a damaged picture ({reason_of(error)})") from None
