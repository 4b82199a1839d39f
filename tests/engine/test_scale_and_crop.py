"""Runs that see scaled parts of their images: what is trained on them is evaluated on whole images, and priced by these."""

from pathlib import Path

import pytest
from tiny_runs import config_of, pack_tiny, train_tiny

from distbranch.config import load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.artifact import load_model
from distbranch.engine.initialisation import first_architecture
from distbranch.errors import UsageError, UserError
from distbranch.models.architecture import multiply_adds

RESIDUAL = {"model.backbone": "resnet18", "model.width": 4, "method.name": "fixed"}
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
    network, preprocessing = load_model(tmp_path / "tiny")
    assert preprocessing.image_size == (48, 64)
    whole = first_architecture(
        load_config(config, ["data.crop=", "data.scale="]), read_dataset(data)
    )
    assert multiply_adds(network.architecture) == multiply_adds(whole)


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
