"""What stands on furniture, lies on the floor, or hangs on walls and ceiling, each a function of a generator."""

from collections.abc import Callable

import numpy as np

from distbranch.data.sources.rendered_rooms.palette import choose_colour, shade
from distbranch.data.sources.rendered_rooms.piece import Piece
from distbranch.data.sources.rendered_rooms.scene import Look, Texture

Generator = np.random.Generator


def build_vase(rng: Generator) -> Piece:
    """A bellied vase, every other one with leaves or flowers."""
    radius = rng.uniform(0.055, 0.085)
    vase = Piece(2 * radius, 2 * radius, "objects")
    glaze = Look(choose_colour(rng, "objects"))
    vase.add_ellipsoid((0, 0, 1.25 * radius), (radius, radius, 1.3 * radius), glaze)
    vase.add_cylinder((0, 0, 2.2 * radius), 0.45 * radius, 0.9 * radius, glaze)
    if rng.random() < 0.5:
        leaf = Look(choose_colour(rng, "plant"))
        vase.add_ellipsoid((0, 0, 4.1 * radius), (1.2 * radius, 1.2 * radius, 1.3 * radius), leaf)
    return vase


def build_ball(rng: Generator, radius: float) -> Piece:
    """A beach ball."""
    ball = Piece(2 * radius, 2 * radius, "objects")
    look = Look(choose_colour(rng, "objects"), Texture.BALL)
    ball.add_ellipsoid((0, 0, radius), (radius, radius, radius), look)
    return ball


def build_table_lamp(rng: Generator) -> Piece:
    """A foot with a shade that glows."""
    lamp = Piece(0.24, 0.24, "objects")
    foot = Look(choose_colour(rng, "objects"))
    lamp.add_ellipsoid((0, 0, 0.07), (0.075, 0.075, 0.075), foot)
    lamp.add_cylinder((0, 0, 0.12), 0.015, 0.12, foot)
    glow = Look((0.95, 0.84, 0.62), emission=0.75)
    lamp.add_cylinder((0, 0, 0.22), 0.115, 0.17, glow, casts_shadow=False)
    return lamp


def build_books(rng: Generator) -> Piece:
    """One to three books that lie on each other."""
    pile = Piece(0.26, 0.2, "books")
    z = 0.0
    for _ in range(int(rng.integers(1, 4))):
        # In steps, so that the sides of two books are one plane or clearly two.
        x = 0.10 + 0.01 * int(rng.integers(4))
        y = 0.07 + 0.01 * int(rng.integers(4))
        thick = rng.uniform(0.025, 0.05)
        colour = choose_colour(rng, "books")
        pile.add_box((-x, -y, z), (x, y, z + thick), Look(colour), casts_shadow=False)
        z += thick
    return pile


def build_standing_lamp(rng: Generator) -> Piece:
    """A lamp as tall as a person."""
    lamp = Piece(0.36, 0.36, "objects")
    metal = Look((0.20, 0.18, 0.16))
    height = rng.uniform(1.45, 1.7)
    lamp.add_cylinder((0, 0, 0), 0.14, 0.025, metal)
    lamp.add_cylinder((0, 0, 0.025), 0.016, height - 0.3, metal)
    glow = Look((0.95, 0.84, 0.60), emission=0.8)
    lamp.add_cylinder((0, 0, height - 0.3), 0.18, 0.28, glow, casts_shadow=False)
    return lamp


def build_plant(rng: Generator) -> Piece:
    """A rubber plant in a pot."""
    plant = Piece(0.5, 0.5, "objects")
    pot = Look(choose_colour(rng, "pot"))
    leaf = choose_colour(rng, "plant")
    plant.add_cylinder((0, 0, 0), 0.15, 0.28, pot)
    plant.add_cylinder((0, 0, 0.28), 0.02, 0.35, Look((0.22, 0.15, 0.09)))
    for _ in range(4):
        centre = (rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12), rng.uniform(0.55, 0.95))
        size = rng.uniform(0.12, 0.19)
        look = Look(shade(leaf, rng.uniform(0.75, 1.2)))
        plant.add_ellipsoid(centre, (size, size, 0.9 * size), look)
    return plant


def build_rug(rng: Generator) -> Piece:
    """Flat on the floor, and of its class; every third one is round."""
    rug = Piece(rng.uniform(1.5, 2.4), rng.uniform(1.1, 1.6), "floor")
    look = Look(choose_colour(rng, "rug"), Texture.RUG)
    if rng.random() < 0.33:
        rug.width = rug.depth
        plain = look._replace(texture=Texture.PLAIN)
        rug.add_cylinder((0, 0, 0), rug.depth / 2, 0.012, plain, casts_shadow=False)
        middle = Look(choose_colour(rng, "rug"))
        rug.add_cylinder((0, 0, 0), 0.36 * rug.depth, 0.014, middle, casts_shadow=False)
        return rug
    x = rug.width / 2
    y = rug.depth / 2
    rug.add_box((-x, -y, 0.0), (x, y, 0.012), look, casts_shadow=False)
    return rug


# What may stand on a table or a cabinet.
SMALL_THINGS: tuple[Callable[[Generator], Piece], ...] = (
    build_vase,
    lambda rng: build_ball(rng, rng.uniform(0.06, 0.10)),
    build_table_lamp,
    build_books,
)


def build_ceiling_lamp(rng: Generator, height: float, drop: float) -> Piece:
    """A globe or a flat shade that hangs `drop` metres below a ceiling at `height`."""
    lamp = Piece(0.4, 0.4, "objects")
    cord = Look((0.15, 0.15, 0.15))
    lamp.add_cylinder((0, 0, height - drop), 0.012, drop, cord, casts_shadow=False)
    glow = Look((1.0, 0.95, 0.84), emission=1.1)
    if rng.random() < 0.5:
        lamp.add_ellipsoid((0, 0, height - drop), (0.14, 0.14, 0.14), glow, casts_shadow=False)
    else:
        lamp.add_cylinder((0, 0, height - drop - 0.06), 0.2, 0.12, glow, casts_shadow=False)
    return lamp


def build_window(rng: Generator) -> Piece:
    """Glass in a frame over a sill, every other one between curtains; all of it is of the class window."""
    width = rng.uniform(0.9, 1.5)
    low = rng.uniform(0.8, 1.0)
    high = low + rng.uniform(0.95, 1.25)
    window = Piece(width + 0.3, 0.08, "window")
    x = width / 2
    frame = choose_colour(rng, "window")
    glass = Look(frame, Texture.WINDOW, 0.85)
    window.add_box((-x, 0.01, low), (x, 0.04, high), glass, casts_shadow=False)
    window.add_box((-x - 0.06, -0.10, low - 0.035), (x + 0.06, 0.04, low), Look(frame))
    if rng.random() < 0.5:
        window.width = width + 0.6
        cloth = Look(choose_colour(rng, "curtain"), Texture.FOLDS)
        bottom = rng.uniform(0.3, 0.7)
        rail = Look((0.25, 0.18, 0.12))
        window.begin_thing()
        for side in (-1, 1):
            ends = sorted((side * (x + 0.26), side * (x - 0.10)))
            window.add_box((ends[0], -0.07, bottom), (ends[1], -0.02, high + 0.06), cloth)
        window.add_box((-x - 0.3, -0.06, high + 0.06), (x + 0.3, -0.03, high + 0.085), rail)
    return window


def build_picture(rng: Generator) -> Piece:
    """A framed picture, upright or lying."""
    width = rng.uniform(0.4, 0.9)
    height = width * rng.choice((0.75, 1.3))
    picture = Piece(width, 0.03, "picture")
    look = Look(choose_colour(rng, "picture"), Texture.PICTURE)
    middle = rng.uniform(1.5, 1.7)
    low = (-width / 2, -0.01, middle - height / 2)
    picture.add_box(low, (width / 2, 0.015, middle + height / 2), look)
    return picture
