"""The 40 attributes of a drawn face and the regions in which they are seen.

Attributes are independent except for what a face excludes by nature (a bald head has no hair colour), so that whatever tasks
of one region have in common comes from the nuisance that falls on their region, not from their labels.
"""

import random

HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
BEARDS = ("5_o_Clock_Shadow", "Goatee", "Mustache")
TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "hair": ("Bald", *HAIR_COLOURS, "Sideburns", "Straight_Hair", "Wavy_Hair"),
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
    "whole image": (
        "Attractive",
        "Blurry",
        "Chubby",
        "Double_Chin",
        "Male",
        "Oval_Face",
        "Pale_Skin",
        "Young",
    ),
}
"""Region -> its attributes. Every attribute is in exactly one region, the one whose nuisance hides it."""

ATTRIBUTES: tuple[str, ...] = tuple(
    sorted(name for names in TASK_GROUPS.values() for name in names)
)
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
        (*HAIR_COLOURS, *HAIR_COLOURS, *HAIR_COLOURS, "", ""),
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
