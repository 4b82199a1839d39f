"""Jobs of a real Slurm with two nodes: what interrupts them, and what a person may get wrong.

A cluster start takes most of a minute on two cores, so one run goes through everything that can happen to it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from slurm_person import PATIENCE_S, Person, left_of, saved_step, stopped_at
from slurm_world import SlurmWorld
from tiny_runs import ITERATIONS, assert_same_content, lines_of

pytestmark = pytest.mark.cluster
TWO_NODES = ("--partition", "main", "--nodes", "2", "--cpus-per-node", "2", "--time", "20")


def is_refused_without_the_token(run: Path) -> bool:
    """Whether the cluster of a job turns away a client that does not hold its token, which only the owner can read."""
    [file] = run.glob("slurm/job-*/cluster.json")
    assert file.stat().st_mode & 0o777 == 0o600
    told = json.loads(file.read_text())
    program = f"from ray._raylet import GcsClient; GcsClient(address='{told['address']}').get_all_node_info(timeout=5)"
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")
    }
    refused = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    holder = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": told["token"]}
    welcome = subprocess.run(
        [sys.executable, "-c", program], env=holder, capture_output=True, check=False
    )
    assert welcome.returncode == 0, welcome.stderr.decode()
    return refused.returncode != 0


def test_a_run_on_two_nodes_survives_preemption_node_failure_and_scancel_with_the_same_bits(
    person: Person, slurm: SlurmWorld, undisturbed: Callable[[int], Path]
) -> None:
    run = person.run_of("tiny")
    person.hurries_until(8)
    job = person.submits("tiny.yaml", *TWO_NODES)
    person.waits_for_step(8)
    assert is_refused_without_the_token(run)

    # Preemption: a more urgent job wants both nodes.
    slurm.run(
        "sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    slurm.wait_for(lambda: slurm.job(job)["Restarts"] == "1", "the requeue after preemption")
    [first] = stopped_at(person.log("tiny"))
    assert saved_step(run) == first
    person.waits_for_step(first + 4, resumed=1)

    # A node fails, and its owner lets the job run on the one that is left.
    slurm.kill_node("n2")
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=power")
    slurm.wait_for(
        lambda: slurm.job(job)["Restarts"] == "2", "the requeue after the failure of a node"
    )
    slurm.run("scontrol", "update", f"jobid={job}", "numnodes=1", "numtasks=1", "numcpus=2")
    person.waits_for_step(first + 12, resumed=2)
    slurm.start_node("n2")
    slurm.run("scontrol", "update", "nodename=n2", "state=resume")

    # scancel.
    slurm.run("scancel", job)
    assert person.waits_for_end(job) == "CANCELLED"
    third = stopped_at(person.log("tiny"))[-1]
    assert saved_step(run) == third > first
    left = f"/tmp/db{job}-1"  # on the node that failed, to which the job did not come back
    assert left_of(slurm, job) == [left]
    shutil.rmtree(left)
    attempts = ("n1-0", "n2-0", "n1-1", "n2-1", "n1-2")
    on_two_cores = {(attempt, 2, 1) for attempt in attempts}  # launch.threads=1
    assert set(person.ranks()) == on_two_cores
    assert "(as last logged)" in person.types("status", "runs/tiny").stdout

    # The same command again, and another run beside it on the same nodes, which ends first; nobody says how many cores it needs.
    job = person.submits("tiny.yaml", *TWO_NODES)
    person.write("short", **{"train.iterations": 4, "launch.workers": 3})
    other = person.submits("short.yaml", "--partition", "main", "--nodes", "2", "--time", "20")
    assert person.waits_for_end(other) == "COMPLETED"
    assert (person.run_of("short") / "result.json").exists()
    person.hurries_until(ITERATIONS)
    assert person.waits_for_end(job) == "COMPLETED", person.log("tiny")
    assert not left_of(slurm, job) + left_of(slurm, other)
    resumed = [line["iteration"] for line in lines_of(run / "metrics.jsonl", "resumed")]
    assert resumed[0] == first
    assert resumed[2] == third
    assert first <= resumed[1] <= third
    assert_same_content(run, undisturbed(2))
    assert "is finished already" in person.types("submit", "slurm", "tiny.yaml", *TWO_NODES).stdout


def shorten_time_limit(slurm: SlurmWorld, job: str) -> None:
    """Let a job meet its limit at the next look of Slurm, which is every 30 s and warns 90 to 120 s before it."""
    minutes = int(slurm.job(job)["RunTime"].split(":")[1])
    slurm.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes + 2}")


def test_a_run_resumes_after_each_time_limit_and_another_one_is_cancelled_by_hand(
    person: Person, slurm: SlurmWorld, undisturbed: Callable[[int], Path]
) -> None:
    options = ("--partition", "main", "--cpus-per-node")
    person.hurries_until(4)
    limited = person.submits("tiny.yaml", *options, "1", "--time", "20", TEST_SECONDS_PER_STEP="3")

    def restarts() -> int:
        return int(slurm.job(limited)["Restarts"])

    person.write("second", **{"launch.workers": 2, "launch.threads": None, "data.workers": 1})
    cancelled = person.submits("second.yaml", *options, "2")
    person.waits_for_step(4)
    shorten_time_limit(slurm, limited)

    person.waits_for_step(4, "second")
    ended = person.types("cancel", "runs/second")
    assert ended.returncode == 0, ended.stderr
    assert "has stopped; the same command continues it" in ended.stdout
    [step] = stopped_at(person.log("second"))
    assert saved_step(person.run_of("second")) == step
    assert person.waits_for_end(cancelled) == "COMPLETED"
    assert [rank[1:] for rank in person.ranks() if rank[1:] != (1, 1)] == 2 * [(2, 1)]
    assert f"Stopped after step {step}" in " ".join(
        person.types("logs", "runs/second").stdout.split()
    )

    slurm.wait_for(lambda: restarts() >= 1, "the requeue at the limit")
    shorten_time_limit(slurm, limited)
    slurm.wait_for(lambda: restarts() >= 2, "the requeue at the second limit", timeout_s=200)
    slurm.run("scontrol", "update", f"jobid={limited}", "timelimit=30")
    person.hurries_until(ITERATIONS)
    assert person.waits_for_end(limited) == "COMPLETED", person.log("tiny")
    stops = stopped_at(person.log("tiny"))
    resumed = [
        line["iteration"] for line in lines_of(person.run_of("tiny") / "metrics.jsonl", "resumed")
    ]
    assert stops
    assert set(stops) == set(
        resumed
    )  # on a busy machine an attempt may end before its first step, and is as if it had not been
    assert_same_content(person.run_of("tiny"), undisturbed(1))
    assert not left_of(slurm, limited) + left_of(slurm, cancelled)


def test_an_array_trains_every_trial_once_also_one_that_slurm_warns_before_it_has_begun_to_train(
    person: Person, slurm: SlurmWorld
) -> None:
    person.write("base", **{"train.iterations": 8})
    sweep = {
        "base": "base.yaml",
        "directory": str(person.folder / "runs"),
        "grid": {"method.alpha": [0.5, 2.0]},
        "seeds": [0, 1],
    }
    (person.folder / "few.yaml").write_text(yaml.safe_dump(sweep))
    options = ("--partition", "main", "--at-once", "2", "--time", "5")
    command = ("submit", "slurm-array", "few.yaml", *options)
    submitted = person.types(*command)
    assert "Submitted 4 of 4 trials as the array" in submitted.stdout, submitted.stderr
    [array] = re.findall(r"as the array (\d+)", submitted.stdout)

    # The task reads what it is to do, and still lacks every handler.
    log = person.folder / "runs" / "few" / "slurm" / f"{array}_1_0_log.out"
    slurm.wait_for(lambda: log.exists() and "Loading pickle" in log.read_text(), "the second trial")
    # scancel of a part of an array takes long: it repeats what has been done already.
    with suppress(subprocess.TimeoutExpired):
        slurm.run("scancel", "--signal=USR2", f"{array}_1", timeout_s=4)
    slurm.wait_for(lambda: slurm.job(f"{array}_1")["Restarts"] == "1", "the requeue of a trial")

    slurm.wait_for(
        lambda: not slurm.run("squeue", "-h").strip(), "the end of the array", timeout_s=PATIENCE_S
    )
    results = sorted((person.folder / "runs" / "few").glob("*/result.json"))
    assert len(results) == 4
    trial = results[0].parent
    assert "COMPLETED" in person.types("status", str(trial)).stdout
    assert "run directory:" in person.types("logs", str(trial)).stdout
    again = person.types(*command)
    assert again.stdout.count("is finished already") == 4
    assert "Submitted" not in again.stdout
    [words] = re.findall(r"When all have ended, `distbranch (.+)` makes the table", again.stdout)
    assert person.types(*words.split()).returncode == 0
    assert (person.folder / "runs" / "few" / "results.csv").read_text().count("finished") == 4


def test_a_job_that_is_held_is_not_submitted_twice_and_can_be_cancelled(
    person: Person, slurm: SlurmWorld
) -> None:
    job = person.submits("tiny.yaml", "--sbatch", "begin=now+1hour")
    slurm.run("scontrol", "hold", job)
    assert "waiting (JobHeld" in " ".join(person.types("status", "runs/tiny").stdout.split())
    again = person.types("submit", "slurm", "tiny.yaml")
    assert f"job {job} already, which is waiting (JobHeld" in again.stdout
    cancelled = person.types("cancel", "runs/tiny")
    assert f"The job {job} had not begun; it is taken out of the queue" in cancelled.stdout
    assert slurm.job(job)["JobState"] == "CANCELLED"


def test_a_folder_that_one_node_does_not_see_and_a_busy_port_are_said_in_one_sentence(
    person: Person, slurm: SlurmWorld
) -> None:
    hidden = slurm.hidden / "runs"
    job = person.submits("tiny.yaml", f"run.directory={hidden}", *TWO_NODES)
    assert person.waits_for_end(job) == "FAILED"
    [log] = (hidden / "tiny" / "slurm").glob("*_0_log.out")
    assert re.search(
        rf"Error: the node n2 does not see {hidden}/tiny .* storage that all nodes share\.",
        log.read_text(),
    )

    job = person.submits(
        "tiny.yaml",
        f"run.directory={hidden}",
        "run.name=alone",
        "--partition",
        "main",
        "--sbatch",
        "nodelist=n2",
    )
    person.waits_for_end(job)
    shown = " ".join(person.types("status", str(hidden / "alone")).stdout.split())
    assert "left no log" in shown
    assert "Give a run.directory on storage that all nodes share" in shown

    port = slurm.configuration.read_text().partition("SlurmctldPort=")[2].split()[0]
    job = person.submits("tiny.yaml", *TWO_NODES, "--port", port)
    assert person.waits_for_end(job) == "FAILED"
    assert re.search(
        rf"Error: The port {port} of \S+ is in use\. Give another --port", person.log("tiny")
    )
    assert not left_of(slurm, job)


def test_what_slurm_refuses_is_said_in_one_sentence(person: Person, slurm: SlurmWorld) -> None:
    def refusal(*words: str, **environment: str) -> str:
        ended = person.types("submit", "slurm", "tiny.yaml", *words, **environment)
        assert ended.returncode in (1, 2)
        assert ended.stdout == ""
        [line] = ended.stderr.splitlines()
        return line

    partitions = "closed, main, project, short, urgent"
    assert f"--partition should be one of {partitions}, found 'mian'" in refusal(
        "--partition", "mian"
    )
    assert "ask for fewer nodes" in refusal(
        "--partition", "main", "--nodes", "9", "train.batch_size=18"
    )
    assert "--time is written" in refusal("--time", "soon")
    assert "Give --partition in place of --sbatch partition=mian." in refusal(
        "--sbatch", "partition=mian"
    )
    assert "Slurm refuses: Invalid --time-min specification." in refusal(
        "--sbatch", "time-min=soon"
    )
    whole = "(Memory specification can not be satisfied; Batch job submission failed: Requested node configuration is not"
    assert whole in refusal("--mem", "900G")
    assert "--time is longer than the partition allows" in refusal(
        "--partition", "short", "--time", "50"
    )
    assert "give an --account that may use this partition" in refusal(
        "--partition", "project", "--account", "unknown"
    )
    assert "you may not use this partition" in refusal(
        "--partition", "closed", "--sbatch", "uid=nobody"
    )
    assert "has no such GPUs or other resources" in refusal("--sbatch", "gres=fpga:1")
    assert "ask for fewer nodes, cores or GPUs" in refusal(
        "--gpus-per-node", "3", "launch.device=cuda", "launch.workers=3"
    )
    assert "unrecognized option '--fast=1'" in refusal("--sbatch", "fast=1")
    folder = Path(sys.executable).parent
    assert "Slurm's command sinfo is not on this machine" in refusal(PATH=str(folder))
    slurm.stop_daemon("munged")
    assert "munge" in (said := refusal())
    assert "ask the administrator to start it" in said
    slurm.start_munge()
    slurm.stop_daemon("slurmctld")
    assert "slurmctld does not answer" in refusal()
    slurm.start_controller()
    slurm.wait_for(
        lambda: slurm.state_of("n1") == slurm.state_of("n2") == "idle", "both nodes to be idle"
    )
    assert not person.run_of("tiny").exists(), "what was refused should leave nothing behind"
