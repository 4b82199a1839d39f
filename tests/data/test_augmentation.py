"""Augmentation: a map is shown as its picture is, whatever is done to it, and each choice follows from the sample alone."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_samples import (
    BRIGHT,
    DEPTH,
    DISPARITY,
    HEIGHT,
    NORMALS,
    SEG,
    TASKS,
    WIDTH,
    make_board,
    make_codes,
    make_sample,
    pack_rooms,
)

from distbranch.data.augmentation import Augmentation, View
from distbranch.data.images import decode_to_size
from distbranch.data.label_maps import encode_map, get_dense_kind
from distbranch.data.loader import Batch, eval_loader, train_loader
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample
from distbranch.kinds.normals import decode_normals

SIZE = (HEIGHT, WIDTH)
DRAWN = [
    (False, 3, -2),
    (True, -2, 0),
    (False, 0, -2),
    (False, 2, 0),
    (False, -2, 1),
    (True, -3, 1),
]
DENSE = {task.name: task for task in TASKS if task != BRIGHT}
PICTURE = decode_to_size(make_sample(0).image, SIZE)
CODES = make_codes(make_board())


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return pack_rooms(tmp_path_factory.mktemp("rooms") / "set", num_samples=12)


def read_training(info: DatasetInfo, augmentation: Augmentation) -> Iterator[Batch]:
    return train_loader(info, "train", batch_size=12, image_size=SIZE, augmentation=augmentation)


def is_light(images: torch.Tensor) -> torch.Tensor:
    """Where the board is in pictures [..., 3, H, W]."""
    return images.float().mean(dim=-3) > 120


def share_in_place(batch: Batch) -> float:
    """Of all labelled pixels, the share whose class is the colour of the picture there."""
    labels = batch.maps["seg"]
    return ((labels == 1) == is_light(batch.images))[labels != 255].float().mean().item()


@pytest.mark.parametrize("name", DENSE)
def test_a_map_that_is_mirrored_twice_is_the_same_to_the_bit(name: str) -> None:
    kind = get_dense_kind(DENSE[name])
    codes = CODES[name]
    mirrored = kind.mirror_codes(codes)
    assert not np.array_equal(mirrored, codes)
    assert np.array_equal(kind.mirror_codes(mirrored), codes)


def test_every_code_of_a_normal_mirrors_exactly() -> None:
    codes = np.zeros((1, 255, 3), np.uint8)
    codes[0, :, 0] = np.arange(1, 256)
    codes[0, :, 1] = 128
    mirrored = get_dense_kind(NORMALS).mirror_codes(codes)
    assert (mirrored[0, ::-1, 0].astype(int) == 256 - codes[0, :, 0].astype(int)).all()


def test_mirrored_batches_are_batches_of_mirrored_pictures(info: DatasetInfo) -> None:
    plain = next(read_training(info, Augmentation()))
    batch = next(read_training(info, Augmentation(flip=True)))
    is_mirrored = (batch.images != plain.images).flatten(1).any(dim=1)
    assert 0 < is_mirrored.sum() < 12
    flipped = {name: one.flip(-1) for name, one in plain.maps.items()}
    codes = flipped["normals"].int()
    codes[:, 0] = torch.where(codes.any(dim=1), 256 - codes[:, 0], 0)
    flipped["normals"] = codes.to(torch.uint8)
    for name, maps in batch.maps.items():
        assert torch.equal(maps[is_mirrored], flipped[name][is_mirrored])
        assert torch.equal(maps[~is_mirrored], plain.maps[name][~is_mirrored])
    assert torch.equal(batch.images[is_mirrored], plain.images.flip(-1)[is_mirrored])
    assert share_in_place(batch) == 1


def test_the_x_of_mirrored_normals_is_negated() -> None:
    view = View(SIZE, SIZE, is_mirrored=True)
    before, valid = decode_normals(CODES["normals"])
    after, still_valid = decode_normals(view.show_codes(NORMALS, CODES["normals"]))
    assert np.array_equal(after[:, ::-1] * [-1, 1, 1], before)
    assert np.array_equal(still_valid[:, ::-1], valid)


def test_at_twice_the_size_a_label_lies_where_the_picture_has_it() -> None:
    view = View((2 * HEIGHT, 2 * WIDTH), (2 * HEIGHT, 2 * WIDTH), zoom=2.0)
    shown = view.show_codes(SEG, CODES["seg"])
    assert np.array_equal(shown[::2, ::2], CODES["seg"])
    light = view.show_image(PICTURE).mean(axis=2) > 120
    # Between two squares the picture is a slope, whose middle is the border of the labels.
    assert ((shown == 1) == light)[2:].mean() == 1


# Smaller squares have more of a border, in which a pixel is neither light nor dark; half a pixel more would be 0.12.
@pytest.mark.parametrize(("factor", "least"), [(0.5, 0.93), (0.7, 0.95), (1.3, 0.97), (2.0, 0.98)])
def test_labels_stay_on_their_picture_at_any_scale(
    info: DatasetInfo, factor: float, least: float
) -> None:
    batch = next(read_training(info, Augmentation(scale=(factor, factor))))
    assert batch.images.shape[2:] == SIZE
    assert share_in_place(batch) > least


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_depth_is_divided_by_the_scale_and_disparity_multiplied(factor: float) -> None:
    scaled = (int(factor * HEIGHT), int(factor * WIDTH))
    view = View(scaled, scaled, zoom=factor)
    metres = np.unique(view.show_codes(DEPTH, CODES["depth"]))
    assert metres[metres > 0].tolist() == [2 / factor, 4 / factor]
    pixels = np.unique(view.show_codes(DISPARITY, np.full(SIZE, 1 + 256 * 5, np.uint16)))
    assert pixels.tolist() == [5 * factor]
    fixed = Augmentation(scale=(factor, factor), depth_follows_scale=False)
    plain = fixed.choose_view(SIZE, 0, 0, 0).show_codes(DEPTH, CODES["depth"])
    assert np.unique(plain[plain > 0]).tolist() == [2, 4]


def test_padding_has_the_mean_colour_and_no_label_of_any_kind(info: DatasetInfo) -> None:
    size = (2 * HEIGHT, 2 * WIDTH)
    augmentation = Augmentation(crop=size, padding=(10, 20, 30), seed=3)
    batch = next(read_training(info, augmentation))
    assert batch.images.shape == (12, 3, *size)
    of_padding = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]
    is_padding = (batch.images == of_padding).all(dim=1)
    assert (is_padding.sum(dim=(1, 2)) == 3 * HEIGHT * WIDTH).all()
    assert (batch.maps["seg"][is_padding] == 255).all()
    assert (batch.maps["edges"][is_padding] == 255).all()
    assert (batch.maps["depth"][is_padding] == 0).all()
    assert (batch.maps["normals"].permute(0, 2, 3, 1)[is_padding] == 0).all()
    assert share_in_place(batch) == 1
    # The first row of every picture has no label either.
    assert (batch.labels[:, 0] * 4 * HEIGHT).tolist() == pytest.approx([HEIGHT - 1] * 12)


def test_a_crop_is_a_part_of_picture_and_maps_and_every_part_is_seen() -> None:
    augmentation = Augmentation(crop=(40, 60))
    views = [augmentation.choose_view(SIZE, epoch, 0, 0) for epoch in range(500)]
    assert {(view.top, view.left) for view in views} == {(t, c) for t in range(9) for c in range(5)}
    for view in views[:20]:
        cut = (slice(view.top, view.top + 40), slice(view.left, view.left + 60))
        assert np.array_equal(view.show_image(PICTURE), PICTURE[cut])
        assert np.array_equal(view.show_codes(SEG, CODES["seg"]), CODES["seg"][cut])


def test_what_a_shift_brings_into_view_has_no_label(info: DatasetInfo) -> None:
    view = View(SIZE, SIZE, down=3, right=-5)
    shown = view.show_codes(SEG, CODES["seg"])
    assert np.array_equal(shown[3:, :-5], CODES["seg"][:-3, 5:])
    assert (shown[:3] == 255).all()
    assert (shown[:, -5:] == 255).all()
    assert share_in_place(next(read_training(info, Augmentation(shift=9)))) == 1


def test_everything_together_keeps_labels_on_the_picture(info: DatasetInfo) -> None:
    everything = Augmentation(flip=True, shift=4, scale=(1.0, 1.6), crop=(40, 72), seed=5)
    for batch in islice(read_training(info, everything), 5):
        assert batch.images.shape[2:] == (40, 72)
        assert share_in_place(batch) > 0.97
        has_label = (batch.maps["seg"] != 255).flatten(1).any(dim=1)
        assert torch.equal(has_label, ~batch.labels[:, 0].isnan())


def test_maps_of_another_size_than_the_batch_are_scaled_once(info: DatasetInfo) -> None:
    options = {"batch_size": 12, "image_size": (96, 96)}
    augmentation = Augmentation(flip=True, scale=(0.8, 1.5), crop=(64, 64))
    batch = next(train_loader(info, "train", augmentation=augmentation, **options))  # type: ignore[arg-type]
    assert share_in_place(batch) > 0.97


def test_choices_follow_from_seed_epoch_and_sample_alone() -> None:
    augmentation = Augmentation(flip=True, shift=2, scale=(0.5, 1.5), crop=(32, 32), seed=1)
    first = augmentation.choose_view(SIZE, 0, 1, 2)
    assert augmentation.choose_view(SIZE, 0, 1, 2) == first
    others = [augmentation.choose_view(SIZE, *place) for place in ((1, 1, 2), (0, 2, 2), (0, 1, 3))]
    others.append(Augmentation(True, 2, 2, (0.5, 1.5), (32, 32)).choose_view(SIZE, 0, 1, 2))
    assert len({first, *others}) == 5


def test_scale_and_crop_change_nothing_of_what_flip_and_shift_draw() -> None:
    plain = Augmentation(flip=True, shift=7)
    scaled = Augmentation(flip=True, shift=7, scale=(0.5, 1.5), crop=(32, 32))
    for sample in range(50):
        one = plain.choose_view(SIZE, 0, 0, sample)
        other = scaled.choose_view(SIZE, 0, 0, sample)
        for field in ("is_mirrored", "down", "right"):
            assert getattr(one, field) == getattr(other, field)


def test_flip_and_shift_draw_what_they_always_drew() -> None:
    # Of runs that were begun with earlier versions, and are resumed.
    views = [Augmentation(True, 3, 7).choose_view(SIZE, 2, 1, n) for n in range(6)]
    assert [(view.is_mirrored, view.down, view.right) for view in views] == DRAWN


def test_a_crop_without_a_labelled_pixel_is_unlabelled(tmp_path: Path) -> None:
    codes = np.full(SIZE, 255, np.uint8)
    codes[:, : WIDTH // 2] = 1
    sample = make_sample(0)
    maps = {"seg": encode_map(SEG, codes)}
    info = pack([Sample("a", "train", sample.image, {}, maps)], tmp_path / "set", [SEG])
    augmentation = Augmentation(crop=(32, 32))
    batches = train_loader(info, "train", batch_size=1, image_size=SIZE, augmentation=augmentation)
    labels = torch.cat([batch.labels for batch in islice(batches, 40)])
    assert labels.isnan().any()
    assert (labels == 1).any()


def test_evaluation_sees_the_whole_image(info: DatasetInfo) -> None:
    batch = next(eval_loader(info, "train", batch_size=12, image_size=SIZE))
    assert batch.images.shape == (12, 3, *SIZE)
    assert torch.equal(batch.maps["seg"][0], torch.from_numpy(CODES["seg"]))
