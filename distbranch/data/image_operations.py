"""Operations that change an image at random: those of RandAugment and TrivialAugment, and of `data.jitter`.

What is done to the pixels is torchvision's. What is chosen is not: its classes draw from the generator of the process, which the
thread that trains shares, and choose otherwise in another release; here all choices are given as numbers in 0..1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from distbranch.data.images import Pixels
from distbranch.extras import require

Colour = tuple[int, int, int]
Operation = tuple[str, float]  # its name, and how much

FUNCTIONS = "torchvision.transforms.v2.functional"
LEVELS = 30  # strengths from nothing to the largest, as in torchvision
NUM_NUMBERS = 6  # that a recipe needs
TINTS = ("brightness", "contrast", "saturation")


@dataclass(frozen=True)
class Recipe:
    """How many operations an image gets, and how strong they are.

    levels: from and to which of LEVELS; shear as a tangent, translate in pixels or, below 1, of the width or height, rotate in
    degrees, tint as a share, bits that are lost.
    """

    num_operations: int
    levels: tuple[int, int]
    shear: float
    translate: float
    rotate: float
    tint: float
    bits: int

    @property
    def largest(self) -> dict[str, float]:
        """How much each operation does at the highest level; negative or positive where that is another thing."""
        return {
            "identity": 0.0,
            "shear-x": self.shear,
            "shear-y": self.shear,
            "translate-x": self.translate,
            "translate-y": self.translate,
            "rotate": self.rotate,
            **dict.fromkeys((*TINTS, "sharpness"), self.tint),
            "posterize": self.bits,
            "solarize": 255.0,
            "autocontrast": 0.0,
            "equalize": 0.0,
        }


RECIPES = {
    # Two operations at level 9, as for the ResNet-50 of Cubuk et al. 2020.
    "randaugment": Recipe(2, (9, 9), 0.3, 150 / 331, 30.0, 0.9, 4),
    # One of any level, in the wide space of Müller and Hutter 2021.
    "trivialaugment": Recipe(1, (0, LEVELS), 0.99, 32.0, 135.0, 0.99, 6),
}


def choose_operations(recipe: Recipe, numbers: Sequence[float]) -> tuple[Operation, ...]:
    """What an image gets. numbers: NUM_NUMBERS of them in 0..1."""
    largest = recipe.largest
    names = list(largest)
    chosen = []
    for which, level, sign in zip(*[iter(numbers)] * 3, strict=True):
        name = names[int(which * len(names))]
        first, last = recipe.levels
        strength = (first + int(level * (last - first + 1))) / LEVELS
        amount = largest[name] * strength
        # As often the other way round; fewer bits and a lower threshold have no other.
        if sign < 0.5 and name not in ("posterize", "solarize"):
            amount = -amount
        chosen.append((name, amount))
    return tuple(chosen[: recipe.num_operations])


def apply_operations(pixels: Pixels, operations: Sequence[Operation], fill: Colour) -> Pixels:
    """The image [H, W, 3] after one operation and then the next; `fill` is the colour of what comes into view."""
    image = Image.fromarray(pixels)
    for name, amount in operations:
        image = _make_functions()[name](image, amount, fill)
    return np.asarray(image)


@cache
def _make_functions() -> Mapping[str, Callable[[Image.Image, float, Colour], Image.Image]]:
    """Every operation by name: of an image, how much, and the colour of what comes into view."""
    f = require(FUNCTIONS, "augment", "data.augment or data.jitter")

    def move(
        image: Image.Image, fill: Colour, offset: Sequence[float], shear: Sequence[float]
    ) -> Any:
        pixels = [
            int(part if abs(part) > 1 else part * side)
            for part, side in zip(offset, image.size, strict=True)
        ]
        degrees = [math.degrees(math.atan(tangent)) for tangent in shear]
        return f.affine(image, 0.0, pixels, 1.0, degrees, center=[0, 0], fill=fill)

    return {
        "identity": lambda image, _, __: image,
        "shear-x": lambda image, amount, fill: move(image, fill, (0, 0), (amount, 0)),
        "shear-y": lambda image, amount, fill: move(image, fill, (0, 0), (0, amount)),
        "translate-x": lambda image, amount, fill: move(image, fill, (amount, 0), (0, 0)),
        "translate-y": lambda image, amount, fill: move(image, fill, (0, amount), (0, 0)),
        "rotate": lambda image, amount, fill: f.rotate(image, amount, fill=fill),
        "brightness": lambda image, amount, _: f.adjust_brightness(image, 1 + amount),
        "contrast": lambda image, amount, _: f.adjust_contrast(image, 1 + amount),
        "saturation": lambda image, amount, _: f.adjust_saturation(image, 1 + amount),
        "sharpness": lambda image, amount, _: f.adjust_sharpness(image, 1 + amount),
        "posterize": lambda image, amount, _: f.posterize(image, 8 - round(amount)),
        "solarize": lambda image, amount, _: f.solarize(image, 255 - amount),
        "autocontrast": lambda image, _, __: f.autocontrast(image),
        "equalize": lambda image, _, __: f.equalize(image),
    }
