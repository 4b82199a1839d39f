"""Two or more typical colours of everything in a room, as reflected shares of red, green and blue."""

import numpy as np

from distbranch.data.sources.rendered_rooms.scene import Colour

PALETTE: dict[str, tuple[Colour, ...]] = {
    "wall": (
        (0.76, 0.72, 0.63),
        (0.62, 0.68, 0.70),
        (0.70, 0.74, 0.64),
        (0.78, 0.66, 0.58),
        (0.74, 0.75, 0.76),
    ),
    "ceiling": ((0.84, 0.83, 0.80), (0.80, 0.80, 0.78)),
    "floor": ((0.46, 0.29, 0.16), (0.60, 0.44, 0.27), (0.34, 0.21, 0.13)),
    "tiles": ((0.56, 0.52, 0.46), (0.48, 0.44, 0.42)),
    "rug": ((0.50, 0.13, 0.11), (0.14, 0.22, 0.36), (0.62, 0.54, 0.40), (0.24, 0.33, 0.26)),
    "wood": ((0.36, 0.20, 0.10), (0.58, 0.41, 0.24), (0.20, 0.12, 0.08)),
    "bed": ((0.26, 0.34, 0.58), (0.60, 0.30, 0.34), (0.36, 0.50, 0.42), (0.70, 0.56, 0.30)),
    "sheet": ((0.82, 0.81, 0.78), (0.76, 0.78, 0.82)),
    "pillow": ((0.84, 0.82, 0.78), (0.72, 0.44, 0.20), (0.30, 0.46, 0.50), (0.66, 0.20, 0.22)),
    "sofa": ((0.34, 0.38, 0.42), (0.46, 0.16, 0.14), (0.20, 0.30, 0.26), (0.56, 0.48, 0.36)),
    "furniture": ((0.44, 0.27, 0.14), (0.70, 0.66, 0.58), (0.30, 0.18, 0.10), (0.38, 0.46, 0.44)),
    "table": ((0.54, 0.35, 0.18), (0.38, 0.23, 0.12), (0.70, 0.55, 0.36)),
    "chair": ((0.50, 0.31, 0.15), (0.18, 0.17, 0.17), (0.66, 0.26, 0.14), (0.74, 0.72, 0.66)),
    "books": ((0.50, 0.10, 0.08), (0.08, 0.20, 0.42), (0.68, 0.54, 0.18)),
    "objects": ((0.10, 0.34, 0.48), (0.74, 0.70, 0.60), (0.60, 0.18, 0.12), (0.16, 0.16, 0.18)),
    "pot": ((0.60, 0.28, 0.16), (0.70, 0.68, 0.62), (0.16, 0.24, 0.28)),
    "plant": ((0.12, 0.34, 0.10), (0.20, 0.42, 0.16), (0.30, 0.42, 0.12)),
    "picture": ((0.12, 0.08, 0.05), (0.56, 0.44, 0.20), (0.78, 0.76, 0.72)),
    "window": ((0.84, 0.84, 0.82), (0.46, 0.30, 0.17)),
    "curtain": ((0.72, 0.64, 0.50), (0.46, 0.18, 0.18), (0.34, 0.44, 0.54)),
    "tv": ((0.03, 0.03, 0.035), (0.10, 0.10, 0.11)),
}


def choose_colour(rng: np.random.Generator, name: str) -> Colour:
    """One of the typical colours, a little lighter or darker and off in tone."""
    colours = PALETTE[name]
    choice, lightness, *tones = rng.random(5).tolist()
    red, green, blue = colours[int(choice * len(colours))]
    factor = 0.85 + 0.27 * lightness
    return (
        _limit(red * factor + 0.08 * (tones[0] - 0.5)),
        _limit(green * factor + 0.08 * (tones[1] - 0.5)),
        _limit(blue * factor + 0.08 * (tones[2] - 0.5)),
    )


def shade(colour: Colour, factor: float) -> Colour:
    """The same colour, lighter or darker."""
    red, green, blue = colour
    return _limit(red * factor), _limit(green * factor), _limit(blue * factor)


def _limit(share: float) -> float:
    return min(max(share, 0.01), 0.95)
