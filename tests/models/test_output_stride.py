"""Residual networks of a given output stride: dilation in the place of strides, from the top."""

import pytest
import torch

from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.models.network import Network
from distbranch.tasks import Task

TASKS = (Task("a"), Task("b"))


def count_backbone(backbone: Backbone) -> tuple[int, int]:
    """Parameters and multiply-adds of all units."""
    parts = [part for spec in backbone.specs for part in (spec.body, spec.shortcut)]
    return sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)


@pytest.mark.parametrize(
    ("source", "parameters", "multiply_adds"),
    [("resnet18", 11_176_512, 19.7e9), ("resnet34", 21_284_672, 37.1e9)],
)
def test_networks_of_full_width_cost_what_the_design_says(
    source: str, parameters: int, multiply_adds: float
) -> None:
    found = count_backbone(Backbone(source, (321, 321), output_stride=8))
    assert found == (parameters, pytest.approx(multiply_adds, rel=0.003))


def test_a_network_of_width_32_everywhere_costs_what_the_design_says() -> None:
    found = count_backbone(Backbone("resnet18", (96, 128), 32, output_stride=8))
    assert found == (156_512, pytest.approx(64.6e6, rel=0.001))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("source", ["resnet18", "resnet50"])
def test_features_are_so_many_times_smaller_than_the_image(source: str, stride: int) -> None:
    architecture = Architecture(Backbone(source, (64, 96), 4, output_stride=stride), TASKS)
    network = Network(architecture)
    _, (features,) = network.run_with_features(
        torch.randn(1, 3, 64, 96), [len(architecture.specs) - 1]
    )
    assert features[0].shape[2:] == (64 // stride, 96 // stride)


def test_an_output_stride_of_32_is_the_network_without_one_to_the_bit() -> None:
    networks = []
    for stride in (None, 32):
        network = Network(
            Architecture(Backbone("resnet18", (48, 40), 8, output_stride=stride), TASKS)
        )
        network.init(torch.Generator().manual_seed(1))
        networks.append(network.eval())
    images = torch.randn(2, 3, 48, 40)
    one, other = [network(images, flat=True) for network in networks]
    assert torch.equal(one, other)


def test_weights_of_full_width_fit_every_output_stride() -> None:
    shapes = []
    for stride in (8, None):
        architecture = Architecture(Backbone("resnet18", (32, 32), output_stride=stride), TASKS)
        with torch.device("meta"):
            units = [plan.build() for plan in architecture.backbone.plans]
        shapes.append([{n: v.shape for n, v in unit.state_dict().items()} for unit in units])
    assert shapes[0] == shapes[1]


def test_the_network_is_fully_convolutional() -> None:
    network = Network(
        Architecture(Backbone("resnet18", (64, 64), 4, output_stride=8), TASKS)
    ).eval()
    assert network(torch.randn(2, 3, 40, 72), flat=True).shape == (2, 2)


def test_a_branch_is_priced_by_the_strides_above_its_output() -> None:
    specs = Backbone("resnet18", (64, 64), 8, output_stride=8).specs
    above = {spec.name: spec.halvings_above for spec in specs}
    assert above == {"stem": 1, "block1_1": 1, "block1_2": 1} | {
        f"block{stage}_{place}": 0 for stage in (2, 3, 4) for place in (1, 2)
    }


def test_an_output_stride_keeps_its_form_as_json_and_none_leaves_no_trace() -> None:
    backbone = Backbone("resnet18", (64, 64), 8, output_stride=16)
    assert Backbone.from_json(backbone.to_json()) == backbone
    assert "output_stride" not in Backbone("resnet18", (64, 64), 8).to_json()


@pytest.mark.parametrize(
    ("source", "stride", "sentence"),
    [
        ("vgg16", 8, "An output stride is that of a ResNet .* found 8 for vgg16"),
        ("resnet18", 4, "should be one of 8, 16, 32, found 4"),
    ],
)
def test_an_output_stride_that_cannot_be_is_refused(
    source: str, stride: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Backbone(source, (64, 64), 8, output_stride=stride)
