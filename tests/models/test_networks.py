"""Backbones, their sizes as the paper counts them, and the network of a tree."""

import json

import pytest
import torch

from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture, multiply_adds, num_parameters, num_weights
from distbranch.models.backbone import BACKBONES, Backbone
from distbranch.models.network import Network
from distbranch.models.norm import NormGroups
from distbranch.tasks import Task


def binary(count: int) -> tuple[Task, ...]:
    return tuple(Task(f"task {number}") for number in range(count))


@pytest.mark.parametrize(
    ("width", "num_tasks", "expected"),
    [(None, 40, 134_411_968), (None, 50, 134_452_928), (32, 40, 218_464)],
)
def test_the_papers_numbers_of_weights(width: int | None, num_tasks: int, expected: int) -> None:
    assert num_weights(Architecture.thin("vgg16", width, (224, 224), binary(num_tasks))) == expected


@pytest.mark.parametrize(("width", "expected"), [(16, 31_992), (32, 123_336)])
def test_the_number_of_parameters_is_that_of_the_network(width: int, expected: int) -> None:
    architecture = Architecture.thin("vgg16", width, (64, 48), binary(40))
    assert num_parameters(architecture) == expected
    assert sum(parameter.numel() for parameter in Network(architecture).parameters()) == expected


def test_parameters_of_a_grown_network_are_those_of_its_branches() -> None:
    architecture = Architecture.thin("vgg9", 16, (40, 56), binary(5))
    tree = architecture.tree.split(Split(8, ((0, 1), (2,), (3, 4)))).split(Split(7, ((0, 2), (1,))))
    grown = architecture.with_tree(tree)
    assert num_parameters(grown) == sum(
        parameter.numel() for parameter in Network(grown).parameters()
    )
    extra = 2 * (32 * 32) + 16 * 2 * 3 * 32  # two more of fc6, one more of fc5 on 2x3 positions
    assert num_weights(grown) - num_weights(architecture) == extra
    assert multiply_adds(grown) - multiply_adds(architecture) == extra


def test_multiply_adds_equal_those_of_the_convolutions_and_products_carried_out() -> None:
    architecture = Architecture.thin("vgg16", 8, (64, 48), binary(3))
    counted = []

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        counted.append(positions * module.weight.numel())  # type: ignore[operator, union-attr]

    network = Network(architecture)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module is not network.heads:
            module.register_forward_hook(count)
    network.eval()(torch.rand(1, 3, 64, 48))
    assert sum(counted) + network.heads.weight.numel() == multiply_adds(architecture)


def test_thin_widths_caps_and_pools_are_those_of_the_paper() -> None:
    specs = Backbone("vgg16", (64, 48), 32).specs
    assert len(specs) == 15
    assert [spec.width for spec in specs] == [32] * 13 + [64, 64]
    assert [spec.width for spec in Backbone("vgg16", (64, 48), 100).specs][:4] == [64, 64, 100, 100]
    assert [spec.max_copies for spec in specs] == [2, 2, 4, 4, 8, 8, 8] + [16] * 6 + [64, 64]
    assert [spec.halvings_above for spec in specs] == [5, 5, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0]
    assert Backbone("vgg9", (33, 47), 4).specs[0].halvings_above == 4


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 48), (100, 36)])
def test_any_image_from_32x32_on_works(backbone: str, size: tuple[int, int]) -> None:
    network = Network(Architecture.thin(backbone, 4, size, binary(3)))
    outputs = network(torch.zeros(2, 3, *size, dtype=torch.uint8))
    assert {name: tuple(logits.shape) for name, logits in outputs.items()} == {
        f"task {k}": (2,) for k in range(3)
    }


def test_bytes_are_normalised_inside_and_floats_are_taken_as_they_are() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    network = Network(Architecture.thin("vgg9", 4, (32, 32), binary(2)), mean, std).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    normalised = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(network(images, flat=True), network(normalised, flat=True))


def test_the_same_generator_gives_the_same_weights_and_the_global_one_is_left_alone() -> None:
    architecture = Architecture.thin("vgg9", 4, (32, 32), binary(2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = Network(architecture), Network(architecture)
    assert torch.equal(torch.rand(3), expected)
    one.init(torch.Generator().manual_seed(7))
    other.init(torch.Generator().manual_seed(7))
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )
    other.init(torch.Generator().manual_seed(8))
    assert not torch.equal(one.heads.weight, other.heads.weight)


def test_parameter_names_tell_layer_and_branch() -> None:
    architecture = Architecture.thin("vgg9", 4, (32, 32), binary(3))
    network = Network(architecture.with_tree(architecture.tree.split(Split(8, ((0, 1), (2,))))))
    names = set(network.state_dict())
    assert {
        "units.conv1.0.product.weight",
        "units.fc6.1.product.weight",
        "units.fc6.1.norm.running_var",
        "heads.weight",
        "mean",
    } <= names
    assert network.heads.weight.shape == (3, 8)


def test_a_grown_tree_is_one_graph_for_the_compiler_whatever_its_groups() -> None:
    architecture = Architecture.thin("vgg9", 4, (32, 32), binary(4))
    tree = architecture.tree.split(Split(8, ((0, 1), (2,), (3,)))).split(Split(7, ((0,), (1, 2))))
    network = Network(architecture.with_tree(tree)).train()
    images = torch.rand(8, 3, 32, 32)
    for sizes in ((8,), (4, 4)):
        torch.compiler.reset()
        graphs = []

        def count(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
            graphs.append(module)  # noqa: B023
            return module

        compiled = torch.compile(network, backend=count, fullgraph=True)
        groups = NormGroups(sizes)
        expected = network(images, flat=True, groups=groups)
        for _ in range(3):
            torch.testing.assert_close(compiled(images, flat=True, groups=groups), expected)
        assert len(graphs) == 1


def test_a_categorical_task_gets_one_output_per_class() -> None:
    tasks = (Task("a"), Task("colour", "categorical", ("red", "green", "blue")))
    network = Network(Architecture.thin("vgg9", 4, (32, 32), tasks))
    outputs = network(torch.rand(2, 3, 32, 32))
    assert outputs["a"].shape == (2,)
    assert outputs["colour"].shape == (2, 3)


def test_the_json_of_an_architecture_gives_the_same_architecture() -> None:
    tasks = (Task("a"), Task("colour", "categorical", ("red", "green", "blue")))
    architecture = Architecture.thin("vgg16", None, (64, 48), tasks)
    architecture = architecture.with_tree(architecture.tree.split(Split(15, ((0,), (1,)))))
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


def test_what_cannot_be_built_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"at least 32x32 pixels .* found 64x31"):
        Architecture.thin("vgg16", 8, (64, 31), binary(2))
    with pytest.raises(
        UserError, match=r"no backbone 'resnet'. The nearest are resnet50.* is named timm:NAME"
    ):
        Architecture.thin("resnet", 8, (64, 64), binary(2))
    with pytest.raises(UserError, match="at least 1, found 0"):
        Architecture.thin("vgg16", 0, (64, 64), binary(2))
    two, three = (Architecture.thin("vgg16", 8, (64, 64), binary(count)) for count in (2, 3))
    with pytest.raises(UserError, match="tree is of 2 tasks, but 3 tasks"):
        three.with_tree(two.tree)
