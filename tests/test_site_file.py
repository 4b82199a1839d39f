"""A site's own defaults for `distbranch submit`: which options they give, what wins over them, and what is wrong with a file."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from tiny_world import assert_one_sentence, run_command

from distbranch.cli.site_file import (
    ASKED_EACH_TIME,
    SECTIONS,
    describe_site_file,
    list_options,
    read_site_file,
)
from distbranch.cli.submit import submit_app

CONFIG = "run: {directory: /nowhere/runs}\ndata: {path: s3://nowhere/data}\n"
Writes = Callable[[str], Path]


@pytest.fixture
def writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writes:
    """Writes the site's file; beside it lies the config of a run."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTBRANCH_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def write(text: str) -> Path:
        file = tmp_path / "config" / "distbranch" / "site.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


def script(*options: str) -> tuple[list[str], str]:
    """The lines of the batch script, and what was said beside it."""
    ended = run_command(["submit", "slurm", *options, "--dry-run", "run.yaml"])
    assert ended.code == 0, ended.err
    assert ended.out.startswith("#!/bin/bash\n")
    return ended.out.splitlines(), ended.err.strip()


FILE = """
slurm:
  partition: gpu
  time: 12:00:00        # for YAML a number, of seconds
  gpus-per-node: a100:2
  exclusive: yes
  signal_delay: 120
  setup: module load cuda/12.4
  srun: [mpi=none, overlap]
  at_once: 4            # of submit slurm-array alone
"""


def test_options_that_nobody_types_come_from_the_file_and_this_is_said(writes: Writes) -> None:
    file = writes(FILE)
    lines, said = script()
    for asked in (
        "partition=gpu",
        "time=720",
        "gpus-per-node=a100:2",
        "exclusive",
        "signal=USR2@120",
    ):
        assert f"#SBATCH --{asked}" in lines
    assert any(line.startswith("eval 'module load cuda/12.4' ||") for line in lines)
    assert lines[-2].startswith("srun ")
    assert " --mpi=none --overlap " in lines[-2]
    place, _, options = said.partition(": ")
    assert place == f"From {file}"
    expected = (
        "--partition gpu --time 12:00:00 --gpus-per-node a100:2 --exclusive --signal-delay 120 "
        "--setup 'module load cuda/12.4' --srun mpi=none --srun overlap"
    )
    assert sorted(shlex.split(options)) == sorted(shlex.split(expected))


def test_what_is_typed_wins_and_options_that_may_be_given_again_add_up(writes: Writes) -> None:
    writes(FILE)
    typed = (
        "--partition",
        "cpu",
        "--gpus-per-node",
        "0",
        "--setup",
        "source x",
        "--srun",
        "mpi=pmix",
    )
    lines, said = script(*typed)
    assert "#SBATCH --partition=cpu" in lines
    assert not any("gpus-per-node" in line for line in lines)
    setup = [line.partition(" ||")[0] for line in lines if line.startswith("eval")]
    assert setup == ["eval 'module load cuda/12.4'", "eval 'source x'"]
    assert " --mpi=pmix --overlap " in lines[-2]
    assert "--partition" not in said
    assert "--setup 'module load cuda/12.4'" in said


def test_every_option_of_the_commands_may_stand_in_the_file_and_nothing_else() -> None:
    group = typer.main.get_command(submit_app)
    commands = group.commands  # type: ignore[attr-defined]
    assert {name for names in SECTIONS.values() for name in names} == set(commands)
    for name, command in commands.items():
        options = {
            max(one.opts, key=len).lstrip("-").replace("-", "_")
            for one in command.params
            if one.param_type_name == "option"
        }
        assert set(list_options(name)) == options - {*ASKED_EACH_TIME, "help"}


def test_the_file_of_a_site_is_where_a_variable_says_or_none(
    writes: Writes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes(FILE)
    other = tmp_path / "other.yaml"
    other.write_text("ray: {address: 'http://head:8265', wait: false}")
    monkeypatch.setenv("DISTBRANCH_SITE", str(other))
    assert read_site_file().sections == {
        "slurm": {},
        "ray": {"address": "http://head:8265", "wait": False},
    }
    assert script()[1] == ""
    monkeypatch.setenv("DISTBRANCH_SITE", "")
    assert read_site_file().path is None
    assert script()[1] == ""
    monkeypatch.setenv("DISTBRANCH_SITE", "/nowhere/site.yaml")
    ended = run_command(["submit", "slurm", "run.yaml", "--dry-run"])
    assert_one_sentence(ended, 2, ("DISTBRANCH_SITE names /nowhere/site.yaml", "unset it"))


WRONG = {
    "slurm: {partitio: gpu}": ("slurm.partitio", "unknown, the nearest are", "partition"),
    "slurm: {dry_run: true}": ("slurm.dry_run", "unknown, the nearest are"),
    "slurm: {nodes: two}": ("slurm.nodes: should be a whole number, found 'two'",),
    "slurm: {exclusive: 3}": ("slurm.exclusive: should be true or false, found '3'",),
    "slurm: {nodes: 0}": ("slurm.nodes", "greater than or equal to 1", "found '0'"),
    "slurm: {setup: {a: b}}": ("slurm.setup: should be a text or a list of texts",),
    "slurm: {container_kind: docker}": ("slurm.container_kind", "'apptainer'", "found 'docker'"),
    "slurm: [partition]": ("slurm: it should hold `option: value` lines",),
    "slurms: {}": ("slurms: there is no such section, only slurm and ray",),
    "partition": ("should hold the sections slurm and ray",),
    "slurm: {": ("cannot be read as YAML",),
    "slurm: {nodes: x, tim: 3}\nray: {wait: 3, addres: x}": (
        "slurm.nodes: should be",
        "slurm.tim: ",
        "ray.wait: should be true or false",
        "ray.addres: ",
    ),
}


@pytest.mark.parametrize("text", WRONG)
def test_all_that_is_wrong_with_a_file_is_told_in_one_sentence(text: str, writes: Writes) -> None:
    file = writes(text)
    ended = run_command(["submit", "slurm", "run.yaml", "--dry-run"])
    assert_one_sentence(ended, 2, (str(file), *WRONG[text]))
    found, advice = describe_site_file()
    assert found == "not valid"
    assert str(file) in advice
    # A help text is shown all the same.
    assert run_command(["submit", "slurm", "--help"]).code == 0


def test_doctor_says_what_the_file_gives(writes: Writes) -> None:
    assert describe_site_file()[0].startswith("none (")
    file = writes("slurm: {partition: gpu, setup: [a, b]}\nray: {wait: no}")
    assert describe_site_file() == (f"{file} (slurm: partition, setup; ray: wait)", "")


def test_a_key_without_a_value_gives_nothing_and_a_switch_can_be_typed_off(writes: Writes) -> None:
    writes("slurm:\n  partition:\n  nodes:\n  setup:\n  exclusive: yes\n")
    lines, said = script()
    assert said.endswith("--exclusive")
    assert not [line for line in lines if "partition" in line or "eval" in line]
    lines, said = script("--no-exclusive")
    assert not said
    assert "#SBATCH --exclusive" not in lines
