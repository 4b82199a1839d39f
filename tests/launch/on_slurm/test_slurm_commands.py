"""Commands beside `train` as jobs of a real Slurm: a sweep on all nodes of one allocation, anything else on one node."""

import json
import re

import pytest
import yaml
from slurm_person import Person, left_of
from slurm_world import SlurmWorld
from tiny_runs import lines_of

pytestmark = pytest.mark.cluster


def test_a_sweep_in_one_allocation_uses_both_nodes_survives_preemption_and_its_trials_are_evaluated(
    person: Person, slurm: SlurmWorld
) -> None:
    # The third trial has no room before another one has ended.
    person.write("base", **{"train.iterations": 24, "train.evaluate_every": 0})
    sweep = {"base": "base.yaml", "directory": str(person.folder / "runs")}
    sweep |= {"seeds": [3, 4, 5], "cpus_per_trial": 2}
    (person.folder / "few.yaml").write_text(yaml.safe_dump(sweep))
    command = ("--partition", "main", "--nodes", "2", "--cpus-per-node", "2", "--time", "30")
    # After the first steps so slow that both trials still train when they are interrupted.
    job = person.submits(*command, "--", "sweep", "few.yaml", TEST_SECONDS_PER_STEP="10")
    directory = person.run_of("few")
    person.waits_for_step(4, "few/seed3")
    person.waits_for_step(4, "few/seed4")
    assert {(rank[0], rank[1]) for rank in person.ranks()} == {("n1-0", 2), ("n2-0", 2)}
    assert not (directory / "seed5" / "metrics.jsonl").exists()
    again = person.types("submit", "slurm", *command, "--", "sweep", "few.yaml")
    assert f"has the slurm job {job} of `sweep` already, which is running on n" in again.stdout

    # A more urgent job wants both nodes: every running trial is saved, and resumed.
    slurm.run(
        "sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    slurm.wait_for(
        lambda: slurm.job(job)["Restarts"] == "1", "the requeue after preemption", timeout_s=200
    )
    person.hurries_until(24)
    assert person.waits_for_end(job) == "COMPLETED", person.log("few")
    for seed in (3, 4):
        resumed = lines_of(directory / f"seed{seed}" / "metrics.jsonl", "resumed")
        assert [line["iteration"] >= 4 for line in resumed] == [True]
    assert (directory / "results.csv").read_text().count("finished") == 3
    assert json.loads((directory / "job.json").read_text())["command"] == "sweep"
    assert (directory / "slurm" / "exit-code").read_text() == "0\n"
    assert not left_of(slurm, job)

    # Anything else is one process of one node; the command waits for it and ends as it did.
    evaluated = person.types("submit", "slurm", "--wait", "--", "evaluate", "runs/few/seed5")
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "saves nothing on its way: at the limit of 60 minutes" in evaluated.stdout
    [number] = re.findall(r"Submitted job (\d+)", evaluated.stdout)
    file = directory / "seed5" / "slurm" / "evaluate" / "job.json"
    assert json.loads(file.read_text())["id"] == number
    failed = person.types(
        "submit", "slurm", "--wait", "--", "evaluate", "runs/few/seed5", "--split", "none"
    )
    assert failed.returncode == 1
    assert "Error: " in failed.stdout
    assert not left_of(slurm, number)

    # But for a look at the nodes and what joins them.
    looked = person.types(
        "submit", "slurm", "--nodes", "2", "--wait", "--", "doctor", "--ranks", "4"
    )
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert looked.stdout.count("4 ranks on ") == 1
