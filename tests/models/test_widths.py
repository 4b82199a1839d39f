"""Every unit of a backbone has a width of its own."""

import json

import pytest
import torch

from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture, multiply_adds, num_weights
from distbranch.models.backbone import BACKBONES, Backbone, UnitPlan
from distbranch.models.network import Network
from distbranch.tasks import Task

SIZE = (32, 32)
TASKS = (Task("hat"), Task("shoe"), Task("bag"))
UNEVEN = {
    "vgg9": (2, 3, 4, 5, 6, 7, 8, 9),
    "vgg16": (2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 8),
    "resnet18": (8, 4, 5, 6, 6, 7, 8, 9, 9),
    "resnet50": (4, *range(8, 72, 4)),
}


def uneven(backbone: str) -> Architecture:
    return Architecture(Backbone(backbone, SIZE, widths=UNEVEN[backbone]), TASKS)


@pytest.mark.parametrize(
    ("backbone", "width", "widths"),
    [("vgg9", 4, (4,) * 6 + (8, 8)), ("resnet18", 4, (4,) * 9), ("resnet50", 4, (4, *(16,) * 16))],
)
def test_equal_widths_are_the_constant_network_to_the_bit(
    backbone: str, width: int, widths: tuple[int, ...]
) -> None:
    constant = Architecture(Backbone(backbone, SIZE, width), TASKS)
    given = Architecture(Backbone(backbone, SIZE, widths=widths), TASKS)
    assert given.specs == constant.specs
    networks = Network(constant), Network(given)
    for network in networks:
        network.init(torch.Generator().manual_seed(3))
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    one, other = [network.eval()(images, flat=True) for network in networks]
    assert torch.equal(one, other)


@pytest.mark.parametrize("backbone", UNEVEN)
def test_the_cost_of_uneven_widths_is_that_of_the_network(backbone: str) -> None:
    architecture = uneven(backbone)
    network = Network(architecture).eval()
    products = [
        module
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    counted = []

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        counted.append(module.weight.numel() * output[0].numel() // output.shape[1])

    for product in products:
        if product is not network.heads:  # which are multiplied without being called
            product.register_forward_hook(count)
    network(torch.zeros(1, 3, *SIZE))
    assert num_weights(architecture) == sum(product.weight.numel() for product in products)
    assert multiply_adds(architecture) == sum(counted) + network.heads.weight.numel()


@pytest.mark.parametrize("backbone", UNEVEN)
def test_units_are_as_wide_as_was_said(backbone: str) -> None:
    assert tuple(spec.width for spec in uneven(backbone).specs) == UNEVEN[backbone]


def test_each_unit_has_as_many_copies_as_its_own_width_leaves_room_for() -> None:
    caps = [spec.max_copies for spec in uneven("vgg9").specs]
    assert caps == [32, 42, 64, 51, 85, 73, 64, 56]


def test_a_tree_over_uneven_widths_keeps_its_form_as_json() -> None:
    thin = uneven("vgg9")
    grown = thin.with_tree(thin.tree.split(Split(8, ((0, 1), (2,)))))
    again = Architecture.from_json(json.loads(json.dumps(grown.to_json())))
    assert again == grown
    assert num_weights(grown) - num_weights(thin) == 8 * 9
    assert grown.shared_by(TASKS[:1]).backbone == grown.backbone


def test_networks_without_widths_of_their_own_are_written_and_read_as_before() -> None:
    backbone = Backbone("vgg9", SIZE, 4)
    assert "widths" not in backbone.to_json()
    assert Backbone.from_json(backbone.to_json()) == backbone


@pytest.mark.parametrize(
    ("backbone", "widths", "words"),
    [
        ("vgg9", (4, 4), "should be 8 numbers, one for each of its units (conv1, conv2, conv3_1"),
        ("vgg9", (65, *(4,) * 7), "Number 1 of the widths of vgg9 should be from 1 to 64"),
        ("vgg9", (*(4,) * 7, 0), "Number 8 of the widths of vgg9 should be from 1 to 512"),
        (
            "resnet50",
            (*(4,) * 16, 6),
            "Number 17 of the widths of resnet50 should be a multiple of 4",
        ),
        ("timm:resnet18", (4, 4), "A model of timm has its own widths"),
    ],
)
def test_widths_that_do_not_fit_the_units_are_refused(
    backbone: str, widths: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        Backbone(backbone, SIZE, widths=widths)
    assert words in str(refused.value)


def test_a_backbone_that_does_not_ask_by_unit_takes_no_widths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plan(backbone: Backbone) -> list[UnitPlan]:
        return [UnitPlan("only", backbone.thin_width(8), 8, torch.nn.Identity)]

    monkeypatch.setitem(BACKBONES._entries, "short", plan)
    with pytest.raises(UserError, match="takes one width for all of its units"):
        Backbone("short", SIZE, widths=(4,))
