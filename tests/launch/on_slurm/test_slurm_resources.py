"""What a job of a real Slurm is given and what its ranks make of it: cores and GPUs, in whatever way they are asked for."""

import json
import os
import re
import sys

import pytest
from slurm_person import Person, left_of
from slurm_world import SlurmWorld

pytestmark = pytest.mark.cluster


def test_a_rank_trains_on_all_cores_of_its_job_whatever_asks_for_them_and_from_wherever(
    person: Person, slurm: SlurmWorld
) -> None:
    def written(name: str) -> str:
        person.write(name, **{"train.iterations": 4, "launch.threads": None})
        return f"{name}.yaml"

    def cores(name: str) -> tuple[int, int]:
        found = json.loads((person.run_of(name) / "environment.json").read_text())
        return found["cores"], found["threads_per_rank"]

    one = person.submits(
        written("one"), "--cpus-per-node", "1", SBATCH_TIMELIMIT="7", SBATCH_CPU_BIND="none"
    )
    two = person.submits(written("two"), "--cpus-per-node", "2", "--sbatch", "export=NONE")
    least = person.submits(written("least"), "launch.cpus_per_worker=2")
    whole = person.submits(
        written("whole"), "--partition", "urgent", "--exclusive", "--sbatch", "nodelist=n2"
    )
    jobs = {"one": one, "two": two, "least": least, "whole": whole}
    assert slurm.job(one)["TimeLimit"] == "01:00:00", (
        "the command's own limit counts, not that of a variable"
    )

    # From within a job of one core: a new job should not take that one's cores, memory and steps for its own.
    inner = f"{sys.executable} -m distbranch submit slurm {written('inner')} --cpus-per-node 2"
    script = f"cd {person.folder} && srun --cpus-per-task=1 --mem-per-cpu=300 {inner}"
    said = person.folder / "outer.log"
    slurm.run("sbatch", "--wait", "--mem=500", "--nodes=1", f"--output={said}", f"--wrap={script}")
    found = re.search(r"Submitted job (\d+)", said.read_text())
    assert found, said.read_text()
    jobs["inner"] = found[1]

    for name, job in jobs.items():
        assert person.waits_for_end(job) == "COMPLETED", person.log(name)
        assert not left_of(slurm, job)
    everything = os.cpu_count() or 1
    expected = {
        "one": (1, 1),
        "two": (2, 2),
        "least": (2, 2),
        "inner": (2, 2),
        "whole": (everything, everything),
    }
    assert {name: cores(name) for name in jobs} == expected


def test_a_step_that_is_warned_before_its_program_has_begun_waits_again(
    person: Person, slurm: SlurmWorld
) -> None:
    # The first `sh` of the job is ended by the signal before it can hold it back.
    programs = person.folder / "programs"
    programs.mkdir()
    shell = programs / "sh"
    warned = f"if mkdir {programs}/warned; then kill -USR2 $$; fi"
    shell.write_text(f'#!/bin/bash\n{warned}\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    job = person.submits("tiny.yaml", "--setup", f"PATH={programs}:$PATH")
    assert person.waits_for_end(job) == "COMPLETED", person.log("tiny")
    assert slurm.job(job)["Restarts"] == "1"


def test_gpus_count_in_whatever_way_they_are_asked_for_and_none_stays_idle(
    person: Person, slurm: SlurmWorld
) -> None:
    def refusal(*words: str) -> str:
        ended = person.types("submit", "slurm", "tiny.yaml", *words)
        assert ended.returncode == 2
        [line] = ended.stderr.splitlines()
        return line

    ways = ("gres=gpu:1", "gpus=1", "gpus-per-node=1", "gpus-per-task=1")
    for way in ways:
        assert "launch.device=cpu leaves the 1 GPU(s) idle" in refusal("--sbatch", way)
    assert "launch.workers=1 on 4 GPU(s)" in refusal(
        "--nodes", "2", "--sbatch", "gres=gpu:2", "launch.device=auto", "launch.workers=[1,1]"
    )
    for number, way in enumerate(ways):
        later = ("--sbatch", "begin=now+1hour", "launch.device=auto", f"run.name=gpu-{number}")
        job = person.submits("tiny.yaml", "--sbatch", way, *later)
        assert "gpu" in " ".join(slurm.job(job).values())
        assert (
            "device: cuda" in (person.run_of(f"gpu-{number}") / "slurm" / "config.yaml").read_text()
        )
        slurm.run("scancel", job)

    # A whole node brings its GPUs, which nobody asked for.
    job = person.submits(
        "tiny.yaml", "--partition", "urgent", "--exclusive", "--sbatch", "nodelist=n1"
    )
    assert person.waits_for_end(job) == "FAILED"
    assert re.search(
        r"Error: Slurm gave the job 2 GPU\(s\) on \S+, of which its ranks would use 0: ",
        person.log("tiny"),
    )
    assert not left_of(slurm, job)
