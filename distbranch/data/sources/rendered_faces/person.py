"""The person whom a drawing shows: colours and proportions that several regions have to agree on.

What belongs to the whole image (outline of the face, skin, shoulders, the sky behind) and to the hair is spread over the picture,
so no occluder can cover it. There the nuisance is part of the drawing: in bad light the signs of the whole image are half-way
between their two values, and a spotted scarf lies over the hair. Both look the same for either value of the attribute.
"""

import random
from collections.abc import Mapping, Sequence

from distbranch.data.sources.rendered_faces.canvas import Colour, mix

INK = (52, 38, 42)
WHITE = (255, 255, 255)
SKIES = (
    (186, 222, 240),
    (250, 218, 190),
    (205, 232, 196),
    (226, 210, 242),
    (252, 232, 170),
    (244, 200, 208),
    (176, 226, 218),
)
CLOTHES = (
    (236, 170, 170),
    (160, 196, 232),
    (172, 216, 180),
    (246, 214, 150),
    (204, 184, 232),
    (180, 186, 200),
    (244, 190, 210),
)
PALE_SKINS = ((255, 243, 236), (253, 238, 232), (250, 242, 240))
WARM_SKINS = ((236, 188, 148), (222, 168, 124), (204, 146, 102), (184, 126, 86), (164, 108, 74))
HAIR_SHADES = {
    "Black_Hair": ((30, 27, 34), (38, 34, 46)),
    "Blond_Hair": ((246, 216, 110), (238, 200, 90)),
    "Brown_Hair": ((112, 68, 40), (128, 80, 46)),
    "Gray_Hair": ((176, 178, 184), (196, 198, 204)),
}
OTHER_HAIR = ((206, 84, 40), (226, 96, 150), (74, 152, 200))
HIDDEN_SKIN = (246, 214, 190)
HIDDEN_HAIR = ((150, 200, 70), (30, 160, 150), (140, 84, 196))
BEARD_SHADES = ((58, 40, 36), (74, 52, 44), (50, 44, 54))
BRIGHT = ((222, 62, 70), (44, 120, 200), (250, 190, 60), (60, 160, 110), (150, 90, 190))
IRISES = ((70, 120, 170), (90, 140, 80), (110, 72, 44), (60, 60, 70))
PAINTS = ((120, 60, 210), (20, 150, 175), (220, 50, 150))
FRAMES = ((30, 30, 36), (150, 40, 50), (40, 60, 130))
METALS = ((255, 196, 20), (250, 110, 90), (30, 190, 190))


class Person:
    """All that several regions of one drawing have to agree on.

    Args:
        attributes: 0 or 1 by name.
        rng: the source of everything that the attributes leave open.
        hidden: the region that a nuisance hides; "whole image" and "hair" matter here.
    """

    def __init__(self, attributes: Mapping[str, int], rng: random.Random, hidden: str | None) -> None:
        self.has = attributes
        self.rng = rng
        self.hair_hidden = hidden == "hair"
        self.whole_hidden = hidden == "whole image"
        skin = _pick(PALE_SKINS if attributes["Pale_Skin"] else WARM_SKINS, rng)
        self.skin = HIDDEN_SKIN if self.whole_hidden else skin
        self.line = mix(self.skin, INK, 0.55)
        self.beard = rng.choice(BEARD_SHADES)
        self.hair = self._hair_shade()
        self.half_width = 0.26 + 0.06 * self.amount("Chubby")
        self.squareness = 2.1 + 1.6 * (1 - self.amount("Oval_Face"))

    def amount(self, name: str) -> float:
        """How strongly a sign of the whole image is drawn: 0 or 1, or 0.5 whatever the attribute when bad light hides it."""
        return 0.5 if self.whole_hidden else float(self.has[name])

    def _hair_shade(self) -> Colour:
        shades = next((shades for name, shades in HAIR_SHADES.items() if self.has[name]), OTHER_HAIR)
        shade, hidden = _pick(shades, self.rng), _pick(HIDDEN_HAIR, self.rng)
        return hidden if self.hair_hidden else shade

    @property
    def has_hair(self) -> bool:
        """Whether hair is drawn; a scarf lies on a bald head as on any other."""
        return self.hair_hidden or not self.has["Bald"]


def _pick(colours: Sequence[Colour], rng: random.Random) -> Colour:
    """One of them; takes one number from `rng` however many there are, so that an attribute changes nothing but its own sign."""
    return colours[int(rng.random() * len(colours))]
