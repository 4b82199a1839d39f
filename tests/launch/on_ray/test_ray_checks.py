"""What is decided before Ray is asked: which cluster, how many workers fit, which paths would vanish."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import config_of

from distbranch.config import LaunchConfig, load_config
from distbranch.config.sweep import load_sweep
from distbranch.errors import UsageError, UserError
from distbranch.launch.on_ray.cluster import cluster_address, room
from distbranch.launch.on_ray.job import _command
from distbranch.launch.on_slurm.resources import Resources
from distbranch.launch.on_slurm.submission import script
from distbranch.launch.prepare import prepare, with_absolute_paths


@pytest.mark.parametrize(
    ("given", "variable", "address"),
    [
        (None, None, None),
        ("local", "10.0.0.1:6379", None),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),  # this process is the driver of a job
        (None, "http://10.0.0.1:8265", None),  # where `ray job` looks for the dashboard
        ("auto", None, "auto"),
    ],
)
def test_the_cluster_is_the_named_one_or_that_of_the_job(
    given: str | None, variable: str | None, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(LaunchConfig(address=given)) == address


def test_workers_are_counted_node_by_node() -> None:
    nodes: list[dict[str, Any]] = [{"Resources": {"CPU": 3.0, "GPU": 0.9}}, {"Resources": {"CPU": 3.0}}]
    assert room(nodes, {"CPU": 2.0}) == 2  # six CPUs, and not three times two
    assert room(nodes, {"CPU": 4.0}) == 0
    assert room(nodes, {"CPU": 1.0, "GPU": 0.3}) == 3  # 0.9 / 0.3 is a little less than 3
    assert room([], {"CPU": 1.0}) == 0


@pytest.mark.parametrize("value", [0, [3, 2], [0, 2], "two", [1, 2, 3], 2.5, True])
def test_a_number_of_workers_that_cannot_be_is_refused_with_one_sentence(value: Any) -> None:
    with pytest.raises(
        UsageError, match=r"launch\.workers: should be a whole number from 1, or \[least, most\]"
    ) as told:
        load_config({"launch": {"workers": value}})
    assert str(told.value).count("launch.workers") == 1


def test_a_range_of_workers_is_checked_for_its_largest_number() -> None:
    launch = load_config({"launch": {"workers": [2, 4]}}).launch
    assert (launch.least_workers, launch.most_workers) == (2, 4)
    with pytest.raises(UsageError, match=r"launch\.workers=20"):
        load_config({"launch": {"workers": [2, 20]}})


def test_a_sweep_and_a_job_of_slurm_need_a_folder_and_no_url(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("base: x.yaml\nseeds: [1]\ndirectory: s3://bucket/runs\n")
    with pytest.raises(UsageError, match=r"directory: should be a folder that all nodes see .* s3://bucket/runs"):
        load_sweep(tmp_path / "sweep.yaml")
    config = load_config(config_of(tiny_data, "s3://bucket/runs"))
    with pytest.raises(UsageError, match=r"on storage that all nodes share, found s3://bucket/runs/tiny"):
        script(config, Resources(executor="local"))


@pytest.mark.parametrize(
    ("key", "value"), [("run.directory", "inside"), ("data.path", "inside"), ("data.path", ["/else", "inside"])]
)
def test_paths_inside_the_uploaded_copy_of_a_job_are_refused(
    key: str, value: str | list[str], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    config = load_config(config_of(tiny_data, tmp_path / "runs"), {key: value})
    with pytest.raises(UserError, match=rf"{key} should be an absolute path on storage that all nodes see"):
        prepare(config, fresh=False, report=lambda _: None)
    assert list(copy.iterdir()) == []


def test_the_command_of_a_job_names_all_data_sets_so_that_they_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "joint.yaml").write_text("data: {path: [a set, s3://bucket/b]}\n")
    config = with_absolute_paths(load_config(tmp_path / "joint.yaml"))
    arguments = shlex.split(_command(Path("joint.yaml"), [], config))
    read = load_config("joint.yaml", arguments[arguments.index("joint.yaml") + 1 :])
    assert read.data.paths == config.data.paths == (str(tmp_path / "a set"), "s3://bucket/b")
