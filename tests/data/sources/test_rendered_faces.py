"""Rendered faces: the drawing shows every attribute in the region that it belongs to, and nuisance hides that region alone."""

import io
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distbranch.data.pack import pack
from distbranch.data.sources.rendered_faces import list_attribute_tasks, render_face, render_samples
from distbranch.data.sources.rendered_faces.attributes import (
    ATTRIBUTES,
    TASK_GROUPS,
    sample_attributes,
)
from distbranch.data.sources.rendered_faces.drawing import read_face
from distbranch.errors import UserError

CELEBA = [
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
]
SIZE = 96
NUISANCE_AREAS = read_face()["nuisance_areas"]
IN_A_LOCAL_REGION = [(region, name) for region in NUISANCE_AREAS for name in TASK_GROUPS[region]]
NOT_DRAWN = {"No_Beard"}  # it is the absence of the other three


def pixels(attributes: dict[str, int], seed: int, region: str | None = None) -> NDArray[np.float64]:
    return np.asarray(
        render_face(attributes, size=SIZE, seed=seed, nuisance_region=region), dtype=np.float64
    )


def flipped(attributes: dict[str, int], name: str) -> dict[str, int]:
    return attributes | {name: 1 - attributes[name]}


def area_of(region: str, margin: float = 0.02) -> NDArray[np.bool_]:
    """[SIZE, SIZE]: where the nuisance of a local region may be seen."""
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
    inside = np.zeros((SIZE, SIZE), dtype=bool)
    for left, top, right, bottom in NUISANCE_AREAS[region]:
        inside |= (
            (x > left - margin) & (x < right + margin) & (y > top - margin) & (y < bottom + margin)
        )
    return inside


def sharp_face(seed: int) -> dict[str, int]:
    return sample_attributes(random.Random(seed)) | {"Blurry": 0}


def test_the_attributes_are_those_of_celeba_in_its_order() -> None:
    assert list(ATTRIBUTES) == CELEBA
    assert [task.name for task in list_attribute_tasks()] == CELEBA


def test_every_attribute_is_in_exactly_one_region_and_no_region_has_a_single_one() -> None:
    assert sorted(name for names in TASK_GROUPS.values() for name in names) == CELEBA
    assert min(len(names) for names in TASK_GROUPS.values()) >= 2


def test_a_sample_depends_on_seed_split_and_index_only() -> None:
    long = list(render_samples({"train": 5, "val": 3}, image_size=48, seed=3))
    short = list(render_samples({"val": 3}, image_size=48, seed=3))
    assert long[5:] == short
    assert next(render_samples({"val": 1}, image_size=48, seed=4)).image != short[0].image
    assert len({sample.image for sample in long}) == len({sample.key for sample in long}) == 8


def test_images_are_square_jpegs_of_the_size_asked_for() -> None:
    image = Image.open(io.BytesIO(next(render_samples({"train": 1}, image_size=40, seed=0)).image))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 40))


def test_attributes_are_balanced_and_exclude_what_a_face_excludes() -> None:
    faces = [sample_attributes(random.Random(seed)) for seed in range(2000)]
    share = {name: np.mean([face[name] for face in faces]) for name in ATTRIBUTES}
    assert min(share.values()) > 0.14
    assert max(share.values()) < 0.56
    for face in faces:
        hair = [face[name] for name in ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")]
        assert sum(hair) + face["Bald"] <= 1
        assert face["Straight_Hair"] + face["Wavy_Hair"] + face["Bald"] <= 1
        assert face["Bangs"] + face["Receding_Hairline"] + face["Bald"] <= 1
        assert face["No_Beard"] == 1 - max(
            face["5_o_Clock_Shadow"], face["Goatee"], face["Mustache"]
        )


@pytest.mark.parametrize("name", [name for name in ATTRIBUTES if name not in NOT_DRAWN])
def test_every_attribute_is_seen_in_the_drawing(name: str) -> None:
    face = sharp_face(0) | {"Bald": 0, "Wearing_Hat": 0, "Eyeglasses": 0}
    assert np.abs(pixels(face, 1) - pixels(flipped(face, name), 1)).max() > 30


@pytest.mark.parametrize(("region", "name"), IN_A_LOCAL_REGION)
def test_an_attribute_of_a_local_region_changes_only_the_area_of_its_region(
    region: str, name: str
) -> None:
    for seed in range(3):
        face = sharp_face(seed)
        changed = np.abs(pixels(face, seed) - pixels(flipped(face, name), seed)).max(axis=2) > 8
        assert not (changed & ~area_of(region)).any()


@pytest.mark.parametrize("region", NUISANCE_AREAS)
def test_the_nuisance_of_a_local_region_leaves_the_rest_of_the_picture_alone(region: str) -> None:
    for seed in range(12):  # every kind of nuisance
        face = sharp_face(seed)
        changed = np.abs(pixels(face, seed) - pixels(face, seed, region)).max(axis=2) > 8
        assert changed.any()
        assert not (changed & ~area_of(region, margin=0.04)).any()


@pytest.mark.parametrize("region", TASK_GROUPS)
def test_nuisance_hides_the_attributes_of_its_region(region: str) -> None:
    seen, hidden = 0.0, 0.0
    for seed, name in enumerate(TASK_GROUPS[region] * 2):
        face = sharp_face(seed) | {"Bald": 0, "Blurry": 0}
        other = flipped(face, name)
        seen += np.abs(pixels(face, seed) - pixels(other, seed)).mean()
        hidden += np.abs(pixels(face, seed, region) - pixels(other, seed, region)).mean()
    assert hidden < 0.1 * seen


def test_without_nuisance_every_region_is_seen_and_with_it_the_named_share_is_covered() -> None:
    plain = [
        sample.image
        for sample in render_samples({"train": 200}, image_size=32, seed=5, nuisance=0.0)
    ]
    often = [
        sample.image
        for sample in render_samples({"train": 200}, image_size=32, seed=5, nuisance=0.8)
    ]
    assert 0.65 < np.mean([a != b for a, b in zip(plain, often, strict=True)]) < 0.92


def test_rendered_faces_are_packed(tmp_path: Path) -> None:
    faces = render_samples({"train": 6, "val": 2}, image_size=32, seed=0)
    info = pack(faces, tmp_path / "faces", list_attribute_tasks(), groups=TASK_GROUPS)
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 6,
        "val": 2,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: render_face({"Smilling": 1}, size=64, seed=0), "Smilling"),
        (lambda: render_face({}, size=8, seed=0), "at least 32"),
        (lambda: render_face({}, size=64, seed=0, nuisance_region="chin"), "'chin'"),
        (
            lambda: list(
                islice(render_samples({"train": 1}, image_size=64, seed=0, nuisance=2.0), 1)
            ),
            "between 0 and 1",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(wrong, message: str) -> None:  # noqa: ANN001
    with pytest.raises(UserError, match=message):
        wrong()
