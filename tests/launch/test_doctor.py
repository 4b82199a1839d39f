"""What `distbranch doctor` finds out about threads, and about Ray: its temporary files, and the cluster of the environment."""

from pathlib import Path

import pytest
import torch

from distbranch.config import LaunchConfig
from distbranch.engine.cores import num_cores
from distbranch.engine.process_group import join_ranks
from distbranch.launch import ray_folder
from distbranch.launch.doctor import Finding, check_machine


def found(what: str, folder: Path) -> Finding:
    return next(finding for finding in check_machine(folder) if finding.what == what)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_threads_of_a_rank_are_those_that_the_doctor_tells_and_not_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = f"({num_cores()} for one rank), not OMP_NUM_THREADS=7"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert told in found("threads of a rank", tmp_path).found
    before = torch.get_num_threads()
    with join_ranks(LaunchConfig(device="cpu")):
        assert torch.get_num_threads() == num_cores()
    torch.set_num_threads(before)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP" not in found("threads of a rank", tmp_path).found


def test_a_tmpdir_that_is_too_long_for_sockets_is_named_with_the_folder_that_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("t" * 50)
    long.mkdir()
    assert found("files of Ray", tmp_path) == Finding("files of Ray", "in /tmp")
    monkeypatch.setenv("TMPDIR", str(long))
    finding = found("files of Ray", tmp_path)
    assert finding.found.startswith(f"in /tmp, for {long} is too long for the names of sockets")
    assert not finding.advice


def test_where_no_folder_takes_sockets_the_advice_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_folder, "ALWAYS_TRIED", ["/nowhere"])
    assert "Set RAY_TMPDIR to a short folder" in found("files of Ray", tmp_path).advice


@pytest.mark.parametrize(
    ("variable", "words", "is_wrong"),
    [
        ("", "runs start one here", False),
        ("10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379: runs join it", False),
        ("http://10.0.0.1:8265", "`submit ray` submits there", True),
        ("foo", "RAY_ADDRESS=foo", True),
    ],
)
def test_the_cluster_of_the_environment_is_named(
    variable: str, words: str, is_wrong: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    finding = found("Ray cluster", tmp_path)
    assert words in finding.found
    assert ("launch.address=local" in finding.advice) is is_wrong
