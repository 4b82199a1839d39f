"""Thin networks that begin from VGG-16 files and wide runs, and files that are none."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from vgg_files import POOLED, convolution_places, vgg16_state

from distbranch.branching.somp import select_rows
from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.models.pretrained import WideNetwork, read_weights, wide_network
from distbranch.models.thin_init import Choice, ThinBeginning, thin_beginning
from distbranch.tasks import Task

TASKS = (Task("one"), Task("other"))


def thin(
    width: int | None, size: tuple[int, int] = (64, 96), backbone: str = "vgg16"
) -> Architecture:
    return Architecture.thin(backbone, width, size, TASKS)


def features(architecture: Architecture, beginning: ThinBeginning, images: Tensor) -> Tensor:
    """What the top layer of the thin network puts out in evaluation, [B, F]."""
    network = Network(architecture)
    network.load_state_dict(network.state_dict() | beginning.state)
    return top_of(network.eval(), images)


def top_of(network: Network, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    top = network.copies(network.routing.units[-1])
    top[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        network(images)
    return seen[0]


def reference(
    state: dict[str, Tensor], rows: list[tuple[int, ...]], images: Tensor, *, batch_norm: bool
) -> Tensor:
    """torchvision's VGG-16 in evaluation, with the chosen filters of every layer and no others."""
    x, kept = images, list(range(images.shape[1]))
    for number, place in enumerate(convolution_places(batch_norm=batch_norm)):
        chosen = list(rows[number])
        x = functional.conv2d(
            x,
            state[f"features.{place}.weight"][chosen][:, kept],
            state[f"features.{place}.bias"][chosen],
            padding=1,
        )
        if batch_norm:
            norm = [
                state[f"features.{place + 1}.{name}"][chosen]
                for name in ("running_mean", "running_var", "weight", "bias")
            ]
            x = functional.batch_norm(x, *norm)
        x = functional.relu(x)
        x = functional.max_pool2d(x, 2) if number in POOLED else x
        kept = chosen
    x = functional.adaptive_avg_pool2d(x, (7, 7)).flatten(1)
    fc6 = (
        state["classifier.0.weight"][list(rows[13])]
        .view(len(rows[13]), 512, 49)[:, kept]
        .flatten(1)
    )
    x = functional.relu(functional.linear(x, fc6, state["classifier.0.bias"][list(rows[13])]))
    fc7 = state["classifier.3.weight"][list(rows[14])][:, list(rows[13])]
    return functional.relu(functional.linear(x, fc7, state["classifier.3.bias"][list(rows[14])]))


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(vgg16_state(), path)
    return path


@pytest.fixture(scope="module")
def vgg(vgg_file: Path) -> WideNetwork:
    return read_weights(vgg_file)


@pytest.mark.parametrize("size", [(64, 96), (224, 224)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_thin_network_computes_what_the_chosen_filters_computed(
    tmp_path: Path, batch_norm: bool, size: tuple[int, int]
) -> None:
    state = vgg16_state(batch_norm=batch_norm)
    torch.save(state, tmp_path / "vgg.pth")
    beginning = thin_beginning(
        read_weights(tmp_path / "vgg.pth"), thin(4, size), "random-rows", seed=3
    )
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = reference(state, list(beginning.rows.values()), images, batch_norm=batch_norm)
    assert expected.count_nonzero() > 2
    torch.testing.assert_close(
        features(thin(4, size), beginning, images), expected, rtol=1e-4, atol=1e-5
    )


def test_rows_of_every_layer_are_those_of_somp_on_the_columns_that_are_left(
    vgg_file: Path, vgg: WideNetwork
) -> None:
    state = torch.load(vgg_file, weights_only=True)
    rows = list(thin_beginning(vgg, thin(8, (224, 224))).rows.values())
    for number, place in enumerate(convolution_places(batch_norm=False)[:5]):
        kept = list(rows[number - 1]) if number else [0, 1, 2]
        assert list(rows[number]) == select_rows(
            state[f"features.{place}.weight"][:, kept].flatten(1), 8
        )
    fc6 = state["classifier.0.weight"].view(4096, 512, 49)[:, list(rows[12])].flatten(1)
    assert list(rows[13]) == select_rows(fc6, 16)


def test_files_of_timm_old_files_and_wrapped_ones_give_the_same(
    tmp_path: Path, vgg: WideNetwork
) -> None:
    state = vgg16_state()
    torch.save(vgg16_state(timm=True), tmp_path / "timm.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": part for name, part in state.items()}},
        tmp_path / "wrapped.pth",
    )
    for name in ("timm", "old", "wrapped"):
        for layer, expected in zip(
            read_weights(tmp_path / f"{name}.pth").layers, vgg.layers, strict=True
        ):
            assert torch.equal(layer.weight[:3], expected.weight[:3]), name
            assert torch.equal(layer.mean, expected.mean), name


def test_blue_first_turns_the_colours_of_the_first_layer_and_nothing_else(
    vgg_file: Path, vgg: WideNetwork
) -> None:
    turned = read_weights(vgg_file, bgr=True)
    assert torch.equal(turned.layers[0].weight, vgg.layers[0].weight[:, [2, 1, 0]])
    assert torch.equal(turned.layers[1].weight, vgg.layers[1].weight)


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    header, offset = {}, 0
    state = vgg16_state()
    for (
        name,
        part,
    ) in (
        state.items()
    ):  # as the library would write it; all zeros but the first tensor, so a file with holes
        size = 4 * part.numel()
        header[name] = {
            "dtype": "F32",
            "shape": list(part.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = str(header).replace("'", '"').encode()
    with (tmp_path / "vgg.safetensors").open("wb") as file:
        file.write(
            struct.pack("<Q", len(text)) + text + state["features.0.weight"].numpy().tobytes()
        )
        os.truncate(file.fileno(), 8 + len(text) + offset)
    layers = read_weights(tmp_path / "vgg.safetensors").layers
    assert torch.equal(layers[0].weight, state["features.0.weight"])
    assert layers[13].weight.shape == (4096, 25088)


@pytest.mark.parametrize("choice", ["somp", "largest-norm", "random-rows"])
def test_from_a_wide_run_of_the_same_width_the_thin_network_is_the_wide_one(choice: Choice) -> None:
    network = trained(thin(6, backbone="vgg9"))
    beginning = thin_beginning(wide_network(network, "run"), thin(6, backbone="vgg9"), choice)
    images = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(
        features(thin(6, backbone="vgg9"), beginning, images), top_of(network, images)
    )


def test_doubled_filters_are_left_out_by_somp_alone() -> None:
    network = trained(thin(8, (32, 32), "vgg9"))
    first = network.get_parameter("units.conv1.0.product.weight")
    norm = network.get_submodule("units.conv1.0.norm")
    with torch.no_grad():
        first[4:] = first[:4] * 2
        for value in norm.state_dict().values():
            if value.ndim:
                value[4:] = value[:4]
    wide = wide_network(network.eval(), "run")
    chosen = thin_beginning(wide, thin(4, (32, 32), "vgg9"), "somp").rows["conv1"]
    assert sorted(row % 4 for row in chosen) == [0, 1, 2, 3]
    largest = thin_beginning(wide, thin(4, (32, 32), "vgg9"), "largest-norm").rows["conv1"]
    assert set(largest) == {4, 5, 6, 7}


def trained(architecture: Architecture) -> Network:
    """Random weights, and norms that are not those of the start."""
    network, draw = Network(architecture), torch.Generator().manual_seed(2)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.add_(torch.rand(value.shape, generator=draw) * 0.5)
    return network.eval()


def test_more_filters_than_the_rank_are_filled_up_and_told_in_one_sentence(
    vgg: WideNetwork,
) -> None:
    wider_than_27 = thin_beginning(vgg, thin(32, (32, 32)))
    assert wider_than_27.num_filled["conv1_1"] >= 5
    assert wider_than_27.warning is not None
    assert "conv1_1" in wider_than_27.warning
    assert len(set(wider_than_27.rows["conv1_1"])) == 32
    assert thin_beginning(vgg, thin(4, (32, 32)), "largest-norm").warning is None


def test_random_rows_depend_on_the_seed_alone(vgg: WideNetwork) -> None:
    one, same, other = (
        thin_beginning(vgg, thin(2, (32, 32)), "random-rows", seed=seed).rows for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/code-of-a-weights-file-was-run",)


def wrong_files(folder: Path) -> dict[str, tuple[object, str]]:
    state = vgg16_state()
    narrow = {
        name: part[:32] if name == "features.5.weight" else part for name, part in state.items()
    }
    return {
        "other shapes": (narrow, r"not of VGG-16: conv2_1 should be 128x64x3x3, found 32x64x3x3"),
        "other network": (
            {"layer1.0.conv1.weight": torch.zeros(2)},
            "should hold the 13 convolutions of VGG-16 .* found 0",
        ),
        "without fc": (
            {name: part for name, part in state.items() if "features" in name},
            "found neither",
        ),
        "no names": ([torch.zeros(2)], "should hold named tensors, found a list"),
        "code": (
            {"features.0.weight": RunsCode()},
            r"its pickle asks to run code .*which is never done",
        ),
    }


@pytest.mark.parametrize(
    "name", ["other shapes", "other network", "without fc", "no names", "code"]
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = wrong_files(tmp_path)[name]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as refused:
        read_weights(tmp_path / "x.pth")
    assert "\n" not in str(refused.value)
    assert not Path("/tmp/code-of-a-weights-file-was-run").exists()


def test_damaged_and_absent_files_are_refused(tmp_path: Path, vgg_file: Path) -> None:
    with pytest.raises(UserError, match=r"no weights file .*torchvision\.models\.vgg16"):
        read_weights(tmp_path / "absent.pth")
    content = vgg_file.read_bytes()
    for name, damaged in {
        "cut.pth": content[: len(content) // 2],
        "text.pth": b"hello",
        "page.pth": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "packed.pth": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        "empty.pth": b"",
        "cut.safetensors": b"12",
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_weights(tmp_path / name)
    (tmp_path / "numbers.pth").write_bytes(pickle.dumps(np.float64))
    with pytest.raises(UserError, match=r"numbers\.pth"):
        read_weights(tmp_path / "numbers.pth")


def test_networks_that_do_not_fit_are_refused(vgg: WideNetwork) -> None:
    with pytest.raises(UserError, match=r"is a vgg16, but model\.backbone=vgg9"):
        thin_beginning(vgg, thin(4, backbone="vgg9"))
    small = wide_network(Network(thin(4)), "runs/small")
    with pytest.raises(
        UserError,
        match=r"runs/small should be at least as wide .* conv1_1 has 4 units and 8 are wanted",
    ):
        thin_beginning(small, thin(8))
    architecture = thin(4)
    branched = Network(architecture.with_tree(architecture.tree.split(Split(15, ((0,), (1,))))))
    with pytest.raises(UserError, match="has branched"):
        wide_network(branched, "runs/branched")
    broken = Network(thin(4))
    with torch.no_grad():
        broken.get_parameter("units.conv3_1.0.product.weight")[0] = float("nan")
    with pytest.raises(UserError, match=r"not finite .*conv3_1"):
        thin_beginning(wide_network(broken, "run"), thin(2))
