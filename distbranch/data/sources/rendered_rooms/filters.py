"""Small filters on pictures [..., H, W]: borders are repeated."""

import numpy as np

from distbranch.data.sources.rendered_rooms.scene import Floats


def blur(picture: Floats) -> Floats:
    """The binomial filter of 3x3 pixels, [1, 2, 1] / 4 in either direction."""
    rows = _add_rows(picture)
    return _add_rows(rows.swapaxes(-1, -2)).swapaxes(-1, -2) / 16


def differentiate(picture: Floats) -> tuple[Floats, Floats]:
    """Sobel's slopes of a picture [H, W] per pixel, to the right and downward."""
    across = _subtract_rows(_add_rows(picture).T).T / 8
    down = _subtract_rows(_add_rows(picture.T).T) / 8
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


def _add_rows(picture: Floats) -> Floats:
    """[1, 2, 1] downward."""
    result = 2 * picture
    result[..., 1:, :] += picture[..., :-1, :]
    result[..., :-1, :] += picture[..., 1:, :]
    result[..., 0, :] += picture[..., 0, :]
    result[..., -1, :] += picture[..., -1, :]
    return result


def _subtract_rows(picture: Floats) -> Floats:
    """[-1, 0, 1] downward."""
    result = np.empty_like(picture)
    result[1:-1] = picture[2:] - picture[:-2]
    result[0] = picture[1] - picture[0]
    result[-1] = picture[-1] - picture[-2]
    return result
