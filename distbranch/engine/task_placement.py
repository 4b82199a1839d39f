"""On which branch of a trained network a new task is placed: that from whose features a head of its own learns the task best.

Nothing of the network is trained. On each branch in turn the head is shortly trained on the frozen features. Importance, by which
tasks are compared that a network was trained for, does not tell branches apart here: on planted ones it was right in 7 cases of
12, and the loss of the head in all of them. All that stands on a branch needs the channels that are alive there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distbranch.config import Config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.affinities.measure import NUM_SAMPLES, count_samples, visit_sample
from distbranch.engine.distributed import Ranks
from distbranch.losses import build_task_set
from distbranch.maps import AnyLabels, Labels, join_labels
from distbranch.models.network import Network
from distbranch.models.transplant import Beginning, transplant_weights

# Of Adam, for a head alone: enough to tell branches apart, over features that are computed once.
HEAD_STEPS, HEAD_RATE = 50, 0.01


@dataclass(frozen=True)
class Placement:
    """Where a task is placed.

    origin: the number of the task of the network whose way it goes.
    branch: the tasks of that branch, by name.
    losses: per label, of the head on every branch, in the order of the network's; none if there is but one.
    """

    origin: int
    branch: tuple[str, ...]
    losses: tuple[float, ...] = ()


def place_tasks(
    network: Network, beginning: Beginning, info: DatasetInfo, config: Config, ranks: Ranks
) -> dict[str, Placement]:
    """The places of the new tasks in a trained network, by name, the same on every rank; all must call it.

    Args:
        network: of a tree or a policy; it is left as it was.
        beginning: what becomes of its tasks.
        info: the data, of the tasks of `beginning`.
        config: of the run, with weights of labels in numbers; its seed draws heads and chooses the sample.
        ranks: this process among the others.

    Raises:
        SharedError: data that cannot be read.
    """
    ways: dict[int, list[int]] = {}
    for number, node in enumerate(network.routing.top):
        ways.setdefault(node, []).append(number)
    names, new = network.tasks.names, beginning.unplaced
    branches = [tuple(names[number] for number in way) for way in ways.values()]
    if not new or len(ways) == 1:  # nothing is to be chosen
        return {name: Placement(0, branches[0]) for name in new}

    losses = []
    for way in ways.values():
        on_way = beginning.placed(dict.fromkeys(new, way[0])).only(new)
        losses.append(_train_heads(_build_probe(network, on_way, config), info, config, ranks))
    placements = {}
    for name, of_branches in zip(new, torch.stack(losses, dim=1).tolist(), strict=True):
        branch = branches[of_branches.index(min(of_branches))]
        placements[name] = Placement(names.index(branch[0]), branch, tuple(of_branches))
    return placements


def _build_probe(network: Network, beginning: Beginning, config: Config) -> Network:
    """The network of new tasks alone, with units of a trained one, and heads as they are drawn."""
    mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
    design = network.architecture.retargeted(beginning.tasks, beginning.origins)
    probe = Network(design, mean, std)
    probe.init(torch.Generator().manual_seed(config.seed))
    probe.to(network.mean.device)
    transplant_weights(probe, network, beginning.origins, beginning.new)
    probe.tasks = build_task_set(beginning.tasks, config.loss)
    return probe


def _train_heads(probe: Network, info: DatasetInfo, config: Config, ranks: Ranks) -> Tensor:
    """Train all heads over frozen units, by steps over the whole sample; the loss per label of every task [T]."""
    parts: list[tuple[list[Tensor], AnyLabels]] = []
    num_labels = torch.zeros(probe.tasks.num_tasks, dtype=torch.float64, device=ranks.device)
    names = [task.name for task in info.tasks]
    columns = [names.index(name) for name in probe.tasks.names]

    @torch.no_grad()
    def keep(images: Tensor, every: AnyLabels) -> None:
        labels = _select_labels(every, columns, probe.dense_heads)
        parts.append((probe.compute_features(images), labels))
        num_labels.add_((~labels.isnan()).sum(dim=0))

    num_samples = min(NUM_SAMPLES, count_samples(info))
    visit_sample(keep, probe, info, config, ranks, num_samples)
    ranks.sum(num_labels).clamp_(min=1)

    def compute_losses(features: Sequence[Tensor], labels: AnyLabels) -> Tensor:
        losses = probe.tasks.compute_losses(probe.apply_heads(features), labels)
        return losses.double().sum(dim=0) / num_labels

    probe.freeze(["units"])
    probe.train()
    trained = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    sizes = [parameter.numel() for parameter in trained]
    optimizer = torch.optim.Adam(trained, lr=HEAD_RATE)
    for _ in range(HEAD_STEPS):
        gradient = torch.zeros(sum(sizes), device=ranks.device)
        for features, labels in parts:
            own = torch.autograd.grad(compute_losses(features, labels).sum(), trained)
            gradient += torch.cat([one.flatten() for one in own])
        pieces = torch.split(ranks.sum(gradient), sizes)
        for parameter, piece in zip(trained, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        optimizer.step()

    probe.eval()
    total = torch.zeros_like(num_labels)
    with torch.no_grad():
        for features, labels in parts:
            total += compute_losses(features, labels)
    return ranks.sum(total)


def _select_labels(labels: AnyLabels, columns: Sequence[int], dense: Iterable[str]) -> AnyLabels:
    if isinstance(labels, Tensor):
        return labels[:, columns]
    assert isinstance(labels, Labels), "only what is trained on is mixed"
    return join_labels(labels.values[:, columns], {name: labels.maps[name] for name in dense})
