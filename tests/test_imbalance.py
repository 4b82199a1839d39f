"""Rare labels: weights by class and of positives, counted or given, and losses that fit them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_server import RankServer
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel
from tiny_runs import config_of, train_tiny
from torch import Tensor
from torch.nn import functional

from distbranch.config import load_config
from distbranch.config.training import LossConfig
from distbranch.data.shards import read_dataset
from distbranch.engine.session import evaluate_run
from distbranch.errors import UsageError, UserError
from distbranch.kinds.label_counts import ClassCounts
from distbranch.label_weights import MAX_WEIGHT, with_counted_weights
from distbranch.losses import LOSSES, build_task_set
from distbranch.tasks import Task, TaskSet

HAT, TIE = Task("hat"), Task("tie")
COLOUR = Task("colour", "categorical", ("red", "green", "blue"))
SIZE = Task("size", "ordinal", ("small", "medium", "large"))
AGE = Task("age", "number", mean=40.0, deviation=10.0)
TASKS = (HAT, COLOUR, AGE, TIE, SIZE)
GIVEN: dict[str, Any] = {
    "class_weights": {"colour": (0.5, 1.0, 4.0), "size": (3.0, 1.0, 2.0)},
    "positive_weights": {"tie": 3.3},
}


def draw_batch(count: int = 40) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(count, TaskSet(TASKS).num_outputs, generator=draw)
    rows = torch.arange(count)
    labels = torch.stack([rows % 2, rows % 3, 30.0 + rows, rows % 5 // 4, rows // 3 % 3], dim=1)
    labels[::7, 1:4] = math.nan
    return outputs, labels


def count_labels(task: Task, values: list[Any]) -> Mapping[str, int | float]:
    counts = ClassCounts(task.classes or ("1", "0"))
    for value in values:
        counts.add(value)
    return counts.to_json()


def test_balanced_weights_of_classes_are_those_of_sklearn_over_the_classes_that_occur() -> None:
    values = ["red"] * 30 + ["blue"] * 7
    counts = {"colour": count_labels(COLOUR, values)}
    config = LossConfig(class_weights={"colour": "balanced"})
    found = with_counted_weights(config, TASKS, counts).class_weights["colour"]
    expected = compute_class_weight("balanced", classes=np.array(["red", "blue"]), y=values)
    assert found == pytest.approx((expected[0], 1.0, expected[1]))


def test_automatic_weights_of_positives_are_negatives_by_positives_up_to_a_limit() -> None:
    counts = {"hat": {"1": 10, "0": 35, "soft": 4, "unlabelled": 9}, "tie": {"1": 1, "0": 5000}}
    auto = with_counted_weights(LossConfig(positive_weights="auto"), TASKS, counts)
    assert auto.positive_weights == {"hat": 3.5, "tie": MAX_WEIGHT}
    some = LossConfig(positive_weights={"hat": "auto", "tie": 2.0})
    assert with_counted_weights(some, TASKS, counts).positive_weights == {"hat": 3.5, "tie": 2.0}
    without = with_counted_weights(some, TASKS, {"hat": {"1": 0, "0": 8}})
    assert without.positive_weights == {"hat": 1.0, "tie": 2.0}


def test_weighted_losses_are_those_of_torch_and_leave_margins_and_other_tasks_as_they_are() -> None:
    outputs, labels = draw_batch()
    plain, weighted = TaskSet(TASKS), build_task_set(TASKS, LossConfig(**GIVEN))
    own, found = plain.compute_losses(outputs, labels), weighted.compute_losses(outputs, labels)
    assert torch.equal(found[:, [0, 2]], own[:, [0, 2]])
    logits = plain.split_by_task(outputs)
    known = ~labels[:, 1].isnan()
    of_colour = functional.cross_entropy(
        logits["colour"][known],
        labels[known, 1].long(),
        torch.tensor(GIVEN["class_weights"]["colour"]),
        reduction="none",
    )
    torch.testing.assert_close(found[known, 1], of_colour)
    of_tie = functional.binary_cross_entropy_with_logits(
        logits["tie"][known], labels[known, 3], pos_weight=torch.tensor(3.3), reduction="none"
    )
    torch.testing.assert_close(found[known, 3], of_tie)
    of_size = torch.tensor(GIVEN["class_weights"]["size"])[labels[:, 4].long()]
    torch.testing.assert_close(found[:, 4], own[:, 4] * of_size)
    assert not found[~known, 1:4].any()
    assert torch.equal(
        weighted.compute_margins(outputs, labels), plain.compute_margins(outputs, labels)
    )
    alone = weighted.select([TIE]).compute_losses(
        outputs[:, weighted.columns["tie"]], labels[:, 3:4]
    )
    torch.testing.assert_close(alone[:, 0], found[:, 3])


def test_smoothed_labels_of_binary_and_categorical_tasks_are_those_of_torch() -> None:
    outputs, labels = draw_batch()
    found = build_task_set(TASKS, LossConfig(label_smoothing=0.2)).compute_losses(outputs, labels)
    logits = TaskSet(TASKS).split_by_task(outputs)
    smooth = functional.binary_cross_entropy_with_logits(
        logits["hat"], labels[:, 0] * 0.8 + 0.1, reduction="none"
    )
    torch.testing.assert_close(found[:, 0], smooth)
    known = ~labels[:, 1].isnan()
    of_colour = functional.cross_entropy(
        logits["colour"][known], labels[known, 1].long(), reduction="none", label_smoothing=0.2
    )
    torch.testing.assert_close(found[known, 1], of_colour)
    own = TaskSet(TASKS).compute_losses(outputs, labels)
    assert torch.equal(found[:, [2, 4]], own[:, [2, 4]])


def test_asymmetric_losses_are_those_of_timm() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(200, 2, 1, generator=draw)
    labels = torch.rand(200, 2, generator=draw).round(decimals=1)
    labels[:100] = labels[:100].round()
    expected = AsymmetricLossMultiLabel(reduction="none")(logits.squeeze(2), labels)
    torch.testing.assert_close(LOSSES["binary:asymmetric"](logits, labels), expected)

    choices = 3 * torch.randn(200, 2, 5, generator=draw)
    classes = torch.randint(5, (200, 2), generator=draw).float()
    reference = AsymmetricLossSingleLabel(reduction="none")
    of_tasks = [reference(choices[:, task], classes[:, task]) for task in range(2)]
    found = LOSSES["categorical:asymmetric"](choices, classes)
    torch.testing.assert_close(found, torch.stack(of_tasks, dim=1))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_asymmetric_loss_of_certain_answers_has_a_finite_gradient(label: float) -> None:
    logits = torch.tensor([[[-200.0]], [[200.0]]], requires_grad=True)
    LOSSES["binary:asymmetric"](logits, torch.full((2, 1), label)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"class_weights": {"hat": "balanced"}},
            r"tasks with classes .*\(colour, size\), found 'hat'",
        ),
        ({"class_weights": {"coluor": "balanced"}}, r"\(colour\), found 'coluor'"),
        ({"positive_weights": {"age": 2.0}}, r"binary tasks .*\(hat, tie\), found 'age'"),
    ],
)
def test_weights_of_tasks_that_cannot_have_them_are_refused(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        with_counted_weights(LossConfig(**given), TASKS, {})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("loss.class_weights={kind: often}", "loss.class_weights.kind: .*'balanced'"),
        ("loss.class_weights={kind: [1, 0]}", "loss.class_weights.kind.1: .*greater than 0"),
        ("loss.positive_weights=balanced", "loss.positive_weights: .*'auto'"),
        ("loss.positive_weights={a: -1}", "loss.positive_weights.a: .*greater than 0"),
        ("loss.label_smoothing=1", "less than 1"),
    ],
)
def test_weights_that_are_none_are_told_by_their_key(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config({}, [given])


def test_labels_are_smoothed_for_the_cross_entropy_of_classes_alone() -> None:
    given = ["loss.label_smoothing=0.1", "loss.functions={categorical: focal}"]
    with pytest.raises(UsageError, match=r"label_smoothing=0.1 .*categorical=focal"):
        load_config({}, given)


def test_two_ranks_count_the_same_weights_record_them_and_are_evaluated_with_them(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = {"train.iterations": 2, "train.evaluate_every": 0, "launch.workers": 2}
    changes |= {"loss.class_weights": {"kind": "balanced"}, "loss.positive_weights": "auto"}
    config = config_of(tiny_data, tmp_path, **changes, **{"method.name": "fixed"})
    for one in ranks.call_all(train_tiny, 2, config=config):
        assert one["end"] == "done", one["message"]
    result = json.loads((tmp_path / "tiny" / "result.json").read_text())
    counts = read_dataset(tiny_data).splits["train"].labels
    of_cells = {f"cell-{n}": counts[f"cell-{n}"] for n in range(7)}
    assert result["label_weights"]["positive_weights"] == {
        name: own["0"] / own["1"] for name, own in of_cells.items()
    }
    kind = counts["kind"]
    total = kind["low"] + kind["middle"] + kind["high"]
    expected = [total / (3 * kind[name]) for name in ("low", "middle", "high")]
    assert result["label_weights"]["class_weights"]["kind"] == pytest.approx(expected)
    again = evaluate_run(tmp_path / "tiny", "val")
    assert again["loss"] == pytest.approx(result["metrics"]["val"]["loss"])
