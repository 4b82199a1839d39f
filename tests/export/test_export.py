"""Exported files: what they hold, that they agree with the run, that nothing half is left, and predictions from them."""

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_world import TASKS, assert_one_sentence, nothing_overwritten, run_command

import distbranch
from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.export import _largest_difference, default_stem, onnx_graph
from distbranch.export.onnx_graph import onnx_bytes
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.models.dense_heads import HeadPlan
from distbranch.models.network import Network
from distbranch.tasks import Task

RUN = "runs/tiny"


def session(model: str | bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def pixels(count: int, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


@pytest.mark.parametrize("count", [1, 5])
def test_an_onnx_file_needs_only_onnx_runtime_and_takes_batches_of_any_size(
    world: Path, count: int
) -> None:
    with nothing_overwritten(world, ("served.onnx",)):
        ended = run_command(["export", RUN, "--out", "served.onnx"])
    assert ended.code == 0, ended.err
    assert "3 tasks" in ended.out
    assert "8 images of val of" in ended.out
    served = session("served.onnx")
    images = pixels(count)
    outputs = served.run(None, {"images": images.numpy()})
    expected = distbranch.load(RUN)(images)
    assert [output.name for output in served.get_outputs()] == [task.name for task in TASKS]
    for task, found in zip(TASKS, outputs, strict=True):
        np.testing.assert_allclose(found, expected[task.name].detach().numpy(), rtol=0, atol=1e-5)


def test_the_metadata_say_how_an_image_becomes_the_input(world: Path) -> None:
    assert run_command(["export", RUN, "--input", "float"]).code == 0
    served = session(f"{RUN}/model/model.onnx")
    metadata = json.loads(served.get_modelmeta().custom_metadata_map["distbranch"])
    assert [task["name"] for task in metadata["tasks"]] == [task.name for task in TASKS]
    assert metadata["input"]["shape"] == ["batch", 3, 32, 32]
    assert "bilinear" in metadata["resizing"]
    mean, std = (
        np.array(metadata["preprocessing"][key], np.float32).reshape(3, 1, 1)
        for key in ("mean", "std")
    )
    images = pixels(2)
    floats = (images.numpy().astype(np.float32) / 255 - mean) / std
    outputs = served.run(["wide"], {"images": floats})
    np.testing.assert_allclose(
        outputs[0], distbranch.load(RUN)(images)["wide"].detach().numpy(), rtol=0, atol=1e-5
    )


def test_a_torch_program_runs_without_this_package(world: Path) -> None:
    ended = run_command(["export", RUN, "--format", "torch", "--out", "served.pt2"])
    assert ended.code == 0, ended.err
    extra = {"distbranch.json": ""}
    program = torch.export.load("served.pt2", extra_files=extra).module()
    assert json.loads(extra["distbranch.json"])["tasks"][0]["name"] == "bright"
    for count in (1, 5):
        images = pixels(count)
        expected, found = distbranch.load(RUN)(images), program(images)
        for name, logits in expected.items():
            torch.testing.assert_close(found[name], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "tasks", [["--tasks", "shade,bright"], ["--tasks", "shade", "--tasks", "bright"]]
)
def test_some_tasks_export_only_theirs(world: Path, tasks: list[str]) -> None:
    ended = run_command(["export", RUN, *tasks])
    assert ended.code == 0, ended.err
    served = session(f"{RUN}/model/model-shade-bright.onnx")
    assert [output.name for output in served.get_outputs()] == ["bright", "shade"]


def test_lists_of_tasks_that_begin_alike_are_files_of_their_own() -> None:
    named = [f"a-task-with-a-long-name-{number}" for number in range(6)]
    assert default_stem(named) != default_stem([*named[:5], "another"])
    assert default_stem(named[:2]) == "model-" + "-".join(named[:2])


def test_predictions_from_the_file_are_those_of_the_run(world: Path) -> None:
    assert run_command(["export", RUN, "--out", "served.onnx"]).code == 0
    from_run = json.loads(
        run_command(["predict", RUN, "images", "photo.jpg", "--format", "json"]).out
    )
    ended = run_command(["predict", "served.onnx", "images", "photo.jpg", "--format", "json"])
    assert ended.code == 0, ended.err
    for one, other in zip(json.loads(ended.out), from_run, strict=True):
        assert one["image"] == other["image"]
        for name, score in other["scores"].items():
            assert one["scores"][name] == pytest.approx(score, abs=1e-4)


def test_any_names_of_tasks_become_outputs_and_every_branch_is_there() -> None:
    tasks = (
        Task("images"),
        Task("net/x", "categorical", ("r", "g", "b")),
        Task("a b"),
        Task("relu"),
    )
    thin = Architecture.thin("vgg9", 6, (40, 33), tasks)
    tree = (
        thin.tree.split(Split(8, ((0, 2), (1,), (3,))))
        .split(Split(7, ((0, 2), (1,))))
        .split(Split(6, ((0,), (1,))))
    )
    network = Network(thin.with_tree(tree)).eval()
    content = onnx_bytes(network, {}, input_type="uint8")
    nodes = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert nodes.count("Conv") == 7  # conv1 to conv4_1 once, conv4_2 twice
    assert nodes.count("Gemm") + nodes.count("MatMul") == 2 + 3 + 3  # fc5, fc6, heads
    served = session(content)
    images = pixels(3, (40, 33))
    outputs = served.run(None, {served.get_inputs()[0].name: images.numpy()})
    for name, found in zip([output.name for output in served.get_outputs()], outputs, strict=True):
        np.testing.assert_allclose(found, network(images)[name].detach().numpy(), rtol=0, atol=1e-5)


def test_a_network_with_dense_tasks_exports_maps_as_large_as_the_image() -> None:
    tasks = (Task("indoors"), Task("depth", "depth"), Task("normals", "normals"))
    backbone = Backbone("resnet18", (40, 48), 4, output_stride=8)
    thin = Architecture(backbone, tasks, dense_head=HeadPlan("light", 4))
    top = Split(len(thin.backbone.names), ((0, 2), (1,)))
    network = Network(thin.with_tree(thin.tree.split(top))).eval()
    served = session(onnx_bytes(network, {}, input_type="uint8"))
    names = [output.name for output in served.get_outputs()]
    assert names == ["indoors", "depth", "normals"]
    for count, size in ((3, (40, 48)), (1, (37, 61))):
        images = pixels(count, size)
        outputs = served.run(None, {"images": images.numpy()})
        shapes = [(count,), (count, 1, *size), (count, 3, *size)]
        assert [output.shape for output in outputs] == shapes
        for name, found in zip(names, outputs, strict=True):
            expected = network(images)[name].detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_random_images_stand_in_for_data_that_are_gone_and_it_is_said(world: Path) -> None:
    (world / "data").rename(world / "elsewhere")
    ended = run_command(["export", RUN])
    assert ended.code == 0, ended.err
    assert "random images, since those of the run's data set cannot be read" in ended.out


def test_a_file_that_does_not_agree_is_not_kept(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_graph.trace_network

    def spoil(network: Network, *, input_type: str) -> object:
        other = copy.deepcopy(network)
        other.heads.bias.data += 0.01
        return real(other, input_type=input_type)

    monkeypatch.setattr(onnx_graph, "trace_network", spoil)
    with nothing_overwritten(world, ()):
        ended = run_command(["export", RUN, "--out", "served.onnx"])
    assert_one_sentence(ended, 1, ("differs", "served.onnx is not kept"))


def test_a_difference_that_is_no_number_is_the_largest() -> None:
    network = Network(Architecture.thin("vgg9", 2, (32, 32), (Task("a"),))).eval()
    assert (
        _largest_difference(
            network, [pixels(2)], lambda part: {"a": torch.full((len(part),), torch.nan)}
        )
        == np.inf
    )
    assert _largest_difference(network, [pixels(2)], lambda _: {"a": torch.zeros(3)}) == np.inf


def test_without_onnx_runtime_one_sentence_says_what_to_install(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for command in (["export", RUN], ["predict", "served.onnx", "photo.jpg"]):
        assert_one_sentence(
            run_command(command), 1, ("onnxruntime", "pip install 'distbranch[export]'")
        )


def test_an_onnx_file_of_others_is_refused(world: Path) -> None:
    architecture = Architecture.thin("vgg9", 2, (32, 32), (Task("a"),))
    content = onnx_bytes(Network(architecture).eval(), {}, input_type="uint8")
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    Path("foreign.onnx").write_bytes(model.SerializeToString())
    ended = run_command(["predict", "foreign.onnx", "photo.jpg"])
    assert_one_sentence(ended, 1, ("foreign.onnx", "did not write it"))


def test_what_is_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Architecture.thin("vgg9", 2, (32, 32), (Task("a"),))).eval()
    monkeypatch.setattr(onnx_graph, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match=r"at most 2 GB.*\d\.\d GB.*--format torch"):
        onnx_bytes(network, {}, input_type="uint8")


def test_help_shows_how_to_export() -> None:
    ended = run_command(["export", "--help"])
    assert ended.code == 0
    assert re.search(r"export runs/mine --format onnx", " ".join(ended.out.split()))
