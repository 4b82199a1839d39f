"""Models of timm as chains of units, against the models themselves."""

import copy
import json
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distbranch.branching.routing import copy_units
from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.export.onnx_graph import onnx_bytes
from distbranch.export.torch_program import trace_network
from distbranch.extras import require
from distbranch.models import timm_chain
from distbranch.models.architecture import Architecture, multiply_adds, num_parameters, num_weights
from distbranch.models.backbone import Backbone, freeze_arguments
from distbranch.models.chain import divide, group_parts
from distbranch.models.network import Network, restrict
from distbranch.models.norm import BatchNorm, NormGroups
from distbranch.models.timm_chain import make_model, unit_states
from distbranch.models.timm_unit import TimmUnit, UnitNorm
from distbranch.tasks import Task

TASKS = (Task("a"), Task("b", "categorical", ("x", "y", "z")), Task("c"))
# Name, arguments: shallow or narrow where the model takes that.
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "convnext_atto": {"depths": [1, 2, 1, 1]},
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},
    "regnety_002": {},
    "vit_tiny_patch16_224": {"depth": 3},
    "test_byobnet": {},
    "test_coatnet": {},
    "test_mambaout": {},
    "test_vit_relpos": {},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16},
    "densenet121": {"block_config": [2, 2]},
    "xcit_nano_12_p16_224": {"depth": 2},
    "cait_xxs24_224": {"depth": 2},
    "vit_base_patch16_rope_224": {"depth": 2, "embed_dim": 48, "num_heads": 2},
    "fasternet_t0": {"depths": [1, 1, 2, 1]},
}
SIZE = 64


@dataclass(frozen=True)
class Case:
    """A model of timm with weights that nothing began with, and the network of the same weights, both in eval mode."""

    name: str
    model: nn.Module
    network: Network


def backbone_of(name: str, size: int = SIZE) -> Backbone:
    arguments = freeze_arguments(MODELS.get(name, {}))
    return Backbone(f"timm:{name}", (size, size), arguments=arguments)


def with_noise(model: nn.Module) -> nn.Module:
    """No weight is zero or one any more, so that nothing is left out unseen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value += 0.05 * torch.randn(value.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    backbone = backbone_of(request.param)
    model = with_noise(make_model(backbone, seed=1))
    network = Network(Architecture(backbone, TASKS))
    for unit, state in unit_states(backbone, model.state_dict()).items():
        network.copies(unit)[0].load_state_dict(state)
    yield Case(request.param, model, network.eval())
    timm_chain._divide_backbone.cache_clear()


def pictures(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def features_of(network: Network, x: Tensor) -> Tensor:
    (features,) = network._run(x, network.routing, None)
    return features


def widened(network: Network) -> Network:
    """Widened twice: at the last unit, then at the one below."""
    for groups in (((0, 2), (1,)), ((0,), (1,))):
        tree = network.architecture.tree
        tree = tree.split(Split(tree.active_layer, groups))
        network = network.rebuilt(network.architecture.with_tree(tree))
    return network


@torch.no_grad()
def test_the_composition_of_the_units_is_the_model(case: Case) -> None:
    x = pictures()
    assert_near(features_of(case.network, x), case.model(x), 1e-5)


def test_weights_parameters_and_multiply_adds_are_those_of_the_model(case: Case) -> None:
    model = copy.deepcopy(case.model).to("meta").requires_grad_(False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        (width,) = model(torch.zeros(1, 3, SIZE, SIZE)).shape[1:]
    architecture = case.network.architecture
    heads = width * architecture.num_outputs
    parameters = list(model.parameters())
    weights = sum(parameter.numel() for parameter in parameters if parameter.ndim > 1)
    assert num_weights(architecture) == weights + heads
    assert multiply_adds(architecture) == counter.get_total_flops() // 2 + heads
    everything = sum(parameter.numel() for parameter in parameters)
    assert num_parameters(architecture) == everything + heads + architecture.num_outputs
    trained = [parameter for parameter in case.network.parameters() if parameter.requires_grad]
    assert num_parameters(architecture) == sum(parameter.numel() for parameter in trained)


@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "training"])
@torch.no_grad()
def test_two_widenings_change_no_output(case: Case, is_training: bool) -> None:
    before = copy.deepcopy(case.network).train(is_training)
    after = widened(case.network).train(is_training)
    assert [len(after.routing.nodes[unit]) for unit in (-2, -1)] == [2, 2]
    slots = {name: torch.ones_like(value) for name, value in before.named_parameters()}
    copies = copy_units(slots, before.routing, after.routing)
    assert {name: value.shape for name, value in copies.items()} == {
        name: value.shape for name, value in after.named_parameters()
    }
    x = pictures()
    assert_near(after(x, flat=True), before(x, flat=True), 1e-6)


@torch.no_grad()
def test_a_network_of_some_tasks_gives_their_outputs(case: Case) -> None:
    network = widened(case.network)
    smaller = restrict(network, ["b"])
    assert num_weights(smaller.architecture) < num_weights(network.architecture)
    x = pictures()
    assert_near(smaller(x)["b"], network(x)["b"], 1e-6)


@torch.no_grad()
def test_a_policy_gives_what_one_pass_per_task_gives(case: Case) -> None:
    network = case.network
    num_blocks = network.architecture.num_blocks
    if not num_blocks:  # nothing may be skipped, which a search says itself
        assert not any(network.architecture.backbone.may_skip)
        return
    policy = tuple(
        tuple((task + block) % 2 == 0 for block in range(num_blocks)) for task in range(len(TASKS))
    )
    skipping = network.rebuilt(network.architecture.with_policy(policy))
    x = pictures()
    expected = []
    for row in policy:
        decisions = iter(row)
        features = x
        for plan in network.architecture.backbone.plans:
            unit = network.copies(plan.name)[0]
            shortcut = unit.shortcut(features)
            executes = not plan.may_skip or next(decisions)
            features = unit.execute(features, shortcut) if executes else shortcut
        expected.append(features.mean((2, 3)) if features.ndim == 4 else features)
    found = skipping(x)
    for (name, logits), features in zip(found.items(), expected, strict=True):
        columns = network.tasks.columns[name]
        outputs = features @ network.heads.weight[columns].t() + network.heads.bias[columns]
        assert_near(logits.view(len(x), -1), outputs, 1e-5)


@torch.no_grad()
def test_channels_last_and_a_copy_that_went_through_json_give_the_same(case: Case) -> None:
    architecture = case.network.architecture
    read = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert read == architecture
    assert len(pickle.dumps(architecture)) < 10_000  # it is sent to other ranks
    again = Network(read).eval()
    again.load_state_dict(case.network.state_dict())
    again.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = pictures()
    assert_near(again(x, flat=True), case.network(x, flat=True), 1e-6)


# ---- which units there are


def test_units_are_stem_and_blocks_with_the_norms_behind_them() -> None:
    backbone = backbone_of("resnet18")
    assert backbone.names == (
        "stem", "layer1_0", "layer1_1", "layer2_0", "layer2_1", "layer3_0", "layer3_1", "layer4_0", "layer4_1",
    )  # fmt: skip
    assert backbone.blocks == backbone.names[1:]
    assert [spec.halvings_above for spec in backbone.specs] == [5, 3, 3, 3, 2, 2, 1, 1, 0]
    assert [spec.width for spec in backbone.specs] == [64, 64, 64, 128, 128, 256, 256, 512, 512]
    assert all(spec.max_copies is None for spec in backbone.specs)
    own = Backbone("resnet18", (SIZE, SIZE)).specs
    assert [spec.body for spec in backbone.specs] == [spec.body for spec in own]
    assert [spec.shortcut for spec in backbone.specs] == [spec.shortcut for spec in own]


def test_a_patch_embedding_counts_its_halvings_and_keeps_its_embeddings() -> None:
    specs = backbone_of("vit_tiny_patch16_224").specs
    assert [spec.halvings_above for spec in specs] == [4, 0, 0, 0]
    state = Network(Architecture(backbone_of("vit_tiny_patch16_224"), TASKS)).state_dict()
    assert {"units.stem.0.tail.steps.cls_token", "units.stem.0.tail.steps.pos_embed"} <= set(state)


def test_arguments_reach_the_model() -> None:
    eight = Backbone(
        "timm:vit_tiny_patch16_224", (SIZE, SIZE), arguments=(("depth", 2), ("patch_size", 8))
    )
    assert eight.specs[0].halvings_above == 3
    assert len(eight.specs) == 3
    assert freeze_arguments({"depths": [[1, 2], [3]]}) == (("depths", ((1, 2), (3,))),)
    with pytest.raises(UserError, match=r"found \{'a': 1\} for block_args"):
        freeze_arguments({"block_args": {"a": 1}})


def test_a_chain_of_layers_has_a_unit_per_layer() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU()]
    features = nn.Sequential(*layers, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    units = group_parts(divide(features))
    names = [[part.path for part in unit] for unit in units]
    assert names == [["0", "1", "2"], ["3", "4"], ["5", "6"], ["7"]]


# ---- first weights


def test_first_weights_are_those_that_timm_draws_and_equal_for_equal_seeds() -> None:
    backbone = backbone_of("convnext_atto")
    networks = [Network(Architecture(backbone, TASKS)) for _ in range(3)]
    for network, seed in zip(networks, (7, 7, 8), strict=True):
        network.init(torch.Generator().manual_seed(seed))
    first, second, third = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    kernel = "units.stages_1_blocks_0.0.body.0.conv_dw.weight"
    assert not torch.equal(first[kernel], third[kernel])
    assert float(first[kernel].std()) == pytest.approx(0.02, rel=0.1)  # that of timm's ConvNeXt
    scale = first["units.stages_1_blocks_0.0.body.0.gamma"]
    assert torch.equal(scale, torch.full_like(scale, 1e-6))


def test_siblings_begin_alike_and_nothing_random_is_left_inside() -> None:
    network = Network(Architecture(backbone_of("swin_tiny_patch4_window7_224"), TASKS)).train()
    x = pictures()
    assert torch.equal(network(x, flat=True), network(x, flat=True))


# ---- batch norm


@pytest.mark.parametrize("num_ways", [1, 2])
def test_a_unit_normalises_the_groups_that_it_is_told(num_ways: int) -> None:
    backbone = backbone_of("resnet18")
    (stem, block, *_) = (plan.build() for plan in backbone.plans[2:])
    model = make_model(backbone, seed=0).train()
    expected_stem, expected_block = model.layer1[1], model.layer2[0]  # type: ignore[index]
    groups = NormGroups((2, 3))
    x = torch.randn(5 * num_ways, 64, 16, 16)
    by_way = torch.unflatten(x, 0, (num_ways, 5))
    for unit, reference in ((stem, expected_stem), (block, expected_block)):
        found = torch.unflatten(unit.train()(x, groups, num_ways), 0, (num_ways, 5))
        for part, own in zip(by_way.split([2, 3], dim=1), found.split([2, 3], dim=1), strict=True):
            expected = cast(nn.Module, reference)(part.flatten(0, 1))
            torch.testing.assert_close(own.flatten(0, 1), expected, rtol=1e-5, atol=1e-5)
        norms = [module for module in unit.modules() if isinstance(module, UnitNorm)]
        assert len(norms) == (3 if unit is block else 2)
        assert all(float(norm.step_sums.abs().sum()) > 0 for norm in norms)
        assert all(norm.groups is None for norm in norms)
        assert all(float(cast(Tensor, norm.running_mean).abs().sum()) == 0 for norm in norms)


def test_a_unit_that_fails_keeps_nothing_of_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = backbone_of("resnet18").plans[3]  # with a projection
    unit, fresh = cast(TimmUnit, plan.build()), plan.build()
    x = torch.randn(4, 64, 16, 16, generator=torch.Generator().manual_seed(1))

    def fail(_: Tensor) -> Tensor:
        raise MemoryError

    assert unit.body is not None
    with monkeypatch.context() as patch:
        patch.setattr(unit.body[0].get_submodule("bn2").act, "forward", fail)
        with pytest.raises(MemoryError):
            unit(x, NormGroups((2, 2)))
    assert torch.equal(copy.deepcopy(unit)(x), fresh(x))


def test_tokens_of_an_image_are_normalised_with_those_of_its_group() -> None:
    norm = UnitNorm(nn.BatchNorm1d(4, eps=1e-3)).train()
    tokens = torch.randn(5, 7, 4)
    norm.groups = NormGroups((2, 3))
    found = norm(tokens.flatten(0, 1)).view(5, 7, 4)
    for part, own in zip(tokens.split([2, 3]), found.split([2, 3]), strict=True):
        expected = nn.BatchNorm1d(4, eps=1e-3).train()(part.flatten(0, 1)).view(part.shape)
        torch.testing.assert_close(own, expected)


def test_every_batch_norm_of_a_network_is_ours_and_keeps_its_eps() -> None:
    network = Network(Architecture(backbone_of("mobilenetv3_small_050"), TASKS))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert isinstance(module, BatchNorm)
    norms = [module for module in network.modules() if isinstance(module, UnitNorm)]
    assert len(norms) == 34
    model = timm.create_model("test_efficientnet", bn_eps=1e-3)
    backbone = Backbone("timm:test_efficientnet", (SIZE, SIZE), arguments=(("bn_eps", 1e-3),))
    unit = cast(TimmUnit, backbone.plans[0].build())
    assert unit.tail.get_submodule("bn1").eps == model.bn1.eps == 1e-3


def test_features_for_an_affinity_are_those_of_images_in_the_colours_of_the_weights() -> None:
    backbone = replace(backbone_of("test_resnet"), input_affine=((1.1, 1, 0.9), (0.1, 0, 0.2)))
    network = widened(Network(Architecture(backbone, TASKS)).eval())
    x = pictures(2)
    outputs, _ = network.run_with_features(x, [1])
    torch.testing.assert_close(outputs, network(x, flat=True))


# ---- export


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_the_exported_program_gives_the_same(name: str) -> None:
    backbone = replace(backbone_of(name), input_affine=((1.1, 1, 0.9), (0.1, 0, 0.2)))
    network = widened(Network(Architecture(backbone, TASKS)).eval())
    program = trace_network(network, input_type="float").module()
    x = pictures(5)
    for task, logits in program(x).items():
        assert_near(logits, network(x)[task], 1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_efficientnet"])
@torch.inference_mode()
def test_the_onnx_file_gives_the_same(name: str) -> None:
    from distbranch.export.onnx_model import open_session

    network = widened(Network(Architecture(backbone_of(name), TASKS)).eval())
    session = open_session(onnx_bytes(network, {}, input_type="float"), num_threads=1)
    x = pictures(5)
    expected = network(x)
    found = session.run(list(expected), {"images": x.numpy()})
    for logits, output in zip(expected.values(), found, strict=True):
        assert_near(torch.from_numpy(output), logits, 1e-4)


# ---- what is refused


@pytest.mark.parametrize("name", ["hrnet_w18_small", "mvitv2_tiny"])
def test_a_model_that_is_no_chain_is_refused_with_some_that_are(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} of timm is no chain of units.*resnet18"):
        _ = Backbone(f"timm:{name}", (SIZE, SIZE)).plans


def test_what_timm_cannot_make_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no model 'resnet81'. The nearest are .*resnet18"):
        _ = Backbone("timm:resnet81", (SIZE, SIZE)).plans
    with pytest.raises(UserError, match=r"timm cannot make resnet18 .*\{'deepness': 3\}"):
        _ = Backbone("timm:resnet18", (SIZE, SIZE), arguments=(("deepness", 3),)).plans
    with pytest.raises(UserError, match=r"timm cannot make convnext_atto .*out of range"):
        _ = Backbone("timm:convnext_atto", (SIZE, SIZE), arguments=(("dims", (8, 8)),)).plans
    with pytest.raises(UserError, match="timm cannot make halonet26t for images of 96x96 pixels"):
        _ = Backbone("timm:halonet26t", (96, 96)).plans
    with pytest.raises(UserError, match="has its own widths"):
        Backbone("timm:resnet18", (SIZE, SIZE), width=8)
    with pytest.raises(UserError, match="low-rank"):
        Backbone("timm:resnet18", (SIZE, SIZE), low_rank=True)
    with pytest.raises(UserError, match=r"Arguments are those of a model of timm.*Leave them out"):
        Backbone("resnet18", (SIZE, SIZE), arguments=(("depth", 3),))
    for argument in ("drop_path_rate", "pretrained"):
        with pytest.raises(UserError, match=rf"found {argument}. Leave it out"):
            _ = Backbone("timm:resnet18", (SIZE, SIZE), arguments=((argument, 0.1),)).plans
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'distbranch\[timm\]'"):
        _ = Backbone("timm:resnet26", (SIZE, SIZE)).plans


def test_a_torchvision_for_another_torch_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms is absent')")
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"nms is absent\). Install the torchvision that belongs"):
        require("timm", "timm", "A backbone of timm")


def test_the_json_of_other_backbones_is_that_of_before() -> None:
    assert list(Backbone("vgg9", (SIZE, SIZE), 8).to_json()) == [
        "source", "image_size", "width", "width_fraction", "low_rank",
    ]  # fmt: skip
