"""Surface normals out of depth, for NYUv2's own file, which has none: the plane that fits best in a window around each pixel."""

import numpy as np

from distbranch.data.sources.dense.files import Array

# Of the colour camera of NYUv2, in pixels: to the right and down.
FOCAL_LENGTHS = (518.86, 519.47)
CENTRE = (325.58, 253.74)
WINDOW = 11
MIN_SHARE = (
    0.5  # of the window's pixels that have depth; across larger holes the plane would be a guess
)


def fit_normals(depth: Array) -> Array:
    """Unit normals [H, W, 3] of depth [H, W] in metres (0: none): x right, y up, z towards the camera; 0 where there is none.

    The plane n X = 1 through the points X of the window, by least squares: (sum of X X^T) n = sum of X.
    """
    from scipy.ndimage import uniform_filter  # slow to load, and hardly ever needed

    # The points in our axes; the camera stands at 0 and looks along -z.
    rows, columns = np.indices(depth.shape)
    metres = np.asarray(depth, dtype=np.float64)
    x = (columns - CENTRE[0]) * metres / FOCAL_LENGTHS[0]
    y = (CENTRE[1] - rows) * metres / FOCAL_LENGTHS[1]
    points = np.stack([x, y, -metres], axis=2)

    # Points without depth are 0 and add nothing.
    size = (WINDOW, WINDOW, 1)
    sums = uniform_filter(points, size, mode="constant")
    products = points[..., :, None] * points[..., None, :]
    squares = uniform_filter(products, (*size, 1), mode="constant")
    # At the border, of the pixels that are in the picture.
    share = uniform_filter((metres > 0).astype(np.float64), WINDOW, mode="nearest")
    valid = (metres > 0) & (share >= MIN_SHARE)

    # A plane through the camera has no such n; a little on the diagonal keeps its equations solvable.
    traces = np.trace(squares[valid], axis1=1, axis2=2)
    squares = squares[valid] + 1e-12 * traces[:, None, None] * np.eye(3)
    solved = np.linalg.solve(squares, sums[valid][..., None])[..., 0]
    normals = np.zeros(points.shape)
    # n points away from the camera, for n X is 1.
    normals[valid] = -solved / np.linalg.norm(solved, axis=1, keepdims=True)
    return normals
