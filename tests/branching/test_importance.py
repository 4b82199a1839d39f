"""Importance affinity: tasks that need the same channels are together, whatever their examples."""

import logging

import numpy as np
import pytest

from distbranch.branching.grouping import cluster_branches
from distbranch.branching.importance import choose_layers, compute_importance_affinity
from distbranch.models.backbone import Backbone

GROUPS = ((0, 1, 2), (3, 4, 5))


def planted(*, num_channels: int = 24, seed: int = 0) -> np.ndarray:
    """[6, C]: all tasks need the first channels, and those of a group some of their own; all at scales of their own."""
    draw = np.random.default_rng(seed)
    values = draw.lognormal(sigma=0.3, size=(6, num_channels))
    values[:, :4] *= 50
    for number, group in enumerate(GROUPS):
        values[list(group), 4 + 8 * number : 12 + 8 * number] *= 8
    return values * draw.lognormal(sigma=3, size=(6, 1))


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found_whatever_the_scale_of_a_loss_and_what_all_tasks_need(
    seed: int,
) -> None:
    layers = [planted(seed=seed), planted(seed=seed + 10, num_channels=32)]
    affinity = compute_importance_affinity(layers)
    found = dict(cluster_branches(affinity, 2, seed=0))
    assert found[2] == GROUPS


def test_it_is_the_mean_over_layers_of_the_correlation_of_centred_logarithms() -> None:
    layers = [planted(seed=1), planted(seed=2)]
    affinity = compute_importance_affinity(layers)
    correlations = []
    for layer in layers:
        rho = np.log(layer / layer.sum(axis=1, keepdims=True) + 1e-6)
        correlations.append(np.corrcoef(rho - rho.mean(axis=0)))
    expected = (1 + (correlations[0] + correlations[1]) / 2) / 2
    assert affinity == pytest.approx(expected, abs=1e-12)
    assert (np.diag(affinity) == 1).all()


def test_a_task_without_any_gradient_is_like_no_other_and_changes_nothing_between_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer = planted()
    with_dead = np.insert(layer, 2, 0.0, axis=0)
    with caplog.at_level(logging.WARNING, "distbranch"):
        affinity = compute_importance_affinity([with_dead])
    assert "1 of 7 tasks had no gradient" in caplog.text
    assert affinity[2] == pytest.approx([0.5, 0.5, 1, 0.5, 0.5, 0.5, 0.5])
    others = np.delete(np.delete(affinity, 2, axis=0), 2, axis=1)
    assert others == pytest.approx(compute_importance_affinity([layer]))


@pytest.mark.parametrize(
    ("backbone", "lowest", "layers"),
    [
        ("vgg16", "conv4_1", ["conv3_3", "conv4_3", "conv5_3", "fc6"]),
        ("vgg16", "conv1_1", ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc6"]),
        ("vgg9", "fc6", ["fc5"]),
        ("resnet18", "block3_1", ["block2_2", "block3_2", "block4_1", "block4_2"]),
    ],
)
def test_the_ends_of_stages_from_the_input_of_the_lowest_layer_on_are_looked_at(
    backbone: str, lowest: str, layers: list[str]
) -> None:
    names = Backbone(backbone, (32, 32), 8).names
    assert [names[number] for number in choose_layers(names, names.index(lowest))] == layers
