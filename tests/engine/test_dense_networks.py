"""The networks that runs of dense tasks begin with."""

import pytest

from distbranch.config import load_config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.initialisation import first_architecture
from distbranch.errors import UserError
from distbranch.models.dense_heads import HeadPlan
from distbranch.tasks import Task

ROOM = (Task("indoors"), Task("depth", "depth"))
RESIDUAL = {"model.backbone": "resnet18", "model.width": 8}


def make_info(tasks: tuple[Task, ...]) -> DatasetInfo:
    return DatasetInfo("rooms", tasks, {}, {}, (64, 64), {})


def test_heads_are_light_unless_others_are_asked_for() -> None:
    plans = []
    for changes in ({}, {"model.head": "aspp"}, {"model.head_width": 16}):
        config = load_config({}, RESIDUAL | {"model.output_stride": 8} | changes)
        plans.append(first_architecture(config, make_info(ROOM)).dense_head)
    assert plans == [HeadPlan("light", 64), HeadPlan("aspp", 1024), HeadPlan("light", 16)]


@pytest.mark.parametrize("setting", ["head=aspp", "head=light", "head_width=8"])
def test_heads_of_dense_tasks_are_refused_where_there_are_none(setting: str) -> None:
    config = load_config({}, [*(f"{k}={v}" for k, v in RESIDUAL.items()), f"model.{setting}"])
    with pytest.raises(UserError, match=rf"model.{setting} is of the heads of dense tasks"):
        first_architecture(config, make_info(ROOM[:1]))


def test_a_model_of_timm_is_left_without_its_pooling_if_tasks_are_dense() -> None:
    config = load_config(
        {}, ["model.backbone=timm:convnext_atto", "model.arguments={depths: [1, 1, 1, 1]}"]
    )
    features = {
        len(tasks): first_architecture(config, make_info(tasks)).specs[-1].features
        for tasks in (ROOM, ROOM[:1])
    }
    assert features == {2: (320, 2, 2), 1: (320,)}
