"""Runs on tars that others made, read in place: killed and resumed on two ranks, beside a packed data set, and as a teacher's images."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from foreign_tars import read_photographs, write_tars
from rank_server import RankServer
from test_kill_and_continue import train_and_die
from tiny_runs import assert_same_content, config_of, train_tiny
from tiny_world import run_command

from distbranch.data.shards import read_dataset

LABELS = ("--labels", "json:labels,json:split", "--tags", "tags", "--number", "price")
CHANGES = {
    "train.iterations": 8,
    "train.evaluate_every": 5,
    "train.checkpoint_every": 3,
    "train.batch_size": 8,
    "method.round_iterations": 4,
}
KILLS = {
    "alone": [("step", 4), ("copy state", 1), ("evaluate", 1)],
    "together": [("step", 5)],
}


@pytest.fixture(scope="module")
def indexed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    write_tars(folder / "tars", read_photographs(shared_data))
    arguments = [str(folder / "tars"), str(folder / "data"), *LABELS, "--image-size", "32x32"]
    ended = run_command(["data", "index", *arguments])
    assert ended.code == 0, ended.err
    return folder / "data"


def train(ranks: RankServer, config: Mapping[str, Any], world_size: int) -> Path:
    for ended in ranks.call_all(train_tiny, world_size, config=config):
        assert ended["end"] == "done", ended["message"]
    return Path(config["run"]["directory"]) / config["run"]["name"]


@pytest.mark.parametrize("what", list(KILLS))
def test_a_run_killed_in_every_phase_ends_with_the_same_bits(
    what: str, indexed: Path, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = CHANGES | {"launch.workers": 2}
    if what == "together":
        changes |= {"data.path": [str(indexed), str(tiny_data)], "data.proportions": [1, 1]}
    whole = train(ranks, config_of(indexed, tmp_path / "whole", **changes), 2)
    config = config_of(indexed, tmp_path / "killed", **changes)
    for kill in KILLS[what]:
        ended = ranks.run(train_and_die, world_size=2, config=config, kill=kill, rank=0)
        assert ended[0].exit_code == -signal.SIGKILL, kill
    assert_same_content(train(ranks, config, 2), whole)


def test_a_run_by_the_command_line_is_resumed_on_another_number_of_ranks(
    indexed: Path, ranks: RankServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(indexed, tmp_path, **CHANGES)
    ended = ranks.run(train_and_die, world_size=2, config=config, kill=("step", 5), rank=0)
    assert ended[0].exit_code == -signal.SIGKILL
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    resumed = run_command(["train", "mine.yaml"])
    assert resumed.code == 0, resumed.err
    assert "resumed after step 4" in resumed.out + resumed.err
    evaluated = run_command(["evaluate", "tiny", "--split", "test"])
    assert evaluated.code == 0, evaluated.err


def test_a_teacher_labels_its_images_of_every_format(indexed: Path, tmp_path: Path) -> None:
    tars = str(indexed.parent / "tars")
    classes = ["--labels", "txt", "--one-task-per-class", "txt", "--image-size", "32x32"]
    ended = run_command(["data", "index", tars, str(tmp_path / "classes"), *classes])
    assert ended.code == 0, ended.err
    config = config_of(tmp_path / "classes", tmp_path, **CHANGES | {"train.iterations": 2})
    config["method"] = {"name": "fixed"}
    assert train_tiny(config)["end"] == "done"
    info = read_dataset(indexed)
    ended = run_command(
        ["data", "label", str(indexed), str(tmp_path / "soft"), "--run", str(tmp_path / "tiny")]
    )
    assert ended.code == 0, ended.err
    assert read_dataset(tmp_path / "soft").num_samples == info.num_samples
    assert run_command(["data", "check", str(tmp_path / "soft")]).code == 0
