"""Heads of dense tasks: what they cost, and that they read the features of the node that serves their task."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distbranch.adashare.policy import EXECUTE
from distbranch.bench.candidates import NaiveNet, list_baselines
from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.maps import Outputs
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone, freeze_arguments
from distbranch.models.dense_heads import HeadPlan
from distbranch.models.network import Network, restrict
from distbranch.models.norm import BatchNorm
from distbranch.models.units import fold_norms
from distbranch.tasks import Task

SIZE = (48, 64)
CLASSES = tuple("abcdefghijklm")
ROOMS = (
    Task("segmentation", "segmentation", CLASSES),
    Task("depth", "depth"),
    Task("normals", "normals"),
    Task("edges", "heat"),
    Task("keypoints", "heat"),
)
# A scalar task on either side of dense ones, and one of several outputs.
MIXED = (
    Task("indoors"),
    Task("segmentation", "segmentation", CLASSES[:4]),
    Task("room", "categorical", ("kitchen", "bath", "hall")),
    Task("depth", "depth"),
)
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def make_thin(tasks: tuple[Task, ...] = MIXED, head: str = "light") -> Architecture:
    backbone = Backbone("resnet18", SIZE, 6, output_stride=8)
    return Architecture(backbone, tasks, dense_head=HeadPlan(head, 5))


def make_architectures() -> dict[str, Architecture]:
    thin = make_thin()
    top = len(thin.backbone.names)
    tree = thin.tree.split(Split(top, ((0, 1), (2, 3)))).split(Split(top - 1, ((0,), (1,))))
    policy = ((True,) * 8, (True, False) * 4, (True,) * 7 + (False,), (False,) * 8)
    return {
        "thin": thin,
        "tree": thin.with_tree(tree),
        "delta": replace(thin, delta_rank=1).with_tree(tree),
        "policy": thin.with_policy(policy),
        "search": replace(thin, searches=True),
        "aspp": replace(thin, dense_head=HeadPlan("aspp", 5)).with_tree(tree),
    }


ARCHITECTURES = make_architectures()


def make_network(architecture: Architecture) -> Network:
    """With running statistics and scales that are not those of the beginning, in eval mode."""
    network = Network(architecture)
    network.init(torch.Generator().manual_seed(3))
    for module in network.modules():
        if isinstance(module, BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight.data):
                cast(Tensor, tensor).uniform_(0.5, 1.5)
    return network.eval()


def answer(network: Network, decisions: Tensor | None = None) -> Outputs:
    return cast(Outputs, network(IMAGES, decisions, flat=True))


def assert_same(one: Outputs, other: Outputs, **tolerance: float) -> None:
    torch.testing.assert_close(one.logits, other.logits, **tolerance)
    torch.testing.assert_close(dict(one.maps), dict(other.maps), **tolerance)


# ---- costs


@pytest.mark.parametrize(
    ("head", "num_outputs", "parameters", "multiply_adds"),
    [
        ("aspp", 40, 23.24e6, 39.1e9),
        ("aspp", 13, 23.13e6, 38.9e9),
        ("aspp", 3, 23.09e6, 38.8e9),
        ("aspp", 1, 23.08e6, 38.8e9),
        ("light", 40, 0.298e6, 0.50e9),
        ("light", 13, 0.296e6, 0.50e9),
        ("light", 3, 0.295e6, 0.50e9),
        ("light", 1, 0.295e6, 0.50e9),
    ],
)
def test_a_head_costs_what_the_design_says(
    head: str, num_outputs: int, parameters: float, multiply_adds: float
) -> None:
    width = {"aspp": 1024, "light": 64}[head]
    cost = HeadPlan(head, width).measure((512, 41, 41), num_outputs)
    assert cost.parameters == pytest.approx(parameters, rel=0.002)
    assert cost.multiply_adds == pytest.approx(multiply_adds, rel=0.01)


def test_the_published_network_of_three_tasks_has_90_7_million_weights() -> None:
    tasks = (Task("s", "segmentation", tuple(map(str, range(40)))), ROOMS[2], ROOMS[1])
    backbone = Backbone("resnet34", (321, 321), output_stride=8)
    architecture = Architecture(backbone, tasks, dense_head=HeadPlan("aspp", 1024))
    assert architecture.measure_units().parameters == 21_284_672
    assert architecture.cost().parameters == pytest.approx(90.7e6, rel=0.0005)
    assert architecture.measure_heads().parameters / architecture.cost().parameters == (
        pytest.approx(0.77, abs=0.005)
    )


def test_five_light_heads_over_a_thin_network_cost_what_the_design_says() -> None:
    backbone = Backbone("resnet18", (96, 128), 32, output_stride=8)
    architecture = Architecture(backbone, ROOMS, dense_head=HeadPlan("light", 32))
    assert architecture.measure_units().parameters == 156_512
    assert architecture.measure_units().multiply_adds == pytest.approx(64.6e6, rel=0.001)
    assert architecture.measure_heads().parameters == 47_027
    assert architecture.measure_heads().multiply_adds == pytest.approx(9.0e6, rel=0.005)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cost_counts_what_a_network_has(name: str) -> None:
    architecture = ARCHITECTURES[name]
    parameters = sum(p.numel() for p in Network(architecture).parameters() if p.requires_grad)
    assert architecture.cost().parameters == parameters
    assert architecture.cost() == architecture.measure_units() + architecture.measure_heads()


def test_multiply_adds_of_a_head_are_those_that_are_executed() -> None:
    for head in ("light", "aspp"):
        network = make_network(make_thin(ROOMS, head))
        counted: list[int] = []

        def count(module: torch.nn.Module, _: object, y: Tensor, to: list[int] = counted) -> None:
            to.append(cast(Tensor, module.weight)[0].numel() * y[0].numel())

        for module in network.dense_heads.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        network(IMAGES)
        assert network.architecture.measure_heads().multiply_adds == sum(counted)


# ---- outputs


def test_outputs_are_logits_and_maps_at_the_stride_of_the_network() -> None:
    outputs = answer(make_network(make_thin()))
    assert outputs.logits.shape == (2, 4)
    shapes = {name: tuple(one.shape) for name, one in outputs.maps.items()}
    assert shapes == {"segmentation": (2, 4, 6, 8), "depth": (2, 1, 6, 8)}


def test_maps_by_name_are_as_large_as_the_image() -> None:
    network = make_network(make_thin())
    by_name, outputs = network(IMAGES), answer(network)
    assert list(by_name) == [task.name for task in MIXED]
    for name, small in outputs.maps.items():
        large = functional.interpolate(small, SIZE, mode="bilinear", align_corners=False)
        torch.testing.assert_close(by_name[name], large)
    torch.testing.assert_close(by_name["indoors"], outputs.logits[:, 0])
    torch.testing.assert_close(by_name["room"], outputs.logits[:, 1:])


def test_a_network_of_dense_tasks_alone_has_no_matrix_of_heads() -> None:
    network = make_network(make_thin(ROOMS))
    assert not any(name.startswith("heads.") for name in network.state_dict())
    assert answer(network).logits.shape == (2, 0)


@pytest.mark.parametrize("name", ["tree", "policy", "aspp"])
def test_every_head_reads_the_features_of_the_node_that_serves_its_task(name: str) -> None:
    network = make_network(ARCHITECTURES[name])
    outputs, (features,) = network.run_with_features(IMAGES, [len(network.routing.units) - 1])
    assert isinstance(outputs, Outputs)
    assert len(set(network.routing.top)) > 1
    for number, task in enumerate(MIXED):
        x = features[network.routing.top[number]]
        if task.name in network.dense_heads:
            expected, found = network.dense_heads[task.name](x), outputs.maps[task.name]
        else:
            columns = network.tasks.columns[task.name]
            assert network.heads is not None
            expected = network.heads(x.mean((2, 3)))[:, columns]
            found = outputs.logits[:, columns]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_search_gives_every_head_the_mixed_features_of_its_task() -> None:
    network = make_network(ARCHITECTURES["search"])
    decisions = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1)).softmax(dim=2)
    found = answer(network, decisions)
    for number in (1, 3):
        name = MIXED[number].name
        alone = answer(network, decisions[number : number + 1].expand(4, -1, -1)).maps[name]
        torch.testing.assert_close(found.maps[name], alone, rtol=1e-4, atol=1e-5)
    executes = torch.zeros(4, 8, 2)
    executes[:, :, EXECUTE] = 1
    assert_same(answer(network, executes), answer(network), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "search"])
def test_every_weight_gets_a_gradient(name: str) -> None:
    network = Network(ARCHITECTURES[name])
    outputs = answer(network.train())
    loss = outputs.logits.square().sum() + sum(one.square().sum() for one in outputs.maps.values())
    cast(Tensor, loss).backward()
    assert all(one.grad is not None for one in network.parameters() if one.requires_grad)


def test_outputs_of_maps_keep_full_precision_in_bf16() -> None:
    network = make_network(make_thin(ROOMS))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = answer(network)
    assert {one.dtype for one in outputs.maps.values()} == {torch.float32}


# ---- other forms of a network


def test_a_network_as_one_would_write_it_first_gives_the_same_maps() -> None:
    network = make_network(ARCHITECTURES["tree"])
    pixels = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    found, expected = NaiveNet(network).eval()(pixels), network(pixels)
    for task in MIXED:
        shape = expected[task.name].shape
        torch.testing.assert_close(
            found[task.name].reshape(shape), expected[task.name], rtol=1e-3, atol=1e-4
        )


def test_networks_to_measure_beside_have_the_same_heads_and_output_stride() -> None:
    architecture = replace(ARCHITECTURES["aspp"], dense_head=HeadPlan("aspp", 3))
    for candidate in list_baselines(architecture, ["resnet18"]):
        other = candidate.network.architecture
        assert other.dense_head == architecture.dense_head
        assert other.backbone.output_stride == 8


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_keeps_its_form_as_json(name: str) -> None:
    architecture = ARCHITECTURES[name]
    assert Architecture.from_json(architecture.to_json()) == architecture


def test_without_dense_tasks_nothing_of_heads_stands_in_json() -> None:
    assert "dense_head" not in make_thin((Task("a"),)).to_json()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folded_norms_change_no_answer(name: str) -> None:
    network = make_network(ARCHITECTURES[name]).folded()
    assert_same(answer(fold_norms(network)), answer(network), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["tree", "policy", "search", "aspp"])
@pytest.mark.parametrize("names", [["depth"], ["indoors"], ["room", "segmentation"]])
def test_a_network_of_some_tasks_gives_their_answers(name: str, names: list[str]) -> None:
    network = make_network(ARCHITECTURES[name])
    part, whole = restrict(network, names)(IMAGES), network(IMAGES)
    assert set(part) == set(names)
    for task in names:
        torch.testing.assert_close(part[task], whole[task], rtol=1e-4, atol=1e-5)


def test_a_widened_network_gives_the_same_answers() -> None:
    network = make_network(make_thin())
    wider = network.rebuilt(ARCHITECTURES["tree"])
    assert_same(answer(wider), answer(network), rtol=1e-5, atol=1e-6)


def test_a_search_is_served_as_its_most_probable_policy() -> None:
    network = make_network(ARCHITECTURES["search"])
    network.policy_logits.copy_(torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(2)))
    assert_same(answer(network.as_served()), answer(network), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", ["vgg9", "resnet18"])
def test_a_network_that_ends_in_one_vector_is_refused(source: str) -> None:
    sentence = rf"Dense tasks \(depth\) need .* found that {source} ends in one vector"
    with pytest.raises(UserError, match=sentence):
        Architecture(Backbone(source, (32, 32), 4), (Task("depth", "depth"),))


# ---- models of timm


def make_timm(name: str, **arguments: object) -> Architecture:
    given = freeze_arguments({"global_pool": ""} | arguments)
    backbone = Backbone(f"timm:{name}", (64, 64), arguments=given)
    return Architecture(backbone, MIXED, dense_head=HeadPlan("light", 5))


@pytest.mark.parametrize(
    ("name", "arguments", "stride"),
    [
        ("convnext_atto", {"depths": [1, 1, 1, 1], "output_stride": 8}, 8),
        # Its channels are last.
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 1, 1]}, 32),
    ],
)
def test_a_chain_of_timm_that_ends_in_a_map_takes_dense_heads(
    name: str, arguments: dict[str, object], stride: int
) -> None:
    network = Network(make_timm(name, **arguments)).eval()
    outputs = cast(Outputs, network(torch.randn(2, 3, 64, 64), flat=True))
    assert outputs.maps["depth"].shape == (2, 1, 64 // stride, 64 // stride)
    assert outputs.logits.shape == (2, 4)


def test_a_model_of_timm_that_ends_in_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"ends in tokens, .* Models that end in one: resnet18"):
        make_timm("vit_tiny_patch16_224", depth=1)
