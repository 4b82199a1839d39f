"""The person whom a drawing shows: the 40 attributes, drawn at random, and what several regions of the face have to agree on.

Attributes are independent except for what a face excludes by nature (a bald head has no hair colour), so that whatever tasks
of one region have in common comes from the nuisance that falls on their region, not from their labels.
"""

import random
from collections.abc import Mapping, Sequence

from distbranch.data.sources.rendered_faces.canvas import Colour, darken, parse_colours

HAIR_SHADES = {
    "Black_Hair": parse_colours("1e1b22 26222e"),
    "Blond_Hair": parse_colours("f6d86e eec85a"),
    "Brown_Hair": parse_colours("704428 80502e"),
    "Gray_Hair": parse_colours("b0b2b8 c4c6cc"),
}
OTHER_HAIR = parse_colours("ce5428 e26096 4a98c8")
HIDDEN_HAIR = parse_colours("96c846 1ea096 8c54c4")
BEARD_SHADES = parse_colours("3a2824 4a342c 322c36")
PALE_SKINS = parse_colours("fff3ec fdeee8 faf2f0")
WARM_SKINS = parse_colours("ecbc94 dea87c cc9266 b87e56 a46c4a")
HIDDEN_SKIN = (246, 214, 190)

BEARDS = ("5_o_Clock_Shadow", "Goatee", "Mustache")
TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "hair": ("Bald", *HAIR_SHADES, "Sideburns", "Straight_Hair", "Wavy_Hair"),
    "eyes": ("Bags_Under_Eyes", "Eyeglasses", "Heavy_Makeup", "Narrow_Eyes"),
    "brows": ("Arched_Eyebrows", "Bushy_Eyebrows"),
    "nose": ("Big_Nose", "High_Cheekbones", "Pointy_Nose", "Rosy_Cheeks"),
    "mouth and beard": (
        "5_o_Clock_Shadow",
        "Big_Lips",
        "Goatee",
        "Mouth_Slightly_Open",
        "Mustache",
        "No_Beard",
        "Smiling",
        "Wearing_Lipstick",
    ),
    "head-wear": ("Bangs", "Receding_Hairline", "Wearing_Hat"),
    "ornaments": ("Wearing_Earrings", "Wearing_Necklace", "Wearing_Necktie"),
    "whole image": ("Attractive", "Blurry", "Chubby", "Double_Chin", "Male", "Oval_Face", "Pale_Skin", "Young"),
}
"""Region -> its attributes. Every attribute is in exactly one region, the one whose nuisance hides it."""

ATTRIBUTES: tuple[str, ...] = tuple(sorted(name for names in TASK_GROUPS.values() for name in names))
"""All 40 names in the order of CelebA, which is the alphabetical one."""


def sample_attributes(rng: random.Random) -> dict[str, int]:
    """One face: name -> 0 or 1, for all of ATTRIBUTES; every attribute has a share of about 0.2 to 0.5."""
    face = {name: int(rng.random() < 0.45) for name in ATTRIBUTES}
    return face | _sample_hair(rng) | _sample_beard(rng)


def _sample_hair(rng: random.Random) -> dict[str, int]:
    """Bald, or one colour (the four names, or red, or dyed) and one texture (straight, wavy, or cropped)."""
    hair = dict.fromkeys((*TASK_GROUPS["hair"], "Bangs", "Receding_Hairline"), 0)
    if rng.random() < 0.2:
        return hair | {"Bald": 1}
    # A name that stands there twice is twice as probable; "" is none of them.
    for choices in (
        (*HAIR_SHADES, *HAIR_SHADES, *HAIR_SHADES, "", ""),
        ("Straight_Hair", "Straight_Hair", "Wavy_Hair", "Wavy_Hair", ""),
        ("Bangs", "Bangs", "Receding_Hairline", "Receding_Hairline", ""),
        ("Sideburns", ""),
    ):
        if choice := rng.choice(choices):
            hair[choice] = 1
    return hair


def _sample_beard(rng: random.Random) -> dict[str, int]:
    """No beard at all, or at least one of stubble, goatee and moustache."""
    if rng.random() < 0.4:
        return dict.fromkeys(BEARDS, 0) | {"No_Beard": 1}
    beard = {name: int(rng.random() < 0.45) for name in BEARDS}
    if not any(beard.values()):
        beard[rng.choice(BEARDS)] = 1
    return beard | {"No_Beard": 0}


class Person:
    """All that several regions of one drawing have to agree on.

    What belongs to the whole image (outline of the face, skin, shoulders, the sky behind) and to the hair is spread over the
    picture, so no occluder can cover it. There the nuisance is part of the drawing: in bad light the signs of the whole image
    are half-way between their two values, and a spotted scarf lies over the hair. Both look the same for either value.

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
        # A scarf lies on a bald head as on any other.
        self.has_hair = self.hair_hidden or not attributes["Bald"]
        self.skin = _choose_skin(attributes, rng, self.whole_hidden)
        self.line = darken(self.skin, 0.55)
        self.beard = rng.choice(BEARD_SHADES)
        self.hair = _choose_hair(attributes, rng, self.hair_hidden)
        self.half_width = 0.26 + 0.06 * self.amount("Chubby")
        self.squareness = 2.1 + 1.6 * (1 - self.amount("Oval_Face"))

    def amount(self, name: str) -> float:
        """How strongly a sign of the whole image is drawn: 0 or 1, or 0.5 whatever the attribute when bad light hides it."""
        return 0.5 if self.whole_hidden else float(self.has[name])


def _choose_skin(attributes: Mapping[str, int], rng: random.Random, hidden: bool) -> Colour:
    skins = PALE_SKINS if attributes["Pale_Skin"] else WARM_SKINS
    skin = _choose_colour(skins, rng)
    return HIDDEN_SKIN if hidden else skin


def _choose_hair(attributes: Mapping[str, int], rng: random.Random, hidden: bool) -> Colour:
    shades = next((shades for name, shades in HAIR_SHADES.items() if attributes[name]), OTHER_HAIR)
    # Both are chosen whether hidden or not, so that the nuisance changes nothing else in the picture.
    shade = _choose_colour(shades, rng)
    scarf = _choose_colour(HIDDEN_HAIR, rng)
    return scarf if hidden else shade


def _choose_colour(colours: Sequence[Colour], rng: random.Random) -> Colour:
    """One of them; takes one number from `rng` however many there are, so that an attribute changes nothing but its own sign."""
    return colours[int(rng.random() * len(colours))]
