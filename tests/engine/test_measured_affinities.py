"""Affinities measured on a network: by their definitions, and the same on any number of ranks."""

import copy
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
from distbranch.engine.affinities import MEASURED, MeasuredAffinity
from distbranch.engine.affinities.kind import choose_trunk
from distbranch.engine.affinities.measure import CHUNK, measure_affinity
from distbranch.engine.distributed import Ranks
from distbranch.engine.loaders import open_sample
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


def test_gradient_kinds_are_what_a_step_for_one_task_does_to_another(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = load_config(config_of(tiny_data, tmp_path))
    info = read_dataset(str(tiny_data))
    network = grown_network(info.tasks).eval()
    size = {"image_size": (32, 32), "num_samples": 32, "chunk": CHUNK}
    (batch,) = open_sample(info, config, Ranks.alone(), **size)
    units = choose_trunk(network.routing.units, LOWEST - 1)
    trunk = ("conv1", "conv2", "conv3_1", "conv3_2", "conv4_1")  # shared up to the one to be split
    assert tuple(network.routing.units[unit] for unit in units) == trunk

    def sum_losses(one: Network) -> torch.Tensor:
        outputs = one(batch.images, flat=True)
        return one.tasks.compute_losses(outputs, batch.labels).sum(dim=0)

    def list_trunk(one: Network) -> list[torch.Tensor]:
        return [part for name, part in one.named_parameters() if name.split(".")[1] in trunk]

    def flatten(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([part.detach().flatten() for part in parts])

    weights = list_trunk(network)
    gradients, after = [], []
    for task in range(len(TASKS)):
        gradients.append(flatten(torch.autograd.grad(sum_losses(network)[task], weights)))
        step = 0.01 * flatten(weights).norm() * gradients[-1] / gradients[-1].norm()
        moved = copy.deepcopy(network)
        parts = step.split([weight.numel() for weight in weights])
        with torch.no_grad():
            for weight, part in zip(list_trunk(moved), parts, strict=True):
                weight -= part.view_as(weight)
            after.append(sum_losses(moved))
    every = torch.stack(gradients)
    cosines = torch.cosine_similarity(every[:, None], every[None], dim=2)

    found = MEASURED["gradient-cosine"].sum_chunk(network, units, batch.images, batch.labels)
    torch.testing.assert_close(found["cosines"].float(), cosines, atol=1e-5, rtol=1e-5)
    found = MEASURED["look-ahead"].sum_chunk(network, units, batch.images, batch.labels)
    torch.testing.assert_close(found["after"].float(), torch.stack(after), rtol=1e-4, atol=1e-5)

    sums = {name: part.detach().numpy() for name, part in found.items()}
    gain = 1 - sums["after"] / sums["before"]
    pairs = np.triu_indices(len(TASKS), 1)
    mutual = (gain + gain.T)[pairs]
    affinity = MEASURED["look-ahead"].compute_affinity(sums)[pairs]
    assert (np.argsort(affinity) == np.argsort(mutual)).all()
    assert ((affinity > 0.5) == (mutual > 0)).all()


def test_pairs_of_the_sample_are_difficult_by_its_mean_margins(
    tiny_data: Path, tmp_path: Path, ranks: RankServer
) -> None:
    config = load_config(config_of(tiny_data, tmp_path))
    info = read_dataset(str(tiny_data))
    network = grown_network(info.tasks).eval()
    alone = Ranks.alone()
    size = {"image_size": (32, 32), "num_samples": 201, "chunk": CHUNK}
    batches = list(open_sample(info, config, alone, **size))
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    margins = []
    for batch in batches:
        with torch.no_grad():
            outputs = network(batch.images, flat=True)
        margins.append(network.tasks.compute_margins(outputs, batch.labels))
    shown = np.where(np.isnan(labels), np.nan, torch.cat(margins).double().numpy())
    signs = np.where(np.isnan(shown), np.nan, np.where(shown >= np.nanmean(shown, 0), 1, -1))
    alike = np.nanmean(
        signs[:, :, None] == signs[:, None, :],
        axis=0,
        where=~np.isnan(signs[:, :, None] * signs[:, None, :]),
    )
    found = ranks.call(affinities, config=config_of(tiny_data, tmp_path), kinds=["agreement"])
    np.testing.assert_allclose(found["agreement"].matrix, alike, atol=1e-9)


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
