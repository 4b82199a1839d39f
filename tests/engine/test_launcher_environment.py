"""The variables by which a launcher says which rank a process is, and what other programs leave of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import assert_one_sentence, run_command

from distbranch.engine.launcher_environment import NUMBERS, LauncherEnvironment, read_launcher_environment
from distbranch.errors import UserError

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def set_only(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in (*NUMBERS, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "rank", "world_size"),
    [
        ({}, 0, 1),
        (MASTER, 0, 1),  # left by another run, and harmless
        ({"WORLD_SIZE": "1"}, 0, 1),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **MASTER}, 0, 1),
        ({"WORLD_SIZE": "4", "RANK": "3", **MASTER}, 3, 4),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MASTER}, 3, 4),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "OMPI_COMM_WORLD_SIZE": "8"}, 0, 1),
    ],
)
def test_a_whole_environment_says_the_rank(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int, world_size: int
) -> None:
    set_only(monkeypatch, variables)
    assert read_launcher_environment() == LauncherEnvironment(rank, world_size)


LEFTOVERS = [
    ({"WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
    ({"WORLD_SIZE": " "}, "WORLD_SIZE is empty"),
    ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT are missing"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT are missing"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is missing"),
    ({"WORLD_SIZE": "2", **MASTER}, "RANK is missing"),
    ({"RANK": "0"}, "WORLD_SIZE is missing"),
    ({"RANK": "3"}, "WORLD_SIZE is missing"),
    ({"RANK": ""}, "RANK is empty"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE should be a whole number"),
    ({"WORLD_SIZE": "2", "RANK": "-1", **MASTER}, "RANK should be a whole number"),
    ({"WORLD_SIZE": "2", "RANK": "0x1", **MASTER}, "RANK should be a whole number"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE should be 1 or more"),
    ({"WORLD_SIZE": "2", "RANK": "2", **MASTER}, "RANK should be below the 2"),
    ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK should be below the 1"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR is empty"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "99999"}, "MASTER_PORT should be from 1"),
    (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "http"},
        "MASTER_PORT should be a whole number",
    ),
    ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE should be from 1 to the 1"),
    ({"LOCAL_RANK": "3"}, "LOCAL_RANK should be below the 1"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK is empty"),
]


@pytest.mark.parametrize(("variables", "told"), LEFTOVERS)
def test_what_is_left_over_is_refused_with_what_is_set_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    set_only(monkeypatch, variables)
    with pytest.raises(UserError) as error:
        read_launcher_environment()
    assert told in str(error.value)
    for name, value in variables.items():
        assert f"{name}={value.strip()}" in str(error.value)


@pytest.mark.parametrize(("variables", "told"), LEFTOVERS[:8])
def test_training_among_leftovers_ends_in_one_sentence(
    world: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    set_only(monkeypatch, variables)
    assert_one_sentence(run_command(["train", "tiny.yaml", "run.name=new"]), 1, (told, "torchrun", "unset"))
    assert not Path("runs/new").exists()


def test_torchrun_sets_all_of_them(tmp_path: Path) -> None:
    program = tmp_path / "say.py"
    program.write_text(
        "from distbranch.engine.launcher_environment import read_launcher_environment as read\n"
        f"one = read()\nopen(f'{tmp_path}/{{one.rank}}-of-{{one.world_size}}', 'w').close()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    assert {path.name for path in tmp_path.glob("*-of-*")} == {"0-of-2", "1-of-2"}
