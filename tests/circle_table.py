"""Drawn circles and a table of what they are like, as a person would hand them in: a task of every kind."""

import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (210, 60, 50), "green": (60, 170, 80), "blue": (60, 90, 210)}
PLACES = ((8, 8), (24, 8), (8, 24), (24, 24))
SIZES = ("small", "medium", "large")
# The options that make colour categorical, filled binary, weight and radius numbers, size and count ordered classes.
OPTIONS = (
    *("--number", "radius,weight", "--unit", "radius=px,weight=g"),
    *("--ordinal", f"count,size={'<'.join(SIZES)}"),
)


def write_circles(folder: Path, *, train: int, val: int, test: int, seed: int = 0) -> list[str]:
    """Pictures of 32x32 pixels and `table.csv` in a new folder; the arguments of `data pack csv` that name them."""
    draw = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    rows = [("image", "split", "colour", "filled", "radius", "weight", "count", "size")]
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            name = f"{split}-{number}.png"
            picture, *values = _draw_circles(draw)
            picture.save(folder / "images" / name)
            rows.append((name, split, *values))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return ["--images", str(folder / "images"), "--table", str(folder / "table.csv"), *OPTIONS]


def _draw_circles(draw: random.Random) -> tuple[Image.Image, str, str, str, str, str, str]:
    """A picture and the cells of its row; every tenth radius is missing."""
    picture = Image.new("RGB", (32, 32), (draw.randint(200, 255),) * 3)
    canvas = ImageDraw.Draw(picture)
    colour = draw.choice(list(COLOURS))
    filled = draw.random() < 0.5
    radius = draw.uniform(2, 6)
    places = draw.sample(PLACES, draw.randint(1, 3))
    for x, y in places:
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(box, fill=COLOURS[colour] if filled else None, outline=COLOURS[colour])
    weight = 100 * radius**2 * len(places)
    size = SIZES[min(2, int((radius - 2) / 4 * 3))]
    shown = "" if draw.random() < 0.1 else f"{radius:.2f}"
    return picture, colour, str(int(filled)), shown, f"{weight:,.1f}", str(len(places)), size
