"""How colours vary over surfaces: functions of the place on the surface, in metres or as a share of the face.

Every texture takes a `Patch`, all pixels that bear it at once, and returns the reflected colour [3, n].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distbranch.data.sources.rendered_rooms.raycast import Hits
from distbranch.data.sources.rendered_rooms.scene import Floats, Ints, Scene, Texture

BLACK = (0.02, 0.02, 0.025)
WHITE = (0.82, 0.81, 0.78)
BOOK_COLOURS = (
    (0.45, 0.08, 0.06),
    (0.06, 0.16, 0.36),
    (0.08, 0.28, 0.14),
    (0.66, 0.52, 0.18),
    (0.70, 0.64, 0.52),
    (0.30, 0.10, 0.30),
    (0.75, 0.30, 0.08),
    (0.12, 0.38, 0.42),
)
PAINT = (
    (0.78, 0.22, 0.10),
    (0.90, 0.66, 0.14),
    (0.10, 0.36, 0.52),
    (0.12, 0.44, 0.30),
    (0.80, 0.74, 0.60),
    (0.14, 0.13, 0.24),
    (0.62, 0.20, 0.36),
    (0.34, 0.60, 0.72),
)
BALL = ((0.80, 0.10, 0.08), (0.85, 0.83, 0.78), (0.08, 0.25, 0.62), (0.90, 0.70, 0.10))


@dataclass(frozen=True)
class Patch:
    """Pixels that bear the same texture. `a`, `b` are `u`, `v` as shares of the face, -1..1; faces face along `axis`."""

    colour: Floats  # [3, n]
    u: Floats  # [n] metres along the face
    v: Floats  # [n] metres up the face
    a: Floats  # [n]
    b: Floats  # [n]
    axis: Ints  # [n]
    local: Floats  # [3, n] in the unit shape
    phase: Ints  # [n] another for every primitive


def colour_surfaces(scene: Scene, hits: Hits) -> tuple[Floats, Floats]:
    """The reflected colour [3, N] and the emission [N] of what the pixels see."""
    colour = scene.colour.take(hits.primitive, axis=1)
    emission = scene.emission[hits.primitive]
    texture = scene.texture[hits.primitive]
    for kind in np.unique(scene.texture).tolist():
        pixels = np.flatnonzero(texture == kind)
        if kind == Texture.PLAIN or not len(pixels):
            continue
        patch = _cut_patch(scene, hits, colour, pixels)
        colour[:, pixels] = TEXTURES[Texture(kind)](patch)
        if kind in (Texture.WINDOW, Texture.SCREEN):
            # Frames do not shine.
            emission[pixels[~_in_pane(patch)]] = 0
    return colour, emission


def locate_on_faces(hits: Hits) -> tuple[Floats, Floats]:
    """Across and up the face of every pixel, in metres [N] each."""
    return _unroll(hits.axis, hits.local * hits.half)


def _unroll(axis: Ints, local: Floats) -> tuple[Floats, Floats]:
    """The two coordinates that vary on a face across the given axis."""
    return np.where(axis == 0, local[1], local[0]), np.where(axis == 2, local[1], local[2])


def hash_cells(seed: Ints, *cells: Floats) -> Floats:
    """A number in 0..1 for every cell of a grid, as if at random but always the same: [n]."""
    mixed = seed.astype(np.uint32)
    for cell in cells:
        mixed = (mixed ^ cell.astype(np.int64).astype(np.uint32)) * np.uint32(0x9E3779B1)
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(13)
    # Less than 1 after rounding too.
    return (mixed >> np.uint32(8)).astype(np.float32) / 2**24


def _cut_patch(scene: Scene, hits: Hits, colour: Floats, pixels: Ints) -> Patch:
    axis = hits.axis[pixels]
    local = hits.local.take(pixels, axis=1)
    a, b = _unroll(axis, local)
    u, v = _unroll(axis, local * hits.half.take(pixels, axis=1))
    return Patch(
        colour=colour.take(pixels, axis=1),
        u=u,
        v=v,
        a=a,
        b=b,
        axis=axis,
        local=local,
        phase=scene.phase[hits.primitive[pixels]],
    )


def _mix(first: Floats, second: Sequence[float], where: NDArray[np.bool_]) -> Floats:
    return np.where(where, _make_column(*second), first)


def _make_column(*numbers: float) -> Floats:
    return np.array(numbers, np.float32)[:, None]


def _choose(colours: Sequence[Sequence[float]], shares: Floats) -> Floats:
    """Colours [3, n] by numbers in 0..1."""
    table = np.array(colours, np.float32).T
    return table[:, (shares * table.shape[1]).astype(int)]


def _find_lines(x: Floats, period: float, width: float) -> NDArray[np.bool_]:
    """Whether x lies on one of the lines of a `width` that repeat every `period`."""
    is_line: NDArray[np.bool_] = np.abs(x / period - np.round(x / period)) * period < width / 2
    return is_line


def _paint_stripes(patch: Patch) -> Floats:
    bands = np.sign(np.sin(patch.u * (2 * np.pi / 0.16)))
    colour: Floats = patch.colour * (1 + 0.12 * bands)
    return colour


def _paint_weave(patch: Patch) -> Floats:
    knots = np.sin(patch.u * (2 * np.pi / 0.05)) * np.sin(patch.v * (2 * np.pi / 0.05))
    colour: Floats = patch.colour * (1 + 0.07 * knots)
    return colour


def _paint_grain(patch: Patch) -> Floats:
    """Rings of wood, cut lengthwise: far longer along the face than across it."""
    bend = 1.6 * np.sin(patch.u * 2.3 + patch.phase % 7) + 0.7 * np.sin(patch.u * 6.1)
    rings = np.sin(patch.v * 55 + bend + patch.phase % 11)
    fibres = np.sin(patch.v * 170 + 3 * bend)
    colour: Floats = patch.colour * (1 + 0.085 * rings + 0.035 * fibres)
    return colour


def _paint_squares(patch: Patch) -> Floats:
    """Patchwork: squares of 0.24 m in two shades, sewn together."""
    columns = np.floor(patch.u / 0.24)
    rows = np.floor(patch.v / 0.24)
    shade = np.where((columns + rows) % 2 == 0, 1.08, 0.80)
    shade *= 0.94 + 0.12 * hash_cells(patch.phase, columns, rows)
    return patch.colour * shade


def _paint_wall(patch: Patch) -> Floats:
    """Wallpaper with faint stripes above a skirting board."""
    paper = patch.colour * (1 + 0.018 * np.sign(np.sin(patch.u * (2 * np.pi / 0.34))))
    # The origin of a wall is its middle, so the height comes from the share.
    above = (patch.b + 1) * (patch.v / np.where(patch.b == 0, 1, patch.b))
    board = _mix(paper, WHITE, above < 0.11)
    return np.where(np.abs(above - 0.115) < 0.012, 0.6 * board, board)


def _paint_planks(patch: Patch) -> Floats:
    board = np.floor(patch.u / 0.15)
    along = patch.v / 1.2 + hash_cells(patch.phase, board)
    shade = 0.80 + 0.34 * hash_cells(patch.phase, board, np.floor(along))
    grain = np.sin(patch.u * 160 + 2.5 * np.sin(patch.v * 3.1 + board) + board)
    gap = _find_lines(patch.u, 0.15, 0.012) | _find_lines(along, 1.0, 0.01)
    return patch.colour * np.where(gap, 0.52, shade * (1 + 0.05 * grain))


def _paint_tiles(patch: Patch) -> Floats:
    """Tiles of 0.4 m with pale joints, every other a little darker."""
    columns = np.floor(patch.u / 0.4)
    rows = np.floor(patch.v / 0.4)
    shade = np.where((columns + rows) % 2 == 0, 1.06, 0.86)
    shade *= 0.95 + 0.10 * hash_cells(patch.phase, columns, rows)
    joint = _find_lines(patch.u, 0.4, 0.018) | _find_lines(patch.v, 0.4, 0.018)
    return patch.colour * np.where(joint, 0.66, shade)


def _paint_books(patch: Patch) -> Floats:
    """Spines of several colours and heights; above them the dark of the shelf."""
    place = patch.u / 0.042 + 0.35 * np.sin(patch.u * 31)
    book = np.floor(place)
    colour = _choose(BOOK_COLOURS, hash_cells(patch.phase, book))
    colour = colour * (0.75 + 0.5 * hash_cells(patch.phase + 1, book))
    top = 0.25 + 0.7 * hash_cells(patch.phase + 2, book)
    label = (np.abs(patch.b - 0.25) < 0.10) & (hash_cells(patch.phase + 3, book) > 0.45)
    edge = place - book < 0.12
    colour = np.where(edge, 0.35 * colour, colour)
    colour = _mix(colour, (0.72, 0.66, 0.50), label & ~edge)
    # The narrow sides and the top are paper.
    colour = _mix(colour, (0.66, 0.61, 0.50), patch.axis != 1)
    return _mix(colour, (0.035, 0.028, 0.022), (patch.b > top) & (patch.axis == 1))


def _paint_picture(patch: Patch) -> Floats:
    """A framed abstract: a ground in two colours, a sun, a hill and a bar, on white card."""
    a = patch.a / 0.72
    b = patch.b / 0.72
    tints = [_choose(PAINT, hash_cells(patch.phase, np.array(i))) for i in range(4)]
    shares = [hash_cells(patch.phase, np.array(i)) for i in range(4, 9)]
    horizon = 0.9 * shares[0] - 0.5
    painting = np.where(b > horizon, tints[0], 0.8 * tints[1])
    sun = (a - 1.4 * shares[1] + 0.7) ** 2 + (b - 0.8 * shares[2]) ** 2 < 0.05 + 0.12 * shares[3]
    painting = np.where(sun, tints[2], painting)
    hill = b < horizon + 0.45 * np.cos(2.6 * a + 6 * shares[4]) - 0.15
    painting = np.where(hill, tints[3], painting)
    card = np.maximum(np.abs(patch.a), np.abs(patch.b))
    painting = _mix(painting, WHITE, card > 0.72)
    return np.where(card > 0.86, patch.colour, painting)


def _in_pane(patch: Patch) -> NDArray[np.bool_]:
    rim = np.maximum(np.abs(patch.a), np.abs(patch.b))
    is_pane: NDArray[np.bool_] = (rim < 0.92) & (patch.axis == 1)
    return is_pane


def _paint_window(patch: Patch) -> Floats:
    """Sky over hills behind four panes."""
    haze = (0.5 * (patch.b + 1)).clip(0, 1)
    sky = _make_column(0.62, 0.80, 0.95) * (1 - haze) + _make_column(0.28, 0.52, 0.90) * haze
    cloud = np.sin(3.1 * patch.a + patch.phase % 5) + np.sin(7 * patch.b + 2 * patch.a)
    sky = np.where((cloud > 1.1) & (patch.b > 0), 0.25 * sky + 0.68, sky)
    far = -0.12 + 0.14 * np.sin(2.2 * patch.a + patch.phase % 13)
    close = -0.42 + 0.12 * np.sin(3.4 * patch.a + patch.phase % 17)
    view = _mix(sky, (0.30, 0.46, 0.46), patch.b < far)
    view = _mix(view, (0.20, 0.40, 0.14), patch.b < close)
    bars = (np.abs(patch.a) < 0.045) | (np.abs(patch.b - 0.1) < 0.035)
    return np.where(_in_pane(patch) & ~bars, view, patch.colour)


def _paint_screen(patch: Patch) -> Floats:
    """Dark glass with the reflection of a window, or, for every other set, a landscape being shown."""
    glass = _mix(patch.colour, BLACK, _in_pane(patch))
    shine = _in_pane(patch) & (np.abs(patch.a + 0.5 * patch.b - 0.35) < 0.16)
    glass = np.where(shine, glass + 0.06, glass)
    sky = _make_column(0.12, 0.26, 0.46) * (patch.b + 1.2)
    sun = (patch.a - 0.35) ** 2 * 2.5 + (patch.b - 0.2) ** 2 < 0.10
    shown = _mix(sky, (0.95, 0.62, 0.20), sun)
    shown = _mix(shown, (0.07, 0.20, 0.13), patch.b < -0.35 + 0.25 * np.sin(4 * patch.a))
    return np.where(_in_pane(patch) & (patch.phase % 2 == 0), shown, glass)


def _paint_rug(patch: Patch) -> Floats:
    """A border, a band inside it, and rhombs in the field."""
    border = np.maximum(np.abs(patch.a), np.abs(patch.b))
    rhombs = np.abs((2.5 * patch.a) % 2 - 1) + np.abs((2.5 * patch.b) % 2 - 1) < 0.62
    second = _choose(PAINT, hash_cells(patch.phase, np.array(0)))
    third = _choose(PAINT, hash_cells(patch.phase, np.array(1)))
    colour = np.where(rhombs & (border < 0.7), 0.75 * second + 0.1, patch.colour)
    colour = np.where((border > 0.74) & (border < 0.83), 0.75 * third + 0.1, colour)
    return np.where(border > 0.93, 0.55 * patch.colour, colour)


def _paint_doors(patch: Patch) -> Floats:
    """Two doors side by side with a panel each; wood elsewhere."""
    return _set_panels(patch, np.abs(patch.a) * 2 - 1, patch.b)


def _paint_drawers(patch: Patch) -> Floats:
    """Three drawers one above the other."""
    return _set_panels(patch, patch.a, (1.5 * (patch.b + 1)) % 2 - 1)


def _set_panels(patch: Patch, a: Floats, b: Floats) -> Floats:
    wood = _paint_grain(patch)
    rim = np.maximum(np.abs(a), np.abs(b))
    front = patch.axis == 1
    wood = np.where(front & (rim > 0.70), 0.92 * wood, wood)
    wood = np.where(front & (np.abs(rim - 0.72) < 0.035), 0.62 * wood, wood)
    return np.where(front & (rim > 0.955), 0.38 * wood, wood)


def _paint_folds(patch: Patch) -> Floats:
    waves = np.sin(patch.u * (2 * np.pi / 0.11) + np.sin(patch.v * 2))
    colour: Floats = patch.colour * (0.86 + 0.20 * waves)
    return colour


def _paint_ball(patch: Patch) -> Floats:
    """Six sectors between the poles of a beach ball, whose axis leans."""
    x, y, z = patch.local
    angle = np.arctan2(y, 0.8 * x + 0.6 * z) + patch.phase % 6
    sector = np.floor(angle * (3 / np.pi)) % 4
    colour = _choose(BALL, sector / 4)
    return _mix(colour, BALL[1], 0.8 * z - 0.6 * x > 0.93)


TEXTURES: dict[Texture, Callable[[Patch], Floats]] = {
    Texture.STRIPES: _paint_stripes,
    Texture.WEAVE: _paint_weave,
    Texture.GRAIN: _paint_grain,
    Texture.SQUARES: _paint_squares,
    Texture.WALL: _paint_wall,
    Texture.PLANKS: _paint_planks,
    Texture.TILES: _paint_tiles,
    Texture.BOOKS: _paint_books,
    Texture.PICTURE: _paint_picture,
    Texture.WINDOW: _paint_window,
    Texture.SCREEN: _paint_screen,
    Texture.RUG: _paint_rug,
    Texture.DOORS: _paint_doors,
    Texture.DRAWERS: _paint_drawers,
    Texture.FOLDS: _paint_folds,
    Texture.BALL: _paint_ball,
}
