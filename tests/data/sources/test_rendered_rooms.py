"""Rendered rooms: labels agree with each other and with the picture, and a nuisance touches the labels of its group alone."""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distbranch.data.label_maps import decode_map
from distbranch.data.sources import pack_source, parse_options
from distbranch.data.sources.dense.class_names import NYU_13
from distbranch.data.sources.rendered_rooms import (
    NUISANCES,
    TASKS,
    choose_nuisance,
    encode_labels,
    list_groups,
    render_samples,
)
from distbranch.data.sources.rendered_rooms.drawing import Drawing, draw_room
from distbranch.data.sources.rendered_rooms.filters import blur
from distbranch.data.sources.rendered_rooms.labels import UNLABELLED, label_classes, label_geometry
from distbranch.data.sources.rendered_rooms.raycast import cast_rays, cast_shadows, pixel_slopes
from distbranch.data.sources.rendered_rooms.room import draw_scene
from distbranch.data.sources.rendered_rooms.scene import FOCAL_LENGTH, make_generator
from distbranch.kinds.normals import decode_normals

SIZE = (96, 128)
NONE = {"train": 0.0, "val": 0.0, "test": 0.0}


def draw(index: int, nuisance: str | None = None, size: tuple[int, int] = SIZE) -> Drawing:
    return draw_room(3, "train", index, size=size, nuisance=nuisance)


def back_project(depth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points [H, W, 3] in the axes of the normals: right, up, towards the camera."""
    u, v = pixel_slopes(depth.shape)
    rays = np.stack([*np.broadcast_arrays(u[None], v[:, None], np.float32(-1))], axis=-1)
    return rays.astype(float) * depth[..., None]


def angles_on_planes(drawing: Drawing) -> NDArray[np.float64]:
    """Degrees between stored normals and those of neighbouring points, where both neighbours lie on the pixel's plane."""
    normals, valid = decode_normals(encode_labels(drawing)["normals"])
    points = back_project(drawing.geometry.depth)
    across = points[:-1, 1:] - points[:-1, :-1]
    down = points[1:, :-1] - points[:-1, :-1]
    here = normals[:-1, :-1]
    is_planar = valid[:-1, :-1].copy()
    for step, there in ((across, normals[:-1, 1:]), (down, normals[1:, :-1])):
        is_planar &= (here == there).all(axis=-1)
        is_planar &= np.abs((step * here).sum(axis=-1)) < 1e-3  # metres
    cross = np.cross(down, across)[is_planar]
    cosine = (cross * here[is_planar]).sum(axis=-1) / np.linalg.norm(cross, axis=-1)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


@pytest.mark.parametrize("nuisance", [None, *NUISANCES])
def test_depth_and_normals_agree_on_planes(nuisance: str | None) -> None:
    angles = np.concatenate([angles_on_planes(draw(index, nuisance)) for index in range(8)])
    assert len(angles) > 40_000
    assert angles.max() < 1


def test_normals_point_up_on_floors_down_on_ceilings_and_towards_the_camera_everywhere() -> None:
    for index in range(12):
        scene = draw_scene(make_generator(3, index))
        hits = cast_rays(scene, SIZE)
        z = hits.normal[2].reshape(SIZE)
        classes = scene.class_index[hits.primitive].reshape(SIZE)
        assert (z[classes == NYU_13.index("ceiling")] == -1).all()
        assert np.mean(z[classes == NYU_13.index("floor")] == 1) > 0.95  # rugs have edges
        away = hits.point - scene.camera.position[:, None]
        assert ((hits.normal * away).sum(axis=0) < 1e-3).all()
        np.testing.assert_allclose(np.linalg.norm(hits.normal, axis=0), 1, atol=1e-5)


def test_depth_is_the_distance_along_the_optical_axis() -> None:
    scene = draw_scene(make_generator(0))
    hits = cast_rays(scene, SIZE)
    forward = scene.camera.axes[2] @ (hits.point - scene.camera.position[:, None])
    np.testing.assert_allclose(hits.depth, forward, rtol=1e-4)


def test_what_a_ray_hits_is_what_trying_every_primitive_with_every_pixel_finds() -> None:
    scene = draw_scene(make_generator(5))
    size = (24, 32)
    hits = cast_rays(scene, size)
    u, v = pixel_slopes(size)
    for pixel in range(0, 24 * 32, 13):
        row, column = divmod(pixel, 32)
        ray = np.array([u[column], v[row], 1.0]) @ scene.camera.axes.astype(float)
        assert hits.depth[pixel] == pytest.approx(march(scene, ray), abs=3e-3)


def march(scene, ray: NDArray[np.float64]) -> float:  # noqa: ANN001
    """Depth of the nearest surface, by sampling the ray densely in double precision."""
    depths = np.arange(0.05, 8, 0.002)
    points = scene.camera.position.astype(float)[:, None] + ray[:, None] * depths
    # Outside of the room is solid, too.
    local = (points - scene.centre[:, :1]) / scene.half[:, :1]
    solid = (np.abs(local) > 1).any(axis=0)
    for number in range(6, scene.num_primitives):
        x, y, z = points - scene.centre[:, number, None]
        c = float(scene.cosine[number])
        s = float(scene.sine[number])
        hx, hy, hz = scene.half[:, number]
        a, b, z = (c * x + s * y) / hx, (c * y - s * x) / hy, z / hz
        inside = {
            0: (np.abs(a) <= 1) & (np.abs(b) <= 1) & (np.abs(z) <= 1),
            1: (a * a + b * b <= 1) & (np.abs(z) <= 1),
            2: a * a + b * b + z * z <= 1,
        }
        solid |= inside[int(scene.shape[number])]
    return float(depths[solid.argmax()])


def test_a_lamp_above_a_table_leaves_the_floor_below_it_dark() -> None:
    scene = next(
        scene
        for scene in (draw_scene(make_generator(index)) for index in range(20))
        if NYU_13.index("table") in scene.class_index
    )
    number = int(np.flatnonzero(scene.class_index == NYU_13.index("table"))[0])
    x, y, z = scene.centre[:, number]
    points = np.array([[x, x], [y, y], [0.02, z + 0.2]], np.float32)
    lamp = replace(scene.lamps[0], position=np.array([x, y, 2.2], np.float32))
    # Things on the table must not stand between.
    scene = replace(scene, casts_shadow=np.arange(scene.num_primitives) == number)
    positions = np.repeat(lamp.position[:, None], 2, axis=1)
    assert cast_shadows(scene, points, lamp, positions).tolist() == [False, True]


def test_segmentation_has_known_classes_and_a_frame_without() -> None:
    seen: set[int] = set()
    shares = []
    for index in range(40):
        scene = draw_scene(make_generator(3, index))
        classes = label_classes(scene, cast_rays(scene, SIZE))
        seen |= set(np.unique(classes).tolist())
        shares.append(np.mean(classes == UNLABELLED))
        assert (classes[[0, 1, -1, -2]] == UNLABELLED).all()
        assert (classes[:, [0, 1, -1, -2]] == UNLABELLED).all()
    assert seen == {*range(13), UNLABELLED}
    assert 0.09 < np.mean(shares) < 0.18


def test_depth_is_missing_where_a_sensor_sees_nothing() -> None:
    missing = []
    for index in range(20):
        scene = draw_scene(make_generator(3, index))
        hits = cast_rays(scene, SIZE)
        valid = label_geometry(scene, hits, np.random.default_rng(0)).valid
        missing.append(np.mean(~valid))
        disparity = FOCAL_LENGTH * SIZE[1] * 0.075 / hits.depth.reshape(SIZE)
        step = disparity[:, 1:] - disparity[:, :-1]
        assert not valid[:, :-1][step >= 1].any()
    assert 0.07 < np.mean(missing) < 0.16


@pytest.mark.parametrize(
    ("nuisance", "changed"),
    [
        ("semantic", {"picture", "edges", "keypoints"}),
        ("geometry", {"picture", "depth", "normals", "edges", "keypoints"}),
        ("image", {"picture", "edges", "keypoints"}),
    ],
)
def test_a_nuisance_changes_the_picture_and_only_labels_that_follow_from_it(
    nuisance: str, changed: set[str]
) -> None:
    plain = draw(1)
    other = draw(1, nuisance)
    before = {"picture": plain.picture, **encode_labels(plain)}
    after = {"picture": other.picture, **encode_labels(other)}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == changed


def test_a_photograph_is_the_room_but_for_its_pins() -> None:
    plain = draw(2).picture
    photograph = draw(2, "geometry").picture
    differs = (plain != photograph).any(axis=2)
    assert 4 * 9 <= differs.sum() <= 4 * 25
    assert not differs[10:-10].any()
    assert not differs[:, 10:-10].any()


def test_a_board_is_one_plane() -> None:
    geometry = draw(4, "geometry").geometry
    normal = geometry.normals[0, 0]
    offsets = (back_project(geometry.depth) @ normal)[geometry.valid & (geometry.depth < 9.99)]
    np.testing.assert_allclose(offsets, offsets[0], rtol=1e-3)
    assert 25 <= np.degrees(np.arccos(normal[2])) <= 60


def test_checks_are_finer_than_the_rest_of_the_picture() -> None:
    def fineness(nuisance: str | None) -> float:
        grey = draw(6, nuisance).picture.mean(axis=2)
        return float(np.abs(grey - blur(blur(grey))).mean())

    assert fineness("image") > 2 * fineness(None)


def test_a_sample_depends_on_seed_split_and_index_only() -> None:
    options = {"image_size": (48, 64), "shares": {"train": 0.6, "val": 0.6}}
    long = list(render_samples({"train": 3, "val": 3}, seed=3, **options))
    short = list(render_samples({"val": 3}, seed=3, **options))
    assert long[3:] == short
    other = next(render_samples({"val": 1}, seed=4, **options))
    assert other.image != short[0].image
    assert len({sample.image for sample in long}) == len({sample.key for sample in long}) == 6


def test_the_key_of_a_sample_names_its_nuisance() -> None:
    samples = render_samples(
        {"train": 12}, image_size=(32, 32), seed=1, shares={"train": 0.6}, tasks=["segmentation"]
    )
    for index, sample in enumerate(samples):
        nuisance = choose_nuisance(1, "train", index, 0.6, NUISANCES)
        assert sample.key == f"train-{index:08d}" + (f"-{nuisance}" if nuisance else "")


def test_nuisances_come_equally_often_and_a_larger_share_only_adds() -> None:
    few = [choose_nuisance(0, "train", index, 0.3, NUISANCES) for index in range(3000)]
    many = [choose_nuisance(0, "train", index, 0.6, NUISANCES) for index in range(3000)]
    for name in NUISANCES:
        assert 0.17 < many.count(name) / 3000 < 0.23
    assert all(a in (None, b) for a, b in zip(few, many, strict=True))
    assert 0.27 < 1 - few.count(None) / 3000 < 0.33


def test_all_is_finite_and_nothing_warns_at_odd_sizes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index, size in enumerate([(32, 32), (33, 75), (64, 40), (97, 131)] * 4):
            drawing = draw(index, [None, *NUISANCES][index % 3], size)
            assert drawing.picture.shape == (*size, 3)
            for values in (drawing.edges, drawing.keypoints):
                assert values.shape == size
                assert values.min() >= 0
                assert values.max() <= 1
            assert np.isfinite(drawing.geometry.depth).all()
            assert np.isfinite(drawing.geometry.normals).all()


def test_pictures_and_maps_are_decoded_as_they_were_drawn() -> None:
    [sample] = render_samples({"val": 1}, image_size=SIZE, seed=0, shares=NONE)
    drawing = draw_room(0, "val", 0, size=SIZE)
    image = Image.open(io.BytesIO(sample.image))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 96))
    assert np.abs(np.asarray(image, float) - drawing.picture).mean() < 4
    assert list(sample.maps) == list(TASKS)
    for name, codes in encode_labels(drawing).items():
        np.testing.assert_array_equal(decode_map(TASKS[name], sample.maps[name]), codes)
    noise = decode_map(TASKS["noise"], sample.maps["noise"])
    assert np.histogram(noise, bins=4, range=(0, 254))[0].min() > 0.2 * noise.size


def test_rooms_are_packed_with_the_groups_that_were_planted(tmp_path: Path) -> None:
    source = parse_options(
        {
            "source": "rendered-rooms",
            "samples": 2,
            "val": "1",
            "test": 1,
            "image_size": "48x64",
            "tasks": "normals,depth,noise",
        }
    ).open()
    assert source.num_samples == 4
    info = pack_source(source, tmp_path / "rooms")
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    assert [task.name for task in info.tasks] == ["depth", "normals", "noise"]
    assert info.groups == {"geometry": ("depth", "normals"), "noise": ("noise",)}
    assert info.image_size == (48, 64)
    assert info.source["eval_nuisance"] == 0


def test_val_and_test_are_without_nuisance_unless_it_is_asked_for() -> None:
    values = {"source": "rendered-rooms", "image_size": "32", "samples": 1, "val": 3, "test": 3}
    plain = [sample.key for sample in parse_options({**values, "nuisance": 1}).open().samples]
    assert plain[1:] == [f"{split}-{i:08d}" for split in ("val", "test") for i in range(3)]
    assert plain[0].endswith(NUISANCES)
    asked = parse_options({**values, "eval_nuisance": 1, "nuisances": "image"}).open().samples
    assert [sample.key.endswith("-image") for sample in asked][1:] == [True] * 6


def test_the_groups_of_all_tasks_are_those_of_the_nuisances() -> None:
    assert list_groups([name for name in TASKS if name != "noise"]) == {
        "semantic": ("segmentation",),
        "geometry": ("depth", "normals"),
        "image": ("edges", "keypoints"),
    }
