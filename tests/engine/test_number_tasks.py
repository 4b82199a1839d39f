"""Runs of numbers and ordered classes: trained, evaluated, predicted and exported in the unit of their table."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rank_server import RankServer
from tiny_runs import config_of, lines_of, train_tiny
from tiny_world import run_command
from torch import Tensor

from distbranch.config import load_config
from distbranch.data.mixture import merge_datasets
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample, read_dataset
from distbranch.engine.evaluate import evaluate_split
from distbranch.engine.labelling import label_with_teacher
from distbranch.engine.logged_values import list_values
from distbranch.engine.process_group import join_ranks
from distbranch.engine.session import evaluate_run
from distbranch.errors import UserError
from distbranch.kinds import KINDS, Kind, Metric, Metrics
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.tasks import Task

NUM_SAMPLES = {"train": 160, "val": 40, "test": 40}
LIGHT = Task("light", "number", mean=500.0, deviation=200.0, unit="lux")
STEP = Task("step", "ordinal", ("dark", "dim", "bright"))
TASKS = (Task("is bright"), LIGHT, STEP)


def pack_lights(folder: Path, light: Task = LIGHT, seed: int = 0) -> DatasetInfo:
    """Grey pictures of a brightness between 0 and 1, which is 1000 lux."""
    return pack(_samples(seed), folder, (TASKS[0], light, STEP))


def _samples(seed: int) -> Iterator[Sample]:
    draw = np.random.default_rng(seed)
    for split, count in NUM_SAMPLES.items():
        for number in range(count):
            brightness = draw.random()
            shown = brightness + 0.1 * draw.standard_normal((32, 32))
            content = io.BytesIO()
            pixels = (255 * shown.clip(0, 1)).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(content, "JPEG")
            labels: dict[str, int | float | str] = {
                "is bright": int(brightness > 0.5),
                "light": round(1000 * brightness, 1),
                "step": STEP.classes[int(2.999 * brightness)],
            }
            if number % 6 == 0:
                del labels["light"]
            yield Sample(f"{split}-{number:03d}", split, content.getvalue(), labels)


@pytest.fixture(scope="module")
def lights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set."""
    folder = tmp_path_factory.mktemp("lights") / "data"
    pack_lights(folder)
    return folder


@pytest.fixture(scope="module")
def trained(lights: Path, ranks: RankServer) -> Path:
    """The run directory of a short training."""
    config = config_of(lights, lights.parent / "runs", **{"optim.lr": 0.02, "model.width": 4})
    config["data"] = {"path": str(lights)}
    config["train"] |= {"iterations": 48, "batch_size": 32, "checkpoint_every": 48}
    assert ranks.call(train_tiny, config=config)["end"] == "done"
    return lights.parent / "runs" / "tiny"


def test_a_number_and_ordered_classes_are_learned(trained: Path) -> None:
    test = json.loads((trained / "result.json").read_text())["metrics"]["test"]
    light, step = test["tasks"]["light"], test["tasks"]["step"]
    assert light["r2"] > 0.8
    assert light["rank_correlation"] > 0.9
    assert light["mean_absolute_error"] == pytest.approx(200 * light["standardised_error"])
    assert light["num_labelled"] == NUM_SAMPLES["test"] - 7
    assert step["rank_correlation"] > 0.8
    assert step["quadratic_kappa"] > 0.7


def test_tensorboard_has_the_errors_of_numbers_task_by_task(trained: Path) -> None:
    scalars = list_values(lines_of(trained / "metrics.jsonl", "evaluation")[-1])
    of_light = {name for name in scalars if "/light" in name}
    assert of_light == {"test_mean_absolute_error/light", "test_r2/light"}
    assert scalars["test/standardised_error"] == scalars["test_mean_absolute_error/light"] / 200


def test_counts_of_a_packed_number_are_checked_like_those_of_classes(lights: Path) -> None:
    found = read_dataset(lights).splits["train"].labels["light"]
    assert found["count"] + found["unlabelled"] == NUM_SAMPLES["train"]
    assert 400 < found["mean"] < 600
    checked = run_command(["data", "check", str(lights)])
    assert checked.code == 0, checked.err


def predict_lights(model: Path, images: Path) -> dict[str, dict[str, Any]]:
    ended = run_command(["predict", str(model), str(images), "--format", "json"])
    assert ended.code == 0, ended.err
    return {Path(row["image"]).stem: row["scores"] for row in json.loads(ended.out)}


def test_run_and_exported_file_predict_in_the_unit_of_the_table(
    trained: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    labels = {}
    for sample in _samples(7):
        if sample.split == "test" and "light" in sample.labels:
            (images / f"{sample.key}.jpg").write_bytes(sample.image)
            labels[sample.key] = sample.labels["light"]
    found = predict_lights(trained, images)
    errors = [abs(found[key]["light"] - label) for key, label in labels.items()]
    assert np.mean(errors) < 100
    assert list(found["test-001"]["step"]) == list(STEP.classes)
    assert sum(found["test-001"]["step"].values()) == pytest.approx(1)

    served = tmp_path / "served.onnx"
    assert run_command(["export", str(trained), "--out", str(served)]).code == 0
    exported = predict_lights(served, images)
    for key in labels:
        assert exported[key]["light"] == pytest.approx(found[key]["light"], abs=0.1)

    ended = run_command(["predict", str(trained), str(images), "--format", "csv"])
    first = next(csv.DictReader(io.StringIO(ended.out)))
    steps = ["step:dark", "step:dim", "step:bright"]
    assert list(first) == ["image", "is bright", "light", *steps, "step"]
    assert float(first["light"]) == pytest.approx(found["test-001"]["light"], rel=1e-6)
    shown = run_command(["predict", str(trained), str(images / "test-001.jpg")])
    assert f"light={found['test-001']['light']:.4g} lux" in " ".join(shown.out.split())


def test_another_data_set_is_scored_by_the_standardisation_of_the_network(
    trained: Path, tmp_path: Path
) -> None:
    same = pack_lights(tmp_path / "same")
    other = pack_lights(
        tmp_path / "other", Task("light", "number", mean=-3.0, deviation=7.0, unit="lux")
    )
    assert other.tasks != same.tasks
    found = evaluate_run(trained, "test", str(tmp_path / "other"))
    assert found == evaluate_run(trained, "test", str(tmp_path / "same"))
    pack_lights(tmp_path / "unit", Task("light", "number", mean=500.0, deviation=200.0, unit="lx"))
    with pytest.raises(UserError, match=r"has other tasks than the run .*\(light\)"):
        evaluate_run(trained, "test", str(tmp_path / "unit"))


def test_data_sets_trained_together_have_the_standardisation_of_the_first(
    tmp_path: Path,
) -> None:
    own = Task("light", "number", mean=-3.0, deviation=7.0, unit="lux")
    infos = [pack_lights(tmp_path / "one"), pack_lights(tmp_path / "two", own, seed=1)]
    assert merge_datasets(infos).tasks[1] == LIGHT
    merged = merge_datasets(infos[::-1])
    assert merged.tasks[1] == own
    of_each = [info.splits["train"].labels["light"] for info in infos]
    assert merged.splits["train"].labels["light"]["count"] == sum(one["count"] for one in of_each)
    other = pack_lights(
        tmp_path / "unit", Task("light", "number", mean=500.0, deviation=200.0, unit="lx")
    )
    with pytest.raises(UserError, match=r"'light' is number, lux in .* and number, lx in"):
        merge_datasets([infos[0], other])


def test_a_teacher_of_numbers_gives_no_soft_labels(trained: Path, tmp_path: Path) -> None:
    pack(
        (Sample(one.key, one.split, one.image, {"own": 1}) for one in _samples(1)),
        tmp_path / "data",
        [Task("own")],
    )
    with pytest.raises(
        UserError, match=r"not binary: light \(number\), step \(ordinal\), and soft"
    ):
        label_with_teacher(str(tmp_path / "data"), tmp_path / "out", trained)


# ---- a kind whose metrics are sums


class Summed(Kind):
    """A number whose mean squared error is added up, never its samples gathered."""

    metrics = {"mean_squared_error": Metric("Mean squared error", "", lower_is_better=True)}  # noqa: RUF012

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.squeeze(2) - labels).square()

    def count_sums(self, task: Task) -> int:  # noqa: ARG002
        return 2

    def sum_batch(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        squares = (logits[:, 0] - labels).double().square()
        return torch.stack([squares.sum(), torch.tensor(len(squares)).double()])

    def score_sums(self, task: Task, sums: np.ndarray) -> Metrics:  # noqa: ARG002
        return {"mean_squared_error": float(sums[0] / sums[1])}


def evaluate_summed(config: Mapping[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """A job: evaluate a random network that takes the labels of `light` and `is bright` for tasks of these kinds."""
    if "summed" not in KINDS:
        KINDS.register("summed")(Summed())
    resolved = load_config(config)
    with join_ranks(resolved.launch) as here:
        info = read_dataset(str(resolved.data.path))
        names = ("is bright", "light", "step")
        tasks = (
            tuple(Task(*pair) for pair in zip(names, kinds, strict=False))
            + info.tasks[len(kinds) :]
        )
        info = DatasetInfo(info.path, tasks, {}, info.splits, info.image_size, {})
        network = Network(Architecture.thin("vgg9", 4, (32, 32), tasks))
        network.init(torch.Generator().manual_seed(4))
        return evaluate_split(network, info, "test", here, resolved.data, batch_size=8)


def assert_near(found: Metrics, expected: Metrics) -> None:
    """The same metrics, those that have no value here too."""
    assert {name for name, value in found.items() if value is None} == {
        name for name, value in expected.items() if value is None
    }
    values = {name: value for name, value in found.items() if value is not None}
    assert values == pytest.approx(
        {name: value for name, value in expected.items() if value is not None}, rel=1e-6
    )


@pytest.mark.parametrize("kinds", [("summed",), ("summed", "summed"), ("binary", "summed")])
def test_sums_of_ranks_score_as_the_samples_of_one_process(
    kinds: tuple[str, ...], lights: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(lights, tmp_path)
    alone = ranks.call(evaluate_summed, config=config, kinds=kinds)
    of_light = alone["tasks"]["light"]
    place = "light" if kinds[-1] == "summed" and len(kinds) > 1 else "is bright"
    reference = ranks.call(
        evaluate_summed, config=config, kinds=tuple("number" if k == "summed" else k for k in kinds)
    )
    assert alone["tasks"][place]["num_labelled"] == reference["tasks"][place]["num_labelled"]
    assert of_light["num_labelled"] == NUM_SAMPLES["test"] - 7
    assert list(alone["tasks"]) == ["is bright", "light", "step"]
    assert alone["tasks"]["step"] == reference["tasks"]["step"]
    # R2 says of the rows what the sums say: 1 - mean squared error / variance.
    labels = [s.labels[place] for s in _samples(0) if s.split == "test" and place in s.labels]
    expected = (1 - reference["tasks"][place]["r2"]) * np.var(np.array(labels, dtype=float))
    assert alone["tasks"][place]["mean_squared_error"] == pytest.approx(expected, rel=1e-5)
    for found in ranks.call_all(evaluate_summed, 2, config=config, kinds=kinds):
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        # Outputs of other batches: some processors round a product of another number of rows otherwise.
        for name, row in alone["tasks"].items():
            assert_near(found["tasks"][name], row)
