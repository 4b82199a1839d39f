"""Pieces of furniture, each a function of a generator: bed, sofa, cabinet, shelf, table, chair, television."""

import numpy as np

from distbranch.data.sources.rendered_rooms.palette import choose_colour, shade
from distbranch.data.sources.rendered_rooms.piece import Piece
from distbranch.data.sources.rendered_rooms.scene import Look, Texture
from distbranch.data.sources.rendered_rooms.small_things import build_ball, build_vase

Generator = np.random.Generator


def build_bed(rng: Generator) -> Piece:
    """Frame, mattress, a blanket over its lower part, a headboard and one or two pillows."""
    wide = rng.random() < 0.5
    width = rng.uniform(1.35, 1.7) if wide else rng.uniform(0.95, 1.15)
    bed = Piece(width, rng.uniform(1.9, 2.1), "bed")
    x = width / 2
    y = bed.depth / 2
    wood = Look(choose_colour(rng, "wood"), Texture.GRAIN)
    sheet = Look(choose_colour(rng, "sheet"))
    texture = (Texture.SQUARES, Texture.STRIPES, Texture.SQUARES)[int(rng.integers(3))]
    blanket = Look(choose_colour(rng, "bed"), texture)
    bed.add_box((-x, -y, 0.10), (x, y - 0.06, 0.30), wood)
    bed.add_box((-x, y - 0.06, 0.0), (x, y, rng.uniform(0.8, 1.1)), wood)
    for side in (-x + 0.05, x - 0.05):
        bed.add_box((side - 0.04, -y, 0.0), (side + 0.04, -y + 0.08, 0.12), wood)
    bed.add_box((-x + 0.03, -y + 0.03, 0.30), (x - 0.03, y - 0.06, 0.50), sheet)
    fold = y - rng.uniform(0.55, 0.75)
    bed.add_box((-x - 0.015, -y - 0.01, 0.26), (x + 0.015, fold, 0.535), blanket)
    # The turned-back hem shows the sheet.
    bed.add_box((-x - 0.01, fold - 0.16, 0.5), (x + 0.01, fold + 0.01, 0.55), sheet)
    pillow = Look(choose_colour(rng, "pillow"))
    places = (-x / 2, x / 2) if wide else (0.0,)
    half = 0.42 * width / len(places)
    for place in places:
        bed.begin_thing()
        bed.add_ellipsoid((place, y - 0.30, 0.57), (half, 0.22, 0.11), pillow, "objects")
    return bed


def build_sofa(rng: Generator) -> Piece:
    """Two or three seats between arms, with cushions, on short feet."""
    sofa = Piece(rng.uniform(1.5, 2.15), rng.uniform(0.8, 0.92), "sofa")
    x = sofa.width / 2
    y = sofa.depth / 2
    cloth = choose_colour(rng, "sofa")
    body = Look(cloth, Texture.WEAVE)
    seat = Look(shade(cloth, 1.12), Texture.WEAVE)
    feet = Look((0.10, 0.07, 0.05))
    arm = rng.uniform(0.15, 0.22)
    sofa.add_box((-x, -y + 0.02, 0.09), (x, y, 0.30), body)
    sofa.add_box((-x, y - 0.22, 0.30), (x, y, rng.uniform(0.74, 0.86)), body)
    for side in (-x, x - arm):
        sofa.add_box((side, -y, 0.09), (side + arm, y, 0.58), body)
        sofa.add_box((side + 0.04, -y + 0.05, 0.0), (side + 0.10, -y + 0.11, 0.09), feet)
    num_seats = 2 + int(sofa.width > 1.85)
    step = (sofa.width - 2 * arm) / num_seats
    for i in range(num_seats):
        left = -x + arm + i * step
        sofa.add_box((left + 0.008, -y - 0.02, 0.30), (left + step - 0.008, y - 0.22, 0.44), seat)
    for side in (-1, 1):
        if rng.random() < 0.7:
            sofa.begin_thing()
            pillow = Look(choose_colour(rng, "pillow"))
            centre = (side * (x - arm - 0.20), y - 0.30, 0.60)
            sofa.add_ellipsoid(centre, (0.21, 0.09, 0.18), pillow, "objects")
    return sofa


def build_cabinet(rng: Generator, height: float) -> Piece:
    """A low cabinet or a chest of drawers on feet, with knobs and a board on top."""
    cabinet = Piece(rng.uniform(0.95, 1.5), rng.uniform(0.40, 0.48), "furniture", top=height)
    x = cabinet.width / 2
    y = cabinet.depth / 2
    colour = choose_colour(rng, "furniture")
    wood = Look(colour, Texture.GRAIN)
    metal = Look((0.72, 0.66, 0.50))
    has_doors = rng.random() < 0.5
    texture = Texture.DOORS if has_doors else Texture.DRAWERS
    cabinet.add_box((-x, -y + 0.02, 0.09), (x, y, height - 0.03), Look(colour, texture))
    cabinet.add_box((-x - 0.02, -y, height - 0.03), (x + 0.02, y, height), wood)
    cabinet.add_box((-x + 0.04, -y + 0.07, 0.0), (x - 0.04, y, 0.09), Look(shade(colour, 0.4)))
    rows = (0.5,) if has_doors else (1 / 6, 1 / 2, 5 / 6)
    columns = (-0.07, 0.07) if has_doors else (-x / 2, x / 2)
    for row in rows:
        for column in columns:
            z = 0.09 + row * (height - 0.12)
            cabinet.add_ellipsoid((column, -y, z), (0.022, 0.022, 0.022), metal, casts_shadow=False)
    return cabinet


def build_shelf(rng: Generator) -> Piece:
    """A bookcase: sides, back and boards, and on most boards a row of books, on others a thing or nothing."""
    shelf = Piece(rng.uniform(0.8, 1.15), rng.uniform(0.28, 0.34), "furniture")
    x = shelf.width / 2
    y = shelf.depth / 2
    colour = choose_colour(rng, "furniture")
    wood = Look(colour, Texture.GRAIN)
    num_boards = int(rng.integers(4, 6))
    step = rng.uniform(0.33, 0.39)
    height = num_boards * step + 0.09
    for side in (-x, x - 0.03):
        shelf.add_box((side, -y, 0.0), (side + 0.03, y, height), wood)
    shelf.add_box((-x, y - 0.02, 0.0), (x, y, height), Look(shade(colour, 0.6)))
    for i in range(num_boards + 1):
        z = 0.06 + i * step
        shelf.add_box((-x + 0.03, -y + 0.01, z), (x - 0.03, y - 0.02, z + 0.03), wood)
    for i in range(num_boards):
        _fill_board(shelf, 0.09 + i * step, step - 0.03, rng)
    return shelf


def _fill_board(shelf: Piece, z: float, room: float, rng: Generator) -> None:
    x = shelf.width / 2 - 0.035
    y = shelf.depth / 2 - 0.02
    draw = rng.random()
    if draw < 0.12:
        return
    left, right = -x, x
    if draw < 0.6:  # a part of the board
        right = -x + 2 * x * rng.uniform(0.4, 0.75)
    if rng.random() < 0.5:
        left, right = -right, -left
    shelf.begin_thing()
    books = Look((0.3, 0.1, 0.1), Texture.BOOKS)
    height = room * rng.uniform(0.82, 0.94)
    shelf.add_box((left, -y + 0.05, z), (right, y, z + height), books, "books", casts_shadow=False)
    if draw < 0.35:
        thing = build_vase(rng) if rng.random() < 0.6 else build_ball(rng, 0.07)
        free = (right + x) / 2 if right < x else (left - x) / 2
        shelf.put_on(thing, free, 0.0, 0.0, z)


def build_table(rng: Generator) -> Piece:
    """A round table on a foot or a rectangular one on four legs."""
    wood = Look(choose_colour(rng, "table"), Texture.GRAIN)
    height = rng.uniform(0.68, 0.76)
    if rng.random() < 0.3:
        radius = rng.uniform(0.40, 0.55)
        table = Piece(2 * radius, 2 * radius, "table", top=height)
        table.add_cylinder((0, 0, height - 0.035), radius, 0.035, wood)
        table.add_cylinder((0, 0, 0.03), 0.05, height - 0.065, wood)
        table.add_cylinder((0, 0, 0), 0.55 * radius, 0.03, wood)
        return table
    table = Piece(rng.uniform(0.95, 1.5), rng.uniform(0.65, 0.85), "table", top=height)
    x = table.width / 2
    y = table.depth / 2
    table.add_box((-x, -y, height - 0.035), (x, y, height), wood)
    table.add_box((-x + 0.06, -y + 0.06, height - 0.11), (x - 0.06, y - 0.06, height - 0.035), wood)
    _add_legs(table, (x - 0.03, y - 0.03), 0.055, height - 0.035, wood)
    return table


def _add_legs(
    piece: Piece, corner: tuple[float, float], thick: float, height: float, look: Look
) -> None:
    for sx in (-1, 1):
        for sy in (-1, 1):
            x = sx * (corner[0] - thick / 2)
            y = sy * (corner[1] - thick / 2)
            low = (x - thick / 2, y - thick / 2, 0.0)
            piece.add_box(low, (x + thick / 2, y + thick / 2, height), look)


def build_chair(look: Look, rng: Generator) -> Piece:
    """Six boxes: two short legs, two long ones that carry the rest for the back, a seat."""
    chair = Piece(0.44, 0.46, "chair")
    back = rng.uniform(0.86, 0.98)
    for side in (-0.20, 0.16):
        chair.add_box((side, -0.22, 0.0), (side + 0.04, -0.18, 0.43), look)
        chair.add_box((side, 0.18, 0.0), (side + 0.04, 0.22, back), look)
    chair.add_box((-0.22, -0.23, 0.43), (0.22, 0.22, 0.475), look)
    chair.add_box((-0.20, 0.185, back - 0.30), (0.20, 0.215, back - 0.02), look)
    return chair


def choose_chair_look(rng: Generator) -> Look:
    """The wood or paint that the chairs of one table have in common."""
    return Look(choose_colour(rng, "chair"), Texture.GRAIN)


def build_television(rng: Generator) -> Piece:
    """A flat screen on a foot."""
    width = rng.uniform(0.75, 1.1)
    height = 0.57 * width
    screen = Piece(width, 0.2, "tv")
    case = Look((0.03, 0.03, 0.035))
    screen.add_box((-0.16, -0.09, 0.0), (0.16, 0.09, 0.02), case)
    screen.add_box((-0.03, -0.01, 0.02), (0.03, 0.03, 0.09), case)
    glass = Look((0.03, 0.03, 0.035), Texture.SCREEN, 0.0)
    if rng.random() < 0.5:
        glass = glass._replace(emission=1.0)
    screen.add_box((-width / 2, -0.02, 0.07), (width / 2, 0.03, 0.07 + height), glass)
    return screen
