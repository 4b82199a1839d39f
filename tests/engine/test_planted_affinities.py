"""Two kinds of likeness planted in one data set, each independent of the other: importance finds the one, phi the other.

Three groups of four tasks each need the same four features, |a| of numbers of their own, in four combinations. Four teams, of one
task of every group each, are difficult together: on every sample the labels of one team are wrong nearly half the time.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.grouping import cluster_branches, label_branches
from distbranch.engine.affinities import MEASURED
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import BACKBONES, Backbone, UnitPlan
from distbranch.models.network import Network
from distbranch.models.units import Layer, make_unset
from distbranch.registry import copy_entries, restore_entries
from distbranch.tasks import Task

GROUPS = np.repeat(np.arange(3), 4)  # of every task the group with which it shares features
TEAMS = np.tile(np.arange(4), 3)  # and the team with which it is difficult
# Four combinations of four features that are independent of each other, so that labels say nothing of the groups.
SIGNS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
MEAN = (2 / np.pi) ** 0.5  # of |a|
NUM_SAMPLES = 4096
STEPS = 200


def plan_one_layer(backbone: Backbone) -> Iterator[UnitPlan]:
    """One layer of 48 units over the twelve numbers of a sample, and heads over it."""
    width = backbone.thin_width(64)

    def build() -> Layer:
        product = make_unset(nn.Conv2d, 3, width, 2, bias=False)
        return Layer(nn.Sequential(nn.AdaptiveAvgPool2d(2), product), width)

    yield UnitPlan("only", width, 64, build)


@pytest.fixture
def one_layer() -> Iterator[str]:
    before = copy_entries()
    BACKBONES.register("one-layer")(plan_one_layer)
    yield "one-layer"
    restore_entries(before)


def draw_samples(seed: int) -> tuple[Tensor, Tensor]:
    """Numbers [N, 3, 2, 2], a channel per group, and labels [N, 12], of which one team's are wrong on 45 % of its samples."""
    draw = np.random.default_rng(seed)
    numbers = draw.standard_normal((NUM_SAMPLES, 3, 4))
    truth = ((np.abs(numbers) - MEAN) @ SIGNS.T).reshape(-1, 12) > 0
    unreliable = draw.integers(0, 4, NUM_SAMPLES)[:, None] == TEAMS
    is_wrong = unreliable & (draw.random((NUM_SAMPLES, 1)) < 0.45)
    images = torch.tensor(numbers, dtype=torch.float32).view(-1, 3, 2, 2)
    return images, torch.tensor(truth ^ is_wrong, dtype=torch.float32)


def train(backbone: str, images: Tensor, labels: Tensor, seed: int) -> Network:
    tasks = tuple(Task(f"task-{number}") for number in range(12))
    network = Network(Architecture.thin(backbone, 48, (32, 32), tasks))
    draw = torch.Generator().manual_seed(seed)
    network.init(draw)
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(NUM_SAMPLES, (256,), generator=draw)
        outputs = network(images[chosen], flat=True)
        losses = network.tasks.compute_losses(outputs, labels[chosen])
        optimizer.zero_grad()
        losses.mean(dim=0).sum().backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def find_importance(network: Network, images: Tensor, labels: Tensor) -> np.ndarray:
    kind = MEASURED["importance"]
    sums = kind.sum_chunk(network, [0], images[:1024], labels[:1024])
    return kind.compute_affinity({name: part.numpy() for name, part in sums.items()})


def find_phi(network: Network, images: Tensor, labels: Tensor) -> np.ndarray:
    stats = AffinityStats(12, decay=1.0)
    with torch.no_grad():
        margins = network.tasks.compute_margins(network(images, flat=True), labels)
    stats.add_margins(stats.margin_sums(margins))
    stats.add_pairs(margins)
    return stats.affinity("phi")


def score(affinity: np.ndarray, truth: Sequence[int]) -> float:
    """The adjusted Rand index of as many groups as there are in truth."""
    num_groups = len(set(truth))
    found = dict(cluster_branches(affinity, num_groups, seed=0))
    return float(adjusted_rand_score(truth, label_branches(found[num_groups])))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_importance_finds_who_needs_the_same_features_and_phi_who_is_difficult_together(
    one_layer: str, seed: int
) -> None:
    images, labels = draw_samples(seed + 100)
    network = train(one_layer, images, labels, seed)
    importance = find_importance(network, images, labels)
    phi = find_phi(network, images, labels)
    assert score(importance, GROUPS) >= 0.8
    assert score(phi, GROUPS) < 0.1
    assert score(phi, TEAMS) >= 0.8
    assert score(importance, TEAMS) < 0.1
