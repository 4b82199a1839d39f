"""Affinities measured on a network: by their definitions, and the same on any number of ranks."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank_server import RankServer
from tiny_runs import TASKS, assert_same_content, config_of, lines_of, train_tiny

from distbranch.branching.importance import compute_importance_affinity
from distbranch.branching.tree import Split
from distbranch.config import load_config
from distbranch.data.loader import train_loader
from distbranch.data.shards import read_dataset
from distbranch.engine.affinities import MeasuredAffinity
from distbranch.engine.affinities.measure import measure_affinity
from distbranch.engine.process_group import join_ranks
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network

LOWEST = 5  # conv4_1, which comes next in a tree of three splits
UNITS = (3, 5, 6)  # conv3_2, conv4_2 and fc5

KINDS = ("importance", "gradient-cosine", "look-ahead", "agreement", "phi")


def grown_network(tasks: Any) -> Network:
    thin = Architecture.thin("vgg9", 4, (32, 32), tasks)
    tree = thin.tree
    for groups in (((0, 1, 2, 3), (4, 5, 6, 7)), ((0,), (1,)), ((0,), (1,))):
        tree = tree.split(Split(tree.active_layer, groups))
    network = Network(thin.with_tree(tree))
    network.init(torch.Generator().manual_seed(4))
    return network.train()


def affinities(config: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, MeasuredAffinity]:
    """A job: measured of a tree with random weights."""
    resolved = load_config(config)
    with join_ranks(resolved.launch) as here:
        info = read_dataset(str(resolved.data.path))
        network = grown_network(info.tasks)
        before = {name: one.clone() for name, one in network.state_dict().items()}
        found = {}
        for kind in kinds:
            found[kind] = measure_affinity(kind, network, LOWEST, info, resolved, here)
        assert network.training
        assert all(torch.equal(network.state_dict()[name], one) for name, one in before.items())
        return found


def test_one_two_and_three_ranks_measure_the_same(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path)
    alone = ranks.call(affinities, config=config, kinds=KINDS)
    for world_size in (2, 3):
        every = ranks.call_all(affinities, world_size, config=config, kinds=KINDS)
        for kind in KINDS:
            for name, one in alone[kind].sums.items():
                np.testing.assert_allclose(every[0][kind].sums[name], one, rtol=1e-9, atol=1e-12)
            for here in every:
                np.testing.assert_allclose(here[kind].matrix, alone[kind].matrix, atol=1e-9)
                np.testing.assert_array_equal(here[kind].matrix, every[0][kind].matrix)


def test_it_is_the_square_of_what_a_channel_contributes_to_the_loss_of_a_sample(
    tiny_data: Path, tmp_path: Path, ranks: RankServer
) -> None:
    config = load_config(config_of(tiny_data, tmp_path))
    info = read_dataset(str(tiny_data))
    network = grown_network(info.tasks).eval()
    # All samples one by one, and the error of the definition: sigmoid - label, softmax - onehot.
    specs = network.architecture.specs
    sums = [torch.zeros(len(TASKS), specs[unit].width, dtype=torch.float64) for unit in UNITS]
    batches = train_loader(info, "train", batch_size=1, image_size=(32, 32), seed=config.seed)
    for _, batch in zip(range(201), batches, strict=False):
        outputs, features = network.run_with_features(batch.images, UNITS)
        labels = batch.labels[0]
        for task, name in enumerate(network.tasks.names):
            if labels[task].isnan():
                continue
            z = outputs[0, network.tasks.columns[name]]
            if name == "kind":
                wanted = torch.nn.functional.one_hot(labels[task].long(), 3)
                error = z.detach().softmax(dim=0) - wanted
            else:
                error = z.detach().sigmoid() - labels[task]
            for total, nodes in zip(sums, features, strict=True):
                gradients = torch.autograd.grad(
                    (error * z).sum(), nodes, retain_graph=True, allow_unused=True
                )
                for node, gradient in zip(nodes, gradients, strict=True):
                    if gradient is not None:
                        effect = (node.detach() * gradient).reshape(node.shape[1], -1).sum(dim=1)
                        total[task] += effect.double().square()
    kinds = ["importance"]
    found = ranks.call(affinities, config=config_of(tiny_data, tmp_path), kinds=kinds)
    assert found["importance"].layers == ("conv3_2", "conv4_2", "fc5")
    for total, measured in zip(sums, found["importance"].sums.values(), strict=True):
        np.testing.assert_allclose(measured, total.numpy(), rtol=1e-4)


def die_while_measuring(config: Mapping[str, Any], decision: int) -> None:
    """A job: train, and be killed in the middle of the measurement for this decision."""
    from distbranch.engine import session

    real, measured = session.measure_affinity, []

    def measure_and_die(*arguments: Any) -> Any:
        measured.append(real(*arguments))
        if len(measured) == decision:
            os.kill(os.getpid(), signal.SIGKILL)
        return measured[-1]

    session.measure_affinity = measure_and_die
    train_tiny(config)


def test_a_run_that_decides_by_importance_and_is_killed_while_it_measures_ends_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = {"method.affinity": "importance", "launch.workers": 2, "train.iterations": 23}
    for name in ("undisturbed", "killed"):
        config = config_of(tiny_data, tmp_path / name, **changes)
        if name == "killed":
            ended = ranks.run(die_while_measuring, world_size=2, config=config, decision=2)
            assert ended[0].exit_code == -signal.SIGKILL
        for one in ranks.call_all(train_tiny, 2, config=config):
            assert one["end"] == "done", one["message"]
    assert_same_content(tmp_path / "killed" / "tiny", tmp_path / "undisturbed" / "tiny")

    lines = lines_of(tmp_path / "killed" / "tiny" / "decisions.jsonl")
    assert [line["importance"]["num_samples"] for line in lines] == [201] * len(lines)
    last = lines[-1]
    arrays = np.load(tmp_path / "killed" / "tiny" / last["affinity_file"], allow_pickle=False)
    measured = [arrays[f"importance_of_{name}"] for name in last["importance"]["layers"]]
    np.testing.assert_array_equal(arrays["importance"], compute_importance_affinity(measured))
