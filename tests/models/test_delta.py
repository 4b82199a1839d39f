"""Branches that share each large weight W and add U V of low rank: what they compute, what they learn, and what they cost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from distbranch.branching.tree import Split
from distbranch.engine.artifact import Preprocessing, load_model, save_model
from distbranch.export.onnx_graph import onnx_bytes
from distbranch.models.architecture import Architecture, num_parameters, num_weights
from distbranch.models.backbone import Backbone, freeze_arguments
from distbranch.models.delta import add_deltas, copy_state, draw_deltas
from distbranch.models.network import Network, restrict
from distbranch.models.norm import NormGroups
from distbranch.tasks import Task

TASKS = (Task("a"), Task("colour", "categorical", ("red", "green", "blue")), Task("b"), Task("c"))
THREE, TWO = ((0, 3), (1,), (2,)), ((0, 2), (1,))
TIMM = "timm:convnext_atto"  # depthwise convolutions, products of tokens, layer norms
SMALL = freeze_arguments({"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]})
BACKBONES = [("vgg9", 8), ("resnet18", 8), (TIMM, None)]


def thin_of(source: str, width: int | None, rank: int | None = 2) -> Architecture:
    arguments = SMALL if source == TIMM else ()
    backbone = Backbone(source, (32, 32), width, arguments=arguments)
    return Architecture(backbone, TASKS, delta_rank=rank)


def split(architecture: Architecture, *groupings: tuple[tuple[int, ...], ...]) -> Architecture:
    """Split the upper layers, top first."""
    tree = architecture.tree
    for groups in groupings:
        tree = tree.split(Split(tree.active_layer, groups))
    return architecture.with_tree(tree)


def trained(architecture: Architecture, seed: int = 0) -> Network:
    """A network none of whose numbers is that of the start."""
    network = Network(architecture)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.add_(noise * (0.3 if value.ndim == 1 else 0.05))
    return network


def born(network: Network, architecture: Architecture) -> Network:
    """The network with branches that are born now."""
    wider = Network(architecture)
    drawn = draw_deltas(network.architecture, architecture, seed=7)
    copied = copy_state(network.state_dict(), network.architecture, architecture)
    wider.load_state_dict(copied | drawn)
    return wider.train(network.training)


def pixels(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def outputs(network: Network) -> Tensor:
    found: Tensor = network(pixels(), flat=True)
    return found


# ---- birth


@pytest.mark.parametrize(("source", "width"), BACKBONES)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_at_birth_every_output_is_to_the_bit_that_of_copies(
    source: str, width: int | None, training: bool
) -> None:
    network = trained(thin_of(source, width)).train(training)
    for groupings in ((THREE,), (THREE, TWO)):
        wider = split(network.architecture, *groupings)
        assert wider.has_deltas
        copies, deltas = born(network, wider.folded), born(network, wider)
        assert torch.equal(outputs(deltas), outputs(copies))


@torch.no_grad()
def test_no_output_changes_when_a_lower_layer_divides_below_branches_that_have_learnt() -> None:
    network = trained(split(thin_of("vgg9", 8), THREE)).eval()
    before = outputs(network)
    assert torch.equal(outputs(born(network, split(network.architecture, TWO))), before)


def test_a_branch_that_divides_takes_its_difference_along_and_the_shared_weight_stays() -> None:
    one = split(thin_of("vgg9", 8), ((0, 1, 3), (2,)))
    # The same layer, divided further: what was branch 0 is now branches 0 and 2.
    further = split(thin_of("vgg9", 8), ((0, 3), (2,), (1,)))
    before = trained(one).state_dict()
    after = copy_state(before, one, further)
    assert draw_deltas(one, further, seed=0) == {}, "they have differences already"
    for key in ("delta.product.weight.up", "delta.product.weight.down", "norm.weight"):
        for branch, origin in enumerate((0, 1, 0)):
            copied = after[f"units.fc6.{branch}.{key}"]
            assert torch.equal(copied, before[f"units.fc6.{origin}.{key}"])
    name = "units.fc6.shared.product.weight"
    assert torch.equal(after[name], before[name])
    assert after.keys() == Network(further).state_dict().keys()


def test_a_tree_from_scratch_begins_as_the_thin_network_and_its_differences_hang_on_seed_and_layer() -> (
    None
):
    tree = split(thin_of("vgg9", 16, 4), THREE, TWO)
    thin, first, again, other = (
        Network(architecture)
        for architecture in (replace(tree, splits=(), delta_rank=None), tree, tree, tree)
    )
    for network, seed in ((thin, 5), (first, 5), (again, 5), (other, 6)):
        network.init(torch.Generator().manual_seed(seed))
    drawn = first.state_dict()
    for unit in ("fc5", "fc6"):
        shared = drawn[f"units.{unit}.shared.product.weight"]
        assert torch.equal(shared, thin.state_dict()[f"units.{unit}.0.product.weight"])
    downs = torch.cat([drawn[name].flatten() for name in drawn if name.endswith(".down")])
    assert 0.3 < downs.std() < 0.4
    assert len(torch.unique(downs)) == downs.numel(), "no two branches or layers alike"
    assert not any(value.any() for name, value in drawn.items() if name.endswith(".up"))
    assert all(torch.equal(value, drawn[name]) for name, value in again.state_dict().items())
    name = "units.fc6.0.delta.product.weight.down"
    assert not torch.equal(other.state_dict()[name], drawn[name])


# ---- what is learnt


@pytest.mark.parametrize(("source", "width"), BACKBONES)
def test_gradients_are_those_of_copies_summed_for_what_is_shared(
    source: str, width: int | None
) -> None:
    network = trained(split(thin_of(source, width), THREE, TWO)).double()
    copies = Network(network.architecture.folded).double()
    copies.load_state_dict(
        copy_state(network.state_dict(), network.architecture, copies.architecture)
    )
    for one in (network, copies):
        outputs(one).square().sum().backward()
    expected = {name: value.grad for name, value in copies.named_parameters()}
    values = dict(network.named_parameters())
    for name, value in values.items():
        path = name.split(".")
        if "shared" in path:
            numbers = range(len(network.copies(path[1])))
            parts = [name.replace(".shared.", f".{number}.") for number in numbers]
            wanted = sum(expected[part] for part in parts)
        elif "delta" in path:
            stem, _, last = name.rpartition(".")
            whole = expected[stem.replace(".delta.", ".")]
            gradient = whole.movedim(1, -1).flatten(1)  # of U V, positions before channels
            wanted = gradient @ values[f"{stem}.down"].T
            if last == "down":
                wanted = values[f"{stem}.up"].T @ gradient
        else:
            wanted = expected[name]
        scale = wanted.abs().max().item()
        torch.testing.assert_close(value.grad, wanted, rtol=0, atol=1e-9 * max(1.0, scale))


def test_differences_are_added_in_full_precision_under_autocast() -> None:
    network = trained(split(thin_of("vgg9", 8), THREE))
    with torch.autocast("cpu", torch.bfloat16):
        shared = network.get_parameter("units.fc6.shared.product.weight")
        ones = [torch.full((len(shared), 1), 1e-3)] * 3
        whole = add_deltas(shared, ones, [torch.ones(1, shared.shape[1])] * 3)
        outputs(network).sum().backward()
    assert torch.allclose(whole[2] - shared, torch.tensor(1e-3), atol=1e-6)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_nothing_but_parameters_is_left_in_a_network_that_has_run() -> None:
    network = trained(split(thin_of("vgg9", 8), THREE))
    outputs(network).sum().backward()
    assert [branch.product.weight for branch in network.copies("fc6")] == [None] * 3  # type: ignore[union-attr]


def test_branches_with_differences_are_one_graph_for_the_compiler() -> None:
    network = trained(split(thin_of("vgg9", 8), THREE, TWO)).train()
    graphs = []

    def count(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(module)
        return module

    torch.compiler.reset()
    compiled = torch.compile(network, backend=count, fullgraph=True)
    groups = NormGroups((6,))
    expected = network(pixels(), flat=True, groups=groups)
    torch.testing.assert_close(compiled(pixels(), flat=True, groups=groups), expected)
    assert len(graphs) == 1


# ---- what is served


@pytest.mark.parametrize(("source", "width"), BACKBONES)
@torch.inference_mode()
def test_the_folded_network_has_whole_weights_and_the_same_outputs(
    source: str, width: int | None
) -> None:
    network = trained(split(thin_of(source, width), THREE, TWO)).eval()
    folded = network.folded()
    assert folded.state_dict().keys() == Network(network.architecture.folded).state_dict().keys()
    torch.testing.assert_close(outputs(folded), outputs(network), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "has_deltas"), [(["a", "c"], False), (["c", "colour"], True), (["b"], False)]
)
@torch.inference_mode()
def test_a_network_of_some_tasks_keeps_what_their_branches_share_and_folds_a_branch_alone(
    names: list[str], has_deltas: bool
) -> None:
    network = trained(split(thin_of("vgg9", 8), THREE, TWO)).eval()
    smaller = restrict(network, names)
    assert smaller.architecture.has_deltas == has_deltas
    shared = "units.fc6.shared.product.weight"
    assert (shared in smaller.state_dict()) == has_deltas
    if has_deltas:
        assert torch.equal(smaller.state_dict()[shared], network.state_dict()[shared])
    expected, found = network(pixels()), smaller(pixels())
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_a_saved_model_is_loaded_with_whole_weights_and_the_same_outputs(tmp_path: Path) -> None:
    network = trained(split(thin_of("vgg9", 8), THREE, TWO)).eval()
    preprocessing = Preprocessing("simplejpeg", (32, 32), (0.5,) * 3, (0.25,) * 3)
    save_model(tmp_path / "model", network, preprocessing)
    stored = (tmp_path / "model" / "model.safetensors").stat().st_size
    loaded, _ = load_model(tmp_path)
    assert loaded.architecture == network.architecture.folded
    torch.testing.assert_close(outputs(loaded), outputs(network), rtol=1e-6, atol=1e-6)
    save_model(tmp_path / "folded", loaded, preprocessing)
    assert stored < (tmp_path / "folded" / "model.safetensors").stat().st_size


@torch.inference_mode()
def test_an_onnx_file_gives_the_outputs_of_the_network() -> None:
    network = trained(split(thin_of("vgg9", 4, 1), THREE, TWO)).eval()
    content = onnx_bytes(network.folded(), {}, input_type="uint8")
    served = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = served.run(None, {"images": pixels().numpy()})
    for logits, one in zip(network(pixels()).values(), found, strict=True):
        np.testing.assert_allclose(one, logits.numpy(), rtol=0, atol=1e-4)


# ---- what is counted


def test_the_tree_of_four_has_the_numbers_of_weights_that_were_measured() -> None:
    tasks = tuple(Task(f"task {number}") for number in range(40))
    thin = Architecture(Backbone("vgg16", (64, 48), 16), tasks, delta_rank=4)
    four = tuple(tuple(range(first, first + 10)) for first in range(0, 40, 10))
    tree = split(thin, four, *[((0,), (1,), (2,), (3,))] * 7)  # conv4_1 to fc7
    assert tree.tree.num_branches(8) == 4
    assert num_weights(tree) == 49_456
    assert num_weights(tree.folded) == 79_024
    assert tree.cost().multiply_adds == tree.folded.cost().multiply_adds


def test_stored_weights_follow_the_formula_of_a_layer_and_its_branches() -> None:
    rank, width = 3, 16
    thin = thin_of("vgg9", width, rank)
    added = num_weights(split(thin, THREE)) - num_weights(thin)
    inputs = 2 * width  # of fc6, which is twice as wide as a convolution
    shared, stored = inputs**2, inputs**2 + 3 * (rank * 2 * inputs + inputs)
    assert added == stored - shared


@pytest.mark.parametrize(("source", "width"), BACKBONES)
def test_the_parameters_that_are_counted_are_those_that_are_there(
    source: str, width: int | None
) -> None:
    network = Network(split(thin_of(source, width), THREE, TWO))
    assert num_parameters(network.architecture) == sum(
        parameter.numel() for parameter in network.parameters()
    )


def test_a_weight_that_a_difference_would_not_be_smaller_than_is_copied() -> None:
    network = Network(split(thin_of("resnet18", 4, 2), THREE))
    names = set(dict(network.named_parameters()))
    unit = "units.block4_2"
    assert f"{unit}.shared.first.product.weight" in names
    copied = split(
        thin_of("vgg9", 2, 2), THREE
    )  # fc6 is 4x4: a difference of rank 2 has 16 numbers
    assert not copied.has_deltas
    assert num_weights(copied) == num_weights(copied.folded)


def test_copies_are_described_as_they_always_were() -> None:
    copies, deltas = (split(thin_of("vgg9", 8, rank), THREE) for rank in (None, 2))
    assert "delta_rank" not in copies.to_json()
    assert Architecture.from_json(deltas.to_json()) == deltas
    assert isinstance(Network(copies).units["fc6"], nn.ModuleList)
