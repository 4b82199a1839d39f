"""A joint run: it goes on from any checkpoint to the same bits, and each data set is scored alone, on its own tasks."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
import yaml
from tiny_runs import NUM_SAMPLES, TASKS, config_of, content_of, lines_of, train_tiny

from distbranch.answers.evaluation import answer_run
from distbranch.data.pack import pack
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shards import Sample, read_dataset
from distbranch.engine.restricted_run import restrict_run
from distbranch.engine.session import evaluate_run
from distbranch.errors import UserError
from distbranch.tasks import Task

OTHER = (Task("dark", exclusive="light"), Task("bright", exclusive="light"), Task("cell-0"))


@pytest.fixture(scope="module")
def other_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the tiny pictures with two exclusive tasks, one task of the tiny data, and soft labels of another one."""
    folder = tmp_path_factory.mktemp("other") / "set"
    info = read_dataset(tiny_data)

    def samples() -> Iterator[Sample]:
        for split in ("train", "test"):
            reader = ShardReader([ShardSource.from_split(info, split)], max_open=1)
            for number in range(20):
                image, _ = reader.open_shard(0).read_files(number)
                labels = {"dark": number % 2, "bright": 1 - number % 2, "cell-0": number % 3 // 2}
                soft = {"cell-1": 0.25} if split == "train" else {}
                yield Sample(f"{split}-{number}", split, image, labels | soft)

    pack(samples(), folder, (*OTHER, Task("cell-1")), shard_samples=7)
    return folder


@pytest.fixture(scope="module")
def joint_run(tiny_data: Path, other_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    paths = [str(tiny_data), str(other_data)]
    changes = {"data.path": paths, "data.proportions": [2, 1], "train.iterations": 17}
    ended = train_tiny(config_of("", folder, **changes))
    assert ended["end"] == "done", ended
    told = [event for event in ended["events"] if event["kind"] == "evaluation"]
    assert [sorted(event["datasets"]) for event in told] == [
        ["data"],
        ["data"],
        ["data", "set"],
    ]  # val, val, test
    return folder / "tiny"


def test_a_joint_run_resumes_from_a_checkpoint_to_the_same_bits(joint_run: Path) -> None:
    expected = content_of(joint_run)
    assert expected["decisions"]
    config = yaml.safe_load((joint_run / "config.yaml").read_text())
    for step in sorted((joint_run / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(step)
    (joint_run / "result.json").unlink()
    shutil.rmtree(joint_run / "model")
    ended = train_tiny(config)
    assert ended["end"] == "done", ended
    assert any(event["kind"] == "resumed" for event in ended["events"])
    assert content_of(joint_run) == expected


def test_each_data_set_is_scored_on_its_own_tasks_and_the_scores_are_put_together(
    joint_run: Path, tiny_data: Path, other_data: Path
) -> None:
    scores = json.loads((joint_run / "result.json").read_text())["metrics"]["test"]
    alone = {
        "data": evaluate_run(joint_run, "test", str(tiny_data)),
        "set": evaluate_run(joint_run, "test", str(other_data)),
    }
    assert scores["num_samples"] == NUM_SAMPLES["test"] + 20
    for name, part in scores["datasets"].items():
        assert part["mean"] == pytest.approx(alone[name]["mean"])
        for task, row in part["tasks"].items():
            assert row == pytest.approx(alone[name]["tasks"][task])
    assert list(scores["datasets"]["data"]["tasks"]) == [task.name for task in TASKS]
    assert list(scores["datasets"]["set"]["tasks"]) == [
        task.name for task in OTHER
    ]  # cell-1 has no label on test
    assert list(scores["datasets"]["set"]["exclusive"]) == list(scores["exclusive"]) == ["light"]
    assert "exclusive" not in scores["datasets"]["data"]
    assert scores["tasks"]["dark"] == scores["datasets"]["set"]["tasks"]["dark"]
    assert scores["tasks"]["cell-1"] == scores["datasets"]["data"]["tasks"]["cell-1"]
    both = [part["tasks"]["cell-0"] for part in scores["datasets"].values()]
    assert scores["tasks"]["cell-0"]["num_labelled"] == sum(row["num_labelled"] for row in both)
    weighted = sum(row["accuracy"] * row["num_labelled"] for row in both) / sum(
        row["num_labelled"] for row in both
    )
    assert scores["tasks"]["cell-0"]["accuracy"] == pytest.approx(weighted)
    line = lines_of(joint_run / "metrics.jsonl", "evaluation")[-1]
    assert line["datasets"] == scores["datasets"]


def test_predictions_of_a_joint_run_name_the_data_set_of_every_image(
    joint_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(joint_run, tmp_path / "run")
    done = answer_run(run, tmp_path / "all.parquet")
    table = pandas.read_parquet(tmp_path / "all.parquet")
    counts = table.groupby(["dataset", "split"]).size().to_dict()
    expected = {("data", split): NUM_SAMPLES[split] for split in ("val", "test")}
    assert counts == expected | {("set", "test"): 20}
    assert table.loc[table["dataset"] == "data", "label:dark"].isna().all()
    written = json.loads((run / "result.json").read_text())["metrics"]["test"]["tasks"]
    for name, found in done.findings.items():
        assert found["num_labelled"] == written[name]["num_labelled"]
        accuracy = found["accuracy"]
        if found.get("threshold") is not None:  # which a run's own accuracy does not know
            rows = table[(table["split"] == "test") & table[f"label:{name}"].notna()]
            accuracy = ((rows[name] >= 0.5) == (rows[f"label:{name}"] >= 0.5)).mean()
        assert accuracy == pytest.approx(written[name]["accuracy"])


def test_a_part_of_a_joint_run_is_scored_on_the_splits_of_its_own_tasks(
    joint_run: Path, tmp_path: Path
) -> None:
    part = restrict_run(joint_run, tmp_path / "part", tasks=["dark", "bright"])
    assert list(part.metrics) == ["test"]
    with pytest.raises(UserError, match="'val' with tasks of the network; it has test, train"):
        evaluate_run(part.directory, "val")
