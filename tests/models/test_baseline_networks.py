"""Networks of other papers over the same units: their sizes, their beginnings, and what each computes, against its definition."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distbranch.config import OptimConfig
from distbranch.config import network as settings
from distbranch.engine.optimizer_and_schedule import build_optimizer, set_learning_rate
from distbranch.errors import UserError
from distbranch.maps import Outputs
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.models.baselines import BASELINES
from distbranch.models.baselines.mtan import Mtan
from distbranch.models.baselines.nddr import Nddr
from distbranch.models.baselines.sluice import Sluice
from distbranch.models.network import Network, restrict
from distbranch.models.norm import BatchNorm
from distbranch.models.units import Block, fold_norms
from distbranch.tasks import Task

SIZE = (48, 64)
TASKS = (Task("depth", "depth"), Task("indoors"), Task("normals", "normals"))
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(5))
COLUMNS = [name for name, kind in BASELINES.items() if kind.has_columns]


def make_architecture(name: str, source: str = "resnet18", width: int | None = 6) -> Architecture:
    thin = Architecture(Backbone(source, SIZE, width, output_stride=8), TASKS)
    return thin.with_baseline(name)


def make_network(name: str, source: str = "resnet18") -> Network:
    """With running statistics that are not those of the beginning, in eval mode."""
    network = Network(make_architecture(name, source))
    network.init(torch.Generator().manual_seed(3))
    for module in network.modules():
        if isinstance(module, BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight.data):
                cast(Tensor, tensor).uniform_(0.5, 1.5)
    return network.eval()


def run_column(network: Network, task: int, features: Tensor, units: range) -> Tensor:
    for number in units:
        features = network.copies(network.routing.units[number])[task](features)
    return features


def read_outputs(network: Network, features: list[Tensor]) -> Outputs:
    assert network.heads is not None
    maps = {
        name: network.dense_heads[name](features[n]) for n, name in ((0, "depth"), (2, "normals"))
    }
    return Outputs(network.heads(features[1].mean((2, 3))), maps)


def assert_same(found: object, expected: Outputs) -> None:
    assert isinstance(found, Outputs)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dict(found.maps), dict(expected.maps), rtol=1e-3, atol=1e-4)


# ---- sizes


@pytest.mark.parametrize(
    ("name", "source", "ratios"),
    [
        ("cross-stitch", "resnet34", (2.000, 3.000, 5.001)),
        ("sluice", "resnet34", (2.000, 3.000, 5.000)),
        ("nddr", "resnet34", (2.066, 3.147, 5.409)),
        ("nddr", "resnet18", (2.125, 3.281, 5.780)),
        ("mtan", "resnet34", (1.251, 1.264, 1.289)),
        ("mtan", "resnet18", (1.479, 1.502, 1.549)),
    ],
)
def test_weights_relative_to_one_network_are_those_of_the_design(
    name: str, source: str, ratios: tuple[float, ...]
) -> None:
    backbone = Backbone(source, SIZE, output_stride=8)
    found = []
    for num_tasks in (2, 3, 5):
        tasks = tuple(Task(f"task{number}", "depth") for number in range(num_tasks))
        plain = Architecture(backbone, tasks)
        mixed = plain.with_baseline(name)
        assert mixed.measure_heads() == plain.measure_heads()
        found.append(mixed.measure_units().parameters / plain.measure_units().parameters)
    assert found == pytest.approx(ratios, abs=0.0006)


@pytest.mark.parametrize("source", ["resnet18", "resnet50"])
@pytest.mark.parametrize("name", BASELINES)
def test_the_cost_counts_what_a_network_has(name: str, source: str) -> None:
    architecture = make_architecture(name, source)
    parameters = sum(one.numel() for one in Network(architecture).parameters())
    assert architecture.cost().parameters == parameters


def test_names_in_the_configuration_are_those_of_the_networks() -> None:
    assert tuple(BASELINES) == settings.BASELINES


# ---- what they compute


@pytest.mark.parametrize("name", COLUMNS)
def test_every_task_begins_with_weights_of_its_own(name: str) -> None:
    network = make_network(name)
    one, other, _ = network.copies("block2_1")
    assert not torch.equal(
        cast(Block, one).last_convolution.weight, cast(Block, other).last_convolution.weight
    )


def test_cross_stitch_mixes_channels_of_all_tasks_after_every_stage() -> None:
    network = make_network("cross-stitch")
    assert network.baseline is not None
    draw = torch.Generator().manual_seed(1)
    matrices = network.baseline.list_mixing()
    assert len(matrices) == 4
    torch.testing.assert_close(matrices[0][0].diagonal(), torch.full((3,), 0.9))
    torch.testing.assert_close(matrices[0][2].sum(dim=1), torch.ones(3))
    features = [run_column(network, task, IMAGES, range(1)) for task in range(3)]
    for units, matrix in zip(network.baseline.stages, matrices, strict=True):
        matrix.data.copy_(torch.rand(matrix.shape, generator=draw))
        own = [run_column(network, task, features[task], units) for task in range(3)]
        features = [
            sum((matrix[:, t, u, None, None] * own[u] for u in range(3)), torch.zeros(()))
            for t in range(3)
        ]
    assert_same(network(IMAGES, flat=True), read_outputs(network, features))


def test_nddr_begins_as_nine_tenths_of_the_own_features_and_one_of_every_other() -> None:
    network = make_network("nddr")
    baseline = cast(Nddr, network.baseline)
    for layers in cast(list[nn.ModuleList], list(baseline.reductions)):
        for layer in layers:
            assert layer.norm.momentum == 0.05
            layer.norm.reset_running_stats()
            layer.norm.reset_parameters()
    features = [run_column(network, task, IMAGES, range(1)) for task in range(3)]
    for units in baseline.stages:
        own = [run_column(network, task, features[task], units) for task in range(3)]
        total = torch.stack(own).sum(dim=0)
        features = [functional.relu((0.1 * total + 0.8 * x) / (1 + 1e-5) ** 0.5) for x in own]
    assert_same(network(IMAGES, flat=True), read_outputs(network, features))


def test_sluice_mixes_halves_and_blocks_of_the_last_stage() -> None:
    network = make_network("sluice")
    baseline = cast(Sluice, network.baseline)
    draw = torch.Generator().manual_seed(1)
    torch.testing.assert_close(baseline.mixing[0].sum(dim=1), torch.ones(6))
    for weight in baseline.list_mixing():
        weight.data.copy_(torch.rand(weight.shape, generator=draw))

    def mix(features: list[Tensor], matrix: Tensor) -> list[Tensor]:
        halves = [x[:, part * 3 :][:, :3] for x in features for part in (0, 1)]
        rows = [
            sum((a * x for a, x in zip(row, halves, strict=True)), torch.zeros(()))
            for row in matrix
        ]
        return [torch.cat(rows[2 * task :][:2], dim=1) for task in range(3)]

    features = [run_column(network, task, IMAGES, range(1)) for task in range(3)]
    *stages, last = baseline.stages
    for units, matrix in zip(stages, baseline.mixing, strict=False):
        own = [run_column(network, task, features[task], units) for task in range(3)]
        features = mix(own, matrix)
    first = [run_column(network, task, features[task], last[:1]) for task in range(3)]
    second = [run_column(network, task, first[task], last[1:]) for task in range(3)]
    second = mix(second, baseline.mixing[3])
    shares = baseline.choice.softmax(dim=1)
    features = [shares[t, 0] * first[t] + shares[t, 1] * second[t] for t in range(3)]
    assert_same(network(IMAGES, flat=True), read_outputs(network, features))


def test_the_penalty_of_sluice_is_zero_only_where_halves_are_orthogonal() -> None:
    network = make_network("sluice")
    blocks = [
        cast(Block, copy)
        for name in ("block1_2", "block2_2", "block3_2", "block4_2")
        for copy in network.copies(name)
    ]
    expected = 0.0
    for block in blocks:
        weight = block.last_convolution.weight.detach().flatten(1)
        expected += 0.1 * float((weight[:3] @ weight[3:].T).square().sum())
    assert float(cast(Tensor, network.compute_penalty()).detach()) == pytest.approx(
        expected, rel=1e-4
    )
    for block in blocks:
        block.last_convolution.weight.data[3:] = 0
    assert float(cast(Tensor, network.compute_penalty()).detach()) == 0
    assert all(
        make_network(name).compute_penalty() is None for name in BASELINES if name != "sluice"
    )


def test_mtan_multiplies_shared_features_by_masks_of_every_task() -> None:
    network = make_network("mtan")
    baseline = cast(Mtan, network.baseline)
    assert baseline.is_halved == [True, False, False]
    x = run_column(network, 0, IMAGES, range(1))
    refined: list[Tensor] = []
    attended: list[Tensor] = []
    for stage, units in enumerate(baseline.stages):
        before = run_column(network, 0, x, units[:-1])
        x = run_column(network, 0, before, units[-1:])
        attended = []
        for task in range(3):
            attention = cast(nn.ModuleList, baseline.attentions[stage])[task]
            seen = torch.cat([before, refined[task]], dim=1) if refined else before
            mask = attention(seen)
            assert ((mask >= 0) & (mask <= 1)).all()  # far from 0 a sigmoid is 1 in float32
            assert mask.unique().numel() > 1
            attended.append(mask * x)
        if stage < 3:
            refined = [baseline.refiners[stage](one) for one in attended]
        if stage == 0:
            refined = [functional.max_pool2d(one, 2) for one in refined]
    assert_same(network(IMAGES, flat=True), read_outputs(network, attended))


@pytest.mark.parametrize("name", BASELINES)
def test_every_weight_gets_a_gradient_and_odd_sizes_fit(name: str) -> None:
    network = Network(make_architecture(name)).train()
    outputs = cast(Outputs, network(torch.randn(2, 3, 41, 59), flat=True))
    loss = outputs.logits.square().sum() + sum(one.square().sum() for one in outputs.maps.values())
    cast(Tensor, loss).backward()
    assert all(one.grad is not None for one in network.parameters())


@pytest.mark.parametrize("name", BASELINES)
def test_a_network_keeps_its_answers_as_json_and_state_and_with_folded_norms(name: str) -> None:
    network = make_network(name)
    architecture = Architecture.from_json(network.architecture.to_json())
    assert architecture == network.architecture
    expected = cast(Outputs, network(IMAGES, flat=True))
    assert_same(network.rebuilt(architecture)(IMAGES, flat=True), expected)
    assert_same(fold_norms(network)(IMAGES, flat=True), expected)


# ---- training and refusals


@pytest.mark.parametrize(
    ("name", "optimiser", "given", "rate", "decays"),
    [
        ("cross-stitch", "sgd", None, 100.0, False),
        ("sluice", "sgd", None, 100.0, False),
        ("nddr", "sgd", None, 100.0, True),
        ("nddr", "adamw", None, 1.0, True),
        ("cross-stitch", "adamw", 5.0, 5.0, False),
    ],
)
def test_mixing_weights_have_a_rate_and_a_decay_of_their_own(
    name: str, optimiser: str, given: float | None, rate: float, decays: bool
) -> None:
    network = make_network(name)
    assert network.baseline is not None
    config = OptimConfig(name=optimiser, weight_decay=0.01)
    optimizer = build_optimizer(network, config, baseline=network.baseline, mixing_rate=given)
    set_learning_rate(optimizer, 0.5)
    *others, own = optimizer.param_groups
    assert set(map(id, own["params"])) == set(map(id, network.baseline.list_mixing()))
    assert own["lr"] == pytest.approx(0.5 * rate)
    assert own["weight_decay"] == (0.01 if decays else 0.0)
    assert {group["lr"] for group in others} == {0.5}
    trained = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(trained) == sorted(id(one) for one in network.parameters())


def test_a_part_of_the_tasks_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.name=mtan mixes the features of all tasks"):
        restrict(make_network("mtan"), ["depth"])


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        (
            Architecture.thin("vgg9", 4, SIZE, (Task("a"), Task("b"))),
            "needs a ResNet .* found vgg9",
        ),
        (Architecture.thin("resnet18", 4, SIZE, (Task("a"),)), "at least two"),
        (Architecture.thin("resnet18", 5, SIZE, (Task("a"), Task("b"))), "should be even, found 5"),
    ],
)
def test_what_cannot_be_mixed_is_refused(architecture: Architecture, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        architecture.with_baseline("sluice")
