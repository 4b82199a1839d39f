"""RandAugment, TrivialAugment, colour jitter and random parts: torchvision's pixels, and choices that belong to seed and sample."""

import io
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import run_command
from torchvision.transforms import InterpolationMode, autoaugment

from distbranch.data.augmentation import Augmentation
from distbranch.data.image_operations import RECIPES, TINTS, apply_operations
from distbranch.data.images import Pixels

SIZE = (60, 80)
GREY = (120, 110, 100)
# As torchvision calls them.
NAMES = {
    "shear-x": "ShearX",
    "shear-y": "ShearY",
    "translate-x": "TranslateX",
    "translate-y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "contrast": "Contrast",
    "saturation": "Color",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "identity": "Identity",
}


@pytest.fixture(scope="module")
def photograph(shared_data: Path) -> Pixels:
    with zipfile.ZipFile(shared_data / "clothing" / "images.zip") as images:
        name = min(name for name in images.namelist() if name.endswith(".jpg"))
        image = Image.open(io.BytesIO(images.read(name))).convert("RGB")
    return np.asarray(image.resize(SIZE[::-1]))


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_that_of_torchvision(photograph: Pixels, name: str) -> None:
    for amount in (0.3, 2.0, -0.2):
        theirs = amount
        if name == "posterize":
            theirs = 8 - round(abs(amount))
        if name == "solarize":
            theirs = 255 - abs(amount) * 50
        if name.startswith("translate") and abs(amount) < 1:
            theirs = amount * (SIZE[1] if name.endswith("x") else SIZE[0])
        ours = {"posterize": abs(amount), "solarize": abs(amount) * 50}.get(name, amount)
        expected = autoaugment._apply_op(
            Image.fromarray(photograph),
            NAMES[name],
            theirs,
            InterpolationMode.NEAREST,
            list(GREY),
        )
        found = apply_operations(photograph, [(name, ours)], GREY)
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_view_is_the_same_whenever_and_wherever_it_is_asked_for(photograph: Pixels) -> None:
    augmentation = Augmentation(seed=2, recipe="randaugment", jitter=0.4, crop_area=(0.3, 1.0))
    before = torch.random.get_rng_state()
    shown = [augmentation.choose_view(SIZE, 3, 1, n).show_image(photograph) for n in range(12)]
    assert torch.equal(torch.random.get_rng_state(), before), "training draws from that generator"
    assert len({image.tobytes() for image in shown}) == 12
    again = Augmentation(seed=2, recipe="randaugment", jitter=0.4, crop_area=(0.3, 1.0))
    for number, image in reversed(list(enumerate(shown))):
        np.testing.assert_array_equal(
            again.choose_view(SIZE, 3, 1, number).show_image(photograph), image
        )
    other = Augmentation(seed=3, recipe="randaugment", jitter=0.4, crop_area=(0.3, 1.0))
    assert other.choose_view(SIZE, 3, 1, 0) != augmentation.choose_view(SIZE, 3, 1, 0)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_all_operations_come_equally_often_and_as_strong_as_published(recipe: str) -> None:
    augmentation = Augmentation(recipe=recipe)
    per_image = RECIPES[recipe].num_operations
    views = [augmentation.choose_view(SIZE, 0, 0, number) for number in range(2800)]
    assert {len(view.operations) for view in views} == {per_image}
    drawn = [operation for view in views for operation in view.operations]
    counts = Counter(name for name, _ in drawn)
    assert set(counts) == set(NAMES)
    assert all(abs(count - 200 * per_image) < 60 * per_image for count in counts.values())
    rotations = [amount for name, amount in drawn if name == "rotate"]
    largest = {"randaugment": 9.0, "trivialaugment": 135.0}[recipe]
    assert max(rotations) == pytest.approx(largest)
    assert min(rotations) == pytest.approx(-largest)
    assert min(amount for name, amount in drawn if name in ("posterize", "solarize")) >= 0


def test_jitter_changes_three_tints_by_at_most_its_share() -> None:
    augmentation = Augmentation(jitter=0.4)
    drawn = [augmentation.choose_view(SIZE, 0, 0, number).operations for number in range(500)]
    assert {tuple(name for name, _ in operations) for operations in drawn} == {TINTS}
    amounts = np.array([[amount for _, amount in operations] for operations in drawn])
    assert np.abs(amounts).max() <= 0.4
    assert np.abs(amounts.mean(axis=0)).max() < 0.05
    assert (amounts.std(axis=0) > 0.2).all()


@pytest.mark.parametrize("bounds", [(0.08, 1.0), (0.5, 0.6), (1.0, 1.0)])
def test_a_part_has_a_share_of_the_area_between_the_two_that_were_given(
    bounds: tuple[float, float],
) -> None:
    augmentation = Augmentation(crop_area=bounds)
    views = [augmentation.choose_view(SIZE, 0, 0, number) for number in range(400)]
    for view in views:
        assert view.window == SIZE
        assert 0 <= view.top <= view.size[0] - SIZE[0]
        assert 0 <= view.left <= view.size[1] - SIZE[1]
    shares = np.array([SIZE[0] * SIZE[1] / (view.size[0] * view.size[1]) for view in views])
    assert bounds[0] * 0.95 <= shares.min()
    assert shares.max() <= bounds[1] * 1.05
    assert abs(shares.mean() - sum(bounds) / 2) < 0.05


def test_a_missing_torchvision_is_told_in_one_sentence(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    ended = run_command(["train", "tiny.yaml", "run.name=other", "data.augment=randaugment"])
    assert ended.code == 1, ended.err
    assert "data.augment needs the package torchvision" in ended.err
    assert world.is_dir()
