"""Files in float16 and int8: they run, their scores are those of the file, and a loss that is too large keeps none; Triton."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from tiny_world import assert_one_sentence, nothing_overwritten, run_command

import distbranch
from distbranch.engine.artifact import Preprocessing
from distbranch.errors import UserError
from distbranch.export import _describe_model
from distbranch.export.low_precision import answered_by, check_scores
from distbranch.export.onnx_graph import onnx_bytes
from distbranch.export.onnx_model import OnnxModel
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.models.dense_heads import HeadPlan
from distbranch.models.network import Network
from distbranch.tasks import Task

RUN = "runs/tiny"


@pytest.mark.parametrize(
    ("precision", "inside", "tolerance"), [("fp16", "FLOAT16", 0.01), ("int8", "INT8", 0.2)]
)
def test_a_file_of_lower_precision_predicts_nearly_the_same(
    world: Path, precision: str, inside: str, tolerance: float
) -> None:
    with nothing_overwritten(world, ("low.onnx", "low.scores.json")):
        ended = run_command(["export", RUN, "--precision", precision, "--out", "low.onnx"])
    assert ended.code == 0, ended.err
    types = {one.data_type for one in onnx.load("low.onnx").graph.initializer}
    assert onnx.TensorProto.DataType.Value(inside) in types
    expected, found = (distbranch.predict(one, "photo.jpg") for one in (RUN, "low.onnx"))
    for task in ("bright", "wide"):
        assert found[task].iloc[0] == pytest.approx(expected[task].iloc[0], abs=tolerance)
    written = json.loads(Path("low.scores.json").read_text())
    scored = distbranch.evaluate(RUN, "val")["tasks"]
    assert written["precision"] == precision
    for task, row in written["tasks"].items():
        assert row["before"] == scored[task][row["metric"]]
        assert task in ended.out


def test_some_tasks_in_lower_precision_are_compared_alone(world: Path) -> None:
    ended = run_command(
        ["export", RUN, "--precision", "int8", "--tasks", "shade", "--input", "float"]
    )
    assert ended.code == 0, ended.err
    written = json.loads(Path(RUN, "model", "model-shade-int8.scores.json").read_text())
    assert list(written["tasks"]) == ["shade"]
    answers = distbranch.predict(f"{RUN}/model/model-shade-int8.onnx", "photo.jpg")
    assert [name for name in answers if name != "image"] == [
        name for name in distbranch.predict(RUN, "photo.jpg") if name.startswith("shade")
    ]


def test_a_network_answers_as_a_file_does_also_pixel_by_pixel(tmp_path: Path) -> None:
    tasks = (Task("indoors"), Task("depth", "depth"), Task("size", "categorical", ("s", "m", "l")))
    backbone = Backbone("resnet18", (40, 48), 4, output_stride=8)
    thin = Architecture(backbone, tasks, dense_head=HeadPlan("light", 4))
    of_file, network = Network(thin).eval(), Network(thin).eval()
    of_file.init(torch.Generator().manual_seed(7))
    how = Preprocessing("pil", (40, 48), (0.5,) * 3, (0.25,) * 3)
    file = tmp_path / "of.onnx"
    file.write_bytes(
        onnx_bytes(of_file, _describe_model(of_file, how, "uint8"), input_type="uint8")
    )
    images = torch.arange(2 * 3 * 40 * 48).view(2, 3, 40, 48).remainder(251).to(torch.uint8)
    with torch.no_grad():
        before = network(images, flat=True)
        with answered_by(network, OnnxModel(file)):
            answered = network(images, flat=True)
        after = network(images, flat=True)
        expected = of_file(images)
    assert torch.equal(before.logits, after.logits)
    assert not torch.allclose(before.logits, answered.logits)
    torch.testing.assert_close(answered.maps["depth"], expected["depth"], rtol=0, atol=1e-4)
    rows = torch.cat([expected["indoors"][:, None], expected["size"]], dim=1)
    torch.testing.assert_close(answered.logits, rows, rtol=0, atol=1e-4)


def test_a_task_that_loses_more_than_may_be_lost_is_named_and_outputs_are_finite() -> None:
    scores = {"a": {"loss": 0.05}, "b": {"loss": 0.3}, "c": {"loss": -0.2}}
    check_scores(scores, "int8", 0.1, None)
    check_scores(scores, "int8", 0.1, 0.3)
    with pytest.raises(UserError, match=r"2 of 3 tasks lose more than 1.0% .*\(b 30.0%, a 5.0%\)"):
        check_scores(scores, "int8", 0.1, 0.01)
    with pytest.raises(UserError, match="not finite"):
        check_scores(scores, "int8", float("inf"), None)


def test_a_file_that_loses_too_much_is_not_kept(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = {"bright": {"metric": "accuracy", "before": 1.0, "after": 0.5, "loss": 0.5}}
    monkeypatch.setattr("distbranch.export.low_precision.compare_scores", lambda *_: compared)
    with nothing_overwritten(world, ()):
        ended = run_command(
            ["export", RUN, "--precision", "fp16", "--out", "low.onnx", "--tolerance", "0.1"]
        )
    assert_one_sentence(ended, 1, ("bright 50.0%", "--tolerance"))


def test_without_data_nothing_tells_what_is_lost(world: Path) -> None:
    (world / "data").rename(world / "elsewhere")
    with nothing_overwritten(world, ()):
        ended = run_command(["export", RUN, "--precision", "int8", "--out", "low.onnx"])
    assert_one_sentence(ended, 1, ("measured on the run's data",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--format torch --precision int8", "--format onnx"),
        ("--format torch --triton models", "--format onnx"),
        ("--tolerance 0.1", "--precision fp16 or int8"),
        ("--triton models --out a.onnx", "--out too"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    world: Path, options: str, words: str
) -> None:
    assert_one_sentence(run_command(["export", RUN, *options.split()]), 2, (words,))


def test_a_model_repository_is_what_triton_reads(world: Path) -> None:
    with nothing_overwritten(world, ("models/*",)):
        ended = run_command(["export", RUN, "--triton", "models"])
    assert ended.code == 0, ended.err
    assert distbranch.predict("models/tiny/1/model.onnx", "photo.jpg")["bright"].iloc[0] <= 1
    config = text_format.Parse(Path("models/tiny/config.pbtxt").read_text(), model_config())
    assert (config.name, config.platform) == ("tiny", "onnxruntime_onnx")  # type: ignore[attr-defined]
    assert config.max_batch_size > 1  # type: ignore[attr-defined]
    (image,) = config.input  # type: ignore[attr-defined]
    assert (image.name, image.data_type, list(image.dims)) == ("images", 2, [3, 32, 32])
    outputs = {one.name: (one.data_type, list(one.dims)) for one in config.output}  # type: ignore[attr-defined]
    assert outputs == {"bright": (11, [1]), "wide": (11, [1]), "shade": (11, [3])}
    taken_away = {one.name: one.HasField("reshape") for one in config.output}  # type: ignore[attr-defined]
    assert taken_away == {"bright": True, "wide": True, "shade": False}


def model_config() -> Message:
    """An empty ModelConfig with the fields of Triton's model_config.proto that are written, by their names, types and numbers."""
    fields = descriptor_pb2.FieldDescriptorProto
    text, number, integer = fields.TYPE_STRING, fields.TYPE_INT32, fields.TYPE_INT64
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference")
    types = file.enum_type.add(name="DataType")
    for name, value in {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11}.items():
        types.value.add(name=name, number=value)
    file.message_type.add(name="ModelTensorReshape").field.add(
        name="shape", number=1, type=integer, label=fields.LABEL_REPEATED
    )
    for message, place in (("ModelInput", 5), ("ModelOutput", 5)):
        tensor = file.message_type.add(name=message)
        tensor.field.add(name="name", number=1, type=text)
        tensor.field.add(
            name="data_type", number=2, type=fields.TYPE_ENUM, type_name=".inference.DataType"
        )
        tensor.field.add(name="dims", number=3, type=integer, label=fields.LABEL_REPEATED)
        tensor.field.add(
            name="reshape",
            number=place,
            type=fields.TYPE_MESSAGE,
            type_name=".inference.ModelTensorReshape",
        )
    file.message_type.add(name="ModelDynamicBatching")
    config = file.message_type.add(name="ModelConfig")
    config.field.add(name="name", number=1, type=text)
    config.field.add(name="platform", number=2, type=text)
    config.field.add(name="max_batch_size", number=4, type=number)
    for name, place in (("input", 5), ("output", 6)):
        config.field.add(
            name=name,
            number=place,
            type=fields.TYPE_MESSAGE,
            label=fields.LABEL_REPEATED,
            type_name=f".inference.Model{name.title()}",
        )
    config.field.add(
        name="dynamic_batching",
        number=11,
        type=fields.TYPE_MESSAGE,
        type_name=".inference.ModelDynamicBatching",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    described = pool.FindMessageTypeByName("inference.ModelConfig")
    return message_factory.GetMessageClass(described)()
