"""`distbranch doctor --ranks`: the table, and the places of the ranks that srun starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distbranch.engine.rank_check import Link, RankReport
from distbranch.launch import rank_check
from distbranch.launch.rank_check import describe_report, describe_title, take_place_of_srun


def test_the_table_says_what_is_slow_and_compared_with_what() -> None:
    hosts = ["n1", "n1", "n2", "n3"]
    links = [Link((0, 2), 1e-3), Link((0, 3), 4e-3), Link((1, 2), 1e-3), Link((2, 3), 8e-3)]
    sums = [(1024, 5e-5), (2**24, 4e-3)]
    report = RankReport("nccl", "cuda", hosts, sums, [0.01, 0.012, 0.03, 0.012], links)
    assert describe_title(report) == "4 ranks on 3 host(s), cuda, nccl"
    rows = [tuple(row.values()) for row in describe_report(report)]
    assert rows == [
        ("sum of 1 KiB", "50 us", "0.0307 GB/s", ""),
        ("sum of 16 MiB", "4 ms", "6.29 GB/s", ""),
        ("matrix product, slowest host", "30 ms", "n2", "2.5 times"),
        ("message of 4 MiB, slowest host", "4 ms", "n3", "4.0 times"),
        ("message of 4 MiB, slowest pair", "8 ms", "ranks 2 and 3 on n2 and n3", "8.0 times"),
    ]


STEP = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x1),3",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    "PATH": "/nowhere",
}


@pytest.fixture
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        # Set first, so that what is set by the test is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return monkeypatch


def test_a_task_of_srun_finds_its_place_also_where_no_command_of_slurm_is(
    no_ranks: pytest.MonkeyPatch,
) -> None:
    for name, value in STEP.items():
        no_ranks.setenv(name, value)
    take_place_of_srun()
    found = {
        name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    }
    assert found == {"RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert 20_000 <= int(os.environ["MASTER_PORT"]) < 32_000


def test_a_batch_script_is_no_task_of_srun(no_ranks: pytest.MonkeyPatch) -> None:
    no_ranks.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    no_ranks.setenv("SLURM_PROCID", "0")
    no_ranks.setenv("SLURM_NTASKS", "8")
    take_place_of_srun()
    assert "RANK" not in os.environ


def test_ranks_that_torchrun_starts_measure_and_one_of_them_prints(tmp_path: Path) -> None:
    source = Path(rank_check.__file__).resolve().parents[2]
    given = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    command += ["-m", "distbranch", "doctor", "--ranks", "2"]
    ended = subprocess.run(
        command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("2 ranks on 1 host(s), cpu, gloo") == 1
    assert "sum of 64 MiB" in ended.stdout


def test_tasks_of_srun_one_on_each_node_start_as_many_ranks_as_are_asked_for(
    no_ranks: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a job of Slurm runs it; both nodes are this machine."""
    source = Path(rank_check.__file__).resolve().parents[2]
    given = {**os.environ, **STEP, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    given |= {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_LOCALID": "0",
    }
    given["SLURM_JOB_ID"] = str(os.getpid())  # by which the port is chosen
    command = [sys.executable, "-m", "distbranch", "doctor", "--ranks", "4"]
    tasks = [
        subprocess.Popen(
            command,
            env={**given, "SLURM_PROCID": number, "SLURM_NODEID": number},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    said = [task.communicate(timeout=240)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert "4 ranks on 1 host(s), cpu, gloo" in said[0]
    assert said[1] == ""
