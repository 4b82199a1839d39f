"""The variables by which a launcher says which rank a process is, and what other programs leave of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import assert_one_sentence, run_command

from distbranch.engine.process_group import NUMBERS, num_started_ranks
from distbranch.errors import UserError

MASTER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def set_only(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in (*NUMBERS, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "num_ranks"),
    [
        ({}, None),
        (MASTER, None),  # left by another run, and harmless
        ({"WORLD_SIZE": "1"}, None),
        (
            {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **MASTER},
            None,
        ),
        ({"WORLD_SIZE": "4", "RANK": "3", **MASTER}, 4),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MASTER}, 4),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "OMPI_COMM_WORLD_SIZE": "8"}, None),
    ],
)
def test_a_whole_environment_says_how_many_ranks_there_are(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], num_ranks: int | None
) -> None:
    set_only(monkeypatch, variables)
    assert num_started_ranks() == num_ranks


LEFTOVERS = [
    ({"WORLD_SIZE": ""}, "WORLD_SIZE is empty"),
    ({"WORLD_SIZE": " "}, "WORLD_SIZE is empty"),
    ({"WORLD_SIZE": "2"}, "there is no RANK and no MASTER_ADDR and no MASTER_PORT"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "there is no MASTER_ADDR and no MASTER_PORT"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "there is no MASTER_PORT"),
    ({"WORLD_SIZE": "2", **MASTER}, "there is no RANK"),
    ({"RANK": "0"}, "there is no WORLD_SIZE"),
    ({"RANK": "3"}, "there is no WORLD_SIZE"),
    ({"RANK": ""}, "RANK is empty"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE should be a whole number"),
    ({"WORLD_SIZE": "2", "RANK": "-1", **MASTER}, "RANK should be a whole number"),
    ({"WORLD_SIZE": "2", "RANK": "0x1", **MASTER}, "RANK should be a whole number"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE should be 1 or more"),
    ({"WORLD_SIZE": "2", "RANK": "2", **MASTER}, "RANK should be from 0 to 1"),
    ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK should be from 0 to 0"),
    (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "", "MASTER_PORT": "29500"},
        "MASTER_ADDR is empty",
    ),
    (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "99999"},
        "MASTER_PORT should be from 1",
    ),
    (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "http"},
        "MASTER_PORT should be a whole number",
    ),
    ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE should be from 1 to 1"),
    ({"LOCAL_RANK": "3"}, "LOCAL_RANK should be from 0 to 0"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK is empty"),
]


@pytest.mark.parametrize(("variables", "told"), LEFTOVERS)
def test_what_is_left_over_is_refused_with_what_is_set_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    set_only(monkeypatch, variables)
    with pytest.raises(UserError) as error:
        num_started_ranks()
    assert told in str(error.value)
    for name, value in variables.items():
        assert f"{name}={value.strip()}" in str(error.value)


@pytest.mark.parametrize(("variables", "told"), LEFTOVERS[:8])
def test_training_among_leftovers_ends_in_one_sentence(
    world: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    set_only(monkeypatch, variables)
    assert_one_sentence(
        run_command(["train", "tiny.yaml", "run.name=new"]), 1, (told, "torchrun", "unset")
    )
    assert not Path("runs/new").exists()


def test_torchrun_sets_all_of_them(tmp_path: Path) -> None:
    program = tmp_path / "say.py"
    program.write_text(
        "import os\nfrom distbranch.engine.process_group import num_started_ranks\n"
        f"open(f'{tmp_path}/{{os.environ[\"RANK\"]}}-of-{{num_started_ranks()}}', 'w').close()\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(program),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
    assert {path.name for path in tmp_path.glob("*-of-*")} == {"0-of-2", "1-of-2"}
