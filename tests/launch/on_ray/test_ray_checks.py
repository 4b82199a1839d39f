"""What is decided before Ray is asked: which cluster, how many workers fit, which paths would vanish."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import config_of

from distbranch.config import LaunchConfig, load_config
from distbranch.config.sweep import load_sweep
from distbranch.errors import UsageError, UserError
from distbranch.launch.on_ray.address import cluster_address, dashboard_address
from distbranch.launch.on_ray.cluster import max_workers
from distbranch.launch.on_ray.job import submit_ray_job
from distbranch.launch.on_slurm.resources import Resources
from distbranch.launch.on_slurm.submission import render_batch_script
from distbranch.launch.prepare import prepare_run
from distbranch.sweep.run import run_sweep


@pytest.mark.parametrize(
    ("given", "variable", "address"),
    [
        (None, None, None),
        ("local", "10.0.0.1:6379", None),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),  # this process is the driver of a job
        ("", " head.of-cluster_1:6379 ", "head.of-cluster_1:6379"),
        (None, "[fe80::1]:6379", "[fe80::1]:6379"),
        (None, "", None),
        (None, "local", None),
        (None, "auto", "auto"),
        ("auto", "http://10.0.0.1:8265", "auto"),
        ("local", "nonsense", None),  # what is given counts more
    ],
)
def test_the_cluster_is_the_named_one_and_else_that_of_the_variable(
    given: str | None, variable: str | None, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(LaunchConfig(address=given)) == address


MALFORMED = [
    "http://",
    "http://10.0.0.1:8265",
    "ray://x",
    "foo",
    "10.0.0.1",
    ":6379",
    "10.0.0.1:0",
    "h:70000",
    "h:6379/x",
    "a b:1",
]


@pytest.mark.parametrize("address", MALFORMED)
def test_an_address_of_no_cluster_is_refused_with_one_sentence_that_says_who_gave_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        UserError, match=r"^RAY_ADDRESS should be HOST:PORT .* launch\.address=local"
    ) as told:
        cluster_address(LaunchConfig())
    assert f"found RAY_ADDRESS={address}," in str(told.value)
    with pytest.raises(UserError, match=r"^launch\.address should be HOST:PORT") as told:
        cluster_address(LaunchConfig(address=address))
    assert f"found launch.address={address}." in str(told.value)
    assert cluster_address(LaunchConfig(address="10.0.0.2:6379")) == "10.0.0.2:6379"


@pytest.mark.parametrize(
    ("option", "variable", "address"),
    [
        (None, None, "http://127.0.0.1:8265"),
        (None, "http://10.0.0.1:8265", "http://10.0.0.1:8265"),
        ("https://head/ray", "http://10.0.0.1:8265", "https://head/ray"),
        ("http://[::1]:8265", "foo", "http://[::1]:8265"),
    ],
)
def test_jobs_go_to_the_dashboard_of_the_option_and_else_to_that_of_the_variable(
    option: str | None, variable: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert dashboard_address(option) == address


@pytest.mark.parametrize(
    "address", ["http://", "http:///x", "http://h:0", "ray://x", "foo", "10.0.0.1:6379", "auto"]
)
def test_what_is_no_dashboard_is_refused_with_one_sentence_that_says_who_gave_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        UsageError, match=r"^RAY_ADDRESS should be .* Give --address, such as http://HEAD:8265\.$"
    ) as told:
        dashboard_address(None)
    assert f"found '{address}'" in str(told.value)
    with pytest.raises(UsageError, match=r"^--address should be"):
        dashboard_address(address)


def test_workers_are_counted_node_by_node() -> None:
    nodes: list[dict[str, Any]] = [
        {"Resources": {"CPU": 3.0, "GPU": 0.9}},
        {"Resources": {"CPU": 3.0}},
    ]
    assert max_workers(nodes, {"CPU": 2.0}) == 2  # six CPUs, and not three times two
    assert max_workers(nodes, {"CPU": 4.0}) == 0
    assert max_workers(nodes, {"CPU": 1.0, "GPU": 0.3}) == 3  # 0.9 / 0.3 is a little less than 3
    assert max_workers([], {"CPU": 1.0}) == 0


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
    with pytest.raises(UsageError, match=r"launch\.workers=40"):
        load_config({"launch": {"workers": [2, 40]}})


def test_a_sweep_and_a_job_of_slurm_need_a_folder_and_no_url(
    tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text("base: x.yaml\nseeds: [1]\ndirectory: s3://bucket/runs\n")
    with pytest.raises(
        UsageError, match=r"directory: should be a folder that all nodes see .* s3://bucket/runs"
    ):
        load_sweep(tmp_path / "sweep.yaml")
    config = load_config(config_of(tiny_data, "s3://bucket/runs"))
    with pytest.raises(
        UsageError, match=r"on storage that all nodes share, found s3://bucket/runs/tiny"
    ):
        render_batch_script(config, Resources(executor="local"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("run.directory", "inside"), ("data.path", "inside"), ("data.path", ["/else", "inside"])],
)
def test_paths_inside_the_uploaded_copy_of_a_job_are_refused(
    key: str,
    value: str | list[str],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    config = load_config(config_of(tiny_data, tmp_path / "runs"), {key: value})
    with pytest.raises(
        UserError,
        match=rf"{key} should be an absolute path on storage .*{key}=inside, which would lie",
    ):
        prepare_run(config, fresh=False, report=lambda _: None)
    assert list(copy.iterdir()) == []


def test_a_sweep_in_a_job_refuses_folders_inside_the_uploaded_copy(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    (copy / "base.yaml").write_text(yaml.safe_dump(config_of(tiny_data, "runs") | {"run": {}}))
    file = copy / "sweep.yaml"
    file.write_text("base: base.yaml\nname: tiny\ngrid: {model.width: [2, 4]}\n")
    before = sorted(copy.rglob("*"))
    vanish = ["directory=runs", "trial_directory=runs"]
    with pytest.raises(
        UserError,
        match=r"^directory should be an absolute path .* directory=runs/.*, trial_directory=runs",
    ):
        run_sweep(load_sweep(file, vanish), lambda _: None)
    with pytest.raises(UserError, match=r"data\.path=data, which would lie in the uploaded copy"):
        run_sweep(
            load_sweep(file, [f"directory={tmp_path}/runs", "data.path=data"]), lambda _: None
        )
    assert sorted(copy.rglob("*")) == before
    assert not (tmp_path / "runs").exists()


def test_submit_ray_refuses_relative_paths_all_at_once(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = config_of("../data", "my/runs", **{"data.cache_directory": "cache"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    given: dict[str, Any] = {"address": "http://127.0.0.1:9", "wait": True, "say": print}
    found = r"found run\.directory=my/runs, data\.path=\.\./data, data\.cache_directory=cache"
    with pytest.raises(UsageError, match=rf"^run\.directory should be an absolute path .* {found}"):
        submit_ray_job(Path("tiny.yaml"), [], **given)
    absolute = [
        f"data.path={tiny_data}",
        f"data.cache_directory={tmp_path}/cache",
        "run.directory=s3://bucket/runs",
    ]
    with pytest.raises(UserError, match="No Ray dashboard answers"):
        submit_ray_job(Path("tiny.yaml"), [*absolute, f"run.directory={tmp_path}/runs"], **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_submitted_run_begins_only_where_its_marker_is_seen(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_of(tiny_data, tmp_path / "runs"))
    marker = tmp_path / "runs" / "tiny" / ".seen-0123"
    monkeypatch.setenv("DISTBRANCH_MARKER", str(marker))
    monkeypatch.setattr(importlib.import_module(prepare_run.__module__), "SECONDS_TO_APPEAR", 0)
    with pytest.raises(
        UserError,
        match=r"The run directory .*/runs/tiny is another folder on .* where this job runs",
    ):
        prepare_run(config, fresh=False, report=lambda _: None)
    assert not (tmp_path / "runs").exists()
    marker.parent.mkdir(parents=True)
    marker.touch()
    prepare_run(config, fresh=False, report=lambda _: None)
    assert not marker.exists()
