"""Small filters on pictures [..., H, W]: borders are repeated."""

import numpy as np

from distbranch.data.sources.rendered_rooms.scene import Floats


def blur(picture: Floats) -> Floats:
    """The binomial filter of 3x3 pixels, [1, 2, 1] / 4 in either direction."""
    padded = _pad(picture)
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


def differentiate(picture: Floats) -> tuple[Floats, Floats]:
    """Sobel's slopes per pixel to the right and downward."""
    padded = _pad(picture)
    smooth = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    across = (smooth[..., 2:] - smooth[..., :-2]) / 8
    steep = padded[..., 2:, :] - padded[..., :-2, :]
    down = (steep[..., :-2] + 2 * steep[..., 1:-1] + steep[..., 2:]) / 8
    return across, down


def double_size(picture: Floats, size: tuple[int, int]) -> Floats:
    """Twice as many pixels (of an odd `size` one less), those between the given ones by linear interpolation."""
    height, width = size
    return _interleave(_interleave(picture, height).T, width).T


def _interleave(lines: Floats, number: int) -> Floats:
    result = np.empty((2 * len(lines), *lines.shape[1:]), lines.dtype)
    result[::2] = lines
    result[1:-1:2] = (lines[:-1] + lines[1:]) / 2
    result[-1] = lines[-1]
    return result[:number]


def _pad(picture: Floats) -> Floats:
    widths = [(0, 0)] * (picture.ndim - 2) + [(1, 1), (1, 1)]
    return np.pad(picture, widths, mode="edge")
