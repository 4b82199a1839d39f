"""The same data in another folder: what counts is their fingerprint, and other data are refused."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_world import assert_one_sentence, contents, run_command

from distbranch.config import load_config, to_yaml
from distbranch.config.sweep import sweep_of, sweep_to_yaml
from distbranch.errors import UserError
from distbranch.sweep.plan import load_base_config
from distbranch.sweep.run import check_begun
from distbranch.sweep.trial_status import SweepDirectory

RUN = Path("runs/tiny")
WEIGHTS = RUN / "model/model.safetensors"


def interrupt() -> None:
    """As if the run had been killed after its first checkpoint."""
    (RUN / "result.json").unlink()
    shutil.rmtree(RUN / "model")
    newest = max((RUN / "checkpoints").iterdir())
    shutil.rmtree(newest)


@pytest.mark.parametrize("recorded", ["in the environment", "in a checkpoint alone"])
def test_a_run_resumes_with_its_data_in_another_folder_and_records_it(
    world: Path, recorded: str
) -> None:
    before = WEIGHTS.read_bytes()
    interrupt()
    if recorded == "in a checkpoint alone":  # as earlier versions left it
        environment = json.loads((RUN / "environment.json").read_text())
        del environment["data"]
        (RUN / "environment.json").write_text(json.dumps(environment))
    Path("data").rename("scratch-of-another-job")
    ended = run_command(["train", "tiny.yaml", "data.path=scratch-of-another-job"])
    assert ended.code == 0, ended.err
    assert "resumed after step" in ended.out
    assert WEIGHTS.read_bytes() == before
    assert load_config(RUN / "config.yaml").data.path == str(world / "scratch-of-another-job")
    assert run_command(["evaluate", "runs/tiny", "--split", "val"]).code == 0


def test_a_finished_run_is_finished_wherever_its_data_are(world: Path) -> None:
    before = contents(world / "runs")
    Path("data").rename("moved")
    ended = run_command(["train", "tiny.yaml", "data.path=moved"])
    assert ended.code == 0, ended.err
    assert "is finished" in ended.out
    assert contents(world / "runs") == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_are_refused_with_both_places(world: Path, finished: bool) -> None:
    if not finished:
        interrupt()
    assert (
        run_command(
            ["data", "pack", "csv", "other", "--images", "images", "--table", "table.csv"]
        ).code
        == 0
    )
    before = contents(world / "runs")
    ended = run_command(["train", "tiny.yaml", "data.path=other"])
    assert_one_sentence(
        ended, 1, (f"data.path: '{world}/data' -> '{world}/other'", "other data", "--fresh")
    )
    assert contents(world / "runs") == before


def test_a_joint_run_resumes_with_its_data_in_other_folders_and_in_no_other_order(
    world: Path,
) -> None:
    for name, table in (("first", "1,0"), ("second", "0,1")):
        rows = [
            f"{letter}.jpg,{split},{table}"
            for letter, split in zip("abcd", ["train"] * 3 + ["val"], strict=True)
        ]
        Path(f"{name}.csv").write_text(f"image,split,{name},{name}-too\n" + "\n".join(rows) + "\n")
        assert (
            run_command(f"data pack csv {name} --images images --table {name}.csv".split()).code
            == 0
        )
    joint = ["train", "tiny.yaml", "run.name=joint", "train.batch_size=2"]
    assert run_command([*joint, "data.path=[first, second]"]).code == 0
    (world / "runs/joint/result.json").unlink()
    shutil.rmtree(world / "runs/joint/model")
    Path("second").rename("third")
    assert_one_sentence(
        run_command([*joint, "data.path=[third, first]"]), 1, ("data.path", "other data")
    )
    assert run_command([*joint, "data.path=[first, third]"]).code == 0
    assert load_config(world / "runs/joint/config.yaml").data.paths == (
        str(world / "first"),
        str(world / "third"),
    )


def test_a_run_that_began_from_another_one_says_that_it_needs_it_no_longer(world: Path) -> None:
    given = ["train", "tiny.yaml", "run.name=given", "method.name=fixed"]
    assert run_command([*given, "method.groups=runs/tiny"]).code == 0
    (world / "runs/given/result.json").unlink()
    RUN.rename("runs/renamed")
    ended = run_command([*given, "method.groups=runs/renamed"])
    assert_one_sentence(
        ended, 1, ("method.groups", "runs/renamed", "does not read method.groups again")
    )
    assert run_command([*given, "method.groups=runs/tiny"]).code == 0


def test_a_sweep_resumes_with_its_data_in_another_folder(world: Path) -> None:
    values = {"base": "tiny.yaml", "name": "sweep", "directory": "sweeps", "seeds": [0, 1]}
    sweep = sweep_of(values, folder=world, what="The sweep")
    directory = SweepDirectory(sweep.path, sweep.trial_path)
    shutil.copytree(RUN, directory.trials / "seed0")
    directory.config.write_text(sweep_to_yaml(sweep))
    directory.base.write_text(to_yaml(load_base_config(sweep)))
    Path("data").rename("moved")
    moved = sweep_of(
        {**values, "overrides": {"data.path": "moved"}}, folder=world, what="The sweep"
    )
    check_begun(moved, directory, [])
    assert (
        run_command(
            ["data", "pack", "csv", "other", "--images", "images", "--table", "table.csv"]
        ).code
        == 0
    )
    other = sweep_of(
        {**values, "overrides": {"data.path": "other"}}, folder=world, what="The sweep"
    )
    with pytest.raises(UserError, match=r"another configuration.*other data"):
        check_begun(other, directory, [])
