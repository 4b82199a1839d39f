"""What losses are multiplied by: given weights, and weightings that follow the losses, against their definitions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gradient_aggregation import TREE, make_batch, make_state, refusal, train_steps
from tiny_runs import TASKS, config_of, lines_of, train_tiny
from torch import Tensor

from distbranch.config import load_config
from distbranch.config.training import LossConfig
from distbranch.config.unread import keys_without_effect
from distbranch.engine.loss_weighting import LossWeighting, get_loss_weights, make_weighting
from distbranch.tasks import Task

LEARNED = ("uncertainty", "imtl-l")
PRECISE = {"rtol": 1e-4, "atol": 1e-6}


def weighting_of(name: str, num_tasks: int, **settings: Any) -> LossWeighting:
    tasks = [Task(f"task-{number}") for number in range(num_tasks)]
    return make_weighting(LossConfig(weighting=name, **settings), tasks)


def gradients_of(
    loss: dict[str, Any], data: Path, folder: Path, **changes: Any
) -> dict[str, Tensor]:
    """The gradients of one step, not clipped."""
    changes = {"train.clip_norm": 1e9, "train.norm_batch": 4, "loss": loss, **changes}
    found = train_steps(make_state(config_of(data, folder, **TREE, **changes)), 1)
    return {name: value for name, value in found.items() if name.endswith(":gradient")}


def plain_losses(data: Path, folder: Path) -> tuple[Any, Tensor]:
    """A network, and the losses [T] of the batch with a graph: sums over 12 images in groups of 4, as a naive loop has them."""
    state = make_state(config_of(data, folder, **TREE))
    images, labels = make_batch()
    network = state.net.network
    total = torch.zeros(len(TASKS))
    for first in range(0, len(images), 4):
        part = slice(first, first + 4)
        outputs = network(images[part], flat=True)
        total = total + network.tasks.compute_losses(outputs, labels[part]).sum(dim=0)
    return network, total / len(images)


def test_a_given_weight_multiplies_the_gradient_of_its_task(
    tiny_data: Path, tmp_path: Path
) -> None:
    plain = gradients_of({}, tiny_data, tmp_path)
    given = gradients_of({"weights": {"cell-1": 3.0}}, tiny_data, tmp_path)
    heads, expected = given["heads.weight:gradient"], plain["heads.weight:gradient"].clone()
    expected[1] *= 3
    torch.testing.assert_close(heads, expected, **PRECISE)
    aggregated = {"weights": {"cell-1": 3.0}, "aggregation": "imtl-g"}
    aggregated_heads = gradients_of(aggregated, tiny_data, tmp_path)["heads.weight:gradient"]
    torch.testing.assert_close(aggregated_heads, expected, **PRECISE)


@pytest.mark.parametrize("name", [*LEARNED, "famo", "stch"])
def test_the_gradient_is_that_of_the_published_objective(
    name: str, tiny_data: Path, tmp_path: Path
) -> None:
    """Tasks without a label in the batch have no part in it; lambda = 2 for one task."""
    network, losses = plain_losses(tiny_data, tmp_path)
    weights = torch.ones(len(TASKS))
    weights[3] = 2.0
    losses = losses * weights
    labelled = losses[[task for task in range(len(TASKS)) if task != 2]]
    if name == "uncertainty":  # s = 0
        objective = (losses / 2).sum()
    elif name == "imtl-l":
        objective = losses.sum()
    elif name == "famo":  # z equal
        objective = len(TASKS) * labelled.log().sum() / (1 / labelled).sum().detach()
    else:
        objective = len(TASKS) * 0.5 * torch.logsumexp(labelled / 0.5, dim=0)
    names, parameters = zip(*network.named_parameters(), strict=True)
    expected = torch.autograd.grad(objective, parameters)

    # Of three passes, which a weighting may not see one by one, as well.
    for accumulate in (1, 3):
        loss = {"weighting": name, "weights": {"cell-3": 2.0}}
        found = gradients_of(loss, tiny_data, tmp_path, **{"train.accumulate": accumulate})
        for key, value in zip(names, expected, strict=True):
            torch.testing.assert_close(found[f"{key}:gradient"], value, **PRECISE)


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_goes_to_where_its_objective_is_least(name: str) -> None:
    """exp(-s) L / 2 + s / 2 is least at s = log L, exp(s) L - s at s = -log L: weights 1 / (2 L) and 1 / L."""
    weighting = weighting_of(name, 3)
    losses, counts = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64), torch.ones(3)
    optimizer = torch.optim.SGD(weighting.trained, lr=0.5)
    for step in range(200):
        weighting.learn(losses, counts, step + 1)
        optimizer.step()
    expected = 1 / losses.float()
    torch.testing.assert_close(
        weighting.weigh(), expected / 2 if name == "uncertainty" else expected
    )


def test_a_weighting_is_trained_without_weight_decay_and_its_weights_are_logged(
    tiny_data: Path, tmp_path: Path
) -> None:
    changes = {"optim.weight_decay": 0.1, "loss.weighting": "uncertainty"}
    state = make_state(config_of(tiny_data, tmp_path, **TREE, **changes))
    _, vectors = state.net.optimizer.param_groups
    assert vectors["weight_decay"] == 0.0
    assert any(one is state.net.weighting.trained[0] for one in vectors["params"])

    changes = {"train.iterations": 8, "loss.weighting": "uncertainty"}
    assert train_tiny(config_of(tiny_data, tmp_path, **changes))["end"] == "done"
    first, second = lines_of(tmp_path / "tiny" / "metrics.jsonl", "train")
    assert set(first["loss_weights"]) == {task.name for task in TASKS}
    assert first["loss_weights"] != second["loss_weights"]
    assert all(0.4 < weight < 0.6 for weight in second["loss_weights"].values())
    assert second["loss"] < 0.6 * sum(second["task_loss"].values())


def test_dynamic_weights_follow_how_fast_the_means_of_two_windows_fall() -> None:
    weighting = weighting_of("dwa", 3, window=2)
    counts = torch.tensor([4.0, 2.0, 0.0])
    sums = [[8, 8, 0], [4, 4, 0], [4, 2, 0], [2, 1, 0], [1, 1, 0]]
    seen = []
    for step, losses in enumerate(sums):
        seen.append(weighting.weigh())
        weighting.learn(torch.tensor(losses, dtype=torch.float64), counts, step + 1)
    for early in seen[:4]:
        torch.testing.assert_close(early, torch.ones(3))
    # Means 12/8 and 12/4, then 6/8 and 3/4; nobody knows the third, which counts as one that stays.
    powers = [math.exp(rate / 2) for rate in (0.5, 0.25, 1.0)]
    expected = [3 * power / sum(powers) for power in powers]
    torch.testing.assert_close(seen[4], torch.tensor(expected))


def test_famo_raises_the_weight_of_a_task_whose_loss_does_not_fall() -> None:
    weighting = weighting_of("famo", 3)
    losses, counts = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([5.0, 5.0, 0.0])
    for _ in range(5):
        before = weighting.weigh(losses, counts)
        weighting.compare(torch.tensor([0.5, 1.0, 0.0]))
    after = weighting.weigh(losses, counts)
    assert before[:2].sum() == pytest.approx(3.0)
    assert after[2] < 1e-20  # without a label it has no part in the step
    assert after[1] > after[0]


def test_a_weight_for_no_task_of_the_data_is_refused_with_the_nearest(
    tiny_data: Path, tmp_path: Path
) -> None:
    with refusal("'sell-1'", "cell-1", "loss.weights"):
        get_loss_weights(TASKS, {"sell-1": 2.0})
    ended = train_tiny(config_of(tiny_data, tmp_path, **{"loss.weights": {"kinds": 2.0}}))
    assert ended["end"] == "failed"
    assert "kind" in ended["message"]
    assert not (tmp_path / "tiny").exists()
    with refusal("loss.weights.kind", "greater than 0"):
        load_config({}, ["loss.weights={kind: 0}"])
    with refusal("loss.weighting", "uncertainty", "'uncertain'"):
        load_config({}, ["loss.weighting=uncertain"])


def test_a_window_that_nobody_reads_is_told(tmp_path: Path) -> None:
    config = load_config({}, ["loss.window=7"])
    assert "loss.window" in keys_without_effect(config)
    assert "loss.window=7" in " ".join(config.ignored)
    assert not load_config({}, ["loss.window=7", "loss.weighting=dwa"]).ignored
    assert not load_config({}).ignored
