"""Runs that see scaled parts of their images: what is trained on them is evaluated on whole images, and priced by these."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import config_of, pack_tiny, train_tiny

from distbranch.config import load_config
from distbranch.data.label_maps import encode_map
from distbranch.data.pack import pack
from distbranch.data.shards import Sample, read_dataset
from distbranch.engine.artifact import load_model
from distbranch.engine.distributed import Ranks
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.loaders import open_training
from distbranch.engine.training_state import TrainingState
from distbranch.engine.training_step import TrainingStep
from distbranch.errors import UsageError, UserError
from distbranch.launch.prepare import check_data
from distbranch.maps import join_labels
from distbranch.models.architecture import multiply_adds
from distbranch.tasks import Task

RESIDUAL = {"model.backbone": "resnet18", "model.width": 4, "method.name": "fixed"}
EDGES = Task("edges", "heat")
SEEN = {"data.image_size": [48, 64], "data.scale": [0.7, 1.4], "data.crop": [40, 32]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    pack_tiny(folder)
    return folder


def test_a_run_is_trained_on_parts_and_evaluated_on_whole_images(
    data: Path, tmp_path: Path
) -> None:
    config = config_of(data, tmp_path, **RESIDUAL, **SEEN, **{"train.iterations": 3})
    ended = train_tiny(config)
    assert ended["end"] == "done", ended["message"]
    ranks = Ranks.alone()
    info = read_dataset(data)
    batch = next(open_training(info, load_config(config), ranks, image_size=(48, 64), start=0))
    assert batch.images.shape == (12, 3, 40, 32)
    network, preprocessing = load_model(tmp_path / "tiny")
    assert preprocessing.image_size == (48, 64)
    whole = first_architecture(load_config(config, ["data.crop=", "data.scale="]), info)
    assert multiply_adds(network.architecture) == multiply_adds(whole)


def draw_half_labelled() -> Iterator[Sample]:
    """Every image has edges, in its left 16 of 64 columns alone."""
    file = BytesIO()
    Image.fromarray(np.full((32, 64, 3), 90, np.uint8)).save(file, "JPEG")
    codes = np.full((32, 64), 255, np.uint8)
    codes[:, :16] = 127
    for number in range(24):
        maps = {"edges": encode_map(EDGES, codes)}
        yield Sample(f"train-{number}", "train", file.getvalue(), {"bright": number % 2}, maps)


def test_an_image_whose_part_has_no_label_does_not_count_as_one_that_has(tmp_path: Path) -> None:
    info = pack(draw_half_labelled(), tmp_path / "data", (EDGES, Task("bright")))
    cut = {"data.shift": 0, "data.crop": [32, 32]}
    config = load_config(config_of(tmp_path / "data", tmp_path, **RESIDUAL, **cut))
    ranks = Ranks(0, 1, torch.device("cpu"))
    state = TrainingState(config, ranks, info, [{"precision": "fp32"}])
    state.net.begin(first_architecture(config, info), seed=1)
    state.progress.growing = True
    step = TrainingStep(state)
    batch = next(open_training(info, config, ranks, image_size=(32, 64), start=0))
    step.train(batch.images, join_labels(batch.labels, batch.maps), batch.indices)
    step.wait_for_step_sums()
    seen = (~batch.labels.isnan()).sum(dim=0).double()
    assert 0 < seen[0] < seen[1] == 12
    assert torch.equal(state.window.counts, seen)
    assert torch.equal(state.stats.margins[2:], seen)


def test_a_backbone_for_one_size_cannot_be_trained_on_parts(data: Path, tmp_path: Path) -> None:
    config = load_config(config_of(data, tmp_path, **SEEN))
    with pytest.raises(UserError, match=r"data.crop=\[40, 32\].*fc5 of vgg9 are for 48x64 pixels"):
        first_architecture(config, read_dataset(data))
    scaled = load_config(config_of(data, tmp_path, **{**SEEN, "data.crop": None}))
    assert first_architecture(scaled, read_dataset(data)).image_size == (48, 64)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.scale=[1.5, 0.5]", r"data.scale: should be \[least, largest\]"),
        ("data.scale=[0, 1]", r"data.scale"),
        ("data.crop=[16, 64]", r"data.crop"),
    ],
)
def test_scales_and_crops_that_are_none_are_refused(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_config({}, [override])


def test_a_scale_for_depth_is_told_where_nothing_is_scaled() -> None:
    (told,) = load_config({}, ["data.depth_follows_scale=false"]).ignored
    assert "data.scale, which is empty" in told
    both = load_config({}, ["data.depth_follows_scale=false", "data.scale=[1, 1.5]"])
    assert both.ignored == ()


NORMALS = (Task("normals", "normals"),)


@pytest.mark.parametrize(
    ("tasks", "given", "said"),
    [
        ((Task("soft"),), {"depth_follows_scale": False}, "of depth tasks, of which .* has none"),
        (NORMALS, {"image_size": [96, 96]}, r"stretch .* 48x64 pixels.* Give \[72, 96\]"),
    ],
)
def test_what_would_turn_labels_or_has_no_effect_is_refused(
    data: Path, tmp_path: Path, tasks: tuple[Task, ...], given: dict[str, Any], said: str
) -> None:
    overrides = {f"data.{key}": value for key, value in given.items()}
    scaled = {"data.scale": [1, 2], **RESIDUAL}
    config = load_config(config_of(data, tmp_path, **scaled, **overrides))
    info = replace(read_dataset(data), tasks=tasks, image_size=(48, 64))
    with pytest.raises(UserError, match=said):
        check_data(config, info)


@pytest.mark.parametrize(
    "given",
    [{"augment": "trivialaugment"}, {"crop_area": [0.5, 1]}, {"mixup": 0.2}, {"cutmix": 1.0}],
)
def test_what_maps_cannot_follow_is_refused_for_dense_tasks_and_colours_are_not(
    data: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    dense = replace(read_dataset(data), tasks=NORMALS, image_size=(48, 64))
    overrides = {f"data.{key}": value for key, value in given.items()}
    config = load_config(config_of(data, tmp_path, **RESIDUAL, **overrides))
    with pytest.raises(UserError, match=f"data.{next(iter(given))} .* maps of dense tasks cannot"):
        check_data(config, dense)
    colours = {"data.jitter": 0.4, "data.image_size": [72, 96]}
    check_data(load_config(config_of(data, tmp_path, **RESIDUAL, **colours)), dense)


@pytest.mark.parametrize(
    ("name", "said"), [("normal", "nearest of its"), ("normals", "whose kind is normals")]
)
def test_tasks_without_classes_are_not_balanced(
    data: Path, tmp_path: Path, name: str, said: str
) -> None:
    config = load_config(config_of(data, tmp_path, **RESIDUAL, **{"data.balance": {name: 1}}))
    with pytest.raises(UserError, match=f"data.balance should name tasks .*{said}"):
        check_data(config, replace(read_dataset(data), tasks=NORMALS))


def test_a_size_of_the_same_shape_is_not_refused_for_normals(data: Path, tmp_path: Path) -> None:
    overrides = {"data.image_size": [73, 97], "optim.name": "sgd"}
    config = load_config(config_of(data, tmp_path, **RESIDUAL, **overrides))
    check_data(config, replace(read_dataset(data), tasks=NORMALS, image_size=(48, 64)))
