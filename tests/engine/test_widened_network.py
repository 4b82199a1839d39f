"""Nothing changes at a widening: not the outputs, not the optimiser's memory, and not the next steps."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_runs import TASKS, config_of

from distbranch.branching.tree import Split
from distbranch.config import Config, load_config
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.models.architecture import Architecture
from distbranch.tasks import TaskSet

ALONE = Ranks(0, 1, torch.device("cpu"))
PREPROCESSING = Preprocessing("simplejpeg", (32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TOP, BELOW = Split(8, ((0, 2, 5), (1, 3), (4, 6, 7))), Split(7, ((0, 2), (1,)))
OPTIMISERS = [("sgd", ["momentum_buffer"]), ("adamw", ["exp_avg", "exp_avg_sq", "step"])]


def _config(optimiser: str, folder: Path) -> Config:
    return load_config(config_of("unused", folder, **{"optim.name": optimiser, "optim.lr": 0.01}))


def _batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [16, 3, 32, 32] and labels [16, T] with gaps."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (16, len(TASKS)), generator=generator).float()
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = torch.nan
    return images, labels


def _step(net: TrainedNetwork, images: torch.Tensor, labels: torch.Tensor) -> None:
    net.optimizer.zero_grad()
    losses = TaskSet(TASKS).compute_losses(net.wrapped(images, flat=True), labels)
    losses.sum().backward()
    net.optimizer.step()


def _trained(optimiser: str, folder: Path) -> TrainedNetwork:
    net = TrainedNetwork(_config(optimiser, folder), ALONE, PREPROCESSING, is_final=False)
    net.begin(Architecture.thin("vgg9", 3, (32, 32), TASKS), seed=1)
    for seed in range(3):
        _step(net, *_batch(seed))
    return net


@pytest.mark.parametrize("training", [True, False])
def test_every_output_is_the_same_after_two_widenings(training: bool, tmp_path: Path) -> None:
    """In double precision, where only rounding is left: how a processor shares out its sums depends on their number."""
    net = _trained("sgd", tmp_path)
    images, _ = _batch(9)

    def outputs() -> torch.Tensor:
        doubled: torch.Tensor = (
            copy.deepcopy(net.network).double().train(training)(images, flat=True)
        )
        return doubled.detach()

    before = outputs()
    for split in (TOP, BELOW):
        net.widen(split)
        torch.testing.assert_close(outputs(), before, rtol=0, atol=1e-12)
    assert [net.network.architecture.tree.num_branches(layer) for layer in (6, 7, 8)] == [1, 2, 3]


def test_the_weights_and_statistics_of_every_branch_are_those_of_the_one_it_was_made_from_bit_for_bit(
    tmp_path: Path,
) -> None:
    net = _trained("sgd", tmp_path)
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    net.widen(TOP)
    net.widen(BELOW)
    after = net.network.state_dict()
    for name, value in after.items():
        layer, _, rest = name.removeprefix("units.").partition(".")
        origin = f"units.{layer}.0.{rest.partition('.')[2]}" if name.startswith("units.") else name
        assert torch.equal(value, before[origin])
    assert (
        len(after) - len(before) == 3 * 6
    )  # two more of fc6 and one of fc5: a weight and five tensors of its norm


def test_layers_that_are_widened_at_once_are_those_that_are_widened_one_by_one(
    tmp_path: Path,
) -> None:
    at_once, one_by_one = _trained("adamw", tmp_path), _trained("adamw", tmp_path)
    at_once.widen(TOP, BELOW)
    for split in (TOP, BELOW):
        one_by_one.widen(split)
    assert at_once.fingerprint() == one_by_one.fingerprint()


@pytest.mark.parametrize(("optimiser", "names"), OPTIMISERS)
def test_every_branch_inherits_the_memory_of_the_optimiser(
    optimiser: str, names: list[str], tmp_path: Path
) -> None:
    net = _trained(optimiser, tmp_path)
    before = {name: value.clone() for name, value in net.slots().items()}
    net.widen(TOP)
    after = net.slots()
    for branch in range(3):
        for parameter in ("product.weight", "norm.weight", "norm.bias"):
            for slot in names:
                inherited = after[f"units.fc6.{branch}.{parameter}:{slot}"]
                assert torch.equal(inherited, before[f"units.fc6.0.{parameter}:{slot}"])
                assert inherited.abs().sum() > 0
    unchanged = {name for name in before if not name.startswith("units.fc6.")}
    assert all(torch.equal(after[name], before[name]) for name in unchanged)
    copies = [after[f"units.fc6.{branch}.product.weight:{names[0]}"] for branch in range(3)]
    assert len({copy.data_ptr() for copy in copies}) == 3


@pytest.mark.parametrize(("optimiser", "names"), OPTIMISERS)
def test_the_next_steps_of_a_copy_whose_group_is_everything_are_those_of_the_network_that_was_not_widened(
    optimiser: str, names: list[str], tmp_path: Path
) -> None:
    # One branch serves all tasks that are labelled; the other branch's tasks are not, so it sends no gradient down.
    plain, widened = _trained(optimiser, tmp_path), _trained(optimiser, tmp_path)
    widened.widen(Split(8, ((0, 1, 2, 3, 4, 5), (6, 7))))
    for seed in range(10, 14):
        images, labels = _batch(seed)
        labels[:, 6:] = torch.nan
        for net in (plain, widened):
            _step(net, images, labels)
        expected, found = plain.network.state_dict(), widened.network.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
        moments, inherited = plain.slots(), widened.slots()
        for slot in names:
            for parameter in (
                "units.fc6.0.product.weight",
                "units.conv1.0.product.weight",
                "heads.weight",
            ):
                key = f"{parameter}:{slot}"
                # The gradients of a tensor are sums of one size, here taken in another order: relative to that size.
                largest = moments[key].abs().max().item()
                torch.testing.assert_close(
                    inherited[key], moments[key], rtol=0, atol=1e-5 * largest
                )
    assert not torch.allclose(
        found["units.fc6.1.product.weight"], expected["units.fc6.0.product.weight"], atol=1e-4
    )


def test_the_fingerprint_notices_tree_weights_statistics_and_momentum(tmp_path: Path) -> None:
    net = _trained("sgd", tmp_path)
    seen = {net.fingerprint()}
    state = net.network.state_dict() | net.slots()
    for name in (
        "heads.weight",
        "units.conv1.0.norm.running_var",
        "units.fc5.0.product.weight:momentum_buffer",
    ):
        value = state[name].view(-1)
        kept = value[0].item()
        value[0] = torch.nextafter(value[0], torch.tensor(torch.inf))
        seen.add(net.fingerprint())
        value[0] = kept
    assert net.fingerprint() in seen
    net.widen(TOP)
    seen.add(net.fingerprint())
    assert len(seen) == 5
