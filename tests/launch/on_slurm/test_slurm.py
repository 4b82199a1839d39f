"""Jobs of a real Slurm with two nodes: what interrupts them, and what a person may get wrong.

A cluster start takes most of a minute on two cores, so one run goes through everything that can happen to it.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from slurm_world import SlurmWorld, missing
from tiny_runs import assert_same_content, config_of, lines_of

from distbranch.engine.checkpoint import load_newest

pytestmark = pytest.mark.cluster
HERE = Path(__file__).resolve()
SECONDS_PER_STEP = "0.25"
TWO_NODES = ("--partition", "main", "--nodes", "2", "--cpus-per-node", "2", "--time", "20")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmWorld]:
    """A Slurm of two nodes."""
    reason = missing()
    if reason and os.environ.get("DISTBRANCH_NO_SKIP"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    world = SlurmWorld(tmp_path_factory.mktemp("slurm") / "world")
    try:
        world.start()
        yield world
    finally:
        world.stop()


class Person:
    """Somebody at a terminal in a folder with a config file."""

    def __init__(self, world: SlurmWorld, folder: Path, data: Path) -> None:
        self.world, self.folder, self.data = world, folder, data
        (folder / "ranks").mkdir()
        self.write("tiny")

    def write(self, name: str, **dotted: object) -> None:
        config = config_of(self.data, self.folder / "runs", **{"run.name": name, **dotted})
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config))

    def types(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`distbranch ...`, as it ends."""
        paths = (HERE.parents[3], HERE.parents[2] / "slurm_pace")
        given = {
            **os.environ,
            **self.world.environment,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        given |= {"OMP_NUM_THREADS": "1", "TEST_SECONDS_PER_STEP": SECONDS_PER_STEP}
        given |= {"TEST_RANKS": str(self.folder / "ranks"), **environment}
        command = [sys.executable, "-m", "distbranch", *words]
        return subprocess.run(
            command,
            env=given,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def submits(self, *words: str, **environment: str) -> str:
        """The number of the job."""
        ended = self.types("submit", "slurm", *words, **environment)
        found = re.search(r"Submitted job (\d+)", ended.stdout)
        assert found, ended.stdout + ended.stderr
        return found[1]

    def ranks(self) -> list[tuple[str, int, int]]:
        """NODE-ATTEMPT, cores and threads of every rank that has trained with TEST_RANKS."""
        files = sorted((self.folder / "ranks").glob("*.json"))
        told = [(file.stem.rpartition("-")[0], json.loads(file.read_text())) for file in files]
        return [(name, about["cores"], about["threads"]) for name, about in told]

    def run_of(self, name: str) -> Path:
        return self.folder / "runs" / name

    def waits_for_step(self, step: int, name: str = "tiny", *, resumed: int = 0) -> None:
        file = self.run_of(name) / "metrics.jsonl"

        def is_there() -> bool:
            if not file.exists() or len(lines_of(file, "resumed")) < resumed:
                return False
            return any(line["iteration"] >= step for line in lines_of(file, "train"))

        try:
            self.world.wait_for(is_there, f"step {step} of {name}", timeout_s=150)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(name)}") from None

    def waits_for_end(self, job: str, timeout_s: float = 150) -> str:
        """Slurm's word for how the job ended."""
        states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.world.wait_for(
            lambda: self.world.job(job)["JobState"] in states, f"job {job}", timeout_s=timeout_s
        )
        self.world.wait_for(
            lambda: not self.world.run("squeue", "-h", "-j", job, check=False).strip(), f"job {job}"
        )
        return self.world.job(job)["JobState"]

    def log(self, name: str) -> str:
        return "\n".join(
            file.read_text()
            for file in sorted((self.run_of(name) / "slurm").rglob("*log*"))
            if file.is_file()
        )


@pytest.fixture
def person(slurm: SlurmWorld, tmp_path: Path, tiny_data: Path) -> Person:
    return Person(slurm, tmp_path, tiny_data)


def left_of(slurm: SlurmWorld, job: str) -> list[str]:
    """Processes, folders, and files in its TMPDIR that a job has left behind on this machine."""
    mark = f"/db{job}-"
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if mark in words and process.status() != psutil.STATUS_ZOMBIE:
            processes.append(words[:200])
    return [*processes, *map(str, Path("/tmp").glob(f"{mark[1:]}*")), *slurm.left_of(job)]


def saved_step(run: Path) -> int:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return int(checkpoint.state["progress"]["iteration"])


def stopped_at(log: str) -> list[int]:
    """The steps at which a log says that the run stopped with everything saved."""
    return [
        int(step)
        for step in re.findall(
            r"Stopped after step (\d+) of \d+; everything is saved", " ".join(log.split())
        )
    ]


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

    # A node fails.
    slurm.kill_node("n2")
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=power")
    slurm.wait_for(
        lambda: slurm.job(job)["Restarts"] == "2", "the requeue after the failure of a node"
    )
    slurm.start_node("n2")
    slurm.run("scontrol", "update", "nodename=n2", "state=resume")
    person.waits_for_step(first + 12, resumed=2)

    # scancel.
    slurm.run("scancel", job)
    assert person.waits_for_end(job) == "CANCELLED"
    third = stopped_at(person.log("tiny"))[-1]
    assert saved_step(run) == third > first
    assert not left_of(slurm, job)
    on_two_cores = {
        (f"{node}-{attempt}", 2, 1) for node in ("n1", "n2") for attempt in range(3)
    }  # launch.threads=1
    assert set(person.ranks()) == on_two_cores
    assert "(as last logged)" in person.types("status", "runs/tiny").stdout

    # The same command again, and another run beside it on the same nodes, which ends first; nobody says how many cores it needs.
    job = person.submits("tiny.yaml", *TWO_NODES)
    person.write("short", **{"train.iterations": 4, "launch.workers": 3})
    other = person.submits("short.yaml", "--partition", "main", "--nodes", "2", "--time", "20")
    assert person.waits_for_end(other) == "COMPLETED"
    assert (person.run_of("short") / "result.json").exists()
    assert person.waits_for_end(job) == "COMPLETED", person.log("tiny")
    assert not left_of(slurm, job) + left_of(slurm, other)
    resumed = [line["iteration"] for line in lines_of(run / "metrics.jsonl", "resumed")]
    assert resumed[0] == first
    assert resumed[2] == third
    assert first <= resumed[1] <= third
    assert_same_content(run, undisturbed(2))
    assert "is finished already" in person.types("submit", "slurm", "tiny.yaml", *TWO_NODES).stdout


def test_a_run_goes_on_after_its_time_limit_and_another_one_is_cancelled_by_hand(
    person: Person, slurm: SlurmWorld, undisturbed: Callable[[int], Path]
) -> None:
    options = ("--partition", "main", "--cpus-per-node", "1")
    # Slurm looks at limits every 30 s: it warns 45 to 75 s after the start, and the 48 steps take 77.
    limited = person.submits(
        "tiny.yaml", *options, "--time", "2", "--signal-delay", "45", TEST_SECONDS_PER_STEP="1.6"
    )
    person.write("second", **{"launch.workers": 2, "launch.threads": None, "data.workers": 1})
    cancelled = person.submits("second.yaml", "--partition", "main", "--cpus-per-node", "2")
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

    assert person.waits_for_end(limited, timeout_s=400) == "COMPLETED", person.log("tiny")
    assert int(slurm.job(limited)["Restarts"]) >= 1
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


def test_a_warning_of_slurm_before_a_job_has_begun_to_train_does_not_end_it(
    person: Person, slurm: SlurmWorld, undisturbed: Callable[[int], Path]
) -> None:
    job = person.submits("tiny.yaml", "--partition", "main", "--cpus-per-node", "1")

    def reads_its_task() -> bool:
        return "Loading pickle" in person.log("tiny")

    slurm.wait_for(reads_its_task, "the start of the task, which still lacks every handler")
    slurm.run("scancel", "--signal=USR2", job)
    slurm.wait_for(lambda: slurm.job(job)["Restarts"] == "1", "the requeue")
    assert person.waits_for_end(job) == "COMPLETED", person.log("tiny")
    assert_same_content(person.run_of("tiny"), undisturbed(1))


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


def test_an_array_trains_every_trial_of_a_sweep_once(person: Person, slurm: SlurmWorld) -> None:
    person.write("base", **{"train.iterations": 8})
    sweep = {
        "base": "base.yaml",
        "directory": str(person.folder / "runs"),
        "grid": {"method.alpha": [0.5, 2.0]},
        "seeds": [0, 1],
    }
    (person.folder / "few.yaml").write_text(yaml.safe_dump(sweep))
    command = (
        "submit",
        "slurm-array",
        "few.yaml",
        "--partition",
        "main",
        "--at-once",
        "2",
        "--time",
        "5",
    )
    submitted = person.types(*command, TEST_SECONDS_PER_STEP="0")
    assert "Submitted 4 of 4 trials as the array" in submitted.stdout, submitted.stderr
    slurm.wait_for(
        lambda: not slurm.run("squeue", "-h").strip(), "the end of the array", timeout_s=150
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
    shown = " ".join(person.types("status", str(hidden / "alone")).stdout.replace("│", " ").split())
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
    whole = "(invalid partition specified: mian; Batch job submission failed: Invalid partition name specified)"
    assert whole in refusal("--sbatch", "partition=mian")
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
